"""`lyrebird run`: the whole chain through Airflow, watched to its end, and a summary of what came out.

Nothing is done here that the DAGs do not do: the ingest DAGs are triggered, everything after them runs because an
asset changed, and this file waits and tells.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests
import tomli_w
from rich.console import Console

from infra.embedded.home import write_private
from infra.sentences import visible
from ingestion import catalogue
from ml.tasks import FAMILIES
from storage import warehouse
from storage.errors import Problem
from storage.settings import Settings, for_role, home, on_this_machine, options, options_file
from storage.transform import DOMAINS

Say = Callable[[str], None]
ACTIVE, ENDED = ("queued", "running"), ("success", "failed")
QUIET_SECONDS = 12  # without any active or pending run: the chain has come to rest
PATIENCE_SECONDS = 3 * 3600
DETAIL_SECONDS = 15  # between two lines that differ only in how far a training is
PARTS = {"audio_folder": "birds", "parallel_files": "multi30k", "piano_roll_files": "jsb_chorales"}
MADE = {"ingest": catalogue.names(), "transform": DOMAINS, "train": FAMILIES, "predict": FAMILIES}  # by dags/<kind>.py
OURS = [f"{kind}_{name}" for kind, names in MADE.items() for name in names]  # other DAGs are let be


class Airflow:
    """Airflow's REST API (v2), with a token of our own."""

    def __init__(self, settings: Settings) -> None:
        settings.need("airflow_url", "airflow_user", "airflow_password")
        self.base = settings.airflow_url
        self._login = {"username": settings.airflow_user, "password": settings.airflow_password.get_secret_value()}
        self.session = requests.Session()
        self.session.trust_env = not on_this_machine(self.base)
        self._renew()

    def _renew(self) -> None:
        try:
            answer = self.session.post(f"{self.base}/auth/token", json=self._login, timeout=30)
            answer.raise_for_status()
            self.session.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
        except requests.RequestException as error:
            raise Problem(f"Airflow does not let us in: {error}", "`lyrebird status` shows how it is") from error

    def call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """One call; a token that ran out is renewed, a busy server asked again."""
        for attempt in range(6):
            try:
                answer = self.session.request(method, f"{self.base}/api/v2/{path}", timeout=60, **options)
            except requests.RequestException as error:
                if attempt == 5:
                    raise Problem(f"Airflow does not answer: {error}", "`lyrebird status` shows how it is") from error
                time.sleep(2**attempt)
                continue
            if answer.status_code == 401:
                self._renew()
                continue
            if answer.status_code >= 500:
                time.sleep(2**attempt)
                continue
            if not answer.ok:
                raise Problem(f"Airflow refused {method} {path}: {answer.status_code} {answer.text[:300]}")
            found: dict[str, Any] = answer.json() if answer.content else {}
            return found
        raise Problem(f"Airflow did not answer {method} {path}", f"Its log: {home() / 'logs'}")

    def runs(self, since: datetime) -> list[dict[str, Any]]:
        """Runs of our DAGs that began to be queued at or after ``since``, the latest first."""
        return self._listed(run_after_gte=since.isoformat(), order_by="-run_after")

    def active(self) -> list[dict[str, Any]]:
        """Runs of our DAGs that are queued or running, whenever they began."""
        return self._listed(states=["queued", "running"])

    def _listed(self, **wanted: Any) -> list[dict[str, Any]]:
        body = {"dag_ids": OURS, "page_limit": 200} | wanted
        found: list[dict[str, Any]] = self.call("POST", "dags/~/dagRuns/list", json=body)["dag_runs"]
        return found

    def run(self, dag: str, run: str) -> dict[str, Any]:
        return self.call("GET", f"dags/{dag}/dagRuns/{run}")

    def tasks(self, run: dict[str, Any]) -> list[dict[str, Any]]:
        path = f"dags/{run['dag_id']}/dagRuns/{run['dag_run_id']}/taskInstances"
        found: list[dict[str, Any]] = self.call("GET", path, params={"limit": 200})["task_instances"]
        return found


def run(say: Say) -> None:
    """Run the chain to its end and print what came out.

    Raises Problem that names the task when something failed.
    """
    started, begin = datetime.now(UTC), time.monotonic()
    airflow = Airflow(for_role("admin"))
    _wait_for_dags(airflow)
    for dag in OURS:
        airflow.call("PATCH", f"dags/{dag}", json={"is_paused": False})
    roots = [f"ingest_{source.name}" for source in catalogue.sources() if not source.after]
    left = {_key(run) for run in airflow.active()}
    _mend(airflow, [dag for dag in OURS if dag not in roots], say)
    _trigger(airflow, roots)
    console = Console(stderr=True)
    display = Screen(console, begin) if console.is_terminal else Log(say, begin)
    Watch(airflow, started, display, left).to_the_end()
    from infra import summary

    summary.tell(say, time.monotonic() - begin)


def configure(data: Path, say: Say) -> None:
    """Write the locations of real data, laid out as in ``data``, into the options file."""
    data = data.expanduser().resolve()
    if not data.is_dir():
        raise Problem(f"{data} is no folder", "Give the folder that holds birds/, multi30k/ or jsb_chorales/")
    found = {source: data / part for source, part in PARTS.items() if (data / part).is_dir()}
    if not found:
        raise Problem(f"{data} holds none of {', '.join(PARTS.values())}", "README.md shows how it is laid out")
    known = options()
    for source, folder in found.items():
        known.setdefault("sources", {}).setdefault(source, {})["location"] = str(folder)
        say(f"{source}: {folder}")
    path = options_file().resolve()  # it may be a link
    path.parent.mkdir(parents=True, exist_ok=True)
    write_private(path, tomli_w.dumps(known))  # a location may hold a password


def _wait_for_dags(airflow: Airflow, seconds: int = 180) -> None:
    """Wait until the DAG processor has read every file of ours."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for error in airflow.call("GET", "importErrors")["import_errors"]:
            if Path(error["filename"]).stem in MADE:
                last = error["stack_trace"].strip().splitlines()[-1]
                raise Problem(f"{error['filename']} does not import: {last}", "Mend it, and run the same command again")
        if {dag["dag_id"] for dag in airflow.call("GET", "dags", params={"limit": 200})["dags"]} >= set(OURS):
            return
        time.sleep(1)
    raise Problem("Airflow has not read the DAGs", f"Look at {home() / 'logs' / 'airflow-dag-processor.log'}")


def _mend(airflow: Airflow, dags: list[str], say: Say) -> None:
    """Clear what failed in each DAG's last run: a run of the chain finishes what an earlier one left.

    Those with a cron of their own (``roots``) are left out of ``dags``: a new run of them is triggered anyway.
    """
    for dag in dags:
        last = airflow.call("GET", f"dags/{dag}/dagRuns", params={"order_by": "-run_after", "limit": 1})["dag_runs"]
        if last and last[0]["state"] == "failed":
            say(f"{dag}: trying again what failed in its last run")
            _clear(airflow, last[0] | {"dag_id": dag})


def _clear(airflow: Airflow, run: dict[str, Any]) -> None:
    """Have what failed in a run tried anew. An ingest DAG fetches again: a load that was rejected stays rejected."""
    body = {"dry_run": False, "dag_run_id": run["dag_run_id"], "reset_dag_runs": True} | (
        {"task_ids": ["ingest"], "include_downstream": True, "only_failed": False}
        if run["dag_id"].startswith("ingest_")
        else {"only_failed": True}
    )
    airflow.call("POST", f"dags/{run['dag_id']}/clearTaskInstances", json=body)


def _key(run: dict[str, Any]) -> str:
    return f"{run['dag_id']} {run['dag_run_id']}"


def _trigger(airflow: Airflow, roots: list[str]) -> None:
    """Start the ingest DAGs that do not start by themselves (an unpaused cron DAG runs once at first)."""
    for dag in roots:
        due = airflow.call("GET", f"dags/{dag}")["next_dagrun_run_after"]
        if due is None or _time(due) > datetime.now(UTC):
            airflow.call("POST", f"dags/{dag}/dagRuns", json={"logical_date": None})


@dataclass
class Line:
    """What is told of one run: the DAG, its state, the tasks at work, what it has counted, for how long."""

    dag: str
    state: str
    tasks: str
    counted: str
    seconds: float

    def __str__(self) -> str:
        doing = f"in {self.seconds:,.0f} s" if self.state in ENDED else self.tasks
        return f"{self.dag:<28} {self.state:<8} {doing} {self.counted}".rstrip()


class Log:
    """A line for each thing that changes: for a file, or a screen that is none."""

    def __init__(self, say: Say, begin: float) -> None:
        self._say, self._begin = say, begin
        self._shown: dict[str, tuple[str, str, str, float]] = {}

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, lines: dict[str, Line]) -> None:
        now = time.monotonic()
        for key, line in lines.items():
            state, tasks, counted, at = self._shown.get(key, ("", "", "", 0.0))
            moved = line.state != state or (line.tasks not in (tasks, ""))
            if moved or (line.counted != counted and now - at > DETAIL_SECONDS):
                self._shown[key] = (line.state, line.tasks, line.counted, now)
                self._say(f"{clock(now - self._begin)}  {line}")


class Screen:
    """A table that changes in its place, a row for each run of the chain."""

    def __init__(self, console: Console, begin: float) -> None:
        from rich.live import Live

        self._begin = begin
        self._live = Live(console=console, refresh_per_second=4, vertical_overflow="visible")

    def __enter__(self) -> Screen:
        self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)

    def show(self, lines: dict[str, Line]) -> None:
        from rich.table import Table
        from rich.text import Text

        ended = sum(line.state in ENDED for line in lines.values())
        total = f"{ended} of {len(lines)} runs so far"
        table = Table(clock(time.monotonic() - self._begin), "state", "for", f"at work ({total})", box=None)
        for line in sorted(lines.values(), key=lambda line: line.state not in ENDED):
            colour = {"success": "green", "failed": "red", "running": "cyan"}.get(line.state, "dim")
            words = visible(" ".join(filter(None, (line.tasks, line.counted))))
            table.add_row(line.dag, Text(line.state, colour), clock(line.seconds), Text(words))
        self._live.update(table)


@dataclass
class Watch:
    """Follow the runs until all is quiet, telling what goes on.

    Runs that an earlier chain ``left`` under way may have used up their tries on what interrupted it: where one of them
    fails, it is tried once more.
    """

    airflow: Airflow
    since: datetime
    display: Log | Screen
    left: set[str] = field(default_factory=set)
    seen: dict[str, dict[str, Any]] = field(default_factory=dict)
    ended: dict[str, Line] = field(default_factory=dict)

    def to_the_end(self) -> None:
        with self.display:
            self._follow()

    def _follow(self) -> None:
        quiet_since: float | None = None
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            runs = self._runs()
            self.display.show({key: self._line(key, run) for key, run in runs.items()})
            again = [key for key in self.left if runs.get(key, {}).get("state") == "failed"]
            for key in again:
                _clear(self.airflow, runs[key])
                self.left.remove(key)
                runs[key]["state"] = "queued"
            active = [run for run in runs.values() if run["state"] in ACTIVE]
            if active or not runs:
                quiet_since = None
            elif quiet_since is None:
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since > QUIET_SECONDS:
                failed = [run for run in runs.values() if run["state"] == "failed"]
                if failed:
                    raise self._problem(failed)
                return
            time.sleep(2)
        raise Problem("the chain has not come to rest in three hours", "Look at the Airflow UI: `lyrebird status`")

    def _runs(self) -> dict[str, dict[str, Any]]:
        """The runs of this chain: begun since, or active when first seen; followed to their ends."""
        now = [*reversed(self.airflow.runs(self.since)), *self.airflow.active()]
        found = {_key(run): run for run in now}
        for key, run in self.seen.items():
            if key not in found:
                found[key] = self.airflow.run(run["dag_id"], run["dag_run_id"]) if run["state"] in ACTIVE else run
        self.seen = found
        return found

    def _line(self, key: str, run: dict[str, Any]) -> Line:
        if key in self.ended and run["state"] == self.ended[key].state:
            return self.ended[key]
        dag, state = run["dag_id"], run["state"]
        seconds = (_time(run["end_date"]) - _time(run["start_date"])).total_seconds()
        if state in ENDED:
            self.ended[key] = Line(dag, state, "", counts(dag), seconds)
            return self.ended[key]
        if state == "queued":
            return Line(dag, state, "", "", 0.0)
        working = [
            f"{task['task_id']}{'' if task['map_index'] < 0 else '[' + str(task['map_index']) + ']'}"
            for task in self.airflow.tasks(run)
            if task["state"] == "running"
        ]
        return Line(dag, state, ", ".join(working), progress(dag), seconds)

    def _problem(self, failed: list[dict[str, Any]]) -> Problem:
        run = failed[-1]
        tasks = [task for task in self.airflow.tasks(run) if task["state"] == "failed"]
        what = self._last_words(run, tasks[0]) if tasks else f"{run['dag_id']} failed"
        more = f" ({len(failed) - 1} more runs failed.)" if len(failed) > 1 else ""
        link = f"{self.airflow.base}/dags/{run['dag_id']}/runs/{run['dag_run_id']}"
        return Problem(what + more, f"Its log: {link}")

    def _last_words(self, run: dict[str, Any], task: dict[str, Any]) -> str:
        """What the failed task said of it, from its log."""
        path = f"dags/{run['dag_id']}/dagRuns/{run['dag_run_id']}/taskInstances/{task['task_id']}"
        asked = {"params": {"map_index": task["map_index"]}, "headers": {"Accept": "application/json"}}
        log = self.airflow.call("GET", f"{path}/logs/{task['try_number']}", **asked)["content"]
        said = [line["event"] for line in log if isinstance(line, dict) and line.get("logger") == "lyrebird"]
        return str(said[-1]) if said else f"{run['dag_id']}.{task['task_id']} failed"


def counts(dag: str) -> str:
    """What a finished run has left, in a few numbers."""
    kind, name = dag.split("_", 1)
    statement = {
        "ingest": "select sum(rows) || ' records so far, in ' || count(*) || ' loads' from ops.load "
        "where source = %s and state = 'published'",
        "transform": "select cardinality(marts) || ' marts, version ' || version from ops.publication "
        "where domain = %s order by version desc limit 1",
        "train": "select string_agg(scores, '; ') from (select distinct on (model) model || ': ' || "
        "string_agg(metric || ' ' || round(value::numeric, 3), ', ' order by metric) as scores from ml.score "
        "where split = 'valid' and model like %s || '%%' and baseline is not null "
        "group by model, model_version order by model, model_version desc) as newest",
        "predict": "select count(*) || ' predictions' from ml.prediction where model like %s || '%%'",
    }[kind]
    with closing(warehouse.connect(for_role("admin"))) as db, db, db.cursor() as sql:
        sql.execute(statement, (name,))
        row = sql.fetchone()
    return str(row[0] or "") if row else ""


def progress(dag: str) -> str:
    """How far a training is: the last step and loss that it wrote."""
    import json

    kind, name = dag.split("_", 1)
    if kind != "train":
        return ""
    events = sorted((home() / "runs").glob(f"{name}-*/*/events.jsonl"), key=lambda path: path.stat().st_mtime)
    if not events or time.time() - events[-1].stat().st_mtime > 30:
        return ""
    lines = [json.loads(line) for line in events[-1].read_text().splitlines()[-20:] if line.endswith("}")]
    last = next((line for line in reversed(lines) if "loss" in line), None)
    return f"{events[-1].parent.parent.name}: step {last['step']}, loss {last['loss']:.3f}" if last else ""


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60:3}:{int(seconds) % 60:02}"


def _time(text: str | None) -> datetime:
    return datetime.fromisoformat(text) if text else datetime.now(UTC)
