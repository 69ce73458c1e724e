"""One Airflow DAG for each source of the catalogue: fetch and load, audit, announce.

Sources that come from outside run on their own cron; those that derive from other sources run when these change; a
stream that a person has turned on runs when enough messages wait, for which a trigger watches, not a worker.

A source that can be asked for a time has backfills: Airflow's own (one run for each interval of the cron), and runs
triggered with `since` and `until`, which map over the days between. Both leave the live cursor alone, and few slices
of a source are asked for at a time, whichever runs they belong to.
"""

from __future__ import annotations

from datetime import date, timedelta
from functools import reduce
from itertools import pairwise
from operator import or_
from typing import Any

from airflow.sdk import DAG, CronDataIntervalTimetable, Param, task
from wiring import COMMON, announce, asset, command, linked

from ingestion import catalogue
from ingestion.contract import Source

SIDE_BY_SIDE = 2  # slices of a source; the rates of the servers asked hold for all of them together
HOURS = timedelta(hours=12)  # a first reading of a large catalogue, asked politely, takes some
MOST = 500  # tasks that a run maps to; of a longer time each takes several days, one after another


def dated(source: Source) -> bool:
    """Whether the source can be asked for an interval of time."""
    return any(resource.partition == "date" for resource in source.resources)


def schedule(source: Source) -> Any:
    """When a source is looked at: by the clock, when its sources change, or when messages wait."""
    if source.after:
        return reduce(or_, [asset("raw", name) for name in source.after])
    awaited = source.awaited() if source.awaited else None
    if awaited is None:
        return CronDataIntervalTimetable(source.cadence, timezone="UTC") if dated(source) else source.cadence
    from airflow.sdk import AssetWatcher

    from ingestion.arrivals import Arrivals

    return asset("stream", source.name, watchers=[AssetWatcher(name=source.name, trigger=Arrivals(**awaited))])


PARAMS = {
    "since": Param(None, type=["null", "string"], format="date", description="backfill from this day on"),
    "until": Param(None, type=["null", "string"], format="date", description="up to this day, not with it"),
}


@task
def slices(words: list[str], **context: Any) -> list[list[str]]:
    """The commands of a run: what is new, or each slice of a backfill. What makes no sense, the command refuses."""
    since, until = context["params"]["since"], context["params"]["until"]
    if context["dag_run"].run_type == "backfill":
        since, until = (f"{context[name]:%Y-%m-%dT%H:%M:%S}" for name in ("data_interval_start", "data_interval_end"))
    elif since and until and since < until:
        start, end = date.fromisoformat(since), date.fromisoformat(until)
        step = -(-(end - start).days // MOST)
        days = [str(start + timedelta(days=n)) for n in range(0, (end - start).days, step)] + [until]
        return [[*words, "--since", day, "--until", after] for day, after in pairwise(days)]
    return [[*words, *(["--since", since] if since else []), *(["--until", until] if until else [])]]


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
        params=PARAMS if dated(source) else {},
        **COMMON,
    ) as dag:
        words = ["ingest", source.name, "--json", "--run-id", "{run_id}"]
        ingest = command.override(task_id="ingest", max_active_tis_per_dag=SIDE_BY_SIDE, execution_timeout=HOURS)
        if dated(source):
            ingested = ingest.partial(role="loader").expand(argv=slices(words))
        else:
            ingested = ingest("loader", words)
        judged = linked(command.override(task_id="audit")("loader", ["audit", source.name, "--json"]))
        ingested >> judged
        announce(asset("raw", source.name))(judged)
    return dag


for source in catalogue.sources():
    globals()[f"ingest_{source.name}"] = ingest_dag(source)
