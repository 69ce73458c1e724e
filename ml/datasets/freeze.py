"""Freeze the rows of a training mart into a version: Parquet shards, a manifest, a row in ``ml.dataset``.

A version is self-contained (birds' shards hold the samples) and named by its content: SHA-256 over the schema and the
sorted (key, hash of the row), so the same rows give the same name whatever wrote the Parquet files. All that the
manifest says is read in one repeatable-read snapshot, of marts that nobody switches meanwhile.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.errors
import psycopg2.extras
import pyarrow as pa
import pyarrow.parquet as pq
from psycopg2.extensions import connection

from ml.datasets.read import Version
from ml.tasks import MARTS, Task
from ml.tasks import task as task_of
from ml.training.files import code
from storage import warehouse
from storage.errors import Problem
from storage.media import audio
from storage.objects import Objects
from storage.settings import Settings

Say = Callable[[str], None]  # where progress goes

BUCKET = "datasets"
SPLITS = ("train", "valid", "test")
SHARD_BYTES = 64 << 20
SAMPLE_RATE = 16_000
READERS = 8  # clip objects fetched at once

# Our names of column types: part of a version's identity, so they must not change with the Arrow library.
TYPES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "bool": pa.bool_(),
    "int32": pa.int32(),
    "double": pa.float64(),
    "binary": pa.binary(),
    "list<string>": pa.list_(pa.string()),
    "list<list<int16>>": pa.list_(pa.list_(pa.int16())),
}


@dataclass(frozen=True)
class Layout:
    """How a mart becomes shards. The first column is the key.

    ``totals`` and ``counts`` are the statistics: a sum over a split, and rows by value; SQL over the mart's columns.
    ``group`` names the leakage group. ``batch`` rows are in memory at a time, for each split.
    """

    domain: str
    columns: dict[str, str]
    totals: dict[str, str]
    counts: dict[str, str]
    group: str = "group_key"
    batch: int = 2_000

    @property
    def key(self) -> str:
        return next(iter(self.columns))

    @property
    def arrow(self) -> pa.Schema:
        return pa.schema([(name, TYPES[kind]) for name, kind in self.columns.items()])

    @property
    def described(self) -> list[dict[str, str]]:
        return [{"name": name, "type": kind} for name, kind in self.columns.items()]


LAYOUTS = {
    MARTS["birds"]: Layout(
        "birds",
        {
            "clip_id": "string",
            "recording_id": "string",
            "species": "list<string>",
            "primary_species": "string",
            "group_key": "string",
            "split": "string",
            "start_s": "double",
            "end_s": "double",
            "sample_rate": "int32",
            "pcm": "binary",
            "licence": "string",
            "is_simulated": "bool",
        },
        {"seconds": "end_s - start_s"},
        {"species": "unnest(species)"},
        batch=64,
    ),
    MARTS["music"]: Layout(
        "music",
        {
            "piece_id": "string",
            "corpus": "string",
            "grid": "string",
            "frames": "list<list<int16>>",
            "fingerprint": "string",
            "group_key": "string",
            "split": "string",
            "title": "string",
            "licence": "string",
        },
        {"frames": "jsonb_array_length(frames)"},
        {"corpus": "corpus"},
        batch=200,
    ),
    MARTS["translation"]: Layout(
        "text",
        {
            "pair_id": "string",
            "corpus": "string",
            "source_language": "string",
            "target_language": "string",
            "source_text": "string",
            "target_text": "string",
            "group_key": "string",
            "cluster_key": "string",
            "split": "string",
            "licence": "string",
        },
        {"source_words": "source_words"},
        {"corpus": "corpus"},
        group="cluster_key",
    ),
}

Row = list[Any]  # in the order of the layout's columns
GROUPS = pa.schema(
    [
        ("group_key", pa.string()),
        ("split", pa.string()),
        ("origin", pa.string()),
        ("recorded_at", pa.timestamp("us", "UTC")),
    ]
)


def quiet(_text: str) -> None:
    return None


@dataclass(frozen=True)
class Frozen:
    """A version: its id, where it lies, whether this call made it, how many rows it has, and its name."""

    version: str
    uri: str
    new: bool
    rows: int
    name: str


def freeze(what: Task | str, settings: Settings, where: str = "", say: Say = quiet) -> Frozen:
    """Freeze a task (or a whole mart) as it is published now, narrowed by the SQL condition ``where``.

    The same rows as an earlier version give that version and write nothing. Raises Problem for an unknown mart, a
    condition that is not SQL over its columns, no rows, no training rows, rows that were withdrawn, or a clip whose
    samples are not there.
    """
    name, mart, condition = _asked(what, where)
    layout, objects = LAYOUTS[mart], Objects(settings)
    with tempfile.TemporaryDirectory(prefix="lyrebird-freeze-") as folder:
        with _snapshot(settings) as db, _told(mart, where):
            facts = _facts(db, layout, mart, condition)
            rows, splits = facts["rows"], facts["splits"]
            _refuse_withdrawn(db, layout, mart, condition)
            if not splits.get("train", {}).get("rows"):
                found = ", ".join(f"{count['rows']} {split}" for split, count in splits.items()) or "none"
                raise Problem(
                    f"{name} has no training rows to freeze (rows of {mart} by split: {found})",
                    f"Publish the domain {layout.domain} with data in it (`lyrebird transform {layout.domain}`)",
                )
            content = Content(layout)
            with _Shards(Path(folder), layout) as shards:
                for row in _with_samples(_stream(db, layout, mart, condition), layout, objects):
                    content.add(row)
                    shards.add(row)
                    if content.rows % 500 == 0:
                        say(f"freezing {name}: {content.rows:,} of {rows:,} rows")
            groups = _groups(db, layout, mart, condition, Path(folder))
        manifest = {
            "version": content.id,
            "name": name,
            "mart": mart,
            "where": condition,
            "key": [layout.key],
            "schema": layout.described,
            **facts,
            "shards": shards.written,
            "groups": groups,
            "code": code(),
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        own = not where and name != _plain_name(mart)
        return _keep(settings, objects, Path(folder), manifest, own, say)


def verify(version: str, settings: Settings) -> dict[str, Any]:
    """Read a version back whole: every shard against its SHA-256, and all rows against the version's id.

    Raises Problem naming the shard that is missing or damaged.
    """
    found = show(version, settings)
    layout = LAYOUTS[found["mart"]]
    with tempfile.TemporaryDirectory(prefix="lyrebird-verify-") as folder:
        kept = reader(found, settings, cache=Path(folder))
        if kept.manifest["shards"] != found["shards"]:
            raise Problem(f"the manifest of {found['uri']} is not the one in ml.dataset", "Freeze the version again")
        content = Content(layout)
        for row in heapq.merge(
            *(_read_back(kept.shards(split), layout) for split in kept.manifest["splits"]), key=_key
        ):
            content.add(row)
    if content.id != found["version"]:
        raise Problem(
            f"the rows of {found['uri']} are those of version {content.id}, not of {found['version']}",
            "Freeze the version again",
        )
    return {"version": found["version"], "shards": len(found["shards"]), "rows": content.rows, "intact": True}


def versions(settings: Settings, name: str = "") -> list[dict[str, Any]]:
    """Versions, newest first: {"version", "name", "mart", "where", "rows", "uri", "created_at", "withdrawn"}."""
    return _select(settings, "%s in ('', name)", (name,), "null::jsonb")


def show(version: str, settings: Settings) -> dict[str, Any]:
    """A version's manifest with its ``uri``; by its id, or by a name for the newest. Raises Problem.

    Where rows of it were withdrawn since, it has ``withdrawn``: {withdrawal: {"at", "rows"}}.
    """
    found = _select(settings, "%s in (version, name)", (version,))
    if not found:
        raise Problem(f"there is no frozen version {version!r}", "`lyrebird dataset list` shows the versions")
    return _whole(found[0])


def latest(task: Task, settings: Settings) -> dict[str, Any] | None:
    """The manifest, with its ``uri``, of the version frozen last for exactly this task; None when there is none."""
    found = _select(settings, "name = %s and where_clause = %s", (task.name, task.where))
    return _whole(found[0]) if found else None


def newest(name: str, settings: Settings) -> dict[str, Any]:
    """As :func:`latest`, for the task of this name. Raises Problem when nothing of it is frozen."""
    found = latest(task_of(name), settings)
    if found is None:
        raise Problem(f"nothing is frozen for {name}", f"`lyrebird dataset freeze {name}` freezes what is published")
    return found


def reader(manifest: dict[str, Any], settings: Settings, cache: Path | None = None) -> Version:
    """The version as training code reads it, with these settings' way to the object store."""
    access = {
        "LYREBIRD_S3_ENDPOINT": settings.s3_endpoint,
        "LYREBIRD_S3_ACCESS_KEY": settings.s3_access_key,
        "LYREBIRD_S3_SECRET_KEY": settings.s3_secret_key.get_secret_value(),
        "LYREBIRD_S3_REGION": settings.s3_region,
    }
    return Version(manifest["uri"], cache, access)


class Content:
    """The identity of a version, computed while rows go by in the order of their keys."""

    def __init__(self, layout: Layout) -> None:
        self._binary = [place for place, kind in enumerate(layout.columns.values()) if kind == "binary"]
        self._digest = hashlib.sha256(_canonical(layout.described) + b"\n")
        self._last = ""
        self.rows = 0

    def add(self, row: Row) -> None:
        """Count a row in. Keys ascend by code point; a key that does not is a mart whose key is not unique."""
        key = _key(row)
        if self.rows and key <= self._last:
            raise Problem(f"the key {key!r} is there twice", "Mend the mart: its key must be unique")
        self._last, self.rows = key, self.rows + 1
        plain = list(row)
        for place in self._binary:
            plain[place] = hashlib.sha256(row[place]).hexdigest()
        self._digest.update(_canonical([key, hashlib.sha256(_canonical(plain)).hexdigest()]) + b"\n")

    @property
    def id(self) -> str:
        return self._digest.hexdigest()[:16]


def _canonical(value: Any) -> bytes:
    """One way of writing a value, for hashes: JSON, where floats are their shortest exact form."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _key(row: Row) -> str:
    return str(row[0])


def _asked(what: Task | str, where: str) -> tuple[str, str, str]:
    """Name, mart and condition of what is to be frozen."""
    if isinstance(what, str) and what.removeprefix("marts.") in LAYOUTS:
        mart = what.removeprefix("marts.")
        return _plain_name(mart), mart, where
    if isinstance(what, str) and what.startswith(("mart_", "marts.")):
        raise Problem(f"{what} is no training mart", f"The training marts are {', '.join(LAYOUTS)}")
    asked = task_of(what) if isinstance(what, str) else what
    return asked.name, asked.mart, f"({asked.where}) and ({where}\n)" if where else asked.where


def _plain_name(mart: str) -> str:
    """What a version of a mart is called when it is of no task."""
    return mart.removeprefix("mart_").replace("_", "-")


@contextmanager
def _snapshot(settings: Settings) -> Iterator[connection]:
    """A read-only snapshot of the warehouse in which the marts are of one publication.

    The lock comes first and by itself: a statement in the transaction would take the snapshot before it waits, and a
    switch during that wait would leave views of new tables whose rows the snapshot does not see. The lock goes with
    the connection.
    """
    with closing(warehouse.connect(settings, application="lyrebird freeze")) as db:
        db.autocommit = True
        with db.cursor() as sql:
            sql.execute("set lock_timeout = '10min'")
            sql.execute("select pg_advisory_lock_shared(%s)", (warehouse.PUBLISH_LOCK,))
        db.autocommit = False
        db.set_session(isolation_level="REPEATABLE READ", readonly=True)
        yield db


@contextmanager
def _told(mart: str, where: str) -> Iterator[None]:
    """PostgreSQL's refusals as sentences."""
    try:
        yield
    except psycopg2.errors.UndefinedTable as error:
        raise Problem(
            f"{_line(error)}: its domain is not published", "Run `lyrebird transform` for it, then freeze again"
        ) from error
    except psycopg2.errors.LockNotAvailable as error:
        raise Problem(
            "marts are being published and did not become free in 10 minutes", "Freeze again later"
        ) from error
    except (psycopg2.ProgrammingError, psycopg2.DataError, psycopg2.errors.ReadOnlySqlTransaction) as error:
        asked = f"with the condition {where!r} " if where else ""
        raise Problem(
            f"{mart} cannot be read {asked}({_line(error)})", "Write the condition in SQL over the mart's columns"
        ) from error


def _line(error: psycopg2.Error) -> str:
    return str(error).strip().splitlines()[0]


def _facts(db: connection, layout: Layout, mart: str, condition: str) -> dict[str, Any]:
    """What the manifest says about the rows, counted by PostgreSQL in the snapshot."""
    chosen = f"(select * from marts.{mart} where {condition or 'true'}\n) as chosen"
    totals = "".join(f", sum({expression})::double precision as {name}" for name, expression in layout.totals.items())
    with db.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as sql:

        def select(query: str) -> list[dict[str, Any]]:
            sql.execute(query)
            return [dict(row) for row in sql.fetchall()]

        by_split = {
            row.pop("split"): row
            for row in select(
                f"select split, count(*) as rows, count(distinct {layout.group}) as groups{totals} "
                f"from {chosen} group by split"
            )
        }
        unknown = by_split.keys() - set(SPLITS)
        if unknown:
            raise Problem(f"{mart} holds rows of the split {unknown.pop()!r}", f"The splits are {', '.join(SPLITS)}")
        splits = {split: by_split[split] for split in SPLITS if split in by_split}
        statistics: dict[str, Any] = {
            split: {name: row.pop(name) for name in layout.totals} for split, row in splits.items()
        }
        for name, expression in layout.counts.items():
            for row in select(
                f"select split, value, count(*) as rows from (select split, {expression} as value from {chosen}) "
                "as each group by split, value order by split, value"
            ):
                statistics[row["split"]].setdefault(name, {})[str(row["value"])] = row["rows"]
        simulated = "bool_or(is_simulated)" if "is_simulated" in layout.columns else "false"
        licences = select(
            f"select coalesce(licence, 'unknown') as licence, count(*) as rows, {simulated} as simulated "
            f"from {chosen} group by 1 order by 1"
        )
        overlap = select(
            "select split, count(distinct leakage) as groups, count(*) as rows from ("
            f"select split, {layout.group} as leakage, min(split) over (partition by {layout.group}) as first, "
            f"max(split) over (partition by {layout.group}) as last from {chosen}) as each "
            "where first <> last group by split"
        )
        loads = select(
            "select source, max(load) as load from ops.load where state = 'published' group by source order by source"
        )
        sql.execute(
            "select version, schema, invocation_id from ops.publication where domain = %s "
            "order by version desc limit 1",
            (layout.domain,),
        )
        publication = sql.fetchone()
    return {
        "rows": sum(row["rows"] for row in splits.values()),
        "splits": splits,
        "statistics": statistics,
        "licences": {row["licence"]: row["rows"] for row in licences},
        "simulated": any(row["simulated"] for row in licences),
        "overlap": {row.pop("split"): row for row in overlap},
        "loads": {row["source"]: row["load"] for row in loads},
        "publication": dict(publication) if publication else None,
    }


def _refuse_withdrawn(db: connection, layout: Layout, mart: str, condition: str) -> None:
    """Raise Problem where the mart was built before a withdrawal, and shows rows of what was withdrawn."""
    with db.cursor() as sql:
        sql.execute("select from ml.withdrawn where mart = %s limit 1", (mart,))
        if not sql.rowcount:
            return
        sql.execute(
            f"select count(*) from (select * from marts.{mart} where {condition or 'true'}\n) as chosen where "
            f"encode(sha256(convert_to({layout.key}, 'UTF8')), 'hex') in "
            f"(select key_sha256 from ml.withdrawn where mart = '{mart}')"
        )
        rows = warehouse.first(sql)[0]
    if rows:
        raise Problem(
            f"{mart} still shows {rows:,} rows of what was withdrawn",
            f"Build it anew with `lyrebird transform {layout.domain}`, then freeze again",
        )


def _groups(db: connection, layout: Layout, mart: str, condition: str, folder: Path) -> dict[str, Any]:
    """Write down which split was recorded for the leakage groups of the rows: the record outlives the warehouse."""
    with db.cursor() as sql:
        sql.execute(
            f"select group_key, split, origin, recorded_at from ml.split_group where domain = '{layout.domain}' "
            f"and group_key in (select group_key from marts.{mart} where {condition or 'true'}\n) order by group_key"
        )
        rows = sql.fetchall()
    path = folder / "groups.parquet"
    pq.write_table(pa.Table.from_pylist([dict(zip(GROUPS.names, row, strict=True)) for row in rows], GROUPS), path)
    return {"file": path.name, "rows": len(rows), "bytes": path.stat().st_size, "sha256": _sha256(path)}


def _stream(db: connection, layout: Layout, mart: str, condition: str) -> Iterator[Row]:
    """The rows in the order of their keys, through a cursor on the server."""
    columns = ", ".join("clip_object" if name == "pcm" else name for name in layout.columns)
    frames = list(layout.columns).index("frames") if "frames" in layout.columns else None
    with db.cursor("frozen_rows") as sql:
        sql.itersize = layout.batch
        sql.execute(
            f'select {columns} from marts.{mart} where {condition or "true"}\n order by {layout.key} collate "C"'
        )
        for values in sql:
            row = list(values)
            if frames is not None:
                row[frames] = [[int(pitch) for pitch in frame] for frame in row[frames]]
            yield row


def _with_samples(rows: Iterator[Row], layout: Layout, objects: Objects) -> Iterator[Row]:
    """Rows whose ``pcm`` is no longer the name of an object but its samples, a batch in memory at a time."""
    if "pcm" not in layout.columns:
        yield from rows
        return
    place = list(layout.columns).index("pcm")

    def fill(row: Row) -> Row:
        row[place] = samples_of(objects, row[place], _key(row))
        return row

    with ThreadPoolExecutor(READERS) as pool:
        while batch := list(islice(rows, layout.batch)):
            yield from pool.map(fill, batch)


def samples_of(objects: Objects, clip_object: str, clip: str) -> bytes:
    """The samples of a clip's FLAC object: 16 bit, little-endian, mono, 16 kHz. Raises Problem naming the clip."""
    try:
        body = objects.get("derived", clip_object)
    except Problem as problem:
        raise Problem(
            f"the samples of clip {clip} are not in the object store ({problem.what})", "Run `lyrebird ingest clips`"
        ) from problem
    info = audio.probe(body, name=clip_object)
    if (info.sample_rate_hz, info.channels) != (SAMPLE_RATE, 1):
        raise Problem(
            f"clip {clip} has {info.channels} channels at {info.sample_rate_hz} Hz, not one at {SAMPLE_RATE} Hz",
            "Run `lyrebird ingest clips`",
        )
    return audio.to_int16(audio.decode(body, SAMPLE_RATE, name=clip_object)).astype("<i2").tobytes()


class _Shards:
    """Parquet files of a split each, begun anew when one is large enough."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self._folder, self._layout = folder, layout
        self._split = list(layout.columns).index("split")
        self._waiting: dict[str, list[Row]] = {}
        self._open: dict[str, tuple[pq.ParquetWriter, Any, Path]] = {}
        self._files: list[tuple[str, Path]] = []
        self.written: list[dict[str, Any]] = []

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for split in list(self._waiting):
            if kind is None:
                self._write(split)
            self._close(split)
        if kind is None:
            self.written = [_shard(split, path) for split, path in sorted(self._files)]

    def add(self, row: Row) -> None:
        rows = self._waiting.setdefault(row[self._split], [])
        rows.append(row)
        if len(rows) == self._layout.batch:
            self._write(row[self._split])

    def _write(self, split: str) -> None:
        rows, self._waiting[split] = self._waiting[split], []
        if not rows:
            return
        if split not in self._open:
            number = sum(1 for other, _ in self._files if other == split)
            path = self._folder / f"{split}-{number:05d}.parquet"
            file = path.open("wb")
            short = ["corpus", "grid", "source_language", "target_language", "licence", "split", "primary_species"]
            writer = pq.ParquetWriter(
                file,
                self._layout.arrow,
                compression="zstd",
                use_dictionary=[name for name in short if name in self._layout.columns],
                write_statistics=[self._layout.key],  # the others' minimum would be a whole clip
            )
            self._open[split] = (writer, file, path)
            self._files.append((split, path))
        writer, file, _ = self._open[split]
        columns = [
            pa.array(list(column), field.type)
            for column, field in zip(zip(*rows, strict=True), self._layout.arrow, strict=True)
        ]
        writer.write_table(pa.Table.from_arrays(columns, schema=self._layout.arrow))
        if file.tell() >= SHARD_BYTES:
            self._close(split)

    def _close(self, split: str) -> None:
        if split in self._open:
            writer, file, _ = self._open.pop(split)
            writer.close()
            file.close()


def _shard(split: str, path: Path) -> dict[str, Any]:
    rows = pq.read_metadata(path).num_rows
    return {"file": path.name, "split": split, "rows": rows, "bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_back(shards: Sequence[Path], layout: Layout) -> Iterator[Row]:
    """The rows of a split's shards, in order, a batch in memory at a time."""
    for path in shards:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(layout.batch, columns=list(layout.columns)):
                yield from map(list, zip(*(column.to_pylist() for column in batch.columns), strict=True))


def _keep(settings: Settings, objects: Objects, folder: Path, manifest: dict[str, Any], own: bool, say: Say) -> Frozen:
    """Write the version down, unless it is there and whole. Shards come first, then the manifest, then the row.

    The same rows may have been frozen as a whole mart, or with another condition: a task takes such a version over when
    they are exactly its own (``own``), so that what is frozen for a task is found by its name.
    """
    version, prefix = manifest["version"], f"{manifest['name']}/{manifest['version']}"
    with (
        closing(warehouse.connect(settings)) as db,
        warehouse.advisory_lock(db, f"freeze {version}"),
    ):
        known = _select(settings, "version = %s", (version,))
        before = _whole(known[0]) if known else _unrecorded(objects, prefix)
        whole = before is not None and not _damaged(objects, before)
        renamed = False
        if before is not None:
            prefix = before["uri"].removeprefix(f"s3://{BUCKET}/")
            asked = {part: manifest[part] for part in ("name", "where")}
            kept = {part: before[part] for part in asked}
            renamed = own and kept != asked
            manifest = (before if whole else manifest) | (asked if own else kept)
            manifest = {name: value for name, value in manifest.items() if name not in ("uri", "withdrawn")}
        if not whole:
            say(f"writing {len(manifest['shards'])} shards of {manifest['name']} {version}")
            for file in _files(manifest):
                objects.put(BUCKET, f"{prefix}/{file['file']}", folder / file["file"], "application/vnd.apache.parquet")
        if not whole or renamed:
            body = json.dumps(manifest, ensure_ascii=False, indent=1).encode()
            objects.put(BUCKET, f"{prefix}/manifest.json", body, "application/json")
        if not known or not whole or renamed:
            _record(db, manifest, f"s3://{BUCKET}/{prefix}")
    return Frozen(version, f"s3://{BUCKET}/{prefix}", not known, manifest["rows"], manifest["name"])


def _unrecorded(objects: Objects, prefix: str) -> dict[str, Any] | None:
    """A version that was written whole by a freeze that ended before it recorded it."""
    if not objects.exists(BUCKET, f"{prefix}/manifest.json"):
        return None
    found: dict[str, Any] = json.loads(objects.get(BUCKET, f"{prefix}/manifest.json"))
    return found | {"uri": f"s3://{BUCKET}/{prefix}"}


def _damaged(objects: Objects, manifest: dict[str, Any]) -> list[str]:
    """Names of the files of a version that are not there, or not what the manifest says."""
    prefix = manifest["uri"].removeprefix(f"s3://{BUCKET}/")
    found = []
    for file in _files(manifest):
        key, digest = f"{prefix}/{file['file']}", hashlib.sha256()
        if objects.exists(BUCKET, key):
            with closing(objects.open(BUCKET, key)) as body:
                while block := body.read(1 << 20):
                    digest.update(block)
        if digest.hexdigest() != file["sha256"]:
            found.append(file["file"])
    return found if objects.exists(BUCKET, f"{prefix}/manifest.json") else [*found, "manifest.json"]


def _files(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The Parquet files of a version, each with its SHA-256."""
    return [*manifest["shards"], *([manifest["groups"]] if "groups" in manifest else [])]


def _record(db: connection, manifest: dict[str, Any], uri: str) -> None:
    with db, db.cursor() as sql:
        sql.execute(
            "insert into ml.dataset (version, name, mart, where_clause, rows, uri, manifest) "
            "values (%s, %s, %s, %s, %s, %s, %s) "
            "on conflict (version) do update set name = excluded.name, where_clause = excluded.where_clause, "
            "manifest = excluded.manifest",
            (
                *(manifest["version"], manifest["name"], manifest["mart"], manifest["where"], manifest["rows"]),
                *(uri, json.dumps(manifest, ensure_ascii=False)),
            ),
        )


def _select(
    settings: Settings, condition: str, values: Iterable[Any], manifest: str = "manifest"
) -> list[dict[str, Any]]:
    rows = psycopg2.extras.RealDictCursor
    with closing(warehouse.connect(settings)) as db, db, db.cursor(cursor_factory=rows) as sql:
        sql.execute(
            'select version, name, mart, where_clause as "where", rows, uri, created_at, '
            f"{manifest} as manifest, withdrawn from ml.dataset where {condition} order by created_at desc, version",
            tuple(values),
        )
        return [dict(row) for row in sql.fetchall()]


def _whole(row: dict[str, Any]) -> dict[str, Any]:
    manifest: dict[str, Any] = row["manifest"]
    return manifest | {"uri": row["uri"]} | ({"withdrawn": row["withdrawn"]} if row["withdrawn"] else {})
