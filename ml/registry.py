"""The registry: runs and model versions in MLflow, promotion, and models fetched into a local folder.

MLflow holds files, parameters and aliases; the warehouse holds scores and promotions, where SQL finds them. The version
of the data is our own id: MLflow's digest is of a sample.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml.datasets import freeze
from ml.datasets.freeze import Say, quiet
from ml.datasets.read import Version
from ml.tasks import FAMILIES
from ml.training.evaluation import Evaluation, paired
from ml.training.files import read_json, write_json
from storage import warehouse
from storage.errors import Problem
from storage.objects import Objects
from storage.roles import QUIET, past_proxies
from storage.settings import Settings, home

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION = "champion"
ARTIFACTS = "model"  # where in a run's artifacts the run folder lies
REMEMBERED = "mlflow.json"  # what a run folder knows of its import
CONTENT = "lyrebird.content"  # tag of runs and versions: the hash of the files that make the model
DATASET = "lyrebird.dataset"
PARENT = "mlflow.parentRunId"  # MLflow's own name for it
_STATE = ("checkpoint.pt", REMEMBERED)  # of the trainer and of the import: no part of a model
_MAKES_THE_MODEL = ("model.json", "weights.safetensors", "scores.json")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")  # it is a folder's name too


@dataclass(frozen=True)
class ModelVersion:
    """A version of a registered model, the MLflow run it comes from, and whether this call made it."""

    name: str
    version: int
    run_id: str
    dataset: str
    new: bool


@dataclass(frozen=True)
class Promotion:
    """What became of a challenger. ``champion`` is the version that has the alias now."""

    name: str
    version: int
    promoted: bool
    reason: str
    champion: int | None
    champion_before: int | None
    difference: float | None = None
    low: float | None = None
    high: float | None = None


# ---------------------------------------------------------------- import


def import_run(
    run_folder: Path, settings: Settings, name: str = "", parent: str = "", say: Say = quiet
) -> ModelVersion:
    """File a finished run in MLflow as a new version of its model, its scores in ``ml.score``, its report in the docs.

    The model is named for the task, which is the name of the data it was trained on unless ``name`` says otherwise.
    With the id of a ``parent`` run, such as a sweep's, it is shown below that one.
    Importing a folder twice, a copy of it, or one whose import was killed half-way makes one run and one version.
    Raises Problem for a folder that holds no finished run.
    """
    run_folder = Path(run_folder)
    about, scores = _finished(run_folder)
    name, content = name or about["dataset"]["name"], _content(run_folder)
    with _registry(settings) as client:
        done = _remembered(client, run_folder, content)
        if done is not None and done.name == name:
            if parent:
                client.set_tag(done.run_id, PARENT, parent)
            return done
        with _one_at_a_time(settings, f"import {content}"):
            say(f"filing {run_folder.name} as a version of {name}")
            run_id = _run(client, run_folder, name, about, scores, content)
            version, new = _version(client, name, run_id, about, content)
            if parent:
                client.set_tag(run_id, PARENT, parent)
        _keep_scores(settings, name, version, scores["dataset"], scores["split"], scores["metrics"])
        _publish_report(settings, run_folder, name, version)
    kept = ModelVersion(name, version, run_id, scores["dataset"], new)
    write_json(
        run_folder / REMEMBERED,
        {"run_id": run_id, "model": name, "version": version, "dataset": kept.dataset, "content": content},
    )
    return kept


@dataclass(frozen=True)
class Child:
    """A run of a sweep: the version that it became, what was set in it, and its deciding score on `valid`."""

    version: int
    settings: str
    metric: str
    value: float


def begin_sweep(name: str, title: str, grid: dict[str, str], settings: Settings) -> str:
    """The id of the MLflow run that the runs of a sweep are shown below. The same grid twice is the same sweep."""
    from mlflow.entities import Param, RunTag

    content = hashlib.sha256(json.dumps([name, title, grid]).encode()).hexdigest()[:32]
    with _registry(settings) as client, _one_at_a_time(settings, f"sweep {content}"):
        experiment = _experiment(client, name)
        found = client.search_runs([experiment], f"tags.`{CONTENT}` = '{content}'")
        if found:
            return str(found[0].info.run_id)
        run_id = str(client.create_run(experiment, run_name=title).info.run_id)
        parameters = [Param(key, value[:6000]) for key, value in grid.items()]
        client.log_batch(run_id, params=parameters, tags=[RunTag(CONTENT, content), RunTag("lyrebird.sweep", "grid")])
    return run_id


def end_sweep(name: str, parent: str, settings: Settings) -> list[Child]:
    """Close a sweep: its children, the best first, whose score becomes the sweep's. Raises Problem without children."""
    with _registry(settings) as client:
        experiment = _experiment(client, name)
        runs = client.search_runs([experiment], f"tags.`{PARENT}` = '{parent}'", max_results=1_000)
        versions = {one.run_id: int(one.version) for one in client.search_model_versions(f"name = '{name}'")}
        children = [
            _child(settings, name, versions[run.info.run_id], run) for run in runs if run.info.run_id in versions
        ]
        if not children:
            raise Problem(f"the sweep {parent} of {name} has no finished run", "Look at its trainings")
        more = {direction for _, direction in children} == {"more"}
        ranked = [child for child, _ in sorted(children, key=lambda one: one[0].value, reverse=more)]
        client.log_metric(parent, _plain(f"valid_{ranked[0].metric}"), ranked[0].value)
        client.set_tag(parent, "lyrebird.best", f"{name}@{ranked[0].version} {ranked[0].settings}")
        client.set_terminated(parent, "FINISHED")
    return ranked


def _child(settings: Settings, name: str, version: int, run: Any) -> tuple[Child, str]:
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute(
            "select metric, value, direction from ml.score where (model, model_version, split) = (%s, %s, 'valid')",
            (name, version),
        )
        scores = {metric: (value, direction) for metric, value, direction in sql.fetchall()}
    metric = run.data.tags["lyrebird.metric"]
    value, direction = scores[metric]
    return Child(version, run.info.run_name, metric, float(value)), direction


def _finished(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """model.json and scores.json of a finished run."""
    missing = [file for file in (*_MAKES_THE_MODEL, "config.json") if not (folder / file).is_file()]
    if missing:
        raise Problem(
            f"{folder} holds no finished run: {', '.join(missing)} is missing",
            "Train to the end, then import the folder",
        )
    try:
        about, scores = read_json(folder / "model.json"), read_json(folder / "scores.json")
        known = about["family"] in FAMILIES and about["dataset"]["name"] and scores["metrics"][0]["name"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise Problem(f"model.json or scores.json of {folder} is damaged ({error!r})", "Train it again") from error
    if not known:
        raise Problem(f"{folder} holds a model of the family {about['family']!r}", f"Ours are {', '.join(FAMILIES)}")
    return about, scores


def _content(folder: Path) -> str:
    """The hash of the files that make a model what it is."""
    digest = hashlib.sha256()
    for file in _MAKES_THE_MODEL:
        with (folder / file).open("rb") as body:
            digest.update(hashlib.file_digest(body, "sha256").digest())
    return digest.hexdigest()[:32]


def _remembered(client: MlflowClient, folder: Path, content: str) -> ModelVersion | None:
    """The version that this very model was imported as, if the registry still has it."""
    if not (folder / REMEMBERED).is_file():
        return None
    known = read_json(folder / REMEMBERED)
    if known.get("content") != content:
        return None
    found = client.search_model_versions(f"run_id = '{known['run_id']}'")
    if not any(one.name == known["model"] and int(one.version) == known["version"] for one in found):
        return None
    return ModelVersion(known["model"], known["version"], known["run_id"], known["dataset"], False)


def _run(
    client: MlflowClient, folder: Path, name: str, about: dict[str, Any], scores: dict[str, Any], content: str
) -> str:
    """The id of the MLflow run with the folder's parameters, curves, scores and files; made unless it is there."""
    from mlflow.entities import Dataset, DatasetInput, Metric, Param, RunTag

    experiment = _experiment(client, name)
    found = client.search_runs([experiment], f"tags.`{CONTENT}` = '{content}'")
    if any(run.info.status == "FINISHED" for run in found):
        return str(next(run.info.run_id for run in found if run.info.status == "FINISHED"))
    dataset = about["dataset"]
    tags = {
        CONTENT: content,
        DATASET: dataset["version"],
        "lyrebird.family": about["family"],
        "lyrebird.code": about.get("code", ""),
        "lyrebird.simulated": str(bool(dataset.get("simulated"))).lower(),
        "lyrebird.metric": scores["metrics"][0]["name"],  # the one that decides
        "mlflow.note.content": _text(folder / "card.md"),
    }
    run_id = found[0].info.run_id if found else client.create_run(experiment, run_name=folder.name).info.run_id
    began = int((folder / "config.json").stat().st_mtime * 1000)  # ms; the curves' clock starts here
    metrics = [Metric(key, value, began + int(seconds * 1000), step) for key, value, seconds, step in _curves(folder)]
    last = max((metric.step for metric in metrics), default=0)
    for one in scores["metrics"]:
        parts = {"": one["value"], "_low": one["low"], "_high": one["high"], "_baseline": one["baseline"]["value"]}
        metrics += [
            Metric(_plain(f"{scores['split']}_{one['name']}{part}"), value, began, last)
            for part, value in parts.items()
        ]
    parameters = [Param(key, str(value)[:6000]) for key, value in _flat(read_json(folder / "config.json")).items()]
    client.log_batch(run_id, params=parameters, tags=[RunTag(key, value) for key, value in tags.items()])
    for start in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[start : start + 1000])
    data = Dataset(dataset["name"], dataset["version"], "lyrebird", json.dumps({"version": dataset["version"]}))
    client.log_inputs(run_id, [DatasetInput(data)])
    for path in _files(folder):
        inside = path.parent.relative_to(folder).as_posix()
        client.log_artifact(run_id, str(path), ARTIFACTS if inside == "." else f"{ARTIFACTS}/{inside}")
    client.set_terminated(run_id, "FINISHED")
    return str(run_id)


def _files(folder: Path) -> list[Path]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in found if path.name not in _STATE and not path.name.startswith(".")]


def _experiment(client: MlflowClient, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name))
    except MlflowException:  # another import made it meanwhile
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def _curves(folder: Path) -> Iterator[tuple[str, float, float, int]]:
    """(metric, value, seconds since the start, step) of the trainer's events."""
    if not (folder / "events.jsonl").is_file():
        return
    for line in (folder / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        for key, value in event.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if number and key not in ("step", "seconds"):
                yield (
                    _plain(f"{event['event']}_{key}"),
                    float(value),
                    float(event.get("seconds", 0)),
                    int(event["step"]),
                )


def _plain(name: str) -> str:
    """A name with the characters that MLflow takes."""
    return "".join(char if char.isalnum() or char in "_-./" else "_" for char in name)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")[:5000] if path.is_file() else ""


def _version(client: MlflowClient, name: str, run_id: str, about: dict[str, Any], content: str) -> tuple[int, bool]:
    """The number of the model version of this run, and whether it was made just now."""
    from mlflow.exceptions import MlflowException

    found = [one for one in client.search_model_versions(f"run_id = '{run_id}'") if one.name == name]
    if found:
        return int(found[0].version), False
    try:
        client.create_registered_model(name, {"lyrebird.family": about["family"]})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{client.get_run(run_id).info.artifact_uri}/{ARTIFACTS}"
    tags = {CONTENT: content, DATASET: about["dataset"]["version"], "lyrebird.family": about["family"]}
    return int(client.create_model_version(name, source, run_id, tags, await_creation_for=0).version), True


def _keep_scores(
    settings: Settings, name: str, version: int, dataset: str, split: str, metrics: list[dict[str, Any]]
) -> None:
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        for one in metrics:
            baseline = one.get("baseline") or {}
            sql.execute(
                "insert into ml.score (model, model_version, dataset_version, split, metric, value, low, high, "
                "direction, baseline_name, baseline, baseline_low, baseline_high, rows) "
                "values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) on conflict do nothing",
                (
                    *(name, version, dataset, split, one["name"], one["value"], one["low"], one["high"]),
                    *(one["direction"], *(baseline.get(part) for part in ("name", "value", "low", "high"))),
                    one.get("rows"),
                ),
            )


def _publish_report(settings: Settings, folder: Path, name: str, version: int) -> None:
    """Put the report and the card where the pages are served from."""
    objects = Objects(settings)
    for file, kind in (("report.html", "text/html; charset=utf-8"), ("card.md", "text/markdown; charset=utf-8")):
        if (folder / file).is_file():
            objects.put("docs", f"reports/{name}/{version}/{file}", folder / file, kind)


# ---------------------------------------------------------------- promotion


def promote(name: str, version: int, settings: Settings, say: Say = quiet) -> Promotion:
    """Let a version challenge the champion on the `valid` rows of the challenger's dataset version.

    It is promoted when the paired bootstrap interval (95 %) of the difference lies on the good side of 0; without a
    champion, when its interval and its baseline's do not overlap. A new champion is scored on `test`, once; that
    decides nothing. Every decision is a row of ``ml.promotion``. Raises Problem for an unknown version or missing data.
    """
    with _one_at_a_time(settings, f"promote {name}"):
        folder = fetch(f"{name}@{version}", settings)
        with _registry(settings) as client:
            before = _alias(client, name, CHAMPION)
        if before == version:
            _score_test(settings, name, version, folder, say)
            return Promotion(name, version, False, "it is the champion already", before, before)
        say(f"{name}: version {version} against " + (f"the champion {before}" if before else "its baseline"))
        if before is None:
            decision = _against_baseline(name, version, folder)
        else:
            decision = _against_champion(settings, name, version, folder, before)
        with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
            sql.execute(
                "insert into ml.promotion "
                "(model, model_version, champion_before, difference, low, high, promoted, reason) "
                "values (%s, %s, %s, %s, %s, %s, %s, %s)",
                (
                    *(name, version, before, decision.difference, decision.low, decision.high),
                    *(decision.promoted, decision.reason),
                ),
            )
            if decision.promoted:  # before the row is committed: a promotion on record has happened
                with _registry(settings) as client:
                    client.set_registered_model_alias(name, CHAMPION, str(version))
        if decision.promoted:
            _score_test(settings, name, version, folder, say)
        return decision


def rollback(name: str, settings: Settings) -> Promotion:
    """Make the version that was champion before the present one champion again. That is a row of ``ml.promotion`` too.

    Raises Problem where there was none before.
    """
    with (
        _one_at_a_time(settings, f"promote {name}"),
        closing(warehouse.connect(settings)) as db,
        db,
        db.cursor() as sql,
    ):
        with _registry(settings) as client:
            now = _alias(client, name, CHAMPION)
            numbers = _numbers(client, name)
        sql.execute(
            "select champion_before from ml.promotion where model = %s and model_version = %s and promoted "
            "order by id desc limit 1",
            (name, now),
        )
        row = sql.fetchone()
        before = row[0] if row else None
        if now is None or before not in numbers:
            raise Problem(
                f"{name} has no champion before {now}" if now else f"the model {name} has no champion yet",
                f"Its versions: {', '.join(map(str, numbers))}; `lyrebird model promote` compares one with it",
            )
        reason = f"{now} was taken back by hand"
        sql.execute(
            "insert into ml.promotion (model, model_version, champion_before, promoted, reason) "
            "values (%s, %s, %s, true, %s)",
            (name, before, now, reason),
        )
        with _registry(settings) as client:  # before the row is committed, as in a promotion
            client.set_registered_model_alias(name, CHAMPION, str(before))
    return Promotion(name, before, True, reason, before, now)


def _against_baseline(name: str, version: int, folder: Path) -> Promotion:
    """The first model of a name has to beat its baseline, by scores.json."""
    first = read_json(folder / "scores.json")["metrics"][0]
    baseline = first["baseline"]
    more = first["direction"] == "more"
    beaten = first["low"] > baseline["high"] if more else first["high"] < baseline["low"]
    told = (
        f"{first['name']} {first['value']:.4g} [{first['low']:.4g}, {first['high']:.4g}] against {baseline['name']} "
        f"{baseline['value']:.4g} [{baseline['low']:.4g}, {baseline['high']:.4g}]"
    )
    reason = f"the first to beat its baseline: {told}" if beaten else f"it does not beat its baseline: {told}"
    return Promotion(name, version, beaten, reason, version if beaten else None, None)


def _against_champion(settings: Settings, name: str, version: int, folder: Path, before: int) -> Promotion:
    """The paired comparison of challenger and champion."""
    data = _data_of(settings, folder)
    challenger = _evaluate(folder, data, "valid")
    champion = _evaluate(fetch(f"{name}@{before}", settings), data, "valid")
    difference, low, high = paired(challenger, champion)
    better = low > 0 if challenger.direction == "more" else high < 0
    verdict = "better than" if better else "not better beyond chance than"
    reason = (
        f"{verdict} the champion {before} on the valid rows of {data.id}: "
        f"difference {difference:+.4g} [{low:+.4g}, {high:+.4g}], {challenger.direction} is better"
    )
    return Promotion(name, version, better, reason, version if better else before, before, difference, low, high)


def _score_test(settings: Settings, name: str, version: int, folder: Path, say: Say) -> None:
    """Score a champion on `test` unless that has been done."""
    scores = read_json(folder / "scores.json")
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute(
            "select 1 from ml.score where (model, model_version, dataset_version, split) = (%s, %s, %s, 'test')",
            (name, version, scores["dataset"]),
        )
        if sql.fetchone():
            return
    data = _data_of(settings, folder)
    if not data.manifest["splits"].get("test", {}).get("rows"):
        say(f"version {data.id} has no test rows: {name}@{version} is not scored on any")
        return
    say(f"{name}: scoring the champion {version} on test")
    family = importlib.import_module(f"ml.{read_json(folder / 'model.json')['family']}.evaluate")
    _keep_scores(settings, name, version, data.id, "test", family.metrics(folder, data, "test"))


def _data_of(settings: Settings, folder: Path) -> Version:
    """The frozen version that a model was trained on."""
    return freeze.reader(freeze.show(dataset_of(folder), settings), settings)


def _evaluate(folder: Path, data: Version, split: str) -> Evaluation:
    """The deciding score of a model on a split, by its family."""
    family = read_json(folder / "model.json")["family"]
    found: Evaluation = importlib.import_module(f"ml.{family}.evaluate").evaluate(folder, data, split)
    return found


# ---------------------------------------------------------------- fetch


def champion(name: str, settings: Settings) -> int | None:
    """The version number of a model's champion; None when there is no such model or none of its versions is."""
    with _registry(settings) as client:
        return _alias(client, name, CHAMPION)


def describe(name: str, version: int, settings: Settings) -> dict[str, Any]:
    """What the registry knows of a version: {"name", "version", "run_id", "dataset", "made_at", "aliases"}."""
    with _registry(settings) as client:
        if version not in (numbers := _numbers(client, name)):
            raise Problem(f"the model {name} has no version {version}", f"Its versions: {numbers}")
        found = client.get_model_version(name, str(version))
    return {
        "name": name,
        "version": version,
        "run_id": found.run_id,
        "dataset": found.tags.get(DATASET),
        "made_at": datetime.fromtimestamp(found.creation_timestamp / 1000, UTC).isoformat(),
        "aliases": list(found.aliases),
    }


def datasets(settings: Settings) -> dict[str, str]:
    """The frozen versions that registered models were trained on, each with one of those models."""
    found: list[Any] = []
    page: Any = None
    with _registry(settings) as client:
        while page is None or page.token:
            page = client.search_model_versions(page_token=page.token if page else None)
            found += page
    return {one.tags[DATASET]: f"{one.name}@{one.version}" for one in found if DATASET in one.tags}


def dataset_of(folder: Path) -> str:
    """The id of the frozen version that the model in this folder was trained on."""
    return str(read_json(folder / "scores.json")["dataset"])


def resolve(name_at: str, settings: Settings) -> tuple[str, int]:
    """NAME, NAME@3 or NAME@alias as name and version number; a bare name means its champion. Raises Problem."""
    name, _, at = name_at.partition("@")
    at = at or CHAMPION
    if not _NAME.match(name):
        raise Problem(f"{name!r} is no name of a model", "`lyrebird model list` shows the models")
    if at.isdigit():
        return name, int(at)
    with _registry(settings) as client:
        version = _alias(client, name, at)
        if version is not None:
            return name, version
        numbers = _numbers(client, name)
    what = "has no champion yet" if at == CHAMPION else f"has no version called {at!r}"
    raise Problem(f"the model {name} {what}", f"Name one of its versions: {', '.join(f'{name}@{n}' for n in numbers)}")


def fetch(name_at: str, settings: Settings) -> Path:
    """The folder of a model's files, from the local cache or out of MLflow.

    A version that is in the cache needs no server. Raises Problem for an unknown name, version or alias, and when
    MLflow is needed and does not answer.
    """
    name, version = resolve(name_at, settings)
    folder = home() / "models" / name / str(version)
    if folder.is_dir():
        return folder
    with _registry(settings) as client:
        numbers = _numbers(client, name)
        if version not in numbers:
            known = ", ".join(map(str, numbers)) or "none"
            raise Problem(f"the model {name} has no version {version}", f"Its versions: {known}")
        found = client.get_model_version(name, str(version))
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{version}."))
        try:
            client.download_artifacts(str(found.run_id), ARTIFACTS, str(temporary))
            if _content(temporary / ARTIFACTS) != found.tags.get(CONTENT):
                raise Problem(f"the files of {name}@{version} in MLflow are damaged", "Import its run folder again")
            _put(temporary / ARTIFACTS, folder)
        except FileNotFoundError as error:
            raise Problem(f"the files of {name}@{version} are not in MLflow", "Import its run folder again") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _put(made: Path, folder: Path) -> None:
    """Move a folder to its place in one step; another process may have been faster, with the same files."""
    try:
        made.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _numbers(client: MlflowClient, name: str) -> list[int]:
    """The versions of a model. Raises Problem when there is no such model."""
    found = sorted(int(one.version) for one in client.search_model_versions(f"name = '{name}'"))
    if not found:
        names = sorted(one.name for one in client.search_registered_models())
        raise Problem(f"there is no model {name!r}", f"The models: {', '.join(names) or 'none yet'}")
    return found


def _alias(client: MlflowClient, name: str, alias: str) -> int | None:
    """The version an alias points to; None when it points nowhere or the model is unknown.

    By search: to a question about a model that does not exist, MLflow answers that it is forbidden.
    """
    found = client.search_registered_models(f"name = '{name}'")
    version = found[0].aliases.get(alias) if found else None
    return None if version is None else int(version)


@contextmanager
def _registry(settings: Settings) -> Iterator[MlflowClient]:
    """MLflow's client with these settings' credentials; what it cannot do is told in a sentence."""
    settings.need("mlflow_url", "mlflow_user", "mlflow_password")
    # MLflow takes credentials and options from the environment alone; they leave it with the client.
    wanted = {
        **QUIET,
        **past_proxies(),
        "MLFLOW_TRACKING_USERNAME": settings.mlflow_user,
        "MLFLOW_TRACKING_PASSWORD": settings.mlflow_password.get_secret_value(),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # its default keeps a person waiting for minutes
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is for answers
    }
    before = {name: os.environ[name] for name in wanted if name in os.environ}
    os.environ.update(wanted)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        yield MlflowClient(tracking_uri=settings.mlflow_url, registry_uri=settings.mlflow_url)
    except (MlflowException, OSError) as error:
        said = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise Problem(
            f"MLflow at {settings.mlflow_url} did not do it: {said}",
            "Is the stack up? `lyrebird status`. A version that was fetched before works without it: NAME@3",
        ) from error
    finally:
        for name in wanted:
            os.environ.pop(name, None)
        os.environ.update(before)


@contextmanager
def _one_at_a_time(settings: Settings, what: str) -> Iterator[None]:
    with closing(warehouse.connect(settings)) as db, warehouse.advisory_lock(db, what):
        yield
