"""Versions that nothing needs go; what a model, a score, a prediction or a run names stays."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import frozen_world as world
import pytest
from support import Stack

from ml import registry
from ml.datasets import freeze, versions
from storage import warehouse
from storage.errors import Problem
from storage.objects import Objects
from storage.settings import Settings, home

NAME = "translation-en-ru"


@dataclass
class Kept:
    settings: Settings
    ids: list[str]  # oldest first

    def sql(self, statement: str, *values: object) -> None:
        with closing(warehouse.connect(self.settings)) as db, db, db.cursor() as sql:
            sql.execute(statement, values)

    def there(self) -> set[str]:
        """Versions of which anything is left."""
        rows = {one["version"] for one in freeze.versions(self.settings)}
        return rows | {key.split("/")[1] for key in Objects(self.settings).list("datasets")}


@pytest.fixture
def kept(stack: Stack) -> Iterator[Kept]:
    """Eight versions of a task, a month old."""
    stack.need("mlflow")
    settings = stack.settings("trainer")
    with world.marts(stack):
        ids = []
        for number in range(8):
            world.publish(stack, "mart_translation_training_pairs", world.pairs(1_500 + number))
            ids.append(freeze.freeze(NAME, settings).version)
        found = Kept(settings, ids)
        found.sql("update ml.dataset set created_at = created_at - interval '30 days'")
        yield found


def test_only_what_nothing_needs_goes_and_it_is_told_before(kept: Kept) -> None:
    modelled, scored, predicted, run, half, *_ = kept.ids
    with registry._registry(kept.settings) as client:
        client.create_registered_model("prune-me-not")
        client.create_model_version("prune-me-not", "s3://elsewhere/model", tags={registry.DATASET: modelled})
    kept.sql(
        "insert into ml.score (model, model_version, dataset_version, split, metric, value, low, high, direction) "
        "values ('m', 1, %s, 'valid', 'chrf', 1, 1, 1, 'more')",
        scored,
    )
    kept.sql(
        "insert into ml.prediction (model, model_version, dataset_version, key, output) values ('m', 1, %s, 'k', '{}')",
        predicted,
    )
    folder = home() / "runs" / NAME / f"{run}-smoke"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"dataset": run, "train": {}}))
    for key in list(Objects(kept.settings).list("datasets", f"{NAME}/{half}/"))[:1]:
        Objects(kept.settings).delete("datasets", key)  # somebody was killed while he removed it
    try:
        before = kept.there()
        told = versions.prune(kept.settings, really=False)
        assert kept.there() == before
        done = versions.prune(kept.settings, really=True)
        assert done == told | {"really": True}
        assert [one["version"] for one in done["removed"]] == [kept.ids[5], half]
        assert kept.there() == {modelled, scored, predicted, run, *kept.ids[6:]}
        assert set(done["kept"]) == kept.there()
        assert done["kept"][modelled] == "prune-me-not@1 was trained on it"
        for version in kept.there():
            assert freeze.verify(version, kept.settings)["intact"]
        assert versions.prune(kept.settings, really=True)["removed"] == []
        with pytest.raises(Problem, match="there is no frozen version"):
            freeze.show(half, kept.settings)
    finally:
        with registry._registry(kept.settings) as client:
            client.delete_registered_model("prune-me-not")
        shutil.rmtree(folder)


def test_a_version_of_the_last_days_stays_whoever_needs_it(kept: Kept) -> None:
    young = kept.ids[:4]
    kept.sql("update ml.dataset set created_at = now() - interval '1 day' where version = any(%s)", young)
    gone = {one["version"] for one in versions.prune(kept.settings, really=False)["removed"]}
    assert gone == set(kept.ids[4:])
