"""What all DAGs share: how a task runs a `lyrebird` command, how a change is announced, what happens on failure.

A task runs one command as a child process with the credentials of one role. An asset is announced only when its number
(the last published load, the mart's version, …) is not the one of its last event, so nothing downstream runs for
nothing, and nothing is lost when a task dies between the work and the announcement.
"""

from __future__ import annotations

import json
import logging
import re
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, BaseOperatorLink, get_current_context, task
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import AssetWatcher
    from airflow.sdk.definitions.context import Context

log = logging.getLogger("lyrebird")

DOMAIN_OF = {"birds": "birds", "music": "music", "translation": "text"}  # model family -> domain of its marts


def explain_failure(context: Context) -> None:
    """Say in one place what failed and what helps; a person reads this in the task's log."""
    ti = context["ti"]
    log.error(
        "%s.%s failed on try %s: %s. What helps: docs/runbook.md. After the cause is mended, clear this task.",
        *(ti.dag_id, ti.task_id, ti.try_number, context.get("exception")),
    )


DEFAULTS: dict[str, Any] = {
    "owner": "lyrebird",
    "retries": 1,
    "retry_delay": timedelta(seconds=20),
    "execution_timeout": timedelta(hours=2),
    "on_failure_callback": explain_failure,
}
COMMON: dict[str, Any] = {
    "start_date": datetime(2026, 1, 1),
    "catchup": False,
    "max_active_runs": 1,
    "default_args": DEFAULTS,
}


def asset(kind: str, name: str, watchers: Sequence[AssetWatcher] = ()) -> Asset:
    """The asset of something that changes: ``raw/aviary``, ``marts/birds``, ``models/birds``, ``predictions/birds``."""
    return Asset(name=f"{kind}_{name}", uri=f"lyrebird://{kind}/{name}", group="lyrebird", watchers=list(watchers))


class DataDocs(BaseOperatorLink):
    """A button on the task's page: what Great Expectations saw, as the command that the task ran has told."""

    name = "Data Docs"
    xcom_key = "data_docs"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002 - as Airflow calls it
        return str(getattr(operator, "data_docs", ""))


def linked(answer: Any) -> Any:
    """The task of this answer, with a button to the Data Docs."""
    answer.operator.operator_extra_links = (DataDocs(),)
    return answer


@task
def command(
    role: str,
    argv: list[str],
    given: dict[str, Any] | None = None,
    before: dict[str, Any] | None = None,
    again: list[str] | None = None,
    **context: Any,
) -> Any:
    """Run ``lyrebird ARGV…`` as ``role``; at a second try with the words ``again`` too. Gives the JSON it prints last.

    A task that was cleared begins anew: its next try is a first one.
    Words may hold ``{run_id}``, a field of ``given`` as ``{name}``, of an earlier answer as ``{before[version]}``, or
    of what a person has asked for when starting the run as ``{params[preset]}``.
    """
    from storage.errors import Problem
    from storage.roles import run

    ti = context["ti"]
    first = ti.max_tries - ti.task.retries + 1  # Airflow counts on when a task is cleared, and raises max_tries
    wanted = argv + (again or [] if ti.try_number > first else [])
    known = (given or {}) | {"before": before, "run_id": context["run_id"], "params": context["params"]}
    words = [word.format(**known) for word in wanted]

    def tell(line: str) -> None:
        log.info(line)
        if found := re.match(r"Data Docs of \S+: (http\S+)", line):
            ti.task.data_docs = found[1]

    try:
        output = run(role, words, say=tell)  # type: ignore[arg-type]
    except Problem as problem:
        raise AirflowException(str(problem)) from None
    return json.loads(next(line for line in reversed(output.splitlines()) if line.startswith(("{", "["))))


@task(trigger_rule="all_done")
def results(domain: str, **context: Any) -> list[dict[str, Any]]:
    """What became of each model of the run, whether all went well or not."""
    from storage import transform

    return transform.results(domain, context["run_id"])


@task(map_index_template="{{ model }}", priority_weight=0, weight_rule="absolute", max_active_tis_per_dagrun=2)
def model(told: dict[str, Any]) -> None:
    """One model, to look at: red with dbt's words where it failed, skipped where a failure kept it from being built.

    It does nothing, so it waits for whatever has something to do.
    """
    get_current_context()["model"] = told["model"]  # type: ignore[typeddict-unknown-key] # what the index is called
    words = "{layer}: {model}: {status} in {seconds} s: {message}".format(**told)
    if told["status"] in ("error", "fail", "runtime error", "partial success"):
        raise AirflowFailException(words)
    if told["status"] == "skipped":
        raise AirflowSkipException(words)
    log.info(words)


@task
def total(answers: Any, field: str) -> int:
    """The sum of one field over the answers of mapped commands: a number that grows when any of them did something."""
    answers = [answers] if isinstance(answers, dict) else answers  # how Airflow hands over a group mapped once
    return sum(int(answer[field]) for answer in answers)


def announce(what: Asset, task_id: str = "announce") -> Any:
    """A task that emits ``what`` when the number it is given differs from the one of the asset's last event.

    It takes a number, or an answer with a field ``number``.
    """

    @task(task_id=task_id, outlets=[what], inlets=[what], retries=2)
    def tell(answer: Any, *, inlet_events: Any, outlet_events: Any) -> int:
        number = int(answer["number"] if isinstance(answer, dict) else answer)
        events = inlet_events[what]
        told = max((int(event.extra.get("number", 0)) for event in events[-1:]), default=0) if len(events) else 0
        if number == told:
            raise AirflowSkipException(f"nothing changed since number {told}: nothing downstream has to run")
        outlet_events[what].extra = {"number": number}
        log.info("%s: %s -> %s", what.name, told, number)
        return number

    return tell
