"""Tables of other databases, on a real PostgreSQL and on SQLite: what is loaded is what is there, row by row.

The other PostgreSQL is a database of its own on the embedded server, with a user whose password has awkward characters.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import sqlalchemy as sa
import tomli_w
from support import Stack, another_database

from ingestion import catalogue, journal, pipeline, tombstones
from ingestion.sources import sql_columns, sql_reader
from ingestion.tombstones import Tombstone
from storage import warehouse
from storage.errors import Problem
from storage.gates import audit as gate
from storage.gates.audit import Verdict
from storage.objects import Objects

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "p@ss/w%rd:secret"
COLUMNS = {
    "postgresql": "id bigint primary key, value text, updated_at timestamptz not null",
    "sqlite": "id integer primary key, value text, updated_at timestamp not null",
}


@dataclass
class Upstream:
    """The other database, what is listed of it, and what has come of it here."""

    stack: Stack
    url: sa.URL
    options: Path
    listed: dict[str, dict[str, Any]] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    @property
    def backend(self) -> str:
        return self.url.get_backend_name()

    def engine(self) -> sa.Engine:
        return sa.create_engine(self.url, poolclass=sa.NullPool)

    def do(self, *statements: str) -> None:
        with closing(self.engine().raw_connection()) as db:
            for statement in statements:
                db.cursor().execute(statement)
            db.commit()

    def ask(self, statement: str) -> list[tuple[Any, ...]]:
        with closing(self.engine().raw_connection()) as db, closing(db.cursor()) as sql:
            sql.execute(statement)
            return [tuple(row) for row in sql.fetchall()]

    def table(self, name: str, columns: str = "", rows: int = 0, **options: Any) -> str:
        """Make a table there and list it here."""
        self.do(f"create table {name} ({columns or COLUMNS[self.backend]})")
        if rows:
            self.fill(name, range(rows))
        self.enlist(name, **{"table": name, "key": ["id"], "cursor": ["updated_at", "id"]} | options)
        return name

    def fill(self, name: str, numbers: Sequence[int], age: int = 86_400) -> None:
        """Rows whose times lie ``age`` seconds back and more, several in the same second."""
        now = datetime.now(UTC).replace(microsecond=0)
        moments = [now - timedelta(seconds=age + (len(numbers) - i) // 7) for i in range(len(numbers))]
        rows = [{"i": n, "v": f"v{n}", "t": t if self.backend == "postgresql" else f"{t:%Y-%m-%d %H:%M:%S}"}
                for n, t in zip(numbers, moments, strict=True)]  # fmt: skip
        with self.engine().begin() as db:
            db.execute(sa.text(f"insert into {name} (id, value, updated_at) values (:i, :v, :t)"), rows)

    def touch(self, name: str, where: str, value: str, age: int = 3600) -> None:
        moment = datetime.now(UTC) - timedelta(seconds=age)
        shown = moment.isoformat() if self.backend == "postgresql" else f"{moment:%Y-%m-%d %H:%M:%S}"
        self.do(f"update {name} set value = '{value}', updated_at = '{shown}' where {where}")

    def enlist(self, name: str, **options: Any) -> None:
        """List a table in the options file, alone."""
        known = {"url": self.url.render_as_string(hide_password=False)} | self.listed.get(name, {}) | options
        self.listed[name] = {option: value for option, value in known.items() if value is not None}
        self.options.write_text(tomli_w.dumps({"sources": {"sql_table": {"tables": {name: self.listed[name]}}}}))

    def ingest(self, judge: bool = True, audit: bool = False, **options: Any) -> list[str]:
        """A run: the states that its loads got. Without ``audit`` the statistics, which take seconds, accept all."""
        source, settings = catalogue.source("sql_table"), self.stack.settings("loader")
        accepted = (
            nullcontext() if audit else mock.patch.object(gate, "run", lambda *_, **__: Verdict(True, "none", ""))
        )
        with accepted:
            pipeline.ingest(source, settings, say=self.said.append, **options)
            found = pipeline.judge(source, settings, say=self.said.append) if judge else {}
        return [state + (f": {reason}" if reason else "") for state, reason in found.values()]

    def here(self, name: str, columns: str = "id, value") -> list[tuple[Any, ...]]:
        """The current rows of published loads."""
        return query(
            self.stack,
            f"""
            select {columns} from (
                select distinct on (r._key) r.* from raw.sql_table_{name} as r
                join ops.load as l on l.source = 'sql_table' and l.load = r._load and l.state = 'published'
                order by r._key, r._load desc, r._position desc
            ) as latest where not _deleted order by id
            """,
        )

    def there(self, name: str, columns: str = "id, value") -> list[tuple[Any, ...]]:
        return self.ask(f"select {columns} from {name} order by id")

    def versions(self, name: str) -> int:
        return int(query(self.stack, f"select count(*) from raw.sql_table_{name} where not _deleted")[0][0])


def query(stack: Stack, statement: str) -> list[tuple[Any, ...]]:
    with closing(warehouse.connect(stack.settings("loader"))) as db, db, db.cursor() as sql:
        sql.execute(statement)
        return sql.fetchall() if sql.description else []


@pytest.fixture(scope="module")
def other_postgres(stack: Stack) -> Iterator[sa.URL]:
    with another_database(stack, "upstream", PASSWORD) as url:
        yield url


@pytest.fixture(scope="module")
def options(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("options") / "lyrebird.toml"
        patch.setenv("LYREBIRD_OPTIONS", str(path))
        yield path


@pytest.fixture(scope="module")
def postgres(stack: Stack, other_postgres: sa.URL, options: Path) -> Upstream:
    return Upstream(stack, other_postgres, options)


@pytest.fixture(scope="module")
def sqlite(stack: Stack, options: Path, tmp_path_factory: pytest.TempPathFactory) -> Upstream:
    path = tmp_path_factory.mktemp("sqlite") / "up stream#1.db"
    path.touch()
    return Upstream(stack, sa.URL.create("sqlite", database=str(path)), options)


@pytest.fixture(params=["postgresql", "sqlite"])
def upstream(request: pytest.FixtureRequest, postgres: Upstream, sqlite: Upstream) -> Upstream:
    return postgres if request.param == "postgresql" else sqlite


def named(upstream: Upstream, name: str) -> str:
    """A name that both databases' tables can have here, side by side."""
    return f"{name}_{upstream.backend[:2]}"


# ---------------------------------------------------------------- reading


def test_nothing_listed_is_nothing_to_do(stack: Stack, options: Path) -> None:
    options.unlink(missing_ok=True)
    assert catalogue.source("sql_table").resources == ()
    report = pipeline.ingest(catalogue.source("sql_table"), stack.settings("loader"), say=lambda text: None)
    assert report.loads == {}


def test_changes_come_page_by_page_and_a_second_run_finds_nothing_new(upstream: Upstream) -> None:
    name = upstream.table(named(upstream, "paged"), rows=2_300, batch=300)
    assert upstream.ingest(audit=True) == ["published"]
    assert upstream.here(name) == upstream.there(name)
    assert query(upstream.stack, f"select max(pages) from ops.load where resource = '{name}'") == [(8,)]
    assert upstream.ingest(audit=True) == []
    upstream.touch(name, "id % 100 = 0", "changed")
    upstream.fill(name, range(5_000, 5_050), age=1_000)
    assert upstream.ingest(audit=True) == ["published"]
    assert upstream.here(name) == upstream.there(name)
    assert upstream.versions(name) == 2_300 + 23 + 50  # nothing was read as new that was not
    assert upstream.ingest(audit=True) == []


def test_rows_of_the_same_moment_on_both_sides_of_a_page_are_all_read(upstream: Upstream) -> None:
    name = upstream.table(named(upstream, "moment"), rows=0, cursor=["updated_at"], batch=10)
    upstream.fill(name, range(95))
    upstream.touch(name, "id >= 20", "same")  # 75 rows of one moment, in pages of ten
    upstream.ingest()
    assert upstream.here(name) == upstream.there(name)
    assert upstream.ingest() == []


@pytest.mark.parametrize("dies_at", [1, 3])
def test_a_reader_that_dies_between_two_pages_leaves_the_same_table(upstream: Upstream, dies_at: int) -> None:
    name = upstream.table(named(upstream, f"dies_{dies_at}"), rows=500, batch=100)

    class Died(RuntimeError):
        pass

    pages = 0

    def die(stage: str) -> None:
        nonlocal pages
        pages += stage == "fetched"
        if pages == dies_at:
            raise Died

    with pytest.raises(Died):
        upstream.ingest(reached=die)
    upstream.ingest()
    assert upstream.here(name) == upstream.there(name)
    assert upstream.versions(name) == 500


def test_types_of_postgres_are_kept(postgres: Upstream) -> None:
    columns = (
        "id int primary key, small smallint, big bigint, price numeric(12,2), free numeric, wide numeric(60,20), "
        "real_ real, double_ double precision, flag boolean, day date, naive timestamp, aware timestamptz, at time, "
        "raw_ bytea, doc jsonb, json_ json, tags text[], who uuid, span interval, name varchar(20), net inet, "
        "mood mood, changed timestamptz not null default '2024-01-01'"
    )
    postgres.do("create type mood as enum ('fair', 'foul')")
    name = postgres.table("types", columns, cursor=["changed", "id"])
    postgres.do(
        """
        insert into types values
        (1, -32768, 9223372036854775807, 1234567890.10, 3.14159265358979323846264338327950288419716939937510,
         1234567890123456789012345678901234567890.12345678901234567890, 1.5, 0.1, true, '2024-02-29',
         '2024-03-31 02:30:00.123456', '2024-03-31 02:30:00+05:30', '23:59:59', '\\x00ff0a5c', '{"a": [1, "ä", null]}',
         '"only a text"', array['x', null, 'y,"z'], 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '1 day 02:03:04',
         E'tab\\there', '10.0.0.1/8', 'foul'),
        (2, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null,
         null, null, null),
        (3, 1, 1, 5, 5, 5, 1, 1, false, '0001-01-01', '9999-12-31 23:59:59', '1970-01-01 00:00+00', '00:00', '', '{}',
         '[]', '{}', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '0', '', '::1', 'fair')
        """
    )
    assert postgres.ingest() == ["published"]
    asked = (
        "id, small, big, price, free, wide, {0}, {1}, flag, day, naive, aware, at::text, {2}, doc, {3}::text, "
        "{4}, who::text, span::text, name, net::text, mood::text, changed"
    )
    theirs = postgres.there(name, asked.format("real_", "double_", "raw_", "json_", "to_json(tags)"))
    ours = postgres.here(name, asked.format("real", "double", "raw", "json", "tags"))
    for mine, other in zip(ours, theirs, strict=True):
        assert [bytes(v) if isinstance(v, memoryview) else v for v in mine] == [
            bytes(v) if isinstance(v, memoryview) else v for v in other
        ]
    kinds = dict(query(postgres.stack, "select column_name, data_type from information_schema.columns "
                       "where table_schema = 'raw' and table_name = 'sql_table_types'"))  # fmt: skip
    assert {kinds[column] for column in ("id", "small", "big")} == {"bigint"}
    assert {kinds[column] for column in ("price", "free", "wide")} == {"numeric"}
    assert kinds["naive"] == "timestamp without time zone"
    assert kinds["aware"] == "timestamp with time zone"
    assert (kinds["day"], kinds["flag"], kinds["raw"]) == ("date", "boolean", "bytea")
    assert (kinds["double"], kinds["doc"], kinds["tags"]) == ("double precision", "jsonb", "jsonb")


def test_types_of_sqlite_are_kept_and_what_is_of_none_goes_to_quarantine(sqlite: Upstream) -> None:
    columns = (
        "id integer primary key, flag boolean, price decimal(10,2), ratio real, day date, at timestamp, doc json, "
        "raw_ blob, name varchar(10), changed timestamp not null"
    )
    name = sqlite.table("loose", columns, cursor=["changed", "id"])
    good = [
        (n, n % 2, 1.25, 0.5, "2024-02-29", "2024-03-31T02:30:00.5", '{"a": 1}', b"\x00\xff", "ä", "2024-01-01 00:00")
        for n in range(100)
    ]  # fmt: skip
    marks = ", ".join("?" * 10)
    with closing(sqlite.engine().raw_connection()) as raw:
        raw.cursor().executemany(f"insert into loose values ({marks})", good)
        raw.cursor().executemany(
            f"insert into loose values ({marks})",
            [
                (200, "maybe", 1, 1, "2024-01-01", "2024-01-01 00:00:00", "{}", b"", "", "2024-01-01 00:00:01"),
                (201, 1, "dear", 1, "2024-01-01", "2024-01-01 00:00:00", "{}", b"", "", "2024-01-01 00:00:01"),
                (202, 1, 1, 1, "yesterday", "2024-01-01 00:00:00", "{}", b"", "", "2024-01-01 00:00:01"),
                (203, 1, 1, 1, "2024-01-01", "2024-01-01 00:00:00", "{ no", b"", "", "2024-01-01 00:00:01"),
            ],
        )
        raw.cursor().execute(
            "insert into loose (id, name, changed) values (204, cast(x'ff41' as text), '2024-01-01 00:00:02')"
        )
        raw.commit()
    assert sqlite.ingest() == ["published"]
    asked = "id, flag, price, ratio, day, at, doc, raw, name"
    assert sqlite.here(name, asked)[-1] == (
        99, True, Decimal("1.25"), 0.5, date(2024, 2, 29), datetime(2024, 3, 31, 2, 30, 0, 500_000), {"a": 1},
        sqlite.here(name, asked)[-1][7], "ä",
    )  # fmt: skip
    assert bytes(sqlite.here(name, "raw")[-1][0]) == b"\x00\xff"
    assert len(sqlite.here(name, "id")) == 100
    reasons = query(sqlite.stack, "select reason from ops.quarantine where resource = 'loose' order by id")
    assert [reason for (reason,) in reasons] == [
        "flag is no boolean: 'maybe'", "price is no numeric: 'dear'", "day is no date: 'yesterday'",
        "doc is no JSON: '{ no'", "name is no text: '\\udcffA'",
    ]  # fmt: skip
    assert sqlite.ingest() == []


def test_names_of_tables_and_columns_are_quoted_and_made_plain(upstream: Upstream) -> None:
    wild = 'order"; drop table x; --'
    quoted = '"' + wild.replace('"', '""') + '"'
    upstream.do(
        f'create table {quoted} (id integer primary key, "userId" text, "select" text, "Ä Ö" text, "_load" integer, '
        f'"{"long" * 12}" text, changed timestamp not null)',
        f"insert into {quoted} values (1, 'u', 's', 'ä', 7, 'l', '2024-01-01')",
    )
    name = named(upstream, "wild")
    upstream.enlist(name, table=wild, key=["id"], cursor=["changed"])
    upstream.ingest()
    columns = [column for (column,) in query(
        upstream.stack, "select column_name from information_schema.columns where table_schema = 'raw' and "
        f"table_name = 'sql_table_{name}' and column_name not like '\\_%' order by ordinal_position")]  # fmt: skip
    assert columns[:2] == ["id", "user_id"]
    assert columns[2] == "select"
    assert columns[4] == "load"
    assert all(re.fullmatch(r"[a-z][a-z0-9_]{0,37}", column) for column in columns)
    assert upstream.here(name, 'user_id, "select", load, id') == [("u", "s", 7, 1)]


def test_a_value_that_python_has_no_type_for_is_named(postgres: Upstream) -> None:
    postgres.table("ancient", "id int primary key, value text, day date, updated_at timestamptz not null")
    postgres.do("insert into ancient values (1, 'x', '0044-03-15 BC', now())")
    for options in ({}, {"mode": "replace", "cursor": None}):
        postgres.enlist("ancient", **options)
        with pytest.raises(Problem, match=r"ancient: a value cannot be read: year .* Mend it, or leave its column out"):
            postgres.ingest()
    postgres.enlist("ancient", columns=["id", "value", "updated_at"])
    postgres.ingest()
    assert postgres.here("ancient") == [(1, "x")]


KEYS = {
    "smallint": "i", "numeric(9, 3)": "i + 0.125", "double precision": "i / 10.0", "date": "date '2024-01-01' + i",
    "timestamp": "timestamp '9999-12-31 23:59:59.999999' - i * interval '1 us'", "uuid": "md5(i::text)::uuid",
    "timestamptz": "timestamptz '9999-12-31 23:59:59+00' - i * interval '1 us'", "bytea": "sha256(i::text::bytea)",
    "text": "E'tab\\t\\\\u0000 ä ' || i", "char(40)": "md5(i::text)", "varchar": "'x' || i",
}  # fmt: skip


@pytest.mark.parametrize("kind", KEYS)
def test_a_key_of_any_type_is_read_on_from_and_compared(postgres: Upstream, kind: str) -> None:
    """Each row of a page has the same time, so that the key alone tells where to go on."""
    name = f"keyed_{kind.split('(', maxsplit=1)[0].replace(' ', '_')}"
    postgres.table(
        name, f"key {kind} primary key, id int, value text, updated_at timestamptz not null default '2024-01-01'",
        key=["key"], cursor=["updated_at"], batch=7, deletions=1e-9,
    )  # fmt: skip
    postgres.do(f"insert into {name} select {KEYS[kind]}, i, 'v' || i from generate_series(1, 30) as i")
    assert postgres.ingest() == ["published"]
    assert postgres.here(name) == postgres.there(name)
    postgres.do(
        f"insert into {name} select {KEYS[kind]}, i, 'v' || i, '2024-01-02' from generate_series(31, 40) as i",
        f"delete from {name} where id % 10 = 3 and id < 30",
    )
    assert postgres.ingest() == ["published"]
    assert postgres.here(name) == postgres.there(name)
    assert len(postgres.here(name)) == 37
    assert postgres.versions(name) == 40  # read on, and not from the beginning


def test_keys_that_raw_cannot_hold_do_not_stop_the_comparison_of_the_others(sqlite: Upstream) -> None:
    name = sqlite.table(
        "odd_keys", "id text primary key, value text, updated_at timestamp not null", batch=7, deletions=1e-9
    )
    good = [(f"k{n:03d}", "v", "2024-01-01 00:00:00") for n in range(100)]
    odd = [(key, "v", "2024-01-01 00:00:00") for key in ("a\x00b", "a␀b", "long" * 1_000, "\\u0000", "\n")]
    with closing(sqlite.engine().raw_connection()) as raw:
        raw.cursor().executemany(f"insert into {name} values (?, ?, ?)", [*odd, *good])
        raw.commit()
    assert sqlite.ingest() == ["published"]
    reasons = [reason for (reason,) in query(
        sqlite.stack, f"select reason from ops.quarantine where resource = '{name}' order by reason")]  # fmt: skip
    assert reasons == ["id contains the character NUL", "its key is longer than 2,000 bytes"] or len(reasons) == 2
    sqlite.do(f"delete from {name} where id = 'k050'")
    assert sqlite.ingest() == ["published"]
    held = {key for key, _ in sqlite.there(name)} - {"a\x00b", "long" * 1_000}
    assert {key for key, _ in sqlite.here(name)} == held
    assert len(held) == 102


def test_a_view_and_a_table_in_a_schema_of_its_own(postgres: Upstream) -> None:
    postgres.do("create schema sales", f"create table sales.orders ({COLUMNS['postgresql']})",
                "create view sales.big as select * from sales.orders where id >= 10")  # fmt: skip
    postgres.fill("sales.orders", range(20))
    postgres.enlist("big", table="sales.big", key=["id"], cursor=["updated_at"])
    postgres.ingest()
    assert postgres.here("big") == postgres.there("sales.big")
    assert len(postgres.here("big")) == 10


READ = """
import json, sys
from ingestion.contract import Context
from ingestion.sources import sql_columns, sql_table
from storage.settings import Settings
options = json.load(sys.stdin)
source = sql_table.source(options)
config = {name: default for name, (default, _) in source.config.items()} | options
rows = 0
for page in source.resources[0].fetch(Context(config, {}, source.resources[0], None, Settings(), lambda text: None)):
    body = page.body if isinstance(page.body, bytes) else page.body.read_bytes()
    rows += next(sql_columns.parsed(body)).num_rows
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"rows": rows, "kB": int(peak.split()[1])}))
"""


def reading(options: dict[str, Any]) -> dict[str, int]:
    """How many rows a process of its own reads, and how much memory it ever had."""
    child = subprocess.run(
        [sys.executable, "-c", READ], input=json.dumps({"tables": {"t": options}}), cwd=ROOT,
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-2000:]
    return dict(json.loads(child.stdout))


@pytest.mark.parametrize("mode", ["merge", "replace"])
@pytest.mark.parametrize("count", [200_000, pytest.param(1_000_000, marks=pytest.mark.long)])
def test_a_table_of_any_size_is_read_in_the_memory_of_a_page(postgres: Upstream, mode: str, count: int) -> None:
    peaks = []
    for rows in (20_000, count):
        name = f"large_{mode}_{count}_{rows}"
        postgres.do(
            f"create table {name} as select i as id, 'value of ' || i as value, i / 3.0::float8 as ratio, "
            f"timestamptz '2024-01-01' + i * interval '1 s' as updated_at from generate_series(1, {rows}) as i",
            f"alter table {name} add primary key (id)",
            f"create index on {name} (updated_at, id)",
        )
        postgres.enlist(name, table=name, key=["id"], cursor=["updated_at", "id"], mode=mode)
        found = reading(postgres.listed[name])
        assert found["rows"] == rows
        peaks.append(found["kB"])
        postgres.do(f"drop table {name}")
    assert peaks[1] - peaks[0] < 25_000, peaks  # the rows of the larger table have more than that, the pages of it, too


# ---------------------------------------------------------------- late commits


def late(postgres: Upstream, name: str, **options: Any) -> bool:
    """Whether a row that was written before another and committed after it arrives."""
    postgres.table(name, rows=10, **options)
    with postgres.engine().connect() as slow:
        slow.exec_driver_sql(f"insert into {name} values (100, 'late', clock_timestamp())")
        postgres.do(f"insert into {name} values (101, 'early', clock_timestamp())")
        postgres.ingest(judge=False)
        slow.commit()
    postgres.ingest(judge=False)
    postgres.do(f"insert into {name} values (102, 'last', clock_timestamp())")
    postgres.ingest()
    assert 101 in dict(postgres.here(name))
    assert postgres.versions(name) == len(postgres.here(name))  # read again, and not twice there
    return postgres.here(name) == postgres.there(name)


@pytest.mark.parametrize("cursor", [["updated_at", "id"], ["updated_at"], ["id"]])
def test_a_row_that_is_committed_late_is_not_lost(postgres: Upstream, cursor: list[str]) -> None:
    assert late(postgres, f"late_{'_'.join(cursor)}", cursor=cursor)


@pytest.mark.parametrize("cursor", [["updated_at", "id"], ["id"]])
def test_without_the_lag_it_would_be_lost(postgres: Upstream, cursor: list[str]) -> None:
    assert not late(postgres, f"never_{'_'.join(cursor)}", cursor=cursor, lag=0)


@pytest.mark.parametrize("written_in", ["the zone of the server", "UTC"])
@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/Lima"])
def test_a_time_without_a_zone_is_held_against_the_earlier_clock(
    postgres: Upstream, zone: str, written_in: str
) -> None:
    name = f"naive_{zone[-4:].lower()}_{written_in[-3:].lower()}"
    moment = "localtimestamp" if written_in != "UTC" else "clock_timestamp() at time zone 'UTC'"
    postgres.do(f"alter role upstream set timezone to '{zone}'")
    try:
        postgres.table(name, "id int primary key, value text, updated_at timestamp not null")
        with postgres.engine().connect() as slow:
            slow.exec_driver_sql(f"insert into {name} values (1, 'late', {moment})")
            postgres.do(f"insert into {name} values (2, 'early', {moment})")
            postgres.ingest(judge=False)
            slow.commit()
        postgres.ingest()
        assert postgres.here(name) == [(1, "late"), (2, "early")]
    finally:
        postgres.do("alter role upstream reset timezone")


def test_young_rows_are_read_again_and_make_no_load(upstream: Upstream) -> None:
    name = upstream.table(named(upstream, "young"), rows=50, batch=20)
    upstream.fill(name, range(100, 175), age=-1)  # in pages of their own, ahead of the clock
    assert upstream.ingest() == ["published"]
    assert upstream.ingest() == []
    upstream.touch(name, "id = 150", "again", age=-30)
    assert upstream.ingest() == ["published"]
    assert upstream.here(name) == upstream.there(name)
    assert upstream.versions(name) == 126
    assert upstream.ingest() == []


# ---------------------------------------------------------------- modes and deletions


def test_a_table_that_is_read_whole_lands_when_it_has_changed_and_deletes_what_is_gone(upstream: Upstream) -> None:
    name = upstream.table(named(upstream, "whole"), rows=1_200, mode="replace", cursor=None)
    assert upstream.ingest() == ["published"]
    assert upstream.ingest() == []
    upstream.do(f"delete from {name} where id < 100", f"update {name} set value = 'x' where id = 500")
    assert upstream.ingest() == ["published"]
    assert upstream.here(name) == upstream.there(name)
    assert upstream.versions(name) == 1_201
    upstream.do(f"delete from {name}")
    assert upstream.ingest() == []  # an empty read deletes nothing
    assert len(upstream.here(name)) == 1_100


def test_an_append_takes_new_rows_only(upstream: Upstream) -> None:
    name = upstream.table(named(upstream, "log"), rows=30, mode="append", cursor=["id"], lag=0)
    upstream.ingest()
    upstream.do(f"delete from {name} where id < 5")
    upstream.fill(name, range(30, 60))
    assert upstream.ingest() == ["published"]
    assert [row[0] for row in upstream.here(name)] == list(range(60))


def test_keys_that_are_gone_are_deleted_when_all_keys_are_compared(upstream: Upstream) -> None:
    name = upstream.table(named(upstream, "gone"), rows=300, deletions=24)
    upstream.ingest()
    upstream.do(f"delete from {name} where id % 10 = 3")
    assert upstream.ingest() == []  # not yet time
    upstream.enlist(name, deletions=1e-9)
    assert upstream.ingest() == ["published"]
    assert upstream.here(name) == upstream.there(name)
    assert len(upstream.here(name)) == 270
    upstream.fill(name, range(3, 4), age=60)  # one comes back
    upstream.enlist(name, deletions=24)
    assert upstream.ingest() == ["published"]
    assert upstream.here(name) == upstream.there(name)


def test_rows_that_the_cursor_passed_by_are_read_when_keys_are_compared(upstream: Upstream) -> None:
    """Some were never here, one was deleted and is there again as it was; one of each is new and one was withdrawn."""
    name = upstream.table(named(upstream, "passed"), rows=300, deletions=24, batch=50)
    upstream.ingest()
    upstream.do(f"delete from {name} where id = 7")
    upstream.enlist(name, deletions=1e-9)
    upstream.ingest()
    upstream.fill(name, [7, *range(1001, 1101)], age=10**7)
    upstream.enlist(name, deletions=24)
    assert upstream.ingest() == []
    objects = Objects(upstream.stack.settings("loader"))
    withdrawn = Tombstone(name, tombstones.KEY, tombstones.digest("[1050]"))
    tombstones.write(objects, "sql_table", [withdrawn])
    upstream.fill(name, range(2001, 2011), age=60)
    upstream.enlist(name, deletions=1e-9)
    assert upstream.ingest() == ["published"]
    assert upstream.here(name) == [row for row in upstream.there(name) if row[0] != 1050]
    landed = query(
        upstream.stack, f"select key from ops.landing where resource = '{name}' and name like '%passed by,%'"
    )
    found = [one for (key,) in landed for one in sql_columns.decode(objects.get(*key.split("/", 1)))]
    assert sorted(one["id"] for one in found) == [7, *(n for n in range(1001, 1101) if n != 1050)]
    versions = upstream.versions(name)
    upstream.ingest()
    assert upstream.versions(name) == versions


def test_a_row_that_was_passed_by_and_is_bad_does_not_land_again_and_again(sqlite: Upstream) -> None:
    name = sqlite.table("passed_bad", "id integer primary key, n integer, updated_at timestamp not null", deletions=24)
    sqlite.do(f"insert into {name} values (1, 1, '2024-05-01 00:00:00'), (2, 2, '2024-05-02 00:00:00')")
    sqlite.ingest()
    sqlite.do(f"insert into {name} values (3, 'no number', '2024-01-01 00:00:00')")
    sqlite.enlist(name, deletions=1e-9)
    told = f"{name}: 1 rows up to the cursor are not here, and are no good"
    for _ in range(3):
        assert sqlite.ingest() == ["published"]  # what was compared
        assert sqlite.said.count(told) == 1
    assert query(sqlite.stack, f"select count(*) from ops.landing where resource = '{name}'") == [(4,)]


def test_an_empty_or_failed_read_deletes_nothing(upstream: Upstream) -> None:
    name = upstream.table(named(upstream, "kept"), rows=50, deletions=1e-9)
    upstream.ingest()
    rows = upstream.here(name)
    upstream.do(f"alter table {name} rename to away_{name}", f"create table {name} ({COLUMNS[upstream.backend]})")
    assert upstream.ingest() == []
    assert any("is empty; its rows here are kept" in text for text in upstream.said)
    upstream.do(f"drop table {name}")
    with pytest.raises(Problem, match="there is no table"):
        upstream.ingest()
    assert upstream.here(name) == rows
    assert query(upstream.stack, f"select count(*) from raw.sql_table_{name} where _deleted") == [(0,)]


def test_a_comparison_that_breaks_off_deletes_nothing(postgres: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    name = postgres.table("broken_off", rows=700, deletions=1e-9, batch=100)
    postgres.ingest()
    keys = sql_reader.Reader.keys

    def breaks_off(self: Any, *arguments: Any) -> Iterator[Any]:
        batches = keys(self, *arguments)
        yield next(batches)
        raise sa.exc.OperationalError("select", {}, Exception("server closed the connection unexpectedly"))

    with monkeypatch.context() as patch:
        patch.setattr(sql_reader.Reader, "keys", breaks_off)
        with pytest.raises(Problem, match="closed the connection"):
            postgres.ingest()
    assert len(postgres.here(name)) == 700
    postgres.ingest()
    assert postgres.here(name) == postgres.there(name)


# ---------------------------------------------------------------- drift


def test_evolve_takes_new_columns_wider_types_and_variants(postgres: Upstream) -> None:
    columns = "id int primary key, amount int, code int, note text, updated_at timestamptz not null"
    name = postgres.table("evolves", columns)
    postgres.do("insert into evolves select i, i, i, 'n' || i, '2024-01-01' from generate_series(1, 150) as i")
    assert postgres.ingest(audit=True) == ["published"]
    postgres.do(
        "alter table evolves add column colour text default 'grey'",  # changes all rows, and no updated_at
        "alter table evolves alter column amount type numeric(10,2) using amount + 0.25",
        "alter table evolves alter column code type text using 'c' || code",
        "alter table evolves drop column note",
    )
    assert postgres.ingest(audit=True) == ["published"]
    there = postgres.there(name, "id, amount, code, colour")
    assert postgres.here(name, "id, amount, code__text, colour") == there
    assert {row[0] for row in postgres.here(name, "coalesce(code::text, note), id")} == {None}
    said = next(text for text in postgres.said if "evolves has changed" in text)
    for words in (
        "colour (text) is new",
        "amount was bigint and is numeric: taken",
        "it goes to code__text",
        "note is no more",
    ):
        assert words in said
    assert postgres.ingest(audit=True) == []
    postgres.do("alter table evolves alter column code type int using substr(code, 2)::int")
    assert postgres.ingest(audit=True) == ["published"]
    assert postgres.here(name, "id, code") == postgres.there(name, "id, code")
    assert {row[0] for row in postgres.here(name, "code__text, id")} == {None}


def test_evolve_of_a_table_that_is_read_whole(upstream: Upstream) -> None:
    name = upstream.table(named(upstream, "grows"), rows=30, mode="replace", cursor=None)
    upstream.ingest()
    upstream.do(f"alter table {name} add column extra integer default 5")
    assert upstream.ingest() == ["published"]
    assert upstream.here(name, "id, value, extra") == upstream.there(name, "id, value, extra")
    assert upstream.ingest() == []


def test_freeze_refuses_a_changed_table_and_loads_nothing(upstream: Upstream) -> None:
    name = upstream.table(named(upstream, "frozen"), rows=20, drift="freeze")
    assert upstream.ingest() == ["published"]
    upstream.do(f"alter table {name} add column extra integer")
    upstream.touch(name, "id = 3", "changed")
    before = query(upstream.stack, f"select cursor::text from ops.cursor where resource = '{name}'")
    with pytest.raises(Problem, match=r"is frozen and has changed: extra \(bigint\) is new; nothing was loaded"):
        upstream.ingest()
    assert dict(upstream.here(name))[3] == "v3"
    assert query(upstream.stack, f"select cursor::text from ops.cursor where resource = '{name}'") == before
    ledger = query(upstream.stack, f"select state, error from ops.ledger where resource = '{name}'")
    assert ledger[0][0] == "failed" and "is frozen" in ledger[0][1]
    upstream.do(f"alter table {name} drop column extra")
    assert upstream.ingest() == ["published"]
    assert upstream.here(name) == upstream.there(name)


def test_discard_leaves_out_what_is_unknown_and_says_so(upstream: Upstream) -> None:
    name = upstream.table(named(upstream, "narrow"), rows=20, drift="discard")
    upstream.ingest()
    upstream.do(f"alter table {name} add column extra integer default 5")
    upstream.touch(name, "id = 3", "changed")
    assert upstream.ingest() == ["published"]
    assert upstream.here(name) == upstream.there(name)
    assert upstream.versions(name) == 21
    assert any("extra (bigint) is new: left out" in text for text in upstream.said)
    found = query(upstream.stack, f"select meta from ops.landing where resource = '{name}' order by load desc limit 1")
    assert found == [({"changes": ["extra (bigint) is new: left out"]},)]
    assert not query(upstream.stack, "select 1 from information_schema.columns where column_name = 'extra' and "
                     f"table_name = 'sql_table_{name}'")  # fmt: skip


def test_a_key_that_changes_its_type_is_refused(postgres: Upstream) -> None:
    postgres.table("rekeyed", rows=5)
    postgres.ingest()
    postgres.do("alter table rekeyed alter column id type text using 'x' || id")
    with pytest.raises(Problem, match=r"the key has changed .id was bigint and is text"):
        postgres.ingest()


def test_a_view_on_raw_that_stands_in_the_way_is_named(postgres: Upstream) -> None:
    postgres.table("watched", "id int primary key, amount int, updated_at timestamptz not null")
    postgres.do("insert into watched values (1, 1, '2024-01-01')")
    postgres.ingest()
    query(postgres.stack, "create view raw.watching as select amount from raw.sql_table_watched")
    postgres.do("alter table watched alter column amount type numeric")
    with pytest.raises(Problem, match=r"raw\.sql_table_watched cannot get a wider column .*watching"):
        postgres.ingest()
    query(postgres.stack, "drop view raw.watching")
    postgres.ingest()
    assert postgres.here("watched", "id, amount") == [(1, Decimal(1))]


# ---------------------------------------------------------------- replay, secrets, mistakes


def test_replay_needs_no_source(upstream: Upstream) -> None:
    name = upstream.table(named(upstream, "again"), rows=100)
    upstream.ingest()
    upstream.do(f"alter table {name} add column extra integer default 5", f"delete from {name} where id < 20")
    upstream.touch(name, "id = 50", "changed")
    upstream.enlist(name, deletions=1e-9)
    upstream.ingest()
    asked = f"select * from raw.sql_table_{name} order by _load, _position"
    of_cursor = f"select cursor, load from ops.cursor where resource = '{name}'"
    rows, cursor = query(upstream.stack, asked), query(upstream.stack, of_cursor)
    assert len(rows) > 180
    upstream.do(f"drop table {name}")
    pipeline.replay(catalogue.source("sql_table"), upstream.stack.settings("loader"), say=lambda text: None)
    assert query(upstream.stack, asked) == rows
    assert query(upstream.stack, of_cursor) == cursor


def test_the_password_shows_nowhere(postgres: Upstream, capfd: pytest.CaptureFixture[str]) -> None:
    name = postgres.table("secret", rows=5)
    postgres.ingest()
    wrong = postgres.url.set(password="wr@ng/secret")
    postgres.enlist(name, url=wrong.render_as_string(hide_password=False))
    with pytest.raises(Problem) as refused:
        postgres.ingest()
    assert "authentication failed" in str(refused.value)
    postgres.enlist(name, url=postgres.url.set(query={"sslmode": "secret-mode"}).render_as_string(hide_password=False))
    with pytest.raises(Problem) as mistaken:
        postgres.ingest()
    objects = Objects(postgres.stack.settings("loader"))
    landed = b"".join(objects.get("landing", key) for key in objects.list("landing", "sql_table/"))
    tables = "".join(
        json.dumps(query(postgres.stack, f"select to_jsonb(t)::text from ops.{table} as t"))
        for table in ("load", "cursor", "landing", "ledger", "quarantine", "audit")
    )
    out = capfd.readouterr()
    told = "\n".join([str(refused.value), str(mistaken.value), *postgres.said, out.out, out.err, tables])
    for secret in (PASSWORD, "p%40ss", "wr@ng", "wr%40ng", "secret-mode", "w%25rd"):
        assert secret not in told
        assert secret.encode() not in landed


MISTAKES: list[tuple[str, Callable[[Upstream], dict[str, Any]], str]] = [
    ("no url", lambda up: {"url": None}, r"sources.sql_table.tables.wrong: url is missing"),
    ("bad url", lambda up: {"url": "nonsense"}, r"url is no SQLAlchemy URL"),
    ("unknown database", lambda up: {"url": "nosuchdb://x@h/d"}, r"SQLAlchemy knows no database nosuchdb"),
    ("no driver", lambda up: {"url": "mysql+pymysql://u:topsecret@h"}, r"the driver of mysql\+pymysql is not inst"),
    ("asynchronous", lambda up: {"url": "postgresql+asyncpg://u:topsecret@h/d"}, r"is asynchronous"),
    ("no server", lambda up: {"url": "postgresql://u:topsecret@127.0.0.1:1/d"}, r"postgresql at 127.0.0.1 says: "),
    ("no file", lambda up: {"url": "sqlite:////no/such/file.db"}, r"url is of a file that is not there: /no"),
    ("a relative file", lambda up: {"url": "sqlite:///file.db"}, r"no file by its whole path"),
    ("no table", lambda up: {"table": "nothing"}, r"there is no table nothing. There are: [a-z]+"),
    ("no key column", lambda up: {"key": ["idd"]}, r"has no column idd, which `key` names. It has: id, value"),
    ("no cursor column", lambda up: {"cursor": ["changed"]}, r"has no column changed, which `cursor` names"),
    ("no cursor", lambda up: {"cursor": None}, r"the mode merge needs a cursor of one or two columns"),
    ("a long cursor", lambda up: {"cursor": ["id", "value", "moment"]}, r"needs a cursor of one or two columns"),
    ("a cursor of floats", lambda up: {"cursor": ["ratio"]}, r"cursor column ratio is of type"),
    ("a cursor with NULL", lambda up: {"cursor": ["moment"]}, r"the cursor column moment holds NULL"),
    ("a key with NULL", lambda up: {"key": ["moment"]}, r"the key column moment holds NULL"),
    ("a key that is not unique", lambda up: {"key": ["value"]}, r"the key \(value\) is not unique: same is there"),
    ("the same, whole", lambda up: {"key": ["value"], "mode": "replace"}, r"the key \(value\) is not unique"),
    ("a mode", lambda up: {"mode": "upsert"}, r"mode cannot be so: Input should be 'append', 'merge' or"),
    ("a drift", lambda up: {"drift": "allow"}, r"drift cannot be so: Input should be 'evolve'"),
    ("a lag", lambda up: {"lag": "soon"}, r"lag cannot be so: Input should be a valid number. lag: how"),
    ("an option", lambda up: {"colour": 1}, r"has no option colour. Its options: url, table"),
    ("columns without the key", lambda up: {"columns": ["value"]}, r"columns leaves out"),
    ("names that fall together", lambda up: {"table": "twins"}, r"userId and user_id would both be called"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said"), [pytest.param(c, s, id=name) for name, c, s in MISTAKES])
def test_a_mistake_is_one_sentence_with_a_way_out(
    postgres: Upstream, change: Callable[[Upstream], dict[str, Any]], said: str
) -> None:
    if not postgres.ask("select to_regclass('there')")[0][0]:
        postgres.do(
            "create table there (id int primary key, value text not null, moment timestamptz, ratio float8 not null)",
            "insert into there values (1, 'same', null, 1), (2, 'same', now(), 1)",
            'create table twins (id int primary key, "userId" text, user_id text)',
        )
    postgres.listed.pop("wrong", None)
    postgres.enlist("wrong", **{"table": "there", "key": ["id"], "cursor": ["id"]} | change(postgres))
    with pytest.raises(Problem, match=said) as problem:
        postgres.ingest()
    assert problem.value.remedy
    assert "\n" not in str(problem.value)
    assert "topsecret" not in str(problem.value)


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"My Orders!": {"url": "sqlite:///x", "table": "t", "key": "id"}}, "'My Orders!' is no name for a table"),
        ({"orders": 5}, "sources.sql_table.tables.orders is no table of options"),
        (5, "is no table of options"),
    ],
)
def test_a_listing_that_is_none_stops_nobody_else(stack: Stack, options: Path, tables: Any, said: str) -> None:
    options.write_text(tomli_w.dumps({"sources": {"sql_table": {"tables": tables}}}))
    pipeline.make_tables(catalogue.sources(), stack.settings("loader"))
    with pytest.raises(Problem, match=re.escape(said)):
        pipeline.ingest(catalogue.source("sql_table"), stack.settings("loader"), say=lambda text: None)
    options.write_text("no toml")
    assert catalogue.source("sql_table").resources == ()


def test_the_journal_holds_the_rows_as_arrow(upstream: Upstream) -> None:
    import pyarrow as pa

    name = upstream.table(named(upstream, "landed"), rows=40)
    upstream.ingest()
    objects = Objects(upstream.stack.settings("loader"))
    load = query(upstream.stack, f"select max(load) from ops.load where resource = '{name}'")[0][0]
    header, entries = journal.read_segment(objects, "sql_table", load)
    table = pa.concat_tables(pa.ipc.open_stream(entry.read()).read_all() for entry in entries)
    assert table.num_rows == 40
    assert [str(field.type) for field in table.schema][:2] == ["int64", "string"]
    assert str(table.schema.field("updated_at").type) == (
        "timestamp[us, tz=UTC]" if upstream.backend == "postgresql" else "timestamp[us]"
    )
    assert [column["name"] for column in header.cursor["columns"]] == ["id", "value", "updated_at"]
