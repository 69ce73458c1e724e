"""What tests/unit/test_properties.py says of a reader, on the real stores: killed anywhere, rejected now and then.

Each example is a table of its own name. Loads are judged as the example says, without the audit's statistics, which
take seconds and have tests of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import sqlalchemy as sa
import tomli_w
from hypothesis import HealthCheck, Phase, example, given, seed, settings
from hypothesis import strategies as st
from support import Stack, another_database
from upstreams.changing_table import ALTER, DELETE, LAG, WAIT, WRITE, There

from ingestion import pipeline
from ingestion.contract import Source
from ingestion.sources import sql_reader, sql_table
from storage import warehouse
from storage.gates import loads as gate
from storage.gates.audit import Verdict

STAGES = 12  # that a run passes, about: the loader dies at one of them
NUMBERS = count()
PHASES = (Phase.explicit, Phase.generate)  # to look for the smallest example would take minutes on real stores


class Killed(BaseException):
    pass


@dataclass
class Here:
    """A table as it is loaded into the real stores."""

    stack: Stack
    options: Path
    name: str
    listed: dict[str, Any]

    @property
    def source(self) -> Source:
        return sql_table.source({"tables": {self.name: self.listed}})

    def run(self, dies_at: int | None = None, rejected: bool = False) -> None:
        """Ingest and judge. The process dies at that stage, or what came is rejected."""
        self.options.write_text(tomli_w.dumps({"sources": {"sql_table": {"tables": {self.name: self.listed}}}}))
        passed = 0

        def reached(stage: str) -> None:
            nonlocal passed
            passed += 1
            if passed == dies_at:
                raise Killed(stage)

        verdict = Verdict(not rejected, "critical" if rejected else "none", "not today" if rejected else "")
        settings = self.stack.settings("loader")
        with mock.patch.object(gate, "audit", lambda *_, **__: verdict), suppress(Killed):
            pipeline.ingest(self.source, settings, say=lambda text: None, reached=reached)
            pipeline.judge(self.source, settings, say=lambda text: None)

    def loads(self) -> int:
        return int(self.query(f"select count(*) from ops.load where resource = '{self.name}'")[0][0])

    def table(self, columns: list[str]) -> dict[int, dict[str, Any]]:
        """The current rows of published loads, by the names that the columns have there."""
        ((known,),) = self.query(
            f"select cursor -> 'columns' from ops.cursor where resource = '{self.name}'"
        ) or [([],)]  # fmt: skip
        places = {c["of"]: c["name"] for c in known if c["given"] and c["of"] in columns}
        if "id" not in places:
            return {}
        listed = ", ".join(f'"{name}"' for name in places.values())
        rows = self.query(
            f"""
            select {listed} from (
                select distinct on (r._key) r.* from raw."sql_table_{self.name}" as r
                join ops.load as l on l.source = 'sql_table' and l.load = r._load and l.state = 'published'
                order by r._key, r._load desc, r._position desc
            ) as latest where not _deleted
            """
        )
        found = [dict(zip(places, row, strict=True)) for row in rows]
        return {row["id"]: {name: value for name, value in row.items() if value is not None} for row in found}

    def versions(self) -> list[tuple[Any, ...]]:
        table = f'raw."sql_table_{self.name}"'
        if self.query(f"select to_regclass('{table}')") == [(None,)]:
            return []
        return self.query(f"select to_jsonb(r)::text from {table} as r order by _load, _position")

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        with closing(warehouse.connect(self.stack.settings("loader"))) as db, db, db.cursor() as sql:
            sql.execute(statement)
            return sql.fetchall()


@pytest.fixture(scope="module")
def options(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("options") / "lyrebird.toml"
        patch.setenv("LYREBIRD_OPTIONS", str(path))
        yield path


RUN = st.tuples(st.just("run"), st.none() | st.integers(1, STAGES), st.booleans())
EVENTS: st.SearchStrategy[list[tuple[Any, ...]]] = st.lists(WRITE | DELETE | WAIT | ALTER | RUN | RUN, max_size=9)
MODES = st.sampled_from(["merge", "replace", "append"])
# a row is gone, and comes back just as it was
BACK_AGAIN: list[tuple[Any, ...]] = [
    ("write", [(1, 0, 0), (2, 0, 0)]), ("run",), ("delete", [2]), ("run",), ("write", [(2, 0, 0)]),
]  # fmt: skip


@seed(1)
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES)
@given(EVENTS, MODES, st.integers(1, 4))
@example(events=BACK_AGAIN, mode="merge", batch=1)
def test_the_current_table_is_the_one_there_whatever_happened(
    stack: Stack, options: Path, tmp_path_factory: pytest.TempPathFactory, events: list[Any], mode: str, batch: int
) -> None:
    """Merge and replace: row for row what is there, without what is gone. Append: all rows there ever were.

    And the journal gives the same versions once more.
    """
    there = There(tmp_path_factory.mktemp("there") / "t.db")
    listed = {"url": f"sqlite:///{there.path}", "table": "t", "key": ["id"], "cursor": ["at", "id"], "mode": mode}
    here = Here(stack, options, f"p{next(NUMBERS)}", listed | {"lag": LAG, "deletions": 1e-9, "batch": batch})
    ever: dict[int, dict[str, Any]] = {}

    def run(*how: Any) -> None:
        there.save()
        with mock.patch.object(sql_reader, "_clock", lambda db: (there.now, timedelta())):
            here.run(*how)

    for what, *rest in [*events, ("run",)]:
        if what == "run":
            run(*rest)
        elif what == "write" and mode == "append":
            for i, (_, value, late) in enumerate(rest[0], start=len(there.rows)):
                there.put(i, value, late)
        elif mode != "append" or what not in ("delete", "alter"):
            there.happen(what, *rest)
        ever |= there.expected()
    found = here.table(["id", *there.columns])
    if mode == "append":
        assert found == ever
    elif there.rows:
        assert found == there.expected()
    loads = here.loads()
    run()
    assert here.table(["id", *there.columns]) == found
    if mode != "merge":  # which notes that keys were compared
        assert here.loads() == loads
    versions = here.versions()
    pipeline.replay(here.source, stack.settings("loader"), say=lambda text: None)
    assert here.versions() == versions


# ---------------------------------------------------------------- transactions

SLOT = st.integers(0, 2)
STEP = st.one_of(
    st.tuples(st.sampled_from(["insert", "insert", "commit", "roll back"]), SLOT),
    st.tuples(st.just("update"), SLOT, st.integers(0, 30)),
    st.just(("run",)),
)


@pytest.fixture(scope="module")
def other_postgres(stack: Stack) -> Iterator[sa.Engine]:
    with another_database(stack, "transactions", "p") as url:
        yield sa.create_engine(url, poolclass=sa.NullPool)


@seed(2)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES)
@given(st.lists(STEP, max_size=25), st.sampled_from([["updated_at", "id"], ["updated_at"]]), st.integers(1, 5))
def test_no_row_is_lost_whatever_order_transactions_commit_in(
    stack: Stack, options: Path, other_postgres: sa.Engine, steps: list[Any], cursor: list[str], batch: int
) -> None:
    """Rows are written in three transactions at once, with the time of writing, and read between any two steps."""
    name = f"t{next(NUMBERS)}"
    listed = {"table": name, "key": ["id"], "cursor": cursor, "batch": batch}
    here = Here(stack, options, name, listed | {"url": other_postgres.url.render_as_string(hide_password=False)})
    with other_postgres.begin() as db:
        db.exec_driver_sql(f"create table {name} (id int primary key, value int, updated_at timestamptz not null)")
    slots = [other_postgres.connect() for _ in range(3)]
    holds: dict[int, int] = {}  # row -> the transaction that has written it and is open
    rows = 0
    try:
        for what, *rest in [*steps, *(("commit", slot) for slot in range(3)), ("run",)]:
            if what == "run":
                here.run()
            elif what in ("commit", "roll back"):
                getattr(slots[rest[0]], what.replace(" ", ""))()
                holds = {row: slot for row, slot in holds.items() if slot != rest[0]}
            elif what == "insert":
                slots[rest[0]].exec_driver_sql(f"insert into {name} values ({rows}, 0, clock_timestamp())")
                holds[rows] = rest[0]
                rows += 1
            elif holds.get(rest[1], rest[0]) == rest[0]:
                slots[rest[0]].exec_driver_sql(
                    f"update {name} set value = value + 1, updated_at = clock_timestamp() where id = {rest[1]}"
                )
                holds[rest[1]] = rest[0]
        with other_postgres.connect() as db:
            there = {row[0]: dict(row._mapping) for row in db.exec_driver_sql(f"select id, value from {name}")}
        assert here.table(["id", "value"]) == there
        loads = here.loads()
        here.run()
        assert here.loads() == loads
    finally:
        for slot in slots:
            slot.close()
