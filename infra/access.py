"""Who may reach which store: the credentials of each role, wherever the stores run.

The embedded stack and the compose files are made from the same rules. Standard library only: the script that makes
compose's secrets runs on a machine where nothing is installed yet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

# The one person of the web pages, and the administrator of Airflow and MLflow.
UI_USER = "lyrebird"
REGION = "us-east-1"
BUCKETS = ("landing", "derived", "datasets", "mlflow", "docs")
# user of the object store -> bucket -> may it write
BUCKET_RIGHTS: dict[str, dict[str, bool]] = {
    "loader": {"landing": True, "derived": True, "docs": True},
    "transformer": {"docs": True},
    "trainer": {"derived": False, "datasets": True, "docs": True},
    "mlflow": {"mlflow": True},
    "pages": {"docs": False},
}
# user of a Redis-protocol server -> what it may do, where that is not what every role may
REDIS_RIGHTS = {
    "admin": "+@all",
    "watcher": "-@all +ping +hello +client|setinfo +select +xread +xrange +xlen +xpending +xinfo|groups",
}


@dataclass(frozen=True)
class Endpoints:
    """Where the servers are: ``host:port``, or a URL where people and programs speak HTTP."""

    postgres: str
    documents: str
    cache: str
    stream: str
    objects: str
    mlflow: str
    airflow: str
    pages: str  # as a person's browser reaches it: it stands in links


def role_variables(at: Endpoints, passwords: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The ``LYREBIRD_*`` variables of each role, with the stores that this role has business with and no other."""
    host, _, port = at.postgres.rpartition(":")

    def warehouse(role: str) -> dict[str, str]:
        return {
            "POSTGRES_HOST": host,
            "POSTGRES_PORT": port,
            "POSTGRES_DATABASE": "lyrebird",
            "POSTGRES_USER": role,
            "POSTGRES_PASSWORD": passwords[f"postgres_{role}"],
            "PAGES_URL": at.pages,
        }

    def objects(role: str) -> dict[str, str]:
        return {
            "S3_ENDPOINT": at.objects,
            "S3_ACCESS_KEY": role,
            "S3_SECRET_KEY": passwords[f"objects_{role}"],
            "S3_REGION": REGION,
        }

    def documents(role: str) -> dict[str, str]:
        return {
            "MONGO_URL": f"mongodb://{role}:{passwords[f'documents_{role}']}@{at.documents}/?authSource=admin",
            "MONGO_DATABASE": "documents",
        }

    def cache(role: str) -> dict[str, str]:
        return {"CACHE_URL": f"redis://{role}:{passwords[f'cache_{role}']}@{at.cache}/0"}

    def stream(role: str) -> dict[str, str]:
        return {"STREAM_URL": f"redis://{role}:{passwords[f'stream_{role}']}@{at.stream}/0"}

    def mlflow(user: str, password: str) -> dict[str, str]:
        return {"MLFLOW_URL": at.mlflow, "MLFLOW_USER": user, "MLFLOW_PASSWORD": passwords[password]}

    airflow = {"AIRFLOW_URL": at.airflow, "AIRFLOW_USER": UI_USER, "AIRFLOW_PASSWORD": passwords["ui"]}

    def stores(role: str) -> dict[str, str]:
        return documents(role) | cache(role) | stream(role) | objects(role)

    roles = {
        "admin": warehouse("admin") | stores("admin") | mlflow(UI_USER, "ui") | airflow,
        "loader": warehouse("loader") | stores("loader"),
        "transformer": warehouse("transformer") | objects("transformer"),
        "trainer": warehouse("trainer") | objects("trainer") | cache("trainer") | mlflow("trainer", "mlflow_trainer"),
        "analyst": warehouse("analyst"),
    }
    return {
        role: {"LYREBIRD_ROLE": role} | {f"LYREBIRD_{name}": value for name, value in values.items()}
        for role, values in roles.items()
    }


def watcher_variables(at: Endpoints, passwords: Mapping[str, str]) -> dict[str, str]:
    """What Airflow's triggerer is given: it may look whether messages wait on the stream server, and nothing else."""
    return {"LYREBIRD_STREAM_URL": f"redis://watcher:{passwords['stream_watcher']}@{at.stream}/0"}


def dotenv(values: Mapping[str, str]) -> str:
    """Variables as the text of a ``.env`` file. The values need no quotes: they are made of plain signs."""
    return "".join(f"{name}={value}\n" for name, value in values.items())


def redis_users(server: str, passwords: Mapping[str, str]) -> list[str]:
    """Access rules of a Redis-protocol server: the administrator may do anything, a role nothing that harms others.

    Only digests are written.
    """
    lines: list[str] = []
    for name, password in passwords.items():
        if name.startswith(f"{server}_"):
            user = name.removeprefix(f"{server}_")
            digest = hashlib.sha256(password.encode()).hexdigest()
            rights = REDIS_RIGHTS.get(user, "+@all -@admin -@dangerous +info")
            lines.append(f"user {user} on #{digest} ~* &* {rights}")
    return lines
