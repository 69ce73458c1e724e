"""Records under their contract: whatever a source yields is stored as it is or refused with a reason, never a crash."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from ingestion import rows
from ingestion.contract import Resource, Source, describe
from storage.errors import Problem

KINDS = {
    "id": pa.string(),
    "flag": pa.bool_(),
    "count": pa.int64(),
    "level": pa.float64(),
    "at": pa.timestamp("us", tz="UTC"),
    "day": pa.date32(),
    "frames": pa.list_(pa.list_(pa.int16())),
}
SCHEMA = pa.schema([describe(name, kind, name, required=name == "id") for name, kind in KINDS.items()])


def resource(store: str = "rows", key: tuple[str, ...] = ("id",), schema: pa.Schema = SCHEMA) -> Resource:
    return Resource("things", schema, key, fetch=lambda context: (), parse=lambda page: iter(()), store=store)  # type: ignore[arg-type]


def source(name: str = "thing", resource: Resource | None = None) -> Source:
    return Source(name, name, "text", "", "none", "@daily", (resource,) if resource else ())


def reason(record: dict[str, Any], store: str = "rows") -> str:
    return rows.check(resource(store), record)


text = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)
good = st.fixed_dictionaries(
    {"id": text},
    optional={
        "flag": st.none() | st.booleans(),
        "count": st.none() | st.integers(-(2**63), 2**63 - 1),
        "level": st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**63 - 1),
        "at": st.none() | st.datetimes(timezones=st.just(UTC)),
        "day": st.none() | st.dates(),
        "frames": st.none() | st.lists(st.lists(st.integers(0, 127))),
    },
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | st.text(max_size=8)
    | st.binary(max_size=3) | st.dates() | st.datetimes() | st.decimals(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@seed(1)
@settings(max_examples=150, deadline=None)
@given(good)
def test_records_that_keep_the_contract_pass(record: dict[str, Any]) -> None:
    assert reason(record) == ""


@seed(2)
@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from([*KINDS, "more"]), anything, max_size=8), st.sampled_from(["rows", "documents"]))
def test_any_record_is_stored_or_refused_with_a_reason(record: dict[str, Any], store: str) -> None:
    said = reason(record, store)
    assert "\n" not in said
    if said:
        return
    # what passed can be hashed, copied, and written as the JSON and BSON that the stores take
    assert len(rows.hash_text(record)) == 32
    line = rows.copy_line([rows.key_text((record["id"],)), *(record.get(name) for name in KINDS)])
    assert line.encode().count(b"\n") == 1
    assert line.count("\t") == len(KINDS)
    if store == "documents":
        from bson import decode, encode

        json.loads(rows.copy_line([record]).replace("\\\\", "\\"), parse_constant=pytest.fail)
        assert decode(encode(record))["id"] == record["id"]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("id", None, "id is missing"),
        ("id", 5, "id is no text: 5"),
        ("id", "a\x00", "contains the character NUL"),
        ("id", "\ud83d", "contains half of a UTF-16 pair"),
        ("id", "ä" * 1001, "its key is longer than 2,000 bytes"),
        ("flag", 1, "flag is no boolean: 1"),
        ("count", True, "count is no integer: True"),
        ("count", 2**63, "count does not fit 64 bits"),
        ("count", "1", "count is no integer: '1'"),
        ("level", math.nan, "level is no finite number: nan"),
        ("level", -math.inf, "level is no finite number: -inf"),
        ("level", 10**400, "level does not fit 64 bits"),
        ("level", True, "level is no finite number: True"),
        ("at", datetime(2024, 1, 1), "at is no time with a zone: datetime.datetime(2024, 1, 1, 0, 0)"),
        ("at", "2024-01-01", "at is no time with a zone: '2024-01-01'"),
        ("day", "2024-01-01", "day is no date: '2024-01-01'"),
        ("frames", "[[60]]", "frames is no list: '[[60]]'"),
        ("frames", [[60, "x"]], "frames holds what holds what is no integer: 'x'"),
        ("more", 1, "unknown field more"),
    ],
)
def test_what_breaks_the_contract_is_named(field: str, value: Any, said: str) -> None:
    assert reason({"id": "a"} | {field: value}) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (math.nan, "contains a number that is not finite"),
        ([{"deep": [2**64]}], "contains a number past 64 bits"),
        ({"a\x00b": 1}, "contains the character NUL"),
        ({"a": {"\udc00": 1}}, "contains half of a UTF-16 pair"),
        ({1: "one"}, "contains a field whose name is no text"),
        (date(2024, 1, 1), "is no document"),
        ("x" * 17_000_000, "has 17,0"),
    ],
)
def test_what_no_document_can_hold_is_named(value: Any, said: str) -> None:
    assert reason({"id": "a", "more": value}, "documents").startswith(said)


def test_a_document_nests_as_deep_as_the_store_and_no_deeper() -> None:
    deep: dict[str, Any] = {}
    for _ in range(400):
        deep = {"in": deep}
    assert reason({"id": "a", "more": deep}, "documents") == "is nested deeper than 100 levels"
    assert reason({"id": "a", "more": {"in": {"in": []}}}, "documents") == ""


@seed(3)
@settings(max_examples=50, deadline=None)
@given(st.lists(st.none() | text | st.integers(), min_size=1, max_size=3), st.lists(text, min_size=1, max_size=3))
def test_different_keys_have_different_texts(one: list[Any], other: list[Any]) -> None:
    assert (rows.key_text(tuple(one)) == rows.key_text(tuple(other))) == (one == other)


def test_a_key_is_itself_when_it_is_one_text_and_json_otherwise() -> None:
    assert rows.key_text(("Ünï",)) == "Ünï"
    assert rows.key_text((5,)) == "[5]"
    assert json.loads(rows.key_text(("a", None, 5, "ж"))) == ["a", None, 5, "ж"]


@seed(4)
@settings(max_examples=50, deadline=None)
@given(good, st.randoms(use_true_random=False))
def test_the_hash_knows_content_and_not_order(record: dict[str, Any], shuffle: Any) -> None:
    items = list(record.items())
    shuffle.shuffle(items)
    assert rows.hash_text(dict(items)) == rows.hash_text(record)
    assert rows.hash_text(record | {"id": record["id"] + "x"}) != rows.hash_text(record)


def test_the_hash_stays_what_it_is() -> None:
    # every stored version carries it: another hash would make every record a new version
    record = {"id": "a", "value": 1, "at": datetime(2024, 5, 1, tzinfo=UTC), "deep": {"b": [1.5, None, "ж"], "a": True}}
    assert rows.hash_text(record) == "de92651486c98fdd252a1ab8294546e7"
    assert rows.hash_text({"value": 1}) != rows.hash_text({"value": 1.0})
    assert rows.hash_text({"value": None}) != rows.hash_text({})


def test_copy_writes_what_postgresql_reads() -> None:
    zone = timezone(timedelta(hours=5, minutes=30))
    moment = datetime(2024, 5, 1, 1, 2, 3, 4, zone)
    values = [None, "\\N", "a\tb\nc\rd\\", True, False, -1, 1e-300, date(2024, 5, 1), moment, [["\t"]]]
    line = (
        '\\N\t\\\\N\ta\\tb\\nc\\rd\\\\\tt\tf\t-1\t1e-300\t2024-05-01\t2024-05-01T01:02:03.000004+05:30\t[["\\\\t"]]\n'
    )
    assert rows.copy_line(values) == line


NAMES = ["", "1a", "Things", "a-b", 'a"; drop table x; --', "ä", "x" * 52, "a\n", "_load", "pg_\x00"]


@pytest.mark.parametrize("name", NAMES)
def test_bad_names_make_no_statement(name: str) -> None:
    plain = resource()
    with pytest.raises(Problem, match="is no name"):
        rows.ddl(source(name, plain), plain, {})
    odd = resource(key=(name,), schema=pa.schema([describe(name, pa.string(), "", required=True)]))
    with pytest.raises(Problem, match="is no name"):
        rows.ddl(source("thing", odd), odd, {"_load": "bigint"})


def test_a_table_is_made_once_and_widened_by_new_columns_only() -> None:
    plain = resource()
    made = rows.ddl(source("thing", plain), plain, {})
    assert len(made) == 2
    assert '"at" timestamptz' in made[0]
    assert '"frames" jsonb' in made[0]
    there = dict.fromkeys([*rows.META, *list(KINDS)[:-1]], "text")
    assert rows.ddl(source("thing", plain), plain, there) == [
        'alter table raw."thing_things" add column "frames" jsonb'
    ]
    assert rows.ddl(source("thing", plain), plain, there | {"frames": "jsonb", "older": "text"}) == []
    assert rows.data_columns(resource("documents")) == {"doc": "jsonb"}
