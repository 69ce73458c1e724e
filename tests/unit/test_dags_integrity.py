"""The DAG files as Airflow's DAG processor reads them: one process a file, with no store up and nothing configured.

Airflow is imported once; each file is then read in a fork of that process, which is what the DAG processor does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from infra.chain import OURS
from ingestion import catalogue

ROOT = Path(__file__).resolve().parents[2]
POOLS = {"default_pool", "gpu", "transform"}
HEAVY = (
    *("torch", "great_expectations", "dbt", "mlflow", "music21", "matplotlib", "sklearn", "scipy", "pandas"),
    *("sentencepiece", "safetensors", "symusic", "soundfile", "soxr", "sacrebleu", "scrapy", "numba"),
)
STORES = ("pymongo", "redis")

PROBE = r"""
import json, os, sys, time
touched = []

def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        touched.append(str(args))

sys.addaudithook(watch)
began = time.process_time()
import airflow.sdk
from airflow.dag_processing.dagbag import DagBag
imported = time.process_time() - began
folder, pools = sys.argv[1], set(json.loads(sys.argv[2]))
sys.path.append(folder)  # as Airflow does

def names(assets):
    return sorted(asset.name for asset in assets)

def listed(value):
    return value if isinstance(value, (list, tuple)) else [value] if value else []

def leaves(condition):
    return [condition] if hasattr(condition, "uri") else [leaf for one in condition.objects for leaf in leaves(one)]

def describe(dag):
    condition = getattr(dag.timetable, "asset_condition", None)
    return {
        "doc_md": dag.doc_md, "description": dag.description, "tags": sorted(dag.tags), "catchup": dag.catchup,
        "max_active_runs": dag.max_active_runs, "cron": getattr(dag.timetable, "expression", None),
        "waits_for": names(leaves(condition)) if condition else [],
        "any_of": type(condition).__name__ in ("Asset", "AssetAny"),
        "tasks": {
            task.task_id: {
                "retries": task.retries, "timeout": task.execution_timeout and task.execution_timeout.total_seconds(),
                "callbacks": [one.__name__ for one in listed(task.on_failure_callback)], "queue": task.queue,
                "pool": task.pool, "announces": names(task.outlets), "before": sorted(task.upstream_task_ids),
                "owner": task.owner,
            }
            for task in dag.tasks
        },
    }

found = {}
for file in sorted(os.listdir(folder)):
    if not file.endswith(".py"):
        continue
    reader, writer = os.pipe()
    if os.fork() == 0:
        before, began, wall = set(sys.modules), time.process_time(), time.perf_counter()
        bag = DagBag(os.path.join(folder, file), known_pools=pools)
        facts = {
            "seconds": time.process_time() - began,
            "errors": bag.import_errors, "warnings": [warning.message for warning in bag.dag_warnings],
            "modules": sorted({name.split(".")[0] for name in set(sys.modules) - before}),
            "touched": touched, "dags": {name: describe(dag) for name, dag in bag.dags.items()},
        }
        with os.fdopen(writer, "w") as out:
            json.dump(facts, out)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        found[file] = json.load(answer)
    os.wait()
loaded = sorted({name.split(".")[0] for name in sys.modules})
print("FOUND" + json.dumps({"imported": imported, "loaded": loaded, "files": found}))
"""


def read(dags: Path, home: Path) -> dict[str, Any]:
    """What Airflow makes of a folder of DAG files, in an environment that knows of no stack."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    child = subprocess.run(
        [sys.executable, "-c", PROBE, str(dags), json.dumps(sorted(POOLS))],
        env=kept | {"HOME": str(home), "AIRFLOW_HOME": str(home / "airflow"), "PYTHONPATH": str(ROOT)},
        cwd=home,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    line = next(line for line in child.stdout.splitlines() if line.startswith("FOUND"))
    answer: dict[str, Any] = json.loads(line.removeprefix("FOUND"))
    return answer


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return read(ROOT / "dags", tmp_path_factory.mktemp("airflow"))


@pytest.fixture(scope="module")
def dags(probe: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: dag for file in probe["files"].values() for name, dag in file["dags"].items()}


def tasks(dags: dict[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, dag in dags.items():
        for task, facts in dag["tasks"].items():
            yield f"{name}.{task}", facts


def test_every_file_reads_without_errors_or_unknown_pools(probe: dict[str, Any]) -> None:
    # Airflow validates each DAG as it reads it: cycles, timetables, duplicate names
    for file, facts in probe["files"].items():
        assert facts["errors"] == {}, file
        assert facts["warnings"] == [], file
    assert {file: bool(facts["dags"]) for file, facts in probe["files"].items()} == {
        "ingest.py": True, "predict.py": True, "train.py": True, "transform.py": True, "wiring.py": False
    }  # fmt: skip


def test_the_chain_takes_for_its_own_what_these_files_make(dags: dict[str, dict[str, Any]]) -> None:
    assert set(OURS) == dags.keys() - {"sweep"}  # which a person starts


def test_every_file_reads_in_well_under_a_second(probe: dict[str, Any]) -> None:
    # processor time, which other programs of the machine do not stretch; a slow machine imports Airflow slowly too
    limit = max(1.0, 0.5 * probe["imported"])
    assert {f: facts["seconds"] for f, facts in probe["files"].items() if facts["seconds"] > limit} == {}


def test_no_file_imports_what_only_tasks_need(probe: dict[str, Any]) -> None:
    for file, facts in probe["files"].items():
        loaded = {*probe["loaded"], *facts["modules"]}
        assert loaded.isdisjoint(HEAVY), (file, loaded.intersection(HEAVY))
        assert loaded.isdisjoint(STORES), (file, loaded.intersection(STORES))


def test_no_file_looks_for_a_server(probe: dict[str, Any]) -> None:
    assert {file: facts["touched"] for file, facts in probe["files"].items() if facts["touched"]} == {}


def test_there_is_a_dag_for_everything_that_runs(dags: dict[str, Any]) -> None:
    families, domains = ("birds", "music", "translation"), ("birds", "music", "text", "platform")
    expected = {f"ingest_{name}" for name in catalogue.names()} | {f"transform_{name}" for name in domains}
    expected |= {"sweep", *(f"{kind}_{name}" for kind in ("train", "predict") for name in families)}
    assert set(dags) == expected


def test_every_dag_says_what_it_is_and_what_to_do_when_it_is_red(dags: dict[str, Any]) -> None:
    for name, dag in dags.items():
        assert len(dag["doc_md"]) > 80, name
        assert len(dag["description"]) > 3, name
        assert dag["tags"], name
        assert name.split("_")[0] in dag["tags"], name
        assert not dag["catchup"], name
        assert dag["max_active_runs"] == 1, name
    for source in catalogue.sources():
        dag = dags[f"ingest_{source.name}"]
        assert source.licence in dag["doc_md"]
        assert ("simulated" in dag["tags"]) == source.simulated


def test_every_task_is_tried_again_ends_in_time_and_explains_its_failure(dags: dict[str, Any]) -> None:
    for name, task in tasks(dags):
        assert task["retries"] >= 1, name
        assert task["timeout"], name
        assert timedelta(seconds=task["timeout"]) <= timedelta(hours=12), name
        assert task["callbacks"] == ["explain_failure"], name
        assert task["owner"] == "lyrebird", name


def test_training_runs_on_the_gpu_queue_and_nothing_else_does(dags: dict[str, Any]) -> None:
    on_gpu = {name for name, task in tasks(dags) if "gpu" in (task["queue"], task["pool"])}
    assert on_gpu == {"sweep.train", *(f"train_{family}.model.train" for family in ("birds", "music", "translation"))}
    for name, task in tasks(dags):
        if name in on_gpu:
            assert (task["queue"], task["pool"]) == ("gpu", "gpu"), name


def test_transforms_of_all_domains_share_one_pool(dags: dict[str, Any]) -> None:
    for name, task in tasks(dags):
        dag, step = name.split(".", 1)
        builds = dag.startswith("transform_") and step not in ("announce", "results", "model")
        assert (task["pool"] == "transform") == builds, name


def test_nothing_comes_after_an_announcement(dags: dict[str, Any]) -> None:
    # a skip there says "nothing changed", and would skip what follows
    for name, dag in dags.items():
        announcing = {task for task, facts in dag["tasks"].items() if facts["announces"]}
        assert announcing == {"announce"}.intersection(dag["tasks"]), name
        for task, facts in dag["tasks"].items():
            assert announcing.isdisjoint(facts["before"]), f"{name}.{task}"


def test_every_asset_waited_for_is_announced_once(dags: dict[str, Any]) -> None:
    announced = [asset for _, task in tasks(dags) for asset in task["announces"]]
    assert len(announced) == len(set(announced))
    for name, dag in dags.items():
        assert bool(dag["cron"]) + bool(dag["waits_for"]) == (name != "sweep"), name  # which a person starts
        assert set(dag["waits_for"]) <= set(announced), name
        assert dag["any_of"] or not dag["waits_for"], name  # "all of" would wait for a source that has nothing new


def test_what_changes_in_any_source_reaches_the_predictions(dags: dict[str, Any]) -> None:
    def after(dag: str) -> set[str]:
        announced = {asset for task in dags[dag]["tasks"].values() for asset in task["announces"]}
        return {name for name, other in dags.items() if announced.intersection(other["waits_for"])}

    for source in catalogue.sources():
        reached, waiting = set(), [f"ingest_{source.name}"]
        while waiting:
            dag = waiting.pop()
            assert dag not in after(dag), dag
            new = after(dag) - reached
            reached |= new
            waiting += new
        domain = source.domain
        family = "translation" if domain == "text" else domain
        wanted = {f"transform_{domain}", f"train_{family}", f"predict_{family}", "transform_platform"}
        assert wanted <= reached, source.name
        assert f"ingest_{source.name}" not in reached, source.name
        others = {f"transform_{name}" for name in ("birds", "music", "text")} - {f"transform_{domain}"}
        assert reached.isdisjoint(others), source.name


def test_outside_sources_have_a_cron_of_their_own_and_derived_ones_none(dags: dict[str, Any]) -> None:
    from croniter import croniter

    crons = {}
    for source in catalogue.sources():
        dag = dags[f"ingest_{source.name}"]
        if source.after:
            assert dag["waits_for"] == sorted(f"raw_{name}" for name in source.after)
            continue
        assert croniter.is_valid(dag["cron"]), source.name
        times = croniter(dag["cron"], datetime(2026, 1, 1))
        first, second = times.get_next(datetime), times.get_next(datetime)
        assert second - first >= timedelta(hours=1), source.name
        crons[source.name] = dag["cron"]
    assert len(set(crons.values())) == len(crons), "two sources start in the same minute"


def test_the_probe_sees_what_it_looks_for(tmp_path: Path) -> None:
    """The test of the test: files with each fault are told apart."""
    folder = tmp_path / "dags"
    folder.mkdir()
    head = "from airflow.sdk import DAG, task\n"
    (folder / "broken.py").write_text(head + "import no_such_module\n")
    connect = "try:\n    socket.create_connection(('127.0.0.1', 1))\nexcept OSError:\n    pass\n"
    (folder / "heavy.py").write_text(head + "import pandas\nimport socket\n" + connect)
    (folder / "slow.py").write_text(head + "import time\nwhile time.process_time() < 1.5: pass\n")
    two_tasks = (
        "    @task(pool='nowhere')\n    def one(): pass\n    @task\n    def two(): pass\n    a, b = one(), two()\n"
    )
    (folder / "cycle.py").write_text(head + "with DAG('cycle') as dag:\n" + two_tasks + "    a >> b >> a\n")
    (folder / "pool.py").write_text(head + "with DAG('pool') as dag:\n" + two_tasks + "    a >> b\n")
    seen = read(folder, tmp_path)["files"]
    assert "no_such_module" in str(seen["broken.py"]["errors"])
    assert "pandas" in seen["heavy.py"]["modules"]
    assert any("127.0.0.1" in address for address in seen["heavy.py"]["touched"])
    assert seen["slow.py"]["seconds"] > 1
    assert "ycle" in str(seen["cycle.py"]["errors"])
    assert seen["pool.py"]["warnings"]
