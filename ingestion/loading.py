"""Load one sealed journal segment into the warehouse: rows, counts and cursor in one transaction.

Documents go to the document store first, by content, and what is read back from there is projected into raw; so the
document store is part of the way and not a copy beside it. Everything before the commit is idempotent.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, Self

import bson
import numpy as np
import psycopg2
import pyarrow as pa
import pyarrow.compute as pc
from psycopg2.extensions import connection, cursor
from psycopg2.extras import execute_batch

from ingestion import rows, tombstones
from ingestion.contract import Bad, BadPage, Blob, Landed, Record, Resource, Source
from ingestion.journal import Header, Uploads, read_verdict
from ingestion.tombstones import Withdrawn
from storage import warehouse
from storage.documents import Documents
from storage.errors import Problem
from storage.objects import Objects

BATCH = 10_000  # records that a source gives one by one
ANALYZED = 1_000  # new rows from which on the planner is told; fewer hardly matter to it
ROWS = 50_000  # of a source's own batches
PAYLOAD = 4_000  # characters of a quarantined payload that are kept: the whole lies in landing
REFUSED = 100_000  # keys of quarantined records that are kept in memory
NO_HASH = bytes(16)  # of a deletion
AHEAD = 2  # batches that wait for the warehouse
ENCODERS = 2  # threads that hash and encode batches, most of it outside Python


@dataclass
class Counts:
    pages: int = 0
    rows: int = 0
    versions: int = 0
    quarantined: int = 0
    bytes: int = 0
    forgotten: int = 0  # records that were withdrawn and came once more


@dataclass(frozen=True)
class Stores:
    """The stores a load writes to."""

    warehouse: connection
    objects: Objects
    documents: Callable[[], Documents]
    copies: Mapping[str, Path]  # of objects in landing, on this machine


def load_segment(
    source: Source,
    header: Header,
    entries: Iterator[Landed],
    stores: Stores,
    say: Callable[[str], None],
    reached: Callable[[str], None],
) -> Counts | None:
    """Load a segment of the source, as the journal gives it; None when the warehouse has it already.

    ``reached`` is told each stage boundary (faults are injected there in tests).
    """
    db, load = stores.warehouse, header.load
    resource = next((r for r in source.resources if r.name == header.resource), None)
    if resource is None:
        say(f"{source.name}: segment {load} is of the resource {header.resource}, which is no more; left as it is")
        return None
    resource = resource.known(header.cursor)
    first = next(entries, None)
    if first is not None:
        entries = chain([first], entries)
    with db, db.cursor() as sql:
        sql.execute("select 1 from ops.load where source = %s and load = %s", (source.name, load))
        if sql.fetchone():
            return None
        ensure_table(db, source, resource)
        began = first.fetched_at if first is not None else header.sealed_at
        with _Table(source, resource, load, began, sql) as table, ThreadPoolExecutor(ENCODERS) as encoders:
            with Uploads(stores.objects) as uploads, _Writer(sql) as writer:
                withdrawn = Withdrawn.read(stores.objects, source.name, resource.name)
                parsing = Parsing(source, resource, load, uploads, writer, withdrawn)
                counts = parsing.counts
                for batch in parsing.batches(entries):
                    uploads.wait()  # a row never names a blob that is not there
                    reached("parsed")
                    if resource.store == "documents":
                        _project(source.table(resource), batch, stores)
                    reached("documents")
                    writer.copy(table.copy, encoders.submit(table.encoded, batch))
                    reached("copied")
                    say(f"{source.name}/{resource.name}: {counts.rows:,} records of {counts.pages:,} pages")
            if parsing.led_to:
                tombstones.write(stores.objects, source.name, parsing.led_to)
            counts.versions = table.keep_what_is_new(encoders)
            if resource.mode == "replace" and header.lane == "live" and None not in parsing.refused:
                counts.versions += table.delete_missing(parsing.refused)
        verdict: dict[str, Any] = read_verdict(stores.objects, source.name, load) or {"state": "loaded"}
        _record(db, header, counts, verdict, header.sealed_at)
        if header.again_of and verdict["state"] == "published":
            note_replayed(sql, source.name, load)
        reached("before commit")
    reached("committed")
    return counts


def ensure_table(db: connection, source: Source, resource: Resource) -> None:
    """Make or widen the raw table, in the caller's transaction."""
    with db.cursor() as sql:
        sql.execute(
            "select column_name, data_type from information_schema.columns "
            "where table_schema = 'raw' and table_name = %s",
            (source.table(resource),),
        )
        for statement in rows.ddl(source, resource, dict(sql.fetchall())):
            try:
                sql.execute(statement)
            except psycopg2.errors.FeatureNotSupported as error:
                reason = " ".join(str(error).split())
                raise Problem(
                    f"raw.{source.table(resource)} cannot get a wider column while a view reads it: {reason}",
                    "Drop that view and run it again; the next build of the models makes the view anew",
                ) from error


def _records(kept: pa.RecordBatch) -> list[Record]:
    """What was kept of a page, as records."""
    documents = "_document" in kept.schema.names
    return [bson.decode(body) for body in kept["_document"].to_pylist()] if documents else kept.to_pylist()


def _column(batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
    """A column of what was kept of a page, in today's type; the resource may have got it since."""
    there = field.name in batch.schema.names
    return batch[field.name].cast(field.type) if there else pa.nulls(batch.num_rows, field.type)


@dataclass
class Batch:
    """Lines on their way to raw: where each came from, its key, and its data in the columns that travel.

    ``documents`` are the documents themselves, each with its page's key in landing; None for a deletion. Their data is
    what the document store gives back.
    """

    positions: Any
    pages: list[int]
    keys: Any
    deleted: list[bool]
    data: pa.RecordBatch
    documents: Sequence[tuple[Record, str] | None] = ()
    hashes: pa.Array | None = None


class Parsing:
    """Entries of a segment become checked lines; what breaks its contract goes to quarantine.

    ``refused`` gets the keys of those of a snapshot; None for what has no key, and when they are very many. What was
    withdrawn is passed over, as if its place were empty: ``passed`` gets its keys, ``blobs`` its files, and ``led_to``
    what else of the source goes with a record that a withdrawn value was found in.
    """

    def __init__(
        self,
        source: Source,
        resource: Resource,
        load: int,
        uploads: Uploads,
        writer: _Writer,
        withdrawn: Withdrawn = Withdrawn(),  # noqa: B008 - it is frozen
    ) -> None:
        self.counts, self.refused = Counts(), set[str | None]()
        self.passed, self.blobs, self.led_to = set[str](), set[str](), set[tombstones.Tombstone]()
        self._withdrawn, self._some_withdrawn = withdrawn, bool(withdrawn)
        self._source, self._resource, self._load = source, resource, load
        self._uploads, self._writer = uploads, writer
        self.position = 0
        self._lines: list[tuple[int, Landed, str, Record | None]] = []  # position, page, key; None for a deletion

    def batches(self, entries: Iterator[Landed]) -> Iterator[Batch]:
        for page in entries:
            self.counts.pages += 1
            self.counts.bytes += page.size
            remains = self._withdrawn.remains(self._source.name, page)
            if page.gone is not None:
                self._deletion(page, rows.key_text(page.gone))
            elif remains is not None:
                yield from self._flush()
                yield from self._remains(replace(page, key=remains))
            else:
                self._index(page)
                try:
                    for record in self._resource.parse(page):
                        if isinstance(record, pa.RecordBatch):
                            yield from self._flush()
                            yield from self._columns(page, record)
                        else:
                            self._line(page, record)
                        if len(self._lines) >= BATCH:
                            yield from self._flush()
                except BadPage as error:
                    self.position += 1
                    self._quarantine(page, page.name, str(error))
            if len(self._lines) >= BATCH:
                yield from self._flush()
        yield from self._flush()

    def _deletion(self, page: Landed, key: str) -> None:
        self.position += 1
        if self._some_withdrawn and self._withdrawn.has_key(key):
            self.counts.forgotten += 1
            self.passed.add(key)
        else:
            self._lines.append((self.position, page, key, None))

    def _line(self, page: Landed, record: Record | Bad) -> None:
        self.position += 1
        if self._some_withdrawn and self._passed_over(record.payload if isinstance(record, Bad) else record):
            return
        if isinstance(record, Bad):
            self._quarantine(page, record.payload, record.reason, counted=record.counted)
            return
        if not isinstance(record, dict):
            self._quarantine(page, record, f"is no record, but {type(record).__name__}")
            return
        for name, value in record.items():
            if isinstance(value, Blob):
                record[name] = _put_blob(self._uploads, self._source, value)
        reason = rows.check(self._resource, record)
        if reason:
            self._quarantine(page, record, reason)
            return
        self.counts.rows += 1
        key = rows.key_text(tuple(map(record.get, self._resource.key)))
        self._lines.append((self.position, page, key, record))

    def _columns(self, page: Landed, batch: pa.RecordBatch) -> Iterator[Batch]:
        """A batch of a source's own, column by column; rows that break the contract are looked at one by one."""
        sifted = rows.sift(self._resource, batch)
        if sifted is None:
            for record in batch.to_pylist():
                self._line(page, record)
            yield from self._flush()
            return
        data, fit = sifted
        keys = rows.keys(self._resource, batch)
        fit = pc.and_(fit, pc.less_equal(pc.binary_length(keys), rows.LONGEST_KEY))
        passed = pa.repeat(pa.scalar(False), batch.num_rows)
        if self._some_withdrawn:
            passed = pa.array(map(self._passed_over, batch.to_pylist()), pa.bool_())
            fit = pc.and_(fit, pc.invert(passed))
        positions = pa.array(range(self.position + 1, self.position + batch.num_rows + 1), pa.int64())
        if fit.false_count:
            for index, record in enumerate(batch.to_pylist()):
                if not fit[index].as_py() and not passed[index].as_py():
                    self._quarantine(page, record, rows.check(self._resource, record) or "it does not fit its columns")
            data, keys, positions = (part.filter(fit) for part in (data, keys, positions))
        self.position += batch.num_rows
        self.counts.rows += data.num_rows
        for start in range(0, data.num_rows, ROWS):
            part, at = data.slice(start, ROWS), slice(start, start + ROWS)
            count = part.num_rows
            yield Batch(positions[at], [page.position] * count, keys[at], [False] * count, part)

    def _passed_over(self, record: object) -> bool:
        """Whether a record was withdrawn; where a value of it was, its key is from now on."""
        if not self._withdrawn.has(self._resource, record):
            return False
        self.counts.forgotten += 1
        if not isinstance(record, Mapping):
            return True
        values = {name: record.get(name) for name in self._resource.key}
        key = rows.key_text(tuple(values.values()))
        self.passed.add(key)
        self.blobs |= {blob_key(self._source, value) for value in record.values() if isinstance(value, Blob)}
        if self._withdrawn.by_field(record):
            self.led_to |= tombstones.siblings(self._source, self._resource, key, values)
        return True

    def _remains(self, page: Landed) -> Iterator[Batch]:
        """What a withdrawal has left of a page (``forgetting.keep`` wrote it), each line at the place that it had."""
        if not page.key:
            self.position += 1  # of a deletion
            return
        self._index(page)
        columns = rows.wire(self._resource)
        with page.path() as path, pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as reader:
            for written in reader:
                kept = self._spared(written)
                count = kept.num_rows
                self.counts.rows += count
                data = [_column(kept, column) for column in columns]
                batch = Batch(
                    positions=pc.add(kept["_position"], self.position),
                    pages=[page.position] * count,
                    keys=kept["_key"].to_pylist(),
                    deleted=[False] * count,
                    data=pa.record_batch(data, schema=columns),
                )
                if self._resource.store == "documents":
                    batch.documents = [(record, page.key) for record in _records(kept)]
                    batch.hashes = kept["_hash"]
                yield batch
            self.position += int(reader.schema.metadata[b"positions"])
            if page.erased is None:  # it is named once more, and the journal says its name again
                self.counts.forgotten += 1

    def _spared(self, kept: pa.RecordBatch) -> pa.RecordBatch:
        """Those of the lines that no later withdrawal took."""
        if not self._some_withdrawn:
            return kept
        keys, has_key, by_field = kept["_key"].to_pylist(), self._withdrawn.has_key, self._withdrawn.by_field
        stay = [not (has_key(key) or by_field(record)) for key, record in zip(keys, _records(kept), strict=True)]
        self.counts.forgotten += stay.count(False)
        self.passed |= {key for key, stays in zip(keys, stay, strict=True) if not stays}
        return kept.filter(pa.array(stay, pa.bool_()))

    def _flush(self) -> Iterator[Batch]:
        lines, self._lines = self._lines, []
        if not lines:
            return
        positions, pages = [position for position, *_ in lines], [page.position for _, page, *_ in lines]
        keys, deleted = [key for _, _, key, _ in lines], [record is None for *_, record in lines]
        if self._resource.store == "documents":
            found = [(record, page.key) if record is not None else None for _, page, _, record in lines]
            hashes = [bytes.fromhex(rows.hash_of(self._resource, one[0])) if one else NO_HASH for one in found]
            data = pa.record_batch([pa.nulls(len(lines), pa.string())], ["doc"])
            yield Batch(positions, pages, keys, deleted, data, found, pa.array(hashes, pa.binary()))
        else:
            data = rows.batch_of(self._resource, [record or {} for *_, record in lines])
            yield Batch(positions, pages, keys, deleted, data)

    def _index(self, page: Landed) -> None:
        self._writer.execute(
            "insert into ops.landing (source, load, position, resource, key, sha256, name, bytes, content_type, "
            "fetched_at, meta) values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            (
                *(self._source.name, self._load, page.position, self._resource.name, page.key, page.sha256),
                *(_storable(page.name), page.size, page.content_type, page.fetched_at, _jsonb(dict(page.meta))),
            ),
        )

    def _quarantine(self, page: Landed, payload: object, reason: str, *, counted: bool = True) -> None:
        self.counts.quarantined += 1
        if self._resource.mode == "replace":
            key = tuple(map(payload.get, self._resource.key)) if isinstance(payload, Mapping) else (None,)
            known = all(isinstance(part, str) or (isinstance(part, int) and abs(part) < rows.INT64) for part in key)
            known = known and len(self.refused) < REFUSED
            self.refused.add(_storable(rows.key_text(key)) if known else None)
        text, reason = _storable(_shown(payload)[:PAYLOAD]), _storable(reason[:1000])
        self._writer.execute(
            "insert into ops.quarantine (source, load, resource, position, payload, reason, landing, counted) "
            "values (%s, %s, %s, %s, %s, %s, %s, %s)",
            (self._source.name, self._load, self._resource.name, self.position, text, reason, page.key, counted),
        )


class _Writer:
    """One thread that talks to the warehouse while the next batch is made; never more than a few wait."""

    def __init__(self, sql: cursor) -> None:
        self._sql = sql
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="warehouse")
        self._pending: deque[Future[None]] = deque()
        self._statements: list[tuple[str, tuple[Any, ...]]] = []

    def execute(self, statement: str, values: tuple[Any, ...]) -> None:
        """Run a statement before the next copy; many together, since each alone costs a way to the server and back."""
        self._statements.append((statement, values))
        if len(self._statements) >= 1_000:
            self._submit(lambda: None)

    def copy(self, into: Callable[[_Encoded], None], batch: Future[_Encoded]) -> None:
        self._submit(lambda: into(batch.result()))

    def _submit(self, then: Callable[[], None]) -> None:
        statements, self._statements = self._statements, []

        def work() -> None:
            for statement, group in groupby(statements, key=itemgetter(0)):
                execute_batch(self._sql, statement, [values for _, values in group], page_size=100)
            then()

        while len(self._pending) >= AHEAD:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(work))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self._submit(lambda: None)
                while self._pending:
                    self._pending.popleft().result()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _put_blob(uploads: Uploads, source: Source, blob: Blob) -> str:
    key = blob_key(source, blob)
    uploads.put("derived", key, blob.data, blob.content_type)
    return key


def blob_key(source: Source, blob: Blob) -> str:
    """Where a blob lies in the bucket ``derived``: by its content."""
    sha256 = hashlib.sha256(blob.data).hexdigest()
    return f"{source.name}/{sha256[:2]}/{sha256}{blob.suffix}"


def _project(collection: str, batch: Batch, stores: Stores) -> None:
    """Write a batch of documents, read the versions back, and make them the data that raw gets."""
    documents = stores.documents()
    ids, versions = list[str | None](), dict[str, dict[str, Any]]()
    hashes = batch.hashes.to_pylist() if batch.hashes is not None else []
    for key, content, one in zip(batch.keys, hashes, batch.documents, strict=True):
        if one is None:
            ids.append(None)
            continue
        document, landing = one
        address = version_id(key, content.hex())
        ids.append(address)
        versions[address] = {"_id": address, "key": key, "hash": content.hex(), "landing": landing, "doc": document}
    documents.put_versions(collection, list(versions.values()))
    found = documents.read_versions(collection, list(versions))
    texts = [document_text(found[address]["doc"]) if address else None for address in ids]
    batch.data = pa.record_batch([pa.array(texts, pa.string())], ["doc"])


def version_id(key: str, content: str) -> str:
    """``_id`` of a document's version: the hash of its key and of its content's hash."""
    return hashlib.md5(f"{key}\x1f{content}".encode(), usedforsecurity=False).hexdigest()


def document_text(document: Mapping[str, Any]) -> str:
    """A document as raw shows it."""
    return json.dumps(document, ensure_ascii=False, default=str)


# Whether a version of a key says anything after the one before it; a first one does unless it is a deletion.
CHANGED = """case
    when before is null then not steps._deleted
    else (before, before_deleted) <> (steps._hash, steps._deleted)
end"""


# What tells whether a line is new: all that a table with rows is sent of it at first.
TELLING = {name: rows.META[name] for name in ("_position", "_key", "_hash", "_deleted")}
# A line of two columns in COPY's binary format, after its header: how many columns, and each with its length.
COPY_HEADER = 19
CHOSEN = np.dtype([("", ">i2"), ("", ">i4"), ("position", ">i8"), ("", ">i4"), ("again", "?")])


@dataclass(frozen=True)
class _Encoded:
    """Lines as COPY reads them; ``whole`` where these are only what tells whether they are new."""

    data: bytes
    whole: pa.RecordBatch | None = None


class _Table:
    """The raw table of a load, in the load's transaction.

    An empty table is copied into as it is, and gets its indexes afterwards. For one that has rows, the lines wait in a
    file on this machine: their keys and hashes are sent first, and then the lines that say something new.

    Fetches of several lanes go on side by side, and the one that is sealed last may have begun first, at ``began``. A
    line says nothing new of a key whose version there comes from a page that was fetched at the same time or later.
    """

    def __init__(self, source: Source, resource: Resource, load: int, began: datetime, sql: cursor) -> None:
        self._source, self._load, self._sql = source.name, load, sql
        table = source.table(resource)
        self._name = self._target = f'raw."{table}"'
        self._columns = rows.META | rows.data_columns(resource)
        sql.execute(f"select exists (select from {self._name})")
        self._has_rows = bool(warehouse.first(sql)[0])
        self._indexes = [] if self._has_rows else rows.with_indexes(table)
        sql.execute(
            "select exists (select from ops.load where source = %s and resource = %s and state <> 'rejected' "
            "and fetched_at >= %s)",
            (source.name, resource.name, began),
        )
        self._overlaps = bool(warehouse.first(sql)[0])
        self._telling = TELLING | ({"_page": rows.META["_page"]} if self._overlaps else {})
        if self._has_rows:
            sql.execute(f"create temporary table incoming ({_typed(self._telling)}) on commit drop")
        else:  # what is copied into a table made or emptied in the same transaction is written once and for all
            for statement in (f"truncate {self._name}", *rows.without_indexes(table)):
                sql.execute(statement)
        if "numeric" in self._columns.values():  # Arrow has nothing that COPY would take for one: they travel as text
            self._target = "travelling"
            kinds = {name: "text" if kind == "numeric" else kind for name, kind in self._columns.items()}
            sql.execute(f"create temporary table travelling ({_typed(kinds)}) on commit drop")

    def __enter__(self) -> Self:
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="lyrebird-")
        self._page = 0  # the last
        self._count, self._deletions = 0, False
        self._waiting: pa.ipc.RecordBatchFileWriter | None = None
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def encoded(self, batch: Batch) -> _Encoded:
        """A batch with its hashes, as COPY reads it."""
        deleted = pa.array(batch.deleted)
        self._deletions |= any(batch.deleted)
        hashes = batch.hashes if batch.hashes is not None else rows.hashes(batch.data)
        columns = {
            "_load": pa.repeat(pa.scalar(self._load, pa.int64()), len(deleted)),
            "_position": pa.array(batch.positions, pa.int64()),
            "_page": pa.array(batch.pages, pa.int64()),
            "_key": pa.array(batch.keys, pa.string()),
            "_hash": pc.if_else(deleted, NO_HASH, hashes),  # 16 bytes are a uuid to COPY
            "_deleted": deleted,
            "_again": pa.repeat(pa.scalar(False), len(deleted)),
        } | dict(zip(batch.data.schema.names, batch.data.columns, strict=True))
        lines = pa.record_batch(columns)
        if self._has_rows:
            return _Encoded(rows.copy_bytes(self._telling, lines.select(list(self._telling))), lines)
        return _Encoded(rows.copy_bytes(self._columns, lines))

    def copy(self, batch: _Encoded) -> None:
        if batch.whole is None:
            self._copy(self._target, self._columns, batch.data)
            self._count += self._sql.rowcount
            return
        self._copy("incoming", self._telling, batch.data)
        self._page = batch.whole["_page"][-1].as_py()
        self._waiting = self._waiting or pa.ipc.new_file(self._file, batch.whole.schema)
        self._waiting.write_batch(batch.whole)

    def _copy(self, target: str, columns: Iterable[str], data: bytes) -> None:
        frozen = ", freeze" * (target == self._name and not self._has_rows)
        self._sql.copy_expert(
            f"copy {target} ({_listed(columns)}) from stdin (format binary{frozen})", io.BytesIO(data), size=1 << 20
        )

    def keep_what_is_new(self, encoders: ThreadPoolExecutor) -> int:
        """Append what is new or differs from the current version of loads that were not rejected. Returns how much."""
        self._sql.execute("set local work_mem = '128MB'")
        self._sql.execute("set local maintenance_work_mem = '256MB'")
        if self._waiting:
            self._waiting.close()
            for data in _ahead(encoders, self._chosen, self._new()):
                self._copy(self._target, self._columns, data)
                self._count += self._sql.rowcount
        if self._target != self._name:
            casts = (f'"{name}"' + "::numeric" * (kind == "numeric") for name, kind in self._columns.items())
            self._sql.execute(
                f"insert into {self._name} ({_listed(self._columns)}) select {', '.join(casts)} from {self._target}"
            )
        for statement in self._indexes:
            self._sql.execute(statement)
        new = self._count if self._has_rows else self._count - self._drop_repeats()
        self._analyze(new)
        return new

    def _analyze(self, new: int) -> None:
        """Tell the planner, where a tenth of the table or more is new to it: the transform comes before autovacuum."""
        self._sql.execute("select greatest(reltuples, 0) from pg_class where oid = %s::regclass", (self._name,))
        if new > ANALYZED and new * 10 > warehouse.first(self._sql)[0]:
            self._sql.execute(f"analyze {self._name}")

    def _drop_repeats(self) -> int:
        """Take away lines of a first load that repeat the one before of their key, or delete what never was."""
        self._sql.execute(f"select exists (select from {self._name} group by _key having count(*) > 1)")
        if not self._deletions and not warehouse.first(self._sql)[0]:
            return 0
        self._sql.execute(
            f"""
            with steps as (
                select _position, _hash, _deleted, lag(_hash) over of_key as before,
                       lag(_deleted) over of_key as before_deleted
                from {self._name} window of_key as (partition by _key order by _position)
            ), repeats as (
                delete from {self._name} as r using steps
                where r._position = steps._position and not {CHANGED}
                returning 1
            ), others as (
                update {self._name} as r set _again = true from steps
                where r._position = steps._position and before is not null and {CHANGED}
            )
            select count(*) from repeats
            """
        )
        return int(warehouse.first(self._sql)[0])

    def _new(self) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
        """Batches of the lines that wait, and which of their lines say something new (:data:`CHOSEN`).

        Most of what comes again is as it was, and its key and hash say so. The keys of the rest are looked at line by
        line, after the last version that there was: among several that is one which followed another.
        """
        accepted = self._sql.mogrify(
            f"""
            select r._key, r._load, r._position, r._page, r._hash, r._deleted, r._again, l.fetched_at
            from {self._name} as r join ops.load as l on l.source = %s and l.load = r._load and l.state <> 'rejected'
            """,
            (self._source,),
        ).decode()
        self._sql.execute(
            f"""
            analyze incoming;
            create temporary table doubtful on commit drop as
                select i._key, r._load, r._position, r._hash, r._deleted
                from incoming as i left join ({accepted}) as r on r._key = i._key
                where r._key is null or r._again or (r._hash, r._deleted) <> (i._hash, i._deleted);
            analyze doubtful
            """
        )
        newer = f"""
            and not exists (
                select from ({accepted}) as r
                left join ops.landing as there on (there.source, there.load, there.position)
                    = (%(source)s, r._load, r._page)
                join ops.landing as here on (here.source, here.load, here.position) = (%(source)s, %(load)s, i._page)
                where r._key = i._key and coalesce(there.fetched_at, r.fetched_at) >= here.fetched_at
            )"""
        found = self._sql.mogrify(
            f"""
            with lines as (
                select _key, %(load)s::bigint as _load, _position, _hash, _deleted from incoming as i
                where _key in (select _key from doubtful) {newer if self._overlaps else ""}
                union all
                select distinct * from doubtful where _load is not null
            ), steps as (
                select *, lag(_hash) over of_key as before, lag(_deleted) over of_key as before_deleted
                from lines window of_key as (partition by _key order by _load, _position)
            )
            select _position, before is not null from steps
            where _load = %(load)s and {CHANGED}
            order by _position
            """,
            {"load": self._load, "source": self._source},
        )
        with tempfile.TemporaryFile(prefix="lyrebird-") as chosen:
            self._sql.copy_expert(f"copy ({found.decode()}) to stdout (format binary)", chosen)
            chosen.seek(COPY_HEADER)
            lines, rest = pa.ipc.open_file(self._file), np.empty(0, CHOSEN)
            for number in range(lines.num_record_batches):
                batch = lines.get_batch(number)
                last = batch["_position"][-1].as_py()
                while (not len(rest) or rest["position"][-1] <= last) and (block := chosen.read(CHOSEN.itemsize << 16)):
                    whole = len(block) // CHOSEN.itemsize  # two bytes at the end say that it is the end
                    rest = np.concatenate([rest, np.frombuffer(block, CHOSEN, whole)])
                count = int(np.searchsorted(rest["position"], last, "right"))
                if count:
                    yield batch, rest[:count]
                rest = rest[count:]

    def _chosen(self, batch: pa.RecordBatch, chosen: np.ndarray) -> bytes:
        """Those lines of a batch, as COPY reads them."""
        which = np.searchsorted(batch["_position"].to_numpy(), chosen["position"])
        lines = batch.take(pa.array(which))
        again = lines.schema.get_field_index("_again")
        return rows.copy_bytes(self._columns, lines.set_column(again, "_again", pa.array(chosen["again"])))

    def delete_missing(self, refused: set[str | None]) -> int:
        """Append a deletion for each current key that a snapshot does not hold.

        A key whose record went to quarantine is no deletion; where records were refused that have no key, nobody knows
        whose they were, and the caller deletes nothing.
        """
        if not self._has_rows:
            return 0
        self._sql.execute(
            f"""
            insert into {self._name} (_load, _position, _page, _key, _hash, _deleted, _again)
            select %(load)s, (select max(_position) from incoming) + row_number() over (order by c._key),
                   %(page)s, c._key, %(no_hash)s::uuid, true, true
            from (
                select distinct on (r._key) r._key, r._deleted
                from {self._name} as r
                join ops.load as l on l.source = %(source)s and l.load = r._load and l.state <> 'rejected'
                order by r._key, r._load desc, r._position desc
            ) as c
            where not c._deleted and exists (select from incoming)
              and not exists (select from incoming as i where i._key = c._key)
              and c._key <> all(%(refused)s)
            """,
            {"load": self._load, "source": self._source, "page": self._page}
            | {"refused": list(refused), "no_hash": NO_HASH.hex()},
        )
        return self._sql.rowcount


def _listed(columns: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in columns)


def _typed(columns: Mapping[str, str]) -> str:
    return ", ".join(f'"{name}" {kind}' for name, kind in columns.items())


def _ahead(pool: ThreadPoolExecutor, work: Callable[..., bytes], given: Iterable[tuple[Any, ...]]) -> Iterator[bytes]:
    """What work makes of each, in order, begun a little before it is asked for."""
    pending = deque[Future[bytes]]()
    for one in given:
        pending.append(pool.submit(work, *one))
        if len(pending) > AHEAD:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def note_replayed(sql: cursor, source: str, load: int) -> None:
    """Note that the records in quarantine whose pages an accepted load has read again have had another chance."""
    sql.execute(
        """
        update ops.quarantine as q set replayed_at = now()
        from ops.load as again, ops.load as l
        where (again.source, again.load) = (%(source)s, %(load)s)
          and (q.source, q.resource) = (again.source, again.resource)
          and q.load < again.load and q.replayed_at is null
          and (l.source, l.load) = (q.source, q.load)
          and (l.load = again.slice::bigint or (l.lane, l.slice) = (again.lane, again.slice))
          and exists (
              select from ops.landing as n
              where (n.source, n.load, n.key) = (again.source, again.load, q.landing)
          )
        """,
        {"source": source, "load": load},
    )


def _record(db: connection, header: Header, counts: Counts, verdict: dict[str, Any], fetched_at: datetime) -> None:
    start, end = header.interval or (None, None)
    with db.cursor() as sql:
        sql.execute(
            """
            insert into ops.load (source, load, resource, lane, slice, interval_start, interval_end, state, pages, rows,
                                  versions, quarantined, forgotten, bytes, fetched_at, judged_at, reason, run_id,
                                  cursor)
            values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
            """,
            (
                *(header.source, header.load, header.resource, header.lane, header.slice, start, end, verdict["state"]),
                *(counts.pages, counts.rows, counts.versions, counts.quarantined, counts.forgotten, counts.bytes),
                *(fetched_at, verdict.get("at"), verdict.get("reason"), header.run_id, _jsonb(header.cursor)),
            ),
        )
    point_cursor(db, header.source, header.resource, header.lane)


def point_cursor(db: connection, source: str, resource: str, lane: str) -> None:
    """Let the cursor say what the last load that was not rejected says, in the caller's transaction.

    What a rejected load fetched is fetched again: its good rows come with the mended ones.
    """
    of_it = {"source": source, "resource": resource, "lane": lane}
    with db.cursor() as sql:
        sql.execute(
            "delete from ops.cursor where source = %(source)s and resource = %(resource)s and lane = %(lane)s", of_it
        )
        sql.execute(
            """
            insert into ops.cursor (source, resource, lane, cursor, load)
            select source, resource, lane, cursor, load from ops.load
            where source = %(source)s and resource = %(resource)s and lane = %(lane)s and state <> 'rejected'
            order by load desc limit 1
            """,
            of_it,
        )


def _shown(payload: object) -> str:
    if isinstance(payload, str):
        return payload
    try:
        return json.dumps(payload, ensure_ascii=False, default=repr)
    except (TypeError, ValueError, RecursionError):
        return f"a {type(payload).__name__} that cannot be shown"


def _storable(text: str) -> str:
    """Text as PostgreSQL can hold it: another sign for NUL, and one for half of a UTF-16 pair."""
    return text.replace("\x00", "␀").encode("utf-8", "replace").decode()


def _jsonb(value: Any) -> str:
    """JSON as PostgreSQL's jsonb can hold it: another sign for NUL, but not for a text that only writes it down."""
    return re.sub(r"(?<!\\)((?:\\\\)*)\\u0000", r"\1\\u2400", json.dumps(value))
