"""MIDI files: what is written is read back, and what is broken is one clear error."""

from __future__ import annotations

import random

import pytest

from storage.media import midi
from storage.media.frames import Note
from storage.media.midi import MidiError

CHORD = [Note(0.0, 1.5, 72, 90, 0), Note(0.0, 2.0, 64, 70, 1), Note(1.5, 0.5, 74, 90, 0), Note(2.0, 1 / 3, 60, 1, 1)]


def test_what_is_written_is_read_back() -> None:
    read = midi.read(midi.write(CHORD, tempo_bpm=72, tracks=("Soprano", "Alto")), "chord.mid")
    assert read.notes == tuple(sorted(CHORD, key=lambda note: (note.onset, note.part, note.pitch)))
    assert (read.tracks, read.tempo_bpm) == (("Soprano", "Alto"), 72.0)


def test_no_notes_make_a_valid_file() -> None:
    assert midi.read(midi.write([]), "empty.mid").notes == ()


def test_a_pitch_that_starts_again_cuts_itself_off() -> None:
    again = [Note(0.0, 4.0, 60, 80), Note(1.0, 1.0, 60, 80), Note(1.0, 0.5, 60, 80)]
    read = midi.read(midi.write(again), "again.mid")
    assert [(note.onset, note.duration) for note in read.notes] == [(0.0, 1.0), (1.0, 1.0)]


@pytest.mark.parametrize(
    "broken",
    [b"", b"MThd", b"RIFF....WAVEfmt ", b"\x00" * 200, midi.write(CHORD)[:-5], midi.write(CHORD)[:20]],
    ids=["empty", "four bytes", "a WAV", "zeros", "cut short", "header only"],
)
def test_a_broken_file_is_one_error_that_names_it(broken: bytes) -> None:
    with pytest.raises(MidiError, match=r"cannot read the MIDI in tune\.mid: .+\. Replace the file"):
        midi.read(broken, "tune.mid")


def test_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = midi.write(CHORD)
    monkeypatch.setattr(midi, "MAX_NOTES", 3)
    with pytest.raises(MidiError, match="4 notes are more than 3"):
        midi.read(whole, "tune.mid")
    monkeypatch.setattr(midi, "MAX_BYTES", 10)
    with pytest.raises(MidiError, match="bytes are more than 10"):
        midi.read(whole, "tune.mid")


def test_damaged_bytes_never_end_in_anything_else() -> None:
    chance = random.Random(6)
    whole = bytearray(midi.write(CHORD * 3, tempo_bpm=100))
    refused = 0
    for _ in range(2_000):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 6)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            notes = midi.read(bytes(damaged), "damaged.mid").notes
        except MidiError:
            refused += 1
            continue
        assert all(0 <= note.pitch <= 127 and note.onset >= 0 and note.duration > 0 for note in notes)
    assert 100 < refused < 1_900
