"""Scores: ties, chords, voices, transposition, pickups and repeats, against music21 and by hand; and bad files."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest

from storage.media import scores
from storage.media.frames import Note
from storage.media.scores import ScoreError, Tune

GOLDEN = Path(__file__).parent / "golden"
XML = (GOLDEN / "two_parts.musicxml").read_bytes()


def one(data: bytes, suffix: str, name: str = "score") -> Tune:
    (tune,) = scores.read(data, suffix, name)
    assert isinstance(tune, Tune)
    return tune


def packed(body: bytes, name: str = "score.xml") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("META-INF/container.xml", f'<c><rootfiles><rootfile full-path="{name}"/></rootfiles></c>')
        archive.writestr(name, body)
    return file.getvalue()


def test_musicxml_by_hand() -> None:
    tune = one(XML, ".musicxml")
    assert (tune.title, tune.composer, tune.parts) == ("Two parts", "A. Nonymous", ("Clarinet in A", "Cello"))
    assert (tune.time_signature, tune.key_signature, tune.tempo_bpm, tune.quarters) == ("3/4", "E minor", 84.0, 10.0)
    assert tune.notes == (
        Note(0.0, 1.0, 64, None, 0),  # written G4, an A clarinet sounds a minor third lower; the pickup
        Note(1.0, 2.0, 66, None, 0),
        Note(1.0, 3.0, 48, None, 1),  # a chord
        Note(1.0, 3.0, 52, None, 1),
        Note(3.0, 2.0, 67, None, 0),  # tied over the barline; the grace note before it does not count
        Note(3.0, 1.0, 55, None, 1),  # a second voice
        Note(7.0, 3.0, 69, None, 0),
        Note(7.0, 3.0, 48, None, 1),
    )


def test_endings_are_played_in_their_turns() -> None:
    tune = one(XML, ".musicxml")
    assert tune.spans == ((0.0, 7.0), (1.0, 4.0), (7.0, 10.0))
    top = [(note.onset, note.pitch, note.duration) for note in scores.played(tune) if note.part == 0]
    assert top == [
        *((0.0, 64, 1.0), (1.0, 66, 2.0), (3.0, 67, 2.0)),
        *((7.0, 66, 2.0), (9.0, 67, 1.0)),  # the jump to the second ending cuts the tied note off
        (10.0, 69, 3.0),
    ]


def test_compressed_musicxml_is_the_same() -> None:
    assert one(packed(XML), ".mxl") == one(XML, ".musicxml")


def test_voices_are_the_singers_where_a_choir_is_named() -> None:
    tune = one(XML, ".musicxml")
    assert scores.voices(tune) == {0, 1}
    choir = Tune(**{**vars(tune), "parts": ("Horn", "Soprano", "Alto", "Tenor", "Bass", "Bassoon")})
    assert scores.voices(choir) == {1, 2, 3, 4}


@pytest.mark.parametrize("sharps", range(-7, 8))
def test_keys_are_named_as_music21_names_them(sharps: int) -> None:
    from music21 import key

    for mode in ("major", "minor", "dorian", "phrygian", "lydian", "mixolydian"):
        tonic = key.KeySignature(sharps).asKey(mode).tonic.name.replace("-", "b")
        assert scores._key_name(sharps, mode) == f"{tonic} {mode}"


def test_abc_tunes_are_read_one_by_one() -> None:
    first, broken, last = scores.read((GOLDEN / "tunes.abc").read_bytes(), ".abc", "tunes.abc")
    assert isinstance(first, Tune)
    assert (first.number, first.title, first.key_signature, first.tempo_bpm) == (
        1,
        "A tune with a pickup",
        "D major",
        120,
    )
    assert [(note.onset, note.duration, note.pitch) for note in first.notes] == [
        *((0.0, 1.0, 69), (1.0, 2.0, 74), (3.0, 2.0, 78)),  # the chord symbol "D" is no note, the tie one note
        *((5.0, 1.0, 71), (5.0, 1.0, 74)),
    ]
    assert first.spans == ((0.0, 7.0), (0.0, 7.0))
    assert isinstance(broken, ScoreError)
    assert broken.name == "tunes.abc#2"
    assert isinstance(last, Tune)
    assert (last.number, last.composer, last.spans) == (7, "Trad.", ((0.0, 4.0), (0.0, 2.0), (4.0, 6.0)))


def test_kern_is_read() -> None:
    lines = ["**kern\t**kern", "*M4/4\t*M4/4", "=1\t=1", "4C\t4c", "4D\t4d", "[2E\t2e", "=2\t=2", "4E]\t4f", "4F\t4g"]
    kern = "\n".join([*lines, "2G\t2a", "==\t==", "*-\t*-", ""])
    tune = one(kern.encode(), ".krn")
    assert sorted((note.onset, note.duration, note.pitch) for note in tune.notes if note.pitch < 60) == [
        *((0.0, 1.0, 48), (1.0, 1.0, 50), (2.0, 3.0, 52), (5.0, 1.0, 53), (6.0, 2.0, 55)),
    ]


BOMB = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><score-partwise>&b;</score-partwise>'
OUTSIDE = b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><score-partwise>&a;</score-partwise>'


@pytest.mark.parametrize(
    ("data", "suffix", "reason"),
    [
        (b"", ".xml", "well-formed"),
        (XML[:-200], ".xml", "well-formed"),
        (BOMB, ".xml", "safe"),
        (OUTSIDE, ".xml", "safe"),
        (b"<score-timewise/>", ".xml", "partwise"),
        (b"<score-partwise/>", ".xml", "no notes"),
        (XML.replace(b"<octave>4</octave>", b"<octave>44</octave>"), ".xml", "makes no sense"),
        (XML.replace(b"<divisions>2</divisions>", b"<divisions>0</divisions>"), ".xml", "makes no sense"),
        (XML.replace(b"<step>A</step>", b"<step>H</step>"), ".xml", "makes no sense"),
        (b"", ".mxl", "no intact archive"),
        (packed(XML)[:-30], ".mxl", "no intact archive"),
        (packed(b"text", "readme.txt").replace(b"readme.txt", b"readme.tx!"), ".mxl", "archive"),
        (b"no tune at all", ".abc", "no tune"),
        (b"", ".abc", "no tune"),
        (b"x", ".pdf", "no reader"),
    ],
)
def test_bad_scores_are_one_error_that_names_them(data: bytes, suffix: str, reason: str) -> None:
    with pytest.raises(ScoreError, match=f"cannot read the score bad: .*{reason}"):
        scores.read(data, suffix, "bad")


def test_an_archive_that_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "MAX_BYTES", 10_000)
    with pytest.raises(ScoreError, match="unpacks to more than"):
        scores.read(packed(b" " * 20_000), ".mxl", "bomb")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_that_would_be_unpacked_at_once_is_refused(method: int) -> None:
    """zipfile unpacks these methods without bounds: a few kB become gigabytes."""
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w", method) as archive:
        archive.writestr("a.xml", bytes(200 << 20))
    tracemalloc.start()
    with pytest.raises(ScoreError, match=f"compressed by method {method}, which is not read here"):
        scores.read(body.getvalue(), ".mxl", "bomb")
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


def test_an_archive_of_very_many_files_is_refused() -> None:
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        for number in range(scores.MAX_MEMBERS + 1):
            archive.writestr(f"{number}.xml", b"")
    with pytest.raises(ScoreError, match="an archive of more than 1,000 files"):
        scores.read(body.getvalue(), ".mxl", "bomb")


def test_musicxml_agrees_with_music21_on_the_chorales() -> None:
    """Every twentieth chorale, note for note. (Of all 409, two differ: bwv171.6, where music21 counts useless
    ``forward`` elements as rests, and bwv130.6, whose last measure it cuts to the singers' notes.)"""
    import music21
    from music21.musicxml.xmlToM21 import MusicXMLImporter

    folder = Path(music21.__file__).parent / "corpus" / "bach"
    paths = sorted(folder.glob("bwv*.mxl"))[::20]
    assert len(paths) >= 20
    for path in paths:
        importer: Any = MusicXMLImporter()
        importer.xmlText = scores._unpacked(path.read_bytes(), path.name)
        importer.parseXMLText()
        assert one(path.read_bytes(), ".mxl", path.name) == scores._music21_tune(importer.stream, None), path.name
