"""What tests share besides fixtures: a handle on the embedded stack of the session."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from infra.embedded import probes
from infra.embedded import stack as embedded
from infra.embedded.home import Home, random_free
from infra.embedded.programs import SERVICES
from infra.embedded.supervision import Supervisor
from storage import roles, warehouse
from storage.documents import Documents
from storage.objects import Objects
from storage.settings import Role, Settings, for_role

STORES = ("postgres", "cache", "stream", "documents", "objects")

# Processes that can be killed at any moment, forked in milliseconds from one that has imported what takes long. It
# finds what can be imported from the checkout, and no module of tests.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        *("ingestion.pipeline", "ingestion.web", "ingestion.sources.field_recorder", "storage.gates.loads"),
        *("boto3.s3.inject", "pandas"),  # what boto3 and pyarrow import when they are first used
    ]
)


@dataclass
class Stack:
    """The embedded stack of this test session; servers start when a test first needs them."""

    home: Path
    started: set[str] = field(default_factory=set)

    def need(self, *services: str) -> None:
        """Start these (and what they need) unless they run."""
        if not self.started.issuperset(services):
            embedded.up(self.home, only=self.started | set(services), progress=print)
            self.started |= set(services)

    def spare(self) -> None:
        """Stop what a module before has needed beside the stores: Airflow alone takes a quarter of a core."""
        beside = self.started - set(STORES)
        if beside:
            programs = [name for one in beside for name in SERVICES[one].programs]
            Supervisor(Home.at(self.home)).stop(programs)
            self.started -= beside

    def settings(self, role: Role) -> Settings:
        return for_role(role)

    def reset(self) -> None:
        """Forget all data, so that a module of tests finds the stores as after the first `up`."""
        admin = self.settings("admin")
        with closing(warehouse.connect(admin)) as db, db, db.cursor() as sql:
            sql.execute(
                """
                select format('drop %s if exists %I.%I cascade',
                              case c.relkind when 'v' then 'view' else 'table' end, n.nspname, c.relname)
                from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
                where n.nspname in ('raw', 'staging', 'core', 'marts') and c.relkind in ('r', 'v')
                union all
                select format('drop schema %I cascade', nspname) from pg_namespace where nspname like 'marts\\_%'
                union all
                select format('truncate %I.%I', schemaname, tablename) from pg_tables
                where schemaname in ('ops', 'ml')
                """
            )
            for (statement,) in sql.fetchall():
                sql.execute(statement)
        objects = Objects(admin)
        for bucket in ("landing", "derived", "datasets"):
            keys = list(objects.list(bucket))
            for start in range(0, len(keys), 1_000):
                some = [{"Key": key} for key in keys[start : start + 1_000]]
                objects.client.delete_objects(Bucket=bucket, Delete={"Objects": some, "Quiet": True})
        documents = Documents(admin)
        for name in documents.database.list_collection_names():
            documents.database.drop_collection(name)
        for name in ("dbt", "runs", "models", "gx"):
            shutil.rmtree(self.home / name, ignore_errors=True)
        (self.home / "lyrebird.toml").unlink(missing_ok=True)


@contextmanager
def temporary_stack() -> Iterator[Stack]:
    """The stores, empty and migrated, in a temporary folder on free ports; ended afterwards."""
    home = Path(tempfile.mkdtemp(prefix="lyre-"))  # short: a socket's path may have 100 characters
    home.chmod(0o755)
    taken: set[int] = set()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("LYREBIRD_")]:
            patch.delenv(name)
        for name in ("POSTGRES", "CACHE", "STREAM", "DOCUMENTS", "OBJECTS", "MLFLOW", "AIRFLOW", "PAGES"):
            port = random_free(avoid=taken)
            taken.add(port)
            patch.setenv(f"LYREBIRD_PORT_{name}", str(port))
        patch.setenv("LYREBIRD_HOME", str(home))
        running = Stack(home)
        try:
            running.need(*STORES)
            for name in [name for name in os.environ if name.startswith("LYREBIRD_PORT_")]:
                patch.delenv(name)  # they are written down; other stacks that a test starts choose their own
            yield running
        finally:
            embedded.down(home)
            shutil.rmtree(home, ignore_errors=True)


def rotating_seed() -> int:
    """LYREBIRD_SEED, or a number that changes with the commit."""
    command = ["git", "rev-parse", "--short=7", "HEAD"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return int(os.environ.get("LYREBIRD_SEED") or int(done.stdout.strip() or "0", 16))


def until(true: Callable[[], Any], seconds: float = 420) -> Any:
    """Wait for something to become true, and give it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = true()
        if found:
            return found
        time.sleep(2)
    raise AssertionError("it did not happen in time")


@contextmanager
def another_database(stack: Stack, name: str, password: str) -> Iterator[sa.URL]:
    """A database of somebody else on the stack's server, with its owner of the same name; the address to it."""
    home = Home.at(stack.home)
    with closing(probes.connect_postgres(home.ports(), home.passwords())) as db:
        db.autocommit = True
        with db.cursor() as sql:
            sql.execute(f"drop database if exists {name} with (force)")
            sql.execute(f"drop role if exists {name}")
            sql.execute(f"create role {name} login password %s", (password,))
            sql.execute(f"create database {name} owner {name}")
            yield sa.URL.create("postgresql+psycopg2", name, password, "127.0.0.1", home.ports()["postgres"], name)
            sql.execute(f"drop database {name} with (force)")
            sql.execute(f"drop role {name}")


def start(*words: str) -> subprocess.Popen[str]:
    """The real command, under way."""
    return subprocess.Popen(
        [sys.executable, "-m", "infra.cli", *words],
        env=roles.environment("loader"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def lyrebird(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    child = start(*words)
    out, err = child.communicate(timeout=120)
    assert "Traceback" not in err, err
    return child.returncode, out, err


def refused(*words: str) -> str:
    """The one sentence of a command that fails."""
    code, out, err = lyrebird(*words)
    assert code == 1, err
    assert not out
    lines = err.strip().splitlines()
    assert [line.startswith("lyrebird: ") for line in lines] == [False] * (len(lines) - 1) + [True], err
    return lines[-1].removeprefix("lyrebird: ")
