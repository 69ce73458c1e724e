"""The supervisor: supervisord, its private configuration, and the few calls we make to it.

supervisord restarts what dies and rotates logs. It runs as a daemon in a session of its own, so that Ctrl-C in the
terminal never reaches the servers. Programs start only when asked (`up` does it in order, with probes between).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from infra.embedded.home import Home, write_private
from infra.embedded.leftovers import end_leftovers
from storage.errors import Problem
from storage.roles import QUIET, past_proxies

Signal = Literal["SIGTERM", "SIGINT", "SIGQUIT", "SIGKILL"]

LOG_BYTES = "10MB"
LOG_BACKUPS = 3
ANSWER_SECONDS = 10.0


@dataclass(frozen=True)
class Program:
    """One process to keep alive: what to run, with which environment, and how to end it."""

    name: str
    argv: list[str]
    env: dict[str, str]
    cwd: str
    marks: list[str]  # folders in which only this program and its children work
    user: str | None = None  # whom to become when started by root
    last_signal: Signal = "SIGTERM"  # what the kernel sends when the supervisor dies
    stop_signal: Signal = "SIGTERM"
    stop_seconds: int = 8
    settings: str = ""  # digest of the files it reads: a change asks for a restart

    def spec(self) -> str:
        return json.dumps(asdict(self), indent=1)


def spec_file(home: Home, program: str) -> Path:
    return home.root / "run" / f"{program}.json"


def leash(home: Home, program: str) -> list[str]:
    """The command that starts a program out of its spec file."""
    return [sys.executable, "-m", "infra.embedded.leash", str(spec_file(home, program))]


def _quoted(value: object) -> str:
    """A value in supervisord's configuration, where % begins an expansion."""
    return str(value).replace("%", "%%")


class Supervisor:
    """The supervisord of one installation, running or not."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.config = home.root / "run" / "supervisord.conf"

    def _configuration(self, programs: Mapping[str, Program]) -> str:
        home = self.home
        password = home.passwords()["supervisor"]
        lines = [
            "[unix_http_server]",
            f"file={_quoted(home.socket('supervisor'))}",
            "chmod=0600",
            "username=lyrebird",
            f"password={password}",
            "[supervisord]",
            f"logfile={_quoted(home.log('supervisord'))}",
            f"logfile_maxbytes={LOG_BYTES}",
            f"logfile_backups={LOG_BACKUPS}",
            f"pidfile={_quoted(home.root / 'run' / 'supervisord.pid')}",
            f"directory={_quoted(home.run('supervisord'))}",
            f"childlogdir={_quoted(home.root / 'logs')}",
            "umask=077",
            "minfds=1024",
            "[rpcinterface:supervisor]",
            "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface",
        ]
        for name, program in programs.items():
            command = " ".join(f'"{_quoted(part)}"' for part in leash(home, name))
            lines += [
                f"[program:{name}]",
                f"command={command}",
                "autostart=false",
                "autorestart=true",
                "startsecs=1",
                "startretries=30",
                f"stopsignal={program.stop_signal.removeprefix('SIG')}",
                f"stopwaitsecs={program.stop_seconds}",
                "killasgroup=true",
                "redirect_stderr=true",
                f"stdout_logfile={_quoted(home.log(name))}",
                f"stdout_logfile_maxbytes={LOG_BYTES}",
                f"stdout_logfile_backups={LOG_BACKUPS}",
            ]
        return "\n".join(lines) + "\n"

    def _call(self, method: str, *arguments: object) -> Any:
        from supervisor.xmlrpc import SupervisorTransport

        transport = SupervisorTransport(
            "lyrebird", self.home.passwords()["supervisor"], f"unix://{self.home.socket('supervisor')}"
        )
        # the address is a formality of xmlrpc.client: the transport goes to the socket
        proxy = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport, allow_none=True)
        try:
            return getattr(proxy.supervisor, method)(*arguments)
        finally:
            transport.close()

    def states(self) -> dict[str, dict[str, Any]] | None:
        """What supervisord says of each program (``statename``, ``pid``, ``start``, …); None when it does not run."""
        try:
            return {info["name"]: info for info in self._call("getAllProcessInfo")}
        except (OSError, http.client.HTTPException, xmlrpc.client.Error):
            return None

    def ensure(self, programs: Mapping[str, Program], environment: Mapping[str, str]) -> None:
        """Have supervisord running with this configuration; recover from one that was killed."""
        wanted = self._configuration(programs)
        if self.states() is not None:
            if self.config.exists() and self.config.read_text() == wanted:
                return
            self.shut_down()
        self.sweep()
        write_private(self.config, wanted)
        for name in (*programs, "supervisord"):
            self.home.run(name).mkdir(mode=0o700, exist_ok=True)
        self.home.socket("supervisor").unlink(missing_ok=True)
        try:
            subprocess.run(
                [sys.executable, "-m", "supervisor.supervisord", "-c", str(self.config)],
                env=dict(environment),
                cwd=self.home.run("supervisord"),
                check=True,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=30,
                start_new_session=True,
                umask=0o077,
            )
        except subprocess.CalledProcessError as error:
            words = (error.stderr or error.stdout).strip().splitlines()
            raise Problem(f"the supervisor did not start: {words[-1] if words else 'no message'}") from error
        deadline = time.monotonic() + ANSWER_SECONDS
        while self.states() is None:
            if time.monotonic() > deadline:
                raise Problem(
                    f"the supervisor started and does not answer; its log is {self.home.log('supervisord')}",
                    "Run `lyrebird down`, then `lyrebird up` again",
                )
            time.sleep(0.05)

    def start(self, program: str) -> None:
        """Start a program unless it runs or is about to."""
        state = (self.states() or {}).get(program, {}).get("statename")
        if state in {"RUNNING", "STARTING"}:
            return
        if state in {"STOPPING", "BACKOFF"}:
            self.stop([program])
        try:
            self._call("startProcess", program, False)
        except xmlrpc.client.Fault as fault:
            if "ALREADY_STARTED" not in fault.faultString:
                raise Problem(f"{program} did not start: {fault.faultString}") from fault

    def stop(self, programs: list[str]) -> None:
        """Stop programs side by side; supervisord kills those that take longer than they may."""
        ended = {"STOPPED", "EXITED", "FATAL", "UNKNOWN"}
        deadline = time.monotonic() + 60
        asked: set[str] = set()
        while time.monotonic() < deadline:
            states = self.states()
            if states is None:
                return
            waiting = [name for name in programs if name in states and states[name]["statename"] not in ended]
            if not waiting:
                return
            for name in waiting:
                if name not in asked and states[name]["statename"] != "STOPPING":
                    asked.add(name)
                    try:
                        self._call("stopProcess", name, False)
                    except xmlrpc.client.Fault as fault:
                        if "NOT_RUNNING" not in fault.faultString:
                            raise
            time.sleep(0.1)

    def shut_down(self) -> None:
        """End supervisord and whatever it still runs, and what an earlier one left behind."""
        # it may not run, or end before it has answered: the sweep tells
        with contextlib.suppress(OSError, http.client.HTTPException, xmlrpc.client.Error):
            self._call("shutdown")
        deadline = time.monotonic() + 30
        while self.states() is not None and time.monotonic() < deadline:
            time.sleep(0.1)
        self.sweep()

    def sweep(self) -> int:
        """End processes of this installation that nobody supervises; returns how many there were."""
        return end_leftovers([self.home.root / "run", self.home.data("postgres"), self.home.data("postgres.new")])


def clean_environment() -> dict[str, str]:
    """What the servers get of the caller's environment: the basics and the way to the network; and telemetry off.

    The caller may stand in another project's environment, whose ``AIRFLOW__…``, ``PG…`` or ``AWS_…`` would leak in.
    """
    kept = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "VIRTUAL_ENV")
    network = ("http_proxy", "https_proxy", "all_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")
    names = {*kept, *network, *(name.upper() for name in network), "CUDA_VISIBLE_DEVICES"}
    ours = {name: os.environ[name] for name in names if name in os.environ}
    scripts = str(Path(sys.executable).parent)
    path = f"{scripts}{os.pathsep}{ours.get('PATH', os.defpath)}"
    return ours | QUIET | {"PATH": path} | past_proxies()
