"""Whatever happens to a table there, and wherever its reader dies: cursors, modes and drift keep what they promise.

The table is a real one (SQLite), read by the real source; what the warehouse would hold of it is a dictionary here. In
tests/integration/test_properties.py it is the warehouse.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import pyarrow as pa
import pytest
from hypothesis import example, given, seed, settings
from hypothesis import strategies as st
from upstreams.changing_table import ALTER, COLUMNS, DELETE, LAG, WAIT, WRITE, There
from upstreams.landed_bytes import LandedBytes

from ingestion.contract import Context, Page
from ingestion.sources import sql_reader, sql_table
from storage.errors import Problem
from storage.settings import Settings


@dataclass
class Here:
    """What has been loaded: the latest record of each key, the cursor, and every column there ever was."""

    options: dict[str, Any]
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    cursor: dict[str, Any] = field(default_factory=dict)
    columns: set[str] = field(default_factory=set)

    def run(self, there: There, dies_after: int | None = None, rejected: bool = False) -> int:
        """Read on; the reader dies after so many pages, or what came is rejected. The number of pages."""
        there.save()
        rows, cursor, count = dict(self.rows), self.cursor, 0
        whole = self.options["mode"] == "replace"
        with mock.patch.object(sql_reader, "_clock", lambda db: (there.now, timedelta())):
            for page in islice(self._pages(), None if whole else dies_after):
                assert isinstance(page, Page)
                rows = rows if count or not whole else {}
                count += 1
                cursor = json.loads(json.dumps(page.cursor))
                rows |= {record["id"]: record for record in _records(page)}
        if not rejected:
            self._goes_on(cursor)
            self.rows, self.cursor = rows, cursor
            self.columns |= {column["name"] for column in cursor.get("columns", [])}
        return count

    def _pages(self) -> Iterator[Any]:
        source = sql_table.source({"tables": {"t": self.options}})
        config = {name: default for name, (default, _) in source.config.items()} | {"tables": {"t": self.options}}
        (resource,) = source.resources
        return iter(resource.fetch(Context(config, self.cursor, resource, None, Settings(), lambda text: None)))

    def _goes_on(self, cursor: dict[str, Any]) -> None:
        """A cursor goes back only to read a table anew whose columns have changed, and then to the beginning."""
        before, after = (one.get("at") for one in (self.cursor, cursor))
        if before is not None and after is not None and self.cursor["columns"] == cursor["columns"]:
            assert sql_table._values(after) >= sql_table._values(before)  # type: ignore[operator]

    def table(self, there: There) -> dict[int, dict[str, Any]]:
        """The rows by the names that the columns have there."""
        places = {
            column["name"]: column["of"]
            for column in self.cursor.get("columns", [])
            if column["given"] and column["of"] in {"id", *there.columns}
        }
        return {
            number: {places[name]: value for name, value in record.items() if name in places}
            for number, record in self.rows.items()
        }


def _records(page: Page) -> list[dict[str, Any]]:
    body = page.body.read_bytes() if isinstance(page.body, Path) else page.body
    found: list[dict[str, Any]] = []
    for one in sql_table.parse(LandedBytes(body or b"", **page.meta)):
        found += one.to_pylist() if isinstance(one, pa.RecordBatch) else [one]
    return found


@contextmanager
def worlds(at: str, **options: Any) -> Iterator[tuple[There, Here]]:
    with TemporaryDirectory() as folder:
        there = There(Path(folder) / "t.db", at)
        there.save()
        listed = {"url": f"sqlite:///{there.path}", "table": "t", "key": ["id"], "lag": LAG, "deletions": 0}
        yield there, Here(listed | options)


# the reader dies after so many pages, or what it has read is rejected
RUN = st.tuples(st.just("run"), st.none() | st.integers(0, 3), st.booleans()) | st.just(("run", None, False))
EVENTS: st.SearchStrategy[list[tuple[Any, ...]]] = st.lists(WRITE | WRITE | DELETE | WAIT | RUN | RUN, max_size=16)
ORDERS = st.sampled_from([["at"], ["at", "id"]])


# a row comes as late as it may, with the very time of the last one that was not young, and before it by its key
AT_THE_LIMIT = [("write", [(5, 0, 0)]), ("wait", LAG), ("write", [(6, 0, 0)]), ("run", None, False)]
LATEST = ("write", [(4, 0, LAG)])


@seed(1)
@settings(max_examples=60, deadline=None)
@given(EVENTS, st.sampled_from(["timestamp", "integer"]), ORDERS, st.integers(1, 5))
@example([*AT_THE_LIMIT, LATEST], "timestamp", ["at"], 5)
@example([*AT_THE_LIMIT, LATEST], "integer", ["at"], 5)
def test_merge_has_every_row_as_it_is_there(events: list[Any], at: str, order: list[str], batch: int) -> None:
    """Late ones, too, that say an earlier time than what was read before them; what is gone there is kept here."""
    with worlds(at, mode="merge", cursor=order, batch=batch) as (there, here):
        _happen(there, here, events)
        here.run(there)
        found = here.table(there)
        assert {number: found.get(number) for number in there.rows} == there.expected()
        assert here.run(there) == 0


@seed(2)
@settings(max_examples=60, deadline=None)
@given(EVENTS, st.sampled_from(["timestamp", "integer"]), ORDERS, st.integers(1, 5))
def test_append_has_all_rows_that_there_ever_were(events: list[Any], at: str, order: list[str], batch: int) -> None:
    with worlds(at, mode="append", cursor=order, batch=batch) as (there, here):
        ever: dict[int, dict[str, Any]] = {}
        for event in events:
            if event[0] == "write":  # rows are only added
                for i, (_, value, late) in enumerate(event[1], start=len(ever)):
                    there.put(i, value, late)
                ever |= there.expected()
            elif event[0] != "delete":
                _happen(there, here, [event])
        here.run(there)
        assert here.table(there) == ever
        assert here.run(there) == 0


@seed(3)
@settings(max_examples=40, deadline=None)
@given(EVENTS, st.integers(1, 5))
def test_replace_is_what_is_there_and_an_empty_read_takes_nothing_away(events: list[Any], batch: int) -> None:
    with worlds("timestamp", mode="replace", batch=batch) as (there, here):
        _happen(there, here, events)
        before = here.table(there)
        here.run(there)
        assert here.table(there) == (there.expected() or before)
        assert here.run(there) == 0


def _happen(there: There, here: Here, events: list[Any]) -> None:
    for what, *rest in events:
        if what == "settle":
            there.tick += 2 * LAG
            here.run(there)
        elif what == "run":
            here.run(there, *rest)
        else:
            there.happen(what, *rest)


# ---------------------------------------------------------------- drift

SETTLE = st.just(("settle",))  # all rows are older than the lag, and read
DRIFTS: st.SearchStrategy[list[tuple[Any, ...]]] = st.lists(WRITE | WAIT | RUN | SETTLE | ALTER | ALTER, max_size=12)
MODES = st.sampled_from(["merge", "replace"])


@seed(4)
@settings(max_examples=80, deadline=None)
@given(DRIFTS, MODES)
@example([("write", [(1, 1, 0)]), ("settle",), ("alter", {"value": "integer", "b": "text"}, 1)], "merge")
def test_evolve_has_every_value_under_a_name_that_stays(events: list[Any], mode: str) -> None:
    with worlds("timestamp", mode=mode, cursor=["at"], batch=3) as (there, here):
        for event in events:
            columns = set(here.columns)
            _happen(there, here, [event])
            assert columns <= here.columns
            if event == ("run", None, False) and there.rows:
                assert here.table(there) == there.expected()
        here.run(there)
        assert here.table(there) == there.expected()


@seed(5)
@settings(max_examples=60, deadline=None)
@given(COLUMNS, COLUMNS, MODES)
def test_freeze_takes_nothing_of_a_changed_table_and_goes_on_when_it_is_mended(
    one: dict[str, str], other: dict[str, str], mode: str
) -> None:
    with worlds("timestamp", mode=mode, cursor=["at"], batch=3, drift="freeze") as (there, here):
        there.change(one, 0)
        _happen(there, here, [("write", [(n, n, 0) for n in range(5)]), ("run",)])
        rows, cursor = here.rows, here.cursor
        there.change(other, 1)
        there.put(9, 9)
        if _differ(one, other):
            with pytest.raises(Problem, match=r"t is frozen and has changed: .*; nothing was loaded\. Undo"):
                here.run(there)
            assert (here.rows, here.cursor) == (rows, cursor)
            there.change(one, 2)
        there.tick += 1
        for number in list(there.rows):
            there.put(number, number)
        here.run(there)
        assert here.table(there) == there.expected()


@seed(6)
@settings(max_examples=60, deadline=None)
@given(COLUMNS, DRIFTS, MODES)
def test_discard_keeps_the_columns_that_were_there_at_first(
    first: dict[str, str], events: list[Any], mode: str
) -> None:
    with worlds("timestamp", mode=mode, cursor=["at"], batch=3, drift="discard") as (there, here):
        there.change(first, 0)
        _happen(there, here, [("write", [(0, 0, 0)]), ("run",), *events])
        assert here.columns == {"id", "at", *first}
        there.tick += 1
        for number in list(there.rows):
            there.put(number, number)
        here.run(there)
        kept = {n for n, kind in there.columns.items() if n in first and not _differ({n: first[n]}, {n: kind})}
        assert here.columns == {"id", "at", *first}
        assert here.table(there) == there.expected({"id", *kept})


def _differ(one: dict[str, str], other: dict[str, str]) -> bool:
    """Whether a table changed for the contract: decimals hold whole numbers and fractions as they are."""
    held = {("decimal(9,2)", "integer"), ("decimal(9,2)", "real")}
    same = all(name in one and (one[name] == kind or (one[name], kind) in held) for name, kind in other.items())
    return not same or one.keys() != other.keys()
