"""Load one sealed journal segment into the warehouse: rows, counts and cursor in one transaction.

Documents go to the document store first, by content, and what is read back from there is projected into raw; so the
document store is part of the way and not a copy beside it. Everything before the commit is idempotent.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any, Self

import psycopg2
import pyarrow as pa
import pyarrow.compute as pc
from psycopg2.extensions import connection, cursor
from psycopg2.extras import execute_batch

from ingestion import rows
from ingestion.contract import Bad, BadPage, Blob, Landed, Record, Resource, Source
from ingestion.journal import Header, Uploads, read_segment, read_verdict
from storage import warehouse
from storage.documents import Documents
from storage.errors import Problem
from storage.objects import Objects

BATCH = 10_000  # records that a source gives one by one
ROWS = 50_000  # of a source's own batches
PAYLOAD = 4_000  # characters of a quarantined payload that are kept: the whole lies in landing
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


@dataclass(frozen=True)
class Stores:
    """The stores a load writes to."""

    warehouse: connection
    objects: Objects
    documents: Callable[[], Documents]


def load_segment(
    source: Source, load: int, stores: Stores, say: Callable[[str], None], reached: Callable[[str], None]
) -> Counts | None:
    """Load segment ``load`` of the source; None when the warehouse has it already.

    ``reached`` is told each stage boundary (faults are injected there in tests).
    """
    db = stores.warehouse
    header, entries = read_segment(stores.objects, source.name, load)
    resource = next((r for r in source.resources if r.name == header.resource), None)
    if resource is None:
        say(f"{source.name}: segment {load} is of the resource {header.resource}, which is no more; left as it is")
        return None
    resource = resource.known(header.cursor)
    with db, db.cursor() as sql:
        sql.execute("select 1 from ops.load where source = %s and load = %s", (source.name, load))
        if sql.fetchone():
            return None
        ensure_table(db, source, resource)
        table = _Table(source, resource, load, sql)
        with Uploads(stores.objects) as uploads, _Writer(sql) as writer, ThreadPoolExecutor(ENCODERS) as encoders:
            parsing = _Parsing(source, resource, load, uploads, writer)
            for batch in parsing.batches(entries):
                uploads.wait()  # a row never names a blob that is not there
                reached("parsed")
                if resource.store == "documents":
                    _project(source.table(resource), batch, stores)
                reached("documents")
                writer.copy(table.copy, encoders.submit(table.encoded, batch))
                reached("copied")
                say(f"{source.name}/{resource.name}: {parsing.counts.rows:,} records of {parsing.counts.pages:,} pages")
        counts = parsing.counts
        counts.versions = table.keep_what_is_new(header.again_of)
        if resource.mode == "replace" and header.lane == "live" and None not in parsing.refused:
            counts.versions += table.delete_missing(parsing.refused)
        verdict: dict[str, Any] = read_verdict(stores.objects, source.name, load) or {"state": "loaded"}
        _record(db, header, counts, verdict, header.sealed_at)
        if header.again_of:
            _replayed(sql, header, load)
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


@dataclass
class _Batch:
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


class _Parsing:
    """Entries of a segment become checked lines; what breaks its contract goes to quarantine.

    ``refused`` gets the keys of those, and None for what has none.
    """

    def __init__(self, source: Source, resource: Resource, load: int, uploads: Uploads, writer: _Writer) -> None:
        self.counts, self.refused = Counts(), set[str | None]()
        self._source, self._resource, self._load = source, resource, load
        self._uploads, self._writer = uploads, writer
        self._position = 0
        self._lines: list[tuple[int, Landed, str, Record | None]] = []  # position, page, key; None for a deletion

    def batches(self, entries: Iterator[Landed]) -> Iterator[_Batch]:
        for page in entries:
            self.counts.pages += 1
            self.counts.bytes += page.size
            if page.gone is not None:
                self._position += 1
                self._lines.append((self._position, page, rows.key_text(page.gone), None))
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
                    self._position += 1
                    self._quarantine(page, page.name, str(error))
            if len(self._lines) >= BATCH:
                yield from self._flush()
        yield from self._flush()

    def _line(self, page: Landed, record: Record | Bad) -> None:
        self._position += 1
        if isinstance(record, Bad):
            self._quarantine(page, record.payload, record.reason)
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
        self._lines.append((self._position, page, key, record))

    def _columns(self, page: Landed, batch: pa.RecordBatch) -> Iterator[_Batch]:
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
        positions = pa.array(range(self._position + 1, self._position + batch.num_rows + 1), pa.int64())
        if fit.false_count:
            for index, record in enumerate(batch.to_pylist()):
                if not fit[index].as_py():
                    self._quarantine(page, record, rows.check(self._resource, record) or "it does not fit its columns")
            data, keys, positions = (part.filter(fit) for part in (data, keys, positions))
        self._position += batch.num_rows
        self.counts.rows += data.num_rows
        for start in range(0, data.num_rows, ROWS):
            part, at = data.slice(start, ROWS), slice(start, start + ROWS)
            count = part.num_rows
            yield _Batch(positions[at], [page.position] * count, keys[at], [False] * count, part)

    def _flush(self) -> Iterator[_Batch]:
        lines, self._lines = self._lines, []
        if not lines:
            return
        positions, pages = [position for position, *_ in lines], [page.position for _, page, *_ in lines]
        keys, deleted = [key for _, _, key, _ in lines], [record is None for *_, record in lines]
        if self._resource.store == "documents":
            found = [(record, page.key) if record is not None else None for _, page, _, record in lines]
            hashes = [bytes.fromhex(rows.hash_of(self._resource, one[0])) if one else NO_HASH for one in found]
            data = pa.record_batch([pa.nulls(len(lines), pa.string())], ["doc"])
            yield _Batch(positions, pages, keys, deleted, data, found, pa.array(hashes, pa.binary()))
        else:
            data = rows.batch_of(self._resource, [record or {} for *_, record in lines])
            yield _Batch(positions, pages, keys, deleted, data)

    def _index(self, page: Landed) -> None:
        self._writer.execute(
            "insert into ops.landing (source, load, position, resource, key, sha256, name, bytes, content_type, "
            "fetched_at, meta) values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            (
                *(self._source.name, self._load, page.position, self._resource.name, page.key, page.sha256),
                *(_storable(page.name), page.size, page.content_type, page.fetched_at, _jsonb(dict(page.meta))),
            ),
        )

    def _quarantine(self, page: Landed, payload: object, reason: str) -> None:
        self.counts.quarantined += 1
        key = tuple(map(payload.get, self._resource.key)) if isinstance(payload, Mapping) else (None,)
        known = all(isinstance(part, str) or (isinstance(part, int) and abs(part) < rows.INT64) for part in key)
        self.refused.add(_storable(rows.key_text(key)) if known else None)
        text, reason = _storable(_shown(payload)[:PAYLOAD]), _storable(reason[:1000])
        self._writer.execute(
            "insert into ops.quarantine (source, load, resource, position, payload, reason, landing) "
            "select %s, %s, %s, %s, %s, %s, %s",
            (self._source.name, self._load, self._resource.name, self._position, text, reason, page.key),
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

    def copy(self, into: Callable[[bytes], None], data: Future[bytes]) -> None:
        self._submit(lambda: into(data.result()))

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
    sha256 = hashlib.sha256(blob.data).hexdigest()
    key = f"{source.name}/{sha256[:2]}/{sha256}{blob.suffix}"
    uploads.put("derived", key, blob.data, blob.content_type)
    return key


def _project(collection: str, batch: _Batch, stores: Stores) -> None:
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


class _Table:
    """The raw table of a load, in the load's transaction.

    An empty table is copied into as it is, and gets its indexes afterwards. Otherwise what came waits in a temporary
    table, and only what is new or has changed is appended; numbers of any precision get their type on that way.
    """

    def __init__(self, source: Source, resource: Resource, load: int, sql: cursor) -> None:
        self._source, self._resource, self._load, self._sql = source.name, resource, load, sql
        self._name = f'raw."{source.table(resource)}"'
        self._columns = rows.META | rows.data_columns(resource)
        sql.execute(f"select not exists (select from {self._name})")
        empty = bool(warehouse.first(sql)[0])
        self._direct = empty and "numeric" not in self._columns.values()
        self._target = self._name
        self._with_indexes = rows.with_indexes(source.table(resource)) if self._direct else []
        if self._direct:
            for statement in rows.without_indexes(source.table(resource)):
                sql.execute(statement)
        else:
            travelling = {name: "text" if kind == "numeric" else kind for name, kind in self._columns.items()}
            listed = ", ".join(f'"{name}" {kind}' for name, kind in travelling.items())
            sql.execute(f"create temporary table incoming ({listed}) on commit drop")
            self._target = "incoming"

    def encoded(self, batch: _Batch) -> bytes:
        """A batch as COPY reads it."""
        deleted = pa.array(batch.deleted)
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
        return rows.copy_bytes(self._columns, pa.record_batch(columns))

    def copy(self, data: bytes) -> None:
        listed = ", ".join(f'"{name}"' for name in self._columns)
        self._sql.copy_expert(
            f"copy {self._target} ({listed}) from stdin (format binary)", io.BytesIO(data), size=1 << 20
        )

    def keep_what_is_new(self, again_of: int | None) -> int:
        """Append what is new or differs from the current version of loads that were not rejected. Returns how much.

        Pages of the load ``again_of`` that are read again add only keys of which nothing came since: that is newer.
        """
        if not self._direct:
            return self._insert_versions(again_of)
        count = self._drop_repeats()
        for statement in self._with_indexes:
            self._sql.execute(statement)
        return count

    def _drop_repeats(self) -> int:
        self._sql.execute("set local work_mem = '128MB'")
        self._sql.execute(
            f"select coalesce(sum(lines), 0)::bigint, coalesce(max(lines), 0) > 1 or coalesce(bool_or(gone), false) "
            f"from (select count(*) as lines, bool_or(_deleted) as gone from {self._name} group by _key) as of_key"
        )
        count, repeats = warehouse.first(self._sql)
        if repeats:
            self._sql.execute(
                f"""
                with steps as (
                    select _position, _hash, _deleted, lag(_hash) over of_key as before,
                           lag(_deleted) over of_key as before_deleted
                    from {self._name} window of_key as (partition by _key order by _position)
                ), repeats as (
                    delete from {self._name} as r using steps
                    where r._position = steps._position and not {CHANGED}
                )
                update {self._name} as r set _again = true from steps
                where r._position = steps._position and before is not null and {CHANGED}
                """
            )
            self._sql.execute(f"select count(*) from {self._name}")
            count = warehouse.first(self._sql)[0]
        return int(count)

    def _insert_versions(self, again_of: int | None) -> int:
        """Most of what comes again is as it was, and known by its key and hash alone. The keys of the rest, and those
        that had several versions before, are looked at version by version.
        """
        listed = ", ".join(f'"{name}"' for name in self._columns)
        given = {name: f'i."{name}"' + "::numeric" * (kind == "numeric") for name, kind in self._columns.items()}
        given["_again"] = "before is not null"
        self._sql.execute("set local work_mem = '128MB'")
        self._sql.execute("analyze incoming")
        self._sql.execute(
            f"""
            with accepted as not materialized (
                select r.* from {self._name} as r
                join ops.load as l on l.source = %(source)s and l.load = r._load and l.state <> 'rejected'
            ), doubtful as (
                select _key from incoming as i
                where not exists (select from accepted as r where r._key = i._key and r._hash = i._hash)
                union
                select _key from {self._name} where _again and _key in (select _key from incoming)
            ), lines as (
                select _key, _load, _position, _hash, _deleted from incoming where _key in (select _key from doubtful)
                union all
                select _key, _load, _position, _hash, _deleted from accepted
                where _key in (select _key from doubtful)
            ), steps as (
                select *, lag(_hash) over of_key as before, lag(_deleted) over of_key as before_deleted
                from lines window of_key as (partition by _key order by _load, _position)
            )
            insert into {self._name} ({listed})
            select {", ".join(given.values())}
            from steps join incoming as i using (_load, _position)
            where {CHANGED}
              and not exists (
                select from accepted as r where r._key = steps._key and r._load >= %(again_of)s
            )
            """,
            {"source": self._source, "again_of": again_of},
        )
        return self._sql.rowcount

    def delete_missing(self, refused: set[str | None]) -> int:
        """Append a deletion for each current key that a snapshot does not hold.

        A key whose record went to quarantine is no deletion; where records were refused that have no key, nobody knows
        whose they were, and the caller deletes nothing.
        """
        self._sql.execute(
            f"""
            with incoming as (select * from {self._target} where _load = %(load)s)
            insert into {self._name} (_load, _position, _page, _key, _hash, _deleted, _again)
            select %(load)s, (select max(_position) from incoming) + row_number() over (order by c._key),
                   (select max(_page) from incoming), c._key, %(no_hash)s::uuid, true, true
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
            {"load": self._load, "source": self._source, "refused": list(refused), "no_hash": NO_HASH.hex()},
        )
        return self._sql.rowcount


def _replayed(sql: cursor, header: Header, load: int) -> None:
    """Note that the records in quarantine of the pages of a load that was read again have had another chance."""
    sql.execute(
        """
        update ops.quarantine as q set replayed_at = now()
        where q.source = %(source)s and q.resource = %(resource)s and q.load < %(load)s and q.replayed_at is null
          and exists (
              select from ops.load as l where l.source = q.source and l.load = q.load
                and (l.load = %(original)s or (l.lane = 'replay' and l.slice = %(slice)s))
          )
          and exists (
              select from ops.landing as n where n.source = q.source and n.load = %(load)s and n.key = q.landing
          )
        """,
        {
            "source": header.source,
            "resource": header.resource,
            "load": load,
            "original": header.again_of,
            "slice": header.slice,
        },
    )


def _record(db: connection, header: Header, counts: Counts, verdict: dict[str, Any], fetched_at: datetime) -> None:
    start, end = header.interval or (None, None)
    with db.cursor() as sql:
        sql.execute(
            """
            insert into ops.load (source, load, resource, lane, slice, interval_start, interval_end, state, pages, rows,
                                  versions, quarantined, bytes, fetched_at, judged_at, reason, run_id, cursor)
            values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
            """,
            (
                *(header.source, header.load, header.resource, header.lane, header.slice, start, end, verdict["state"]),
                *(counts.pages, counts.rows, counts.versions, counts.quarantined, counts.bytes, fetched_at),
                *(verdict.get("at"), verdict.get("reason"), header.run_id, _jsonb(header.cursor)),
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
