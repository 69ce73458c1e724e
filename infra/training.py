"""Train a task's model in a process of its own, and file the run.

The training process needs the extra ``train`` and nothing else of the platform: here it is only started, on a frozen
version in the object store, and what it left in its run folder goes to MLflow.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from ml import registry, tasks
from ml.datasets import freeze, withdrawal
from storage.errors import Problem
from storage.settings import Settings, home, options

Say = Callable[[str], None]
DONE = "card.md"  # the last file that a training run writes


def train(
    name: str,
    version: str,
    preset: str,
    changes: list[str],
    settings: Settings,
    say: Say,
    *,
    withdrawn: bool = False,
    parent: str = "",
) -> dict[str, Any]:
    """Train task ``name`` on a frozen version (its newest without one) and import the run; a finished run stays.
    Each of ``changes`` is key=value, or several with spaces between. ``parent`` is the run of a sweep.

    Gives model, version number, dataset and whether it was trained now. Raises Problem when training fails, and for a
    version of which rows were withdrawn since, unless ``withdrawn`` asks for it.
    """
    task = tasks.task(name)
    frozen = freeze.show(version, settings) if version else freeze.newest(name, settings)
    if not withdrawn:
        withdrawal.refuse(frozen)
    given = options().get("train", {})
    preset = preset or given.get("preset") or task.preset
    changes = [one for change in changes for one in change.split()] or given.get("set", [])
    run = run_folder(name, frozen["version"], preset, changes)
    trained = not (run / DONE).is_file()
    if trained:
        argv = [sys.executable, "-m", f"ml.{task.family}.train", "--version", frozen["uri"], "--out", str(run)]
        argv += ["--preset", preset, *(word for change in changes for word in ("--set", change))]
        if (run / "checkpoint.pt").is_file():
            say(f"{name}: going on from the checkpoint in {run}")
            argv.append("--resume")
        reason = _run(argv)
        if reason:
            raise Problem(f"training {name} on {frozen['version']} failed: {reason}", f"Its folder: {run}")
    else:
        say(f"{name}: {frozen['version']} is trained already ({run})")
    return asdict(registry.import_run(run, settings, name, parent)) | {"dataset": frozen["version"], "trained": trained}


def _run(argv: list[str]) -> str:
    """Run the training with its output on stderr. Gives its last words when it failed, "" when it did not."""
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    last = ""
    for line in child.stdout or ():
        print(line, end="", file=sys.stderr, flush=True)
        last = line.strip() or last
    return f"{last} (exit code {child.returncode})" if child.wait() else ""


def run_folder(name: str, version: str, preset: str, changes: list[str]) -> Path:
    """Where a run lies: the same task, data and settings, the same folder."""
    suffix = "".join(f"-{change.replace('=', '_')}" for change in sorted(changes))
    return home() / "runs" / name / f"{version}-{preset}{suffix}"


def sweep(name: str, version: str, preset: str, changes: list[str], settings: Settings) -> list[dict[str, str]]:
    """The trainings of a sweep: every combination of the values that ``key=a,b`` gives a setting.

    Each is {"name", "version", "preset", "settings", "parent"}; the parent run is in MLflow. Raises Problem where
    nothing has two values.
    """
    task = tasks.task(name)
    frozen = freeze.show(version, settings) if version else freeze.newest(name, settings)
    withdrawal.refuse(frozen)
    given = [one.partition("=") for change in changes for one in change.split()]
    grid = {key: values.split(",") for key, _, values in given}
    if all(len(values) == 1 for values in grid.values()):
        raise Problem("a sweep needs a setting with several values", "Give --set learning_rate=0.001,0.002")
    preset = preset or task.preset
    combined = product(*([f"{key}={value}" for value in values] for key, values in grid.items()))
    title = f"sweep of {frozen['version']}, {preset}"
    parent = registry.begin_sweep(name, title, {key: ",".join(values) for key, values in grid.items()}, settings)
    shared = {"name": name, "version": frozen["version"], "preset": preset, "parent": parent}
    return [shared | {"settings": " ".join(one)} for one in combined]
