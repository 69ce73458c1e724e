"""The chain through Airflow's API: asset-triggered, in other processes, and safe when an audit fails.

One small family (translation, from text files that the test writes) goes the whole way: ingest, transform, freeze,
train, promote, predict. Then a spoiled source is rejected: nothing downstream runs, readers keep their mart; the source
is mended, the task cleared through the API, and the chain finishes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support import Stack

from infra.chain import Airflow
from ingestion import catalogue, pipeline
from storage import warehouse

DAGS = (
    "ingest_parallel_files",
    "transform_text",
    "train_translation",
    "predict_translation",
    "transform_platform",
)
WORDS = {
    "a": "ein", "red": "rot", "blue": "blau", "green": "grün", "small": "klein", "big": "groß", "old": "alt",
    "bird": "Vogel", "song": "Lied", "tree": "Baum", "house": "Haus", "river": "Fluss", "cat": "Katze",
    "sings": "singt", "sleeps": "schläft", "runs": "läuft", "waits": "wartet", "here": "hier", "there": "dort",
    "today": "heute", "now": "jetzt",
}  # fmt: skip


def sentences() -> Iterator[tuple[str, str]]:
    """Sentences and their translations, word by word, in a fixed order."""
    for color in ("red", "blue", "green"):
        for size in ("small", "big", "old"):
            for noun in ("bird", "song", "tree", "house", "river", "cat"):
                for verb in ("sings", "sleeps", "runs", "waits"):
                    for where in ("here", "there", "today", "now"):
                        english = ["a", size, color, noun, verb, where]
                        yield " ".join(english), " ".join(WORDS[word] for word in english)


def write(folder: Path, share: float = 1.0) -> None:
    """Train and valid files, or only the first part of them."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = list(sentences()) * 2
    parts = {"train": [p for i, p in enumerate(pairs) if i % 8], "val": [p for i, p in enumerate(pairs) if i % 16 == 8]}
    for part, chosen in parts.items():
        kept = chosen[: int(len(chosen) * share)]
        for column, language in enumerate(("en", "de")):
            (folder / f"{part}.{language}").write_text("".join(f"{pair[column]}\n" for pair in kept), encoding="utf-8")


@pytest.fixture(scope="module")
def airflow(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Airflow, Path]]:
    """Airflow over the session's stores, with one source that reads files of ours."""
    corpus = tmp_path_factory.mktemp("text") / "tiny"
    write(corpus)
    (stack.home / "lyrebird.toml").write_text(
        f'[sources.parallel_files]\nlocation = "{corpus}"\n'
        '[train]\nset = ["steps=60", "warmup=10", "evaluate_every=30", "vocabulary=400"]\n'
    )
    stack.need("postgres", "cache", "stream", "documents", "objects", "mlflow", "pages", "airflow")
    pipeline.make_tables(catalogue.sources(), stack.settings("loader"))
    api = Airflow(stack.settings("admin"))
    until(lambda: set(DAGS) <= {dag["dag_id"] for dag in api.call("GET", "dags", params={"limit": 200})["dags"]})
    assert api.call("GET", "importErrors")["total_entries"] == 0
    yield api, corpus
    for dag in DAGS:  # the schedules must not reach into the tests that follow
        api.call("PATCH", f"dags/{dag}", json={"is_paused": True})


def until(true: Callable[[], Any], seconds: float = 420) -> Any:
    """Wait for something to become true, and give it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = true()
        if found:
            return found
        time.sleep(2)
    raise AssertionError("it did not happen in time")


def runs(api: Airflow, dag: str) -> list[dict[str, Any]]:
    return list(api.call("GET", f"dags/{dag}/dagRuns", params={"order_by": "run_after"})["dag_runs"])


def at_rest(api: Airflow) -> bool:
    return not any(run["state"] in ("queued", "running") for dag in DAGS for run in runs(api, dag))


def failed(api: Airflow) -> list[tuple[str, str]]:
    """DAGs and tasks that failed."""
    return [
        (run["dag_id"], task["task_id"])
        for dag in DAGS
        for run in runs(api, dag)
        if run["state"] == "failed"
        for task in api.tasks(run)
        if task["state"] == "failed"
    ]


def mart(stack: Stack) -> tuple[Any, ...]:
    """Rows and checksum of the training mart, as the analyst reads it."""
    with closing(warehouse.connect(stack.settings("analyst"))) as db, db, db.cursor() as sql:
        sql.execute(
            "select count(*), md5(string_agg(pair_id || split, ',' order by pair_id)) "
            "from marts.mart_translation_training_pairs"
        )
        return warehouse.first(sql)


def test_the_chain_runs_on_assets_and_a_failed_audit_stops_it(stack: Stack, airflow: tuple[Airflow, Path]) -> None:
    api, corpus = airflow
    for dag in DAGS:
        api.call("PATCH", f"dags/{dag}", json={"is_paused": False})
    since = datetime.now(UTC)
    until(lambda: runs(api, "ingest_parallel_files"))  # an unpaused cron DAG runs once by itself
    until(lambda: failed(api) or [run for run in runs(api, "transform_platform") if run["state"] == "success"])
    assert failed(api) == []
    until(lambda: at_rest(api))

    # Every run after the first was triggered by an asset, and all went well.
    for dag in DAGS:
        found = runs(api, dag)
        assert found, dag
        assert {run["state"] for run in found} == {"success"}, dag
        if dag != "ingest_parallel_files":
            assert {run["run_type"] for run in found} == {"asset_triggered"}, dag

    # Tasks ran under the executor, in processes that are not this one, on the queue and in the pool named.
    trained = [task for task in api.tasks(runs(api, "train_translation")[0]) if task["task_id"] == "model.train"]
    assert [(task["queue"], task["pool"], task["state"]) for task in trained] == [("gpu", "gpu", "success")]
    assert "executor = LocalExecutor" in (stack.home / "airflow" / "airflow.cfg").read_text()
    pids = {task["pid"] for dag in DAGS for task in api.tasks(runs(api, dag)[0]) if task["pid"]}
    assert pids
    assert os.getpid() not in pids

    # What came out: a mart, a frozen version, a registered model with scores beside its baseline.
    rows, _ = before = mart(stack)
    assert rows > 500
    with closing(warehouse.connect(stack.settings("admin"))) as db, db, db.cursor() as sql:
        sql.execute("select name, rows from ml.dataset")
        assert ("translation-en-de", rows) in [(name, n) for name, n in sql.fetchall()]
        sql.execute("select count(*) from ml.score where model = 'translation-en-de' and baseline is not null")
        assert warehouse.first(sql)[0] >= 1

    # A spoiled source: most of the file is gone. The load is rejected, the audit is red, nothing downstream runs.
    counted = {dag: len(runs(api, dag)) for dag in DAGS}
    write(corpus, share=0.2)
    api.call("POST", "dags/ingest_parallel_files/dagRuns", json={"logical_date": None})
    until(lambda: len(runs(api, "ingest_parallel_files")) > counted["ingest_parallel_files"])
    until(lambda: at_rest(api))
    spoiled = runs(api, "ingest_parallel_files")[-1]
    states = {task["task_id"]: task["state"] for task in api.tasks(spoiled)}
    assert spoiled["state"] == "failed"
    assert states == {"ingest": "success", "audit": "failed", "announce": "upstream_failed"}
    assert {dag: len(runs(api, dag)) for dag in DAGS[1:]} == {dag: counted[dag] for dag in DAGS[1:]}
    assert mart(stack) == before

    # The cause is mended, the task cleared with what follows, and the chain finishes.
    write(corpus)
    with (corpus / "train.en").open("a") as english, (corpus / "train.de").open("a") as german:
        english.write("a new bird sings\n")
        german.write("ein neuer Vogel singt\n")
    api.call(
        "POST",
        "dags/ingest_parallel_files/clearTaskInstances",
        json={
            "dry_run": False,
            "dag_run_id": spoiled["dag_run_id"],
            "task_ids": ["ingest"],
            "include_downstream": True,
            "only_failed": False,
            "reset_dag_runs": True,
        },
    )
    until(lambda: failed(api) or len(runs(api, "predict_translation")) > counted["predict_translation"])
    until(lambda: at_rest(api))
    assert runs(api, "ingest_parallel_files")[-1]["state"] == "success"
    assert mart(stack)[0] == rows + 1
    assert all(run["state"] == "success" for run in api.runs(since) if run["dag_id"] in DAGS)
