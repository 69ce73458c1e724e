"""MIDI files as notes, and notes as MIDI files, through symusic.

Files come from strangers, so there are caps on size and on the number of notes, and whatever is wrong with a file is
one error that names it. Times are in quarters, so a tempo never changes them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import Problem
from storage.media.frames import GRIDS, MAX_STEPS, Note, to_notes

CONTENT_TYPE = "audio/midi"
MAX_BYTES = 16 << 20
MAX_NOTES = 200_000
MAX_QUARTERS = MAX_STEPS * GRIDS["16th"]  # frames of any grid hold it
MAX_SOUNDING = 1_000_000.0  # quarters of all notes together
TICKS = 480  # per quarter: divides by 2, 3, 5 and their powers that music uses
DEFAULT_VELOCITY = 80
DEFAULT_TEMPO = 96.0  # quarters a minute


class MidiError(Problem):
    """A file that is not the MIDI it says it is: the file's name and what is wrong with it."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"cannot read the MIDI in {name}: {reason}", "Replace the file with an intact copy")
        self.name = name
        self.reason = reason


@dataclass(frozen=True)
class Midi:
    """What a MIDI file holds, drums left out: they have no pitch. Arrays have a value per note, shape (notes,)."""

    onsets: NDArray[np.float64]  # quarters from the start; the notes are by onset, part and pitch
    durations: NDArray[np.float64]  # quarters
    pitches: NDArray[np.int64]
    velocities: NDArray[np.int64]  # 1 to 127
    parts: NDArray[np.int64]  # index into ``tracks``
    tracks: tuple[str, ...]  # names, "" where there is none
    tempo_bpm: float | None  # the first tempo, quarters a minute
    time_signature: str | None  # the first one, such as 3/4

    @cached_property
    def notes(self) -> tuple[Note, ...]:
        """The same as notes one by one."""
        columns = (self.onsets, self.durations, self.pitches, self.velocities, self.parts)
        return tuple(map(Note, *(column.tolist() for column in columns)))


def read(data: bytes, name: str) -> Midi:
    """The notes of a Standard MIDI File.

    Raises MidiError for anything that is not an intact file within the caps.
    """
    if len(data) > MAX_BYTES:
        raise MidiError(name, f"{len(data):,} bytes are more than {MAX_BYTES:,}")
    score = _parse(data, name)
    count = sum(len(track.notes) for track in score.tracks)
    if count > MAX_NOTES:
        raise MidiError(name, f"{count:,} notes are more than {MAX_NOTES:,}")
    if not 0 < score.tpq <= 32_767:
        raise MidiError(name, f"{score.tpq} ticks to a quarter make no time")
    tracks = [track for track in score.tracks if not track.is_drum]
    columns = [track.notes.numpy() for track in tracks]
    parts = np.repeat(np.arange(len(tracks)), [len(one["time"]) for one in columns])
    times, lengths, pitches, velocities = (
        np.concatenate([one[column] for one in columns], dtype=np.int64) if columns else np.zeros(0, np.int64)
        for column in ("time", "duration", "pitch", "velocity")
    )
    # By onset, part and pitch; one number for all three sorts faster, and mostly nothing is to be sorted or left out.
    order = (times << 32) | (parts << 8) | (pitches & 255)
    is_note = (lengths > 0) & (pitches >= 0)
    if not is_note.all() or (order[1:] < order[:-1]).any():
        kept = np.flatnonzero(is_note)
        kept = kept[np.argsort(order[kept], kind="stable")]
        times, lengths, pitches, velocities, parts = (one[kept] for one in (times, lengths, pitches, velocities, parts))
    onsets, durations = times / score.tpq, lengths / score.tpq
    if len(times) and (times[0] < 0 or (times + lengths).max() / score.tpq > MAX_QUARTERS):
        raise MidiError(name, f"it lasts more than {MAX_QUARTERS:,.0f} quarters")
    if durations.sum() > MAX_SOUNDING:
        raise MidiError(name, f"its notes sound for more than {MAX_SOUNDING:,.0f} quarters together")
    meter = score.time_signatures[0] if len(score.time_signatures) else None
    return Midi(
        onsets,
        durations,
        pitches,
        np.maximum(1, velocities),
        parts,
        tracks=tuple(track.name for track in tracks),
        tempo_bpm=round(float(score.tempos[0].qpm), 3) if len(score.tempos) else None,
        time_signature=f"{meter.numerator}/{meter.denominator}" if meter else None,
    )


def write(
    notes: Iterable[Note], *, tempo_bpm: float = DEFAULT_TEMPO, tracks: Sequence[str] = (), program: int = 0
) -> bytes:
    """A Standard MIDI File with a track per part, all on one General MIDI program (0-127; 0 is the piano, 19 an organ).

    A pitch that starts again in its part while it still sounds is cut there: MIDI has no other way to say it.
    """
    from symusic import Note as MidiNote
    from symusic import Score, Tempo, Track

    parts: dict[int, list[Note]] = defaultdict(list)
    for note in notes:
        parts[note.part].append(note)
    score: Any = Score(TICKS)
    score.tempos.append(Tempo(0, qpm=tempo_bpm))
    for part in range(max(parts, default=-1) + 1):
        track: Any = Track(name=tracks[part] if part < len(tracks) else "", program=program)
        for start, end, note in _spans(parts[part]):
            track.notes.append(MidiNote(start, end - start, note.pitch, note.velocity or DEFAULT_VELOCITY))
        score.tracks.append(track)
    return bytes(score.dumps_midi())


def from_frames(frames: Sequence[Sequence[int]], grid: str, *, tempo_bpm: float = DEFAULT_TEMPO) -> bytes:
    """A MIDI file that sounds like the frames, held pitches merged."""
    return write(to_notes(frames, grid), tempo_bpm=tempo_bpm)


def _parse(data: bytes, name: str) -> Any:
    from symusic import Score

    try:
        return Score.from_midi(data)
    except Exception as error:  # symusic raises whatever its C++ reader throws
        reason = str(error).removeprefix("MiniMidi: ").removesuffix(": iostream error").replace("Invaild", "invalid")
        raise MidiError(name, reason or type(error).__name__) from error


def _spans(notes: list[Note]) -> list[tuple[int, int, Note]]:
    """Notes of one part with start and end in ticks; of two at the same start and pitch the longer stays."""
    latest: dict[int, int] = {}  # pitch -> index of its last note in `spans`
    spans: list[tuple[int, int, Note]] = []
    for note in sorted(notes, key=lambda note: (note.onset, note.pitch, -note.duration)):
        start = round(note.onset * TICKS)
        end = max(start + 1, round((note.onset + note.duration) * TICKS))
        before = latest.get(note.pitch)
        if before is not None and spans[before][1] > start:
            if spans[before][0] == start:
                continue
            spans[before] = (spans[before][0], start, spans[before][2])
        latest[note.pitch] = len(spans)
        spans.append((start, end, note))
    return spans
