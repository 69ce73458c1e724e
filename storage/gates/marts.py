"""The gate of candidate marts: what stands in ``marts_next_<domain>``, beside what was accepted last.

dbt has checked structure (types, keys, nulls, relations) when it built them; here they are judged as data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from hashlib import md5
from typing import Any

from psycopg2.extensions import connection

from storage import warehouse
from storage.errors import Problem
from storage.gates import audit as gate
from storage.gates.profile import Column, columns_of, profile
from storage.gates.ranges import Bound, bounds, with_drift
from storage.objects import Objects
from storage.settings import Settings

ORIGINS = ("corpus", "label_set", "source")  # the finest first


def audit(domain: str, settings: Settings) -> dict[str, gate.Verdict]:
    """Judge every candidate mart of a domain; a verdict for each.

    Raises Problem when there is no candidate.
    """
    objects = Objects(settings)
    schema = f"marts_next_{domain}"
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute(
            "select table_name from information_schema.tables where table_schema = %s and table_type = 'BASE TABLE' "
            "order by 1",
            (schema,),
        )
        tables = [name for (name,) in sql.fetchall()]
    if not tables:
        raise Problem(f"there are no candidate marts in {schema}", f"Build them with `lyrebird transform {domain}`")
    return {table: _audit(domain, schema, table, settings, objects) for table in tables}


def _audit(domain: str, schema: str, table: str, settings: Settings, objects: Objects) -> gate.Verdict:
    subject = f"mart.{table}"
    history = gate.accepted(settings, subject)
    before = history[0] if history else {}
    query = f'select * from {schema}."{table}"'
    with closing(warehouse.connect(settings)) as db, db:
        keys = _keys(db, schema, table)
        key = keys[0] if keys else None
        columns = columns_of(db, schema, table)
        now = compared = profile(db, query, columns, before, key)
        if added := _added(before, now):
            name, values = added
            # by hash: names are anybody's
            hashes = ", ".join(f"'{md5(value.encode(), usedforsecurity=False).hexdigest()}'" for value in values)
            query += f' where md5("{name}") not in ({hashes})'
            compared = profile(db, query, columns, before, key)
    return gate.run(
        settings,
        objects,
        subject=subject,
        kind="mart",
        domain=domain,
        query=query,
        bounds=expected(table, history, compared, columns),
        statistics=with_drift(history, now),
        keys=keys,
    )


def expected(
    table: str, history: Sequence[Mapping[str, Any]], now: Mapping[str, Any], columns: Mapping[str, Column]
) -> list[Bound]:
    """The ranges for a mart. It may be empty as long as it was; one that models are trained from never is."""
    found = bounds(history, now, columns, "merge")
    if table.startswith("mart_") or (history and history[0]["rows"]):
        return found
    return [bound for bound in found if bound.number != "rows"]


def _keys(db: connection, schema: str, table: str) -> list[str]:
    """Columns of the primary key that the mart's contract has; empty where it has none."""
    with db.cursor() as sql:
        sql.execute(
            "select attname from pg_index join pg_attribute on attrelid = indrelid and attnum = any(indkey) "
            "where indrelid = to_regclass(%s) and indisprimary order by array_position(indkey::int2[], attnum)",
            (f'{schema}."{table}"',),
        )
        return [name for (name,) in sql.fetchall()]


def _added(before: dict[str, Any], now: dict[str, Any]) -> tuple[str, list[str]] | None:
    """The column that says where rows come from, and the origins that were not there when the mart was accepted last.

    What was learnt of the others says nothing about them: a corpus without titles is no corpus that lost them. They
    are learnt from when they are accepted; structure and size judge them meanwhile.
    """
    for name in ORIGINS:
        old, new = (found.get("columns", {}).get(name, {}).get("shares") for found in (before, now))
        if old and new and (values := sorted(new.keys() - old.keys())):
            return name, values
    return None
