"""Sentence pairs of a frozen version as numbers, and batches of about equally long ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ml.datasets.read import Version
from ml.translation.subwords import PAD, Subwords, clean

_NOISE = 1.5  # tokens of noise on the length when sorting, so that an epoch's batches are not always the same pairs


@dataclass(frozen=True)
class Pairs:
    """Rows of a split. `units` names the rows, for intervals; `groups` what must not be split."""

    units: list[str]
    sources: list[str]
    targets: list[str]
    languages: list[str]  # of the targets, ISO 639-3


def read(version: Version, split: str) -> Pairs:
    """The split's pairs in shard order, cleaned, without those that have an empty side."""
    table = version.table(split, ["pair_id", "source_text", "target_text", "target_language"])
    columns = [table.column(name).to_pylist() for name in table.column_names]
    rows = [(u, clean(s), clean(t), language) for u, s, t, language in zip(*columns, strict=True)]
    kept = [row for row in rows if row[1] and row[2]]
    return Pairs(*([row[i] for row in kept] for i in range(4)))


@dataclass(frozen=True)
class Encoded:
    """Pairs as numbers: `sources[i]` ends with the end mark, `targets[i]` stands between beginning and end."""

    sources: list[list[int]]
    targets: list[list[int]]

    def plan(self, tokens: int, order: np.random.Generator | None = None) -> list[list[int]]:
        """Which pairs are a batch together: a side of it, padded, holds at most `tokens` numbers.

        Pairs of like length come together, as padding is wasted work. With `order`, both the batches and who meets
        whom in them are shuffled; without, the order is fixed.
        """
        longer = self._lengths.max(axis=1, initial=0).astype(np.float64)
        if order is not None:
            longer += order.uniform(0, _NOISE, longer.shape)
        groups: list[list[int]] = []
        longest = 0
        # By the longer side, then by the source: 85 % of the places are filled, where the target's length gives 69 %.
        arranged = np.lexsort((self._lengths[:, 0], longer))
        for i, length in zip(arranged.tolist(), self._lengths[arranged].max(axis=1, initial=0).tolist(), strict=True):
            longest = max(longest, length)
            if not groups or longest * (len(groups[-1]) + 1) > tokens:
                groups.append([])
                longest = length
            groups[-1].append(i)
        return [groups[number] for number in order.permutation(len(groups))] if order is not None else groups

    def batch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Sources and targets of these pairs, int64 of shape (pairs, longest), padded."""
        return pad([self.sources[i] for i in rows]), pad([self.targets[i] for i in rows])

    @cached_property
    def _lengths(self) -> NDArray[np.int64]:
        return np.array([(len(s), len(t)) for s, t in zip(self.sources, self.targets, strict=True)]).reshape(-1, 2)


def encode(
    pairs: Pairs, subwords: Subwords, longest: int | None = None, sampling: float = 0.0, seed: int = 0
) -> Encoded:
    """Encode pairs; with `longest`, those with more numbers than that on a side are left out (for training).

    With `sampling`, texts are cut by chance, which `seed` fixes.
    """
    sources = subwords.encode_source(pairs.sources, pairs.languages, sampling, seed)
    targets = subwords.encode_target(pairs.targets, sampling, seed + 1)
    both = [(s, t) for s, t in zip(sources, targets, strict=True) if longest is None or max(len(s), len(t)) <= longest]
    return Encoded([s for s, _ in both], [t for _, t in both])


def pad(rows: Sequence[list[int]]) -> Tensor:
    """Rows of numbers as int64 of shape (rows, longest), padded on the right."""
    out = np.full((len(rows), max(len(row) for row in rows)), PAD, dtype=np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return torch.from_numpy(out)
