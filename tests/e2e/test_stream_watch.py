"""A stream that wakes a DAG: Airflow's own triggerer watches, and until enough messages wait nothing runs at all."""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any

import pytest
import tomli_w
from support import Stack, until
from upstreams.recorder import Recorder

from infra.chain import Airflow
from infra.embedded import probes
from infra.embedded.home import Home
from ingestion import catalogue, pipeline
from storage import warehouse
from storage.errors import Problem
from storage.stream import Stream

DAG = "ingest_field_recorder"
RECORDER = Recorder(seed=7, detections=300, clips=60, poison=False)


@pytest.mark.long
def test_the_triggerer_starts_a_run_when_enough_messages_wait_and_none_before(stack: Stack) -> None:
    options = {"stream": "yard", "size": 200, "age": 3600}
    (stack.home / "lyrebird.toml").write_text(tomli_w.dumps({"sources": {"field_recorder": options}}))
    stack.need("postgres", "cache", "stream", "documents", "objects", "airflow")
    pipeline.make_tables(catalogue.sources(), stack.settings("loader"))
    server = Stream(stack.settings("loader"))
    api = Airflow(stack.settings("admin"))

    def runs() -> list[dict[str, Any]]:
        return list(api.call("GET", f"dags/{DAG}/dagRuns", params={"order_by": "run_after"})["dag_runs"])

    until(lambda: DAG in {dag["dag_id"] for dag in api.call("GET", "dags", params={"limit": 200})["dags"]})
    token = api.call("GET", f"dags/{DAG}")["file_token"]
    until(lambda: _parse(api, token))  # it may know the DAG as it was without the stream, with a cron
    until(lambda: "*" not in api.call("GET", f"dags/{DAG}")["timetable_summary"])
    api.call("PATCH", f"dags/{DAG}", json={"is_paused": False})
    # Airflow begins to watch when it reads the file the next time, which is every five minutes
    until(lambda: _parse(api, token))
    try:
        its_own = probes.connect_postgres(Home.at(stack.home).ports(), Home.at(stack.home).passwords(), "airflow")
        with closing(its_own) as db, db, db.cursor() as sql:
            asked = "select count(*) from trigger where triggerer_id is not null and classpath like '%Arrivals'"
            until(lambda: _one(sql, asked, db) == 1)  # the triggerer has it
            RECORDER.send(server, "yard", slice(0, 60))
            time.sleep(20)
            assert runs() == []  # no run, and so no task in any slot: 60 of 200 messages wait
            assert _one(sql, "select count(*) from task_instance where dag_id = 'ingest_field_recorder'", db) == 0
        RECORDER.send(server, "yard", slice(60, None))
        until(lambda: [run for run in runs() if run["state"] == "success"])
        (run,) = runs()
        assert run["run_type"] == "asset_triggered"
        with closing(warehouse.connect(stack.settings("loader"))) as db, db, db.cursor() as sql:
            sql.execute("select resource, sum(rows), bool_and(state = 'published') from ops.load group by 1 order by 1")
            sent = {kind: len(RECORDER.messages(kind)) for kind in ("clips", "detections")}
            assert sql.fetchall() == [(kind, count, True) for kind, count in sent.items()]
        assert [server.lag(f"yard:{kind}", "lyrebird").pending for kind in sent] == [0, 0]
        time.sleep(40)  # longer than a trigger rests after its event
        assert len(runs()) == 1
    finally:
        api.call("PATCH", f"dags/{DAG}", json={"is_paused": True})


def _parse(api: Airflow, token: str) -> bool:
    """Ask Airflow to read a DAG file now; False while an earlier question of this kind waits."""
    try:
        api.call("PUT", f"parseDagFile/{token}")
    except Problem as refused:
        if ": 409 " in str(refused):
            return False
        raise
    return True


def _one(sql: Any, statement: str, db: Any) -> Any:
    sql.execute(statement)
    found = sql.fetchone()[0]
    db.rollback()  # so that the next look is a new one
    return found
