"""Another database, for reading: how a person lists a table of it, what it is like now, and its rows in order.

Every failure is one sentence, and no password is in it.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote, quote_plus

import sqlalchemy as sa
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ingestion import rows
from ingestion.sources import sql_columns
from ingestion.sources.sql_columns import Column, Drift
from storage.errors import Problem

Mode = Literal["append", "merge", "replace"]
LAG_SECONDS, LAG_VALUES = 300, 1_000
LARGE = 16 << 20  # bytes, about, at which a page ends before it has all of its rows
LONGEST_NAME = 41  # raw's name of the table is longer by the name of the source
NUMBERS, TIMES = ("bigint", "numeric"), ("timestamp", "timestamptz", "date")
STREAMED = {"stream_results": True}  # by a cursor of the server
Row = tuple[Any, ...]


def _listed(value: object) -> object:
    """A list of names, or one alone."""
    names = [value] if isinstance(value, str) else value
    return tuple(dict.fromkeys(names)) if isinstance(names, list) and all(isinstance(n, str) for n in names) else value


def _read(value: object) -> object:
    """The URL of a database; of a file so that SQLite makes no new one where there is none, and writes to none."""
    try:
        url = sa.make_url(value) if isinstance(value, str) else None
    except (sa.exc.ArgumentError, ValueError):
        url = None
    if url is None:
        raise ValueError("is no SQLAlchemy URL")
    if url.get_backend_name() != "sqlite":
        return url
    if not url.database or not Path(url.database).is_absolute():
        raise ValueError("names no file by its whole path")
    if not Path(url.database).is_file():
        raise ValueError(f"is of a file that is not there: {url.database}")
    return url.set(database=f"file:{quote(url.database)}", query={"mode": "ro", "uri": "true"})


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class Table(BaseModel):
    """A table as a person has listed it: the options and what they mean."""

    model_config = ConfigDict(frozen=True, strict=True, arbitrary_types_allowed=True)

    name: str
    url: Annotated[sa.URL, BeforeValidator(_read)] = Field(
        repr=False,
        description="SQLAlchemy URL of the database: postgresql+psycopg2://user:password@host/database, "
        "sqlite:////folder/file.db",
    )
    table: str = Field(
        min_length=1, description="the table or view, with its schema where that is not the default: sales.orders"
    )
    key: Names = Field(min_length=1, description="list of the columns that name a row")
    cursor: Names = Field(
        (),
        description="list of one or two columns that grow with every change: of times, numbers or texts; "
        "not for replace",
    )
    mode: Mode = Field(
        "merge", description="merge (rows change), append (rows are only added) or replace (read whole each time)"
    )
    lag: float | None = Field(
        None,
        ge=0,
        lt=1e9,
        description="how late a row may be committed: seconds before now for times "
        f"({LAG_SECONDS} if not given), values below the newest for numbers ({LAG_VALUES:,})",
    )
    batch: int = Field(10_000, ge=1, description="rows of a page at most")
    drift: Drift = Field(
        "evolve",
        description="columns that change: evolve (taken), freeze (refused, nothing is loaded) or discard (left out)",
    )
    columns: Names = Field((), description="list of the columns to take; all without it")
    deletions: float = Field(
        24, ge=0, lt=1e6, description="hours between two comparisons of all keys, in mode merge; 0 = never"
    )

    @property
    def place(self) -> tuple[str | None, str]:
        """The schema, where one is named, and the name there."""
        schema, _, name = self.table.rpartition(".")
        return schema or None, name

    @property
    def identity(self) -> str:
        """What a position in the table depends on."""
        return json.dumps([*self.place, self.key, self.cursor, self.mode])

    @property
    def order(self) -> tuple[str, ...]:
        """The cursor's columns, and those of the key that tell equal ones apart."""
        return tuple(dict.fromkeys((*self.cursor, *self.key)))


OPTIONS = {name: str(field.description) for name, field in Table.model_fields.items() if name != "name"}


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
    try:
        table = Table.model_validate({**values, "name": name})
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        option, what = str(wrong["loc"][0]), wrong["msg"]
        said = {"missing": "is missing", "value_error": what.removeprefix("Value error, ")}
        raise Problem(
            f"{where}: {option} {said.get(wrong['type'], f'cannot be so: {what}')}", f"{option}: {OPTIONS[option]}"
        ) from None
    if table.mode != "replace" and not 1 <= len(table.cursor) <= 2:
        raise Problem(
            f"{where}: the mode {table.mode} needs a cursor of one or two columns",
            'Set cursor = ["updated_at", "id"], or mode = "replace" for a table that says no times',
        )
    missing = set(table.order) - set(table.columns) if table.columns else set()
    if missing:
        raise Problem(f"{where}: columns leaves out {min(missing)}, which key or cursor need", "Add it")
    return table


@dataclass(frozen=True)
class Reader:
    """A connection to the table's database, and what the table is like now."""

    table: Table
    db: sa.Connection
    now: datetime  # when it was opened, by its own clock
    ahead: timedelta  # of UTC: the zone that it has by default
    kinds: dict[str, str]  # column -> kind
    expressions: dict[str, sa.ColumnElement[Any]]
    filled: frozenset[str]  # columns declared as not null
    unique: bool  # whether the database itself keeps the key unique

    @property
    def source(self) -> sa.TableClause:
        schema, name = self.table.place
        return sa.table(name, *map(sa.column, self.kinds), schema=schema)

    def scalar(self, statement: sa.Select[Any]) -> Any:
        found = self.db.execute(statement).scalar()
        self.db.rollback()  # no transaction stays open between two statements
        return found

    def page(self, columns: Sequence[Column], after: Sequence[Any] | None) -> tuple[list[Row], bool]:
        """Rows after a position, and whether they were the last.

        In the cursor's order: of each the columns' values, then those of the order as they are.
        """
        order: list[sa.ColumnClause[Any]] = [sa.column(name) for name in self.table.order]
        statement = sa.select(*self._selected(columns), *(c.label(f"at_{i}") for i, c in enumerate(order)))
        statement = statement.select_from(self.source).order_by(*order).limit(self.table.batch)
        if after is not None:
            statement = statement.where(_after(order, after))
        with closing(self._batches(statement)) as batches:
            batch = next(batches, [])
            return batch, len(batch) < self.table.batch and next(batches, None) is None

    def whole(self, columns: Sequence[Column], until: Sequence[Any] | None = None) -> Generator[list[Row]]:
        """All rows, by one statement, in the key's order and in batches: one state of the table.

        ``until`` is a position: then only rows that are not behind it.
        """
        statement = sa.select(*self._selected(columns)).select_from(self.source)
        if until is not None:
            statement = statement.where(sa.not_(_after([*map(sa.column, self.table.order)], until)))
        return self._batches(statement.order_by(*map(sa.column, self.table.key)))

    def keys(self, columns: Sequence[Column], position: Sequence[Any] | None) -> Generator[list[Row]]:
        """All keys in the same way; of each the columns' values, then 1 for a row up to the position, 0 behind it."""
        behind: sa.ColumnElement[int] = sa.literal(0)
        if position is not None:
            behind = sa.case((_after([*map(sa.column, self.table.order)], position), 0), else_=1)
        statement = sa.select(*self._selected(columns), behind.label("behind")).select_from(self.source)
        return self._batches(statement.order_by(*map(sa.column, self.table.key)))

    def _selected(self, columns: Sequence[Column]) -> list[sa.ColumnElement[Any]]:
        return [self.expressions[column.of].label(f"c_{i}") for i, column in enumerate(columns)]

    def _batches(self, statement: sa.Select[Any]) -> Generator[list[Row]]:
        """Rows as the server sends them: as many as a page has, or as have some bytes. No more are in memory."""
        batch: list[Row] = []
        size = 0
        try:
            with _values_of(self.table), self.db.execute(statement, execution_options=STREAMED) as found:
                for row in found:
                    batch.append(tuple(row))
                    size += sum(len(value) for value in row if isinstance(value, (str, bytes, memoryview)))
                    if len(batch) >= self.table.batch or size >= LARGE:
                        yield batch
                        batch, size = [], 0
            if batch:
                yield batch
        finally:
            self.db.rollback()

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

    def moment(self, value: Any) -> Any:
        """The value of the first cursor column as what it is declared to be.

        Raises Problem for another: SQLite takes any, and behind one that is out of order nothing would be found.
        """
        name = self.table.cursor[0]
        try:
            return sql_columns.converted(self.kinds[name], value)
        except (ValueError, OverflowError):
            raise Problem(
                f"{self.table.name}: the cursor column {name} holds {ascii(value)[:60]}, no {self.kinds[name]}",
                "Mend the value, or take another cursor",
            ) from None

    def first_young(self) -> Any:
        """The value of the first cursor column from which on rows are younger than the lag; None: there is no lag."""
        name, lag = self.table.cursor[0], self.table.lag
        kind = self.kinds[name]
        if kind in NUMBERS:
            newest = self.scalar(sa.select(sa.func.max(sa.column(name))).select_from(self.source))
            values = LAG_VALUES if lag is None else int(lag)
            return self.moment(newest) - values if newest is not None and values else None
        if kind not in TIMES or lag == 0:
            return None
        bound = self.now - timedelta(seconds=LAG_SECONDS if lag is None else lag)
        if kind == "timestamptz":
            return bound
        # a time without a zone may be meant in UTC or in the server's zone: the earlier of the two reads rows again,
        # the later would miss some
        naive = bound.replace(tzinfo=None) + min(self.ahead, timedelta())
        return naive.date() if kind == "date" else naive


def _clock(db: sa.Connection) -> tuple[datetime, timedelta]:
    """The time there, and how far the zone of its clock on the wall is ahead of UTC."""
    now: Any
    wall: Any
    db.rollback()
    if db.dialect.name == "postgresql":
        db.exec_driver_sql("set local timezone to default")
        now, wall = db.exec_driver_sql("select now, now::timestamp from clock_timestamp() as now").one()
    elif db.dialect.name == "sqlite":
        times = db.exec_driver_sql("select datetime('now') || 'Z', datetime('now', 'localtime')").one()
        now, wall = (datetime.fromisoformat(str(time)) for time in times)
    else:  # its time may have no zone: then our own clock tells which it is in
        now, wall = datetime.now(UTC), db.execute(sa.select(sa.func.current_timestamp())).scalar_one()
    db.rollback()
    return now.astimezone(UTC), wall.replace(tzinfo=UTC) - now


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
        if engine.dialect.name == "sqlite":
            sa.event.listen(engine, "connect", _read_any_bytes)
        if engine.dialect.name == "postgresql":
            sa.event.listen(engine, "begin", _only_read_in_utc)
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
    libpq = url.get_dialect().driver in ("psycopg2", "psycopg")
    return {"connect_timeout": 10, "application_name": "lyrebird"} if libpq else {}


def _only_read_in_utc(db: sa.Connection) -> None:
    """For one transaction, so that whoever gets the connection of a pooler next finds it as it was.

    In another zone the last moment of 9999 may be in the year 10000, for which Python has no time.
    """
    db.exec_driver_sql("select set_config('timezone', 'UTC', true), set_config('transaction_read_only', 'on', true)")


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
    schema, of = table.place
    if not inspector.has_table(of, schema):
        there = sorted(inspector.get_table_names(schema) + inspector.get_view_names(schema))
        raise Problem(
            f"{table.name}: there is no table {of}" + (f" in {schema}" if schema else ""),
            f"There are: {', '.join(there[:20]) or 'none'}" + (" and more" if len(there) > 20 else ""),
        )
    described = {column["name"]: column for column in inspector.get_columns(of, schema)}
    for role in ("key", "cursor", "columns"):
        missing = [name for name in getattr(table, role) if name not in described]
        if missing:
            raise Problem(
                f"{table.name}: {of} has no column {missing[0]}, which `{role}` names",
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
    unique = [set(inspector.get_pk_constraint(of, schema)["constrained_columns"])]
    unique += [set(one["column_names"]) for one in inspector.get_unique_constraints(of, schema)]
    filled = frozenset(name for name, column in described.items() if not column["nullable"])
    return Reader(
        table,
        db,
        *_clock(db),
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
