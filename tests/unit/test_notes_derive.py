"""Scores become pieces and notes: the same every time, and what is broken goes where it can be seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from upstreams.landed_bytes import LandedBytes

from ingestion import rows
from ingestion.contract import Bad, BadPage
from ingestion.derive import notes
from storage.media import frames, midi
from storage.media.frames import Note

GOLDEN = Path(__file__).parent / "golden"
PIECES, NOTES = notes.SOURCE.resources
META = {"source": "music21_corpus", "corpus": "test", "composer": None, "licence": "public domain"}


def landed(file: str, body: bytes | None = None) -> LandedBytes:
    return LandedBytes((GOLDEN / file).read_bytes() if body is None else body, f"golden/{file}", **META)


def records(found: Any) -> list[dict[str, Any]]:
    batches = (one.to_pylist() if isinstance(one, pa.RecordBatch) else [one] for one in found)
    return [record for batch in batches for record in batch if isinstance(record, dict)]


def test_a_score_becomes_a_piece_and_its_notes() -> None:
    page = landed("two_parts.musicxml")
    (piece,) = records(PIECES.parse(page))
    assert rows.check(PIECES, piece) == ""
    sounding = [[64], [48, 52, 66], [48, 52, 66], [48, 52, 55, 67], [67], [], [], [48, 52, 66], [48, 52, 66]]
    assert piece == META | {
        "piece_id": "golden/two_parts",
        "path": "golden/two_parts.musicxml",
        "number": None,
        "title": "Two parts",
        "composer": "A. Nonymous",
        "time_signature": "3/4",
        "key_signature": "E minor",
        "tempo_bpm": 84.0,
        "parts": 2,
        "quarters": 10.0,
        "split": None,
        "frames_quarter": [*sounding, [48, 52, 55, 67], [48, 69], [48, 69], [48, 69]],
        "fingerprint": frames.fingerprint(piece["frames_quarter"], "quarter"),
    }
    found = records(NOTES.parse(page))
    assert [rows.check(NOTES, note) for note in found] == [""] * 8
    assert [note["note"] for note in found] == list(range(8))
    assert found[2] == {
        "piece_id": "golden/two_parts",
        "note": 2,
        "part": 1,
        "instrument": "Cello",
        "onset_quarters": 1.0,
        "duration_quarters": 3.0,
        "pitch": 48,
        "velocity": None,
    }


def test_parsing_twice_gives_the_same_and_leaves_no_trace_of_changes() -> None:
    page = landed("two_parts.musicxml")
    first = records(PIECES.parse(page))
    first[0]["title"] = "changed by somebody"
    first[0]["frames_quarter"].clear()
    second = records(PIECES.parse(page))
    notes._read.clear()
    assert second == records(PIECES.parse(page)) != first


def test_a_tune_book_gives_its_good_tunes_and_shows_the_broken_one() -> None:
    page = landed("tunes.abc")
    found = list(PIECES.parse(page))
    assert [piece["piece_id"] for piece in records(found)] == ["golden/tunes#1", "golden/tunes#7"]
    (bad,) = [record for record in found if isinstance(record, Bad)]
    assert bad.payload == "golden/tunes.abc#2"
    assert {note["piece_id"] for note in records(NOTES.parse(page))} == {"golden/tunes#1", "golden/tunes#7"}


@pytest.mark.parametrize("body", [b"", b"<xml", b"PK\x03\x04 cut short"])
def test_a_score_that_cannot_be_read_is_a_bad_page(body: bytes) -> None:
    for resource in (PIECES, NOTES):
        for file in ("empty.mxl", "empty.xml", "empty.abc"):
            with pytest.raises(BadPage):
                list(resource.parse(landed(file, body)))


def test_bach_without_a_title_is_called_by_his_number() -> None:
    body = (GOLDEN / "two_parts.musicxml").read_bytes().replace(b"Two parts", b"bwv66.6.xml")
    (piece,) = records(PIECES.parse(landed("bwv66.6.xml", body)))
    assert piece["title"] == "BWV 66.6"


def performance(body: bytes, name: str = "2018/x.midi") -> LandedBytes:
    meta = {"source": "maestro", "corpus": "maestro", "composer": "Alban Berg", "licence": "CC BY-NC-SA 4.0"}
    return LandedBytes(body, name, midi.CONTENT_TYPE, **meta, title="Sonata Op. 1", split="valid")


def test_a_midi_file_becomes_a_piece_with_what_its_source_tells() -> None:
    heard = [Note(0.0, 2.0, 60, 70), Note(1.0, 0.5, 64, 90), Note(2.5, 1.0, 67, 30, part=1)]
    page = performance(midi.write(heard, tempo_bpm=90.0, tracks=["Right hand", "Left \x00 hand"]))
    (piece,) = records(PIECES.parse(page))
    assert rows.check(PIECES, piece) == ""
    assert {name: piece[name] for name in ("piece_id", "path", "number", "title", "composer", "split", "corpus")} == {
        "piece_id": "maestro/2018/x.midi",
        "path": "2018/x.midi",
        "number": None,
        "title": "Sonata Op. 1",
        "composer": "Alban Berg",
        "split": "valid",
        "corpus": "maestro",
    }
    assert (piece["tempo_bpm"], piece["parts"], piece["quarters"]) == (90.0, 2, 3.5)
    assert piece["frames_quarter"] == [[60], [60, 64], [], [67]]
    found = records(NOTES.parse(page))
    assert [rows.check(NOTES, note) for note in found] == [""] * 3
    assert [(note["onset_quarters"], note["pitch"], note["velocity"], note["instrument"]) for note in found] == [
        (0.0, 60, 70, "Right hand"),
        (1.0, 64, 90, "Right hand"),
        (2.5, 67, 30, "Left hand"),
    ]


@pytest.mark.parametrize("name", ["x.mid", "x.MIDI", "songs.zip/a/x.kar"])
@pytest.mark.parametrize("body", [b"", b"MThd", b"MThd" + bytes(40), midi.write([])])
def test_a_midi_file_that_cannot_be_played_is_a_bad_page(body: bytes, name: str) -> None:
    for resource in (PIECES, NOTES):
        with pytest.raises(BadPage):
            list(resource.parse(performance(body, name)))
