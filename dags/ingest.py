"""One Airflow DAG for each source of the catalogue: fetch and load, audit, announce.

Sources that come from outside run on their own cron; those that derive from other sources run when these change; a
stream that a person has turned on runs when enough messages wait, for which a trigger watches, not a worker.
"""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Any

from airflow.sdk import DAG
from wiring import COMMON, announce, asset, command

from ingestion import catalogue
from ingestion.contract import Source


def schedule(source: Source) -> Any:
    """When a source is looked at: by the clock, when its sources change, or when messages wait."""
    if source.after:
        return reduce(or_, [asset("raw", name) for name in source.after])
    awaited = source.awaited() if source.awaited else None
    if awaited is None:
        return source.cadence
    from airflow.sdk import AssetWatcher

    from ingestion.arrivals import Arrivals

    return asset("stream", source.name, watchers=[AssetWatcher(name=source.name, trigger=Arrivals(**awaited))])


def ingest_dag(source: Source) -> DAG:
    """The DAG of one source."""
    resources = "\n".join(f"* `raw.{source.table(r)}` ({r.store}, {r.mode}): {r.description}" for r in source.resources)
    with DAG(
        dag_id=f"ingest_{source.name}",
        schedule=schedule(source),
        description=source.title,
        tags=["ingest", source.domain, *(["simulated"] if source.simulated else [])],
        doc_md=f"{source.description}\n\nLicence: {source.licence}\n\n{resources}\n\n"
        f"A red `ingest`: the source could not be read; readers keep what they have. "
        f"A red `audit`: the load was rejected; mend the source, then clear `ingest` and what follows.",
        **COMMON,
    ) as dag:
        ingested = command.override(task_id="ingest")(
            "loader", ["ingest", source.name, "--json", "--run-id", "{run_id}"]
        )
        judged = command.override(task_id="audit")("loader", ["audit", source.name, "--json"])
        ingested >> judged
        announce(asset("raw", source.name))(judged)
    return dag


for source in catalogue.sources():
    globals()[f"ingest_{source.name}"] = ingest_dag(source)
