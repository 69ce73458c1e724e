"""dbt through Airflow: a second try runs what failed, a cleared run runs everything, and each model is to be seen.

The platform's own marts are built, which need no source. One model is made to fail by taking the transformer's right to
read the quarantine away, and mended by giving it back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests
from support import Stack, until

from infra.chain import Airflow
from ingestion import catalogue, pipeline
from storage import transform, warehouse

DAG = "transform_platform"
SPOILED = "fct_quarantine"


@pytest.fixture(scope="module")
def api(stack: Stack) -> Iterator[Airflow]:
    stack.need("postgres", "cache", "stream", "documents", "objects", "pages", "airflow")
    pipeline.make_tables(catalogue.sources(), stack.settings("loader"))
    airflow = Airflow(stack.settings("admin"))
    until(lambda: DAG in {dag["dag_id"] for dag in airflow.call("GET", "dags", params={"limit": 200})["dags"]})
    airflow.call("PATCH", f"dags/{DAG}", json={"is_paused": False})
    until(lambda: [run["state"] for run in runs(airflow)] and not active(airflow))  # the one that comes by itself
    yield airflow
    may_read_quarantine(stack, True)
    airflow.call("PATCH", f"dags/{DAG}", json={"is_paused": True})


def runs(api: Airflow) -> list[dict[str, Any]]:
    return list(api.call("GET", f"dags/{DAG}/dagRuns", params={"order_by": "run_after"})["dag_runs"])


def active(api: Airflow) -> bool:
    return any(run["state"] in ("queued", "running") for run in runs(api))


def may_read_quarantine(stack: Stack, may: bool) -> None:
    with closing(warehouse.connect(stack.settings("admin"))) as db, db, db.cursor() as sql:
        change = "grant select on ops.quarantine to" if may else "revoke select on ops.quarantine from"
        sql.execute(f"{change} transformer")


def started(api: Airflow) -> dict[str, Any]:
    run = api.call("POST", f"dags/{DAG}/dagRuns", json={"logical_date": None})
    return dict(run)


def spoiled(stack: Stack, api: Airflow) -> dict[str, Any]:
    """A run that has built core, and whose marts cannot all be built: dbt needs some seconds before it begins."""
    run = started(api)
    until(lambda: task(api, run, "core")["state"] == "success")
    may_read_quarantine(stack, False)
    return run


def task(api: Airflow, run: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in api.tasks(run) if one["task_id"] == name)


def ended(api: Airflow, run: dict[str, Any]) -> list[str]:
    """Wait for the end of a run; the tasks that failed in it."""
    until(lambda: api.run(DAG, run["dag_run_id"])["state"] in ("success", "failed"))
    failed = [one for one in api.tasks(run) if one["state"] == "failed"]
    return sorted(f"{one['task_id']} {one['rendered_map_index'] or ''}".strip() for one in failed)


def models(api: Airflow, run: dict[str, Any]) -> dict[str, str]:
    """The mapped tasks of a run: model -> state."""
    return {one["rendered_map_index"]: one["state"] for one in api.tasks(run) if one["task_id"] == "model"}


def rerun(run: dict[str, Any], layer: str = "marts") -> set[str]:
    """Models that dbt ran in the last try of a run."""
    found = json.loads((transform.target_path("platform", layer, run["dag_run_id"]) / "run_results.json").read_text())
    return {one["unique_id"].split(".")[2] for one in found["results"] if one["unique_id"].startswith("model.")}


def oids(stack: Stack) -> dict[str, int]:
    with closing(warehouse.connect(stack.settings("admin"))) as db, db, db.cursor() as sql:
        sql.execute(
            "select relname, pg_class.oid::bigint from pg_class join pg_namespace on relnamespace = pg_namespace.oid "
            "where nspname = 'marts_next_platform' and relkind = 'r'"
        )
        return dict(sql.fetchall())


def words(api: Airflow, run: dict[str, Any], name: str, map_index: int = -1) -> str:
    one = next(t for t in api.tasks(run) if t["task_id"] == name and t["map_index"] == map_index)
    path = f"dags/{DAG}/dagRuns/{run['dag_run_id']}/taskInstances/{name}/logs/{max(1, one['try_number'])}"
    found = api.call("GET", path, params={"map_index": map_index}, headers={"Accept": "application/json"})["content"]
    return "\n".join(str(line.get("event", "")) for line in found if isinstance(line, dict))


def test_a_second_try_runs_what_failed_and_nothing_else(stack: Stack, api: Airflow) -> None:
    run = spoiled(stack, api)
    until(lambda: task(api, run, "marts")["state"] == "up_for_retry")
    built, ran = oids(stack), rerun(run)
    assert SPOILED in ran
    may_read_quarantine(stack, True)
    until(lambda: task(api, run, "marts")["state"] == "success")
    assert rerun(run) == {SPOILED}
    after = oids(stack)
    if after:  # they may have been published already: then the schema has another name
        assert {name for name in after if after[name] != built.get(name)} == {SPOILED}
    assert ended(api, run) == []
    assert models(api, run).keys() >= set(transform.marts("platform"))
    assert set(models(api, run).values()) == {"success"}


def test_a_failing_model_is_a_red_task_with_the_words_of_dbt(stack: Stack, api: Airflow) -> None:
    before = runs(api)[-1]
    run = spoiled(stack, api)
    assert ended(api, run) == ["marts", f"model {SPOILED}"]
    states = {one["task_id"]: one["state"] for one in api.tasks(run) if one["task_id"] != "model"}
    assert (states["core"], states["marts"], states["audit"], states["publish"]) == (
        *("success", "failed"),
        *("upstream_failed", "upstream_failed"),
    )
    shown = models(api, run)
    assert shown[SPOILED] == "failed"
    assert {state for name, state in shown.items() if name != SPOILED} == {"success"}
    index = next(one["map_index"] for one in api.tasks(run) if one["rendered_map_index"] == SPOILED)
    for name, number in (("marts", -1), ("model", index)):
        assert "permission denied for table quarantine" in words(api, run, name, number)

    # mended and cleared as a whole, the run runs everything again
    may_read_quarantine(stack, True)
    body = {"dry_run": False, "dag_run_id": run["dag_run_id"], "only_failed": False, "reset_dag_runs": True}
    api.call("POST", f"dags/{DAG}/clearTaskInstances", json=body)
    until(lambda: api.run(DAG, run["dag_run_id"])["state"] != "failed")
    assert ended(api, run) == []
    assert rerun(run) >= set(transform.marts("platform"))
    assert {name for name in rerun(run, "core") if name.startswith("stg_")}
    assert set(models(api, run).values()) == {"success"}
    assert before["dag_run_id"] != run["dag_run_id"]
    # each run has its own artifacts
    folders = {one["dag_run_id"]: transform.target_path("platform", "marts", one["dag_run_id"]) for one in runs(api)}
    assert len({str(folder) for folder in folders.values()}) == len(folders)
    assert all((folder / "run_results.json").exists() for folder in folders.values())


def test_the_audit_has_a_button_that_opens_its_data_docs(stack: Stack, api: Airflow) -> None:
    run = next(one for one in reversed(runs(api)) if one["state"] == "success")
    path = f"dags/{DAG}/dagRuns/{run['dag_run_id']}/taskInstances/audit/links"
    url = api.call("GET", path)["extra_links"]["Data Docs"]
    settings = stack.settings("admin")
    login = ("lyrebird", settings.airflow_password.get_secret_value())
    page = requests.get(url, auth=login, timeout=20)
    assert page.status_code == 200
    assert "Expectation" in page.text
    assert requests.get(url, timeout=20).status_code == 401
    assert Path(url).suffix == ".html"
