"""Records under their contract: whatever a source yields is stored as it is or refused with a reason, never a crash."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from ingestion import loading, rows
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
    if store == "documents":
        from bson import decode, encode

        assert len(rows.hash_text(record)) == 32
        assert decode(encode(record))["id"] == record["id"]
        return
    batch = rows.batch_of(resource(), [record])
    assert len(rows.hashes(batch)[0].as_py()) == 16
    assert rows.copy_bytes(rows.data_columns(resource()), batch).startswith(b"PGCOPY")


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
def test_the_hash_of_a_document_knows_content_and_not_order(record: dict[str, Any], shuffle: Any) -> None:
    items = list(record.items())
    shuffle.shuffle(items)
    assert rows.hash_text(dict(items)) == rows.hash_text(record)
    assert rows.hash_text(record | {"id": record["id"] + "x"}) != rows.hash_text(record)


def test_the_hash_of_a_document_stays_what_it_is() -> None:
    # every stored version carries it: another hash would make every record a new version
    record = {"id": "a", "value": 1, "at": datetime(2024, 5, 1, tzinfo=UTC), "deep": {"b": [1.5, None, "ж"], "a": True}}
    assert rows.hash_text(record) == "e6de5d238c7975efb13996aa720ae0e1"
    assert rows.hash_text({"value": 1}) != rows.hash_text({"value": 1.0})
    assert rows.hash_text({"value": None}) != rows.hash_text({})


def test_the_hash_of_a_row_stays_what_it_is() -> None:
    record = {"id": "a", "flag": True, "count": -1, "level": 0.1, "at": datetime(2024, 5, 1, tzinfo=UTC)}
    record |= {"day": date(2024, 5, 1), "frames": [[60], []]}
    assert rows.hash_of(resource(), record) == "9bb86ad659adcb974758ee48652bcc70"


def test_a_row_of_nothing_has_a_hash_as_well() -> None:
    batch = rows.batch_of(resource(), [{"id": "a"}, {}, {"id": "b"}])
    assert len(set(rows.hashes(batch).to_pylist())) == 3


@seed(5)
@settings(max_examples=50, deadline=None)
@given(good)
def test_the_hash_of_a_row_knows_its_content_and_no_more(record: dict[str, Any]) -> None:
    backwards = resource(schema=pa.schema(list(reversed(SCHEMA))))
    wider = resource(schema=pa.schema([*SCHEMA, describe("new", pa.string(), "")]))
    own = rows.hash_of(resource(), record)
    assert rows.hash_of(backwards, record) == own
    assert rows.hash_of(wider, record) == own  # a column that a table gets changes no row that does not fill it
    assert rows.hash_of(wider, record | {"new": ""}) != own
    assert rows.hash_of(resource(), record | {"id": record["id"] + "x"}) != own


FLAT = pa.schema([field for field in SCHEMA if field.name != "frames"])


@seed(6)
@settings(max_examples=50, deadline=None)
@given(st.lists(good, max_size=5))
def test_a_batch_and_its_records_one_by_one_are_the_same(records: list[dict[str, Any]]) -> None:
    records = [{name: value for name, value in record.items() if name != "frames"} for record in records]
    records = [record | {"level": record.get("level") and float(record["level"])} for record in records]
    flat = resource(schema=FLAT)
    given = pa.RecordBatch.from_pylist(records, schema=FLAT)
    sifted = rows.sift(flat, given)
    assert sifted is not None
    batch, fit = sifted
    assert batch.equals(rows.batch_of(flat, records))
    assert fit.to_pylist() == [True] * len(records)
    assert [found.hex() for found in rows.hashes(batch).to_pylist()] == [rows.hash_of(flat, one) for one in records]
    assert rows.keys(flat, given).to_pylist() == [rows.key_text((record["id"],)) for record in records]


@pytest.mark.parametrize(
    ("field", "value"), [("id", None), ("id", "a\x00"), ("level", math.nan), ("level", math.inf), ("level", -math.inf)]
)
def test_a_row_of_a_batch_that_breaks_the_contract_is_seen(field: str, value: Any) -> None:
    records = [{"id": "good"}, {"id": "bad", field: value}, {"id": "better", "level": 1.0}]
    sifted = rows.sift(resource(schema=FLAT), pa.RecordBatch.from_pylist(records, schema=FLAT))
    assert sifted is not None
    assert sifted[1].to_pylist() == [True, False, True]


@pytest.mark.parametrize("key", [("count",), ("count", "count"), ("id", "count"), ("id",), ("day",)])
def test_keys_of_a_batch_are_those_of_its_records(key: tuple[str, ...]) -> None:
    records = [{"id": 'a"b', "count": 5, "day": date(2024, 5, 1)}, {"id": "ж", "count": -7}, {"id": "x"}]
    for some in (records[:1], records[:2], records):
        batch = pa.RecordBatch.from_pylist(some, schema=FLAT)
        expected = [rows.key_text(tuple(record.get(name) for name in key)) for record in some]
        assert rows.keys(resource(key=key, schema=FLAT), batch).to_pylist() == expected


def test_batches_that_need_a_look_at_each_record_say_so() -> None:
    plain = resource()
    assert rows.sift(resource("documents"), pa.RecordBatch.from_pylist([{"id": "a"}])) is None
    assert rows.sift(plain, pa.RecordBatch.from_pylist([{"id": "a", "more": 1}])) is None
    assert rows.sift(plain, pa.RecordBatch.from_pylist([{"id": 1}])) is None
    assert rows.sift(plain, pa.RecordBatch.from_pylist([{"id": "a", "frames": [[60]]}], schema=SCHEMA)) is None


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
    assert len(made) == 4
    assert '"at" timestamptz' in made[0]
    assert '"frames" jsonb' in made[0]
    there = dict.fromkeys([*rows.META, *list(KINDS)[:-1]], "text")
    assert rows.ddl(source("thing", plain), plain, there) == [
        'alter table raw."thing_things" add column "frames" jsonb'
    ]
    assert rows.ddl(source("thing", plain), plain, there | {"frames": "jsonb", "older": "text"}) == []
    assert rows.data_columns(resource("documents")) == {"doc": "jsonb"}


@pytest.mark.parametrize("text", ["a\x00b", "a\\u0000b", "\\\x00", "\\\\u0000", "\x00\x00"])
def test_json_for_postgresql_loses_nothing_but_nul(text: str) -> None:
    assert json.loads(loading._jsonb({"text": text})) == {"text": text.replace("\x00", "␀")}
