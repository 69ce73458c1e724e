"""What a table looks like in a few numbers: the learnt part of the gates compares these with the last accepted."""

from __future__ import annotations

from typing import Any

from psycopg2 import sql as quoted
from psycopg2.extensions import connection

NUMBERS = {"bigint", "integer", "smallint", "double precision", "real", "numeric"}
CATEGORIES = 30  # a column with at most so many distinct texts is a category, and its shares are kept


def columns_of(db: connection, schema: str, table: str) -> dict[str, str]:
    """Data columns of a table and their types; columns of the pipeline's own (``_load`` …) left out."""
    with db.cursor() as sql:
        sql.execute(
            "select column_name, data_type from information_schema.columns "
            "where table_schema = %s and table_name = %s order by ordinal_position",
            (schema, table),
        )
        return {name: kind for name, kind in sql.fetchall() if not name.startswith("_")}


def profile(db: connection, query: str, columns: dict[str, str]) -> dict[str, Any]:
    """``{"rows": n, "columns": {name: {"filled", "mean", "spread", "shares"}}}`` of what ``query`` gives.

    ``filled`` is the share of non-null values; ``mean`` and ``spread`` (standard deviation) are of the value for
    numbers and of the length in characters otherwise; ``shares`` holds the share of each value of a category.
    """
    parts: list[quoted.Composable] = [quoted.SQL("count(*)")]
    for name, kind in columns.items():
        column = quoted.Identifier(name)
        measure = column if kind in NUMBERS else quoted.SQL("length({}::text)").format(column)
        parts += [
            quoted.SQL("count({})").format(column),
            quoted.SQL("avg({})::double precision").format(measure),
            quoted.SQL("stddev_pop({})::double precision").format(measure),
            quoted.SQL("count(distinct {}::text)").format(column),
        ]
    rows_of = quoted.SQL(f" from ({query}) as q")
    with db.cursor() as sql:
        sql.execute(quoted.SQL("select ") + quoted.SQL(", ").join(parts) + rows_of)
        rows, *values = sql.fetchone() or (0,)
        found: dict[str, Any] = {"rows": rows, "columns": {}}
        for index, (name, kind) in enumerate(columns.items()):
            count, mean, spread, distinct = values[4 * index : 4 * index + 4]
            entry = {"filled": count / rows if rows else 0.0, "mean": mean, "spread": spread, "distinct": distinct}
            if kind in ("text", "boolean") and 1 <= distinct <= CATEGORIES:
                column = quoted.Identifier(name)
                sql.execute(
                    quoted.SQL("select {}::text, count(*)").format(column)
                    + rows_of
                    + quoted.SQL(" where {} is not null group by 1 order by 1").format(column)
                )
                entry["shares"] = {value: n / count for value, n in sql.fetchall()}
            found["columns"][name] = entry
    return found
