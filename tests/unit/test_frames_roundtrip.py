"""Frames, notes and MIDI files turn into one another without loss, and a dump can be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, seed
from hypothesis import strategies as st

from storage.errors import Problem
from storage.media import frames, midi
from storage.media.frames import Note

GOLDEN = Path(__file__).parent / "golden"
GRIDS = st.sampled_from(sorted(frames.GRIDS))
PIECES = st.lists(st.lists(st.integers(0, 127), max_size=6, unique=True).map(sorted), max_size=40)


@st.composite
def melodies(draw: st.DrawFn) -> list[Note]:
    """Notes on the grid of 16ths, one after another, never the same pitch twice without a rest between."""
    notes: list[Note] = []
    at, before = 0, -1
    for _ in range(draw(st.integers(0, 20))):
        pitch = draw(st.integers(0, 127))
        at += draw(st.integers(0, 3)) + (pitch == before)
        length = draw(st.integers(1, 8))
        notes.append(Note(at / 4, length / 4, pitch))
        at, before = at + length, pitch
    return notes


@seed(1)
@given(PIECES, GRIDS)
def test_frames_to_notes_and_back(piece: frames.Frames, grid: str) -> None:
    assert frames.to_frames(frames.to_notes(piece, grid), grid, steps=len(piece)) == piece


@seed(2)
@given(melodies())
def test_notes_to_frames_and_back(notes: list[Note]) -> None:
    assert frames.to_notes(frames.to_frames(notes, "16th"), "16th") == notes


@seed(3)
@given(PIECES, GRIDS)
def test_frames_to_midi_and_back(piece: frames.Frames, grid: str) -> None:
    read = midi.read(midi.from_frames(piece, grid), "piece.mid")
    assert frames.to_frames(read.notes, grid, steps=len(piece)) == piece


def test_a_note_between_two_steps_falls_through() -> None:
    notes = [Note(0.0, 1.0, 60), Note(1.0, 0.5, 62), Note(1.5, 0.5, 64), Note(2.0, 1.0, 65)]
    assert frames.to_frames(notes, "quarter") == [[60], [62], [65]]


def test_triplets_land_on_their_steps() -> None:
    third = 1 / 3
    notes = [Note(index * third, third, 60 + index) for index in range(7)]
    assert frames.to_frames(notes, "quarter") == [[60], [63], [66]]


def test_an_endless_note_is_refused() -> None:
    with pytest.raises(Problem, match="longer than"):
        frames.to_frames([Note(0.0, 1e9, 60)], "quarter")


def test_an_unknown_grid_is_refused() -> None:
    with pytest.raises(Problem, match="quarter, 16th"):
        frames.to_frames([], "8th")


def test_dump_reads_like_the_golden_file() -> None:
    piece = [[48, 64, 67, 72], [48, 62, 67, 71], [], [47, 62, 67, 71], [48, 60, 64, 67]]
    assert frames.dump(piece, "quarter") + "\n" == (GOLDEN / "cadence.txt").read_text()
