"""The embedded stack, really started: who may do what, and what killing it does.

It has a stack of its own, since it kills servers; stores and pages only (Airflow and MLflow are tried end to end).
"""

from __future__ import annotations

import base64
import os
import shutil
import signal
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis
from botocore.exceptions import ClientError
from pymongo import MongoClient
from pymongo.errors import OperationFailure

from infra.embedded import probes, stack
from infra.embedded.home import Home
from infra.embedded.leftovers import leftovers
from infra.embedded.stack import ServiceStatus
from infra.embedded.supervision import Supervisor
from storage.errors import Problem

SERVICES = ("postgres", "cache", "stream", "documents", "objects", "pages")
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    folder = Path(tempfile.mkdtemp(prefix="lyre-stack-"))
    folder.chmod(0o755)
    place = Home.at(folder / "state")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("LYREBIRD_")]:
            patch.delenv(name)
        try:
            stack.up(place.root, only=SERVICES, progress=print)
            yield place
        finally:
            stack.down(place.root)
            shutil.rmtree(folder, ignore_errors=True)


def now(home: Home) -> dict[str, ServiceStatus]:
    return {one.name: one for one in stack.status(home.root)}


def pid(status: ServiceStatus) -> int:
    assert status.pid is not None
    return status.pid


def eventually(check: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def processes(home: Home) -> list[psutil.Process]:
    return leftovers([home.root / "run", home.data("postgres")])


def valkey(home: Home, server: str, user: str) -> redis.Redis:
    password = home.passwords()[f"{server}_{user}"]
    return redis.Redis(host="127.0.0.1", port=home.ports()[server], username=user, password=password)


def page(home: Home, path: str, password: str | None = None) -> tuple[int, str, str]:
    """Status, content type and body of a page."""
    url = f"http://127.0.0.1:{home.ports()['pages']}{path}"
    secret = home.passwords()["ui"] if password is None else password
    request = urllib.request.Request(url)
    request.add_header("Authorization", "Basic " + base64.b64encode(f"lyrebird:{secret}".encode()).decode())
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read().decode()


def test_status_tells_what_runs(home: Home) -> None:
    status = now(home)
    for name in SERVICES:
        assert status[name].healthy, name
        assert status[name].state == "running"
        assert status[name].port == home.ports()[name]
        assert status[name].memory_mb > 1
        assert status[name].uptime_s > 0
        assert Path(status[name].log).exists()
    assert status["airflow-scheduler"].state == "stopped"
    assert not status["mlflow"].healthy


def test_every_socket_is_on_loopback_and_no_command_line_holds_a_secret(home: Home) -> None:
    secrets = set(home.passwords().values())
    listening = 0
    for process in processes(home):
        command = " ".join(process.cmdline())
        assert not [secret for secret in secrets if secret in command], process.name()
        for connection in process.net_connections("inet"):
            listening += connection.status == psutil.CONN_LISTEN
            assert connection.laddr.ip == "127.0.0.1", (process.name(), connection)
            assert not connection.raddr or connection.raddr.ip == "127.0.0.1", (process.name(), connection)
    assert listening >= len(SERVICES)


def test_files_are_private(home: Home) -> None:
    for folder in ("secrets", "run", "logs"):
        for path in (home.root / folder).rglob("*"):
            if path.is_file() and path.name != "lock":
                assert path.stat().st_mode & 0o077 == 0, path


def test_wrong_and_missing_passwords_are_refused(home: Home) -> None:
    import psycopg2

    ports = home.ports()
    wrong = dict.fromkeys(home.passwords(), "wrong")
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        probes.postgres(ports, wrong)
    for server in ("cache", "stream"):
        with redis.Redis(host="127.0.0.1", port=ports[server]) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
    with MongoClient("127.0.0.1", ports["documents"]) as nobody, pytest.raises(OperationFailure):
        nobody["documents"]["anything"].find_one()
    with pytest.raises(OperationFailure):
        probes.documents(ports, wrong)
    with pytest.raises(ClientError):
        probes.objects(ports, wrong)
    assert page(home, "/", "wrong")[0] == 401


def test_databases_are_closed_to_other_roles(home: Home) -> None:
    import psycopg2

    ports, passwords = home.ports(), home.passwords()
    for role in ("admin", "loader", "transformer", "trainer", "analyst"):
        probes.connect_postgres(ports, passwords, "lyrebird", role).close()
        with pytest.raises(psycopg2.OperationalError, match="permission denied"):
            probes.connect_postgres(ports, passwords, "airflow", role)


def test_each_identity_may_do_in_a_bucket_what_its_role_does(home: Home) -> None:
    def may(user: str, bucket: str) -> str:
        client = probes.s3_client(probes.s3_session(), home.ports(), home.passwords(), user)
        rights = ""
        for letter, attempt in (
            ("r", lambda: client.get_object(Bucket=bucket, Key="there")),
            ("w", lambda: client.put_object(Bucket=bucket, Key=f"by-{user}", Body=b"x")),
        ):
            try:
                attempt()
                rights += letter
            except ClientError as error:
                assert error.response["Error"]["Code"] == "AccessDenied", error
        client.close()
        return rights

    admin = probes.s3_client(probes.s3_session(), home.ports(), home.passwords(), "admin")
    buckets = ("landing", "derived", "datasets", "docs", "mlflow")
    for bucket in buckets:
        admin.put_object(Bucket=bucket, Key="there", Body=b"x")
    users = ("loader", "transformer", "trainer", "pages", "mlflow")
    assert {user: {bucket: may(user, bucket) for bucket in buckets if may(user, bucket)} for user in users} == {
        "loader": {"landing": "rw", "derived": "rw", "docs": "rw"},
        "transformer": {"docs": "rw"},
        "trainer": {"derived": "r", "datasets": "rw", "docs": "rw"},
        "pages": {"docs": "r"},
        "mlflow": {"mlflow": "rw"},
    }
    # the file server behind S3 gives nothing to somebody without a token
    filer = f"http://127.0.0.1:{home.ports()['objects_filer']}/buckets/landing/there"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        probes.request(filer)
    admin.close()


def test_roles_of_the_cache_cannot_empty_it(home: Home) -> None:
    with valkey(home, "cache", "trainer") as client:
        client.set("bird", "lyrebird")
        assert client.get("bird") == b"lyrebird"
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.flushall()
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.config_get("maxmemory")
    with valkey(home, "cache", "admin") as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "allkeys-lru"}
    with valkey(home, "stream", "admin") as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("appendfsync") == {"appendfsync": "always"}


def test_pages_serve_the_bucket_read_only(home: Home) -> None:
    client = probes.s3_client(probes.s3_session(), home.ports(), home.passwords(), "admin")
    client.put_object(Bucket="docs", Key="report/index.html", Body="<p>é".encode())
    client.put_object(Bucket="docs", Key="report/data/a b.json", Body=b"{}")
    client.put_object(Bucket="landing", Key="secret.txt", Body=b"private")
    client.close()
    assert "report/" in page(home, "/")[2]
    assert page(home, "/report/") == (200, "text/html; charset=utf-8", "<p>é")
    assert page(home, "/report") == (200, "text/html; charset=utf-8", "<p>é")
    assert page(home, "/report/data/a%20b.json") == (200, "application/json", "{}")
    assert "a b.json" in page(home, "/report/data/")[2]
    for path in ("/nothing", "/nothing/", "/../landing/secret.txt", "/%2e%2e/landing/secret.txt", "/report%2f..%2fx"):
        status, _, body = page(home, path)
        assert status == 404, path
        assert "private" not in body


def test_a_second_up_changes_nothing(home: Home) -> None:
    before = {name: status.pid for name, status in now(home).items()}
    passwords, ports = home.passwords(), home.ports()
    stack.up(home.root, only=SERVICES)
    assert {name: status.pid for name, status in now(home).items()} == before
    assert (home.passwords(), home.ports()) == (passwords, ports)


def test_killed_servers_come_back_with_all_that_was_acknowledged(home: Home) -> None:
    ports, passwords = home.ports(), home.passwords()
    connection = probes.connect_postgres(ports, passwords, "lyrebird", "admin")
    connection.autocommit = True
    connection.cursor().execute("create table kept as select 42 as answer")
    connection.close()
    with valkey(home, "stream", "loader") as client:
        client.xadd("kept", {"answer": "42"})
    with MongoClient(_mongo_url(home)) as documents:
        documents["documents"]["kept"].insert_one({"answer": 42})
    objects = probes.s3_client(probes.s3_session(), ports, passwords, "loader")
    objects.put_object(Bucket="landing", Key="kept", Body=b"42")

    before = now(home)
    for name in SERVICES:
        os.kill(pid(before[name]), signal.SIGKILL)
    eventually(lambda: all(now(home)[name].healthy and now(home)[name].pid != before[name].pid for name in SERVICES))

    connection = probes.connect_postgres(ports, passwords, "lyrebird", "admin")
    with connection.cursor() as cursor:
        cursor.execute("select answer from kept")
        assert cursor.fetchone() == (42,)
    connection.close()
    with valkey(home, "stream", "loader") as client:
        assert client.xlen("kept") == 1
    with MongoClient(_mongo_url(home)) as documents:
        assert documents["documents"]["kept"].count_documents({"answer": 42}) == 1
    assert objects.get_object(Bucket="landing", Key="kept")["Body"].read() == b"42"
    objects.close()


def _mongo_url(home: Home) -> str:
    lines = (home.secrets / "loader.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)["LYREBIRD_MONGO_URL"]


def test_a_killed_supervisor_takes_its_servers_along_and_the_next_up_recovers(home: Home) -> None:
    before = now(home)
    supervisor = int((home.root / "run" / "supervisord.pid").read_text())
    os.kill(supervisor, signal.SIGKILL)
    eventually(lambda: Supervisor(home).states() is None)
    assert not any(status.healthy for status in now(home).values())
    said: list[str] = []
    stack.up(home.root, only=SERVICES, progress=said.append)
    after = now(home)
    assert all(after[name].healthy and after[name].pid != before[name].pid for name in SERVICES)
    assert {name: status.port for name, status in after.items()} == {name: one.port for name, one in before.items()}
    connection = probes.connect_postgres(home.ports(), home.passwords(), "lyrebird", "admin")
    with connection.cursor() as cursor:
        cursor.execute("select answer from kept")
        assert cursor.fetchone() == (42,)
    connection.close()


def test_a_stale_pid_file_of_the_database_does_not_matter(home: Home) -> None:
    stack.down(home.root)
    # after a reboot the number in the file may belong to another program of the same user
    (home.data("postgres") / "postmaster.pid").write_text(f"{os.getpid()}\n{home.data('postgres')}\n1\n1\n\n\n")
    stack.up(home.root, only=["postgres"])
    assert now(home)["postgres"].healthy
    assert not now(home)["cache"].healthy


def test_a_moved_port_moves_the_server_and_the_credentials(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    from infra.embedded.home import random_free

    stack.up(home.root, only=["cache"])
    moved = random_free(avoid=home.ports().values())
    monkeypatch.setenv("LYREBIRD_PORT_CACHE", str(moved))
    stack.up(home.root, only=["cache"])
    assert now(home)["cache"].port == moved
    assert now(home)["cache"].healthy
    assert f"127.0.0.1:{moved}/" in (home.secrets / "trainer.env").read_text()


def test_an_unknown_service_is_a_problem_that_lists_the_right_ones(home: Home) -> None:
    with pytest.raises(Problem, match="postgres, cache"):
        stack.up(home.root, only=["mysql"])


def test_a_server_that_cannot_start_is_named_with_its_log(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from infra.embedded import programs

    monkeypatch.setitem(stack.SERVICES, "stream", replace(programs.SERVICES["stream"], patience=8))
    aof = home.data("stream") / "appendonlydir"
    manifest = next(aof.glob("*.manifest"))
    text = manifest.read_text()
    stack.down(home.root)
    try:
        manifest.write_text("nonsense\n")
        with pytest.raises(Problem, match=r"stream does not become ready.*stream\.log"):
            stack.up(home.root, only=["stream"])
    finally:
        manifest.write_text(text)
    stack.up(home.root, only=["stream"])
    with valkey(home, "stream", "loader") as client:
        assert client.xlen("kept") == 1


def test_down_is_quick_leaves_nothing_running_and_may_be_repeated(home: Home) -> None:
    stack.up(home.root, only=SERVICES)
    assert processes(home)
    began = time.monotonic()
    stack.down(home.root)
    assert time.monotonic() - began < 20
    assert not processes(home)
    assert all(status.state == "stopped" for status in stack.status(home.root))
    stack.down(home.root)
