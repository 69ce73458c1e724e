"""The gate of candidate marts: what stands in ``marts_next_<domain>``, beside what was accepted last.

dbt has checked structure (types, keys, nulls, relations) when it built them; here they are judged as data.
"""

from __future__ import annotations

from contextlib import closing

from storage import warehouse
from storage.errors import Problem
from storage.gates import audit as gate
from storage.gates.loads import drift, size
from storage.gates.profile import columns_of, profile
from storage.objects import Objects
from storage.settings import Settings


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
    before = gate.last_accepted(settings, subject)
    query = f'select * from {schema}."{table}"'
    with closing(warehouse.connect(settings)) as db, db:
        columns = columns_of(db, schema, table)
        now = profile(db, query, columns)
    expectations = drift(before, now, columns)
    if before.get("rows") or table.startswith("mart_"):  # a mart that models are trained from is never empty
        expectations.append(size(before, "merge"))
    return gate.run(
        settings,
        objects,
        subject=subject,
        kind="mart",
        domain=domain,
        query=query,
        expectations=expectations,
        statistics=now,
    )
