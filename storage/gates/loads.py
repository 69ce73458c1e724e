"""The gate of a load: is what came in plausible, beside what was accepted before?

Structure belongs to the page contract, which has put bad records into quarantine; here the load is judged as data.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from contextlib import closing
from typing import Any

from storage import warehouse
from storage.gates import audit as gate
from storage.gates.profile import columns_of, profile
from storage.gates.ranges import bounds, with_drift
from storage.objects import Objects
from storage.settings import Settings


def audit(
    settings: Settings,
    objects: Objects,
    source: str,
    domain: str,
    table: str,
    load: int,
    mode: str,
    *,
    quarantine_share: float,
    only: Collection[str] | None = None,
    fields: Mapping[str, str] | None = None,
) -> gate.Verdict:
    """Judge a load of ``raw.<table>``: by its own rows in mode ``append``, else by what the table becomes with it.

    Past ``quarantine_share`` of its records in quarantine it is rejected; notes of what never came do not count.
    ``only`` names the columns that the source still has, where they may change: one that it gave up has to empty.
    ``fields`` are the PostgreSQL types of the fields of its documents, where it gives documents.
    """
    subject = f"load.{table}"
    history = gate.accepted(settings, subject)
    query = (
        f'select * from raw."{table}" where _load = {int(load)}' if mode == "append" else _state(source, table, load)
    )
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute("select rows, versions from ops.load where source = %s and load = %s", (source, load))
        rows, versions = warehouse.first(sql)
        sql.execute("select count(*) from ops.quarantine where source = %s and load = %s and counted", (source, load))
        (quarantined,) = warehouse.first(sql)
        columns = columns_of(db, "raw", table, fields)
        columns = {name: column for name, column in columns.items() if only is None or name in only}
        now = with_drift(history, profile(db, query, columns, history[0] if history else None, "_key"))
    seen = rows + quarantined
    if quarantined > quarantine_share * seen:
        reason = (
            f"{quarantined:,} of {seen:,} records are in quarantine, more than {quarantine_share:.0%}: "
            f"see `lyrebird quarantine list {source}`"
        )
        return _refuse(settings, subject, domain, now, reason)
    if versions == 0:
        return gate.Verdict(True, "none", "")  # nothing new or changed: nothing to judge
    return gate.run(
        settings,
        objects,
        subject=subject,
        kind="load",
        domain=domain,
        query=query,
        bounds=bounds(history, now, columns, mode),
        statistics=now,
        keys=["_key"],
    )


def _state(source: str, table: str, load: int) -> str:
    """What the table holds once this load counts: the latest version of each key, rejected loads left out."""
    return f"""
        select * from (
            select distinct on (r._key) r.*
            from raw."{table}" as r
            join ops.load as l on l.source = '{source}' and l.load = r._load and l.state <> 'rejected'
            where r._load <= {int(load)}
            order by r._key, r._load desc, r._position desc
        ) as latest
        where not _deleted"""


def _refuse(settings: Settings, subject: str, domain: str, statistics: dict[str, Any], reason: str) -> gate.Verdict:
    """Reject for the quarantine, and write that down as an audit."""
    failed = [{"expectation": "quarantine_share", "severity": "critical", "what": reason, "keys": []}]
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute(
            "insert into ops.audit (subject, kind, domain, severity, success, expectations, failed, statistics) "
            "values (%s, 'load', %s, 'critical', false, 1, %s, %s)",
            (subject, domain, json.dumps(failed), json.dumps(statistics, default=str)),
        )
    return gate.Verdict(False, "critical", reason, failed)
