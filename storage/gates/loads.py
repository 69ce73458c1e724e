"""The gate of a load: is what came in plausible, beside what was accepted before?

Structure belongs to the page contract, which has put bad records into quarantine; here the load is judged as data.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import closing
from typing import TYPE_CHECKING, Any

from storage import warehouse
from storage.gates import audit as gate
from storage.gates.profile import NUMBERS, columns_of, profile
from storage.objects import Objects
from storage.settings import Settings

if TYPE_CHECKING:
    import great_expectations as gx

ENOUGH = 100  # rows from which on a distribution says something
FEW = 20  # rows up to which a change of size says nothing
SHIFT = 0.25  # nats of Kullback-Leibler divergence from the shares accepted last
SHRINK, GROW = 0.5, 4.0  # a snapshot may become so much smaller or larger from one load to the next


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
) -> gate.Verdict:
    """Judge a load of ``raw.<table>``: by its own rows in mode ``append``, else by what the table becomes with it.

    Past ``quarantine_share`` of its records in quarantine it is rejected; notes of what never came do not count.
    ``only`` names the columns that the source still has, where they may change: one that it gave up has to empty.
    """
    subject = f"load.{table}"
    before = gate.last_accepted(settings, subject)
    query = (
        f'select * from raw."{table}" where _load = {int(load)}' if mode == "append" else _state(source, table, load)
    )
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute("select rows, versions from ops.load where source = %s and load = %s", (source, load))
        rows, versions = warehouse.first(sql)
        sql.execute("select count(*) from ops.quarantine where source = %s and load = %s and counted", (source, load))
        (quarantined,) = warehouse.first(sql)
        columns = columns_of(db, "raw", table)
        columns = {name: kind for name, kind in columns.items() if only is None or name in only}
        now = profile(db, query, columns)
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
        expectations=[size(before, mode), *drift(before, now, columns)],
        statistics=now,
        key="_key",
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


def size(before: dict[str, Any], mode: str) -> gx.expectations.Expectation:
    """How many rows there may be, beside the last accepted count."""
    import great_expectations.expectations as gxe

    old = before.get("rows", 0)
    if mode == "append" or old < FEW:
        return gxe.ExpectTableRowCountToBeBetween(min_value=1, severity="critical", notes="there are rows")
    return gxe.ExpectTableRowCountToBeBetween(
        min_value=int(SHRINK * old),
        max_value=int(GROW * old) if mode == "replace" else None,
        severity="critical",
        notes=f"there were {old:,} rows before",
    )


def drift(before: dict[str, Any], now: dict[str, Any], columns: dict[str, str]) -> list[Any]:
    """Learnt ranges: how full a column is (critical when it empties); shares of categories and means (warnings)."""
    import great_expectations.expectations as gxe

    found: list[Any] = []
    if min(before.get("rows", 0), now["rows"]) < ENOUGH:
        return found
    for name, old in before["columns"].items():
        if name not in now["columns"]:
            continue
        if old["filled"] > 0:
            found.append(
                gxe.ExpectColumnProportionOfNonNullValuesToBeBetween(
                    column=name,
                    min_value=max(0.0, old["filled"] - 0.2),
                    max_value=1.0,
                    severity="critical" if old["filled"] > 0.5 else "warning",
                    notes=f"{name} was filled to {old['filled']:.0%}",
                )
            )
        if old.get("shares"):
            found.append(
                gxe.ExpectColumnKLDivergenceToBeLessThan(
                    column=name,
                    partition_object={"values": list(old["shares"]), "weights": list(old["shares"].values())},
                    threshold=SHIFT,
                    tail_weight_holdout=0.02,  # what a category that is new may weigh before it counts as a shift
                    severity="warning",
                    notes=f"the shares of the values of {name} are about as before",
                )
            )
        if columns.get(name) in NUMBERS and old["mean"] is not None and old["spread"]:
            margin = old["spread"]
            found.append(
                gxe.ExpectColumnMeanToBeBetween(
                    column=name,
                    min_value=old["mean"] - margin,
                    max_value=old["mean"] + margin,
                    severity="warning",
                    notes=f"the mean of {name} was {old['mean']:.4g}",
                )
            )
    return found


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
