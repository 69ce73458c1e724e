"""One Airflow DAG for each domain of the warehouse: core, splits, candidate marts, audit, publish, announce.

It runs whenever one of the domain's sources has published something. Readers see the marts only after the audit, all
of a domain at once; when anything fails they keep the marts they have.
"""

from __future__ import annotations

from functools import reduce
from operator import or_

from airflow.sdk import DAG, Asset, AssetOrTimeSchedule, CronTriggerTimetable, chain
from wiring import COMMON, DOMAIN_OF, announce, asset, command, linked, model, results

from ingestion import catalogue

STEPS = ("core", "splits", "marts", "audit", "publish")


def sources_of(domain: str) -> list[Asset]:
    """What the domain waits for: sources that no other source derives from (a derived one announces both)."""
    sources = [source for source in catalogue.sources() if source.domain == domain]
    derived_from = {name for source in sources for name in source.after}
    return [asset("raw", source.name) for source in sources if source.name not in derived_from]


def transform_dag(domain: str, waits_for: list[Asset], cron: str = "") -> DAG:
    """The DAG of one domain, run when an asset changes, and at the times of ``cron`` if it names any."""
    changes = reduce(or_, waits_for)
    with DAG(
        dag_id=f"transform_{domain}",
        schedule=AssetOrTimeSchedule(timetable=CronTriggerTimetable(cron, timezone="UTC"), assets=changes)
        if cron
        else changes,
        description=f"Build, audit and publish the marts of {domain}",
        tags=["transform", domain],
        doc_md=f"dbt builds `staging` and `core`, new leakage groups get their split, dbt builds the candidates in "
        f"`marts_next_{domain}`, Great Expectations audits them, and one transaction shows them in `marts`.\n\n"
        f"A red `core` or `marts`: dbt's message is in the log, `model` shows each model, and a second try runs only "
        f"what failed. A red `audit`: the button *Data Docs* shows why. Readers keep the last good marts in each case.",
        **COMMON,
    ) as dag:
        steps = [
            command.override(task_id=step, pool="transform")(
                "transformer",
                ["transform", domain, "--step", step, "--run-id", "{run_id}", "--json"],
                again=["--retry"] if step in ("core", "marts") else None,
            )
            for step in STEPS
        ]
        chain(*steps)
        core, _, marts, audit, _ = steps
        linked(audit)
        shown = results(domain)
        [core, marts] >> shown
        model.expand(told=shown)
        told = announce(asset("marts", domain))(steps[-1])
        if domain == "platform":  # the last of a chain: by now every table that the dbt docs show is there
            docs = command.override(task_id="docs", pool="transform")("transformer", ["docs", "--json"])
            chain(steps[-1], docs, told)
    return dag


for name in ("birds", "music", "text"):
    globals()[f"transform_{name}"] = transform_dag(name, sources_of(name))
# what goes wrong announces nothing, and shows in the platform's own marts within the hour
transform_platform = transform_dag("platform", [asset("predictions", family) for family in DOMAIN_OF], "7 * * * *")
