"""A backfill as a person starts it in Airflow: each interval once, in a lane of its own; and nothing doubles.

The upstream is the double of xeno-canto, which misbehaves. What a backfill has to bring came late: it was uploaded, or
changed, on days that the live reading has behind it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
import tomli_w
from support import Stack, until
from upstreams import xeno_canto as xc

from infra.chain import Airflow
from ingestion import catalogue, pipeline
from storage import warehouse

DAG, SOURCE = "ingest_xeno_canto", "xeno_canto"
FIRST, DAYS = date(2026, 3, 2), 4  # of the backfill; its intervals begin with the cron, at 05:20
EACH_DAY = 20  # recordings uploaded, from the first day of the month on


def uploaded(number: int, **told: Any) -> dict[str, Any]:
    day = date(2026, 3, 1) + timedelta(days=number % 100 // EACH_DAY + number // 100 % 3 * 5)
    return xc.entry(900_000 + number, "Avisus primus", uploaded=day.isoformat(), **told)


@pytest.fixture
def catalogue_of_march(stack: Stack) -> Iterator[xc.XenoCanto]:
    """Recordings of the first fifteen days of a month, and Airflow reading them."""
    with xc.XenoCanto(uploaded(number) for number in range(300)).serving() as server:
        assert isinstance(server, xc.XenoCanto)
        own = {"url": f"{server.url}/api/3", "key": xc.KEY, "per_page": 50, "most_bytes": 0, "rate": "1000/second"}
        options = {"sources": {SOURCE: own | {"allowed_hosts": [server.host]}}}
        (stack.home / "lyrebird.toml").write_text(tomli_w.dumps(options))
        stack.need("postgres", "cache", "stream", "documents", "objects", "airflow")
        pipeline.make_tables(catalogue.sources(), stack.settings("loader"))
        yield server


def query(stack: Stack, statement: str) -> list[tuple[Any, ...]]:
    with closing(warehouse.connect(stack.settings("loader"))) as db, db, db.cursor() as sql:
        sql.execute(statement)
        return sql.fetchall()


def current(stack: Stack) -> dict[str, Any]:
    """Number -> the document, as published."""
    return dict(
        query(
            stack,
            "select _key, doc from (select distinct on (r._key) r.* from raw.xeno_canto_recordings as r join ops.load "
            "as l on l.source = 'xeno_canto' and l.load = r._load and l.state = 'published' "
            "order by r._key, r._load desc, r._position desc) as c where not _deleted",
        )
    )


def lyrebird(*words: str) -> Any:
    command = [sys.executable, "-m", "infra.cli", *words, "--json"]
    return json.loads(subprocess.run(command, env=os.environ, stdout=subprocess.PIPE, check=True).stdout)


def runs_of(api: Airflow, kind: str) -> list[dict[str, Any]]:
    return list(api.call("GET", f"dags/{DAG}/dagRuns", params={"run_type": kind})["dag_runs"])


def backfill(api: Airflow, behavior: str) -> list[dict[str, Any]]:
    """Run a backfill to its end; its runs."""
    body = {
        "dag_id": DAG,
        "from_date": f"{FIRST}T00:00:00Z",
        "to_date": f"{FIRST + timedelta(days=DAYS)}T00:00:00Z",
        "reprocess_behavior": behavior,
        "max_active_runs": 2,
    }
    number = api.call("POST", "backfills", json=body)["id"]
    until(lambda: api.call("GET", f"backfills/{number}")["completed_at"])
    return runs_of(api, "backfill")


@pytest.mark.long
def test_a_backfill_brings_its_days_once_and_leaves_the_live_cursor_alone(
    stack: Stack, catalogue_of_march: xc.XenoCanto
) -> None:
    server, api = catalogue_of_march, Airflow(stack.settings("admin"))
    until(lambda: DAG in {dag["dag_id"] for dag in api.call("GET", "dags", params={"limit": 200})["dags"]})
    api.call("PATCH", f"dags/{DAG}", json={"is_paused": False})
    try:
        # the run that Airflow makes of its own is the live one: it reads the whole list
        until(lambda: [run["state"] for run in runs_of(api, "scheduled")] == ["success"])
        before = current(stack)
        assert before == {number: server._addressed(one) for number, one in server.entries.items()}
        cursors = query(stack, "select resource, cursor, load from ops.cursor where lane = 'live'")
        assert [resource for resource, *_ in cursors] == ["recordings"]

        # every day gets late uploads and corrections: the backfill brings those of its days and no others
        late = {number: uploaded(number) for number in range(300, 600)}
        changed = {number: uploaded(number, rmk="heard again") for number in range(0, 300, 7)}
        server.entries |= {one["id"]: one for one in (*late.values(), *changed.values())}
        days = {(FIRST + timedelta(days=n + 1)).isoformat() for n in range(DAYS)}  # a day belongs to where it begins
        wanted = before | {
            number: server._addressed(one) for number, one in server.entries.items() if one["uploaded"] in days
        }
        versions = len(before) + sum(before.get(number) != one for number, one in wanted.items())
        assert len(before) + EACH_DAY * DAYS <= len(wanted) < versions
        edges = [datetime(2026, 3, 2, 5, 20, tzinfo=UTC) + timedelta(days=n) for n in range(DAYS + 1)]
        slices = {f"{start.isoformat()}/{end.isoformat()}" for start, end in pairwise(edges)}

        for behavior, attempts in (("none", 1), ("completed", 2)):
            assert [run["state"] for run in backfill(api, behavior)] == ["success"] * DAYS
            ledger = [one for one in lyrebird("ledger", SOURCE) if one["slice"] != "all"]
            assert {one["slice"] for one in ledger} == slices
            done = ("recordings", "done", attempts)
            assert [(one["resource"], one["state"], one["attempts"]) for one in ledger] == [done] * DAYS
            assert lyrebird("ledger", SOURCE, "--gaps") == []
            assert current(stack) == wanted
            assert query(stack, "select count(*) from raw.xeno_canto_recordings") == [(versions,)]
            assert query(stack, "select resource, cursor, load from ops.cursor where lane = 'live'") == cursors
        assert {"429", "503", "cut"} <= set(server.met)
    finally:
        api.call("PATCH", f"dags/{DAG}", json={"is_paused": True})


@pytest.mark.long
def test_a_run_over_many_days_maps_to_a_task_a_day_of_which_two_run_at_once(
    stack: Stack, catalogue_of_march: xc.XenoCanto
) -> None:
    api = Airflow(stack.settings("admin"))
    until(lambda: DAG in {dag["dag_id"] for dag in api.call("GET", "dags", params={"limit": 200})["dags"]})
    api.call("PATCH", f"dags/{DAG}", json={"is_paused": False})
    since, after = date(2026, 3, 1), date(2026, 3, 7)
    days = [since + timedelta(days=n) for n in range((after - since).days)]
    try:
        asked = {"logical_date": None, "conf": {"since": str(since), "until": str(after)}}
        run = api.call("POST", f"dags/{DAG}/dagRuns", json=asked)["dag_run_id"]
        until(lambda: api.call("GET", f"dags/{DAG}/dagRuns/{run}")["state"] in ("success", "failed"), 900)
        found = api.call("GET", f"dags/{DAG}/dagRuns/{run}/taskInstances", params={"limit": 100})["task_instances"]
    finally:
        api.call("PATCH", f"dags/{DAG}", json={"is_paused": True})
    mapped = sorted((one for one in found if one["task_id"] == "ingest"), key=lambda one: one["map_index"])
    assert [(one["map_index"], one["state"]) for one in mapped] == [(n, "success") for n in range(len(days))]
    spans = [tuple(datetime.fromisoformat(one[end]) for end in ("start_date", "end_date")) for one in mapped]
    at_once = [sum(start <= moment < end for start, end in spans) for moment, _ in spans]
    assert max(at_once) == 2
    asked_for = {f"{day}T00:00:00+00:00/{day + timedelta(days=1)}T00:00:00+00:00" for day in days}
    ledger = {one["slice"]: one["state"] for one in lyrebird("ledger", SOURCE)}
    assert {name: ledger.get(name) for name in asked_for} == dict.fromkeys(asked_for, "done")
    within = {
        number for number, one in catalogue_of_march.entries.items() if str(since) <= one["uploaded"] < str(after)
    }
    assert within <= current(stack).keys()
