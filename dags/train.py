"""One Airflow DAG for each family of models: freeze a version of the mart, train, file, promote if better.

Training runs on the queue and in the pool `gpu`. The same rows freeze to the same version, and a finished run of a
version is not trained again, so a run of this DAG that finds nothing new is short.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, task_group
from wiring import COMMON, DOMAIN_OF, announce, asset, command, total


def train_dag(family: str) -> DAG:
    """The DAG of one family."""
    with DAG(
        dag_id=f"train_{family}",
        schedule=asset("marts", DOMAIN_OF[family]),
        description=f"Freeze, train, register and promote the models of {family}",
        tags=["train", family, "gpu"],
        doc_md=f"For each task of `ml/tasks.py` in the family {family} whose mart holds enough rows: `freeze` writes a "
        "dataset version, `train` trains on the queue `gpu`, `promote` compares with the champion on the same `valid` "
        "rows. A red `train` goes on from its checkpoint when it is tried again.",
        **COMMON,
    ) as dag:

        @task_group
        def model(item: dict[str, Any]) -> Any:
            freeze = ["dataset", "freeze", "{name}", "--json"]
            train = ["train", "{name}", "--dataset", "{before[version]}", "--json"]
            promote = ["model", "promote", "{name}", "{before[version]}", "--json"]
            frozen = command.override(task_id="freeze")("trainer", freeze, item)
            trained = command.override(
                task_id="train", queue="gpu", pool="gpu", execution_timeout=timedelta(hours=12), retries=2
            )("trainer", train, item, frozen)
            return command.override(task_id="promote")("trainer", promote, item, trained)

        found = command.override(task_id="tasks")("trainer", ["tasks", family, "--json"])
        announce(asset("models", family))(total(model.expand(item=found), "version"))
    return dag


for family in DOMAIN_OF:
    globals()[f"train_{family}"] = train_dag(family)
