"""Pieces of a frozen version as the model reads them, and batches of them.

`Surroundings` is the part of the reading that is worth computing once: it is made of intervals, so it is the same for
every transposition of a piece.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ml.datasets.read import Version
from ml.music.model import PADDING, Batch
from ml.music.tokens import NONE, PITCHES, STOP, Described, Frames, Ints, describe, encode, tidy
from storage.errors import Problem

Bytes = npt.NDArray[np.uint8]
CLASSES = 12  # pitch classes
FULL = 255  # stands for 1


@dataclass(frozen=True)
class Surroundings:
    """What sounds around the pitch that may come next, seen from a reference pitch.

    There are two references: the pitch this voice comes from, and the pitch above it in the frame. From each, the frame
    under way and `history` earlier ones are laid out from `reach` semitones below to `reach` above; then the share of
    each pitch class in the piece so far (times four, at most 1), counted from the reference; then whether there is a
    reference at all.
    """

    history: int
    reach: int

    @property
    def width(self) -> int:
        """Features of a position."""
        return 2 * ((self.history + 1) * (2 * self.reach + 1) + CLASSES + 1)

    def of(self, piece: Described, start: int = 0) -> Bytes:
        """[n - start, width]: the features at each place of a piece from `start` on."""
        sounding, shares = self._frames(piece)
        rows = piece[start:]
        under_way = self._under_way(piece, start)
        seen = [under_way] + [
            np.where((rows.step >= back)[:, None], sounding[np.maximum(rows.step - back, 0)], 0)
            for back in range(1, self.history + 1)
        ]
        columns: list[Bytes] = []
        for reference in (rows.before, rows.above):
            there = (reference != NONE)[:, None]
            keys = np.maximum(reference, 0)[:, None] + np.arange(2 * self.reach + 1)
            classes = (np.maximum(reference, 0)[:, None] + np.arange(CLASSES)) % CLASSES
            views = [np.take_along_axis(frame, keys, axis=1) for frame in seen]
            views += [np.take_along_axis(shares[rows.step], classes, axis=1), np.full_like(there, FULL, dtype=np.uint8)]
            columns += [(view * there).astype(np.uint8) for view in views]
        return np.concatenate(columns, axis=1)

    def _frames(self, piece: Described) -> tuple[Bytes, Bytes]:
        """Each frame's keyboard [frames, PITCHES + 2 reach], and the pitch classes before it [frames, CLASSES]."""
        pitches = piece.ids < PITCHES
        keyboard = np.zeros((int(piece.step[-1]) + 1, PITCHES), dtype=np.uint8)
        keyboard[piece.step[pitches], piece.ids[pitches]] = 1
        octaves = np.pad(keyboard, ((0, 0), (0, -PITCHES % CLASSES))).reshape(len(keyboard), -1, CLASSES).sum(axis=1)
        before = np.cumsum(octaves, axis=0) - octaves
        shares = np.minimum(1.0, 4 * before / np.maximum(1, before.sum(axis=1, keepdims=True)))
        return np.pad(keyboard * np.uint8(FULL), ((0, 0), (self.reach, self.reach))), (shares * FULL).astype(np.uint8)

    def _under_way(self, piece: Described, start: int) -> Bytes:
        """The keyboard of the frame under way at each place from `start` on, [n - start, PITCHES + 2 reach]."""
        keyboard = np.zeros((len(piece) - start, PITCHES + 2 * self.reach), dtype=np.uint8)
        for back in range(int(piece.place[start:].max(initial=0))):
            at = np.flatnonzero(piece.place[start:] > back)
            keyboard[at, piece.ids[at + start - back] + self.reach] = FULL
        return keyboard


@dataclass(frozen=True)
class Piece:
    """A piece ready to be read: its columns, its surroundings [n, width], and its lowest and highest pitch."""

    name: str
    frames: Frames
    read: Described
    around: Bytes
    lowest: int
    highest: int

    @classmethod
    def of(cls, name: str, frames: Iterable[Iterable[int]], surroundings: Surroundings) -> "Piece":
        """Read frames; ValueError for pitches outside 0 to 127."""
        tidied = tidy(frames)
        read = describe(encode(tidied))
        pitches = [pitch for frame in tidied for pitch in frame]
        return cls(name, tidied, read, surroundings.of(read), min(pitches, default=60), max(pitches, default=60))


@dataclass(frozen=True)
class Rows:
    """The pieces of a split, by name, with the grid they are on."""

    names: list[str]
    frames: list[Frames]
    fingerprints: list[str]
    grid: str


def rows(version: Version, split: str) -> Rows:
    """The pieces of a split of a frozen version. Problem where it mixes grids or holds an impossible pitch."""
    table = version.table(split, ["piece_id", "grid", "frames", "fingerprint"])
    grids = sorted(set(table["grid"].to_pylist()))
    if len(grids) != 1:
        raise Problem(
            f"The version {version.id} mixes the grids {', '.join(grids)} in its split {split!r}",
            "Freeze one with --where \"grid = 'quarter'\"",
        )
    names: list[str] = table["piece_id"].to_pylist()
    frames: list[Frames] = [tidy(piece) for piece in table["frames"].to_pylist()]
    for name, piece in zip(names, frames, strict=True):
        if not piece or any(frame and (frame[-1] < 0 or frame[0] >= PITCHES) for frame in piece):
            raise Problem(
                f"The piece {name} of version {version.id} is empty or has pitches outside 0 to 127",
                "Freeze a version without it",
            )
    return Rows(names, frames, table["fingerprint"].to_pylist(), grids[0])


def collate(crops: Sequence[tuple[Described, Bytes, Ints]]) -> Batch:
    """Crops (columns, surroundings, targets) of any lengths side by side."""
    longest = max(len(read) for read, _, _ in crops)
    shape = (len(crops), longest)
    ids, target = np.full(shape, STOP, dtype=np.int64), np.full(shape, PADDING, dtype=np.int64)
    step, place = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    above, before = np.full(shape, NONE, dtype=np.int64), np.full(shape, NONE, dtype=np.int64)
    around = np.zeros((*shape, crops[0][1].shape[1]), dtype=np.uint8)
    for row, (read, near, following) in enumerate(crops):
        n = len(read)
        ids[row, :n], step[row, :n], place[row, :n] = read.ids, read.step, read.place
        above[row, :n], before[row, :n], around[row, :n] = read.above, read.before, near
        target[row, : len(following)] = following
    return Batch(*(torch.from_numpy(column) for column in (ids, step, place, above, before, around, target)))


def crop(piece: Piece, start: int, length: int, semitones: int = 0) -> tuple[Described, Bytes, Ints]:
    """`length` positions of a piece from `start`, with the tokens that follow them, transposed."""
    read = piece.read.transposed(semitones) if semitones else piece.read
    end = min(start + length, len(read) - 1)
    return read[start:end], piece.around[start:end], read.ids[start + 1 : end + 1]


class Crop(NamedTuple):
    """Which piece, from which position, and how far transposed."""

    piece: int
    start: int
    semitones: int


def crops(pieces: Sequence[Piece], context: int, size: int, transpose: int, seed: Sequence[int]) -> list[list[Crop]]:
    """One pass over the pieces, by batches: random crops of at most `context` tokens, as many of each as cover it,
    transposed.

    A crop stays within the range of pitches that the pieces have together. Crops of like length share a batch.
    """
    rng = np.random.default_rng(list(seed))
    lowest, highest = min(p.lowest for p in pieces), max(p.highest for p in pieces)
    drawn: list[Crop] = []
    for number, piece in enumerate(pieces):
        spare = len(piece.read) - 1 - context
        down, up = max(-transpose, lowest - piece.lowest), min(transpose, highest - piece.highest)
        for _ in range(max(1, -(-(len(piece.read) - 1) // context))):
            # Drawn a little past both ends and pulled back, so that openings and closes are seen as often as the rest.
            start = int(np.clip(rng.integers(-context // 2, spare + context // 2 + 1), 0, spare)) if spare > 0 else 0
            drawn.append(Crop(number, start, int(rng.integers(down, up + 1))))
    order = rng.permutation(len(drawn)).tolist()
    pool = 8 * size
    groups = []
    for first in range(0, len(order), pool):
        near = sorted(order[first : first + pool], key=lambda i: len(pieces[drawn[i].piece].read))
        groups += [near[i : i + size] for i in range(0, len(near), size)]
    return [[drawn[i] for i in groups[group]] for group in rng.permutation(len(groups)).tolist()]


def cut(pieces: Sequence[Piece], context: int, group: Sequence[Crop]) -> Batch:
    """The crops of a batch, side by side."""
    return collate([crop(pieces[one.piece], one.start, context, one.semitones) for one in group])


def windows(piece: Piece, context: int) -> Iterator[tuple[tuple[Described, Bytes, Ints], int]]:
    """Crops that cover a piece without its STOP, each with how many of its first targets were scored before.

    Neighbours overlap by half: every token is scored once, with at least half a context before it, or all there is.
    """
    total = len(piece.read) - 2
    start = scored = 0
    while scored < total:
        length = min(context, total - start)
        yield crop(piece, start, length), scored - start
        scored = start + length
        start += max(1, context // 2)
