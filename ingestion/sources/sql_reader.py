"""Another database, for reading: how a person lists a table of it, what it is like now, and its rows in order.

Every failure is one sentence, and no password is in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import quote, quote_plus

import sqlalchemy as sa

from ingestion import rows
from ingestion.sources import sql_columns
from ingestion.sources.sql_columns import Column, Drift
from storage.errors import Problem

Mode = Literal["append", "merge", "replace"]
LAG_SECONDS, LAG_VALUES = 300, 1_000
LONGEST_NAME = 41  # raw's name of the table is longer by the name of the source
NUMBERS, TIMES = ("bigint", "numeric"), ("timestamp", "timestamptz", "date")


@dataclass(frozen=True)
class Table:
    """A table as a person has listed it."""

    name: str
    url: sa.URL = field(repr=False)
    table: str
    schema: str | None
    key: tuple[str, ...]
    cursor: tuple[str, ...]
    mode: Mode
    lag: float | None
    batch: int
    drift: Drift
    columns: tuple[str, ...]
    deletions: timedelta

    @property
    def identity(self) -> str:
        """What a position in the table depends on."""
        return json.dumps([self.schema, self.table, self.key, self.cursor, self.mode])

    @property
    def order(self) -> tuple[str, ...]:
        """The cursor's columns, and those of the key that tell equal ones apart."""
        return tuple(dict.fromkeys((*self.cursor, *self.key)))


def defined(name: str, values: object) -> Table:
    """A table of the options file. Raises Problem that names the table and what is wrong with it."""
    where = f"sources.sql_table.tables.{name}"
    if rows.NAME.match(name) is None or len(name) > LONGEST_NAME:
        raise Problem(
            f"{where}: {name!r} is no name for a table",
            f"Begin with a letter, go on with a-z, 0-9 and _, at most {LONGEST_NAME} characters",
        )
    if not isinstance(values, Mapping):
        raise Problem(f"{where} is no table of options", f"Write [{where}] with url, table and key")
    unknown = values.keys() - OPTIONS.keys()
    if unknown:
        raise Problem(f"{where} has no option {min(unknown)}", f"Its options: {', '.join(OPTIONS)}")
    for option in ("url", "table", "key"):
        if not values.get(option):
            raise Problem(f"{where}: {option} is missing", f"{option}: {OPTIONS[option]}")
    schema, _, table = _text(where, values, "table").rpartition(".")
    found = Table(
        name=name,
        url=_url(where, _text(where, values, "url")),
        table=table,
        schema=schema or None,
        key=_names(where, values, "key"),
        cursor=_names(where, values, "cursor"),
        mode=_choice(where, values, "mode", get_args(Mode), "merge"),
        lag=_number(where, values, "lag", None),
        batch=int(_number(where, values, "batch", 10_000) or 1),
        drift=_choice(where, values, "drift", get_args(Drift), "evolve"),
        columns=_names(where, values, "columns"),
        deletions=timedelta(hours=_number(where, values, "deletions", 24) or 0),
    )
    if found.mode != "replace" and not 1 <= len(found.cursor) <= 2:
        raise Problem(
            f"{where}: the mode {found.mode} needs a cursor of one or two columns",
            'Set cursor = ["updated_at", "id"], or mode = "replace" for a table that says no times',
        )
    missing = set(found.order) - set(found.columns) if found.columns else set()
    if missing:
        raise Problem(f"{where}: columns leaves out {min(missing)}, which key or cursor need", "Add it")
    return found


OPTIONS = {
    "url": "SQLAlchemy URL of the database, such as postgresql+psycopg2://user:password@host/database",
    "table": "the table or view, with its schema where that is not the default: sales.orders",
    "key": "list of the columns that name a row",
    "cursor": "list of one or two columns that grow with every change: of times, numbers or texts; not for replace",
    "mode": "merge (rows change), append (rows are only added) or replace (read whole each time)",
    "lag": "how late a row may be committed: seconds before now for times, values below the newest for numbers",
    "batch": "rows of a page at most",
    "drift": "columns that change: evolve (taken), freeze (refused, nothing is loaded) or discard (left out)",
    "columns": "list of the columns to take; all without it",
    "deletions": "hours between two comparisons of all keys, in mode merge; 0 = never",
}


def _text(where: str, values: Mapping[str, Any], option: str) -> str:
    value = values[option]
    if not isinstance(value, str):
        raise Problem(f"{where}: {option} is no text", f"{option}: {OPTIONS[option]}")
    return value


def _names(where: str, values: Mapping[str, Any], option: str) -> tuple[str, ...]:
    value = values.get(option, [])
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise Problem(f"{where}: {option} is no list of names", f"{option}: {OPTIONS[option]}")
    return tuple(dict.fromkeys(value))


def _number(where: str, values: Mapping[str, Any], option: str, default: float | None) -> float | None:
    value = values.get(option, default)
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9):
        raise Problem(f"{where}: {option} is no number from 0", f"{option}: {OPTIONS[option]}")
    return value


def _choice(where: str, values: Mapping[str, Any], option: str, choices: tuple[Any, ...], default: Any) -> Any:
    value = values.get(option, default)
    if value not in choices:
        raise Problem(f"{where}: there is no {option} {value!r}", f"There are: {', '.join(choices)}")
    return value


def _url(where: str, text: str) -> sa.URL:
    try:
        url = sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError):
        raise Problem(f"{where}: url is no SQLAlchemy URL", f"url: {OPTIONS['url']}") from None
    if url.get_backend_name() == "sqlite":
        if not url.database or not Path(url.database).is_absolute():
            raise Problem(f"{where}: url names no file by its whole path", "Write sqlite:////folder/file.db")
        if not Path(url.database).is_file():
            raise Problem(f"{where}: there is no file {url.database}", "Mend the url")
        # by this form of the name SQLite makes no new file where there is none, and writes to none
        return url.set(database=f"file:{quote(url.database)}", query={"mode": "ro", "uri": "true"})
    return url


@dataclass(frozen=True)
class Reader:
    """A connection to the table's database, and what the table is like now."""

    table: Table
    db: sa.Connection
    kinds: dict[str, str]  # column -> kind
    expressions: dict[str, sa.ColumnElement[Any]]
    filled: frozenset[str]  # columns declared as not null
    unique: bool  # whether the database itself keeps the key unique

    @property
    def source(self) -> sa.TableClause:
        return sa.table(self.table.table, *map(sa.column, self.kinds), schema=self.table.schema)

    def scalar(self, statement: sa.Select[Any]) -> Any:
        found = self.db.execute(statement).scalar()
        self.db.rollback()  # no transaction stays open between two statements
        return found

    def page(self, columns: Sequence[Column], after: Sequence[Any] | None, limit: int) -> list[tuple[Any, ...]]:
        """Rows after a position, in the cursor's order: the columns' values, then those of the order as they are."""
        order: list[sa.ColumnClause[Any]] = [sa.column(name) for name in self.table.order]
        statement = sa.select(*self._selected(columns), *(c.label(f"at_{i}") for i, c in enumerate(order)))
        statement = statement.select_from(self.source).order_by(*order).limit(limit)
        if after is not None:
            statement = statement.where(_after(order, after))
        with _values_of(self.table):
            found = [tuple(row) for row in self.db.execute(statement)]
        self.db.rollback()
        return found

    def whole(self, columns: Sequence[Column], limit: int) -> Iterator[list[tuple[Any, ...]]]:
        """All rows, by one statement, in the key's order and in batches: one state of the table."""
        statement = sa.select(*self._selected(columns)).select_from(self.source)
        statement = statement.order_by(*map(sa.column, self.table.key))
        options = {"stream_results": True, "max_row_buffer": limit}
        with _values_of(self.table):
            result = self.db.execute(statement, execution_options=options)
        with result:
            while True:
                with _values_of(self.table):
                    batch = [tuple(row) for row in result.fetchmany(limit)]
                if not batch:
                    break
                yield batch
        self.db.rollback()

    def _selected(self, columns: Sequence[Column]) -> list[sa.ColumnElement[Any]]:
        return [self.expressions[column.of].label(f"c_{i}") for i, column in enumerate(columns)]

    def check_order(self) -> None:
        """Raise Problem where a row could not be found by the order, or two could not be told apart."""
        for name in self.table.order:
            if name not in self.filled:
                holds: sa.Select[Any] = (
                    sa.select(sa.literal_column("1")).select_from(self.source).where(sa.column(name).is_(None))
                )
                if self.scalar(holds.limit(1)) is not None:
                    role = "cursor" if name in self.table.cursor else "key"
                    raise Problem(
                        f"{self.table.name}: the {role} column {name} holds NULL, and such rows would never be read",
                        f'Fill it, take another {role}, or set mode = "replace"' if role == "cursor" else "Fill it",
                    )

    def check_key(self) -> None:
        """Raise Problem when two rows have the same key; where the database forbids it, nothing is asked."""
        if self.unique:
            return
        key: list[sa.ColumnClause[Any]] = [sa.column(name) for name in self.table.key]
        twice = sa.select(*key).select_from(self.source).group_by(*key).having(sa.func.count() > 1).limit(1)
        found = self.db.execute(twice).first()
        self.db.rollback()
        if found is not None:
            shown = ", ".join(str(value)[:60] for value in found)
            raise Problem(
                f"{self.table.name}: the key ({', '.join(self.table.key)}) is not unique: {shown} is there twice",
                "Name the columns that tell rows apart in `key`",
            )

    def first_young(self, kind: str) -> Any:
        """The value of the first cursor column from which on rows are younger than the lag; None: there is no lag."""
        if kind in NUMBERS:
            newest = self.scalar(sa.select(sa.func.max(sa.column(self.table.cursor[0]))).select_from(self.source))
            lag = LAG_VALUES if self.table.lag is None else int(self.table.lag)
            try:
                newest = sql_columns.converted(kind, newest)
            except (ValueError, OverflowError):
                raise Problem(
                    f"{self.table.name}: the cursor column {self.table.cursor[0]} holds {newest!r:.60}, no {kind}",
                    "Mend the value, or take another cursor",
                ) from None
            return newest - lag + 1 if newest is not None and lag else None
        if kind not in TIMES:
            return None
        lag_seconds = LAG_SECONDS if self.table.lag is None else self.table.lag
        aware, local = self._clock()
        if kind == "timestamptz":
            return aware - timedelta(seconds=lag_seconds) if lag_seconds else None
        # a time without a zone may be meant in UTC or in the server's zone: the earlier of the two reads rows again,
        # the later would miss some
        naive = min(aware.replace(tzinfo=None), local) - timedelta(seconds=lag_seconds)
        return None if not lag_seconds else naive.date() if kind == "date" else naive

    def _clock(self) -> tuple[datetime, datetime]:
        """The server's time: in UTC, and as its clock on the wall shows it."""
        aware: Any
        local: Any
        backend = self.db.engine.url.get_backend_name()
        if backend == "postgresql":
            aware, local = self.db.exec_driver_sql("select clock_timestamp(), localtimestamp").one()
        elif backend == "sqlite":
            times = self.db.exec_driver_sql("select datetime('now'), datetime('now', 'localtime')").one()
            aware, local = (datetime.fromisoformat(str(time)) for time in times)
        else:
            now: Any = self.db.execute(sa.select(sa.func.current_timestamp())).scalar_one()
            aware = local = now
        self.db.rollback()
        aware = aware.astimezone(UTC) if aware.tzinfo else aware.replace(tzinfo=UTC)
        return aware, local.replace(tzinfo=None)


def _after(order: Sequence[sa.ColumnClause[Any]], position: Sequence[Any]) -> sa.ColumnElement[bool]:
    """Rows behind a position. The first comparison says nothing new: it is what an index on the cursor is found by."""
    ways = [
        sa.and_(
            *(column == value for column, value in zip(order[:i], position[:i], strict=True)), order[i] > position[i]
        )
        for i in range(len(order))
    ]
    return sa.and_(order[0] >= position[0], sa.or_(*ways))


@contextmanager
def opened(table: Table) -> Iterator[Reader]:
    """The table's database, for reading. Whatever fails there is one sentence without the password.

    Raises Problem for a driver that is missing, a server that does not answer, a table or column that is not there.
    """
    try:
        engine = sa.create_engine(table.url, poolclass=sa.NullPool, connect_args=_arguments(table.url))
        if engine.dialect.is_async:
            raise Problem(f"{table.name}: the driver {table.url.drivername} is asynchronous", "Name another one")
        if table.url.get_backend_name() == "sqlite":
            sa.event.listen(engine, "connect", _read_any_bytes)
        with engine.connect() as db:
            yield _looked_at(table, db)
    except sa.exc.NoSuchModuleError:
        raise Problem(f"{table.name}: SQLAlchemy knows no database {table.url.drivername}", "Mend the url") from None
    except ModuleNotFoundError as error:
        raise Problem(
            f"{table.name}: the driver of {table.url.drivername} is not installed", f"pip install {error.name}"
        ) from None
    except sa.exc.SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip() or type(error).__name__
        where = f"{table.url.get_backend_name()} at {table.url.host or 'this machine'}"
        raise Problem(
            f"{table.name}: {where} says: {_without_secrets(reason.splitlines()[0], table.url)}",
            "Nothing of it was loaded; run it again when that is mended",
        ) from None


@contextmanager
def _values_of(table: Table) -> Iterator[None]:
    """Python has no day before the year 1, and a driver says so of the whole batch."""
    try:
        yield
    except (ValueError, OverflowError) as error:
        raise Problem(
            f"{table.name}: a value cannot be read: {str(error).splitlines()[0]}",
            "Mend it, or leave its column out of `columns`",
        ) from None


def _arguments(url: sa.URL) -> dict[str, Any]:
    if url.get_dialect().driver == "psycopg2" and "options" not in url.query:
        options = "-c default_transaction_read_only=on -c timezone=UTC"
        return {"connect_timeout": 10, "application_name": "lyrebird", "options": options}
    return {}


def _read_any_bytes(connection: Any, _record: object) -> None:
    """SQLite keeps bytes as text, too: what is no UTF-8 is told from text by halves of UTF-16 pairs."""
    connection.text_factory = lambda value: value.decode("utf-8", "surrogateescape")


def _without_secrets(text: str, url: sa.URL) -> str:
    secrets = [str(url.password or ""), *(str(value) for value in url.query.values())]
    for secret in sorted({form for one in secrets for form in (one, quote(one), quote_plus(one))}, key=len)[::-1]:
        if secret and secret not in ("ro", "true"):
            text = text.replace(secret, "***")
    return text


def _looked_at(table: Table, db: sa.Connection) -> Reader:
    """The table as its database describes it now."""
    inspector = sa.inspect(db)
    if not inspector.has_table(table.table, table.schema):
        there = sorted(inspector.get_table_names(table.schema) + inspector.get_view_names(table.schema))
        raise Problem(
            f"{table.name}: there is no table {table.table}" + (f" in {table.schema}" if table.schema else ""),
            f"There are: {', '.join(there[:20]) or 'none'}" + (" and more" if len(there) > 20 else ""),
        )
    described = {column["name"]: column for column in inspector.get_columns(table.table, table.schema)}
    for role in ("key", "cursor", "columns"):
        missing = [name for name in getattr(table, role) if name not in described]
        if missing:
            raise Problem(
                f"{table.name}: {table.table} has no column {missing[0]}, which `{role}` names",
                f"It has: {', '.join(described)}",
            )
    taken = {name: described[name] for name in table.columns or described}
    kinds = {name: sql_columns.kind_of(column["type"]) for name, column in taken.items()}
    for name in table.cursor:
        if kinds[name] not in (*NUMBERS, *TIMES, "text"):
            raise Problem(
                f"{table.name}: the cursor column {name} is of type {described[name]['type']}",
                "Take a column of times, whole numbers or texts",
            )
    unique = [set(inspector.get_pk_constraint(table.table, table.schema)["constrained_columns"])]
    unique += [set(one["column_names"]) for one in inspector.get_unique_constraints(table.table, table.schema)]
    filled = frozenset(name for name, column in described.items() if not column["nullable"])
    db.rollback()
    return Reader(
        table,
        db,
        kinds,
        {name: _expression(column["type"], name, db) for name, column in taken.items()},
        # SQLite lets a primary key hold NULL, whatever it says
        filled if db.dialect.name != "sqlite" else frozenset(),
        any(columns and columns <= set(table.key) and columns <= filled for columns in unique),
    )


def _expression(type_: sa.types.TypeEngine[Any], name: str, db: sa.Connection) -> sa.ColumnElement[Any]:
    """How a column is asked for: as it is, or as text where the driver would make an object of its own of it."""
    column: sa.ColumnElement[Any] = sa.column(name)
    if db.dialect.name != "postgresql":
        return column
    if isinstance(type_, sa.ARRAY):
        return sa.cast(sa.func.to_json(column), sa.Text)
    kind = sql_columns.kind_of(type_)
    return (
        sa.cast(column, sa.Text) if kind == "json" or (kind == "text" and not isinstance(type_, sa.String)) else column
    )
