"""`lyrebird run`, interrupted and with its servers and tasks killed, ends with the tables of an undisturbed run.

Two state folders get the same packaged sources and small trainings. In one nothing happens; in the other a seeded
sequence of Ctrl-C, SIGKILL of servers, of tasks and of the supervisor falls on it. Then marts, frozen versions and
scores are compared.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from installed import finish, installation, lyrebird, outcome, workplace

from infra.embedded import stack as embedded

SEED = 7
OPTIONS = '[train]\nset = ["steps=20", "warmup=5", "evaluate_every=10"]\n'


def victims(home: Path) -> dict[str, list[psutil.Process]]:
    """What may be killed: servers by their program, the supervisor, and the commands of tasks."""
    servers = [psutil.Process(one.pid) for one in embedded.status(home) if one.pid and psutil.pid_exists(one.pid)]
    pidfile = home / "run" / "supervisord.pid"
    supervisors = [psutil.Process(int(pidfile.read_text()))] if pidfile.exists() else []
    found: dict[str, list[psutil.Process]] = {"server": servers, "task": [], "supervisor": supervisors}
    for process in psutil.process_iter(["cmdline", "environ"]):
        line, environment = process.info["cmdline"] or [], process.info["environ"] or {}
        if environment.get("LYREBIRD_HOME") != str(home):
            continue
        if environment.get("LYREBIRD_ROLE") and "infra.cli" in line:
            found["task"].append(process)
    return found


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_run_that_is_interrupted_and_killed_ends_with_the_same_tables() -> None:
    chance = random.Random(SEED)
    struck: list[dict[str, Any]] = []
    with workplace() as folder:
        with installation(folder, "quiet", OPTIONS) as home:
            finish(home)
            expected = outcome(home)
        with installation(folder, "struck", OPTIONS) as home:
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
            assert {one["code"] for one in struck} <= {0, 1, 130}  # ended, a task that was killed failed, interrupted
            assert "Traceback" not in (folder / "struck.out").read_text()
