"""What a source says arrives in PostgreSQL as it was said: every type, at its edges, by both ways into a table."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from itertools import count
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from support import Stack

from ingestion import pipeline
from ingestion.contract import Context, Gone, Landed, Page, Record, Resource, Source, describe
from storage import warehouse

KINDS = {
    "id": pa.int64(),
    "text": pa.string(),
    "flag": pa.bool_(),
    "small": pa.int16(),
    "level": pa.float64(),
    "half": pa.float32(),
    "at": pa.timestamp("us", tz="UTC"),
    "clock": pa.timestamp("us"),
    "day": pa.date32(),
    "bytes": pa.binary(),
    "frames": pa.list_(pa.list_(pa.int16())),
    "json": pa.json_(),
}
EXACT = KINDS | {"price": pa.decimal128(38, 0)}
EAST = timezone(timedelta(hours=5, minutes=30))
EDGES: list[Record] = [
    {"id": 1},
    {"id": -(2**63), "text": "", "flag": False, "small": -(2**15), "level": -0.0, "half": 0.5},
    {"id": 2**63 - 1, "text": "\\N\t\n\r\\.\n\"',жё😀", "flag": True, "small": 2**15 - 1, "level": 5e-324},
    {"id": 4, "level": 1.7976931348623157e308, "at": datetime(1, 1, 1, tzinfo=UTC), "day": date(1, 1, 1)},
    {"id": 5, "at": datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), "day": date(9999, 12, 31)},
    {"id": 6, "at": datetime(2024, 2, 29, 1, 2, 3, 4, tzinfo=EAST), "clock": datetime(2024, 2, 29, 1, 2, 3, 4)},
    {"id": 7, "bytes": b"\x00\xff\\x", "frames": [[60, 64], []], "json": '{"a": [1, 0.5, null, "\\u00e4"]}'},
    {"id": 8, "bytes": b"", "frames": [], "json": "null", "clock": datetime(1, 1, 1)},
]


def source(name: str, kinds: dict[str, pa.DataType], records: list[Any]) -> Source:
    def fetch(context: Context) -> Iterator[Page | Gone]:
        done = context.cursor.get("done", 0)
        for number in range(done, len(records)):
            if isinstance(records[number], list) and any(isinstance(item, Gone) for item in records[number]):
                for item in records[number]:  # in their order: a page for each record
                    cursor = {"done": number + 1}
                    body = b"" if isinstance(item, Gone) else json.dumps(item).encode()
                    yield Gone(item.key, cursor) if isinstance(item, Gone) else Page("one", body, cursor)
            else:
                yield Page(str(number), str(number).encode(), {"done": number + 1})

    def parse(page: Landed) -> Iterator[Any]:
        if page.name == "one":
            yield json.loads(page.read())
            return
        batch = records[int(page.name)]
        if isinstance(batch, pa.RecordBatch):
            yield batch
        else:
            yield from (dict(record) for record in batch)

    schema = pa.schema([describe(field, kind, field, required=field == "id") for field, kind in kinds.items()])
    things = Resource("things", schema, ("id",), fetch, parse)
    return Source(name, name, "text", "", "none", "@daily", (things,))


def load(stack: Stack, found: Source) -> None:
    pipeline.ingest(found, stack.settings("loader"), say=lambda text: None)


def stored(stack: Stack, found: Source, kinds: dict[str, pa.DataType]) -> list[Record]:
    columns = ", ".join(f'"{name}"' for name in kinds)
    with closing(warehouse.connect(stack.settings("loader"))) as db, db, db.cursor() as sql:
        sql.execute(f"select {columns} from raw.{found.table(found.resources[0])} order by _load, _position")
        rows = [dict(zip(kinds, row, strict=True)) for row in sql.fetchall()]
    for row in rows:
        row["bytes"] = None if row["bytes"] is None else bytes(row["bytes"])
    return rows


def whole(record: Record, kinds: dict[str, pa.DataType]) -> Record:
    """The record as PostgreSQL gives it back."""
    found = {name: record.get(name) for name in kinds}
    if isinstance(found["json"], str):
        found["json"] = json.loads(found["json"])
    return found


@pytest.mark.parametrize("kinds", [KINDS, EXACT], ids=["copied as it is", "through a temporary table"])
def test_values_arrive_as_they_were(stack: Stack, kinds: dict[str, pa.DataType]) -> None:
    found = source("edges_exact" if kinds is EXACT else "edges", kinds, [EDGES])
    load(stack, found)
    assert stored(stack, found, kinds) == [whole(record, kinds) for record in EDGES]


def test_decimals_keep_every_digit(stack: Stack) -> None:
    prices = [Decimal("0.1"), Decimal("-1e30"), Decimal("12345678901234567890.123456789012345678901234567890"), None]
    found = source("prices", EXACT, [[{"id": number, "price": price} for number, price in enumerate(prices)]])
    load(stack, found)
    assert [row["price"] for row in stored(stack, found, EXACT)] == prices


FLAT = {name: kind for name, kind in KINDS.items() if name not in ("frames", "json")}
names = count()
values = st.fixed_dictionaries(
    {"id": st.integers(-(2**63), 2**63 - 1)},
    optional={
        "text": st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\x00")),
        "flag": st.none() | st.booleans(),
        "small": st.none() | st.integers(-(2**15), 2**15 - 1),
        "level": st.none() | st.floats(allow_nan=False, allow_infinity=False),
        "half": st.none() | st.floats(width=32, allow_nan=False, allow_infinity=False),
        "at": st.none() | st.datetimes(timezones=st.just(UTC)),
        "clock": st.none() | st.datetimes(),
        "day": st.none() | st.dates(),
        "bytes": st.none() | st.binary(),
    },
)


@seed(1)
@settings(max_examples=15, deadline=None)
@given(st.lists(values, max_size=20, unique_by=lambda record: record["id"]))
def test_batches_and_records_arrive_alike(stack: Stack, records: list[Record]) -> None:
    name = next(names)
    schema = pa.schema([describe(field, kind, field, required=field == "id") for field, kind in FLAT.items()])
    batch = pa.RecordBatch.from_pylist(records, schema=schema)
    one, other = source(f"as_batch_{name}", FLAT, [batch]), source(f"as_records_{name}", FLAT, [records])
    for found in (one, other):
        load(stack, found)
        assert stored(stack, found, FLAT) == [{field: record.get(field) for field in FLAT} for record in records]
    with closing(warehouse.connect(stack.settings("loader"))) as db, db, db.cursor() as sql:
        sql.execute(
            f"select (_position, _page, _key, _hash, _deleted) from raw.as_batch_{name}_things except "
            f"select (_position, _page, _key, _hash, _deleted) from raw.as_records_{name}_things"
        )
        assert sql.fetchall() == []


def test_bad_rows_of_a_batch_go_to_quarantine_and_the_rest_is_loaded(stack: Stack) -> None:
    schema = pa.schema([describe(field, kind, field, required=field == "id") for field, kind in FLAT.items()])
    records = [{"id": number, "text": "fine"} for number in range(100)]
    records[17] = {"id": 17, "level": float("nan")}
    records[40] = {"id": 40, "text": "a\x00b"}
    found = source("half_bad", FLAT, [pa.RecordBatch.from_pylist(records, schema=schema)])
    load(stack, found)
    assert [row["id"] for row in stored(stack, found, FLAT)] == [n for n in range(100) if n not in (17, 40)]
    with closing(warehouse.connect(stack.settings("loader"))) as db, db, db.cursor() as sql:
        sql.execute("select reason from ops.quarantine where source = 'half_bad' order by reason")
        assert [reason for (reason,) in sql.fetchall()] == [
            "contains the character NUL",
            "level is no finite number: nan",
        ]


def test_repeats_within_a_load_are_one_version(stack: Stack) -> None:
    # the second batch of the first load, and the whole second load, say the same once more
    first = [{"id": 1, "text": "a"}, {"id": 2, "text": "b"}, {"id": 1, "text": "a"}, {"id": 1, "text": "c"}]
    again = [{"id": 1, "text": "c"}, {"id": 2, "text": "b"}, {"id": 2, "text": "d"}, {"id": 2, "text": "d"}]
    found = source("repeats", KINDS, [first, [*first[2:]]])
    load(stack, found)
    assert [(row["id"], row["text"]) for row in stored(stack, found, KINDS)] == [
        (1, "a"), (2, "b"), (1, "c"), (1, "a"), (1, "c"),
    ]  # fmt: skip
    found = source("repeats", KINDS, [first, [*first[2:]], again])
    load(stack, found)
    assert [(row["id"], row["text"]) for row in stored(stack, found, KINDS)][5:] == [(2, "d")]


def test_versions_are_those_of_a_model_whatever_comes_in_whatever_order(stack: Stack) -> None:
    """Sixty loads of a few keys that change, repeat, vanish and return; some loads are rejected afterwards."""
    chance = random.Random(7)
    kinds = {"id": pa.int64(), "text": pa.string(), "bytes": pa.binary()}
    pages: list[Any] = []
    current: dict[int, str | None] = {}
    expected: list[tuple[int, str | None]] = []
    with closing(warehouse.connect(stack.settings("admin"))) as db:
        for number in range(60):
            page = [
                chance.choice((Gone((key,), {}), {"id": key, "text": chance.choice("ab")}))
                for key in chance.choices(range(5), k=chance.randrange(1, 8))
            ]
            pages.append(page)
            found = source("model", kinds, pages)
            load(stack, found)
            rejected = chance.random() < 0.2
            with db, db.cursor() as sql:
                sql.execute(
                    "update ops.load set state = %s where source = 'model' and load = %s",
                    ("rejected" if rejected else "published", number + 1),
                )
                sql.execute(
                    "update ops.cursor set cursor = %s where source = 'model'", (json.dumps({"done": number + 1}),)
                )
                sql.execute("select id, text from raw.model_things where _load = %s order by _position", (number + 1,))
                written = sql.fetchall()
            expected, state = [], dict(current)
            for item in page:
                key, text = (item.key[0], None) if isinstance(item, Gone) else (item["id"], item["text"])
                if state.get(key) != text:
                    expected.append((key if text else None, text))
                    state[key] = text
            assert written == expected, f"load {number + 1}"
            if not rejected:
                current = state
