"""One process, one role: run a command with the credentials of one role and no other in its environment.

Embedded mode separates roles, not users: every process of the installation belongs to the same person. Celery workers
and Kubernetes pods that mount one role's secrets isolate for real.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

from storage.errors import Problem
from storage.settings import Role, environment_of, home, secrets

# Everything that would phone home, off in every way of running.
QUIET = {
    "DO_NOT_TRACK": "1",
    "SCARF_NO_ANALYTICS": "true",
    "SCARF_ANALYTICS": "false",
    "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    "DBT_SEND_ANONYMOUS_USAGE_STATS": "False",
    "DBT_VERSION_CHECK": "False",
    "GX_ANALYTICS_ENABLED": "False",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_OFFLINE": "1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


# What a fresh environment keeps of the old one: nothing that could hold a credential.
KEPT = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "TZ", "VIRTUAL_ENV", "SSL_CERT_FILE", "SSL_CERT_DIR")
KEPT_OURS = ("LYREBIRD_HOME", "LYREBIRD_CHECKOUT", "LYREBIRD_OPTIONS", "LYREBIRD_SECRETS")


def past_proxies() -> dict[str, str]:
    """Variables that lead clients past any proxy to this machine, beside where they lead already."""
    others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = others if others == "*" else ",".join(filter(None, ["127.0.0.1,localhost", others]))
    return {"no_proxy": hosts, "NO_PROXY": hosts}


def environment(role: Role, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """A fresh environment: the basics, this role's credentials, telemetry off."""
    kept = {name: os.environ[name] for name in (*KEPT, *KEPT_OURS) if name in os.environ}
    scripts = str(Path(sys.executable).parent)
    if scripts not in kept.get("PATH", "").split(os.pathsep):
        kept["PATH"] = os.pathsep.join(filter(None, [scripts, kept.get("PATH", "")]))
    ours = {"LYREBIRD_HOME": str(home()), "LYREBIRD_SECRETS": str(secrets()), "PYTHONUNBUFFERED": "1"}
    return kept | QUIET | ours | environment_of(role) | dict(extra or {})


def assume(role: Role) -> None:
    """Take on a role in this very process, unless the environment belongs to it already."""
    if os.environ.get("LYREBIRD_ROLE") != role:
        for name in [name for name in os.environ if name.startswith("LYREBIRD_") and name not in KEPT_OURS]:
            del os.environ[name]
        os.environ.update(QUIET | environment_of(role))


def run(
    role: Role, command: Sequence[str], extra: Mapping[str, str] | None = None, say: Callable[[str], None] = print
) -> str:
    """Run ``lyrebird COMMAND…`` as ``role``; its output goes line by line to ``say`` and is returned.

    The child has a process group of its own, which ends with us: a task that Airflow stops takes its command along,
    and on Linux one that is killed does too.
    Raises Problem with the command's last words when it fails.
    """
    argv = [sys.executable, "-m", "infra.cli", *command]
    child = subprocess.Popen(
        argv,
        env=environment(role, extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509 - one system call, no lock
    )

    def stop(number: int, _frame: FrameType | None) -> None:
        _end_group(child)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    lines: list[str] = []
    try:
        for line in child.stdout or ():
            lines.append(line.rstrip("\n"))
            say(lines[-1])
        child.wait()
    finally:
        if child.poll() is None:
            _end_group(child)
        for number, handler in before.items():
            signal.signal(number, handler)
    if child.returncode:
        words = next((line for line in reversed(lines) if line.strip()), f"exit code {child.returncode}")
        raise Problem(f"`lyrebird {' '.join(command)}` failed: {words.removeprefix('lyrebird: ')}")
    return "\n".join(lines)


PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)  # found before the fork, after which little may be done


def _end_with_parent() -> None:
    """Ask the kernel to end this process when its parent is gone."""
    _LIBC.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))


def _end_group(child: subprocess.Popen[str]) -> None:
    for number, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        try:
            os.killpg(child.pid, number)
            child.wait(patience)
            return
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return
