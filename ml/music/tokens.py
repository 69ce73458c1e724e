"""Frames as tokens: the one place that says how a chorale becomes a sequence of integers, and back.

A piece is a list of frames, one per time step; a frame is the set of MIDI pitches that sound. It is written
highest pitch first (soprano, alto, tenor, bass) and closed by END_FRAME; an empty frame, a rest, is END_FRAME
alone. A piece opens with START and closes with STOP:

    [[72, 67], []]  ->  START 72 67 END_FRAME END_FRAME STOP

Because every set has exactly one spelling, and `allowed` forbids every other, a model that puts a softmax over the
allowed tokens has a probability for every set of pitches, and over all 2**128 sets these sum to one. The negative
log-likelihood of a frame is the sum over its tokens, END_FRAME included. STOP is possible only where a frame could
begin; likelihoods per frame are given that the piece goes on, so it is left out of them, as in the literature
(Boulanger-Lewandowski et al. 2012, where the length of a piece is not scored either).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

PITCHES = 128
"""MIDI pitches 0 to 127 are the tokens 0 to 127."""
END_FRAME = 128
STOP = 129
START = 130
OUTPUTS = 130
"""Tokens a model may predict: all but START."""
VOCABULARY = 131
NONE = -1
"""Stands for "no pitch there" in the columns of `Described`."""

Frames = list[list[int]]
Ints = npt.NDArray[np.int64]

NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


def tidy(frames: Iterable[Iterable[int]]) -> Frames:
    """Every frame as a set written from the highest pitch down."""
    return [sorted({int(pitch) for pitch in frame}, reverse=True) for frame in frames]


def encode(frames: Iterable[Iterable[int]], stop: bool = True) -> Ints:
    """Tokens of a piece, START first; `stop` says whether the piece ends here. ValueError outside 0..127."""
    ids = [START]
    for frame in tidy(frames):
        if frame and (frame[-1] < 0 or frame[0] >= PITCHES):
            raise ValueError(f"pitches outside 0 to 127 in {frame}")
        ids.extend(frame)
        ids.append(END_FRAME)
    if stop:
        ids.append(STOP)
    return np.array(ids, dtype=np.int64)


def decode(ids: Iterable[int]) -> Frames:
    """Frames of a token sequence; START and whatever follows STOP, or the last END_FRAME, are left out.

    Raises ValueError where the pitches of a frame do not descend: such a sequence spells no set.
    """
    frames: Frames = []
    frame: list[int] = []
    for place, token in enumerate(map(int, ids)):
        if token == STOP:
            break
        if token == END_FRAME:
            frames.append(frame)
            frame = []
        elif token < PITCHES:
            if frame and token >= frame[-1]:
                raise ValueError(f"token {place}: pitch {token} after {frame[-1]} in one frame")
            frame.append(token)
        elif place > 0:
            raise ValueError(f"token {place}: START inside a piece")
    return frames


def dump(ids: Iterable[int]) -> str:
    """A page a person can read: one line per frame, `  12  C5 G4 E4 C3`."""
    sequence = [int(token) for token in ids]
    lines = [
        f"{step:4d}  {' '.join(NAMES[p % 12] + str(p // 12 - 1) for p in frame) or '(rest)'}"
        for step, frame in enumerate(decode(sequence))
    ]
    return "\n".join([*lines, "      (end)"] if STOP in sequence else lines)


@dataclass(frozen=True)
class Described:
    """A token sequence and what a reader of it knows at each place; every column has the length of the sequence.

    step: the frame that the *next* token belongs to, 0 first.
    place: how many pitches that frame has so far: the place, from the top, of the pitch that may come next.
    above: the pitch last written in that frame, or NONE: the next one must lie below it.
    before: the pitch at that place in the frame before, or NONE: in four-part writing, where this voice comes from.
    """

    ids: Ints
    step: Ints
    place: Ints
    above: Ints
    before: Ints

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> "Described":
        return Described(self.ids[part], self.step[part], self.place[part], self.above[part], self.before[part])

    def transposed(self, semitones: int) -> "Described":
        """The same music higher or lower; nothing else changes. The caller keeps it within 0..127."""

        def shift(column: Ints) -> Ints:
            return np.where((column >= 0) & (column < PITCHES), column + semitones, column)

        return Described(shift(self.ids), self.step, self.place, shift(self.above), shift(self.before))


def describe(ids: Ints | Sequence[int]) -> Described:
    """The columns of `Described` for a whole sequence, START first."""
    ids = np.asarray(ids, dtype=np.int64)
    index = np.arange(len(ids))
    is_pitch = ids < PITCHES
    closes = ids == END_FRAME
    step = np.cumsum(closes)
    opened = np.maximum.accumulate(np.where(is_pitch, -1, index))  # the token that the present frame follows
    place = index - opened
    above = np.where(is_pitch, ids, NONE)
    frame_starts = np.flatnonzero(~is_pitch & (ids != STOP)) + 1  # first token of each frame
    start_before = np.where(step > 0, frame_starts[np.maximum(step - 1, 0)], 0)
    size_before = frame_starts[step] - 1 - start_before
    has = (step > 0) & (place < size_before)
    before = np.where(has, ids[np.minimum(start_before + place, len(ids) - 1)], NONE)
    return Described(ids, step, place, above, before)


def allowed(above: Tensor, stop: bool) -> Tensor:
    """[..., OUTPUTS] bool: which tokens may follow, given the pitch last written in the frame [...], NONE at its start.

    Lower pitches and END_FRAME may; STOP only at the start of a frame, and only if `stop`.
    """
    ceiling = torch.where(above == NONE, PITCHES, above)[..., None]
    mask = torch.arange(OUTPUTS, device=above.device) < ceiling
    mask[..., END_FRAME] = True
    mask[..., STOP] = (above == NONE) & stop
    return mask
