"""Bring stores that are not embedded to where a task can work with them: warehouse, raw tables, MLflow's user.

Compose and a cluster run it before Airflow starts; `lyrebird up` does the same for the embedded stack. It reads the
files of the roles admin, loader and trainer, and can be repeated.
"""

from __future__ import annotations

import sys

from infra.embedded.preparation import make_trainer
from ingestion import catalogue, pipeline
from storage.errors import Problem
from storage.migrate import upgrade
from storage.settings import for_role


def main() -> None:
    admin, trainer = for_role("admin"), for_role("trainer")
    upgrade(admin)
    pipeline.make_tables(catalogue.sources(), for_role("loader"))
    if admin.mlflow_url:  # without one, MLflow is the company's own, with users of its own
        make_trainer(
            admin.mlflow_url, admin.mlflow_password.get_secret_value(), trainer.mlflow_password.get_secret_value()
        )


if __name__ == "__main__":
    try:
        main()
    except Problem as problem:
        sys.exit(f"lyrebird: {problem}")
