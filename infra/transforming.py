"""The steps of a domain's transform, one after another or one by one (as the DAG runs them)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

from storage import transform, warehouse
from storage.errors import Problem
from storage.gates import marts, publish
from storage.objects import Objects
from storage.settings import Settings

Say = Callable[[str], None]
STEPS = ("core", "splits", "marts", "audit", "publish")
SEVERITIES = ("critical", "warning", "info", "none")  # the worst is told last, where it is seen


def run(
    domain: str, step: str, settings: Settings, *, retry: bool, say: Say, run_id: str = transform.BY_HAND
) -> dict[str, Any]:
    """Run one step, or all of them, as part of the run of this name. Gives what the last one found.

    Raises Problem for an unknown domain or step, a failed build or a failed audit; readers keep what they had.
    """
    transform.known(domain)
    if step and step not in STEPS:
        raise Problem(f"there is no step {step}", f"The steps: {', '.join(STEPS)}")
    answer: dict[str, Any] = {}
    for one in [step] if step else STEPS:
        say(f"{domain}: {one}")
        answer = _step(domain, one, settings, run_id, retry, say)
    return answer


def _step(domain: str, step: str, settings: Settings, run_id: str, retry: bool, say: Say) -> dict[str, Any]:
    if step in ("core", "marts"):
        return transform.build(domain, step, settings, run_id, retry=retry)
    if step == "splits":
        return {"assigned": transform.assign_splits(domain, settings)}
    if step == "audit":
        verdicts = marts.audit(domain, settings)
        for name, verdict in sorted(verdicts.items(), key=lambda one: -SEVERITIES.index(one[1].severity)):
            if verdict.severity != "none":
                say(f"{name}: {verdict.severity}: {verdict.reason}")
            say(f"Data Docs of {name}: {verdict.docs}")
        failed = [name for name, verdict in verdicts.items() if not verdict.accepted]
        if failed:
            reason = verdicts[failed[0]].reason
            raise Problem(f"{', '.join(failed)} did not pass the audit: {reason}", "Readers keep the marts they have")
        return {"audited": len(verdicts), "warnings": sum(v.severity == "warning" for v in verdicts.values())}
    published = publish.publish(domain, settings)
    transform.keep_state(domain, run_id)
    say(f"{domain}: version {published} is published" if published else f"{domain}: nothing changed")
    return {"published": published, "number": version(domain, settings)}


def version(domain: str, settings: Settings) -> int:
    """The version of the domain's marts that readers see; 0 before the first."""
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute("select coalesce(max(version), 0) from ops.publication where domain = %s", (domain,))
        return int(warehouse.first(sql)[0])


def docs(settings: Settings, say: Say) -> dict[str, Any]:
    """Make the dbt docs, as one page, and put them into the bucket ``docs``."""
    folder = transform.docs(settings)
    count = Objects(settings).upload_folder("docs", "dbt", folder)
    say(f"{count} files of dbt docs")
    return {"url": f"{settings.pages_url}/dbt/index.html", "files": count}
