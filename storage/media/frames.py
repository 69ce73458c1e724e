"""Music as notes and as frames, the fingerprint that finds a piece again, and a dump that a person can read.

A *note* has an onset and a duration in quarters (a quarter note is 1.0). A *frame* is the set of MIDI pitches that
sound at one step of a grid, as a sorted list; a rest is an empty list. Frames are how the chorale data sets of
Boulanger-Lewandowski, Bengio & Vincent (2012, "Modeling temporal dependencies in high-dimensional sequences") are
published, on a grid of quarters or of 16ths.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from storage.errors import Problem

Frame = list[int]
Frames = list[Frame]

GRIDS = {"quarter": 1.0, "16th": 0.25}  # length of a step in quarters
MAX_STEPS = 200_000  # three hours of 16ths at 300 to the minute: more is a broken file
FINGERPRINT_INTERVALS = 8
_NEAR = 1e-6  # onsets of tuplets are sums of thirds: this near to a step is on it
_NAMES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")


@dataclass(frozen=True, slots=True)
class Note:
    """A sounding note. ``part`` counts from the top of the score; velocity is None where nobody wrote one."""

    onset: float  # quarters from the start
    duration: float  # quarters
    pitch: int  # MIDI, 60 = middle C
    velocity: int | None = None  # 1-127
    part: int = 0


def step_of(grid: str) -> float:
    """Length of a step of the grid in quarters. Raises Problem for a grid that there is not."""
    if grid not in GRIDS:
        raise Problem(f"there is no grid {grid!r}", f"The grids are: {', '.join(GRIDS)}")
    return GRIDS[grid]


def to_frames(notes: Iterable[Note], grid: str, steps: int | None = None) -> Frames:
    """The pitches that sound at each step: onset <= step < onset + duration. Notes between two steps fall through.

    ``steps`` fixes the number of frames; without it the last note's end does. Raises Problem past MAX_STEPS.
    """
    step = step_of(grid)
    spans = [
        (math.ceil(note.onset / step - _NEAR), math.ceil((note.onset + note.duration) / step - _NEAR), note.pitch)
        for note in notes
    ]
    count = max((end for _, end, _ in spans), default=0) if steps is None else steps
    if count > MAX_STEPS:
        raise Problem(f"a piece of {count:,} steps is longer than {MAX_STEPS:,}", "Look for a broken note in it")
    sounding: list[set[int]] = [set() for _ in range(count)]
    for start, end, pitch in spans:
        for index in range(max(start, 0), min(end, count)):
            sounding[index].add(pitch)
    return [sorted(pitches) for pitches in sounding]


def to_notes(frames: Sequence[Sequence[int]], grid: str) -> list[Note]:
    """Notes that sound like the frames: a pitch that goes on is held. Sorted by onset and pitch.

    Frames cannot tell a held note from a repeated one; holding is the simpler reading.
    """
    step = step_of(grid)
    started: dict[int, int] = {}
    notes = []
    for index, frame in enumerate([*frames, []]):
        for pitch in [pitch for pitch in started if pitch not in frame]:
            start = started.pop(pitch)
            notes.append(Note(start * step, (index - start) * step, pitch))
        for pitch in frame:
            started.setdefault(pitch, index)
    return sorted(notes, key=lambda note: (note.onset, note.pitch))


def fingerprint(frames: Sequence[Sequence[int]], grid: str) -> str:
    """A hash (16 hex digits) that is the same for the same tune in any key, octave, grid and harmony.

    It is taken over the first FINGERPRINT_INTERVALS intervals between *different* consecutive top pitches on the beat
    (every fourth frame of the 16th grid). So neither transposition, nor holding against repeating, nor passing notes
    off the beat change it. Leading frames with fewer than half the usual voices (a bass that begins alone) are left
    out. Settings of one melody share it on purpose: it names a leakage group, not an edition.

    Eight intervals were chosen on the published chorales (tests/unit/test_frames_fingerprint.py measures it): more
    lose twins whose repeats are written out in one edition only, fewer merge different melodies.
    """
    beats = frames[:: round(1 / step_of(grid))]
    sizes = sorted(len(frame) for frame in beats if frame)
    usual = sizes[len(sizes) // 2] if sizes else 0
    begun = next((index for index, frame in enumerate(beats) if frame and 2 * len(frame) >= usual), len(beats))
    tops: list[int] = []
    for frame in beats[begun:]:
        if frame and (not tops or tops[-1] != max(frame)):
            tops.append(max(frame))
        if len(tops) > FINGERPRINT_INTERVALS:
            break
    intervals = ",".join(str(after - before) for before, after in pairwise(tops))
    return hashlib.sha256(f"soprano:{intervals}".encode()).hexdigest()[:16]


def overlap(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]], grid: str, other_grid: str) -> float:
    """The part (0-1) of the shorter piece's chord progressions that the other one has too, in any key.

    A progression is four consecutive beats, all voices, relative to the first one's bass. Two editions of one setting
    share 0.4 or more; different settings of the same melody, and different pieces, share far less.
    """
    first, second = _progressions(one, grid), _progressions(other, other_grid)
    shorter = min(len(first), len(second))
    return len(first & second) / shorter if shorter else 0.0


def _progressions(frames: Sequence[Sequence[int]], grid: str) -> set[tuple[tuple[int, ...], ...]]:
    beats = [sorted(set(frame)) for frame in frames[:: round(1 / step_of(grid))] if frame]
    return {
        tuple(tuple(pitch - beats[at][0] for pitch in frame) for frame in beats[at : at + 4])
        for at in range(len(beats) - 3)
    }


def pitch_name(pitch: int) -> str:
    """``C4`` for 60."""
    return f"{_NAMES[pitch % 12]}{pitch // 12 - 1}"


def dump(frames: Sequence[Sequence[int]], grid: str) -> str:
    """A line per step: where it is in quarters, and the pitches from the top; ``-`` marks one that is held."""
    return "\n".join(_lines(frames, step_of(grid)))


def _lines(frames: Sequence[Sequence[int]], step: float) -> Iterator[str]:
    held: Sequence[int] = ()
    for index, frame in enumerate(frames):
        names = (pitch_name(pitch) + ("-" if pitch in held else "") for pitch in sorted(frame, reverse=True))
        yield f"{index * step:8.2f}  {' '.join(f'{name:<4}' for name in names) or 'rest'}".rstrip()
        held = frame
