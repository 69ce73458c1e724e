"""The registry on a real MLflow: imports, promotions by the rows they are judged on, and models fetched and kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import frozen_world as world
import pytest
from pydantic import SecretStr
from safetensors.torch import load_file, save_file
from support import Stack

from infra import training
from ml import predict, registry
from ml.birds.evaluate import metrics
from ml.birds.identify import load
from ml.birds.train import PRESETS, train
from ml.datasets import freeze
from ml.datasets.read import Version
from ml.training.evaluation import write_scores
from storage import roles, warehouse
from storage.cache import Cache
from storage.errors import Problem
from storage.objects import Objects
from storage.settings import Settings

MODEL = "birds-aviary"


@dataclass
class Runs:
    """A frozen version and two runs on it: one that tells the species by their tones, one turned round."""

    settings: Settings
    version: str
    bad: Path
    good: Path


def trained(uri: str, folder: Path, steps: int) -> Path:
    model, config = PRESETS["smoke"]
    model = replace(model, window_s=1.0, channels=8, mix=0.0, shift_mels=0)
    config = replace(config, steps=steps, batch=8, warmup=1, evaluate_every=steps, threads=1, learning_rate=0.01)
    train(uri, folder, model, config)
    return folder


def turned_round(run: Path, folder: Path, version: Version) -> Path:
    """A worse model: it hears the species where they are not. Its scores are its own."""
    shutil.copytree(run, folder)
    weights = load_file(folder / "weights.safetensors")
    turned = {name: -value if name.startswith("pool.classifier.") else value for name, value in weights.items()}
    assert any((turned[name] != value).any() for name, value in weights.items())
    save_file(turned, folder / "weights.safetensors")
    write_scores(folder, "birds", version.id, "valid", metrics(folder, version))
    return folder


@pytest.fixture(scope="module")
def runs(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    stack.need("mlflow")
    settings, folder = stack.settings("trainer"), tmp_path_factory.mktemp("runs")
    with world.marts(stack), pytest.MonkeyPatch.context() as patch:
        rows = world.clips(stack, 160)
        world.publish(stack, "mart_birds_training_clips", [row | {"recording_id": row["clip_id"]} for row in rows])
        frozen = freeze.freeze(MODEL, settings)
        for name, value in roles.environment_of("trainer").items():  # training finds the object store there
            if name.startswith("LYREBIRD_S3_"):
                patch.setenv(name, value)
        good = trained(frozen.uri, folder / "good", 60)
        yield Runs(settings, frozen.version, turned_round(good, folder / "bad", Version(frozen.uri)), good)


@pytest.fixture
def clean(stack: Stack, runs: Runs) -> Iterator[Runs]:
    """No model, score, promotion or prediction; nothing in the local folder; nothing remembered by the run folders."""

    def forget() -> None:
        with registry._registry(runs.settings) as client:
            for model in client.search_registered_models():
                client.delete_registered_model(model.name)
            for experiment in client.search_experiments():
                for run in client.search_runs([experiment.experiment_id]):
                    client.delete_run(run.info.run_id)
        with closing(warehouse.connect(runs.settings)) as db, db, db.cursor() as sql:
            for table in ("score", "promotion", "prediction"):
                sql.execute(f"delete from ml.{table}")
        shutil.rmtree(stack.home / "models", ignore_errors=True)
        for folder in (runs.bad, runs.good):
            (folder / registry.REMEMBERED).unlink(missing_ok=True)

    forget()
    yield runs
    forget()


def table(settings: Settings, query: str) -> list[tuple[Any, ...]]:
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute(query)
        return sql.fetchall()


def test_import_files_the_whole_run(stack: Stack, clean: Runs) -> None:
    made = registry.import_run(clean.good, clean.settings)
    assert (made.name, made.version, made.dataset, made.new) == (MODEL, 1, clean.version, True)
    with registry._registry(clean.settings) as client:
        run = client.get_run(made.run_id)
        assert run.info.status == "FINISHED"
        assert run.data.params["train.steps"] == "60"
        assert run.data.tags[registry.DATASET] == clean.version
        assert run.data.tags["lyrebird.simulated"] == "true"
        assert run.inputs.dataset_inputs[0].dataset.digest == clean.version  # our id, not a digest of a sample
        scores = json.loads((clean.good / "scores.json").read_text())["metrics"]
        assert run.data.metrics["valid_macro_average_precision"] == pytest.approx(scores[0]["value"])
        assert len(client.get_metric_history(made.run_id, "train_loss")) >= 2
        files = {item.path for item in client.list_artifacts(made.run_id, registry.ARTIFACTS)}
    assert {"model/report.html", "model/card.md", "model/weights.safetensors"} <= files
    assert not {"model/checkpoint.pt", "model/mlflow.json"} & files
    rows = table(clean.settings, "select model, model_version, dataset_version, split, metric, value from ml.score")
    assert sorted(rows) == sorted((MODEL, 1, clean.version, "valid", m["name"], m["value"]) for m in scores)
    report = Objects(stack.settings("trainer")).get("docs", f"reports/{MODEL}/1/report.html")
    assert report == (clean.good / "report.html").read_bytes()


def test_importing_twice_or_a_copy_makes_nothing_new(clean: Runs, tmp_path: Path) -> None:
    first = registry.import_run(clean.bad, clean.settings)
    again = registry.import_run(clean.bad, clean.settings)
    copy = shutil.copytree(clean.bad, tmp_path / "copy", ignore=shutil.ignore_patterns(registry.REMEMBERED))
    third = registry.import_run(copy, clean.settings)
    assert first.new
    assert [(one.version, one.run_id, one.new) for one in (again, third)] == [(1, first.run_id, False)] * 2
    with registry._registry(clean.settings) as client:
        assert len(client.search_model_versions(f"name = '{MODEL}'")) == 1
    assert len(table(clean.settings, "select * from ml.score")) == 2


def test_an_import_killed_half_way_is_finished_by_the_next(clean: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    for stage in ("_files", "_version", "_keep_scores", "_publish_report"):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(registry, stage, die)
            registry.import_run(clean.bad, clean.settings)
    made = registry.import_run(clean.bad, clean.settings)
    assert made.version == 1
    with registry._registry(clean.settings) as client:
        experiment = client.get_experiment_by_name(MODEL)
        assert experiment is not None
        assert [run.info.run_id for run in client.search_runs([experiment.experiment_id])] == [made.run_id]
        assert len(client.search_model_versions(f"name = '{MODEL}'")) == 1
    assert registry.fetch(f"{MODEL}@1", clean.settings).is_dir()


def test_the_first_to_beat_its_baseline_is_champion_and_test_is_scored_once(clean: Runs) -> None:
    settings = clean.settings
    bad, good = (registry.import_run(folder, settings) for folder in (clean.bad, clean.good))
    refused = registry.promote(MODEL, bad.version, settings)
    assert (refused.promoted, refused.champion) == (False, None)
    with pytest.raises(Problem, match="no champion"):
        registry.fetch(MODEL, settings)
    assert table(settings, "select * from ml.score where split = 'test'") == []
    promoted = registry.promote(MODEL, good.version, settings)
    assert (promoted.promoted, promoted.champion, promoted.champion_before) == (True, good.version, None)
    assert registry.resolve(MODEL, settings) == (MODEL, good.version)
    scored = table(settings, "select model_version, metric, value, baseline, at from ml.score where split = 'test'")
    first = next(row for row in scored if row[1] == "macro average precision")
    assert {row[0] for row in scored} == {good.version} and len({row[1] for row in scored}) == len(scored)
    assert first[2] > 0.5 and all(row[3] is not None for row in scored)
    assert not registry.promote(MODEL, good.version, settings).promoted  # is it already
    again = table(settings, "select model_version, metric, value, baseline, at from ml.score where split = 'test'")
    assert sorted(again) == sorted(scored)
    decisions = table(settings, "select model_version, promoted from ml.promotion order by id")
    assert decisions == [(bad.version, False), (good.version, True)]


def test_a_challenger_is_compared_on_the_same_rows(clean: Runs) -> None:
    settings = clean.settings
    good, bad = (registry.import_run(folder, settings) for folder in (clean.good, clean.bad))
    assert registry.promote(MODEL, good.version, settings).promoted
    worse = registry.promote(MODEL, bad.version, settings)
    assert (worse.promoted, worse.champion) == (False, good.version)
    assert worse.high is not None
    assert worse.high < 0
    with registry._registry(settings) as client:  # as an operator would
        client.set_registered_model_alias(MODEL, registry.CHAMPION, str(bad.version))
    better = registry.promote(MODEL, good.version, settings)
    assert (better.promoted, better.champion, better.champion_before) == (True, good.version, bad.version)
    assert better.low is not None
    assert better.low > 0
    assert better.difference == pytest.approx(-(worse.difference or 0))
    kept = table(settings, "select difference, low, high from ml.promotion order by id desc limit 1")
    assert kept == [(better.difference, better.low, better.high)]


def test_the_champion_before_is_one_command_away(clean: Runs) -> None:
    settings = clean.settings
    good, bad = (registry.import_run(folder, settings) for folder in (clean.good, clean.bad))
    with pytest.raises(Problem, match="has no champion yet"):
        registry.rollback(MODEL, settings)
    assert registry.promote(MODEL, good.version, settings).promoted
    with pytest.raises(
        Problem, match=f"no champion before {good.version}.*Its versions: {good.version}, {bad.version}"
    ):
        registry.rollback(MODEL, settings)
    with registry._registry(settings) as client:  # as an operator would
        client.set_registered_model_alias(MODEL, registry.CHAMPION, str(bad.version))
    assert registry.promote(MODEL, good.version, settings).champion_before == bad.version
    back = registry.rollback(MODEL, settings)
    assert (back.champion, back.champion_before) == (bad.version, good.version)
    assert registry.resolve(MODEL, settings) == (MODEL, bad.version)
    predict.predict(MODEL, settings)
    assert predict.get(MODEL, "clip-003", settings)["version"] == bad.version
    assert table(settings, "select reason from ml.promotion order by id desc limit 1") == [
        (f"{good.version} was taken back by hand",)
    ]
    assert registry.rollback(MODEL, settings).champion == good.version


def test_the_runs_of_a_sweep_lie_below_one_and_are_ranked(clean: Runs) -> None:
    settings = clean.settings
    grid = ["learning_rate=0.0001,0.01 steps=6", "batch=8 channels=8 threads=1 window_s=1.0 evaluate_every=6"]
    planned = training.sweep(MODEL, clean.version, "smoke", grid, settings)
    assert [one["settings"].split()[0] for one in planned] == ["learning_rate=0.0001", "learning_rate=0.01"]
    assert all("steps=6 batch=8 channels=8" in one["settings"] for one in planned)
    assert training.sweep(MODEL, clean.version, "smoke", grid, settings) == planned  # and no second parent
    (parent,) = {one["parent"] for one in planned}
    with pytest.raises(Problem, match="no finished run"):
        registry.end_sweep(MODEL, parent, settings)
    for one in planned:
        training.train(MODEL, one["version"], one["preset"], [one["settings"]], settings, print, parent=parent)
    ranked = registry.end_sweep(MODEL, parent, settings)
    assert {child.version for child in ranked} == {1, 2}
    assert ranked[0].value >= ranked[1].value
    with registry._registry(settings) as client:
        top = client.get_run(parent)
        children = client.search_runs([top.info.experiment_id], f"tags.`{registry.PARENT}` = '{parent}'")
    assert top.info.status == "FINISHED"
    assert top.data.params["learning_rate"] == "0.0001,0.01"
    assert top.data.metrics["valid_macro_average_precision"] == ranked[0].value
    assert len(children) == 2
    with pytest.raises(Problem, match="several values"):
        training.sweep(MODEL, clean.version, "smoke", ["steps=6"], settings)


def test_a_fetched_model_works_from_its_folder_and_without_a_server(stack: Stack, clean: Runs) -> None:
    settings = clean.settings
    registry.import_run(clean.good, settings)
    registry.promote(MODEL, 1, settings)
    shutil.rmtree(stack.home / "models")
    folder = registry.fetch(f"{MODEL}@champion", settings)
    assert folder == stack.home / "models" / MODEL / "1"
    sound = world.sound(0)
    assert (load(folder).scores([sound]) == load(clean.good).scores([sound])).all()
    away = settings.model_copy(update={"mlflow_url": "http://127.0.0.1:9"})
    assert registry.fetch(f"{MODEL}@1", away) == folder
    with pytest.raises(Problem, match="MLflow at"):
        registry.fetch(MODEL, away)
    with pytest.raises(Problem, match="MLflow at"):
        registry.fetch(f"{MODEL}@2", away)
    refused = settings.model_copy(update={"mlflow_password": SecretStr("wrong")})
    with pytest.raises(Problem, match="MLflow at") as told:
        registry.fetch(MODEL, refused)
    assert "wrong" not in str(told.value)


def test_unknown_names_versions_and_aliases_are_told(clean: Runs) -> None:
    settings = clean.settings
    registry.import_run(clean.bad, settings)
    for wrong, words in (
        ("opera-singing", "there is no model 'opera-singing'"),
        ("opera-singing@2", "there is no model 'opera-singing'"),
        (f"{MODEL}@7", "has no version 7"),
        (f"{MODEL}@best", "has no version called 'best'"),
        (f"{MODEL}@champion", "has no champion yet"),
        ("", "no name of a model"),
        ("../../etc@1", "no name of a model"),
    ):
        with pytest.raises(Problem, match=words):
            registry.fetch(wrong, settings)


def test_an_unfinished_or_foreign_run_is_refused(clean: Runs, tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"model\.json"):
        registry.import_run(tmp_path, clean.settings)
    copy = shutil.copytree(clean.bad, tmp_path / "copy")
    (copy / "scores.json").write_text('{"metrics": []}')
    with pytest.raises(Problem, match="damaged"):
        registry.import_run(copy, clean.settings)


def test_damaged_files_in_the_registry_are_not_kept(stack: Stack, clean: Runs) -> None:
    made = registry.import_run(clean.bad, clean.settings)
    objects = Objects(stack.settings("admin"))
    key = next(key for key in objects.list("mlflow") if made.run_id in key and key.endswith("weights.safetensors"))
    objects.put("mlflow", key, b"something else")
    with pytest.raises(Problem, match="damaged"):
        registry.fetch(f"{MODEL}@1", clean.settings)
    assert list((stack.home / "models" / MODEL).iterdir()) == []


def test_predictions_are_incremental_and_survive_the_cache(stack: Stack, clean: Runs) -> None:
    settings = clean.settings
    none = predict.predict(MODEL, settings)
    assert (none.model_version, none.new, none.total) == (None, 0, 0)
    registry.import_run(clean.good, settings)
    registry.promote(MODEL, 1, settings)
    held_out = freeze.show(clean.version, settings)["splits"]
    wanted = held_out["valid"]["rows"] + held_out["test"]["rows"]
    first = predict.predict(MODEL, settings)
    assert (first.new, first.total, first.model_version, first.dataset) == (wanted, wanted, 1, clean.version)
    before = table(settings, "select key, output, score, predicted_at from ml.prediction order by key")
    assert len(before) == wanted
    assert {key for key, *_ in before} == {f"clip-{n:03d}" for n in range(160) if n % 5 > 2}
    again = predict.predict(MODEL, settings)
    assert (again.new, again.total) == (0, wanted)
    assert table(settings, "select key, output, score, predicted_at from ml.prediction order by key") == before
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:  # a run that was killed half-way
        sql.execute("delete from ml.prediction where key < 'clip-050'")
    mended = predict.predict(MODEL, settings)
    assert mended.new == sum(key < "clip-050" for key, *_ in before)
    assert table(settings, "select key, output, score from ml.prediction order by key") == [row[:3] for row in before]

    key = "clip-003"  # sings both
    found = predict.get(MODEL, key, settings)
    assert (found["model"], found["version"], found["dataset"], found["key"]) == (MODEL, 1, clean.version, key)
    assert found["output"]["species"] in ("Parus major", "Turdus merula")
    cache = Cache(stack.settings("trainer"))
    assert cache.get(f"prediction:{MODEL}:{key}") == found
    Cache(stack.settings("admin")).client.flushdb()
    assert predict.get(MODEL, key, settings) == found
    assert cache.get(f"prediction:{MODEL}:{key}") == found
    with pytest.raises(Problem, match="no prediction"):
        predict.get(MODEL, "clip-000", settings)  # a training row


def test_after_another_promotion_the_champions_answers_count(stack: Stack, clean: Runs) -> None:
    settings = clean.settings
    good, bad = (registry.import_run(folder, settings) for folder in (clean.good, clean.bad))
    registry.promote(MODEL, good.version, settings)
    predict.predict(MODEL, settings)
    with registry._registry(settings) as client:
        client.set_registered_model_alias(MODEL, registry.CHAMPION, str(bad.version))
    second = predict.predict(MODEL, settings)
    assert second.new > 0
    assert predict.get(MODEL, "clip-003", settings)["version"] == bad.version
    registry.promote(MODEL, good.version, settings)
    third = predict.predict(MODEL, settings)
    assert third.new == 0
    assert predict.get(MODEL, "clip-003", settings)["version"] == good.version
    Cache(stack.settings("admin")).client.flushdb()
    assert predict.get(MODEL, "clip-003", settings)["version"] == good.version
