"""One Airflow DAG for each family of models: what the champion says of rows that it has not seen yet."""

from __future__ import annotations

from airflow.sdk import DAG
from wiring import COMMON, DOMAIN_OF, announce, asset, command, total


def predict_dag(family: str) -> DAG:
    """The DAG of one family."""
    with DAG(
        dag_id=f"predict_{family}",
        schedule=asset("models", family),
        description=f"Batch predictions of the champions of {family}",
        tags=["predict", family],
        doc_md="Each champion predicts for the rows of its newest dataset version that have no prediction of it yet. "
        "Every prediction names its model and dataset version; the latest lie in the cache.",
        **COMMON,
    ) as dag:
        found = command.override(task_id="tasks")("trainer", ["tasks", family, "--json"])
        predict = command.override(task_id="predict").partial(role="trainer", argv=["predict", "{name}", "--json"])
        announce(asset("predictions", family))(total(predict.expand(given=found), "total"))
    return dag


for family in DOMAIN_OF:
    globals()[f"predict_{family}"] = predict_dag(family)
