"""Run commands and keep what they printed, with times and memory, as a page of `docs/evidence`:

    python -m infra.evidence.record docs/evidence/run.md 'make install' 'make run' 'make run'

Each command is a line of shell, run in the checkout. Beside its output the page tells how long it took, its exit code,
and the most memory that the installation (its servers, tasks and the command) held meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil

from storage.settings import checkout, home

KEPT = 120  # lines of output; of more the middle is left out
EVERY = 1.0  # seconds between two looks at the memory


class Memory(threading.Thread):
    """The most memory that the installation and this command hold together, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(EVERY):
            self.most = max(self.most, memory())


def memory() -> int:
    """Bytes held now by the supervisor's descendants and ours; what they share counts once (PSS)."""
    total = 0
    pidfile = home() / "run" / "supervisord.pid"
    roots = {os.getpid(), int(pidfile.read_text()) if pidfile.exists() else os.getpid()}
    for root in filter(psutil.pid_exists, roots):
        for process in psutil.Process(root).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                total += getattr(process.memory_full_info(), "pss", 0) or process.memory_info().rss
    return total


def record(command: str) -> str:
    """Run one command; its section of the page."""
    print(f"$ {command}", flush=True)
    watch, begin = Memory(), time.monotonic()
    watch.start()
    lines: list[str] = []
    with subprocess.Popen(
        ["/bin/sh", "-c", command],
        cwd=checkout(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
    ) as child:
        for line in child.stdout or ():
            print(line, end="", flush=True)
            lines.append(anonymous(line.rstrip()))
    took = time.monotonic() - begin
    watch.over.set()
    watch.join()
    if len(lines) > KEPT:
        half = KEPT // 2
        lines = [*lines[:half], f"… {len(lines) - KEPT:,} lines left out …", *lines[-half:]]
    facts = f"{int(took) // 60}:{int(took) % 60:02} min, exit code {child.returncode}"
    facts += f", load average {os.getloadavg()[1]:.1f}"
    if watch.most:
        facts += f", at most {watch.most / 1e9:.1f} GB of memory"
    return f"## `{command}`\n\n{facts}\n\n```text\n" + "\n".join(lines) + "\n```\n"


def anonymous(line: str) -> str:
    """Without the folders of this machine and without colours."""
    line = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line)
    for folder, name in ((checkout(), "."), (Path.home(), "~"), (checkout().parent, "..")):
        line = line.replace(str(folder), name)
    return line


def main(page: Path, commands: list[str]) -> None:
    cpu = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine())
    head = (
        f"# {page.stem.replace('-', ' ').capitalize()}\n\n"
        f"Recorded by `python -m infra.evidence.record` on {datetime.now(UTC):%Y-%m-%d} as "
        f"{'root' if os.geteuid() == 0 else 'an ordinary user'}, on {os.cpu_count()} cores ({cpu}), "
        f"{psutil.virtual_memory().total / 2**30:.0f} GB of memory, {platform.system()}, "
        f"Python {platform.python_version()}.\n"
    )
    sections = [record(command) for command in commands]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join([head, *sections]), encoding="utf-8")


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
