"""Batch prediction: what the champion of a task says of the held-out rows of the task's newest version.

Only rows without a prediction of this model version are worked on, a batch at a time; each batch is committed, so a run
that is killed goes on where it was. Every row names its model, version and data. The latest lie in the cache.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2.extras
import pyarrow.parquet as pq
from psycopg2.extensions import connection

from ml import registry, tasks
from ml.datasets import freeze
from ml.datasets.freeze import Say, quiet
from ml.datasets.read import Version
from storage import warehouse
from storage.cache import Cache
from storage.errors import Problem
from storage.settings import Settings

HELD_OUT = ("valid", "test")
BATCH = 64
CACHED_BATCH = 1_000

Row = dict[str, Any]
Answer = tuple[dict[str, Any], float | None]  # the output, and one number about it where there is one
Predictor = Callable[[list[Row]], list[Answer]]


@dataclass(frozen=True)
class Predicted:
    """What a run did. ``total`` counts all predictions of the model; ``model_version`` is None without a champion."""

    model: str
    model_version: int | None
    dataset: str | None
    new: int
    total: int


def predict(task: str, settings: Settings, say: Say = quiet) -> Predicted:
    """Predict the rows of `valid` and `test` that have no prediction of the task's champion yet."""
    asked = tasks.task(task)
    version = registry.champion(asked.name, settings)
    if version is None:
        say(f"{asked.name} has no champion yet: nothing is predicted")
        return Predicted(asked.name, None, None, 0, 0)
    folder = registry.fetch(f"{asked.name}@{version}", settings)
    manifest = freeze.latest(asked, settings) or freeze.show(registry.dataset_of(folder), settings)
    data, cache = freeze.reader(manifest, settings), Cache(settings)
    key, columns, load = FAMILIES[asked.family]
    predictor: Predictor | None = None
    new = 0
    with closing(warehouse.connect(settings)) as db:
        if manifest.get("withdrawn"):
            say(f"rows of {manifest['version']} were withdrawn: nothing is predicted for it until it is frozen anew")
        for keys, rows in [] if manifest.get("withdrawn") else _rows(data, key, columns):
            known = _known(db, asked.name, version, keys)
            missing = rows(set(keys) - known.keys()) if known.keys() < set(keys) else []
            if missing:
                predictor = predictor or load(folder)
                known |= _keep(db, asked.name, version, data.id, key, missing, predictor(missing))
                new += len(missing)
                say(f"{asked.name}@{version}: {new:,} new predictions")
            cache.put_many({_cached(asked.name, k): _entry(asked.name, k, value) for k, value in known.items()})
        with db, db.cursor() as sql:
            sql.execute("select count(*) from ml.prediction where model = %s", (asked.name,))
            total = int(warehouse.first(sql)[0])
    return Predicted(asked.name, version, data.id, new, total)


def get(model: str, key: str, settings: Settings) -> dict[str, Any]:
    """The latest prediction of a model for a key: {"model", "version", "dataset", "key", "output", "score",
    "predicted_at"}. From the cache; where it forgot, from the warehouse. Raises Problem where there is none.
    """
    name = model.partition("@")[0]
    cache = Cache(settings)
    found = cache.get(_cached(name, key))
    if found is not None:
        return dict(found)
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute(
            "select model_version, dataset_version, output, score, predicted_at from ml.prediction as p "
            "where model = %s and key = %s order by model_version is not distinct from ("
            "select model_version from ml.promotion where model = p.model and promoted order by id desc limit 1"
            ") desc, predicted_at desc limit 1",
            (name, key),
        )
        row = sql.fetchone()
    if row is None:
        raise Problem(
            f"{name} has no prediction for {key!r}", f"`lyrebird predict {name}` predicts the rows of valid and test"
        )
    entry = _entry(name, key, row)
    cache.put_many({_cached(name, key): entry})
    return entry


def _cached(model: str, key: str) -> str:
    return f"prediction:{model}:{key}"


def _entry(model: str, key: str, value: tuple[Any, ...]) -> dict[str, Any]:
    version, dataset, output, score, at = value
    names = {"model": model, "version": version, "dataset": dataset, "key": key}
    return names | {"output": output, "score": score, "predicted_at": at.isoformat()}


def _rows(data: Version, key: str, columns: list[str]) -> Iterator[tuple[list[str], Callable[[set[str]], list[Row]]]]:
    """Batches of held-out rows: their keys, and a function that reads those of them that are asked for."""
    for split in HELD_OUT:
        if split not in data.manifest["splits"]:
            continue
        for path in data.shards(split):
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(BATCH, columns=[key, *columns]):
                    keys = batch.column(0).to_pylist()

                    def read(wanted: set[str], batch: Any = batch, keys: list[str] = keys) -> list[Row]:
                        return list(batch.take([i for i, k in enumerate(keys) if k in wanted]).to_pylist())

                    yield keys, read


def _known(db: connection, model: str, version: int, keys: list[str]) -> dict[str, tuple[Any, ...]]:
    with db, db.cursor() as sql:
        sql.execute(
            "select key, model_version, dataset_version, output, score, predicted_at from ml.prediction "
            "where model = %s and model_version = %s and key = any(%s)",
            (model, version, keys),
        )
        return {key: tuple(rest) for key, *rest in sql.fetchall()}


def _keep(
    db: connection, model: str, version: int, dataset: str, key: str, rows: list[Row], answers: list[Answer]
) -> dict[str, tuple[Any, ...]]:
    """Write a batch; two runs at once leave one answer a row."""
    values = [
        (model, version, dataset, row[key], json.dumps(output, ensure_ascii=False), score)
        for row, (output, score) in zip(rows, answers, strict=True)
    ]
    with db, db.cursor() as sql:
        kept = psycopg2.extras.execute_values(
            sql,
            "insert into ml.prediction (model, model_version, dataset_version, key, output, score) values %s "
            "on conflict (model, model_version, key) do update set dataset_version = excluded.dataset_version, "
            "output = excluded.output, score = excluded.score, predicted_at = excluded.predicted_at "
            "returning key, model_version, dataset_version, output, score, predicted_at",
            values,
            fetch=True,
        )
    return {key: tuple(rest) for key, *rest in kept}


def _birds(folder: Path) -> Predictor:
    """The surest species and its probability, and every species above the model's threshold."""
    from ml.birds.identify import load

    model = load(folder)

    def answer(rows: list[Row]) -> list[Answer]:
        found: list[Answer] = []
        for scores in model.scores([np.frombuffer(row["pcm"], dtype="<i2") for row in rows]):
            species, score = model.name_of(scores)
            heard = sorted(zip(scores.tolist(), model.labels, strict=True), reverse=True)
            sure = [{"species": name, "score": round(s, 4)} for s, name in heard if s >= model.threshold]
            found.append(({"species": species, "heard": sure}, round(score, 4)))
        return found

    return answer


def _music(folder: Path) -> Predictor:
    """The negative log likelihood of a piece, per frame, in nats."""
    from ml.music.compose import load

    model = load(folder)

    def answer(rows: list[Row]) -> list[Answer]:
        scores = [(float(nats.mean()), len(nats)) for nats in model.nll([row["frames"] for row in rows])]
        return [({"nll_per_frame": round(nll, 6), "frames": count}, nll) for nll, count in scores]

    return answer


def _translation(folder: Path) -> Predictor:
    """The translation."""
    from ml.translation.translate import load

    model = load(folder)

    def answer(rows: list[Row]) -> list[Answer]:
        texts: dict[str, str] = {}
        for language in sorted({row["target_language"] for row in rows}):
            mine = [row for row in rows if row["target_language"] == language]
            translated = model.translate([row["source_text"] for row in mine], to=language)
            texts |= {row["pair_id"]: text for row, text in zip(mine, translated, strict=True)}
        return [({"source": row["source_text"], "translation": texts[row["pair_id"]]}, None) for row in rows]

    return answer


# family -> key column, the other columns a prediction needs, and how to load a predictor from a model's folder
FAMILIES: dict[str, tuple[str, list[str], Callable[[Path], Predictor]]] = {
    "birds": ("clip_id", ["pcm"], _birds),
    "music": ("piece_id", ["frames"], _music),
    "translation": ("pair_id", ["source_text", "target_language"], _translation),
}
