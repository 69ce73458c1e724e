"""What "ready" means for each server: a real exchange, with a password, and not an open port.

A probe returns when all is well and raises anything else otherwise; each takes a few seconds at most.
"""

from __future__ import annotations

import base64
import json
import urllib.request
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from infra.access import REGION, UI_USER
from infra.embedded.programs import PROBE_BUCKET
from storage.errors import Problem

if TYPE_CHECKING:
    from boto3.session import Session
    from mypy_boto3_s3 import S3Client

SECONDS = 10
OBJECT_USERS = ("admin", "loader", "transformer", "trainer", "mlflow", "pages")
AIRFLOW_PARTS = {  # the program behind each line of Airflow's own health report
    "metadatabase": "airflow-api-server",
    "scheduler": "airflow-scheduler",
    "dag_processor": "airflow-dag-processor",
    "triggerer": "airflow-triggerer",
}

Ports = Mapping[str, int]
Passwords = Mapping[str, str]
Probe = Callable[[Ports, Passwords], object]


def connect_postgres(ports: Ports, passwords: Passwords, database: str = "postgres", user: str = "postgres") -> Any:
    """A psycopg2 connection to the embedded PostgreSQL."""
    import psycopg2

    return psycopg2.connect(
        host="127.0.0.1",
        port=ports["postgres"],
        dbname=database,
        user=user,
        password=passwords[f"postgres_{user}"],
        connect_timeout=SECONDS,
        application_name="lyrebird stack",
    )


def postgres(ports: Ports, passwords: Passwords) -> None:
    connection = connect_postgres(ports, passwords)
    try:
        with connection.cursor() as cursor:
            cursor.execute("select 1")
    finally:
        connection.close()


def _valkey(server: str, ports: Ports, passwords: Passwords) -> None:
    import redis

    client = redis.Redis(
        host="127.0.0.1",
        port=ports[server],
        username="admin",
        password=passwords[f"{server}_admin"],
        socket_timeout=SECONDS,
        socket_connect_timeout=SECONDS,
    )
    try:
        client.ping()
    finally:
        client.close()


def cache(ports: Ports, passwords: Passwords) -> None:
    _valkey("cache", ports, passwords)


def stream(ports: Ports, passwords: Passwords) -> None:
    _valkey("stream", ports, passwords)


def documents(ports: Ports, passwords: Passwords) -> None:
    from pymongo import MongoClient

    client: MongoClient[dict[str, Any]] = MongoClient(
        "127.0.0.1",
        ports["documents"],
        username="admin",
        password=passwords["documents_admin"],
        authSource="admin",
        serverSelectionTimeoutMS=SECONDS * 1000,
        socketTimeoutMS=SECONDS * 1000,
    )
    try:
        client.admin.command("ping")
        client["probe"]["probe"].replace_one({"_id": "probe"}, {"_id": "probe"}, upsert=True)
    finally:
        client.close()


def s3_session() -> Session:
    """A boto3 session of our own: the default one is shared between threads."""
    from boto3.session import Session

    return Session()


def s3_client(session: Session, ports: Ports, passwords: Passwords, user: str) -> S3Client:
    """A boto3 client with one identity of the object server."""
    from botocore.config import Config

    return session.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{ports['objects']}",
        aws_access_key_id=user,
        aws_secret_access_key=passwords[f"objects_{user}"],
        region_name=REGION,
        config=Config(
            connect_timeout=SECONDS,
            read_timeout=SECONDS,
            retries={"total_max_attempts": 1},
            s3={"addressing_style": "path"},
            proxies={},
        ),
    )


def objects(ports: Ports, passwords: Passwords) -> None:
    """Every identity writes an object and reads it back."""
    session = s3_session()
    for user in OBJECT_USERS:
        client = s3_client(session, ports, passwords, user)
        try:
            if user == "admin":
                _make_bucket(client, PROBE_BUCKET)
            client.put_object(Bucket=PROBE_BUCKET, Key=user, Body=user.encode())
            body = client.get_object(Bucket=PROBE_BUCKET, Key=user)["Body"].read()
            if body != user.encode():
                raise ConnectionError(f"the object server gave back {body!r} for {user!r}")
        finally:
            client.close()


def _make_bucket(client: S3Client, bucket: str) -> None:
    if bucket not in {known.get("Name") for known in client.list_buckets().get("Buckets", [])}:
        client.create_bucket(Bucket=bucket)


def make_buckets(ports: Ports, passwords: Passwords, buckets: tuple[str, ...]) -> None:
    """Make the buckets that are not there."""
    client = s3_client(s3_session(), ports, passwords, "admin")
    try:
        for bucket in buckets:
            _make_bucket(client, bucket)
    finally:
        client.close()


def request(
    url: str, user: str = "", password: str = "", token: str = "", body: object = None, method: str | None = None
) -> bytes:
    """An HTTP exchange on loopback, past any proxy; raises urllib's errors."""
    headers = {"Content-Type": "application/json"} if body is not None else {}
    if user:
        headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    if token:
        headers["Authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data, headers, method=method)  # noqa: S310
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(asked, timeout=SECONDS) as answer:
        return bytes(answer.read())


def mlflow(ports: Ports, passwords: Passwords) -> None:
    base = f"http://127.0.0.1:{ports['mlflow']}"
    request(f"{base}/health")
    search = {"max_results": 1}
    request(f"{base}/api/2.0/mlflow/experiments/search", UI_USER, passwords["ui"], body=search)


def airflow_health(ports: Ports) -> dict[str, bool]:
    """Which of Airflow's programs are well, by its own report. Raises when the API does not answer."""
    report = json.loads(request(f"http://127.0.0.1:{ports['airflow']}/api/v2/monitor/health"))
    return {program: (report.get(part) or {}).get("status") == "healthy" for part, program in AIRFLOW_PARTS.items()}


def airflow_token(ports: Ports, passwords: Passwords) -> str:
    """A token for Airflow's API; only the Airflow of this installation gives one for our password."""
    body = {"username": UI_USER, "password": passwords["ui"]}
    answer = json.loads(request(f"http://127.0.0.1:{ports['airflow']}/auth/token", body=body))
    return str(answer["access_token"])


def airflow(ports: Ports, passwords: Passwords) -> None:
    airflow_token(ports, passwords)
    unwell = [program for program, well in airflow_health(ports).items() if not well]
    if unwell:
        raise ConnectionError(f"not healthy yet: {', '.join(unwell)}")


def pages(ports: Ports, passwords: Passwords) -> None:
    request(f"http://127.0.0.1:{ports['pages']}/", UI_USER, passwords["ui"])


PROBES: dict[str, Probe] = {
    "postgres": postgres,
    "cache": cache,
    "stream": stream,
    "documents": documents,
    "objects": objects,
    "mlflow": mlflow,
    "airflow": airflow,
    "pages": pages,
}


def well(service: str, ports: Ports, passwords: Passwords) -> bool:
    """Whether the service passes its probe now."""
    try:
        PROBES[service](ports, passwords)
    except Problem:
        raise
    except Exception:
        return False
    return True
