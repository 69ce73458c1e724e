"""Records as rows of a raw table: validation, hashes, DDL and the lines that COPY reads."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa

from ingestion.contract import Resource, Source
from storage.errors import Problem

META = {
    "_load": "bigint not null",
    "_position": "bigint not null",
    "_key": "text not null",
    "_hash": "text not null",
    "_deleted": "boolean not null",
    "_landing": "text",
    "_fetched_at": "timestamptz not null",
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
        return [
            f'create table raw."{table}" ({body}, primary key (_load, _position))',
            f'create index on raw."{table}" (_key, _load, _position)',
        ]
    added = [f'add column "{name}" {kind}' for name, kind in columns.items() if name not in existing]
    wider = [
        f'alter column "{name}" type {kind}' for name, kind in columns.items() if (existing.get(name), kind) in WIDER
    ]
    return [f'alter table raw."{table}" {change}' for change in (*added, *wider)]


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
    (pa.types.is_date, date, "is no date"),
    (pa.types.is_string, str, "is no text"),
    (pa.types.is_binary, bytes, "holds no bytes"),
)


def _check_value(kind: pa.DataType, value: Any) -> str:
    for test, python, what in _PLAIN:
        if test(kind):
            return "" if isinstance(value, python) else f"{what}: {value!r:.40}"
    if pa.types.is_integer(kind):
        if not isinstance(value, int) or isinstance(value, bool):
            return f"is no integer: {value!r:.40}"
        return "" if -INT64 <= value < INT64 else "does not fit 64 bits"
    if pa.types.is_floating(kind):
        if isinstance(value, int) and not isinstance(value, bool):
            return "" if -INT64 <= value < INT64 else "does not fit 64 bits"
        return "" if isinstance(value, float) and math.isfinite(value) else f"is no finite number: {value!r:.40}"
    if pa.types.is_decimal(kind):
        if not isinstance(value, Decimal) or not value.is_finite():
            return f"is no finite decimal: {value!r:.40}"
        return "" if abs(value.adjusted()) <= DIGITS else f"has more than {DIGITS:,} digits"
    if pa.types.is_timestamp(kind):
        zone = "a" if kind.tz else "no"
        fits = isinstance(value, datetime) and bool(value.tzinfo) == bool(kind.tz)
        return "" if fits else f"is no time with {zone} zone: {value!r:.40}"
    if pa.types.is_list(kind):
        if not isinstance(value, (list, tuple)):
            return f"is no list: {value!r:.40}"
        items = (item for item in value if item is not None)
        return next((f"holds what {why}" for item in items if (why := _check_value(kind.value_type, item))), "")
    return _check_json(value) if isinstance(kind, pa.JsonType) else ""


def _check_json(value: Any) -> str:
    """JSON as a text, which goes to PostgreSQL as it is."""
    try:
        reason = _unstorable(json.loads(value))
    except (TypeError, ValueError, RecursionError):
        return f"is no JSON: {value!r:.40}"
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
    """Hash of a record's content, whatever the order of its fields."""
    text = json.dumps(record, ensure_ascii=False, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.md5(text.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()


_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def copy_line(values: list[Any]) -> str:
    """A line of COPY's text format."""
    return "\t".join(_copy_value(value) for value in values) + "\n"


def _copy_value(value: Any) -> str:
    if value is None:
        return "\\N"
    if isinstance(value, str):
        return value.translate(_ESCAPES)
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, bytes):
        return f"\\\\x{value.hex()}"
    return json.dumps(value, ensure_ascii=False, default=str).translate(_ESCAPES)
