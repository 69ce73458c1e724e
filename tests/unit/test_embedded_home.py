"""The state folder: ports, passwords, locks, private files, and the configuration made from them."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from infra.embedded import home as homes
from infra.embedded import preparation
from infra.embedded.home import DEFAULT_PORTS, INNER_PORTS, Home, is_free, random_free, write_private
from infra.embedded.leftovers import end_leftovers, leftovers
from infra.embedded.pages import content_type, is_safe
from infra.embedded.programs import SERVICES, all_programs, role_variables, write_roles
from infra.embedded.supervision import Supervisor, clean_environment
from storage.errors import Problem


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    for name in [name for name in os.environ if name.startswith("LYREBIRD_PORT_")]:
        monkeypatch.delenv(name)
    place = Home.at(tmp_path / "state")
    place.make()
    return place


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # it binds beside what keeps the port for it
        server.bind(("127.0.0.1", random_free(avoid=())))
        server.listen()
        yield server


def choose(home: Home, progress: list[str], ours: set[int] | None = None) -> dict[str, int]:
    return home.choose_ports(ours or set(), set(SERVICES), progress.append)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_port_that_was_found_is_kept_for_a_server_and_from_whoever_looks_for_one() -> None:
    port = random_free(avoid=())
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))  # as random_free of another process does
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", port))
        server.listen()


def test_ports_are_distinct_free_and_remembered(home: Home) -> None:
    first = choose(home, [])
    assert set(first) == {*DEFAULT_PORTS, *INNER_PORTS}
    assert len(set(first.values())) == len(first)
    assert all(is_free(port) for port in first.values())
    assert choose(home, []) == first == home.ports()


def test_a_taken_default_is_replaced_and_said_in_one_sentence(
    home: Home, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = listener.getsockname()[1]
    monkeypatch.setitem(homes.DEFAULT_PORTS, "mlflow", taken)
    said: list[str] = []
    chosen = choose(home, said)["mlflow"]
    assert chosen != taken
    sentence = [text for text in said if "mlflow" in text]
    assert len(sentence) == 1
    assert str(taken) in sentence[0]
    assert str(chosen) in sentence[0]


def test_a_port_we_listen_on_ourselves_is_not_taken(
    home: Home, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = listener.getsockname()[1]
    monkeypatch.setitem(homes.DEFAULT_PORTS, "mlflow", ours)
    assert choose(home, [], {ours})["mlflow"] == ours


def test_a_taken_port_that_somebody_asked_for_is_a_problem(
    home: Home, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LYREBIRD_PORT_PAGES", str(listener.getsockname()[1]))
    with pytest.raises(Problem, match="LYREBIRD_PORT_PAGES") as caught:
        choose(home, [])
    assert str(listener.getsockname()[1]) in str(caught.value)
    free = random_free(avoid=())
    monkeypatch.setenv("LYREBIRD_PORT_PAGES", str(free))
    assert choose(home, [])["pages"] == free


@pytest.mark.parametrize("text", ["http", "0", "70000", "-1", "1e3"])
def test_a_port_that_is_none_is_a_problem(home: Home, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("LYREBIRD_PORT_CACHE", text)
    with pytest.raises(Problem, match="LYREBIRD_PORT_CACHE"):
        choose(home, [])


def test_passwords_are_made_once_private_and_all_different(home: Home, tmp_path: Path) -> None:
    passwords = home.passwords()
    assert passwords == home.passwords()
    assert len(set(passwords.values())) == len(passwords)
    assert mode(home.secrets) == 0o700
    assert mode(home.secrets / "stack.json") == 0o600
    other = Home.at(tmp_path / "other")
    other.make()
    assert not set(other.passwords().values()) & set(passwords.values())


def test_a_password_that_a_newer_version_wants_is_added_and_the_old_ones_stay(home: Home) -> None:
    before = home.passwords()
    kept = {name: value for name, value in before.items() if name != "ui"}
    write_private(home.secrets / "stack.json", json.dumps(kept))
    after = home.passwords()
    assert {name: after[name] for name in kept} == kept
    assert after["ui"] != before["ui"]


def test_a_private_file_is_replaced_whole_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert path.read_text() == "new"
    assert mode(path) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_second_command_says_that_it_waits_and_then_goes_on(home: Home) -> None:
    said: list[str] = []
    order: list[str] = []

    def second() -> None:
        with home.lock(said.append):
            order.append("second")

    with home.lock(said.append):
        thread = threading.Thread(target=second)
        thread.start()
        deadline = time.monotonic() + 10
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    assert len(said) == 1
    assert str(os.getpid()) in said[0]


def test_a_full_disk_is_told_before_anything_starts(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.check_space()
    monkeypatch.setattr(homes, "LEAST_FREE_BYTES", 1 << 62)
    with pytest.raises(Problem, match="free") as caught:
        home.check_space()
    assert str(home.root) in str(caught.value)


def test_a_state_folder_that_cannot_be_made_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Problem, match="LYREBIRD_HOME"):
        Home.at(tmp_path / "file" / "state").make()


def test_sockets_of_a_long_state_folder_lie_in_a_private_folder(tmp_path: Path) -> None:
    long = Home.at(tmp_path / ("x" * 120))
    path = long.socket("supervisor")
    try:
        assert len(str(path)) <= homes.LONGEST_SOCKET_PATH
        assert mode(path.parent) == 0o700
        assert path == long.socket("supervisor")
        assert path.parent != Home.at(tmp_path / ("y" * 120)).socket("supervisor").parent
    finally:
        path.parent.rmdir()
        Home.at(tmp_path / ("y" * 120)).socket("supervisor").parent.rmdir()


def test_no_secret_is_on_a_command_line_or_in_the_supervisors_programs(home: Home) -> None:
    passwords = home.passwords()
    programs = all_programs(home, choose(home, []), passwords)
    assert set(programs) == {name for service in SERVICES.values() for name in service.programs}
    for program in programs.values():
        for name, secret in passwords.items():
            assert secret not in " ".join(program.argv), (program.name, name)
    configuration = Supervisor(home)._configuration(programs)
    assert {name for name, secret in passwords.items() if secret in configuration} == {"supervisor"}
    for path in home.root.rglob("*"):
        if path.is_file():
            assert mode(path) & 0o077 == 0 or path.name == "lock", path


def test_every_server_is_told_to_listen_on_loopback_only(home: Home) -> None:
    programs = all_programs(home, choose(home, []), home.passwords())
    for name, program in programs.items():
        assert "0.0.0.0" not in program.spec(), name  # noqa: S104
    assert "bind 127.0.0.1\n" in (home.root / "run" / "cache.conf").read_text()
    assert "bind 127.0.0.1\n" in (home.root / "run" / "stream.conf").read_text()
    assert "-master.telemetry=false" in programs["objects"].argv
    assert "--sync-on-commit" in programs["documents"].argv
    for name in ("airflow-scheduler", "airflow-triggerer"):
        assert "--skip-serve-logs" in programs[name].argv


def test_what_the_caller_has_in_the_environment_does_not_restart_servers(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports, passwords = choose(home, []), home.passwords()
    before = {name: program.spec() for name, program in all_programs(home, ports, passwords).items()}
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "somebody's")
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    after = {name: program.spec() for name, program in all_programs(home, ports, passwords).items()}
    assert after == before
    environment = clean_environment()
    assert environment["TZ"] == "Asia/Tokyo"
    assert not {"AWS_SECRET_ACCESS_KEY", "AIRFLOW__CORE__EXECUTOR"} & set(environment)


def test_each_role_gets_the_stores_it_needs_and_no_other(home: Home) -> None:
    ports, passwords = choose(home, []), home.passwords()
    roles = role_variables(ports, passwords)
    stores = {
        role: {
            store
            for store in (
                "POSTGRES_PASSWORD",
                "MONGO_URL",
                "CACHE_URL",
                "STREAM_URL",
                "S3_SECRET_KEY",
                "MLFLOW_PASSWORD",
            )
            if f"LYREBIRD_{store}" in values
        }
        for role, values in roles.items()
    }
    assert stores["loader"] == {"POSTGRES_PASSWORD", "MONGO_URL", "CACHE_URL", "STREAM_URL", "S3_SECRET_KEY"}
    assert stores["transformer"] == {"POSTGRES_PASSWORD", "S3_SECRET_KEY"}
    assert stores["trainer"] == {"POSTGRES_PASSWORD", "S3_SECRET_KEY", "CACHE_URL", "MLFLOW_PASSWORD"}
    assert stores["analyst"] == {"POSTGRES_PASSWORD"}
    secret = [
        {value for name, value in values.items() if name.endswith(("_PASSWORD", "_KEY")) and "ACCESS" not in name}
        for values in roles.values()
    ]
    for i, one in enumerate(secret):
        for other in secret[i + 1 :]:
            assert not one & other
    write_roles(home, ports, passwords)
    assert mode(home.secrets / "loader.env") == 0o600


def orphan(folder: Path) -> subprocess.Popen[bytes]:
    """A process without a terminal that works in ``folder`` and does not listen to polite requests."""
    code = "import signal, sys, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_leftovers_are_ended_and_others_are_left_alone(home: Home, tmp_path: Path) -> None:
    (home.root / "run-not-ours").mkdir()
    home.run("mlflow").mkdir()
    ours, stranger = orphan(home.run("mlflow")), orphan(home.root / "run-not-ours")
    try:
        assert [process.pid for process in leftovers([home.root / "run"])] == [ours.pid]
        assert end_leftovers([home.root / "run"]) == 1
        assert not psutil.pid_exists(ours.pid)
        assert stranger.poll() is None
    finally:
        for process in (ours, stranger):
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


@pytest.mark.parametrize("path", ["", "a", "a/", "a/b.html", "dbt/x y/ü.html", "..a/b..", ".../x"])
def test_plain_paths_are_served(path: str) -> None:
    assert is_safe(path)


@pytest.mark.parametrize(
    "path", ["..", "../a", "a/../b", "a/..", "./a", "/etc/passwd", "a//b", "a\\..\\b", "a\0b", "/"]
)
def test_odd_paths_are_refused(path: str) -> None:
    assert not is_safe(path)


def test_pages_have_the_content_types_that_browsers_expect() -> None:
    assert content_type("a/index.html") == "text/html; charset=utf-8"
    assert content_type("a.json") == "application/json"
    assert content_type("a.png") == "image/png"
    assert content_type("a") == "application/octet-stream"


def test_two_stacks_that_start_at_once_make_the_user_of_the_database_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def useradd(argv: list[str], **how: object) -> None:
        time.sleep(0.3)
        made.append(1000 + len(made))

    def account(name: str) -> int:
        return made[-1] if made else {}[name]

    monkeypatch.setattr(preparation, "subprocess", SimpleNamespace(run=useradd))
    monkeypatch.setattr(preparation, "pwd", SimpleNamespace(getpwnam=account))
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda _: preparation._database_account(), range(4)))
    assert found == [1000] * 4
    assert made == [1000]
