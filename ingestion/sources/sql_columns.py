"""Columns of somebody else's table: what their types become here, what a change of them means, and rows as Arrow.

A value that is not of its column's type (SQLite keeps anything anywhere) lands beside the row as text, and the record
goes to quarantine when the page is parsed. Decimals and JSON land as text: no type of Arrow holds every one of them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

import pyarrow as pa
import sqlalchemy as sa

from ingestion.contract import Bad, BadPage, Record, describe
from storage.errors import Problem

Drift = Literal["evolve", "freeze", "discard"]
KINDS: dict[str, pa.DataType] = {
    "boolean": pa.bool_(),
    "bigint": pa.int64(),
    "double": pa.float64(),
    "numeric": pa.decimal128(38, 0),  # in raw a numeric of any precision
    "date": pa.date32(),
    "timestamp": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us", "UTC"),
    "bytes": pa.binary(),
    "json": pa.json_(),
    "text": pa.string(),
}
AS_TEXT = ("numeric", "json")  # in Arrow
# What holds every value of another kind as it is, and what a column may therefore become.
HOLDS = {("numeric", "bigint"), ("numeric", "double"), ("timestamp", "date")}
WIDENS = {("bigint", "numeric"), ("date", "timestamp")}
LONGEST_NAME = 38  # a variant's name is longer by its kind, and raw's names have at most 51 characters
MISFIT = "_misfit"


@dataclass(frozen=True)
class Column:
    """A column as the table calls it (``of``) and as raw does, and whether the table still gives it so."""

    of: str
    name: str
    kind: str
    given: bool = True


def stored(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Columns as a cursor keeps them."""
    return [asdict(column) for column in columns]


def restored(values: Sequence[Mapping[str, Any]]) -> list[Column]:
    return [Column(**value) for value in values]


def schema(columns: Sequence[Column], key: Sequence[str]) -> pa.Schema:
    """The contract of a record with these columns: those of the key are required."""
    fields = [
        describe(column.name, KINDS[column.kind], f"column {column.of}", required=column.name in key)
        for column in columns
        if column.given
    ]
    return pa.schema(fields)


def raw_name(name: str) -> str:
    """A column's name as raw writes it: lower case, words joined by ``_``; a long one is cut and gets a hash."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    made = re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")
    if not made[:1].isalpha():
        made = f"c_{made}" if made else f"c_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    if len(made) > LONGEST_NAME:
        made = f"{made[: LONGEST_NAME - 9]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return made


def kind_of(type_: sa.types.TypeEngine[Any]) -> str:
    """The kind of a column of this type; ``text`` where there is none of its own."""
    type_ = getattr(type_, "data_type", type_)  # what a domain is made of
    unsigned = bool(getattr(type_, "unsigned", False)) and isinstance(type_, sa.BigInteger)
    tests: tuple[tuple[tuple[type, ...], str], ...] = (
        ((sa.Boolean,), "boolean"),
        ((sa.Integer,), "numeric" if unsigned else "bigint"),
        ((sa.Float,), "double"),
        ((sa.Numeric,), "numeric"),
        ((sa.DateTime,), "timestamptz" if getattr(type_, "timezone", False) else "timestamp"),
        ((sa.Date,), "date"),
        ((sa.JSON, sa.ARRAY), "json"),
        ((sa.types._Binary,), "bytes"),
    )
    return next((kind for types, kind in tests if isinstance(type_, types)), "text")


@dataclass(frozen=True)
class Agreement:
    """What the contract makes of a table: all columns that raw has, what changed, and whether to read all of it anew.

    An ``alter table`` changes rows without touching the column that says when they changed; so after a new column or
    type every row is read once more.
    """

    columns: list[Column]
    changes: list[str]
    anew: bool


def agree(
    table: str, known: Sequence[Column], found: Mapping[str, str], drift: Drift, fixed: Sequence[str]
) -> Agreement:
    """Hold the columns that a table has now (name -> kind) against those known, by the contract's mode.

    Nothing known: what is found is the contract. ``fixed`` names the columns of the key, whose type may not change.
    Raises Problem where the mode, or the key, does not allow the change.
    """
    if not known:
        _distinct(table, found)
        return Agreement([Column(of, raw_name(of), kind) for of, kind in found.items()], [], False)
    columns = {column.name: replace(column, given=False) for column in known}
    changes: dict[str, str] = {}  # column of the table -> what changed
    outcomes: dict[str, str] = {}  # and what becomes of it
    anew = False
    placed: dict[str, str] = {}
    for of, kind in found.items():
        column, change, outcome = _place(of, kind, known, drift)
        if column:
            columns[column.name] = column
            placed[of] = kind
        if change:
            changes[of], outcomes[of] = change, outcome
            anew = anew or column is not None
    gone = {column.of for column in known if column.given} - found.keys()
    changes |= {of: f"{of} is no more" for of in sorted(gone)}
    refused = [change for of, change in changes.items() if of in fixed]
    if refused:
        raise Problem(
            f"{table}: the key has changed ({'; '.join(refused)}), and no row would find its earlier versions",
            "List it under another name in the options: it is then loaded as a table of its own",
        )
    if changes and drift == "freeze":
        raise Problem(
            f"{table} is frozen and has changed: {'; '.join(changes.values())}; nothing was loaded",
            'Undo the change, or set drift = "evolve" or "discard" for it in the options',
        )
    _distinct(table, placed)
    said = [f"{change}{outcomes.get(of, '')}" for of, change in changes.items()]
    return Agreement(list(columns.values()), said, anew)


def _place(of: str, kind: str, known: Sequence[Column], drift: Drift) -> tuple[Column | None, str, str]:
    """Where raw keeps a column that the table has now, if it does; what changed, "" for nothing; what comes of it."""
    mine = [column for column in known if column.of == of]
    same = [column for column in mine if column.kind == kind] + [c for c in mine if (c.kind, kind) in HOLDS]
    if same:
        again = "" if same[0].given or drift == "discard" else f"{of} is {kind} again"
        return replace(same[0], given=True), again, ""
    change = f"{of} was {mine[0].kind} and is {kind}" if mine else f"{of} ({kind}) is new"
    if drift == "discard":
        return None, change, ": left out"
    wider = next((column for column in mine if (column.kind, kind) in WIDENS), None)
    if wider:
        return replace(wider, kind=kind, given=True), change, ": taken"
    name = raw_name(of)
    if any(column.name == name for column in known):
        name = f"{name}__{kind}"
    return Column(of, name, kind), change, f": it goes to {name}"


def _distinct(table: str, found: Mapping[str, str]) -> None:
    twice = [name for name, count in Counter(map(raw_name, found)).items() if count > 1]
    if twice:
        both = " and ".join(of for of in found if raw_name(of) == twice[0])
        raise Problem(f"{table}: the columns {both} would both be called {twice[0]}", "Name those to take in `columns`")


class _Misfit(ValueError):
    """A value that is not of its column's kind."""


def _boolean(value: Any) -> bool:
    if value in (0, 1) and isinstance(value, (bool, int)):
        return bool(value)
    raise _Misfit


def _bigint(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63:
        return value
    raise _Misfit


def _double(value: Any) -> float:
    if isinstance(value, float):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 2**53:
        return float(value)
    raise _Misfit


def _numeric(value: Any) -> Decimal:
    """Without zeros at its end: the same number is the same text, whatever the column's scale."""
    if isinstance(value, (Decimal, int, float, str)) and not isinstance(value, bool):
        try:
            number = Decimal(repr(value) if isinstance(value, float) else value)
        except InvalidOperation:
            raise _Misfit from None
        if number.is_finite() and abs(number.adjusted()) < 1_000:
            text = format(number, "f")
            text = text.rstrip("0").rstrip(".") if "." in text else text
            return Decimal("0" if text in ("-0", "") else text)
    raise _Misfit


def _date(value: Any) -> date:
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    return date.fromisoformat(_string(value))


def _timestamp(value: Any) -> datetime:
    """Without a zone; a value that has one all the same is told in UTC."""
    if isinstance(value, date) and not isinstance(value, datetime):
        return datetime(value.year, value.month, value.day)
    time = value if isinstance(value, datetime) else datetime.fromisoformat(_string(value))
    return time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time


def _timestamptz(value: Any) -> datetime:
    time = value if isinstance(value, datetime) else datetime.fromisoformat(_string(value))
    if time.tzinfo is None:
        raise _Misfit
    return time.astimezone(UTC)


def _bytes(value: Any) -> bytes:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    raise _Misfit


def _json(value: Any) -> str:
    return _text(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _text(value: Any) -> str:
    if isinstance(value, (bytes, bytearray, memoryview)):
        raise _Misfit
    text = value if isinstance(value, str) else str(value)
    if not text.isascii():
        text.encode()  # refuses half of a UTF-16 pair, which is how bytes that are no UTF-8 were read
    return text


def _string(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise _Misfit


CONVERTS: dict[str, Callable[[Any], Any]] = {
    "boolean": _boolean,
    "bigint": _bigint,
    "double": _double,
    "numeric": _numeric,
    "date": _date,
    "timestamp": _timestamp,
    "timestamptz": _timestamptz,
    "bytes": _bytes,
    "json": _json,
    "text": _text,
}


def converted(kind: str, value: Any) -> Any:
    """A value as its column's kind has it. Raises ValueError or OverflowError where it is none."""
    return None if value is None else CONVERTS[kind](value)


def encode(columns: Sequence[Column], rows: Sequence[Sequence[Any]]) -> bytes:
    """Rows (a value for each column) as an Arrow stream; each field's metadata says its kind."""
    arrays: list[pa.Array] = []
    misfits: dict[int, dict[str, str]] = {}
    for index, column in enumerate(columns):
        values: list[Any] = []
        for number, row in enumerate(rows):
            try:
                values.append(converted(column.kind, row[index]))
            except (ValueError, OverflowError):
                values.append(None)
                shown = f"is no {column.kind}: {ascii(row[index])[:60]}"
                misfits.setdefault(number, {})[column.name] = shown
        if column.kind == "numeric":
            values = [None if value is None else format(value, "f") for value in values]
        arrays.append(pa.array(values, pa.string() if column.kind in AS_TEXT else KINDS[column.kind]))
    fields = [
        pa.field(column.name, array.type, metadata={"kind": column.kind, "of": column.of})
        for column, array in zip(columns, arrays, strict=True)
    ]
    if misfits:
        said = [json.dumps(misfits[number]) if number in misfits else None for number in range(len(rows))]
        arrays.append(pa.array(said, pa.string()))
        fields.append(pa.field(MISFIT, pa.string()))
    batch = pa.record_batch(arrays, schema=pa.schema(fields))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def parsed(body: bytes) -> Iterator[Any]:
    """An encoded page for the pipeline: the batch as it is, or record by record where Arrow has no type for a column.

    Raises BadPage for what is no Arrow stream.
    """
    batch = _read(body)
    kinds = {_kind(field) for field in batch.schema}  # None: of what does not fit
    if kinds.isdisjoint((None, *AS_TEXT)):
        yield batch
    else:
        yield from _records(batch)


def decode(body: bytes) -> Iterator[Record | Bad]:
    """Records of an encoded page. Fields that are null are left out: a new column changes no row that lacks it."""
    yield from _records(_read(body))


def _records(batch: pa.RecordBatch) -> Iterator[Record | Bad]:
    numeric = [field.name for field in batch.schema if _kind(field) == "numeric"]
    for row in batch.to_pylist():
        misfit = row.pop(MISFIT, None)
        record = {name: value for name, value in row.items() if value is not None}
        for name in numeric:
            if name in record:
                record[name] = Decimal(record[name])
        if misfit:
            said: dict[str, str] = json.loads(misfit)
            yield Bad(record | said, "; ".join(f"{name} {what}" for name, what in said.items()))
        else:
            yield record


def _read(body: bytes) -> pa.RecordBatch:
    try:
        with pa.ipc.open_stream(body) as stream:
            return stream.read_next_batch()
    except (pa.ArrowInvalid, OSError, StopIteration) as error:
        raise BadPage(f"no Arrow stream: {next(iter(str(error).splitlines()), 'it is empty')}") from error


def _kind(field: pa.Field) -> str | None:
    kind = (field.metadata or {}).get(b"kind")
    return kind.decode() if kind else None
