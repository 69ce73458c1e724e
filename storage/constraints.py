"""Does PostgreSQL hold for core what the contracts of its models state?

dbt makes a table's constraints when it makes the table. It does not add one that is new in the contract, and a table
that is dropped takes the foreign keys of its children along, both in silence. So every build of core is compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from psycopg2.extensions import connection

KINDS = {"primary_key": "p", "foreign_key": "f", "unique": "u", "check": "c", "not_null": "n"}
WORDS = {"p": "primary key", "f": "foreign key", "u": "unique", "c": "check", "n": "not null"}
Constraint = tuple[
    str, str, tuple[str, ...]
]  # table, kind, columns (none for a check: PostgreSQL writes it its own way)


def stated(manifest: dict[str, Any]) -> Counter[Constraint]:
    """What the contracts of core's models state, in dbt's manifest."""
    return Counter(_stated(manifest))


def held(db: connection, schema: str = "core") -> Counter[Constraint]:
    """What PostgreSQL holds."""
    with db, db.cursor() as sql:
        sql.execute(
            """
            select
                tables.relname,
                held.contype::text,
                case when held.contype = 'c' then '{}' else array(
                    select columns.attname::text
                    from unnest(held.conkey) with ordinality as key (number, place)
                    join pg_attribute as columns on columns.attrelid = tables.oid and columns.attnum = key.number
                    order by key.place
                ) end
            from pg_constraint as held
            join pg_class as tables on held.conrelid = tables.oid
            join pg_namespace on tables.relnamespace = pg_namespace.oid
            where nspname = %s and tables.relname <> 'vanished'
            """,
            (schema,),
        )
        return Counter((table, kind, tuple(columns)) for table, kind, columns in sql.fetchall())


def missing(db: connection, manifest: dict[str, Any]) -> list[str]:
    """What is stated and not held, in words, such as ``note: foreign key (piece_id)``.

    Tables that are not there are left out.
    """
    there = held(db)
    tables = {table for table, _, _ in there}
    lacking = stated(manifest) - there
    return sorted(
        f"{table}: {WORDS[kind]}" + (f" ({', '.join(columns)})" if columns else "")
        for table, kind, columns in lacking.elements()
        if table in tables
    )


def _stated(manifest: dict[str, Any]) -> Iterator[Constraint]:
    for node in manifest["nodes"].values():
        if node["resource_type"] != "model" or node["fqn"][1] != "core" or not node["config"]["contract"]["enforced"]:
            continue
        of_columns = [(one, [name]) for name, column in node["columns"].items() for one in column["constraints"]]
        for one, columns in [(one, one["columns"]) for one in node["constraints"]] + of_columns:
            if kind := KINDS.get(one["type"]):
                yield node["name"], kind, () if kind == "c" else tuple(columns)
