#!/usr/bin/env python3
"""Make the passwords of a compose installation, and the files in which each service is told its own.

    python3 infra/compose/secrets.py

Any Python from 3.11 on, nothing installed. It can be run again: passwords stay, files that are missing or were made by
an older version are written anew. They go to ``infra/compose/secrets/``, which git and the images leave out.

Who can read them: the folder is the owner's alone (0700), and everything is inside it. What compose itself reads
(``*.env``, ``passwords.json``) has the mode 0600. What is mounted into a container has 0644: the servers there run as
users of their own (postgres and redis 999, ours 50000), a bind mount keeps the modes of this machine, and nobody else
on this machine gets past the folder.
"""

# ruff: noqa: E402 (the path has to be set before anything else is imported)

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
if __name__ == "__main__":
    # Started as a script, its own folder comes first on the path, and this file has the name of a standard module.
    sys.path[0] = str(ROOT)

import base64
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping

from infra.access import (
    BUCKET_RIGHTS,
    BUCKETS,
    REGION,
    UI_USER,
    Endpoints,
    dotenv,
    redis_users,
    role_variables,
    watcher_variables,
)

FOLDER = ROOT / "infra" / "compose" / "secrets"
PASSWORDS = (
    "ui",
    *(f"postgres_{user}" for user in ("postgres", "admin", "loader", "transformer", "trainer", "analyst")),
    *(f"postgres_{user}" for user in ("airflow", "celery", "mlflow")),
    *(f"cache_{user}" for user in ("admin", "loader", "trainer")),
    *(f"stream_{user}" for user in ("admin", "loader", "watcher")),
    *(f"broker_{user}" for user in ("admin", "airflow")),
    *(f"documents_{user}" for user in ("admin", "loader")),
    *(f"objects_{user}" for user in ("admin", *BUCKET_RIGHTS)),
    "mlflow_trainer",
    "mlflow_key",
    "airflow_fernet",
    "airflow_key",
    "airflow_jwt",
)
READABLE, PRIVATE = 0o644, 0o600


def endpoints(ports: Mapping[str, str]) -> Endpoints:
    """The services by their compose names; the pages by their address on this machine, for it stands in links."""
    return Endpoints(
        postgres="postgres:5432",
        documents="mongodb:27017",
        cache="cache:6379",
        stream="stream:6379",
        objects="http://minio:9000",
        mlflow="http://mlflow:5000",
        airflow="http://airflow-apiserver:8080",
        pages=f"http://127.0.0.1:{ports.get('LYREBIRD_PORT_PAGES') or 8090}",
    )


def new_password(name: str) -> str:
    """Only letters, digits, ``-`` and ``_``: safe in any URL and file. The Fernet key has a form of its own."""
    if name == "airflow_fernet":
        return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    return secrets.token_urlsafe(48 if name in ("airflow_key", "airflow_jwt", "mlflow_key") else 24)


def passwords(folder: Path) -> dict[str, str]:
    """Every password of this installation, made once."""
    path = folder / "passwords.json"
    known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    made = {name: known.get(name) or new_password(name) for name in PASSWORDS}
    if made != known:
        write(path, json.dumps(made, indent=1) + "\n", PRIVATE)
    return made


def scram(password: str) -> str:
    """PostgreSQL's digest of a password (RFC 5803): the server is told this and never the password.

    The salt comes from the password, which is random and used nowhere else, so that a second run writes the same file.
    """
    salt, rounds = hashlib.sha256(b"salt" + password.encode()).digest()[:16], 4096
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, rounds)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    encoded = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${rounds}:{encoded[0]}${encoded[1]}:{encoded[2]}"


def postgres_sql(known: Mapping[str, str]) -> str:
    """Databases, their owners and the roles with their passwords, for a server that is empty.

    The migrations find the roles and give them their rights.
    """

    def role(name: str, more: str = "") -> str:
        return f"create role {name} login{more} password '{scram(known[f'postgres_{name}'])}';"

    owners = {"lyrebird": "admin", "airflow": "airflow", "celery": "celery", "mlflow": "mlflow"}
    lines = [role(owner, " createrole" if owner == "admin" else "") for owner in owners.values()]
    roles = ("loader", "transformer", "trainer", "analyst")
    lines += [role(name) for name in roles]
    lines.append(f"grant {', '.join(roles)} to admin with admin option;")
    for database, owner in owners.items():
        lines.append(f"create database {database} owner {owner};")
        lines.append(f"revoke connect, temporary on database {database} from public;")
    lines.append("revoke connect on database postgres, template1 from public;")
    return "\n".join(lines) + "\n"


def mongo_js(known: Mapping[str, str]) -> str:
    """The loader's user; the administrator is made by the image."""
    user = {"user": "loader", "pwd": known["documents_loader"], "roles": [{"role": "readWrite", "db": "documents"}]}
    return f'db.getSiblingDB("admin").createUser({json.dumps(user)});\n'


def redis_acl(server: str, known: Mapping[str, str]) -> str:
    """Who signs in may work; who does not may ask whether the server is alive, as the health check does."""
    return "\n".join(["user default on nopass resetkeys resetchannels -@all +ping", *redis_users(server, known)]) + "\n"


def policy(buckets: Mapping[str, bool]) -> str:
    """An S3 policy: reading and listing these buckets, and writing those marked so."""
    look = ["s3:GetBucketLocation", "s3:ListBucket", "s3:ListBucketMultipartUploads"]
    read = ["s3:GetObject", "s3:GetObjectTagging"]
    write = ["s3:PutObject", "s3:PutObjectTagging", "s3:DeleteObject"]
    write += ["s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
    statements = [
        {"Effect": "Allow", "Action": look, "Resource": [f"arn:aws:s3:::{bucket}" for bucket in buckets]},
        {"Effect": "Allow", "Action": read, "Resource": [f"arn:aws:s3:::{bucket}/*" for bucket in buckets]},
    ]
    if writable := [f"arn:aws:s3:::{bucket}/*" for bucket, may_write in buckets.items() if may_write]:
        statements.append({"Effect": "Allow", "Action": write, "Resource": writable})
    return json.dumps({"Version": "2012-10-17", "Statement": statements}, indent=1) + "\n"


def minio_files(known: Mapping[str, str]) -> dict[str, str]:
    """What minio-init reads: the buckets, and for each user a password and a policy."""
    files = {"minio/buckets": "".join(f"{bucket}\n" for bucket in BUCKETS)}
    for user, buckets in BUCKET_RIGHTS.items():
        files[f"minio/{user}.password"] = f"{known[f'objects_{user}']}\n"
        files[f"minio/{user}.json"] = policy(buckets)
    return files


def airflow_variables(known: Mapping[str, str]) -> dict[str, str]:
    """What only Airflow's own services may know; workers get :func:`worker_variables` and no database."""
    address = f"airflow:{known['postgres_airflow']}@postgres:5432/airflow"
    return {
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2://{address}",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": f"postgresql+asyncpg://{address}",
        "AIRFLOW__CORE__FERNET_KEY": known["airflow_fernet"],
        "AIRFLOW__CORE__INTERNAL_API_SECRET_KEY": known["airflow_key"],
        "AIRFLOW__API__SECRET_KEY": known["airflow_key"],
        "AIRFLOW__API_AUTH__JWT_SECRET": known["airflow_jwt"],
        **worker_variables(known),
    }


def worker_variables(known: Mapping[str, str]) -> dict[str, str]:
    """The queue, and a database for results and nothing else.

    Everything else a worker asks of Airflow's API, with the token that comes with each task.
    """
    results = f"celery:{known['postgres_celery']}@postgres:5432/celery"
    return {
        "AIRFLOW__CELERY__BROKER_URL": f"redis://airflow:{known['broker_airflow']}@broker:6379/0",
        "AIRFLOW__CELERY__RESULT_BACKEND": f"db+postgresql+psycopg2://{results}",
    }


def mlflow_variables(known: Mapping[str, str]) -> dict[str, str]:
    return {
        "MLFLOW_BACKEND_STORE_URI": f"postgresql://mlflow:{known['postgres_mlflow']}@postgres:5432/mlflow",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": known["mlflow_key"],
        "AWS_ACCESS_KEY_ID": "mlflow",
        "AWS_SECRET_ACCESS_KEY": known["objects_mlflow"],
        "AWS_DEFAULT_REGION": REGION,
    }


def mlflow_auth(known: Mapping[str, str]) -> str:
    return (
        "[mlflow]\n"
        "default_permission = EDIT\n"
        f"database_uri = postgresql://mlflow:{known['postgres_mlflow']}@postgres:5432/mlflow\n"
        f"admin_username = {UI_USER}\n"
        f"admin_password = {known['ui']}\n"
        "auth_cache_ttl_seconds = 60\n"
    )


def pages_variables(known: Mapping[str, str]) -> dict[str, str]:
    return {
        "PAGES_USER": UI_USER,
        "PAGES_PASSWORD": known["ui"],
        "PAGES_S3_ACCESS_KEY": "pages",
        "PAGES_S3_SECRET_KEY": known["objects_pages"],
    }


def files(known: Mapping[str, str], at: Endpoints) -> dict[str, tuple[str, int]]:
    """Every file: its path, its text and its mode."""
    read_by_compose = {
        "ui.env": dotenv({"LYREBIRD_UI_USER": UI_USER, "LYREBIRD_UI_PASSWORD": known["ui"]}),
        "airflow.env": dotenv(airflow_variables(known)),
        "worker.env": dotenv(worker_variables(known)),
        "mlflow.env": dotenv(mlflow_variables(known)),
        "pages.env": dotenv(pages_variables(known)),
    }
    mounted = {
        "postgres_admin": known["postgres_postgres"],
        "postgres_init.sql": postgres_sql(known),
        "mongo_admin": known["documents_admin"],
        "mongo_init.js": mongo_js(known),
        "minio_admin": known["objects_admin"],
        "mlflow_auth.ini": mlflow_auth(known),
        "airflow_users.json": json.dumps({UI_USER: known["ui"]}) + "\n",
        **{f"redis/{server}.acl": redis_acl(server, known) for server in ("cache", "stream", "broker")},
        **{f"roles/{role}.env": dotenv(values) for role, values in role_variables(at, known).items()},
        "roles/watcher.env": dotenv(watcher_variables(at, known)),
        **minio_files(known),
    }
    return {name: (text, PRIVATE) for name, text in read_by_compose.items()} | {
        name: (text, READABLE) for name, text in mounted.items()
    }


def write(path: Path, text: str, mode: int) -> None:
    """Write a file in one step, unless it is as it should be. It is never readable by more than ``mode`` says."""
    if path.is_file() and path.read_text() == text and path.stat().st_mode & 0o777 == mode:
        return
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE), "w") as file:
        file.write(text)
    new.chmod(mode)
    new.replace(path)


def generate(folder: Path, ports: Mapping[str, str]) -> None:
    """Make the folder and everything in it. ``ports``: ``LYREBIRD_PORT_*`` as compose is given them."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    known = passwords(folder)
    for name, (text, mode) in files(known, endpoints(ports)).items():
        path = folder / name
        if path.parent != folder:
            path.parent.mkdir(exist_ok=True)
            path.parent.chmod(0o755)
        write(path, text, mode)


if __name__ == "__main__":
    try:
        generate(FOLDER, os.environ)
    except OSError as problem:
        sys.exit(f"lyrebird: cannot write {problem.filename or FOLDER}: {problem.strerror}. Is the folder yours?")
    print(f"Secrets are in {FOLDER}. Sign in to the web pages as {UI_USER}; the password is in ui.env there.")
