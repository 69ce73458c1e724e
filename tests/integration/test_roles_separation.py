"""Least privilege, tried: what a task's command finds in its environment, and what each role is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, get_args

import psutil
import psycopg2
import pytest
import yaml
from psycopg2.errors import InsufficientPrivilege
from support import Stack

from storage import roles, warehouse
from storage.documents import Documents
from storage.errors import Problem
from storage.objects import Objects
from storage.settings import Role, checkout, from_variables

ROLES = get_args(Role)

# What a role's process may hold of the stores, beside where the pages are.
POSTGRES = {f"LYREBIRD_POSTGRES_{name}" for name in ("HOST", "PORT", "DATABASE", "USER", "PASSWORD")}
S3 = {f"LYREBIRD_S3_{name}" for name in ("ENDPOINT", "ACCESS_KEY", "SECRET_KEY", "REGION")}
MONGO = {"LYREBIRD_MONGO_URL", "LYREBIRD_MONGO_DATABASE"}
MLFLOW = {f"LYREBIRD_MLFLOW_{name}" for name in ("URL", "USER", "PASSWORD")}
AIRFLOW = {f"LYREBIRD_AIRFLOW_{name}" for name in ("URL", "USER", "PASSWORD")}
CACHE, STREAM = {"LYREBIRD_CACHE_URL"}, {"LYREBIRD_STREAM_URL"}
HELD = {
    "admin": POSTGRES | S3 | MONGO | CACHE | STREAM | MLFLOW | AIRFLOW,
    "loader": POSTGRES | S3 | MONGO | CACHE | STREAM,
    "transformer": POSTGRES | S3,
    "trainer": POSTGRES | S3 | CACHE | MLFLOW,
    "analyst": POSTGRES,
}
ALWAYS = {"LYREBIRD_ROLE", "LYREBIRD_HOME", "LYREBIRD_SECRETS", "LYREBIRD_PAGES_URL"}

# Runs at the start of every Python that has this file's folder on its path, before the command itself.
DUMP = """
import json, os
with open(os.environ["DUMP"], "w") as out:
    json.dump(dict(os.environ), out)
"""
SLEEP = """
import os, time
with open(os.environ["DUMP"], "w") as out:
    out.write(str(os.getpid()))
time.sleep(60)
"""


def spied(folder: Path, code: str) -> dict[str, str]:
    (folder / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": str(folder), "DUMP": str(folder / "dump")}


@pytest.mark.parametrize("role", ROLES)
def test_a_command_finds_its_own_credentials_and_no_others(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: Role
) -> None:
    lying_about = {
        "LYREBIRD_POSTGRES_PASSWORD": "of-another", "LYREBIRD_AIRFLOW_PASSWORD": "of-another",
        "PGPASSWORD": "of-another",
        "AWS_SECRET_ACCESS_KEY": "of-another", "MLFLOW_TRACKING_PASSWORD": "of-another",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "postgresql://of-another@x", "LYREBIRD_ROLE": "admin",
    }  # fmt: skip
    for name, value in lying_about.items():
        monkeypatch.setenv(name, value)
    extra = spied(tmp_path, DUMP)
    roles.run(role, ["--help"], extra, say=lambda line: None)
    found = json.loads((tmp_path / "dump").read_text())

    assert found["LYREBIRD_ROLE"] == role
    assert {name for name in found if name.startswith("LYREBIRD_")} == HELD[role] | ALWAYS
    assert "of-another" not in json.dumps(found)
    assert found["DO_NOT_TRACK"] == "1"
    passwords = json.loads((stack.home / "secrets" / "stack.json").read_text())
    text = json.dumps(found)
    seen = {name for name, password in passwords.items() if password in text}
    servers = {"POSTGRES": "postgres", "S3": "objects", "MONGO": "documents", "CACHE": "cache", "STREAM": "stream"}
    own = {f"{server}_{role}" for word, server in servers.items() if any(word in name for name in HELD[role])}
    own |= {"admin": {"ui"}, "trainer": {"mlflow_trainer"}}.get(role, set())
    assert seen == own


def test_a_store_that_is_not_the_roles_business_is_absent(stack: Stack) -> None:
    for role in ("transformer", "trainer", "analyst"):
        with pytest.raises(Problem, match="no LYREBIRD_MONGO_URL for the role"):
            Documents(stack.settings(role))  # type: ignore[arg-type]
    with pytest.raises(Problem, match="no LYREBIRD_S3_ENDPOINT"):
        Objects(stack.settings("analyst"))


def test_a_failed_command_is_told_in_its_own_last_words(stack: Stack) -> None:
    said: list[str] = []
    with pytest.raises(Problem, match=r"`lyrebird ingest nosuch` failed: there is no source nosuch\. There are: "):
        roles.run("loader", ["ingest", "nosuch"], say=said.append)
    assert said[-1].startswith("lyrebird: there is no source nosuch")


# Only Linux tells a child that its parent was killed.
ENDS = [signal.SIGTERM, *([signal.SIGKILL] if sys.platform == "linux" else [])]


@pytest.mark.parametrize("number", ENDS)
def test_a_command_ends_with_the_task_that_ran_it(stack: Stack, tmp_path: Path, number: signal.Signals) -> None:
    extra = spied(tmp_path, SLEEP)
    task = subprocess.Popen(
        [sys.executable, "-c", f"from storage import roles; roles.run('loader', ['ledger'], {extra!r})"]
    )
    dump, deadline = tmp_path / "dump", time.monotonic() + 30
    while not (dump.exists() and dump.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    command = psutil.Process(int(dump.read_text()))
    task.send_signal(number)
    task.wait(15)
    psutil.wait_procs([command], timeout=10)
    assert not command.is_running()


# ---------------------------------------------------------------- PostgreSQL

# r select, i insert, u update, d delete, t truncate, c create a table in the schema, x drop the table
TABLES = {
    "raw.probe": {"loader": "riudtcx", "transformer": "r"},
    "staging.probe": {"transformer": "riudtcx"},
    "core.probe": {"transformer": "riudtcx"},
    "marts.probe": {"transformer": "riudtcx", "trainer": "r", "analyst": "r"},
    "marts_next_probe.probe": {"transformer": "riudtcx"},
    "ops.load": {"loader": "riud", "transformer": "r", "trainer": "r"},
    "ops.cursor": {"loader": "riud", "transformer": "r", "trainer": "r"},
    "ops.landing": {"loader": "rid", "transformer": "r", "trainer": "r"},
    "ops.quarantine": {"loader": "riud", "transformer": "r", "trainer": "r"},
    "ops.audit": {"loader": "riu", "transformer": "ri", "trainer": "r"},
    "ops.publication": {"loader": "r", "transformer": "rid", "trainer": "r"},
    "ml.split_group": {"transformer": "ri", "trainer": "r"},
    "ml.dataset": {"transformer": "r", "trainer": "riud"},
    "ml.withdrawn": {"transformer": "r", "trainer": "r"},
    "ml.score": {"transformer": "r", "trainer": "riud"},
    "ml.promotion": {"transformer": "r", "trainer": "riud"},
    "ml.prediction": {"transformer": "r", "trainer": "riud"},
    "public.probe": {},
}


@pytest.fixture(scope="module")
def tables(stack: Stack) -> Iterator[None]:
    """A table in each schema, made by its owner."""
    made = (("loader", ["raw"]), ("transformer", ["staging", "core", "marts", "marts_next_probe"]))
    for role, schemas in made:
        with closing(warehouse.connect(stack.settings(role))) as db, db, db.cursor() as sql:  # type: ignore[arg-type]
            for schema in schemas:
                if schema == "marts_next_probe":
                    sql.execute("create schema marts_next_probe")
                sql.execute(f"create table {schema}.probe (a int)")
    with closing(warehouse.connect(stack.settings("admin"))) as db, db, db.cursor() as sql:
        sql.execute("create table public.probe (a int)")
    yield
    for role, schemas in made:
        with closing(warehouse.connect(stack.settings(role))) as db, db, db.cursor() as sql:  # type: ignore[arg-type]
            for schema in schemas:
                sql.execute(
                    "drop schema marts_next_probe cascade" if "next" in schema else f"drop table {schema}.probe"
                )
    with closing(warehouse.connect(stack.settings("admin"))) as db, db, db.cursor() as sql:
        sql.execute("drop table public.probe")


def allowed(db: Any, statement: str) -> bool:
    """Whether the role may do it; whatever it did is undone."""
    try:
        with db.cursor() as sql:
            sql.execute(statement)
    except InsufficientPrivilege:
        return False
    except psycopg2.Error:
        return True  # a constraint objects, and not the rights
    finally:
        db.rollback()
    return True


@pytest.mark.parametrize("role", [role for role in ROLES if role != "admin"])
def test_each_role_may_do_in_the_warehouse_what_it_needs_and_no_more(stack: Stack, tables: None, role: Role) -> None:
    found = {}
    with closing(warehouse.connect(stack.settings("admin"))) as db, db.cursor() as sql:
        sql.execute("select table_schema || '.' || table_name, column_name from information_schema.columns")
        columns = dict(sql.fetchall())
    with closing(warehouse.connect(stack.settings(role))) as db:
        for table in TABLES:
            schema, column = table.split(".")[0], columns[table]
            attempts = {
                "r": f"select {column} from {table} limit 1",
                "i": f"insert into {table} default values",
                "u": f"update {table} set {column} = default where false",
                "d": f"delete from {table} where false",
                "t": f"truncate {table}",
                "c": f"create table {schema}.probe_of_{role} (a int)",
                "x": f"drop table {table}",
            }
            found[table] = "".join(letter for letter, statement in attempts.items() if allowed(db, statement))
    assert found == {table: rights.get(role, "") for table, rights in TABLES.items()}


FORBIDDEN = {
    "become another role": "set role {other}",
    "make a role": "create role intruder login superuser",
    "raise itself": "alter role {role} superuser",
    "read passwords": "select rolpassword from pg_authid",
    "read files": "select pg_read_file('/etc/passwd')",
    "run programs": "copy (select 1) to program 'true'",
    "change settings": "alter system set fsync = off",
    "make a database": "create database mine",
    "end the connections of others": "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'admin'",
    "drop a schema of the platform": "drop schema ops cascade",
    "act as the server's owner": "set session authorization postgres",
    "list folders": "select pg_ls_dir('/')",
    "write files": "copy (select 1) to '/tmp/mine'",
    "bring files in": "select lo_import('/etc/passwd')",
    "reach other servers": "create extension dblink",
    "load code": "create function mine() returns int language c as '/tmp/mine', 'mine'",
    "raise the limit of its connections": "alter role {role} connection limit -1",
    "lift the timeout of everybody": "alter database lyrebird set statement_timeout = 0",
    "lock the marts of readers": "lock table marts.probe in access exclusive mode",
    "follow all changes": "create publication mine for all tables",
}
OF_ITS_OWN = {"lock the marts of readers": "transformer"}  # who made the marts may


@pytest.mark.parametrize("role", [role for role in ROLES if role != "admin"])
def test_no_role_can_leave_its_place(stack: Stack, tables: None, role: Role) -> None:
    other = "transformer" if role != "transformer" else "loader"
    keeper = warehouse.connect(stack.settings("admin"))
    with closing(keeper), closing(warehouse.connect(stack.settings(role))) as db:
        for what, statement in FORBIDDEN.items():
            db.autocommit = what in ("make a database", "change settings")  # never in a transaction
            done = allowed(db, statement.format(role=role, other=other))
            assert done == (OF_ITS_OWN.get(what) == role), what
        db.autocommit = False
        assert allowed(db, "create schema mine") == (role == "transformer")
        assert allowed(db, "create temporary table mine (a int)") == (role != "analyst")


def test_what_a_role_makes_later_is_closed_to_the_others_too(stack: Stack) -> None:
    with closing(warehouse.connect(stack.settings("transformer"))) as db, db, db.cursor() as sql:
        sql.execute("create schema marts_probe_v1")
        sql.execute("create table marts_probe_v1.fct (a int)")
        sql.execute("create view marts.fct_probe as select * from marts_probe_v1.fct")
    try:
        for role in ("analyst", "trainer"):
            with closing(warehouse.connect(stack.settings(role))) as db:  # type: ignore[arg-type]
                assert allowed(db, "select * from marts.fct_probe"), role
                assert not allowed(db, "select * from marts_probe_v1.fct"), role
                assert not allowed(db, "insert into marts.fct_probe values (1)"), role
        with closing(warehouse.connect(stack.settings("loader"))) as db:
            assert not allowed(db, "select * from marts.fct_probe")
    finally:
        with closing(warehouse.connect(stack.settings("transformer"))) as db, db, db.cursor() as sql:
            sql.execute("drop schema marts_probe_v1 cascade")


def test_the_budget_of_a_role_ends_with_a_sentence_and_leaves_the_others_theirs(stack: Stack) -> None:
    with closing(warehouse.connect(stack.settings("admin"))) as db, db.cursor() as sql:
        sql.execute("select rolname, rolconnlimit from pg_roles where rolname = any(%s)", (list(ROLES),))
        limits = dict(sql.fetchall())
        sql.execute("select current_setting('max_connections')::int")
        (most,) = warehouse.first(sql)
    assert limits.pop("admin") == -1  # who mends gets in
    assert all(limit > 0 for limit in limits.values())
    airflow, mlflow, reserved, spare = 4 * (3 + 7), 4, 3, 6  # pools of Airflow's four processes and of MLflow
    assert sum(limits.values()) + airflow + mlflow + reserved + spare <= most
    compose = yaml.safe_load((checkout() / "docker-compose.yml").read_text())["services"]["postgres"]["command"]
    assert int(compose[-1].removeprefix("max_connections=")) >= most
    with ExitStack() as held:
        for _ in range(limits["transformer"]):
            held.enter_context(closing(warehouse.connect(stack.settings("transformer"))))
        with pytest.raises(Problem, match=r"no connection left for transformer: .*too many connections for role"):
            warehouse.connect(stack.settings("transformer"))
        for role in ("loader", "trainer", "analyst"):
            warehouse.connect(stack.settings(role)).close()  # type: ignore[arg-type]
    warehouse.connect(stack.settings("transformer")).close()


def test_a_statement_of_the_analyst_ends_by_itself_and_so_does_a_transaction_left_open(stack: Stack) -> None:
    with closing(warehouse.connect(stack.settings("analyst"))) as db, db.cursor() as sql:
        for name in ("statement_timeout", "idle_in_transaction_session_timeout"):
            sql.execute("select setting::int, source from pg_settings where name = %s", (name,))
            milliseconds, source = warehouse.first(sql)
            assert 0 < milliseconds <= 600_000
            assert source == "user"  # from the role, not from this session
        sql.execute("set statement_timeout = '50ms'")
        with pytest.raises(psycopg2.errors.QueryCanceled):
            sql.execute("select pg_sleep(5)")


# ---------------------------------------------------------------- objects

# r get, w put, d delete, l list
BUCKETS = {
    "landing": {"loader": "rwdl"},
    "derived": {"loader": "rwdl", "trainer": "rl"},
    "datasets": {"trainer": "rwdl"},
    "docs": {"loader": "rwdl", "transformer": "rwdl", "trainer": "rwdl", "pages": "rl"},
    "mlflow": {"mlflow": "rwdl"},
}


def identity(stack: Stack, name: str) -> Objects:
    if name in ROLES:
        return Objects(stack.settings(name))  # type: ignore[arg-type]
    secret = json.loads((stack.home / "secrets" / "stack.json").read_text())[f"objects_{name}"]
    endpoint = stack.settings("loader").s3_endpoint
    keys = {"LYREBIRD_S3_ENDPOINT": endpoint, "LYREBIRD_S3_ACCESS_KEY": name, "LYREBIRD_S3_SECRET_KEY": secret}
    return Objects(from_variables(keys))


@pytest.mark.parametrize("user", ["loader", "transformer", "trainer", "pages", "mlflow"])
def test_each_identity_keeps_to_its_buckets(stack: Stack, user: str) -> None:
    objects, admin = identity(stack, user), Objects(stack.settings("admin"))
    found = {}
    for bucket in BUCKETS:
        admin.put(bucket, "probe/there", b"x")
        attempts: dict[str, Callable[[], Any]] = {
            "r": lambda bucket=bucket: objects.get(bucket, "probe/there"),
            "w": lambda bucket=bucket: objects.put(bucket, f"probe/by-{user}", b"x"),
            "d": lambda bucket=bucket: objects.delete(bucket, "probe/there"),
            "l": lambda bucket=bucket: list(objects.list(bucket, "probe/")),
        }
        found[bucket] = ""
        for letter, attempt in attempts.items():
            try:
                attempt()
            except Problem as problem:
                assert "AccessDenied" in str(problem) or "Forbidden" in str(problem), problem
            else:
                found[bucket] += letter
        for key in list(admin.list(bucket, "probe/")):
            admin.delete(bucket, key)
    assert found == {bucket: rights.get(user, "") for bucket, rights in BUCKETS.items()}


def test_passwords_are_not_in_the_environment_of_the_tests_themselves(stack: Stack) -> None:
    # what the tests above compare with would otherwise prove nothing
    passwords = json.loads((stack.home / "secrets" / "stack.json").read_text())
    assert not [name for name, value in os.environ.items() if value in passwords.values()]
