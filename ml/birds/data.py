"""The clips of a frozen version as batches of waveforms.

The samples stay where Arrow has them (16 bit, usually memory-mapped); a batch is copied out only when it is asked for.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from ml.datasets.read import Version
from storage.errors import Problem

COLUMNS = ["clip_id", "recording_id", "species", "sample_rate", "pcm"]
FULL_SCALE = 32_768.0


class Batch(NamedTuple):
    """Waveforms (batch, samples) in -1..1, targets (batch, labels) of 0 and 1, and the seed of what is done to them."""

    wave: Tensor
    target: Tensor
    seed: int


def fit_window(pcm: NDArray[np.int16], samples: int, start: float = 0.0) -> NDArray[np.int16]:
    """Exactly `samples` of a clip: a longer one is cropped, `start` (0..1) of the way along what is left over; a
    shorter one is repeated, because a stretch of digital silence is a sound that no microphone makes.

    Raises ValueError for a clip without samples.
    """
    if len(pcm) == 0:
        raise ValueError("a clip without samples cannot fill a window")
    if len(pcm) >= samples:
        first = int(start * (len(pcm) - samples))
        return pcm[first : first + samples]
    return np.resize(pcm, samples)


class Clips:
    """The rows of one split: labels in memory, samples in Arrow."""

    def __init__(self, version: Version, split: str, sample_rate: int) -> None:
        """Raises Problem where the split has no rows, a clip has no samples, or its sample rate is another."""
        table = version.table(split, columns=COLUMNS)
        if table.num_rows == 0:
            raise Problem(
                f"dataset version {version.id} has no {split} clips",
                "Freeze one from a mart whose splits all hold clips (lyrebird dataset show tells the counts)",
            )
        self.keys: list[str] = table["clip_id"].to_pylist()
        self.recordings: list[str] = [str(name) for name in table["recording_id"].to_pylist()]
        self.species: list[tuple[str, ...]] = [tuple(names or ()) for names in table["species"].to_pylist()]
        self._pcm = [chunk for chunk in table["pcm"].chunks if len(chunk)]
        self._starts = np.cumsum([0, *(len(chunk) for chunk in self._pcm)])
        self._check(table, version.id, sample_rate)

    def _check(self, table: pa.Table, version: str, sample_rate: int) -> None:
        remedy = "Ingest the recording again or leave it out with --where, then freeze a new version"
        length = pc.fill_null(pc.binary_length(table["pcm"]), 0).to_numpy()
        if (wrong := (length == 0) | (length % 2 == 1)).any():
            key = self.keys[int(wrong.argmax())]
            raise Problem(f"clip {key} of dataset version {version} holds no 16 bit samples", remedy)
        rate = table["sample_rate"].to_numpy()
        if (wrong := rate != sample_rate).any():
            row = int(wrong.argmax())
            raise Problem(
                f"clip {self.keys[row]} of dataset version {version} has {rate[row]} samples a second",
                f"The model listens at {sample_rate}; set sample_rate to match or freeze clips of one rate",
            )

    def __len__(self) -> int:
        return len(self.keys)

    def pcm(self, row: int) -> NDArray[np.int16]:
        """The samples of a clip, a view into Arrow's memory."""
        chunk = int(np.searchsorted(self._starts, row, side="right")) - 1
        return np.frombuffer(self._pcm[chunk][row - int(self._starts[chunk])].as_buffer(), dtype="<i2")

    def waves(self, rows: Sequence[int], samples: int, starts: Sequence[float] | None = None) -> Tensor:
        """Clips cut or repeated to a window: (rows, samples), float32 in -1..1. `starts` as in `fit_window`."""
        out = np.empty((len(rows), samples), dtype=np.float32)
        for place, row in enumerate(rows):
            out[place] = fit_window(self.pcm(row), samples, starts[place] if starts is not None else 0.0)
        return torch.from_numpy(out).div_(FULL_SCALE)

    def targets(self, labels: Sequence[str]) -> NDArray[np.bool_]:
        """(rows, labels): is this species heard in this clip? Species that are not among the labels are left out."""
        place = {name: i for i, name in enumerate(labels)}
        truth = np.zeros((len(self), len(labels)), dtype=np.bool_)
        for row, names in enumerate(self.species):
            truth[row, [place[name] for name in names if name in place]] = True
        return truth

    def batches(self, size: int, samples: int) -> Iterator[tuple[list[int], Tensor]]:
        """All rows in order: (row numbers, waveforms (rows, samples))."""
        for first in range(0, len(self), size):
            rows = list(range(first, min(first + size, len(self))))
            yield rows, self.waves(rows, samples)


def vocabulary(clips: Clips) -> list[str]:
    """The species heard in these clips (of train), sorted. Raises Problem where there is nothing to tell apart."""
    labels = sorted({name for names in clips.species for name in names})
    if not labels:
        raise Problem("no training clip names a species", "Label some recordings, then freeze a new version")
    if all(set(names) == set(labels) for names in clips.species):
        raise Problem(
            f"every training clip holds the same species ({', '.join(labels[:3])})",
            "Add clips of another species, or clips of none, then freeze a new version",
        )
    return labels


class Draw(NamedTuple):
    """What a batch is made of: rows, where each is cut (0 to 1), and the seed of what is drawn on it."""

    rows: list[int]
    starts: list[float]
    seed: int


def shuffled(count: int, size: int, seed: int) -> list[Draw]:
    """One pass over `count` clips in a random order that `seed` fixes, cut at random places. The last batch may be
    smaller."""
    random = np.random.default_rng(seed)
    order = random.permutation(count)
    drawn = []
    for first in range(0, count, size):
        rows = order[first : first + size].tolist()
        drawn.append(Draw(rows, random.random(len(rows)).tolist(), int(random.integers(2**62))))
    return drawn
