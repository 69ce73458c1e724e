"""Tables of other databases, by query: what is new since the last time, what is gone, and what became of the columns.

A person lists tables in the options file; each is a resource of its own. Its columns are found when it is fetched, and
kept with the cursor, so that importing this file asks no server anything.

* ``merge`` and ``append`` read on from a cursor of one or two columns, in pages by key (no offsets), down to the newest
  row. Rows younger than the ``lag`` are read again the next time: a transaction may commit late what it wrote early. A
  page that was read before lands only once.
* ``replace`` reads the table whole, in one statement, and lands it when it has changed.
* Deletions: ``merge`` compares all keys from time to time. An empty or failed read deletes nothing. Rows that were
  passed by and are not here (restored from a backup, or committed later than the lag) are read then, too.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args
from uuid import UUID

import pyarrow as pa

from ingestion import rows
from ingestion.contract import Context, Cursor, Gone, Landed, Page, Resource, Source
from ingestion.sources import sql_columns
from ingestion.sources.sql_columns import Agreement, Column, raw_name
from ingestion.sources.sql_reader import LONGEST_NAME, OPTIONS, Mode, Reader, Row, defined, opened
from ingestion.tombstones import Withdrawn
from storage import settings as given
from storage import warehouse
from storage.errors import Problem
from storage.objects import Objects

NAME = "sql_table"
DOMAINS = ("birds", "music", "text")
ARROW = "application/vnd.apache.arrow.stream"
ANY_TEXT = ("utf-8", "surrogatepass")
MOST_PASSED = 1_000_000  # rows that the cursor passed by, and that one comparison reads
YOUNG = 1_000  # pages of rows within the lag that are remembered


def _fetch(name: str, context: Context) -> Iterator[Page | Gone]:
    """What is new of a table.

    Cursor: {"table": identity, "columns": columns of raw, "at": position to go on from, "young": digests of the pages
    behind it that have been read, "compared": when all keys were, "passed": digest of the rows that it found passed by,
    "whole": digest of a table that is read whole}.
    """
    tables = context.config["tables"]
    table = defined(name, tables.get(name) if isinstance(tables, Mapping) else tables)
    if context.config["domain"] not in DOMAINS:
        raise Problem(
            f"sources.{NAME}: there is no domain {context.config['domain']!r}", f"There are: {', '.join(DOMAINS)}"
        )
    before = context.cursor if context.cursor.get("table") == table.identity else {}
    known = sql_columns.restored(context.cursor.get("columns", []))
    with opened(table) as reader:
        agreed = sql_columns.agree(table.name, known, reader.kinds, table.drift, table.key)
        if agreed.changes:
            anew = "; all rows are read once more" if agreed.anew and table.mode != "replace" else ""
            context.say(f"{table.name} has changed: {'; '.join(agreed.changes)}{anew}")
        if agreed.anew:
            before = {name: value for name, value in before.items() if name in ("compared", "passed")}
        base: Cursor = {"table": table.identity, "columns": sql_columns.stored(agreed.columns)}
        if table.mode == "replace":
            yield from _whole(reader, agreed, before, base)
        else:
            yield from _changed(reader, agreed, before, base, context)


def _whole(reader: Reader, agreed: Agreement, before: Cursor, base: Cursor) -> Iterator[Page]:
    """The table as pages, if it is not what it was. It waits on the disk until all of it has been read."""
    columns = _given(agreed)
    reader.check_key()
    with TemporaryDirectory(prefix="lyrebird-") as folder:
        paths: list[Path] = []
        state = hashlib.sha256()
        for batch in reader.whole(columns):
            body = sql_columns.encode(columns, batch)
            state.update(hashlib.sha256(body).digest())
            paths.append(Path(folder) / f"{len(paths):08d}")
            paths[-1].write_bytes(body)
        if state.hexdigest() == before.get("whole"):
            return
        cursor = base | {"whole": state.hexdigest()}
        for number, path in enumerate(paths, start=1):
            name = f"{reader.table.name}, part {number} of {len(paths)}"
            yield Page(name, path, cursor, ARROW, {"changes": agreed.changes} if number == 1 and agreed.changes else {})


def _changed(
    reader: Reader, agreed: Agreement, before: Cursor, base: Cursor, context: Context
) -> Iterator[Page | Gone]:
    """Rows behind the cursor; before them, when it is time, the keys that are gone."""
    table, now = reader.table, datetime.now(UTC)
    reader.check_order()
    if not before.get("at"):
        reader.check_key()
    compared = before.get("compared")
    position = {"at": before.get("at"), "young": before.get("young", [])}
    base = base | {"compared": compared or now.isoformat(), "passed": before.get("passed", "")}
    every = timedelta(hours=table.deletions)
    if table.mode == "merge" and every and compared and datetime.fromisoformat(compared) + every <= now:
        base = base | {"compared": now.isoformat()}
        position["young"] = []  # a row that is gone may come back as it was
        passed = yield from _compared(reader, agreed, base | position, context)
        base = base | {"passed": passed}
    yield from _newer(reader, agreed, position, base)


def _newer(reader: Reader, agreed: Agreement, start: Cursor, base: Cursor) -> Iterator[Page]:
    """Pages of rows behind the position, but for those that were read just so the last time.

    The next time reads on from the last row that is not young: from there, equal rows make equal pages.
    """
    table, columns = reader.table, _given(agreed)
    at, digests = start["at"], list[str]()
    meta = {"changes": agreed.changes} if agreed.changes else {}
    for number, (batch, young) in enumerate(_batches(reader, columns, _values(at))):
        body = sql_columns.encode(columns, [row[: len(columns)] for row in batch])
        digest = hashlib.sha256(body).hexdigest()[:16]
        last = batch[-1][len(columns) :]
        if not young:
            at = _stored(last)
        else:
            digests.append(digest)
        if start["young"][number : number + 1] != [digest]:
            young_pages = [*digests, *start["young"][number + 1 :]]  # those that follow may be as they were
            name = f"{table.name}, to {', '.join(map(str, last))}"
            yield Page(name, body, base | {"at": at, "young": young_pages[:YOUNG]}, ARROW, meta)
            meta = {}


def _batches(
    reader: Reader, columns: Sequence[Column], position: Sequence[Any] | None
) -> Iterator[tuple[Sequence[Row], bool]]:
    """Rows behind the position, and whether they are young. The first young one begins a batch."""
    bound = reader.first_young()
    young = ended = False
    while not ended:
        batch, ended = reader.page(columns, position)
        moments = [reader.moment(row[len(columns)]) for row in batch]
        cut = next((i for i, moment in enumerate(moments) if not young and bound is not None and moment >= bound), None)
        if cut is not None:
            batch, ended = batch[:cut], False
        if batch:
            yield batch, young
            before, position = position, batch[-1][len(columns) :]
            if position == before and not ended:  # the driver rounds them
                raise Problem(
                    f"{reader.table.name}: more than a page of rows have the values {', '.join(map(str, position))}",
                    "Name columns in `cursor` and `key` that tell them apart, or set a larger `batch`",
                )
        young = young or cut is not None


def _compared(reader: Reader, agreed: Agreement, cursor: Cursor, context: Context) -> Generator[Page | Gone, None, str]:
    """Deletions of the keys that the warehouse has and the table has not; rows that only the table has and that were
    passed by; and a page that says what was compared. Returns a digest of the keys of those rows.
    """
    table = reader.table
    withdrawn = Withdrawn.read(Objects(context.settings), NAME, table.name)
    by_name = {column.of: column for column in agreed.columns if column.given}
    columns = [by_name[name] for name in table.key]
    with closing(context.warehouse()) as db, db, db.cursor() as sql:
        sql.execute("create temporary table there (key text, read boolean) on commit drop")
        for batch in reader.keys(columns, _values(cursor["at"])):
            found = sql_columns.decode(sql_columns.encode(columns, [row[:-1] for row in batch]))
            keys = (_key(columns, one) if isinstance(one, dict) else None for one in found)
            lines = (
                f"{_digest(key)}\t{bool(row[-1]) and not withdrawn.has_key(key)}\n"
                for key, row in zip(keys, batch, strict=True)
                if key is not None  # one that raw cannot hold
            )
            sql.copy_expert("copy there from stdin", io.StringIO("".join(lines)))
        sql.execute("create index on there (key)")
        sql.execute("analyze there")
        sql.execute("select count(*), count(distinct key) from there")
        count, distinct = warehouse.first(sql)
        if distinct < count:
            raise Problem(
                f"{table.name}: the key ({', '.join(table.key)}) is not unique: {count - distinct:,} rows share theirs",
                "Name the columns that tell rows apart in `key`",
            )
        if not count:
            context.say(f"{table.name} is empty; its rows here are kept")
            return str(cursor["passed"])
        sql.execute(
            f"""
            create temporary table here on commit drop as
            select _key, md5(_key) as key from (
                select distinct on (r._key) r._key, r._deleted from raw."{NAME}_{table.name}" as r
                join ops.load as l on l.source = %s and l.load = r._load and l.state <> 'rejected'
                order by r._key, r._load desc, r._position desc
            ) as c where not _deleted
            """,
            (NAME,),
        )
        sql.execute("create index on here (key)")
        gone = 0
        with db.cursor("gone") as vanished:
            vanished.execute(
                "select _key from here where not exists (select from there where there.key = here.key) order by _key"
            )
            for (key,) in vanished:
                gone += 1
                yield Gone((key,), cursor)
        sql.execute(
            "select key from there where read and not exists (select from here where here.key = there.key) "
            "order by key limit %s",
            (MOST_PASSED,),
        )
        passed = {key for (key,) in sql}
    state = _digest("".join(sorted(passed))) if passed else ""
    if passed and state != cursor["passed"]:  # the same ones as the last time were no good
        yield from _passed(reader, agreed, columns, passed, withdrawn, cursor, context)
    cursor = cursor | {"passed": state}
    counts = {"keys": count, "gone": gone, "passed": len(passed), "at": cursor["compared"]}
    yield Page(
        f"{table.name}: {count:,} keys compared, {gone:,} gone, {len(passed):,} passed by",
        json.dumps(counts).encode(),
        cursor,
        "application/json",
        {"comparison": counts},
    )
    return state


def _passed(
    reader: Reader,
    agreed: Agreement,
    key: Sequence[Column],
    passed: Collection[str],
    withdrawn: Withdrawn,
    cursor: Cursor,
    context: Context,
) -> Iterator[Page]:
    """Rows up to the cursor whose keys have these digests. Most that are bad are in quarantine already: they are told
    of, and do not land once more, where a load of nothing else would be rejected.
    """
    columns, resource = _given(agreed), context.resource.known(cursor)
    landed = 0
    for number, batch in enumerate(reader.whole(columns, _values(cursor["at"])), start=1):
        found = sql_columns.decode(sql_columns.encode(columns, batch))
        kept = [
            row
            for row, record in zip(batch, found, strict=True)
            if isinstance(record, dict)
            and _digest(_key(key, record)) in passed
            and not rows.check(resource, record)
            and not withdrawn.by_field(record)
        ]
        if kept:
            name = f"{reader.table.name}, passed by, part {number}"
            yield Page(name, sql_columns.encode(columns, kept), cursor, ARROW)
            landed += len(kept)
    if bad := len(passed) - landed:
        context.say(f"{reader.table.name}: {bad:,} rows up to the cursor are not here, and are no good")


def _key(columns: Sequence[Column], record: Any) -> str:
    """A record's key as raw has it."""
    return rows.key_text(tuple(record.get(column.name) for column in columns))


def _digest(key: str) -> str:
    """A key in little room, as PostgreSQL's md5() has it: a key may be long, or hold what no text there can."""
    return hashlib.md5(key.encode(), usedforsecurity=False).hexdigest()


def parse(page: Landed) -> Iterator[Any]:
    """The page's rows: a batch, or records. A page that tells of a comparison of keys has none."""
    if "comparison" not in page.meta:
        yield from sql_columns.parsed(page.read())


def _given(agreed: Agreement) -> list[Column]:
    return [column for column in agreed.columns if column.given]


def _stored(position: Sequence[Any]) -> list[Any]:
    """A position as JSON keeps it: numbers and ordinary texts as they are, everything else told with its type."""
    return [value if isinstance(value, int) or _ordinary(value) else _told(value) for value in position]


def _ordinary(value: Any) -> bool:
    """Whether it is a text that JSON has no escapes for: PostgreSQL's cannot hold all of them."""
    return isinstance(value, str) and value.isprintable() and "\\" not in value


def _told(value: Any) -> dict[str, str]:
    for name, (kind, tell, _) in _TYPES.items():
        if isinstance(value, kind):
            return {name: tell(value)}
    raise Problem(
        f"the order of a table cannot be kept by a value of type {type(value).__name__}: {value!r:.60}",
        'Name other columns in `key` and `cursor`, or set mode = "replace" and no cursor',
    )


def _values(position: Sequence[Any] | None) -> list[Any] | None:
    if position is None:
        return None
    return [_TYPES[min(value)][2](value[min(value)]) if isinstance(value, dict) else value for value in position]


_TYPES: dict[str, tuple[Any, Callable[[Any], str], Callable[[str], Any]]] = {
    "datetime": (datetime, str, datetime.fromisoformat),
    "date": (date, str, date.fromisoformat),
    "decimal": (Decimal, str, Decimal),
    "float": (float, repr, float),
    "uuid": (UUID, str, UUID),
    "bytes": ((bytes, memoryview), lambda value: value.hex(), bytes.fromhex),
    "text": (str, lambda text: text.encode(*ANY_TEXT).hex(), lambda text: bytes.fromhex(text).decode(*ANY_TEXT)),
}


CONFIG: dict[str, tuple[Any, str]] = {
    "tables": (
        {},
        "[sources.sql_table.tables.<name>] for each table; its options: "
        + "; ".join(f"`{name}`: {text}" for name, text in OPTIONS.items()),
    ),
    "domain": ("text", "birds, music or text: whose models are built when a table has changed"),
}


def source(options: Mapping[str, Any]) -> Source:
    """The source with a resource for each table of the options. One that is listed wrongly says so when fetched."""
    tables = options.get("tables", {})
    tables = tables if isinstance(tables, Mapping) else {"tables": tables}
    domain = options.get("domain")
    return Source(
        name=NAME,
        title="Tables of other databases",
        domain=domain if domain in DOMAINS else "text",
        description="Tables and views of any database that SQLAlchemy has a driver for, as the options list them.",
        licence="as the owner of the database says",
        cadence="50 * * * *",
        cursor="values of the cursor columns of the last row, with what was read since the lag",
        volume="as many rows as there are, in the memory of a page",
        config=CONFIG,
        resources=tuple(_resource(name, values, number) for number, (name, values) in enumerate(tables.items())),
    )


def _resource(name: str, values: object, number: int) -> Resource:
    said = values if isinstance(values, Mapping) else {}
    key = said.get("key", [])
    key = [key] if isinstance(key, str) else key if isinstance(key, list) else []
    names = tuple(raw_name(str(column)) for column in key)
    mode: Any = said.get("mode")
    return Resource(
        name=name if rows.NAME.match(name) and len(name) <= LONGEST_NAME else f"wrong_{number}",
        schema=pa.schema([]),
        key=names,
        mode=mode if mode in get_args(Mode) else "merge",
        fetch=partial(_fetch, name),
        parse=parse,
        columns=partial(_schema, names),
        description=f"The table {said.get('table')} of another database.",
    )


def _schema(key: tuple[str, ...], cursor: Cursor) -> pa.Schema:
    return sql_columns.schema(sql_columns.restored(cursor.get("columns", [])), key)


def __getattr__(name: str) -> Source:
    """``SOURCE``, with the tables that the options file lists at the moment."""
    if name != "SOURCE":
        raise AttributeError(name)
    try:
        sources = given.options().get("sources")
    except Problem:
        sources = None  # whoever ingests anything is told
    options = sources.get(NAME) if isinstance(sources, Mapping) else None
    return source(options if isinstance(options, Mapping) else {})
