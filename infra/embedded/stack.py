"""Start, stop and describe the embedded stack."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import psutil

from infra.access import UI_USER
from infra.embedded import preparation, probes
from infra.embedded.home import Home, Progress, holder, is_free, write_private
from infra.embedded.preparation import Cancelled, last_line
from infra.embedded.programs import (
    SERVICES,
    STORES,
    Service,
    airflow_variables,
    all_programs,
    check_installed,
    object_server_sockets,
    write_roles,
)
from infra.embedded.supervision import Program, Supervisor, clean_environment, spec_file
from storage.errors import Problem
from storage.roles import QUIET

ALIVE = {"RUNNING", "STARTING", "BACKOFF"}
WEB = ("mlflow", "airflow", "pages")


@dataclass(frozen=True)
class ServiceStatus:
    """One program of the stack as it is now; ``None`` where there is nothing to tell."""

    name: str
    service: str
    state: str  # running, starting, stopped, failed
    pid: int | None
    port: int | None
    url: str | None
    healthy: bool
    cpu_seconds: float
    memory_mb: float
    uptime_s: float
    log: str


def _quiet(_text: str) -> None:
    return None


def up(home: Path | str, only: Iterable[str] | None = None, progress: Progress = _quiet) -> None:
    """Start what does not run and wait until all of it answers.

    ``only``: names of SERVICES (what they need comes along); everything by default. Safe to repeat, to interrupt, and
    to run twice at once. Raises Problem.
    """
    place = Home.at(home)
    services = _selection(only)
    check_installed()
    place.check_space()
    with place.lock(progress):
        for last in (False, False, True):
            try:
                _start(place, services, progress)
                return
            except PortLost as lost:
                if last:
                    raise
                progress(f"{lost.what}; choosing another.")


class PortLost(Problem):
    """Another program took a port between our choosing it and our server's listening on it."""


def _start(home: Home, services: list[Service], progress: Progress) -> None:
    supervisor = Supervisor(home)
    states = supervisor.states()
    if states is None and supervisor.sweep():
        progress("Ended what an earlier, killed stack had left running.")
    alive = {name: int(state["pid"]) for name, state in (states or {}).items() if state["statename"] in ALIVE}
    passwords = home.passwords()
    ports = home.choose_ports(_OurPorts(supervisor), {service.name for service in services}, progress)
    programs = all_programs(home, ports, passwords)
    write_roles(home, ports, passwords)
    supervisor.ensure(programs, clean_environment())
    changed = [name for name, program in programs.items() if not _same(spec_file(home, name), program.spec())]
    supervisor.stop(changed)
    again = {name for name in changed if name in alive}
    services = [one for one in SERVICES.values() if one in services or again.intersection(one.programs)]
    for name in changed:
        write_private(spec_file(home, name), programs[name].spec())
    stack = _Starter(home, supervisor, programs, ports, passwords, progress)
    stack.start(services)


def _family(pid: int) -> list[psutil.Process]:
    """A process and its descendants; empty when it is gone."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except (psutil.Error, ValueError):
        return []


def _listening(pids: Iterable[int]) -> set[int]:
    """The ports on which these processes and their descendants listen."""
    ports: set[int] = set()
    for process in (one for pid in pids if pid for one in _family(pid)):
        try:
            found = process.net_connections("tcp")
        except psutil.Error:
            continue
        ports |= {connection.laddr.port for connection in found if connection.status == psutil.CONN_LISTEN}
    return ports


class _OurPorts:
    """The ports on which what our supervisor started listens, looked up at each question.

    A server that was killed is started again while we ask: what was true a moment ago says nothing of its process.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor

    def __contains__(self, port: object) -> bool:
        states = self.supervisor.states() or {}
        return port in _listening(int(state["pid"]) for state in states.values())


def _same(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


def _selection(only: Iterable[str] | None) -> list[Service]:
    """The services asked for and what they need, in the order of SERVICES."""
    asked = list(SERVICES if only is None else only)
    unknown = [name for name in asked if name not in SERVICES]
    if unknown:
        raise Problem(f"there is no service {unknown[0]!r}", f"The services are {', '.join(SERVICES)}")
    wanted = {need for name in asked for need in SERVICES[name].needs} | set(asked)
    return [service for service in SERVICES.values() if service.name in wanted]


class _Starter:
    """One `up`: services start side by side as soon as what they need is ready."""

    def __init__(
        self,
        home: Home,
        supervisor: Supervisor,
        programs: Mapping[str, Program],
        ports: Mapping[str, int],
        passwords: Mapping[str, str],
        progress: Progress,
    ) -> None:
        self.home, self.supervisor, self.programs = home, supervisor, programs
        self.ports, self.passwords, self.progress = ports, passwords, progress
        self.cancelled = threading.Event()

    def start(self, services: list[Service]) -> None:
        waiting = {service.name: service for service in services}
        ready: set[str] = set()
        under_way: dict[Future[None], str] = {}
        with ThreadPoolExecutor(len(SERVICES)) as pool:
            try:
                while waiting or under_way:
                    for name in [name for name, service in waiting.items() if ready.issuperset(service.needs)]:
                        under_way[pool.submit(self._service, waiting.pop(name))] = name
                    finished, _ = wait(under_way, return_when=FIRST_COMPLETED)
                    for future in finished:
                        ready.add(under_way.pop(future))
                        future.result()
            except BaseException:
                self.cancelled.set()
                raise

    def _service(self, service: Service) -> None:
        try:
            self._bring_up(service)
        except (Problem, Cancelled):
            raise
        except Exception as error:
            log = self.home.log(service.programs[0])
            first = str(error).strip().partition("\n")[0] or type(error).__name__
            raise Problem(
                f"{service.name} could not be set up: {first} (log: {log})", "Run `lyrebird up` again"
            ) from error

    def _bring_up(self, service: Service) -> None:
        began = time.monotonic()
        home, ports, passwords = self.home, self.ports, self.passwords
        states = self.supervisor.states() or {}
        runs = all(states.get(name, {}).get("statename") == "RUNNING" for name in service.programs)
        if not runs:
            before: dict[str, Callable[[], None]] = {
                "postgres": lambda: preparation.prepare_postgres(home, passwords, self.progress, self.cancelled),
                "documents": lambda: preparation.prepare_documents(home, passwords, self.cancelled),
                "airflow": lambda: preparation.prepare_airflow(home, ports, passwords, self.progress, self.cancelled),
            }
            before.get(service.name, lambda: None)()
            for name in service.programs:
                self.supervisor.start(name)
        self._wait_until_ready(service)
        after: dict[str, Callable[[], None]] = {
            "postgres": lambda: preparation.settle_postgres(ports, passwords),
            "objects": lambda: preparation.settle_objects(ports, passwords),
            "mlflow": lambda: preparation.settle_mlflow(ports, passwords),
            "airflow": lambda: preparation.settle_airflow(ports, passwords),
        }
        after.get(service.name, lambda: None)()
        if not runs:
            self.progress(f"{service.name} is ready ({time.monotonic() - began:.0f} s).")

    def _wait_until_ready(self, service: Service) -> None:
        deadline = time.monotonic() + service.patience
        pause = 0.1
        while True:
            try:
                probes.PROBES[service.name](self.ports, self.passwords)
                return
            except Exception as error:
                reason = error
            states = self.supervisor.states() or {}
            self._check_port(service, [int(states.get(name, {}).get("pid", 0)) for name in service.programs])
            broken = [name for name in service.programs if states.get(name, {}).get("statename") == "FATAL"]
            if broken or time.monotonic() > deadline:
                name = broken[0] if broken else self._unwell(service)
                raise Problem(
                    f"{name} does not become ready: {last_line(self.home, name)} (log: {self.home.log(name)})",
                    "Mend what the log says and run `lyrebird up` again",
                ) from reason
            if self.cancelled.wait(pause):
                raise Cancelled
            pause = min(pause * 1.3, 1.0)

    def _check_port(self, service: Service, pids: list[int]) -> None:
        """Raise PortLost when somebody else listens where this service is about to."""
        port = self.ports[service.name]
        # asked twice: our own server may have begun to listen in between
        if not is_free(port) and port not in _listening(pids) and not is_free(port) and port not in _listening(pids):
            raise PortLost(
                f"Port {port} of {service.name} was taken{holder(port)} meanwhile", "Run `lyrebird up` again"
            )

    def _unwell(self, service: Service) -> str:
        if service.name == "airflow":
            try:
                return next(name for name, well in probes.airflow_health(self.ports).items() if not well)
            except (OSError, ValueError, StopIteration):
                pass
        return service.programs[0]


def down(home: Path | str, progress: Progress = _quiet) -> None:
    """Stop everything: first what uses the stores, then the stores, then the supervisor and any leftovers."""
    place = Home.at(home)
    if not place.root.exists():
        return
    with place.lock(progress):
        supervisor = Supervisor(place)
        if supervisor.states() is not None:
            users = [name for service in SERVICES.values() if service.name not in STORES for name in service.programs]
            supervisor.stop(users)
            supervisor.stop(list(STORES))
        supervisor.shut_down()
        if ports := place.ports():
            for path in object_server_sockets(ports):
                with contextlib.suppress(OSError):  # another user's, or gone
                    path.unlink()


def status(home: Path | str) -> list[ServiceStatus]:
    """How every program of the stack is doing, each service probed for real. Changes nothing."""
    place = Home.at(home)
    ports = place.ports()
    states = Supervisor(place).states() or {} if ports else {}
    running = [
        service
        for service in SERVICES.values()
        if any(states.get(name, {}).get("statename") in {"RUNNING", "STARTING"} for name in service.programs)
    ]
    passwords = place.passwords() if running else {}

    def health(service: Service) -> dict[str, bool]:
        if service.name == "airflow":
            try:
                probes.airflow_token(ports, passwords)
                return probes.airflow_health(ports)
            except (OSError, ValueError):
                return {}
        return {service.name: probes.well(service.name, ports, passwords)}

    healthy: dict[str, bool] = {}
    with ThreadPoolExecutor(len(SERVICES)) as pool:
        for result in pool.map(health, running):
            healthy |= result
    return [
        _describe(place, service, name, ports.get(service.name), states.get(name, {}), healthy.get(name, False))
        for service in SERVICES.values()
        for name in service.programs
    ]


def _describe(
    home: Home, service: Service, name: str, port: int | None, state: Mapping[str, object], healthy: bool
) -> ServiceStatus:
    names = {"RUNNING": "running", "STARTING": "starting", "BACKOFF": "starting", "FATAL": "failed"}
    # supervisord calls a program starting for its first second, whatever the probe says
    shown = "running" if healthy else names.get(str(state.get("statename")), "stopped")
    pid = int(str(state.get("pid") or 0)) or None
    cpu, memory, began = _measure(pid)
    port = port if service.programs[0] == name else None
    return ServiceStatus(
        name=name,
        service=service.name,
        state=shown,
        pid=pid,
        port=port,
        url=f"http://127.0.0.1:{port}" if port and service.name in (*WEB, "objects") else None,
        healthy=healthy,
        cpu_seconds=round(cpu, 2),
        memory_mb=round(memory / 1e6, 1),
        uptime_s=round(time.time() - began, 1) if began else 0.0,
        log=str(home.log(name)),
    )


def _measure(pid: int | None) -> tuple[float, int, float]:
    """CPU seconds and bytes of memory of a process and its descendants, and when it began.

    Memory that processes share, PostgreSQL's buffers and what forked workers began with, counts once where the system
    tells (PSS, on Linux).
    """
    if pid is None:
        return 0.0, 0, 0.0
    cpu, memory, began = 0.0, 0, 0.0
    for one in _family(pid):
        try:
            began = began or one.create_time()
            times = one.cpu_times()
            cpu += times.user + times.system
            memory += getattr(one.memory_full_info(), "pss", 0) or one.memory_info().rss
        except psutil.Error:
            continue
    return cpu, memory, began


def credentials(home: Path | str) -> tuple[str, str]:
    """User and password of the web pages: Airflow, MLflow and the documentation. Raises Problem before any `up`."""
    return UI_USER, Home.at(home).password("ui")


def airflow_environment(home: Path | str) -> dict[str, str]:
    """Variables with which the `airflow` command works on this installation by hand; they hold no secret."""
    return airflow_variables(Home.at(home)) | QUIET
