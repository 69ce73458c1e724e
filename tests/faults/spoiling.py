"""The spoiling matrix: every resource and every mart, spoiled in many ways, and who notices.

    cd tests && python -m faults.spoiling --report ../docs/results/spoiling.md

Plausible data of seeds of its own (:mod:`plausible`) is accepted several times over, so that the gates have learnt what
is usual. Then fresh data of another seed is spoiled in one column or so, and put before the auditors in their order:
the page contract, dbt, Great Expectations. Other fresh data is put before them as it is: an alarm there is a false one.

Resources are the catalogue's, marts the manifest's: a new one is tried without a change here. A way that finds nothing
to spoil in a table does not apply to it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from statistics import median, pstdev
from typing import Any

sys.path += [str(Path(__file__).parent), str(Path(__file__).parent.parent / "integration")]

import psycopg2
import psycopg2.extras
import pytest
from plausible import Draw, Record, Records, records
from psycopg2.extensions import connection, cursor
from transform_world import PASSWORD, Server, World

from infra import transforming
from ingestion import catalogue, pipeline
from ingestion.contract import Resource, Source
from ingestion.rows import check, data_columns, key_text, postgres_type
from storage import migrate, transform, warehouse
from storage.gates import loads, marts, ranges
from storage.gates.profile import NUMBERS, TIMES, columns_of, profile

HISTORY = 8  # accepted versions before the one that is spoiled
CLEAN = 20  # fresh versions that are put before the gates as they are
TRIALS = 2  # of each way, in different columns
FIRST_CLEAN, FIRST_SPOILED = 1_000, 2_000  # seeds
QUARANTINE = 0.05  # of its records: past it a load is rejected
DAY = re.compile(r"\d{4}-\d\d-\d\d")

Kinds = dict[str, str]  # of a table's columns, as PostgreSQL names them


@dataclass
class Table:
    """Rows to spoil: their columns' types, and which make the key."""

    rows: list[Record]
    kinds: Kinds
    key: tuple[str, ...]

    def values(self, name: str) -> list[Any]:
        return [row[name] for row in self.rows if row.get(name) is not None]

    def columns(self, *, text: bool = False, number: bool = False, time: bool = False) -> list[str]:
        """Columns outside of the key, filled for the most part, that hold what is wanted; texts may read as it."""
        found = []
        for name, kind in self.kinds.items():
            values = self.values(name)
            if name in self.key or len(values) < max(1, len(self.rows) // 2):
                continue
            readable = [value for value in values if isinstance(value, str)]
            numeric = kind in NUMBERS or (len(readable) > 0.9 * len(values) and all(map(_number, readable[:50])))
            dated = kind in TIMES or (len(readable) > 0.9 * len(values) and all(map(DAY.match, readable[:50])))
            if (text and kind == "text" and not numeric and not dated) or (number and numeric) or (time and dated):
                found.append(name)
        return found

    def categories(self) -> list[str]:
        return [
            name
            for name in self.columns(text=True)
            if len(set(self.values(name))) <= min(30, len(self.values(name)) / 4)
        ]


def _number(text: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?", text) is not None


def _like(value: float, sample: Any) -> Any:
    """A number as the column has its numbers."""
    if isinstance(sample, str):
        return f"{value:.4f}" if "." in sample else str(round(value))
    return round(value) if isinstance(sample, int) else type(sample)(value)


def _pick(draw: Draw, names: Sequence[str]) -> str:
    return draw.choice(list(names)) if names else ""


def swapped_columns(table: Table, draw: Draw) -> str:
    pairs = [
        (left, right)
        for of in (table.columns(text=True), table.columns(number=True))
        for left in of
        for right in of
        if left < right
        and table.kinds[left] == table.kinds[right]
        and sum(row[left] != row[right] for row in table.rows) > len(table.rows) / 2
    ]
    if not pairs:
        return ""
    left, right = draw.choice(pairs)
    for row in table.rows:
        row[left], row[right] = row[right], row[left]
    return f"{left} and {right}"


def shifted_distribution(table: Table, draw: Draw) -> str:
    """A number moves by a standard deviation; or two thirds of the rows fall to the commonest category."""
    name = _pick(draw, [one for one in table.columns(number=True) if pstdev(map(float, table.values(one))) > 0])
    if name:
        values = table.values(name)
        shift = pstdev(map(float, values))
        for row in table.rows:
            if row[name] is not None:
                row[name] = _like(float(row[name]) + max(shift, 1 if isinstance(row[name], int) else 0), row[name])
        return name
    name = _pick(draw, [one for one in table.categories() if len(set(table.values(one))) > 1])
    if name:
        common = Counter(table.values(name)).most_common()[-1][0]
        for row in table.rows:
            if draw.random() < 0.6:
                row[name] = common
    return name


def half_the_rows(table: Table, draw: Draw) -> str:
    if len(table.rows) < 2:
        return ""
    table.rows[:] = draw.sample(table.rows, len(table.rows) // 2)
    return "all"


def new_category(table: Table, draw: Draw) -> str:
    name = _pick(draw, table.categories())
    for row in table.rows if name else ():
        if draw.random() < 0.1:
            row[name] = "unheard-of"
    return name


def duplicated_keys(table: Table, draw: Draw) -> str:
    if len(table.rows) < 10:
        return ""
    for row in draw.sample(table.rows, len(table.rows) // 3):
        row.update({name: value for name, value in draw.choice(table.rows).items() if name in table.key})
    return ", ".join(table.key)


def nulls(table: Table, draw: Draw) -> str:
    name = _pick(
        draw, [one for one in table.kinds if one not in table.key and len(table.values(one)) > len(table.rows) / 2]
    )
    for row in table.rows if name else ():
        if draw.random() < 0.3:
            row[name] = None
    return name


def stale_dates(table: Table, draw: Draw) -> str:
    """The newest is more than a year old: each day moves back."""
    name = _pick(draw, table.columns(time=True))
    for row in table.rows if name else ():
        value = row[name]
        if isinstance(value, str):
            row[name] = str(date.fromisoformat(value[:10]) - timedelta(days=400)) + value[10:]
        elif value is not None:
            row[name] = value - timedelta(days=400)
    return name


def unit_change(table: Table, draw: Draw) -> str:
    """Seconds become milliseconds, metres kilometres."""
    name = _pick(draw, [one for one in table.columns(number=True) if any(map(float, table.values(one)))])
    factor = draw.choice((1_000, 0.001)) if "int" not in table.kinds.get(name, "") else 1_000
    if table.kinds.get(name) in ("integer", "smallint"):
        factor = 60
    for row in table.rows if name else ():
        if row[name] is not None:
            row[name] = _like(float(row[name]) * factor, row[name])
    return name


def truncated_text(table: Table, draw: Draw) -> str:
    """Cut at a width that half of the texts exceed."""
    name = _pick(draw, [one for one in table.columns(text=True) if median(map(len, table.values(one))) >= 5])
    if name:
        width = max(1, int(0.6 * median(map(len, table.values(name)))))
        for row in table.rows:
            row[name] = row[name][:width] if row[name] is not None else None
    return name


def mixed_encodings(table: Table, draw: Draw) -> str:
    """A third of the texts is read as Latin-1 where it is UTF-8."""

    def foreign(name: str) -> bool:
        values = table.values(name)
        return sum(not value.isascii() for value in values) > 0.2 * len(values)

    name = _pick(draw, [one for one in table.columns(text=True) if foreign(one)])
    for row in table.rows if name else ():
        if row[name] is not None and draw.random() < 0.35:
            row[name] = row[name].encode().decode("latin-1")
    return name


def reordered_splits(table: Table, draw: Draw) -> str:
    names = [one for one in table.kinds if one in ("split", "published_split") and len(set(table.values(one))) > 1]
    name = _pick(draw, names)
    values = sorted(set(table.values(name))) if name else []
    for row in table.rows if name else ():
        if row[name] is not None:
            row[name] = values[(values.index(row[name]) + 1) % len(values)]
    return name


def constant_column(table: Table, draw: Draw) -> str:
    named = table.columns(text=True, number=True, time=True)
    name = _pick(draw, [one for one in named if len(set(map(str, table.values(one)))) > 1])
    if name:
        value = draw.choice(table.values(name))
        for row in table.rows:
            row[name] = value
    return name


def default_values(table: Table, draw: Draw) -> str:
    """Zero where a number is not known."""
    named = [
        one for one in table.columns(number=True) if sum(not float(v) for v in table.values(one)) < len(table.rows) / 20
    ]
    name = _pick(draw, named)
    for row in table.rows if name else ():
        if row[name] is not None and draw.random() < 0.35:
            row[name] = _like(0.0, row[name])
    return name


def repeated_rows(table: Table, draw: Draw) -> str:
    """A feed that is stuck: two rows in five say what another one says, under keys of their own."""
    if len(table.rows) < 20:
        return ""
    stuck = draw.choice(table.rows)
    for row in table.rows:
        if draw.random() < 0.4:
            row.update({name: value for name, value in stuck.items() if name not in table.key})
    return "all"


def capital_letters(table: Table, draw: Draw) -> str:
    name = _pick(draw, [one for one in table.columns(text=True) if any(v != v.upper() for v in table.values(one))])
    for row in table.rows if name else ():
        row[name] = row[name].upper() if row[name] is not None else None
    return name


WAYS: dict[str, Callable[[Table, Draw], str]] = {
    way.__name__.replace("_", " "): way
    for way in (
        swapped_columns, shifted_distribution, half_the_rows, new_category, duplicated_keys, nulls, stale_dates,
        unit_change, truncated_text, mixed_encodings, reordered_splits, constant_column, default_values, repeated_rows,
        capital_letters,
    )
}  # fmt: skip


# ---------------------------------------------------------------- subjects


@dataclass
class Case:
    """One trial: what was spoiled in which column, and who noticed; "" where nobody did."""

    way: str
    column: str
    by: str
    said: str = ""


@dataclass
class Result:
    """What became of one subject: its trials, and in how many clean versions somebody saw something."""

    name: str
    rows: int
    cases: list[Case] = field(default_factory=list)
    clean: int = 0
    alarms: list[str] = field(default_factory=list)

    def cell(self, way: str) -> str:
        """How a cell of the matrix reads: who caught it, an x where a trial was missed, a dash where it cannot be."""
        tried = [case for case in self.cases if case.way == way]
        if not tried:
            return "–"
        missed = sum(not case.by for case in tried)
        letters = "/".join(dict.fromkeys(case.by for case in tried if case.by))
        return letters if not missed else f"{letters} **x**".strip()

    def caught(self, way: str) -> bool | None:
        tried = [case for case in self.cases if case.way == way]
        return all(case.by for case in tried) if tried else None


LETTERS = {"contract": "P", "dbt": "D", "critical": "C", "warning": "W"}


def learn(history: list[dict[str, Any]], found: dict[str, Any]) -> None:
    """Accept a profile: the latest comes first."""
    history.insert(0, ranges.with_drift(history, found))


def judged(found: Sequence[ranges.Bound]) -> tuple[str, str]:
    """What Great Expectations says of these ranges: its letter, and the first one that does not hold."""
    worst = sorted((bound for bound in found if not bound.holds()), key=lambda bound: bound.severity)[:1]
    return (LETTERS[worst[0].severity], f"{worst[0].notes}: saw {worst[0].value:.4g}") if worst else ("", "")


def trials(fresh: Callable[[int], Table], look: Callable[[Table], tuple[str, str]], count: int) -> Iterator[Case]:
    for way, spoil in WAYS.items():
        tried = set()
        for number in range(count):
            draw = Draw(f"{way} {number}")
            table = fresh(number)
            column = spoil(table, draw)
            if column and column not in tried:
                tried.add(column)
                yield Case(way, column, *look(table))


# ---------------------------------------------------------------- loads


def resources() -> list[tuple[Source, Resource]]:
    return [(source, resource) for source in catalogue.sources() for resource in source.resources]


@dataclass
class Loads:
    """The gates of one resource's loads, on a database whose changes are undone after each look."""

    db: connection
    source: Source
    resource: Resource

    @property
    def table(self) -> str:
        return self.source.table(self.resource)

    @property
    def fields(self) -> Kinds:
        return {one.name: postgres_type(one.type) for one in self.resource.schema}

    def drawn(self, seed: int) -> Table:
        rows = records(self.source.domain, seed)[self.table]
        return Table(
            [{name: row.get(name) for name in self.resource.schema.names} for row in rows],
            self.fields,
            self.resource.key,
        )

    def profile(self, rows: list[Record], before: dict[str, Any] | None) -> tuple[dict[str, Any], Any]:
        with self.db.cursor() as sql:
            sql.execute("delete from ops.load where source = %s", (self.source.name,))
            insert(sql, self.source, self.resource, rows, 1)
            of = self.fields if self.resource.store == "documents" else None
            columns = columns_of(self.db, "raw", self.table, of)
            found = profile(self.db, loads._state(self.source.name, self.table, 1), columns, before, "_key")
        self.db.rollback()
        return found, columns

    def look(self, history: list[dict[str, Any]], table: Table) -> tuple[str, str]:
        good = [row for row in table.rows if not check(self.resource, row)]
        bad = len(table.rows) - len(good)
        if bad > QUARANTINE * len(table.rows):
            return LETTERS["contract"], f"{bad} of {len(table.rows)} records break the contract"
        found, columns = self.profile(good, history[0])
        return judged(ranges.bounds(history, found, columns, self.resource.mode))

    def run(self, count: int = TRIALS, clean: int = CLEAN) -> Result:
        history: list[dict[str, Any]] = []
        for seed in range(HISTORY):
            learn(history, self.profile(self.drawn(seed).rows, history[0] if history else None)[0])
        result = Result(f"raw.{self.table}", history[0]["rows"], clean=clean)
        for seed in range(FIRST_CLEAN, FIRST_CLEAN + clean):
            by, said = self.look(history, self.drawn(seed))
            if by:
                result.alarms.append(said)
        drawn = {number: self.drawn(FIRST_SPOILED + number) for number in range(count)}
        result.cases += trials(
            lambda number: Table([dict(row) for row in drawn[number].rows], drawn[number].kinds, drawn[number].key),
            lambda table: self.look(history, table),
            count,
        )
        return result


def insert(sql: cursor, source: Source, resource: Resource, rows: list[Record], load: int) -> None:
    """The rows as a published load of the resource, in place of what its raw table holds."""
    table, names = source.table(resource), list(data_columns(resource))
    sql.execute(f'delete from raw."{table}"')
    sql.execute(
        "insert into ops.load (source, load, resource, state, pages, rows, versions, quarantined, bytes, fetched_at)"
        " values (%s, %s, %s, 'published', 1, %s, %s, 0, 1, '2026-01-05')",
        (source.name, load, resource.name, len(rows), len(rows)),
    )
    sql.execute(
        "insert into ops.landing (source, load, position, resource, key, sha256, name, bytes, content_type, fetched_at)"
        " values (%s, %s, 0, %s, %s, '', '', 0, '', '2026-01-05') on conflict do nothing",
        (source.name, load, resource.name, f"landing/{source.name}/{load}"),
    )
    values = []
    for position, row in enumerate(rows, 1):
        key = key_text(tuple(map(row.get, resource.key)))
        data = [json.dumps(row, ensure_ascii=False)] if names == ["doc"] else [_stored(row[name]) for name in names]
        values.append((load, position, 0, key, "0" * 32, False, False, *data))
    ours = ("_load", "_position", "_page", "_key", "_hash", "_deleted", "_again")
    listed = ", ".join(f'"{name}"' for name in (*ours, *names))
    psycopg2.extras.execute_values(sql, f'insert into raw."{table}" ({listed}) values %s', values, page_size=1_000)


def _stored(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


# ---------------------------------------------------------------- marts


@dataclass
class Marts:
    """The gates of one domain's marts, on a database that dbt has built once; changes are undone after each seed.

    Each seed goes the whole way: raw tables, then the statements that dbt compiled, in its order.
    """

    db: connection
    domain: str
    nodes: dict[str, dict[str, Any]]
    target: dict[str, Path]  # layer -> folder of dbt's artifacts

    @property
    def marts(self) -> list[str]:
        return transform.marts(self.domain)

    def compiled(self, node: dict[str, Any]) -> str:
        """The statement that dbt made of a model or test; empty where it made none."""
        for folder in self.target.values():
            path = folder / "compiled" / "lyrebird" / node["original_file_path"]
            path = path / node["path"] if path.suffix == ".yml" else path
            if path.exists():
                return path.read_text()
        return ""

    def tests(self, mart: str) -> list[str]:
        """The statements of dbt's tests that read a mart."""
        unique = f"model.lyrebird.{mart}"
        found = [
            self.compiled(node)
            for node in self.nodes.values()
            if node["resource_type"] == "test" and unique in node["depends_on"]["nodes"]
        ]
        return [statement for statement in found if statement]

    @contextmanager
    def built(self, seed: int) -> Iterator[None]:
        """The domain's marts as this seed makes them."""
        with self.db.cursor() as sql:
            sql.execute("set local session_replication_role = replica")  # children may go after their parents
            fill(sql, self.domain, records(self.domain, seed))
            for layer in ("staging", "core", "marts"):
                if layer == "marts" and self.domain not in transform.WITHOUT_CORE:
                    sql.execute("delete from ml.split_group where domain = %s", (self.domain,))
                    sql.execute(transform.ASSIGN.format(view=f"staging.int_{self.domain}_groups"))
                for node in self.in_order(layer):
                    self.make(sql, node)
        try:
            yield
        finally:
            self.db.rollback()

    def in_order(self, layer: str) -> list[dict[str, Any]]:
        """Models of a layer that are tables, parents first."""
        chosen = {
            name: node
            for name, node in self.nodes.items()
            if node["resource_type"] == "model"
            and self.domain in node["tags"]
            and node["config"]["materialized"] in ("table", "incremental")
            and ("marts" in node["tags"]) == (layer == "marts")
            and ("core" in node["tags"]) == (layer == "core")
        }
        placed: dict[str, None] = {}

        def place(name: str) -> None:
            if name not in placed:
                for parent in self.nodes.get(name, {}).get("depends_on", {}).get("nodes", []):
                    place(parent)
                placed[name] = None

        for name in sorted(chosen):
            place(name)
        return [chosen[name] for name in placed if name in chosen]

    def make(self, sql: cursor, node: dict[str, Any]) -> None:
        table = f'{node["schema"]}."{node["name"]}"'
        sql.execute(
            "select string_agg(quote_ident(attname), ', ' order by attnum) from pg_attribute "
            "where attrelid = %s::regclass and attnum > 0 and not attisdropped",
            (table,),
        )
        (names,) = warehouse.first(sql)
        sql.execute(f"delete from {table}")
        sql.execute(f"insert into {table} ({names}) select {names} from (\n{self.compiled(node)}\n) as made")

    def profile(self, mart: str, before: dict[str, Any] | None) -> tuple[dict[str, Any], Any]:
        columns = columns_of(self.db, f"marts_next_{self.domain}", mart)
        return profile(self.db, f'select * from marts_next_{self.domain}."{mart}"', columns, before), columns

    def drawn(self, mart: str) -> Table:
        schema = f"marts_next_{self.domain}"
        columns = columns_of(self.db, schema, mart)
        with self.db.cursor() as sql:
            sql.execute(f'select * from {schema}."{mart}"')
            names = [column.name for column in sql.description or ()]
            rows = [dict(zip(names, row, strict=True)) for row in sql.fetchall()]
            sql.execute(
                "select attname from pg_index join pg_attribute on attrelid = indrelid and attnum = any(indkey) "
                "where indrelid = to_regclass(%s) and indisprimary",
                (f'{schema}."{mart}"',),
            )
            key = tuple(name for (name,) in sql.fetchall())
        return Table(rows, {name: column.kind for name, column in columns.items()}, key)

    def look(self, history: list[dict[str, Any]], mart: str, table: Table) -> tuple[str, str]:
        """Who notices these rows in place of the mart's own: dbt by its contract or tests, then Great Expectations."""
        name = f'marts_next_{self.domain}."{mart}"'
        with self.db.cursor() as sql:
            sql.execute("savepoint before")
            try:
                sql.execute(f"delete from {name}")
                listed = ", ".join(f'"{column}"' for column in table.kinds)
                values = [[_adapted(row[column], kind) for column, kind in table.kinds.items()] for row in table.rows]
                psycopg2.extras.execute_values(sql, f"insert into {name} ({listed}) values %s", values, page_size=1_000)
                for statement in self.tests(mart):
                    sql.execute(f"select count(*) from (\n{statement}\n) as failures")
                    if warehouse.first(sql)[0]:
                        return LETTERS["dbt"], "a test of the mart"
                found, columns = self.profile(mart, history[0])
                return judged(marts.expected(mart, history, found, columns))
            except (psycopg2.IntegrityError, psycopg2.DataError) as error:  # of the contract that dbt enforces
                return LETTERS["dbt"], str(error).splitlines()[0]
            finally:
                sql.execute("rollback to savepoint before")

    def run(self, count: int = TRIALS, clean: int = CLEAN) -> list[Result]:
        histories: dict[str, list[dict[str, Any]]] = {mart: [] for mart in self.marts}
        for seed in range(HISTORY):
            with self.built(seed):
                for mart, history in histories.items():
                    learn(history, self.profile(mart, history[0] if history else None)[0])
        results = {
            mart: Result(f"marts.{mart}", history[0]["rows"], clean=clean) for mart, history in histories.items()
        }
        for seed in range(FIRST_CLEAN, FIRST_CLEAN + clean):
            with self.built(seed):
                for mart, history in histories.items():
                    by, said = self.look(history, mart, self.drawn(mart))
                    if by:
                        results[mart].alarms.append(said)
        with self.built(FIRST_SPOILED):
            for mart, history in histories.items():
                table = self.drawn(mart)

                def fresh(number: int, table: Table = table) -> Table:
                    return Table([dict(row) for row in table.rows], table.kinds, table.key)

                def look(spoiled: Table, mart: str = mart, history: list[dict[str, Any]] = history) -> tuple[str, str]:
                    return self.look(history, mart, spoiled)

                results[mart].cases += trials(fresh, look, count)
        return list(results.values())


def _adapted(value: Any, kind: str) -> Any:
    return psycopg2.extras.Json(value) if kind == "jsonb" and value is not None else value


def fill(sql: cursor, domain: str, made: Records) -> None:
    """A domain's raw tables, or the platform's own, in place of what is there."""
    if domain == "platform":
        for table, rows in made.items():
            sql.execute(f"delete from {table}")
            if table in ("ops.quarantine", "ops.audit"):
                sql.execute(f"alter table {table} alter column id restart")
            names = list(rows[0])
            values = [[row[name] for name in names] for row in rows]
            listed = ", ".join(f'"{name}"' for name in names)
            psycopg2.extras.execute_values(
                sql, f"insert into {table} ({listed}) values %s on conflict do nothing", values
            )
        return
    for source in catalogue.sources():
        if source.domain == domain:
            sql.execute("delete from ops.load where source = %s", (source.name,))
            for number, resource in enumerate(source.resources, 1):
                rows = [{name: row.get(name) for name in resource.schema.names} for row in made[source.table(resource)]]
                insert(sql, source, resource, rows, number)


# ---------------------------------------------------------------- the whole matrix


def prepare(world: World) -> None:
    """The warehouse's own tables and the raw tables of the catalogue, all of them empty."""
    migrate.upgrade(world.settings("admin"))
    with closing(warehouse.connect(world.settings("admin"))) as db, db, db.cursor() as sql:
        for role in ("loader", "transformer", "trainer", "analyst"):
            sql.execute(f"alter role {role} login password '{PASSWORD}'")
    pipeline.make_tables(catalogue.sources(), world.settings("loader"))


def built_marts(world: World, domain: str) -> Marts:
    """A domain that dbt has built from the first seed's data."""
    settings = world.settings("transformer")
    db = warehouse.connect(world.settings("admin"))
    with db, db.cursor() as sql:
        fill(sql, domain, records(domain, 0))
    for step in ("core", "splits", "marts"):
        transforming.run(domain, step, settings, retry=False, say=lambda text: None)
    target = {layer: transform.target_path(domain, layer) for layer in transform.LAYERS}
    nodes = json.loads((target["marts"] / "manifest.json").read_text())["nodes"]
    return Marts(db, domain, nodes, target)


def matrix(world: World, domains: Sequence[str], say: Callable[[str], None]) -> list[Result]:
    """Every resource and mart of these domains."""
    results = []
    with closing(warehouse.connect(world.settings("admin"))) as db:
        for source, resource in resources():
            if source.domain in domains:
                begun = time.monotonic()
                results.append(Loads(db, source, resource).run())
                say(f"{told(results[-1])} ({time.monotonic() - begun:.0f} s)")
    for domain in domains:
        begun = time.monotonic()
        built = built_marts(world, domain)
        with closing(built.db):
            found = built.run()
        results += found
        say("\n".join(map(told, found)) + f"\n({time.monotonic() - begun:.0f} s)")
    return results


def told(result: Result) -> str:
    missed = [f"{case.way} ({case.column})" for case in result.cases if not case.by]
    facts = f"{result.rows} rows, {len(result.cases)} trials, {len(result.alarms)} alarms {result.alarms[:2]}"
    return f"{result.name}: {facts}; missed: {missed}"


def share_caught(results: Sequence[Result]) -> tuple[int, int]:
    """Cells that were caught in every trial, and cells that there are."""
    cells = [found for result in results for way in WAYS if (found := result.caught(way)) is not None]
    return sum(cells), len(cells)


def page(results: Sequence[Result], minutes: float) -> str:
    caught, cells = share_caught(results)
    alarms = sum(len(result.alarms) for result in results)
    looked = sum(result.clean for result in results)
    by = Counter(case.by for result in results for case in result.cases)
    trials_ = sum(by.values())
    lines = [
        "# The spoiling matrix",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {minutes:.0f} minutes. Written by `--report` of `tests/faults/spoiling.py`.",
        "",
        "Every resource of the catalogue and every mart of the manifest, in plausible data that a seed makes, is "
        f"spoiled in {len(WAYS)} ways, each way in up to {TRIALS} columns. The gates have accepted {HISTORY} versions "
        f"before, of other seeds. {CLEAN} more versions of a subject are put before them as they are.",
        "",
        f"* **Caught: {caught} of {cells} cells ({caught / cells:.1%}).** A cell counts when all its trials are.",
        f"* **False alarms: {alarms} in {looked:,} clean versions** ({alarms / looked:.2%}); at most "
        f"{max(len(result.alarms) for result in results)} of {CLEAN} for one subject.",
        f"* Who saw it first: the page contract {by['P']}, dbt {by['D']}, Great Expectations {by['C']} as critical, "
        f"which stops, and {by['W']} as warnings, which show; nobody {by['']}, of {trials_:,} trials.",
        "",
        "**P** the page contract, **D** dbt, **C** Great Expectations, critical, **W** Great Expectations, a warning, "
        "**x** not caught in one column or all, **–** nothing there to spoil in this way.",
        "",
        "| subject | rows | " + " | ".join(WAYS) + " | false alarms |",
        "|---|---:|" + ":-:|" * len(WAYS) + "---:|",
    ]
    for result in results:
        cells_ = " | ".join(result.cell(way) for way in WAYS)
        lines.append(f"| `{result.name}` | {result.rows:,} | {cells_} | {len(result.alarms)} of {result.clean} |")
    lines += ["", "## What each way does", ""]
    lines += [
        f"* **{way}**{': ' + ' '.join(spoil.__doc__.split()) if spoil.__doc__ else ''}" for way, spoil in WAYS.items()
    ]
    lines += ["", "## What was not caught", "", "| subject | way | column |", "|---|---|---|"]
    for result in results:
        lines += [f"| `{result.name}` | {case.way} | {case.column} |" for case in result.cases if not case.by]
    lines += ["", "## False alarms", "", "| subject | what was said |", "|---|---|"]
    lines += [f"| `{result.name}` | {said} |" for result in results for said in result.alarms]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--domains", nargs="+", choices=transform.DOMAINS, default=list(transform.DOMAINS))
    parser.add_argument("--jobs", type=int, default=2, help="domains side by side, each with a server of its own")
    parser.add_argument("--report", type=Path, help="write what came of it into this Markdown file")
    given = parser.parse_args()
    begun = time.monotonic()
    with ProcessPoolExecutor(given.jobs, multiprocessing.get_context("spawn")) as pool:
        found = [result for of_domain in pool.map(in_a_world_of_its_own, given.domains) for result in of_domain]
    results = sorted(found, key=lambda result: result.name.partition(".")[0] != "raw")
    caught, cells = share_caught(results)
    print(f"{caught} of {cells} cells caught; {sum(len(result.alarms) for result in results)} false alarms")
    if given.report:
        given.report.write_text(page(results, (time.monotonic() - begun) / 60))


def in_a_world_of_its_own(domain: str) -> list[Result]:
    with temporary_world() as world:
        return matrix(world, [domain], say=lambda text: print(text, flush=True))


@contextmanager
def temporary_world() -> Iterator[World]:
    """A server of its own with one prepared database, and a folder for what dbt leaves."""
    folder = Path(tempfile.mkdtemp(prefix="lyre-spoiling-"))
    folder.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LYREBIRD_HOME", str(folder / "home"))
        server = Server(folder)
        try:
            world = server.database("lyrebird")
            prepare(world)
            yield world
        finally:
            server.stop()
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
