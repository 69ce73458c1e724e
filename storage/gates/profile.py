"""What a table looks like in numbers: the gates compare these with what was accepted before.

The table is read once. What is measured of each value goes into a temporary table, of every row, or of about
:data:`ENOUGH` rows where there are many more; everything else is counted there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from psycopg2 import sql as quoted
from psycopg2.extensions import connection

NUMBERS = {"bigint", "integer", "smallint", "double precision", "real", "numeric"}
TIMES = {"date", "timestamp with time zone", "timestamp without time zone", "timestamptz", "timestamp"}
CATEGORIES = 30  # a column with at most so many distinct texts is a category, and its shares are kept
ENOUGH = 100_000  # rows that are looked at closely; of a larger table a sample by hash of the key
LONGEST = 2_000  # characters of a value that are looked at
BINS = [round(0.1 * step, 1) for step in range(1, 10)]  # a distribution is kept as its deciles

# UTF-8 read as if it were Latin-1 or Windows-1252, replacement marks, and control characters
STRANGE = (
    "[\u00c2-\u00f4][\u0080-\u00bf\u0152-\u0178\u02c6-\u02dc\u2013-\u2122]|[\ufffd\u0080-\u009f\u0001-\u0008\u007f]"
)
NUMBER = r"^-?\d{1,15}(\.\d+)?$"
DATE = r"^\d{4}-\d\d-\d\d"


@dataclass(frozen=True)
class Column:
    """A column, or a field of a document: what it is called, its PostgreSQL type, and how to get at it."""

    name: str
    kind: str
    expression: quoted.Composable


def columns_of(db: connection, schema: str, table: str, fields: Mapping[str, str] | None = None) -> dict[str, Column]:
    """Data columns of a table; columns of the pipeline's own (``_load`` …) left out.

    ``fields`` are the types of what the column ``doc`` holds, where there is one: each is then a column.
    """
    with db.cursor() as sql:
        sql.execute(
            "select column_name, data_type from information_schema.columns "
            "where table_schema = %s and table_name = %s order by ordinal_position",
            (schema, table),
        )
        there = {name: kind for name, kind in sql.fetchall() if not name.startswith("_")}
    if fields and there == {"doc": "jsonb"}:
        return {
            name: Column(name, kind, quoted.SQL("(doc ->> {})").format(quoted.Literal(name)))
            for name, kind in fields.items()
        }
    return {name: Column(name, kind, quoted.Identifier(name)) for name, kind in there.items()}


def profile(
    db: connection,
    query: str,
    columns: Mapping[str, Column],
    before: Mapping[str, Any] | None = None,
    key: str | None = None,
) -> dict[str, Any]:
    """``{"rows": n, "columns": {name: {…}}}`` of what ``query`` gives, in the transaction that is open.

    Of each column: ``filled``, the share of values that are not null, and ``distinct``, of those. ``measure`` tells of
    the value of numbers, of days since 1970 for times, and of the length in characters otherwise; ``reading`` of the
    number or day that texts read as, where they do. Of texts also the shares of ``digits`` and ``capitals`` among
    their characters, ``bytes`` a character, and the share of ``strange`` values. ``shares`` holds the share of each
    value of a category.
    A measure is ``{"mean", "spread", "low", "high", "edges", "below"}``: deciles, and the share at or below each.
    ``then`` holds the shares at or below the deciles of ``before``, which is an earlier profile.
    """
    before = before or {}
    names = list(columns)
    rows = None
    taken: quoted.Composable = quoted.SQL("true")
    with db.cursor() as sql:
        if key and before.get("rows", 0) > ENOUGH:
            sql.execute(f"select count(*) from ({query}) as q")
            (rows,) = sql.fetchone() or (0,)
            one_in = max(1, rows // ENOUGH)
            taken = quoted.SQL("hashtext({}::text) % {} = 0").format(quoted.Identifier(key), quoted.Literal(one_in))
        measured = [part for index, name in enumerate(names) for part in _measures(index, columns[name])]
        sql.execute(
            quoted.SQL(
                "create temporary table profiled on commit drop as select 1 as one{} from ({}) as q where {}"
            ).format(quoted.SQL("").join(quoted.SQL(", ") + part for part in measured), quoted.SQL(query), taken)
        )
        parts: list[quoted.Composable] = [quoted.SQL("count(*)")]
        for index, name in enumerate(names):
            parts += _counted(index, before.get("columns", {}).get(name, {}))
        sql.execute(quoted.SQL("select {} from profiled").format(quoted.SQL(", ").join(parts)))
        seen, *values = sql.fetchone() or (0,)
        found = {}
        for index, name in enumerate(names):
            old = before.get("columns", {}).get(name, {})
            found[name] = _entry(seen, columns[name], values[7 * index : 7 * index + 7], old)
        _add_below(sql, found)
        _add_shares(sql, columns, found, before.get("columns", {}))
        sql.execute("drop table pg_temp.profiled")
    return {"rows": seen if rows is None else rows, "columns": found}


def measure(column: Column) -> quoted.Composable:
    """The number that stands for a value: itself, its day since 1970, or its length in characters."""
    value = column.expression
    if column.kind in NUMBERS:
        # out of a document it is a text, and an old one may hold anything
        return quoted.SQL(
            "case when pg_input_is_valid({0}::text, 'double precision') then {0}::text::double precision end"
        ).format(value)
    if column.kind in TIMES:
        return quoted.SQL("extract(epoch from {}::timestamptz)::double precision / 86400").format(value)
    return quoted.SQL("length({}::text)::double precision").format(value)


def _measures(index: int, column: Column) -> list[quoted.Composable]:
    """What is measured of a value: t the text, m the measure, r the reading."""
    text = quoted.SQL("left({}::text, {})").format(column.expression, quoted.Literal(LONGEST))
    reading: quoted.Composable = quoted.SQL("null::double precision")
    if column.kind == "text":
        reading = quoted.SQL(
            "case when {0} ~ {1} then {0}::double precision when {0} ~ {2} and pg_input_is_valid(left({0}, 10), "
            "'date') then (left({0}, 10)::date - date '1970-01-01')::double precision end"
        ).format(text, quoted.Literal(NUMBER), quoted.Literal(DATE))
    parts = (("t", text), ("m", measure(column)), ("r", reading))
    return [part + quoted.SQL(f" as {letter}{index}") for letter, part in parts]


def _counted(index: int, before: Mapping[str, Any]) -> list[quoted.Composable]:
    """The seven things that are counted of a column."""
    t = f"t{index}"
    texts = (
        f"array[avg(length(regexp_replace({t}, '[^0-9]', '', 'g'))::float8 / nullif(length({t}), 0)), "
        f"avg(length(regexp_replace({t}, '[^[:upper:]]', '', 'g'))::float8 / nullif(length({t}), 0)), "
        f"avg(octet_length({t})::float8 / nullif(length({t}), 0)), "
        f"avg(({t} ~ '{STRANGE}')::int::float8)]"
    )
    parts: list[quoted.Composable] = [
        quoted.SQL(f"count({t})"),
        quoted.SQL(f"count(distinct hashtextextended({t}, 0))"),
        quoted.SQL(texts),
    ]
    for letter, name in (("m", "measure"), ("r", "reading")):
        m = f"{letter}{index}"
        parts.append(
            quoted.SQL(
                f"array[count({m}), avg({m}), stddev_pop({m}), min({m}), max({m})]::float8[]"
                f" || percentile_disc(array{BINS}::float8[]) within group (order by {m})"
            )
        )
        parts.append(_at_or_below(m, before.get(name, {}).get("edges") or []))
    return parts


def _at_or_below(column: str, edges: list[float]) -> quoted.Composable:
    """Shares of the values at or below each edge."""
    if not edges:
        return quoted.SQL("null")
    return quoted.SQL("array[{}]").format(
        quoted.SQL(", ").join(
            quoted.SQL(f"avg(({column} <= {{}})::int::float8)").format(quoted.Literal(edge)) for edge in edges
        )
    )


def _entry(seen: int, column: Column, values: list[Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """What is noted of a column. Texts read as numbers when half of them do, and go on to while a quarter does."""
    filled, distinct, texts, measured, then, reading, then_reading = values
    entry: dict[str, Any] = {
        "filled": filled / seen if seen else 0.0,
        "distinct": distinct / filled if filled else 0.0,
        "values": distinct,
    }
    if column.kind == "text" and filled:
        entry |= dict(zip(("digits", "capitals", "bytes", "strange"), texts, strict=True))
    for name, summary, shares in (("measure", measured, then), ("reading", reading, then_reading)):
        count, mean, spread, low, high, *edges = summary or [0]
        if count and (name == "measure" or count >= (0.25 if name in before else 0.5) * filled):
            entry[name] = {"mean": mean, "spread": spread, "low": low, "high": high, "edges": edges}
            if shares:
                entry[name]["then"] = shares
    return entry


def _add_below(sql: Any, found: dict[str, dict[str, Any]]) -> None:
    """Add the shares at or below a column's own deciles, which are more than a tenth each where values are tied."""
    wanted = [
        (entry[name], _at_or_below(f"{letter}{index}", entry[name]["edges"]))
        for index, entry in enumerate(found.values())
        for name, letter in (("measure", "m"), ("reading", "r"))
        if name in entry
    ]
    if wanted:
        sql.execute(quoted.SQL("select {} from profiled").format(quoted.SQL(", ").join(part for _, part in wanted)))
        for (summary, _), shares in zip(wanted, sql.fetchone() or (), strict=True):
            summary["below"] = shares


def _add_shares(
    sql: Any, columns: Mapping[str, Column], found: dict[str, dict[str, Any]], before: Mapping[str, Any]
) -> None:
    """Add the shares of the values of each category, counted for all of them at once.

    What was a category stays one while its values are not many more.
    """
    chosen = [
        (f"t{index}", name)
        for index, name in enumerate(found)
        if columns[name].kind in ("text", "boolean")
        and 1 <= found[name]["values"] <= CATEGORIES * (3 if "shares" in before.get(name, {}) else 1)
        and found[name]["distinct"] <= 0.5
    ]
    for some in (chosen[start : start + 30] for start in range(0, len(chosen), 30)):  # PostgreSQL groups by 31 at most
        listed = ", ".join(letter for letter, _ in some)
        sets = ", ".join(f"({letter})" for letter, _ in some)
        sql.execute(
            f"select grouping({listed}), coalesce({listed}), count(*) from profiled group by grouping sets ({sets})"
        )
        everything = (1 << len(some)) - 1  # grouping() has a bit for each column that is not in the set
        names = {everything & ~(1 << (len(some) - 1 - place)): name for place, (_, name) in enumerate(some)}
        counts: dict[str, dict[str, int]] = {name: {} for _, name in some}
        for bits, value, count in sql.fetchall():
            if value is not None:
                counts[names[bits]][value] = count
        for name, of_values in counts.items():
            total = sum(of_values.values())
            found[name]["shares"] = {value: count / total for value, count in sorted(of_values.items())}


def mass(below: list[float]) -> list[float]:
    """Shares of the bins between deciles, out of the shares at or below each."""
    return [right - left for left, right in pairwise([0.0, *below, 1.0])]
