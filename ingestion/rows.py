"""Records as rows of a raw table: validation, keys, hashes, DDL, and the bytes that COPY reads.

Columns travel as Arrow arrays, whether a source gives records one by one or whole batches of them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pgpq
import pgpq.encoders
import pgpq.schema
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from ingestion.contract import Resource, Source
from storage.errors import Problem

META = {
    "_load": "bigint not null",
    "_position": "bigint not null",
    "_page": "bigint not null",  # position of the page in ops.landing, which has its key and when it was fetched
    "_key": "text not null",
    "_hash": "uuid not null",
    "_deleted": "boolean not null",
    "_again": "boolean not null",  # whether it follows another version of its key
}
NAME = re.compile(r"[a-z][a-z0-9_]{0,50}\Z")
INT64 = 2**63
DIGITS = 10_000  # of a decimal, on one side of the point: PostgreSQL has room for 16,383 behind it
# What a column may become without a change to any value in it: (type as PostgreSQL names it, type it becomes).
WIDER = {("bigint", "numeric"), ("date", "timestamp")}
LONGEST_KEY = 2_000  # bytes: PostgreSQL's index on _key holds no more than 2,704
DEEPEST = 100  # levels that the document store nests
LARGEST_DOCUMENT = 16_000_000  # bytes as BSON; the limit is 16 MiB, and a version has other fields too


def data_columns(resource: Resource) -> dict[str, str]:
    """Data columns of the resource's raw table and their PostgreSQL types."""
    if resource.store == "documents":
        return {"doc": "jsonb"}
    return {field.name: postgres_type(field.type) for field in resource.schema}


def postgres_type(kind: pa.DataType) -> str:
    tests: tuple[tuple[Callable[[pa.DataType], bool], str], ...] = (
        (pa.types.is_boolean, "boolean"),
        (pa.types.is_integer, "bigint"),
        (pa.types.is_floating, "double precision"),
        (pa.types.is_decimal, "numeric"),
        (lambda kind: pa.types.is_timestamp(kind) and kind.tz is None, "timestamp"),
        (pa.types.is_timestamp, "timestamptz"),
        (pa.types.is_date, "date"),
        (pa.types.is_binary, "bytea"),
        (pa.types.is_nested, "jsonb"),
        (lambda kind: isinstance(kind, pa.JsonType), "jsonb"),
    )
    return next((name for test, name in tests if test(kind)), "text")


def ddl(source: Source, resource: Resource, existing: Mapping[str, str]) -> list[str]:
    """Statements that make the raw table, or widen the one there is (``existing``: column -> type)."""
    table = source.table(resource)
    columns = data_columns(resource)
    for name in (table, *columns):
        if not NAME.match(name) or (name in META):
            raise Problem(f"{source.name}.{resource.name}: {name!r} is no name for a table or column")
    if not existing:
        body = ", ".join(f'"{name}" {kind}' for name, kind in (META | columns).items())
        return [f'create table raw."{table}" ({body})', *with_indexes(table)]
    added = [f'add column "{name}" {kind}' for name, kind in columns.items() if name not in existing]
    wider = [
        f'alter column "{name}" type {kind}' for name, kind in columns.items() if (existing.get(name), kind) in WIDER
    ]
    return [f'alter table raw."{table}" {change}' for change in (*added, *wider)]


def with_indexes(table: str) -> list[str]:
    """Statements that give a raw table its indexes; quicker after many rows than before them."""
    return [
        f'alter table raw."{table}" add constraint "{table}_pkey" primary key (_load, _position)',
        f'create index "{table}_key" on raw."{table}" (_key, _load, _position)',
        f'create index "{table}_again" on raw."{table}" (_key) where _again',
    ]


def without_indexes(table: str) -> list[str]:
    """Statements that take them away."""
    return [
        f'alter table raw."{table}" drop constraint "{table}_pkey"',
        f'drop index raw."{table}_key", raw."{table}_again"',
    ]


def check(resource: Resource, record: Mapping[str, Any]) -> str:
    """Why the record breaks the resource's contract; "" when it does not."""
    for field in resource.schema:
        value = record.get(field.name)
        if value is None:
            if not field.nullable:
                return f"{field.name} is missing"
            continue
        reason = _check_value(field.type, value)
        if reason:
            return f"{field.name} {reason}"
    if resource.store != "documents":
        unknown = record.keys() - set(resource.schema.names)
        if unknown:
            return f"unknown field {min(map(str, unknown))}"
    reason = _unstorable(record)
    if not reason and len(key_text(tuple(map(record.get, resource.key))).encode()) > LONGEST_KEY:
        reason = f"its key is longer than {LONGEST_KEY:,} bytes"
    return reason or (_unfit(record) if resource.store == "documents" else "")


_PLAIN: tuple[tuple[Callable[[pa.DataType], bool], type, str], ...] = (
    (pa.types.is_boolean, bool, "is no boolean"),
    (pa.types.is_string, str, "is no text"),
    (pa.types.is_binary, bytes, "holds no bytes"),
)


def _check_value(kind: pa.DataType, value: Any) -> str:
    for test, python, what in _PLAIN:
        if test(kind):
            return "" if isinstance(value, python) else f"{what}: {_brief(value)}"
    if pa.types.is_integer(kind):
        if not isinstance(value, int) or isinstance(value, bool):
            return f"is no integer: {_brief(value)}"
        return "" if -INT64 <= value < INT64 else "does not fit 64 bits"
    if pa.types.is_floating(kind):
        if isinstance(value, int) and not isinstance(value, bool):
            return "" if -INT64 <= value < INT64 else "does not fit 64 bits"
        return "" if isinstance(value, float) and math.isfinite(value) else f"is no finite number: {_brief(value)}"
    if pa.types.is_date(kind):
        return "" if isinstance(value, date) and not isinstance(value, datetime) else f"is no date: {_brief(value)}"
    if pa.types.is_decimal(kind):
        if not isinstance(value, Decimal) or not value.is_finite():
            return f"is no finite decimal: {_brief(value)}"
        return "" if abs(value.adjusted()) <= DIGITS else f"has more than {DIGITS:,} digits"
    if pa.types.is_timestamp(kind):
        zone = "a" if kind.tz else "no"
        fits = isinstance(value, datetime) and bool(value.tzinfo) == bool(kind.tz)
        return "" if fits else f"is no time with {zone} zone: {_brief(value)}"
    if pa.types.is_list(kind):
        if not isinstance(value, (list, tuple)):
            return f"is no list: {_brief(value)}"
        items = (item for item in value if item is not None)
        return next((f"holds what {why}" for item in items if (why := _check_value(kind.value_type, item))), "")
    return _check_json(value) if isinstance(kind, pa.JsonType) else ""


def _brief(value: Any) -> str:
    """A value for people, even one that is deeper than Python's stack or has more digits than it writes."""
    try:
        return f"{value!r:.40}"
    except (RecursionError, ValueError):
        return f"a {type(value).__name__}"


def _check_json(value: Any) -> str:
    """JSON as a text, which goes to PostgreSQL as it is."""
    try:
        reason = _unstorable(json.loads(value))
    except (TypeError, ValueError, RecursionError):
        return f"is no JSON: {_brief(value)}"
    return f"holds JSON that {reason}" if reason else ""


def _unstorable(value: Any, depth: int = 0) -> str:
    """What PostgreSQL's text or JSON or BSON cannot hold."""
    if isinstance(value, str):
        if "\x00" in value:
            return "contains the character NUL"
        return "" if value.isascii() or not _SURROGATE.search(value) else "contains half of a UTF-16 pair"
    if isinstance(value, int):
        return "" if -INT64 <= value < INT64 else "contains a number past 64 bits"
    if isinstance(value, float):
        return "" if math.isfinite(value) else "contains a number that is not finite"
    if depth > DEEPEST:
        return f"is nested deeper than {DEEPEST} levels"
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            return "contains a field whose name is no text"
        value = [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple)):
        return next((reason for item in value if (reason := _unstorable(item, depth + 1))), "")
    return ""


def _unfit(record: Mapping[str, Any]) -> str:
    """Why the document store would refuse a document: a value it has no type for, or its size."""
    from bson import encode
    from bson.errors import InvalidDocument

    try:
        size = len(encode(record))
    except InvalidDocument as error:
        return f"is no document: {error}"
    return "" if size <= LARGEST_DOCUMENT else f"has {size:,} bytes, more than {LARGEST_DOCUMENT:,}"


def key_text(values: tuple[Any, ...]) -> str:
    """A key as one text: itself when it is one text, a JSON list otherwise."""
    if len(values) == 1 and isinstance(values[0], str):
        return values[0]
    return json.dumps(values, ensure_ascii=False, default=str)


def hash_text(record: Mapping[str, Any]) -> str:
    """Hash of a document's content, whatever the order of its fields."""
    text = json.dumps(record, ensure_ascii=False, sort_keys=True, default=str, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(text.encode("utf-8", "surrogatepass"))


def wire(resource: Resource) -> pa.Schema:
    """The schema in which the resource's data columns travel to PostgreSQL."""
    if resource.store == "documents":
        return pa.schema([("doc", pa.string())])
    return pa.schema([(field.name, _wire_type(field.type)) for field in resource.schema])


def _wire_type(kind: pa.DataType) -> pa.DataType:
    types = {
        "boolean": pa.bool_(),
        "bigint": pa.int64(),
        "double precision": pa.float64(),
        "timestamp": pa.timestamp("us"),
        "timestamptz": pa.timestamp("us", "UTC"),
        "date": pa.date32(),
        "bytea": pa.binary(),
    }
    return types.get(postgres_type(kind), pa.string())


def batch_of(resource: Resource, records: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
    """Records that :func:`check` let pass, as columns of :func:`wire`."""
    schema = wire(resource)
    arrays = [
        pa.array([_plain(field.type, record.get(field.name)) for record in records], schema.field(field.name).type)
        for field in resource.schema
    ]
    return pa.record_batch(arrays, schema=schema)


def _plain(kind: pa.DataType, value: Any) -> Any:
    """A value as its column takes it: numbers without a type of their own and what is nested, as text."""
    if value is None or isinstance(value, (str, bool, bytes)):
        return value
    if isinstance(value, (int, float)):
        return float(value) if pa.types.is_floating(kind) else value
    if isinstance(value, Decimal):
        return format(value, "f")
    return value if isinstance(value, (date, datetime)) else json.dumps(value, ensure_ascii=False, default=str)


def sift(resource: Resource, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.Array] | None:
    """A source's own batch as columns of :func:`wire`, and which of its rows keep the contract.

    None when that cannot be told column by column: fields that are unknown, of another type, or without one of their
    own in Arrow. Then each record is looked at.
    """
    schema = wire(resource)
    if resource.store == "documents" or set(batch.schema.names) - set(schema.names):
        return None
    arrays = []
    fit = pa.repeat(pa.scalar(True), batch.num_rows)
    for field in resource.schema:
        kind = schema.field(field.name).type
        if field.name not in batch.schema.names:
            arrays.append(pa.nulls(batch.num_rows, kind))
        elif (array := batch.column(field.name)).type != field.type or postgres_type(field.type) in _ONE_BY_ONE:
            return None
        else:
            arrays.append(array if array.type == kind else array.cast(kind, safe=False))
        array = arrays[-1]
        if not field.nullable:
            fit = pc.and_(fit, pc.is_valid(array))
        if pa.types.is_string(kind):
            fit = pc.and_(fit, pc.invert(pc.fill_null(pc.match_substring(array, "\0"), False)))
        elif pa.types.is_floating(kind):
            fit = pc.and_(fit, pc.fill_null(pc.is_finite(array), True))
    return pa.record_batch(arrays, schema=schema), fit


_ONE_BY_ONE = ("jsonb", "numeric")


def keys(resource: Resource, batch: pa.RecordBatch) -> pa.Array:
    """:func:`key_text` of each row of a batch of the source's own."""
    columns = [batch.column(name) for name in resource.key]
    whole = all(not column.null_count for column in columns)
    if whole and len(columns) == 1 and pa.types.is_string(columns[0].type):
        return columns[0]
    if whole and all(pa.types.is_integer(column.type) for column in columns):
        inner = pc.binary_join_element_wise(*(column.cast(pa.string()) for column in columns), ", ")
        return pc.binary_join_element_wise("[", inner, "]", "")
    values = zip(*(column.to_pylist() for column in columns), strict=True)
    return pa.array([key_text(one) for one in values], pa.string())


def hashes(batch: pa.RecordBatch) -> pa.Array:
    """XXH3 (128 bits) of each row's content: of its columns that are not null, by name, whatever their order.

    Numbers and times count by their bits, which are exact and the same in every version of Arrow.
    """
    parts: list[Any] = [b""]  # Arrow leaves out a row that is null in every part
    for name in sorted(batch.schema.names):
        column = batch.column(name)
        if pa.types.is_boolean(column.type):
            column = column.cast(pa.string())
        elif pa.types.is_binary(column.type):
            column = pa.array([value and value.hex() for value in column.to_pylist()], pa.string())
        elif not pa.types.is_string(column.type):
            column = column.view(pa.binary(column.type.bit_width // 8))
        parts.append(pc.binary_join_element_wise(name.encode(), column.cast(pa.binary()), b"="))
    rows = pc.binary_join_element_wise(*parts, b"\0", null_handling="skip").to_pylist()
    return pa.array([xxhash.xxh3_128_digest(row) for row in rows], pa.binary())


def hash_of(resource: Resource, record: Mapping[str, Any]) -> str:
    """The hash that raw holds of a record that keeps the contract, as 32 hexadecimal digits."""
    if resource.store == "documents":
        return hash_text(record)
    found: bytes = hashes(batch_of(resource, [record]))[0].as_py()
    return found.hex()


def copy_bytes(columns: Mapping[str, str], batch: pa.RecordBatch) -> bytes:
    """What COPY reads in its binary format. ``columns``: name -> PostgreSQL type."""
    json_fields = {
        name: pgpq.encoders.StringEncoderBuilder.new_with_output(batch.schema.field(name), pgpq.schema.Jsonb())
        for name, kind in columns.items()
        if kind == "jsonb"
    }
    all_fields = {
        field.name: json_fields.get(field.name) or pgpq.ArrowToPostgresBinaryEncoder.infer_encoder(field)
        for field in batch.schema
    }
    encoder = pgpq.ArrowToPostgresBinaryEncoder.new_with_encoders(batch.schema, all_fields)
    return encoder.write_header() + encoder.write_batch(batch) + encoder.finish()


_SURROGATE = re.compile("[\ud800-\udfff]")
