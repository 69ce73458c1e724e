"""A double of a release of MAESTRO as Google's storage serves it, on loopback.

Copied from https://magenta.tensorflow.org/datasets/maestro (read in a stored copy of 2026: columns and their meaning,
the files, the licence) and from lines of ``maestro-v3.0.0.csv`` that public repositories quote, such as::

    Alban Berg,Sonata Op. 1,train,2018,2018/MIDI-…_R3_2018_wav--1.midi,2018/MIDI-…_R3_2018_wav--1.wav,698.661160312

The JSON is the same table column by column, rows by number. The zip holds the folder ``maestro-v3.0.0`` with LICENSE,
README, both tables and a folder a year. A name that is not there is answered with 404 and XML. The music is made up,
and the tables are untidy: one line comes twice, and some name no recording.
"""

from __future__ import annotations

import csv
import io
import json
import random
import zipfile
from dataclasses import dataclass, field
from typing import Any

from upstreams.faulty_server import FaultyServer, Reply

from storage.media import midi
from storage.media.frames import Note

RELEASE = "maestro-v3.0.0"
COMPOSERS = ("Alban Berg", "Frédéric Chopin", "Johann Sebastian Bach / Ferruccio Busoni", "Franz Schubert")
SPLITS = ("train", "train", "train", "validation", "test")


@dataclass
class Performance:
    line: dict[str, Any]
    body: bytes = field(repr=False)


def tune(seed: int, length: int = 24) -> bytes:
    """A MIDI file with a tune of its own."""
    rng = random.Random(seed)
    notes = [
        Note(at * 0.5, rng.choice((0.5, 1.0, 1.75)), rng.randrange(40, 80), rng.randrange(20, 120))
        for at in range(length)
    ]
    return midi.write(notes, tempo_bpm=120.0, tracks=["Piano"])


def made(count: int) -> list[Performance]:
    found = []
    for number in range(count):
        name = f"{2004 + number % 3}/MIDI-Unprocessed_Chamber{number}_MID--AUDIO_{number:02d}_R3_2018_wav--1"
        line = {
            "canonical_composer": COMPOSERS[number % 4],
            "canonical_title": f'Sonata No. {number // 5}, "Quasi una fantasia", Op. {number // 5}',
            "split": SPLITS[number // 5 % 5],
            "year": 2004 + number % 3,
            "midi_filename": f"{name}.midi",
            "audio_filename": f"{name}.wav" if number % 7 else "",
            "duration": round(12.5 + number / 7, 9),
        }
        found.append(Performance(line, tune(number)))
    return found


class Maestro(FaultyServer):
    """The double: the files of a release. ``beside`` are the tables that lie beside the zip, ``within`` those in it."""

    def __init__(self, performances: list[Performance]) -> None:
        super().__init__()
        self.every = 2
        self.performances = performances
        self.beside: tuple[str, ...] = ("csv", "json")
        self.within: tuple[str, ...] = ("csv", "json")
        self.absent: set[str] = set()  # names of files that the zip lacks
        self.more: dict[str, bytes] = {}  # and what it holds besides

    def table(self, kind: str) -> bytes:
        lines = [one.line for one in [*self.performances, *self.performances[:1]]]
        if kind == "json":
            columns = {name: {str(row): line[name] for row, line in enumerate(lines)} for name in lines[0]}
            return json.dumps(columns).encode()
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
        return text.getvalue().encode()

    def bundle(self) -> bytes:
        files = {"LICENSE": b"CC BY-NC-SA 4.0\n", "README": b"MAESTRO\n"}
        files |= {f"{RELEASE}.{kind}": self.table(kind) for kind in self.within}
        files |= {
            one.line["midi_filename"]: one.body
            for one in self.performances
            if one.line["midi_filename"] not in self.absent
        }
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, body in (files | self.more).items():
                archive.writestr(zipfile.ZipInfo(f"{RELEASE}/{name}"), body, zipfile.ZIP_DEFLATED)
        return packed.getvalue()

    def answer(self, path: str, _: dict[str, str]) -> Reply:
        name = path.removeprefix("/magentadata/datasets/maestro/v3.0.0/")
        if name == f"{RELEASE}-midi.zip":
            return Reply(200, self.bundle(), "application/zip")
        if name.startswith(f"{RELEASE}.") and name.rsplit(".", 1)[1] in self.beside:
            return Reply(200, self.table(name.rsplit(".", 1)[1]), "application/octet-stream")
        error = b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>NoSuchKey</Code></Error>"
        return Reply(404, error, "application/xml; charset=UTF-8")

    def rows(self) -> dict[str, dict[str, Any]]:
        """The performances as they are to arrive, without what the files' bytes tell."""
        return {
            one.line["midi_filename"]: {
                "composer": one.line["canonical_composer"],
                "title": one.line["canonical_title"],
                "split": {"validation": "valid"}.get(one.line["split"], one.line["split"]),
                "year": one.line["year"],
                "duration_s": one.line["duration"],
                "audio_filename": one.line["audio_filename"] or None,
                "bytes": len(one.body),
                "licence": "CC BY-NC-SA 4.0",
            }
            for one in self.performances
        }
