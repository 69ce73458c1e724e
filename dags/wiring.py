"""What all DAGs share: how a task runs a `lyrebird` command, how a change is announced, what happens on failure.

A task runs one command as a child process with the credentials of one role. An asset is announced only when its number
(the last published load, the mart's version, …) is not the one of its last event, so nothing downstream runs for
nothing, and nothing is lost when a task dies between the work and the announcement.
"""

from __future__ import annotations

import json
import logging
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, task
from airflow.sdk.exceptions import AirflowException, AirflowSkipException

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
    Words may hold ``{run_id}``, a field of ``given`` as ``{name}``, or of an earlier answer as ``{before[version]}``.
    """
    from storage.errors import Problem
    from storage.roles import run

    ti = context["ti"]
    first = ti.max_tries - ti.task.retries + 1  # Airflow counts on when a task is cleared, and raises max_tries
    wanted = argv + (again or [] if ti.try_number > first else [])
    words = [word.format(**(given or {}), before=before, run_id=context["run_id"]) for word in wanted]
    try:
        output = run(role, words, say=log.info)  # type: ignore[arg-type]
    except Problem as problem:
        raise AirflowException(str(problem)) from None
    return json.loads(next(line for line in reversed(output.splitlines()) if line.startswith(("{", "["))))


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
