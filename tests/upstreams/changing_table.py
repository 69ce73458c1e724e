"""A table of somebody else that changes as tables do: rows that are late or vanish, and columns that come and go."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

NOW = datetime(2024, 5, 1, tzinfo=UTC)
LAG = 5  # seconds, or values
VALUES: dict[str, Any] = {
    "integer": lambda n: n,
    "real": lambda n: n + 0.5,
    "decimal(9,2)": lambda n: Decimal(f"{n}.25"),
    "text": lambda n: f"'{n}",
    "date": lambda n: (NOW + timedelta(days=n)).date(),
}


@dataclass
class There:
    """The table of somebody else: columns beside ``id`` and ``at``, and rows; written to a file as it is."""

    path: Path
    at: str = "timestamp"
    columns: dict[str, str] = field(default_factory=lambda: {"value": "integer"})
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    known: dict[tuple[int, str, str], Any] = field(default_factory=dict)
    tick: int = 0

    def moment(self, tick: int) -> Any:
        return tick if self.at == "integer" else str((NOW + timedelta(seconds=tick)).replace(tzinfo=None))

    def put(self, number: int, value: int, late: int = 0) -> None:
        """Write a row that says it is ``late`` ticks old."""
        self.rows[number] = {"id": number, "at": self.moment(self.tick - late)}
        for name, kind in self.columns.items():
            self.rows[number][name] = self.known[number, name, kind] = VALUES[kind](value)

    def change(self, columns: dict[str, str], value: int) -> None:
        """Other columns, by an ``alter table`` that touches no ``at``. One that comes back has its values again."""
        self.columns = columns
        for number, row in self.rows.items():
            told = {
                name: self.known.setdefault((number, name, kind), VALUES[kind](value + number))
                for name, kind in columns.items()
            }
            self.rows[number] = {"id": number, "at": row["at"]} | told

    def save(self) -> None:
        kinds = {"id": "integer primary key", "at": f"{self.at} not null"} | self.columns
        with closing(sqlite3.connect(self.path)) as db:
            db.execute("drop table if exists t")
            db.execute(f"create table t ({', '.join(f'{name} {kind}' for name, kind in kinds.items())})")
            for row in self.rows.values():
                plain = [str(v) if not isinstance(v, (int, float)) else v for v in map(row.get, kinds)]
                db.execute(f"insert into t values ({', '.join('?' * len(kinds))})", plain)
            db.commit()

    @property
    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.tick)

    def expected(self, columns: Collection[str] | None = None) -> dict[int, dict[str, Any]]:
        """The rows, or these columns of them, without the time."""
        return {
            number: {name: v for name, v in row.items() if name != "at" and (columns is None or name in columns)}
            for number, row in self.rows.items()
        }

    def happen(self, what: str, *rest: Any) -> None:
        """One of the events below."""
        if what == "write":
            for number, value, late in rest[0]:
                self.put(number, value, late)
        elif what == "delete":
            for number in rest[0]:
                self.rows.pop(number, None)
        elif what == "wait":
            self.tick += rest[0]
        elif what == "alter":
            self.change(*rest)


NUMBER, VALUE = st.integers(0, 6), st.integers(0, 5)
LATE = st.sampled_from([0, 0, 1, LAG - 1, LAG, LAG])
WRITE = st.tuples(st.just("write"), st.lists(st.tuples(NUMBER, VALUE, LATE), min_size=1, max_size=6))
DELETE = st.tuples(st.just("delete"), st.lists(NUMBER, min_size=1, max_size=4))
WAIT = st.tuples(st.just("wait"), st.sampled_from([1, LAG, 2 * LAG]))
COLUMNS = st.dictionaries(st.sampled_from(["value", "b", "c"]), st.sampled_from(list(VALUES)))
ALTER = st.tuples(st.just("alter"), COLUMNS, VALUE)
