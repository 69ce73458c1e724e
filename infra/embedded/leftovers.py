"""Find and end processes of this installation that nobody supervises any more, and never anybody else's.

A process is ours when it works in one of the given folders (every program of the stack starts in a folder of its own
under ``run/``, and PostgreSQL moves into its data folder), belongs to this user or to the database's, and has no
terminal: a person's shell or editor that happens to stand in such a folder is left alone.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import psutil

PATIENCE = 3.0  # seconds between asking and killing


def leftovers(folders: Sequence[Path]) -> list[psutil.Process]:
    """Processes whose working folder is in one of ``folders``, and their descendants; never us or our ancestors."""
    me = psutil.Process()
    spared = {me.pid, *(parent.pid for parent in me.parents())}
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            if process.pid in spared or not _may_be_ours(process):
                continue
            place = Path(process.cwd().removesuffix(" (deleted)"))
            if not any(place == folder or folder in place.parents for folder in folders):
                continue
            for one in (process, *process.children(recursive=True)):
                if one.pid not in spared:
                    found[one.pid] = one
        except psutil.Error:
            continue
    return list(found.values())


def _may_be_ours(process: psutil.Process) -> bool:
    if process.terminal() is not None:
        return False
    return os.geteuid() in (0, process.uids().real)


def end_leftovers(folders: Sequence[Path]) -> int:
    """End them: PostgreSQL's way first (SIGINT to its parent process: roll back and stop), then by force.

    Returns how many there were.
    """
    processes = leftovers(folders)
    for process in processes:
        with_signal = signal.SIGINT if process_name(process) == "postgres" else signal.SIGTERM
        _send(process, with_signal)
    _, stubborn = psutil.wait_procs(processes, timeout=PATIENCE)
    for process in stubborn:
        _send(process, signal.SIGKILL)
    psutil.wait_procs(stubborn, timeout=PATIENCE)
    return len(processes)


def process_name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return ""


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.Error:
        return
