"""`lyrebird run`, interrupted and with its servers and tasks killed, ends with the tables of an undisturbed run.

Two state folders get the same packaged sources and small trainings. In one nothing happens; in the other a seeded
sequence of Ctrl-C, SIGKILL of servers, of tasks and of the supervisor falls on it. Then marts, frozen versions and
scores are compared.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest

from infra.embedded import stack as embedded

SEED = 7
COMMAND = [sys.executable, "-m", "infra.cli"]
OPTIONS = '[train]\nset = ["steps=20", "warmup=5", "evaluate_every=10"]\n'
# What may differ between two runs: when something happened, and how often it was tried.
VOLATILE = {"timestamp with time zone", "interval"}


def lyrebird(home: Path, *words: str) -> subprocess.Popen[bytes]:
    """A command of the installation at `home`, in a group of its own, its output beside the state."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LYREBIRD_")}
    with (home.parent / f"{home.name}.out").open("ab") as out:
        return subprocess.Popen(
            [*COMMAND, *words], stdout=out, stderr=out, start_new_session=True,
            env=environment | {"LYREBIRD_HOME": str(home)},
        )  # fmt: skip


@contextmanager
def installation(folder: Path, name: str) -> Iterator[Path]:
    home = folder / name
    home.mkdir(mode=0o755)
    (home / "lyrebird.toml").write_text(OPTIONS)
    try:
        yield home
    finally:
        embedded.down(home)


def finish(home: Path) -> None:
    child = lyrebird(home, "run")
    code = child.wait(timeout=1800)
    output = (home.parent / f"{home.name}.out").read_text()
    assert code == 0, output[-3000:]


def admin(home: Path) -> psycopg2.extensions.connection:
    lines = (home / "secrets" / "admin.env").read_text().splitlines()
    said = dict(line.removeprefix("LYREBIRD_POSTGRES_").split("=", 1) for line in lines if "_POSTGRES_" in line)
    return psycopg2.connect(
        host=said["HOST"], port=said["PORT"], user=said["USER"], password=said["PASSWORD"], dbname="lyrebird"
    )


def outcome(home: Path) -> dict[str, Any]:
    """Checksums of every published table of the domains, the newest version of each dataset, the champions' scores."""
    found: dict[str, Any] = {}
    with closing(admin(home)) as db, db, db.cursor() as sql:
        sql.execute(
            "select unnest(marts) from (select distinct on (domain) * from ops.publication where domain <> 'platform' "
            "order by domain, version desc) as newest"
        )
        for (mart,) in sorted(sql.fetchall()):
            sql.execute(
                "select string_agg(quote_ident(column_name), ', ' order by column_name) "
                "from information_schema.columns "
                "where table_schema = 'marts' and table_name = %s and not data_type = any(%s)",
                (mart, list(VOLATILE)),
            )
            (columns,) = sql.fetchone() or ("",)
            sql.execute(
                f"select count(*), md5(coalesce(string_agg(md5(row({columns})::text), '' "
                f"order by md5(row({columns})::text)), '')) from marts.{mart}"
            )
            found[mart] = sql.fetchone()
        sql.execute("select distinct on (name) name, version, rows from ml.dataset order by name, made_at desc")
        found["datasets"] = sql.fetchall()
        sql.execute(
            "select distinct on (model, metric) model, metric, dataset_version, round(value::numeric, 9) from ml.score "
            "where split = 'valid' order by model, metric, model_version desc"
        )
        found["scores"] = sql.fetchall()
    return found


def victims(home: Path) -> dict[str, list[psutil.Process]]:
    """What may be killed: servers by their program, the supervisor, and the commands of tasks."""
    servers = [psutil.Process(one.pid) for one in embedded.status(home) if one.pid and psutil.pid_exists(one.pid)]
    found: dict[str, list[psutil.Process]] = {"server": servers, "task": [], "supervisor": []}
    for process in psutil.process_iter(["cmdline", "environ"]):
        line, environment = process.info["cmdline"] or [], process.info["environ"] or {}
        if environment.get("LYREBIRD_HOME") != str(home):
            continue
        if environment.get("LYREBIRD_ROLE") and "infra.cli" in line:
            found["task"].append(process)
        elif any(word.endswith("supervisord") for word in line) or "supervisor.supervisord" in line:
            found["supervisor"].append(process)
    return found


@pytest.mark.long
def test_a_run_that_is_interrupted_and_killed_ends_with_the_same_tables() -> None:
    chance = random.Random(SEED)
    folder = Path(tempfile.mkdtemp(prefix="lyre-"))
    folder.chmod(0o755)
    struck: list[dict[str, Any]] = []
    try:
        with installation(folder, "quiet") as home:
            finish(home)
            expected = outcome(home)
        with installation(folder, "struck") as home:
            for what in ("ctrl-c", "ctrl-c", "task", "server", "ctrl-c", "task", "server", "supervisor", "server"):
                child = lyrebird(home, "run")
                begun = time.monotonic()
                wait = chance.uniform(3, 90)
                while time.monotonic() - begun < wait and child.poll() is None:
                    time.sleep(0.2)
                if what == "ctrl-c":
                    os.killpg(child.pid, signal.SIGINT)
                    hit = "lyrebird run"
                else:
                    found = victims(home)[what]
                    end = time.monotonic() + 60
                    while not found and time.monotonic() < end and child.poll() is None:
                        time.sleep(0.2)
                        found = victims(home)[what]
                    if found:
                        process = chance.choice(sorted(found, key=lambda p: p.pid))
                        hit = " ".join(process.cmdline())[:160]
                        process.kill()
                    else:
                        hit = "nothing was there"
                    time.sleep(chance.uniform(0, 10))
                    os.killpg(child.pid, signal.SIGINT)
                code = child.wait(timeout=120)
                struck.append({"what": what, "after_s": round(wait, 1), "hit": hit, "code": code})
                print(json.dumps(struck[-1]))
            finish(home)
            assert outcome(home) == expected
            assert sum(one["hit"] != "nothing was there" for one in struck) >= 7, struck
    finally:
        shutil.rmtree(folder, ignore_errors=True)
