"""One Airflow DAG for each family of models: freeze a version of the mart, train, file, promote if better.

Training runs on the queue and in the pool `gpu`. The same rows freeze to the same version, and a finished run of a
version is not trained again, so a run of this DAG that finds nothing new is short.

`sweep` trains every combination of settings for one task, each a mapped task and a run below the sweep's own.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param, task_group
from wiring import COMMON, DOMAIN_OF, announce, asset, command, total

on_gpu = command.override(task_id="train", queue="gpu", pool="gpu", execution_timeout=timedelta(hours=12), retries=2)
PRESET = Param("", type="string", enum=["", "smoke", "cpu", "gpu"], description="Empty: the task's own.")


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
        params={
            "preset": PRESET,
            "settings": Param("", type="string", description="key=value, several with spaces between."),
        },
        **COMMON,
    ) as dag:

        @task_group
        def model(item: dict[str, Any]) -> Any:
            freeze = ["dataset", "freeze", "{name}", "--json"]
            train = ["train", "{name}", "--dataset", "{before[version]}", "--json"]
            train += ["--preset", "{params[preset]}", "--set", "{params[settings]}"]
            promote = ["model", "promote", "{name}", "{before[version]}", "--json"]
            frozen = command.override(task_id="freeze")("trainer", freeze, item)
            trained = on_gpu("trainer", train, item, frozen)
            return command.override(task_id="promote")("trainer", promote, item, trained)

        found = command.override(task_id="tasks")("trainer", ["tasks", family, "--json"])
        announce(asset("models", family))(total(model.expand(item=found), "version"))
    return dag


def sweep_dag() -> DAG:
    """The DAG of sweeps, started by hand."""
    with DAG(
        dag_id="sweep",
        schedule=None,
        is_paused_upon_creation=False,  # nothing starts it but a person
        description="Train every combination of settings of one task",
        tags=["sweep", "train", "gpu"],
        doc_md="`plan` lists the combinations of the values given, `train` is mapped over them on the queue `gpu`, and "
        "`rank` closes the sweep: its run in MLflow has the trainings below it and the best score on `valid`. "
        "Nothing is promoted: `lyrebird model promote` does that.",
        params={
            "task": Param("translation-en-de", type="string", description="As `lyrebird tasks` lists them."),
            "preset": PRESET,
            "settings": Param(
                "learning_rate=0.001,0.002", type="string", description="key=a,b for a setting that is tried out."
            ),
        },
        **COMMON,
    ) as dag:
        asked = ["sweep", "{params[task]}", "--preset", "{params[preset]}", "--set", "{params[settings]}"]
        planned = command.override(task_id="plan")("trainer", [*asked, "--plan", "--json"])
        train = ["train", "{name}", "--dataset", "{version}", "--preset", "{preset}", "--set", "{settings}"]
        trained = on_gpu.partial(
            role="trainer", argv=[*train, "--parent", "{parent}", "--json"]
        ).expand(given=planned)  # fmt: skip
        rank = ["sweep", "{params[task]}", "--finish", "{before[0][parent]}", "--json"]
        trained >> command.override(task_id="rank")("trainer", rank, None, planned)
    return dag


sweep = sweep_dag()
for family in DOMAIN_OF:
    globals()[f"train_{family}"] = train_dag(family)
