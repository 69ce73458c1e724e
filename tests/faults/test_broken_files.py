"""Damaged files of every kind: parse gives records, quarantines a line, or the page; it never fails otherwise.

Real files are cut short, overwritten and shuffled at random places. Everything here is pure: no store is needed.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from upstreams.landed_bytes import LandedBytes

from ingestion import catalogue
from ingestion.contract import Bad, BadPage, Resource
from ingestion.derive import clips, notes
from ingestion.rows import check
from storage.errors import Problem
from storage.media import midi as midi_files

SEEDS = range(48)


def damage(body: bytes, seed: int) -> bytes:
    """The bytes as a bad disk, a broken download or somebody's editor would leave them."""
    dice = random.Random(seed)
    kind = seed % 6
    if kind == 0:
        return body[: dice.randrange(len(body))]
    spoiled = bytearray(body)
    if kind == 1:
        for _ in range(dice.randint(1, 20)):
            spoiled[dice.randrange(len(spoiled))] = dice.randrange(256)
    elif kind == 2:
        start = dice.randrange(len(spoiled))
        spoiled[start : start + dice.randint(1, 200)] = dice.randbytes(dice.randint(0, 100))
    elif kind == 3:
        for _ in range(dice.randint(1, 8)):  # where headers hold sizes and counts
            spoiled[dice.randrange(min(64, len(spoiled)))] = dice.choice((0, 1, 0x7F, 0x80, 0xFF))
    elif kind == 4:
        middle = dice.randrange(len(spoiled))
        spoiled = spoiled[middle:] + spoiled[:middle]
    else:
        spoiled = bytearray(dice.randbytes(len(spoiled) % 5000))
    return bytes(spoiled)


def survives(resource: Resource, page: LandedBytes) -> tuple[int, int]:
    """Parse a page as the pipeline does. Gives records and refusals; any other error than BadPage is a fault."""
    kept = refused = 0
    try:
        for record in resource.parse(page):
            if isinstance(record, Bad) or check(resource, {k: getattr(v, "suffix", v) for k, v in record.items()}):
                refused += 1
            else:
                kept += 1
    except BadPage as error:
        assert str(error).strip()
        assert "\n" not in str(error)
        refused += 1
    return kept, refused


def of(source: str, name: str) -> Resource:
    return next(resource for resource in catalogue.source(source).resources if resource.name == name)


def sound(format: str, subtype: str | None = None) -> bytes:
    samples = np.random.default_rng(1).normal(0, 0.1, 22_050)
    file = io.BytesIO()
    soundfile.write(file, samples, 22_050, format=format, subtype=subtype)
    return file.getvalue()


def tune() -> bytes:
    track = b"".join(b"\x00\x90" + bytes((60 + n, 64)) + b"\x60\x80" + bytes((60 + n, 0)) for n in range(12))
    track += b"\x00\xff\x2f\x00"
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, 96) + b"MTrk" + struct.pack(">I", len(track)) + track


SCORE = """<?xml version="1.0"?><score-partwise version="3.1"><part-list><score-part id="P1">
<part-name>Soprano</part-name></score-part></part-list><part id="P1"><measure number="1">
<attributes><divisions>1</divisions><key><fifths>0</fifths></key>
<time><beats>4</beats><beat-type>4</beat-type></time></attributes>{}</measure></part></score-partwise>""".format(
    "".join(
        f"<note><pitch><step>{step}</step><octave>4</octave></pitch><duration>1</duration><type>quarter</type></note>"
        for step in "CDEF"
    )
)


def mxl() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        inside = '<container><rootfiles><rootfile full-path="a.xml"/></rootfiles></container>'
        archive.writestr("META-INF/container.xml", inside)
        archive.writestr("a.xml", SCORE)
    return file.getvalue()


TUNES = "".join(f"X:{n}\nT:Tune {n}\nM:4/4\nL:1/8\nK:G\nGABc d2e2|{'abc' * n}|\n\n" for n in range(1, 4)).encode()


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_damaged_audio_gives_clips_or_goes_to_quarantine_whole(kind: str) -> None:
    body = sound(kind, {"OGG": "VORBIS", "MP3": "MPEG_LAYER_III"}.get(kind))
    facts = {"source": "audio_folder", "recording_key": f"a.{kind.lower()}", "audio_sha256": "0"}
    assert survives(clips.CLIPS, LandedBytes(body, **facts)) == (1, 0)
    outcomes = [survives(clips.CLIPS, LandedBytes(damage(body, seed), **facts)) for seed in SEEDS]
    assert all(not (kept and refused) for kept, refused in outcomes)
    assert any(refused for _, refused in outcomes)


@pytest.mark.parametrize(("suffix", "make"), [(".mxl", mxl), (".xml", SCORE.encode), (".abc", lambda: TUNES)])
def test_damaged_scores_give_notes_or_go_to_quarantine(suffix: str, make: Callable[[], bytes]) -> None:
    body = make()
    meta = {"source": "music21_corpus", "corpus": "c", "composer": None, "licence": "l"}
    for resource in (of("notes", "pieces"), of("notes", "notes")):
        kept, refused = survives(resource, LandedBytes(body, f"good{suffix}", **meta))
        assert kept
        assert not refused
        outcomes = [survives(resource, LandedBytes(damage(body, seed), f"{seed}{suffix}", **meta)) for seed in SEEDS]
        assert any(refused for _, refused in outcomes) or suffix == ".abc"
    notes._read.clear()


def test_damaged_midi_gives_notes_or_one_sentence() -> None:
    body = tune()
    assert len(midi_files.read(body, "good.mid").notes) == 12
    refused = 0
    for seed in SEEDS:
        try:
            midi_files.read(damage(body, seed), f"{seed}.mid")
        except Problem as problem:
            assert f"{seed}.mid" in str(problem)
            assert "\n" not in str(problem)
            refused += 1
    assert refused


def test_damaged_text_keeps_the_lines_that_can_be_read() -> None:
    lines = "".join(f"Zeile {number}: größer, 你好 🐦\n" for number in range(200)).encode()
    resource = of("parallel_files", "lines")
    assert survives(resource, LandedBytes(lines, "multi30k/train.de")) == (200, 0)
    spoiled = lines.replace(b"Zeile 7:", b"Zeile \xff7:")
    assert survives(resource, LandedBytes(spoiled, "multi30k/train.de")) == (199, 1)
    for seed in SEEDS:
        survives(resource, LandedBytes(damage(lines, seed), "multi30k/train.de"))
    packed = gzip.compress(lines)
    assert survives(resource, LandedBytes(packed, "multi30k/train.de.gz")) == (200, 0)
    assert survives(resource, LandedBytes(packed[:-20], "multi30k/train.de.gz")) == (0, 1)  # all or nothing
    for seed in SEEDS:
        kept, refused = survives(resource, LandedBytes(damage(packed, seed), "multi30k/train.de.gz"))
        assert kept in (0, 200) or refused


def test_damaged_piano_rolls() -> None:
    resource = of("piano_roll_files", "pieces")
    document = {"train": [[[60, 64], []] * 4] * 5, "valid": [[[67.0]]]}
    body = json.dumps(document).encode()
    assert survives(resource, LandedBytes(body, "jsb_chorales/x-quarter.json")) == (6, 0)
    for seed in SEEDS:
        survives(resource, LandedBytes(damage(body, seed), "jsb_chorales/x-quarter.json"))
    odd: list[Any] = [
        {"train": [None, [], [[]], [[128]], [[-1]], [[True]], [[60.5]], "x", [[1e400]]]}, [], None, 5, {"train": {}},
        {"nosplit": [[[60]]]}, {"train": [[[10**400]]]},
    ]  # fmt: skip
    for value in odd:
        kept, _ = survives(resource, LandedBytes(json.dumps(value).encode(), "jsb_chorales/x-quarter.json"))
        assert kept <= 1
    deep = b'{"train": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert survives(resource, LandedBytes(deep, "jsb_chorales/x-quarter.json")) == (0, 1)


def test_damaged_tables_of_labels() -> None:
    resource = of("audio_folder", "labels")
    body = ("file,scientific_name,split\n" + "".join(f"{n}.wav,Tyto alba,train\n" for n in range(50))).encode()
    meta = {"base": "clips", "label_set": "birds"}
    assert survives(resource, LandedBytes(body, "clips.csv", **meta)) == (50, 0)
    for seed in SEEDS:
        survives(resource, LandedBytes(damage(body, seed), "clips.csv", **meta))
    quotes = body.replace(b"7.wav", b'"7.wav\n' + b"x" * 200_000)
    survives(resource, LandedBytes(quotes, "clips.csv", **meta))


def test_damaged_catalogues() -> None:
    import django

    body = (Path(django.__file__).parent / "conf/locale/de/LC_MESSAGES/django.mo").read_bytes()
    (resource,) = catalogue.source("gettext_catalogues").resources
    facts = {"package": "django", "package_version": "5", "language": "de", "licence": "BSD-3-Clause"}
    kept, _ = survives(resource, LandedBytes(body, "locale/de/LC_MESSAGES/django.mo", **facts))
    assert kept > 100
    for seed in SEEDS:
        survives(resource, LandedBytes(damage(body, seed), "locale/de/LC_MESSAGES/django.mo", **facts))
