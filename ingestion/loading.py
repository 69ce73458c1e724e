"""Load one sealed journal segment into the warehouse: rows, counts and cursor in one transaction.

Documents go to the document store first, by content, and what is read back from there is projected into raw; so the
document store is part of the way and not a copy beside it. Everything before the commit is idempotent.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg2
from psycopg2.extensions import connection, cursor

from ingestion import rows
from ingestion.contract import Bad, BadPage, Blob, Landed, Record, Resource, Source
from ingestion.journal import Header, Uploads, read_segment, read_verdict
from storage.documents import Documents
from storage.errors import Problem
from storage.objects import Objects

BATCH = 5_000
PAYLOAD = 4_000  # characters of a quarantined payload that are kept: the whole lies in landing


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
    counts, refused = Counts(), set[str | None]()
    with db, db.cursor() as sql:
        sql.execute("select 1 from ops.load where source = %s and load = %s", (source.name, load))
        if sql.fetchone():
            return None
        ensure_table(db, source, resource)
        columns = list(rows.META | rows.data_columns(resource))
        listed = ", ".join(f'"{name}"' for name in columns)
        sql.execute(f'create temporary table incoming (like raw."{source.table(resource)}") on commit drop')
        fetched_at = header.sealed_at
        with Uploads(stores.objects) as uploads:
            for batch in _batches(_read(source, resource, load, entries, counts, refused, uploads, sql), BATCH):
                uploads.wait()  # a row never names a blob that is not there
                reached("parsed")
                lines = _project(source, resource, batch, stores) if resource.store == "documents" else batch
                reached("documents")
                text = "".join(
                    rows.copy_line([load, *line.meta, *(line.record.get(n) for n in columns[len(rows.META) :])])
                    for line in lines
                )
                sql.copy_expert(f"copy incoming ({listed}) from stdin", io.StringIO(text))
                reached("copied")
                say(f"{source.name}/{resource.name}: {counts.rows:,} records of {counts.pages:,} pages")
        counts.versions = _insert_versions(db, source, resource, listed)
        if resource.mode == "replace" and None not in refused:
            counts.versions += _delete_missing(db, source, resource, refused)
        verdict: dict[str, Any] = read_verdict(stores.objects, source.name, load) or {"state": "loaded"}
        _record(db, header, counts, verdict, fetched_at)
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


@dataclass(frozen=True)
class _Line:
    meta: tuple[Any, ...]  # position, key, hash, deleted, landing, fetched_at
    record: Record


def _read(
    source: Source,
    resource: Resource,
    load: int,
    entries: Iterator[Landed],
    counts: Counts,
    refused: set[str | None],
    uploads: Uploads,
    sql: cursor,
) -> Iterator[_Line]:
    """Index the entries and parse them into checked lines; what breaks its contract goes to quarantine.

    ``refused`` gets the keys of those, and None for what has none.
    """
    position = 0

    def quarantine(page: Landed, payload: object, reason: str) -> None:
        counts.quarantined += 1
        key = tuple(map(payload.get, resource.key)) if isinstance(payload, Mapping) else (None,)
        refused.add(_storable(rows.key_text(key)) if all(isinstance(part, (str, int)) for part in key) else None)
        text, reason = _storable(_shown(payload)[:PAYLOAD]), _storable(reason[:1000])
        sql.execute(
            "insert into ops.quarantine (source, load, resource, position, payload, reason, landing) "
            "select %s, %s, %s, %s, %s, %s, %s",
            (source.name, load, resource.name, position, text, reason, page.key),
        )

    for page in entries:
        counts.pages += 1
        counts.bytes += page.size
        if page.gone is not None:
            position += 1
            yield _Line((position, rows.key_text(page.gone), "", True, None, page.fetched_at), {})
            continue
        sql.execute(
            "insert into ops.landing (source, load, position, resource, key, sha256, name, bytes, content_type, "
            "fetched_at, meta) values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            (
                *(
                    source.name,
                    load,
                    page.position,
                    resource.name,
                    page.key,
                    page.sha256,
                    _storable(page.name),
                ),
                *(page.size, page.content_type, page.fetched_at, _jsonb(dict(page.meta))),
            ),
        )
        try:
            for record in resource.parse(page):
                position += 1
                if isinstance(record, Bad):
                    quarantine(page, record.payload, record.reason)
                    continue
                for name, value in record.items():
                    if isinstance(value, Blob):
                        record[name] = _put_blob(uploads, source, value)
                reason = rows.check(resource, record)
                if reason:
                    quarantine(page, record, reason)
                    continue
                counts.rows += 1
                key = rows.key_text(tuple(map(record.get, resource.key)))
                meta = (position, key, rows.hash_text(record), False, page.key, page.fetched_at)
                yield _Line(meta, record)
        except BadPage as error:
            position += 1
            quarantine(page, page.name, str(error))


def _put_blob(uploads: Uploads, source: Source, blob: Blob) -> str:
    sha256 = hashlib.sha256(blob.data).hexdigest()
    key = f"{source.name}/{sha256[:2]}/{sha256}{blob.suffix}"
    uploads.put("derived", key, blob.data, blob.content_type)
    return key


def _project(source: Source, resource: Resource, batch: Sequence[_Line], stores: Stores) -> list[_Line]:
    """Write a batch of documents, read the versions back, and give the lines that raw gets."""
    collection = source.table(resource)
    documents = stores.documents()
    kept = [line for line in batch if not line.meta[3]]
    ids = [
        hashlib.md5(f"{line.meta[1]}\x1f{line.meta[2]}".encode(), usedforsecurity=False).hexdigest() for line in kept
    ]
    versions = {
        i: {"_id": i, "key": line.meta[1], "hash": line.meta[2], "landing": line.meta[4], "doc": line.record}
        for i, line in zip(ids, kept, strict=True)
    }
    documents.put_versions(collection, list(versions.values()))
    found = documents.read_versions(collection, list(versions))
    projected = [_Line(line.meta, {"doc": found[i]["doc"]}) for i, line in zip(ids, kept, strict=True)]
    return projected + [line for line in batch if line.meta[3]]


def _insert_versions(db: connection, source: Source, resource: Resource, listed: str) -> int:
    """Append what is new or differs from the current version of loads that were not rejected."""
    table = f'raw."{source.table(resource)}"'
    with db.cursor() as sql:
        sql.execute("create index on incoming (_key)")
        sql.execute("analyze incoming")
        sql.execute(
            f"""
            with distinct_versions as (
                select *, lag(_hash) over (partition by _key order by _position) as before,
                       lag(_deleted) over (partition by _key order by _position) as before_deleted
                from incoming
            )
            insert into {table} ({listed})
            select {listed} from distinct_versions as i
            left join lateral (
                select r._hash as now, r._deleted as now_deleted
                from {table} as r
                join ops.load as l on l.source = %s and l.load = r._load and l.state <> 'rejected'
                where r._key = i._key
                order by r._load desc, r._position desc
                limit 1
            ) as current on i.before is null
            where case
                when i.before is not null then (i.before, i.before_deleted) is distinct from (i._hash, i._deleted)
                when i._deleted then now is not null and not now_deleted
                else now is null or now_deleted or now <> i._hash
            end
            """,
            (source.name,),
        )
        return sql.rowcount


def _delete_missing(db: connection, source: Source, resource: Resource, refused: set[str | None]) -> int:
    """Append a deletion for each current key that a snapshot does not hold.

    A key whose record went to quarantine is no deletion; where records were refused that have no key, nobody knows
    whose they were, and the caller deletes nothing.
    """
    table = f'raw."{source.table(resource)}"'
    with db.cursor() as sql:
        sql.execute(
            f"""
            insert into {table} (_load, _position, _key, _hash, _deleted, _landing, _fetched_at)
            select (select max(_load) from incoming),
                   (select max(_position) from incoming) + row_number() over (order by c._key),
                   c._key, '', true, null, (select max(_fetched_at) from incoming)
            from (
                select distinct on (r._key) r._key, r._deleted
                from {table} as r
                join ops.load as l on l.source = %s and l.load = r._load and l.state <> 'rejected'
                order by r._key, r._load desc, r._position desc
            ) as c
            where not c._deleted and exists (select from incoming)
              and not exists (select from incoming as i where i._key = c._key)
              and c._key <> all(%s)
            """,
            (source.name, list(refused)),
        )
        return sql.rowcount


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
    """JSON as PostgreSQL's jsonb can hold it."""
    return json.dumps(value).replace("\\u0000", "\\u2400")


def _batches(lines: Iterator[_Line], size: int) -> Iterator[list[_Line]]:
    batch: list[_Line] = []
    for line in lines:
        batch.append(line)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
