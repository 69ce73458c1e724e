"""Audio folder: recordings that somebody keeps as files, with tables (CSV) that say who sings in them.

    birds/clips.csv         file, scientific_name [, english_name, recordist, split, licence]
    birds/clips/*.wav       the files it names
    birds/recordings/*.mp3  files without labels

Names in a table are relative to the folder that is called like the table (``clips/``), where there is one, and to the
table's own folder otherwise. A label whose file is not there and a file that no table labels are both kept: audio may
arrive after its labels, and unlabelled audio can be identified. Both show in the warehouse where the two tables are
joined. An empty ``scientific_name`` means that no known species sings.

Labels are one snapshot (``replace``): when any table changes, all are read. Audio is merged file by file: what is new
or changed since the current version in ``raw`` is fetched, what has gone from the folder is marked as deleted.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import closing
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from ingestion.contract import LOCATION, Bad, BadPage, Context, Gone, Landed, Page, Record, Resource, Source, describe
from ingestion.locations import fingerprint, is_safe
from storage.errors import Problem

REQUIRED = ("file", "scientific_name")
OPTIONAL = ("english_name", "recordist", "split", "licence")
SPLITS = ("train", "valid", "test")
_IN_MEMORY = 8 << 20  # bytes of a file that is passed on without a copy on disk


def _fetch_labels(context: Context) -> Iterator[Page | Gone]:
    location = context.location()
    if location is None:
        return
    entries = location.list()
    tables = [entry for entry in entries if entry.name.lower().endswith(".csv")]
    folders = {str(parent) for entry in entries for parent in PurePosixPath(entry.name).parents}
    metas = []
    for entry in tables:
        path = PurePosixPath(entry.name)
        own = str(path.with_suffix(""))
        holder = path.parent.name or location.name or "audio_folder"
        base = own if own in folders else str(path.parent)
        metas.append({"base": base, "label_set": str(context.config["label_set"] or holder)})
    if context.cursor and not tables:  # nothing to yield would leave the labels that were published for ever
        raise Problem(
            f"{location.url} holds no table of labels (CSV) any more", "Put it back, if empty but for its head"
        )
    cursor = {"listing": fingerprint(tables, location.url, metas)}
    if cursor == context.cursor:
        return
    for entry, meta in zip(tables, metas, strict=True):
        body = location.read(entry.name)
        try:
            _table(body)
        except BadPage as error:
            raise Problem(f"{entry.name} at {location.url}: {error}", "Mend the table of labels") from None
        yield Page(name=entry.name, body=body, cursor=cursor, content_type="text/csv", meta=meta)


def _table(body: bytes) -> csv.DictReader[str]:
    """A reader of the table's rows by lower-case column names. BadPage when it is not a table of labels."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadPage(f"not UTF-8 (byte {error.start + 1} is {body[error.start]:#04x})") from None
    head = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        reader.fieldnames = [str(name).strip().lower() for name in reader.fieldnames or ()]
    except csv.Error as error:
        raise BadPage(f"no table: {error}") from None
    missing = [name for name in REQUIRED if name not in reader.fieldnames]
    if missing:
        found = ", ".join(reader.fieldnames) or "nothing"
        raise BadPage(f"no column {' and no column '.join(missing)} (its first line has: {found})")
    return reader


def _parse_labels(page: Landed) -> Iterator[Record | Bad]:
    reader = _table(page.read())
    first: dict[str, Record] = {}
    rows = iter(reader)
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            yield Bad(f"line {reader.line_num}", f"no line of a table: {error}")
            continue
        if row is None:
            return
        record = _label(row, page.meta)
        if isinstance(record, Bad) or first.setdefault(record["file"], record) is record:
            yield record
        elif first[record["file"]] != record:
            yield Bad(_shown(row), f"{record['file']} has a label already, and another one")


def _label(row: dict[str, Any], meta: Any) -> Record | Bad:
    """One line of the table as a record, its file named from the location's root."""
    cells = {name: (row.get(name) or "").strip() for name in (*REQUIRED, *OPTIONAL)}
    if None in row:
        return Bad(_shown(row), "more cells than columns")
    if not cells["file"]:
        return Bad(_shown(row), "no file")
    named = PurePosixPath(cells["file"].replace("\\", "/"))
    if named.is_absolute() or ".." in named.parts:
        return Bad(_shown(row), f"{cells['file']} leads out of the folder")
    if cells["split"] and cells["split"] not in SPLITS:
        return Bad(_shown(row), f"split is {cells['split']!r}: not one of {', '.join(SPLITS)}")
    base = PurePosixPath(meta["base"])
    inside = base.parent if named.parts[0] == base.name and len(named.parts) > 1 else base
    optional = {name: cells[name] or None for name in OPTIONAL}
    return {
        "file": str(inside / named),
        "scientific_name": " ".join(cells["scientific_name"].split()) or None,
        **optional,
        "label_set": meta["label_set"],
    }


def _shown(row: dict[Any, Any]) -> dict[str, Any]:
    return {str(name): value for name, value in row.items()}


def _fetch_audio(context: Context) -> Iterator[Page | Gone]:
    from storage.media import audio

    location = context.location()
    if location is None:
        return
    entries = [entry for entry in location.list() if entry.name.lower().endswith(audio.SUFFIXES)]
    if not entries:
        raise Problem(
            f"there is no audio at {location.url}",
            f"Put files there ({', '.join(audio.SUFFIXES)}), or name another location for audio_folder",
        )
    cursor = {"listing": fingerprint(entries, location.url)}
    if cursor == context.cursor:
        return
    known = _known(context)
    changed = [entry for entry in entries if entry.etag is None or known.get(entry.name) != entry.etag]
    for entry in changed:
        suffix = PurePosixPath(entry.name).suffix.lower()
        if not is_safe(entry.name):
            reason = f"{entry.name!r} is not a name below {location.url}"
            yield Page(entry.name, b"", cursor, audio.CONTENT_TYPES[suffix], {"file": entry.name, "missing": reason})
            continue
        small = entry.size is not None and entry.size <= _IN_MEMORY
        yield Page(
            name=entry.name,
            body=location.read(entry.name, _IN_MEMORY) if small else location.fetch(entry.name),
            cursor=cursor,
            content_type=audio.CONTENT_TYPES[suffix],
            meta={"file": entry.name, "etag": entry.etag},
        )
    for name in sorted(known.keys() - {entry.name for entry in entries}):
        yield Gone((name,), cursor)


def _known(context: Context) -> dict[str, str | None]:
    """Files whose current version in raw is not a deletion, with the etags they had."""
    with closing(context.warehouse()) as db, db, db.cursor() as sql:
        sql.execute("select to_regclass('raw.audio_folder_audio') is not null")
        if not (sql.fetchone() or (False,))[0]:
            return {}
        sql.execute(
            """
            select _key, etag
            from (
                select distinct on (r._key) r._key, r.etag, r._deleted
                from raw.audio_folder_audio as r
                join ops.load as l on l.source = 'audio_folder' and l.load = r._load and l.state <> 'rejected'
                order by r._key, r._load desc, r._position desc
            ) as current
            where not _deleted
            """
        )
        return dict(sql.fetchall())


def _parse_audio(page: Landed) -> Iterator[Record | Bad]:
    if "missing" in page.meta:
        yield Bad({"file": page.meta["file"]}, page.meta["missing"], counted=False)
        return
    yield {
        "file": page.meta["file"],
        "sha256": page.sha256,
        "bytes": page.size,
        "content_type": page.content_type,
        "etag": page.meta["etag"],
    }


LABELS = Resource(
    name="labels",
    schema=pa.schema(
        [
            describe("file", pa.string(), "path of the audio file below the location", required=True),
            describe("scientific_name", pa.string(), "species that sings; null when it is none of the known ones"),
            describe("english_name", pa.string(), "English name of the species"),
            describe("recordist", pa.string(), "who recorded it"),
            describe("split", pa.string(), "train, valid or test, where the table says so"),
            describe("licence", pa.string(), "licence of the recording"),
            describe("label_set", pa.string(), "which set of labels the species belong to", required=True),
        ]
    ),
    key=("file",),
    store="rows",
    mode="replace",
    fetch=_fetch_labels,
    parse=_parse_labels,
    description="Who sings in which file, from the tables that lie with the audio.",
)

AUDIO = Resource(
    name="audio",
    schema=pa.schema(
        [
            describe("file", pa.string(), "path of the file below the location", required=True),
            describe("sha256", pa.string(), "SHA-256 of the file", required=True),
            describe("bytes", pa.int64(), "size of the file", required=True),
            describe("content_type", pa.string(), "media type, by the file's ending", required=True),
            describe("etag", pa.string(), "what the location said of the file's version"),
        ]
    ),
    key=("file",),
    store="objects",
    mode="merge",
    fetch=_fetch_audio,
    parse=_parse_audio,
    description="Audio files of the location, labelled or not, as they are.",
)

SOURCE = Source(
    name="audio_folder",
    title="Folder of recordings",
    domain="birds",
    description="Recordings kept as files in a folder, on a web server or in S3, with CSV tables of labels.",
    licence="as the table of labels says; unknown where it says nothing",
    cadence="30 3 * * *",
    cursor="a fingerprint of the listing and of the tables of labels",
    volume="as many files as there are",
    resources=(LABELS, AUDIO),
    config={
        **LOCATION,
        "label_set": ("", "name of the set of labels; empty: the folder that holds the table"),
    },
)
