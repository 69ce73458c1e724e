"""MAESTRO: performances of a piano competition as MIDI, with composer, title, year and the published split.

A release (https://magenta.tensorflow.org/datasets/maestro) is a zip of MIDI files and a table of them, as CSV and as
JSON; the table lies beside the zip, and in it. Every MIDI file lands as an object of its own with what the table says
of it, so that nothing downstream needs the zip. A file that the table does not know, and a line whose file is not in
the zip, go to quarantine.

The split is part of the data set: no composition is in two of them, so it wins over ours.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ingestion import archives
from ingestion.contract import LOCATION, Bad, Context, Landed, Page, Record, Resource, Source, describe
from ingestion.journal import digest
from storage.errors import Problem
from storage.media import midi

if TYPE_CHECKING:
    from ingestion.locations import Location

URL = "https://storage.googleapis.com/magentadata/datasets/maestro/v3.0.0/"
LICENCE = "CC BY-NC-SA 4.0"
COLUMNS = (
    "canonical_composer",
    "canonical_title",
    "split",
    "year",
    "midi_filename",
    "audio_filename",
    "duration",
)
SPLITS = {"train": "train", "validation": "valid", "test": "test"}
LARGEST_TABLE = 64 << 20  # bytes
SUFFIXES = (".mid", ".midi")

Line = dict[str, str]


def fetch(context: Context) -> Iterator[Page]:
    """Every MIDI file of the release, when its zip or its table has changed.

    Cursor: {"marks": {file: etag, or SHA-256 where there is none}}.
    """
    location = context.location()
    if location is None:
        return
    release = f"maestro-{context.config['version']}"
    names = _names(location, release)
    marks = {name: location.entry(name).etag for name in names}
    if context.cursor == {"marks": marks}:
        return
    with ExitStack() as copies:
        announced = {names[0]: str(context.config["sha256"])}
        files = {name: copies.enter_context(location.copy(name, announced.get(name, ""))) for name in names}
        cursor = {"marks": {name: mark or digest(files[name])[0] for name, mark in marks.items()}}
        if context.cursor != cursor:
            bundle = files.pop(names[0])
            tables = {name: path.read_bytes() for name, path in files.items() if path.stat().st_size <= LARGEST_TABLE}
            lines = {line["midi_filename"]: line for line in table(tables or _tables_in(bundle), release)}
            yield from _pages(bundle, lines, cursor)


def _names(location: Location, release: str) -> list[str]:
    """The zip, and the table where one lies beside it. A location may be the zip itself."""
    bundle = f"{release}-midi.zip"
    if location.name.lower().endswith(".zip") and not location.has(bundle):
        return [location.name]
    beside = next((name for name in (f"{release}.csv", f"{release}.json") if location.has(name)), None)
    return [bundle, beside] if beside else [bundle]


def _pages(bundle: Path, lines: Mapping[str, Line], cursor: dict[str, Any]) -> Iterator[Page]:
    there = set()
    for member in archives.members(bundle):
        if isinstance(member, archives.Refused):
            yield _unusable(member.name, member.reason, cursor)
            continue
        if not member.name.lower().endswith(SUFFIXES):
            continue
        name = next((name for name in _below(member.name) if name in lines), None)
        if name is None:
            yield _unusable(member.name, "the table of the release does not name it", cursor)
        elif member.size > midi.MAX_BYTES:
            there.add(name)
            yield _unusable(name, f"{member.size:,} bytes are more than {midi.MAX_BYTES:,}", cursor)
        else:
            there.add(name)
            with member.open() as file:
                yield Page(name, file.read(), cursor, midi.CONTENT_TYPE, {"line": lines[name]})
    for name in lines.keys() - there:
        yield _unusable(name, "the table names it, and the zip does not hold it", cursor)


def _below(name: str) -> Iterator[str]:
    """``maestro-v3.0.0/2018/a.midi``, ``2018/a.midi``, ``a.midi``."""
    parts = name.split("/")
    return ("/".join(parts[at:]) for at in range(len(parts)))


def _unusable(name: str, reason: str, cursor: dict[str, Any]) -> Page:
    return Page(name, b"", cursor, midi.CONTENT_TYPE, {"failed": reason})


def _tables_in(bundle: Path) -> dict[str, bytes]:
    """The tables that the zip itself holds."""
    found = {}
    for member in archives.members(bundle):
        if isinstance(member, archives.Member) and member.name.endswith((".csv", ".json")):
            with member.open() as file:
                found[PurePosixPath(member.name).name] = file.read(LARGEST_TABLE)
    return found


def table(files: Mapping[str, bytes], release: str) -> list[Line]:
    """The lines of the release's table, out of its CSV or else its JSON file.

    Raises Problem when there is none, and when a column is missing: the release is not as it was.
    """
    name = next((name for name in (f"{release}.csv", f"{release}.json") if name in files), "")
    try:
        text = files[name].decode("utf-8-sig") if name else ""
        if name.endswith(".csv"):
            rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(text, newline="")))
        else:
            rows = _columns(json.loads(text)) if name else []
        lines = [{column: str(row[column]).strip() for column in COLUMNS} for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error, RecursionError) as error:
        raise Problem(f"{name} is no table of MAESTRO: {error!r}", f"It has the columns {', '.join(COLUMNS)}") from None
    if not lines:
        raise Problem(f"there is no table {release}.csv or {release}.json", f"Put it beside the zip; {URL} has it")
    return lines


def _columns(document: Any) -> list[dict[str, Any]]:
    """Rows of a table given column by column: {column: {row: value}}, or of a list of rows."""
    if isinstance(document, list):
        return document
    return [{column: document[column][row] for column in COLUMNS} for row in document[COLUMNS[0]]]


def parse(landed: Landed) -> Iterator[Record | Bad]:
    if "failed" in landed.meta:
        yield Bad({"path": landed.name}, landed.meta["failed"])
        return
    line = landed.meta["line"]
    try:
        yield {
            "path": landed.name,
            "corpus": SOURCE.name,
            "composer": line["canonical_composer"],
            "title": line["canonical_title"],
            "split": SPLITS[line["split"]],
            "year": int(line["year"]),
            "duration_s": float(line["duration"]),
            "audio_filename": line["audio_filename"] or None,
            "sha256": landed.sha256,
            "bytes": landed.size,
            "licence": LICENCE,
        }
    except (KeyError, ValueError) as error:
        yield Bad({"path": landed.name, **line}, f"its line in the table makes no sense: {error!r}")


SOURCE = Source(
    name="maestro",
    title="MAESTRO",
    domain="music",
    description="About 200 hours of virtuosic piano as MIDI, in the published splits. Off until a location is set.",
    licence=f"{LICENCE} (Hawthorne et al. 2019, Enabling Factorized Piano Music Modeling and Generation)",
    cadence="40 7 1 * *",
    cursor="marks of the metadata and of the archive",
    volume="1,276 performances, about 7 million notes, 60 MB",
    url="https://magenta.tensorflow.org/datasets/maestro",
    config={
        **LOCATION,
        "location": ("", f"where the release lies: {URL}, a copy of it, or its MIDI zip; empty: nothing is read"),
        "version": ("v3.0.0", "release, as its files are named: maestro-v3.0.0-midi.zip"),
        "sha256": ("", "SHA-256 of the zip, as the page of the release announces it; empty: not compared"),
    },
    resources=(
        Resource(
            name="scores",
            store="objects",
            mode="replace",
            key=("path",),
            fetch=fetch,
            parse=parse,
            description="A performance as a MIDI file.",
            schema=pa.schema(
                [
                    describe("path", pa.string(), "path of the file in the release", required=True),
                    describe("corpus", pa.string(), "maestro", required=True),
                    describe("composer", pa.string(), "composer, in one spelling", required=True),
                    describe("title", pa.string(), "title of the piece; not always in one spelling", required=True),
                    describe("split", pa.string(), "published split: train, valid or test", required=True),
                    describe("year", pa.int64(), "year of the performance", required=True),
                    describe("duration_s", pa.float64(), "length in seconds", required=True),
                    describe("audio_filename", pa.string(), "recording of it in the release with audio"),
                    describe("sha256", pa.string(), "hash of the file", required=True),
                    describe("bytes", pa.int64(), "size of the file", required=True),
                    describe("licence", pa.string(), "terms", required=True),
                ]
            ),
        ),
    ),
)
