"""What infra/compose/secrets.py makes, given to real servers: PostgreSQL runs its SQL, a Redis server its rules."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
import redis

from infra.compose import secrets
from infra.embedded import preparation
from infra.embedded.home import Home, random_free
from infra.embedded.programs import all_programs, valkey_server
from ingestion import catalogue, pipeline
from storage.migrate import upgrade
from storage.settings import ROLES, Role, Settings, from_variables

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def passwords() -> dict[str, str]:
    return {name: secrets.new_password(name) for name in secrets.PASSWORDS}


@pytest.fixture(scope="module")
def postgres(passwords: dict[str, str]) -> Iterator[int]:
    """An empty server, as the image's first start leaves it, that has run our SQL; its port."""
    root = Path(tempfile.mkdtemp(prefix="lyre-"))
    root.chmod(0o755)
    home = Home.at(root / "state")
    home.make()
    ours = {**home.passwords(), "postgres_postgres": passwords["postgres_postgres"]}
    ports = home.choose_ports(set(), {"postgres"}, print) | {"postgres": random_free(avoid=home.ports().values())}
    preparation.prepare_postgres(home, ours, print, threading.Event())
    child = preparation.start_once(home, all_programs(home, ports, ours)["postgres"])
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                connection = connect(ports["postgres"], "postgres", passwords["postgres_postgres"], "postgres")
                break
            except psycopg2.OperationalError:
                assert time.monotonic() < deadline, preparation.last_line(home, "postgres")
                time.sleep(0.1)
        connection.autocommit = True
        with connection.cursor() as cursor:
            for line in secrets.postgres_sql(passwords).splitlines():
                cursor.execute(line)
        connection.close()
        yield ports["postgres"]
    finally:
        preparation.stop_once(child)
        shutil.rmtree(root, ignore_errors=True)


def connect(port: int, user: str, password: str, database: str) -> psycopg2.extensions.connection:
    return psycopg2.connect(host="127.0.0.1", port=port, user=user, password=password, dbname=database)


def settings(role: Role, port: int, passwords: dict[str, str]) -> Settings:
    """The role as its file says, at the port of the test's server."""
    variables = secrets.role_variables(secrets.endpoints({}), passwords)[role]
    return from_variables(variables | {"LYREBIRD_POSTGRES_HOST": "127.0.0.1", "LYREBIRD_POSTGRES_PORT": str(port)})


def test_the_databases_migrate_and_every_role_can_sign_in(postgres: int, passwords: dict[str, str]) -> None:
    for _ in range(2):  # the second start of compose repeats all of it
        upgrade(settings("admin", postgres, passwords))
        pipeline.make_tables(catalogue.sources(), settings("loader", postgres, passwords))
    for role in ROLES:
        connection = connect(postgres, role, passwords[f"postgres_{role}"], "lyrebird")
        with connection.cursor() as cursor:
            cursor.execute("select current_user, rolsuper from pg_roles where rolname = current_user")
            assert cursor.fetchone() == (role, False)
        connection.close()
    connection = connect(postgres, "loader", passwords["postgres_loader"], "lyrebird")
    with connection.cursor() as cursor:
        cursor.execute("select count(*) from information_schema.tables where table_schema = 'raw'")
        (tables,) = cursor.fetchone() or (0,)
    connection.close()
    assert tables >= len(catalogue.sources())


def test_owners_may_make_tables_and_others_may_not_enter(postgres: int, passwords: dict[str, str]) -> None:
    for owner in ("airflow", "celery", "mlflow"):
        connection = connect(postgres, owner, passwords[f"postgres_{owner}"], owner)
        with connection.cursor() as cursor:
            cursor.execute("create table probe (x int); drop table probe")
        connection.close()
    for user, database in (
        ("analyst", "airflow"),
        ("loader", "mlflow"),
        ("celery", "airflow"),
        ("airflow", "lyrebird"),
        ("mlflow", "airflow"),
    ):
        with pytest.raises(psycopg2.OperationalError, match="permission denied"):
            connect(postgres, user, passwords[f"postgres_{user}"], database)
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        connect(postgres, "analyst", "a guess", "lyrebird")


@pytest.fixture(params=["cache", "stream", "broker"])
def server(request: pytest.FixtureRequest, passwords: dict[str, str], tmp_path: Path) -> Iterator[tuple[str, int]]:
    """A Redis server with our configuration, its paths and its port those of the test."""
    name, port = request.param, random_free(avoid=())
    (tmp_path / "users.acl").write_text(secrets.redis_acl(name, passwords))
    for file in ("common.conf", f"{name}.conf"):
        text = (ROOT / "infra/compose/redis" / file).read_text()
        changes = {
            "/etc/lyrebird/": f"{tmp_path}/",
            "/run/secrets/": f"{tmp_path}/",
            "dir /data": f"dir {tmp_path}",
            "port 6379": f"port {port}",
            "bind 0.0.0.0": "bind 127.0.0.1",
        }
        for before, after in changes.items():
            text = text.replace(before, after)
        (tmp_path / file).write_text(text)
    child = subprocess.Popen([str(valkey_server()), str(tmp_path / f"{name}.conf")], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                redis.Redis(port=port).ping()  # what the health check asks, without a password
                break
            except redis.ConnectionError:
                assert child.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
        yield name, port
    finally:
        child.terminate()
        child.wait(20)


def test_strangers_may_ping_and_roles_may_work(server: tuple[str, int], passwords: dict[str, str]) -> None:
    name, port = server
    user = "airflow" if name == "broker" else "loader"
    stranger = redis.Redis(port=port)
    for attempt in (lambda: stranger.get("x"), stranger.info, lambda: stranger.publish("x", "y")):
        with pytest.raises(redis.exceptions.NoPermissionError):
            attempt()
    role = redis.Redis(port=port, username=user, password=passwords[f"{name}_{user}"])
    role.set("x", "1")
    assert role.get("x") == b"1"
    for forbidden in (role.flushall, lambda: role.config_set("maxmemory", "1gb"), role.acl_list):
        with pytest.raises(redis.exceptions.NoPermissionError):
            forbidden()
    with pytest.raises(redis.exceptions.AuthenticationError):
        redis.Redis(port=port, username=user, password="a guess").ping()


def test_the_cache_may_forget_and_the_others_may_not(server: tuple[str, int], passwords: dict[str, str]) -> None:
    name, port = server
    admin = redis.Redis(port=port, username="admin", password=passwords[f"{name}_admin"], decode_responses=True)
    policy = admin.config_get("maxmemory-policy")["maxmemory-policy"]
    kept = (admin.config_get("appendonly")["appendonly"], admin.config_get("appendfsync")["appendfsync"])
    assert policy == ("allkeys-lru" if name == "cache" else "noeviction")
    assert kept[0] == ("no" if name == "cache" else "yes")
    if name == "stream":
        assert kept[1] == "always"
