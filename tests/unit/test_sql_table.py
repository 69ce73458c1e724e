"""Tables of other databases without servers: paging, positions, columns that change, and rows through Arrow."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import mysql, postgresql
from upstreams.landed_bytes import LandedBytes

from ingestion import loading, rows
from ingestion.contract import Bad, BadPage, Context, Gone, Page, Source
from ingestion.sources import sql_columns, sql_reader, sql_table
from ingestion.sources.sql_columns import Column, agree, raw_name
from storage.errors import Problem
from storage.settings import Settings

# ---------------------------------------------------------------- rows as Arrow

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "boolean": st.booleans(),
    "bigint": st.integers(-(2**63), 2**63 - 1),
    "double": st.floats(allow_nan=False, allow_infinity=False),
    "numeric": st.decimals(-(10**40), 10**40, places=20) | st.integers(-(10**90), 10**90).map(Decimal),
    "date": st.dates(),
    "timestamp": st.datetimes(),
    "timestamptz": st.datetimes(min_value=datetime(2, 1, 1), max_value=datetime(9998, 1, 1), timezones=st.timezones()),
    "bytes": st.binary(),
    "json": st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | st.text(), st.lists).map(json.dumps),
    "text": st.text(),
}  # fmt: skip
ANYTHING = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.decimals() | st.dates()
    | st.datetimes() | st.times() | st.timedeltas() | st.uuids() | st.lists(st.integers())
    | st.sampled_from(["\udcff", "2024-01-01", "2024-01-01T00:00:00Z", "NaN", "1e999999999", 2**63])
)  # fmt: skip
COLUMNS = [Column(kind, kind, kind) for kind in VALUES]


@seed(1)
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*(st.none() | VALUES[column.kind] for column in COLUMNS)), max_size=5))
def test_rows_come_back_from_arrow_as_they_were(given_rows: list[tuple[Any, ...]]) -> None:
    found = list(sql_columns.decode(sql_columns.encode(COLUMNS, given_rows)))
    assert found == [
        {
            # in another zone a time of the hour that is there twice equals nothing
            column.name: value.astimezone(UTC) if column.kind == "timestamptz" else value
            for column, value in zip(COLUMNS, row, strict=True)
            if value is not None
        }
        for row in given_rows
    ]
    schema = sql_columns.schema(COLUMNS, ())
    resource = sql_table.source({"tables": {"t": {"key": ["text"]}}}).resources[0]
    for record in found:
        assert isinstance(record, dict)
        reason = rows.check(_with(resource, schema), record)
        assert reason == "" or "NUL" in reason or "UTF-16" in reason, reason


def _with(resource: Any, schema: Any) -> Any:
    from dataclasses import replace

    return replace(resource, schema=schema)


@seed(2)
@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(VALUES)), st.lists(ANYTHING, min_size=1, max_size=6))
def test_whatever_a_column_holds_is_a_record_or_is_said_to_be_bad(kind: str, values: list[Any]) -> None:
    body = sql_columns.encode([Column("id", "id", "bigint"), Column("x", "x", kind)], list(enumerate(values)))
    assert body == sql_columns.encode([Column("id", "id", "bigint"), Column("x", "x", kind)], list(enumerate(values)))
    found = list(sql_columns.decode(body))
    assert len(found) == len(values)
    resource = sql_table.source({"tables": {"t": {"key": ["id"]}}}).resources[0]
    schema = sql_columns.schema([Column("id", "id", "bigint"), Column("x", "x", kind)], ("id",))
    for record in found:
        if isinstance(record, Bad):
            assert record.reason.startswith(f"x is no {kind}: ")
            assert "\n" not in record.reason
        elif not rows.check(_with(resource, schema), record):
            batch = rows.batch_of(_with(resource, schema), [record])
            assert rows.copy_bytes(rows.data_columns(_with(resource, schema)), batch)
            assert [len(found) for found in rows.hashes(batch).to_pylist()] == [16]


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("boolean", 1, True), ("double", 3, 3.0), ("numeric", 0.1, Decimal("0.1")), ("numeric", 5, Decimal(5)),
        ("numeric", "1.50", Decimal("1.5")), ("numeric", Decimal("-0.00"), Decimal(0)),
        ("numeric", 1e22, Decimal(10**22)),
        ("date", "2024-02-29", date(2024, 2, 29)), ("timestamp", "2024-02-29T01:02", datetime(2024, 2, 29, 1, 2)),
        ("timestamp", "2024-02-29T01:02+02:00", datetime(2024, 2, 28, 23, 2)),
        ("timestamp", date(2024, 2, 29), datetime(2024, 2, 29)),
        ("timestamptz", "2024-01-01T00:00+02:00", datetime(2023, 12, 31, 22, tzinfo=UTC)),
        ("bytes", memoryview(b"\x00x"), b"\x00x"), ("json", [1, "ä"], '[1, "ä"]'), ("json", {"a": None}, '{"a": null}'),
        ("text", UUID(int=1), "00000000-0000-0000-0000-000000000001"), ("text", 5, "5"),
    ],
)  # fmt: skip
def test_values_that_a_driver_gives_in_another_form(kind: str, value: Any, expected: Any) -> None:
    (record,) = sql_columns.decode(sql_columns.encode([Column("x", "x", kind)], [(value,)]))
    assert isinstance(record, dict)
    assert record["x"] == expected
    assert str(record["x"]) == str(expected)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("boolean", 2), ("boolean", "t"), ("bigint", True), ("bigint", 1.0), ("bigint", 2**63), ("double", 2**53 + 1),
        ("double", "1"), ("numeric", Decimal("NaN")), ("numeric", True), ("numeric", "1e5000"), ("date", "today"),
        ("date", datetime(2024, 1, 1)), ("timestamp", 1700000000), ("timestamptz", datetime(2024, 1, 1)),
        ("bytes", "text"), ("text", b"bytes"), ("text", "\udcff"), ("json", "\udcff"),
    ],
)  # fmt: skip
def test_values_that_are_none_of_their_columns(kind: str, value: Any) -> None:
    (record,) = sql_columns.decode(sql_columns.encode([Column("X", "x", kind)], [(value,)]))
    assert isinstance(record, Bad)
    assert record.reason.startswith(f"x is no {kind}: {ascii(value)[:60]}")


@pytest.mark.parametrize("text", ["{", '{"a": "\\u0000"}', '"\\ud800"', "[1e999]", "[" * 5000, f"[{2**64}]", "NaN"])
def test_json_that_postgres_would_refuse_is_refused_alone(text: str) -> None:
    schema = sql_columns.schema([Column("x", "x", "json")], ())
    resource = _with(sql_table.source({"tables": {"t": {}}}).resources[0], schema)
    assert "JSON" in rows.check(resource, {"x": text})
    assert rows.check(resource, {"x": '{"a": [1, "ä", null, 1.5]}'}) == ""


def test_a_page_that_is_no_arrow_is_a_bad_page() -> None:
    body = sql_columns.encode([Column("x", "x", "text")], [("a" * 1000,)])
    for damaged in (b"", b"no arrow", body[:200]):
        with pytest.raises(BadPage, match="no Arrow stream"):
            list(sql_table.parse(LandedBytes(damaged)))


def test_a_page_that_tells_of_a_comparison_has_no_records() -> None:
    assert list(sql_table.parse(LandedBytes(b"{}", comparison={"keys": 1}))) == []


# ---------------------------------------------------------------- names and types


@seed(3)
@settings(max_examples=200, deadline=None)
@given(st.text())
def test_every_name_becomes_one_that_raw_takes(name: str) -> None:
    made = raw_name(name)
    assert rows.NAME.match(made)
    assert rows.NAME.match(f"{made}__timestamptz")
    assert raw_name(made) == made


@pytest.mark.parametrize(
    ("name", "made"),
    [("userId", "user_id"), ("ID", "id"), ("Order ID", "order_id"), ("_load", "load"), ("2fast", "c_2fast"),
     ("HTTPServer2Go", "httpserver2_go")],
)  # fmt: skip
def test_names_are_made_plain(name: str, made: str) -> None:
    assert raw_name(name) == made
    assert raw_name("x" * 60) != raw_name("x" * 61)


@pytest.mark.parametrize(
    ("type_", "kind"),
    [
        (sa.Boolean(), "boolean"), (sa.SmallInteger(), "bigint"), (sa.Float(), "double"), (sa.Double(), "double"),
        (sa.Numeric(10, 2), "numeric"), (sa.DateTime(), "timestamp"), (sa.DateTime(timezone=True), "timestamptz"),
        (sa.Date(), "date"), (sa.Time(), "text"), (sa.JSON(), "json"), (sa.ARRAY(sa.Integer()), "json"),
        (sa.LargeBinary(), "bytes"), (sa.VARBINARY(), "bytes"), (sa.String(3), "text"), (sa.Uuid(), "text"),
        (sa.Interval(), "text"), (sa.types.NullType(), "text"),
        (postgresql.DOMAIN("d", sa.Integer()), "bigint"),
        (mysql.BIGINT(unsigned=True), "numeric"), (mysql.INTEGER(unsigned=True), "bigint"),
    ],
)  # fmt: skip
def test_types_have_kinds(type_: Any, kind: str) -> None:
    assert sql_columns.kind_of(type_) == kind


# ---------------------------------------------------------------- drift

KIND = st.sampled_from(list(sql_columns.KINDS))
TABLES = st.dictionaries(st.sampled_from(["id", "a", "b", "c"]), KIND, min_size=1).map(lambda t: t | {"id": "bigint"})


@seed(4)
@settings(max_examples=200, deadline=None)
@given(st.lists(TABLES, min_size=1, max_size=5))
def test_evolve_gives_every_column_of_every_state_a_place_that_holds_it(states: list[dict[str, str]]) -> None:
    known: list[Column] = []
    for found in states:
        agreed = agree("t", known, found, "evolve", ["id"])
        now = {column.of: column for column in agreed.columns if column.given}
        assert {of: now[of].of for of in found} == {of: of for of in now}
        for of, kind in found.items():
            assert now[of].kind == kind or (now[of].kind, kind) in sql_columns.HOLDS
        names = [column.name for column in agreed.columns]
        assert len(set(names)) == len(names)
        for before in known:  # a place is kept, and at most gets wider
            after = next(column for column in agreed.columns if column.name == before.name)
            assert after.kind == before.kind or (before.kind, after.kind) in sql_columns.WIDENS
        again = agree("t", agreed.columns, found, "evolve", ["id"])
        assert (again.changes, again.anew) == ([], False)
        assert bool(agreed.changes) == (bool(known) and _differs(known, found))
        known = sql_columns.restored(json.loads(json.dumps(sql_columns.stored(agreed.columns))))


def _differs(known: list[Column], found: dict[str, str]) -> bool:
    before = {column.of: column.kind for column in known if column.given}
    held = all(
        of in before and (before[of] == kind or (before[of], kind) in sql_columns.HOLDS) for of, kind in found.items()
    )
    return not held or before.keys() != found.keys()


@seed(5)
@settings(max_examples=200, deadline=None)
@given(TABLES, TABLES)
def test_freeze_takes_what_does_not_differ_and_refuses_the_rest(one: dict[str, str], two: dict[str, str]) -> None:
    known = agree("t", [], one, "freeze", ["id"]).columns
    if _differs(known, two):
        with pytest.raises(Problem, match="t is frozen and has changed"):
            agree("t", known, two, "freeze", ["id"])
    else:
        assert agree("t", known, two, "freeze", ["id"]).changes == []


@seed(6)
@settings(max_examples=200, deadline=None)
@given(TABLES, TABLES)
def test_discard_never_has_a_column_that_was_not_there_at_first(one: dict[str, str], two: dict[str, str]) -> None:
    known = agree("t", [], one, "discard", ["id"]).columns
    agreed = agree("t", known, two, "discard", ["id"])
    assert {(column.name, column.kind) for column in agreed.columns} == {(c.name, c.kind) for c in known}
    assert not agreed.anew
    assert bool(agreed.changes) == _differs(known, two)


def test_a_key_keeps_its_type_and_its_column() -> None:
    known = agree("t", [], {"id": "bigint", "a": "text"}, "evolve", ["id"]).columns
    for found in ({"id": "text", "a": "text"}, {"id": "numeric", "a": "text"}, {"a": "text"}):
        for mode in ("evolve", "discard", "freeze"):
            with pytest.raises(Problem, match="the key has changed"):
                agree("t", known, found, mode, ["id"])  # type: ignore[arg-type]
    with pytest.raises(Problem, match="userId and user_id would both be called user_id"):
        agree("t", known, {"id": "bigint", "a": "text", "userId": "text", "user_id": "text"}, "evolve", ["id"])


# ---------------------------------------------------------------- positions and paging

POSITION: st.SearchStrategy[Any] = (
    st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.datetimes() | st.dates()
)
POSITION |= st.datetimes(timezones=st.just(UTC)) | st.decimals(allow_nan=False) | st.uuids() | st.binary()
POSITION |= st.sampled_from(["a\x00b", "\udcff", "\\u0000", "'", "\u2400"])


@seed(7)
@settings(max_examples=200, deadline=None)
@given(st.lists(POSITION, max_size=4))
def test_a_position_survives_json(position: list[Any]) -> None:
    text = json.dumps(sql_table._stored(position))
    assert loading._jsonb(json.loads(text)) == text  # as PostgreSQL holds it, no sign is another
    found = sql_table._values(json.loads(text))
    assert found == position
    assert list(map(type, found or [])) == list(map(type, position))


def test_a_position_that_cannot_be_kept_is_one_sentence() -> None:
    with pytest.raises(Problem, match=r"order of a table cannot be kept by a value of type list: \[1, 2\]"):
        sql_table._stored([1, [1, 2]])


@seed(8)
@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), unique=True), st.integers(1, 3))
def test_rows_behind_a_position_are_those_of_the_order(values: list[tuple[int, ...]], width: int) -> None:
    engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    order: list[sa.ColumnClause[Any]] = [sa.column(name) for name in ("a", "b", "c")[:width]]
    with engine.connect() as db:
        db.exec_driver_sql("create table t (a, b, c)")
        for row in values:
            db.exec_driver_sql("insert into t values (?, ?, ?)", row)
        for position in {row[:width] for row in values}:
            statement: Any = sa.select(sa.literal_column("a"), sa.literal_column("b"), sa.literal_column("c"))
            found = db.execute(statement.select_from(sa.table("t")).where(sql_reader._after(order, position)))
            assert {tuple(row) for row in found} == {row for row in values if row[:width] > position}


def fetched(options: dict[str, Any], cursor: dict[str, Any]) -> Iterator[Page | Gone]:
    source: Source = sql_table.source({"tables": {"t": options}})
    config = {name: default for name, (default, _) in source.config.items()} | {"tables": {"t": options}}
    (resource,) = source.resources
    yield from resource.fetch(Context(config, cursor, resource, None, Settings(), lambda text: None))


NOW = datetime.now(UTC).replace(tzinfo=None, microsecond=0)
CHANGES = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), max_size=12),  # rows that are written: id, value
        st.integers(0, 4),  # seconds that pass, of which none make equal times
        st.none() | st.integers(0, 3),  # the reader dies after so many pages
    ),
    max_size=8,
)


@seed(9)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CHANGES, st.integers(1, 7), st.sampled_from([["at"], ["at", "id"]]), st.sampled_from([0, 3, 3600]))
def test_reading_on_gives_every_row_whatever_is_written_and_wherever_it_dies(
    tmp_path: Path, changes: list[Any], batch: int, order: list[str], lag: int
) -> None:
    """Rows are written in the order of their times, before a run; so even without a lag none may be missed."""
    path = tmp_path / "t.db"
    path.unlink(missing_ok=True)
    options = {"url": f"sqlite:///{path}", "table": "t", "key": ["id"], "cursor": order, "batch": batch, "lag": lag}
    cursor: dict[str, Any] = {}
    here: dict[int, int] = {}
    moment = NOW - timedelta(seconds=20)
    with closing(sqlite3.connect(path)) as db:
        db.execute("create table t (id integer primary key, value integer, at timestamp not null)")
        db.commit()
        for written, seconds, dies in [*changes, ([], 0, None)]:
            moment += timedelta(seconds=seconds + (1 if lag == 0 else 0))
            for number, value in written:
                db.execute("insert or replace into t values (?, ?, ?)", (number, value, str(moment)))
            db.commit()
            for page in islice(fetched(options, cursor), dies):
                assert isinstance(page, Page)
                cursor = json.loads(json.dumps(page.cursor))
                here |= {row["id"]: row["value"] for row in records(page)}
        assert here == dict(db.execute("select id, value from t"))
        assert list(fetched(options, cursor)) == []


def records(page: Page) -> list[dict[str, Any]]:
    assert isinstance(page.body, bytes)
    found = list(sql_columns.decode(page.body))
    assert all(isinstance(record, dict) for record in found)
    return found  # type: ignore[return-value]


def made(path: Path, *statements: str) -> dict[str, Any]:
    """A file with a table t, and how it is listed."""
    with closing(sqlite3.connect(path)) as db:
        for statement in statements:
            db.execute(statement)
        db.commit()
    return {"url": f"sqlite:///{path}", "table": "t", "key": ["id"], "cursor": ["id"], "lag": 0}


NUMBERS = "with recursive n (i) as (values (0) union all select i + 1 from n where i < 999) "


@pytest.mark.parametrize("mode", ["merge", "replace"])
def test_a_page_ends_at_so_many_rows_or_so_many_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(sql_reader, "LARGE", 100_000)
    options = made(
        tmp_path / "t.db",
        "create table t (id integer primary key, body blob)",
        NUMBERS + "insert into t select i, x'' from n where i < 800",
        NUMBERS + "insert into t select i, randomblob(8000) from n where i >= 800",
    )
    bodies = []
    for page in fetched(options | {"batch": 300, "mode": mode}, {}):
        assert isinstance(page, Page)
        bodies.append(page.body.read_bytes() if isinstance(page.body, Path) else page.body or b"")
    pages = [[row["id"] for row in sql_columns.decode(body) if isinstance(row, dict)] for body in bodies]
    assert list(map(len, pages[:3])) == [300, 300, 213]  # the third ends with 13 rows of 8,000 bytes
    assert set(map(len, pages[3:-1])) == {13}
    assert [number for page in pages for number in page] == list(range(1000))


@pytest.mark.parametrize("declared", ["timestamp", "integer", "text"])
def test_a_cursor_that_holds_something_else_is_refused_and_not_gone_past(tmp_path: Path, declared: str) -> None:
    value = {"timestamp": "'2024-01-01'", "integer": "5", "text": "'a'"}[declared]
    other = "x'ff'" if declared == "text" else "'zzz'"
    options = made(
        tmp_path / "t.db",
        f"create table t (id integer primary key, at {declared} not null)",
        f"insert into t values (1, {value}), (2, {other})",
    )
    with pytest.raises(Problem, match=r"the cursor column at holds .*, no \w+. Mend the value, or take another"):
        list(fetched(options | {"cursor": ["at"]}, {}))


def test_an_order_that_the_driver_rounds_does_not_go_round_in_circles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = made(
        tmp_path / "t.db", "create table t (id integer primary key)", NUMBERS + "insert into t select i from n"
    )

    def rounded(order: Any, position: Any) -> Any:
        return order[0] > (position[0] // 100) * 100

    monkeypatch.setattr(sql_reader, "_after", rounded)
    with pytest.raises(Problem, match="more than a page of rows have the values 99"):
        list(fetched(options | {"batch": 99}, {}))
    seen = {row["id"] for page in fetched(options | {"batch": 300}, {}) for row in records(page)}  # type: ignore[arg-type]
    assert seen == set(range(1000))


# ---------------------------------------------------------------- options and secrets


def test_secrets_are_taken_out_of_what_others_say() -> None:
    url = sa.make_url("postgresql://u:p%40ss%2Fw@h/d?sslpassword=other%20secret")
    said = "could not sign in with p@ss/w or p%40ss%2Fw or p%40ss/w, nor with other secret or other+secret"
    shown = sql_reader._without_secrets(said, url)
    assert "ss" not in shown and "secret" not in shown
    assert shown.startswith("could not sign in with ***")


def test_a_table_shows_no_password_when_it_is_shown() -> None:
    table = sql_reader.defined("t", {"url": "postgresql://u:hidden@h/d", "table": "s.t", "key": "id", "cursor": "id"})
    assert "hidden" not in repr(table)
    assert (table.place, table.key, table.cursor) == (("s", "t"), ("id",), ("id",))


def test_no_table_is_listed_by_default_and_options_are_read_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = tmp_path / "lyrebird.toml"
    monkeypatch.setenv("LYREBIRD_OPTIONS", str(options))
    assert sql_table.SOURCE.resources == ()
    options.write_text(
        '[sources.sql_table]\ndomain = "birds"\n[sources.sql_table.tables.orders]\nkey = ["Id"]\nmode = "append"'
    )
    source = sql_table.SOURCE
    assert (source.domain, [r.name for r in source.resources]) == ("birds", ["orders"])
    assert (source.resources[0].key, source.resources[0].mode) == (("id",), "append")
    assert source.resources[0].schema.names == []
    for text in ("no toml", "sources = 5", "[sources]\nsql_table = 5"):
        options.write_text(text)
        assert sql_table.SOURCE.resources == ()
    with pytest.raises(AttributeError):
        _ = sql_table.OTHER


def test_the_contract_of_a_resource_comes_out_of_its_cursor() -> None:
    (resource,) = sql_table.source({"tables": {"t": {"key": ["Id"]}}}).resources
    columns = [Column("Id", "id", "bigint"), Column("old", "old", "text", given=False), Column("a", "a", "numeric")]
    known = resource.known({"columns": sql_columns.stored(columns)})
    assert rows.data_columns(known) == {"id": "bigint", "a": "numeric"}
    assert not known.schema.field("id").nullable and known.schema.field("a").nullable
    assert rows.data_columns(resource) == {}
    there = {"_load": "bigint", "id": "bigint", "a": "bigint"}
    assert rows.ddl(sql_table.source({}), known, there) == [
        'alter table raw."sql_table_t" alter column "a" type numeric'
    ]
    assert rows.ddl(sql_table.source({}), known, there | {"a": "numeric"}) == []
