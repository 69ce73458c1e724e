"""The chain through Airflow's API: asset-triggered, in other processes, and safe when an audit fails.

One small family (translation, from text files that the test writes) goes the whole way: ingest, transform, freeze,
train, promote, predict, while every socket of the installation is watched. Then a spoiled source is rejected, and
candidate marts are: nothing downstream runs, readers keep their mart; the cause is mended, the task cleared through the
API, and the chain finishes.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from support import Stack, until

from infra import summary
from infra.chain import Airflow
from ingestion import catalogue, pipeline
from storage import warehouse

ROOT = Path(__file__).resolve().parents[2]
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


def runs(api: Airflow, dag: str) -> list[dict[str, Any]]:
    return list(api.call("GET", f"dags/{dag}/dagRuns", params={"order_by": "run_after"})["dag_runs"])


def at_rest(api: Airflow) -> bool:
    return not any(run["state"] in ("queued", "running") for dag in DAGS for run in runs(api, dag))


@dataclass
class Sockets:
    """The addresses that the processes of an installation listen on and talk to, and who runs a training's command."""

    home: Path
    bound: set[str] = field(default_factory=set)
    peers: set[str] = field(default_factory=set)
    trainers: set[str] = field(default_factory=set)

    def look(self) -> None:
        supervisor = psutil.Process(int((self.home / "run" / "supervisord.pid").read_text()))
        for process in supervisor.children(recursive=True):
            with suppress(psutil.Error):
                for one in process.net_connections("inet"):
                    self.bound.add(one.laddr.ip)
                    self.peers |= {one.raddr.ip} if one.raddr else set()
                if process.cmdline()[2:4] == ["infra.cli", "train"]:
                    self.trainers |= {" ".join(parent.cmdline()) for parent in process.parents()}


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


def believe(stack: Stack, factor: float) -> None:
    """Let the gate think that it accepted so many times the rows."""
    with closing(warehouse.connect(stack.settings("admin"))) as db, db, db.cursor() as sql:
        sql.execute(
            "update ops.audit set statistics = "
            "jsonb_set(statistics, '{rows}', to_jsonb(((statistics ->> 'rows')::int * %s)::int)) "
            "where subject = 'mart.mart_translation_training_pairs' and success",
            (factor,),
        )


def test_the_chain_runs_on_assets(stack: Stack, airflow: tuple[Airflow, Path]) -> None:
    api, _ = airflow
    for dag in DAGS:
        api.call("PATCH", f"dags/{dag}", json={"is_paused": False})
    sockets = Sockets(stack.home)

    def over() -> Any:
        sockets.look()
        return failed(api) or [run for run in runs(api, "predict_translation") if run["state"] == "success"]

    until(over)
    assert failed(api) == []
    until(lambda: at_rest(api) and [run for run in runs(api, "transform_platform") if run["state"] == "success"])

    # Every run after the first was triggered by an asset, and all went well.
    for dag in DAGS:
        found = runs(api, dag)
        assert {run["state"] for run in found} == {"success"}, dag
        wanted = {"asset_triggered"} | ({"scheduled"} if dag == "transform_platform" else set())
        if dag != "ingest_parallel_files":
            assert "asset_triggered" in {run["run_type"] for run in found} <= wanted, dag

    # Tasks ran under the executor, on the queue and in the pool named.
    trained = [task for task in api.tasks(runs(api, "train_translation")[0]) if task["task_id"] == "model.train"]
    assert [(task["queue"], task["pool"], task["state"]) for task in trained] == [("gpu", "gpu", "success")]
    assert any("airflow scheduler" in parent for parent in sockets.trainers)

    # What came out: a mart, a frozen version, a registered model with scores beside its baseline, a summary.
    rows, _ = mart(stack)
    assert rows > 500
    with closing(warehouse.connect(stack.settings("admin"))) as db, db, db.cursor() as sql:
        sql.execute("select name, rows from ml.dataset")
        assert ("translation-en-de", rows) in [(name, n) for name, n in sql.fetchall()]
        sql.execute("select count(*) from ml.score where model = 'translation-en-de' and baseline is not null")
        assert warehouse.first(sql)[0] >= 1
    settings = stack.settings("admin")
    said: list[str] = []
    summary.tell(said.append, 60.0)
    told = "\n".join(said)
    assert "translation-en-de v1, valid (" in told
    assert f"Airflow    {settings.airflow_url}" in told
    assert re.search(r'lyrebird translate --from en --to de "a .+"', told)

    # Nothing listened or talked beyond loopback, and the pages ask for a password.
    assert sockets.bound == sockets.peers == {"127.0.0.1"}
    for url in (f"{settings.airflow_url}/api/v2/dags", f"{settings.mlflow_url}/api/2.0/mlflow/experiments/search"):
        for login in (None, ("lyrebird", "guess")):
            assert requests.get(url, auth=login, timeout=20).status_code in (401, 403), url


def test_marts_that_fail_their_audit_are_not_published(stack: Stack, airflow: tuple[Airflow, Path]) -> None:
    api, _ = airflow
    before, counted = mart(stack), len(runs(api, "transform_text"))
    trained = len(runs(api, "train_translation"))
    believe(stack, 10)
    api.call("POST", "dags/transform_text/dagRuns", json={"logical_date": None})
    until(lambda: len(runs(api, "transform_text")) > counted)
    until(lambda: at_rest(api))
    refused = runs(api, "transform_text")[-1]
    states = {task["task_id"]: task["state"] for task in api.tasks(refused)}
    assert states == {
        **dict.fromkeys(("core", "splits", "marts"), "success"),
        **{"audit": "failed", "publish": "upstream_failed", "announce": "upstream_failed"},
        **{"results": "success", "model": "success"},
    }
    assert mart(stack) == before
    assert len(runs(api, "train_translation")) == trained
    believe(stack, 0.1)
    body = {"dry_run": False, "dag_run_id": refused["dag_run_id"], "only_failed": True, "reset_dag_runs": True}
    api.call("POST", "dags/transform_text/clearTaskInstances", json=body)
    until(lambda: runs(api, "transform_text")[-1]["state"] == "success")
    until(lambda: at_rest(api))


def test_a_load_that_fails_its_audit_stops_the_chain(stack: Stack, airflow: tuple[Airflow, Path]) -> None:
    # A spoiled source: most of the file is gone. The load is rejected, the audit is red, nothing downstream runs.
    api, corpus = airflow
    since, before = datetime.now(UTC), mart(stack)
    counted = {dag: len(runs(api, dag)) for dag in DAGS}
    write(corpus, share=0.2)
    api.call("POST", "dags/ingest_parallel_files/dagRuns", json={"logical_date": None})
    until(lambda: len(runs(api, "ingest_parallel_files")) > counted["ingest_parallel_files"])
    until(lambda: at_rest(api))
    spoiled = runs(api, "ingest_parallel_files")[-1]
    states = {task["task_id"]: task["state"] for task in api.tasks(spoiled)}
    assert spoiled["state"] == "failed"
    assert states == {"ingest": "success", "audit": "failed", "announce": "upstream_failed"}
    downstream = ("transform_text", "train_translation", "predict_translation")
    assert {dag: len(runs(api, dag)) for dag in downstream} == {dag: counted[dag] for dag in downstream}
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
    until(lambda: len(runs(api, "predict_translation")) > counted["predict_translation"])
    until(lambda: at_rest(api))
    assert runs(api, "ingest_parallel_files")[-1]["state"] == "success"
    assert mart(stack)[0] == before[0] + 1
    assert all(run["state"] == "success" for run in api.runs(since) if run["dag_id"] in DAGS)


BY_HAND = {
    "dbt": (
        'eval "$(lyrebird env)"; cd dbt_project; dbt -q seed; dbt -q run; '
        "dbt -q test --select mart_translation_training_pairs; dbt -q docs generate; echo done",
        r"done$",
    ),
    "airflow": ('eval "$(lyrebird env)"; airflow dags list -o plain', r"(?m)^train_birds\s"),
    "airflow test": (
        'eval "$(lyrebird env)"; airflow dags pause --yes ingest_parallel_files; '
        "airflow dags test ingest_parallel_files; airflow dags unpause --yes ingest_parallel_files",
        r"DagRun Finished.*state=success|state=success",
    ),
    "psql": (
        'eval "$(lyrebird env --role analyst)"; psql -Atc "select count(*) > 500 from marts.fct_sentence_pairs"',
        r"^t$",
    ),
    "lyrebird sql": ('lyrebird sql "select current_user"', r"analyst"),
    "train": (
        "for family in birds music translation; do python -m ml.$family.train --help; done",
        r"(?s)--version.*--version.*--version",
    ),
}


@pytest.mark.parametrize("tool", BY_HAND)
def test_by_hand_as_people_who_know_these_tools_expect(stack: Stack, airflow: tuple[Airflow, Path], tool: str) -> None:
    words, expected = BY_HAND[tool]
    scripts = str(Path(sys.executable).parent)
    environment = {"PATH": f"{scripts}:/usr/local/bin:/usr/bin:/bin", "HOME": str(stack.home), "LANG": "C.UTF-8"}
    done = subprocess.run(
        ["/bin/sh", "-ec", words], cwd=ROOT, env=environment | {"LYREBIRD_HOME": str(stack.home)},
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert re.search(expected, done.stdout), done.stdout[-2000:] + done.stderr[-2000:]
