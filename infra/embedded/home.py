"""The state folder: where things lie, which ports and passwords this installation has, and who may work on it now.

Layout, all of it private to the person who started the stack::

    data/<server>      what the servers keep            secrets/<role>.env   credentials of one role, dotenv
    logs/<program>.log rotated logs                     secrets/stack.json   every generated password
    run/<program>/     working folder of one program    ports.json           the ports of this installation
    airflow/           AIRFLOW_HOME                     run/lock             one `up` or `down` at a time
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import random
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Collection, Container, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from storage.errors import Problem

Progress = Callable[[str], None]

# Ports people see; each can be set with LYREBIRD_PORT_<NAME>.
DEFAULT_PORTS = {
    "postgres": 15432,
    "cache": 16379,
    "stream": 16380,
    "documents": 17017,
    "objects": 18333,
    "mlflow": 15000,
    "airflow": 18080,
    "pages": 18090,
}
# Ports that only the object server's own parts use.
INNER_PORTS = tuple(
    f"objects_{part}" for part in ("s3_grpc", "master", "master_grpc", "volume", "volume_grpc", "filer", "filer_grpc")
)
# Below the range from which systems take the ports of outgoing connections: a port chosen here stays free.
FREE_PORTS = range(20000, 32000)

PASSWORDS = (
    "ui",
    "supervisor",
    *(f"postgres_{user}" for user in ("postgres", "admin", "loader", "transformer", "trainer", "analyst")),
    *(f"postgres_{user}" for user in ("airflow", "mlflow")),
    *(f"cache_{user}" for user in ("admin", "loader", "trainer")),
    *(f"stream_{user}" for user in ("admin", "loader", "watcher")),
    *(f"documents_{user}" for user in ("admin", "loader")),
    *(f"objects_{user}" for user in ("admin", "loader", "transformer", "trainer", "mlflow", "pages")),
    *(f"weed_{key}" for key in ("signing", "signing_read", "filer_signing", "filer_signing_read")),
    "mlflow_trainer",
    "mlflow_key",
    "airflow_key",
    "airflow_jwt",
)

# signing keys, longer than what a person may have to type
KEYS = ("airflow_key", "airflow_jwt", "mlflow_key")

LEAST_FREE_BYTES = 2 * 1024**3
LONGEST_SOCKET_PATH = 100  # the kernel's limit is 104 (macOS) or 108 (Linux)


@dataclass(frozen=True)
class Home:
    """The state folder of one installation."""

    root: Path

    @classmethod
    def at(cls, root: Path | str) -> Home:
        return cls(Path(root).expanduser().absolute())

    def data(self, server: str) -> Path:
        return self.root / "data" / server

    def run(self, program: str) -> Path:
        return self.root / "run" / program

    def log(self, program: str) -> Path:
        return self.root / "logs" / f"{program}.log"

    @property
    def secrets(self) -> Path:
        return self.root / "secrets"

    @property
    def airflow(self) -> Path:
        return self.root / "airflow"

    def make(self) -> None:
        """Make the folders. As root, another user owns the database: it may pass through, and see nothing."""
        pass_through = 0o711 if os.geteuid() == 0 else 0o700
        try:
            for folder, mode in (
                (self.root, pass_through),
                (self.root / "data", pass_through),
                (self.root / "run", pass_through),
                (self.root / "logs", 0o700),
                (self.root / "logs" / "airflow", 0o700),
                (self.secrets, 0o700),
                (self.airflow, 0o700),
            ):
                folder.mkdir(mode=mode, parents=True, exist_ok=True)
                folder.chmod(mode)
        except OSError as error:
            raise Problem(
                f"cannot write the state folder {self.root}: {error.strerror}",
                "Set LYREBIRD_HOME to a folder of yours, or give this one back to yourself",
            ) from error

    def check_space(self) -> None:
        """Refuse to start servers on a disk that is nearly full: databases stop in the middle of a write there."""
        place = next(folder for folder in (self.root, *self.root.parents) if folder.exists())
        free = shutil.disk_usage(place).free
        if free < LEAST_FREE_BYTES:
            raise Problem(
                f"only {free / 1024**3:.1f} GB are free on the disk of {self.root}, and the stack needs 2",
                "Free some space there, or set LYREBIRD_HOME to a folder on another disk",
            )

    def socket(self, name: str) -> Path:
        """A place for a Unix socket: in the state folder, or in a private temporary one when that path is too long."""
        path = self.root / "run" / f"{name}.sock"
        if len(str(path)) <= LONGEST_SOCKET_PATH:
            return path
        mark = hashlib.sha256(str(self.root).encode()).hexdigest()[:12]
        folder = Path(tempfile.gettempdir()) / f"lyrebird-{os.geteuid()}-{mark}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.geteuid():
            raise Problem(f"{folder} belongs to somebody else", "Set LYREBIRD_HOME to a folder with a shorter path")
        folder.chmod(0o700)
        return folder / f"{name}.sock"

    @contextlib.contextmanager
    def lock(self, progress: Progress) -> Iterator[None]:
        """Be the only `up` or `down` of this installation; a second one says so and waits."""
        self.make()
        with (self.root / "run" / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                progress(f"Another command (process {file.read().strip() or '?'}) is at work on this stack; waiting.")
                fcntl.flock(file, fcntl.LOCK_EX)
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    # passwords

    def password(self, name: str) -> str:
        """A password that the first `up` made. Raises Problem before that."""
        known = self._known_passwords()
        if name not in known:
            raise Problem(f"there are no passwords in {self.secrets} yet", "Start the stack with `make up`")
        return known[name]

    def _known_passwords(self) -> dict[str, str]:
        path = self.secrets / "stack.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def passwords(self) -> dict[str, str]:
        """Every password of this installation, made once. Only letters, digits, ``-`` and ``_``: safe in any URL."""
        path, known = self.secrets / "stack.json", self._known_passwords()
        missing = [name for name in PASSWORDS if name not in known]
        if missing:
            known |= {name: secrets.token_urlsafe(48 if name in KEYS else 24) for name in missing}
            write_private(path, json.dumps(known, indent=1))
        if "airflow_fernet" not in known:
            from cryptography.fernet import Fernet

            known["airflow_fernet"] = Fernet.generate_key().decode()
            write_private(path, json.dumps(known, indent=1))
        return known

    # ports

    def ports(self) -> dict[str, int]:
        """The ports as last chosen; empty before the first `up`."""
        path = self.root / "ports.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def choose_ports(self, ours: Container[int], wanted: Collection[str], progress: Progress) -> dict[str, int]:
        """Settle the port of every server, and remember it.

        ``ours``: ports on which servers of this installation listen now. ``wanted``: servers about to start; only
        theirs are spoken about. The order is: the variable, the port of last time, the default, any free one.
        Raises Problem when a port that somebody set is taken.
        """
        before = self.ports()
        chosen: dict[str, int] = {}
        for name in (*DEFAULT_PORTS, *INNER_PORTS):
            server = name.partition("_")[0]
            port = asked_port(name)
            if port is not None:
                if server in wanted and not is_free(port) and port not in ours:
                    variable = f"LYREBIRD_PORT_{name.upper()}"
                    raise Problem(
                        f"port {port}, which {variable} asks for, is taken{holder(port)}",
                        f"End that program, or set {variable} to another port",
                    )
            else:
                port = before.get(name) or DEFAULT_PORTS.get(name)
                taken = port is None or port in chosen.values() or not (is_free(port) or port in ours)
                if port is None or taken:
                    free = random_free(avoid={*chosen.values(), *before.values(), *DEFAULT_PORTS.values()})
                    if port is not None and server in wanted and name in DEFAULT_PORTS:
                        progress(f"Port {port} is taken{holder(port)}: {name} uses {free} instead.")
                    port = free
            chosen[name] = port
        if chosen != before:
            write_private(self.root / "ports.json", json.dumps(chosen, indent=1))
        return chosen


def asked_port(name: str) -> int | None:
    """The port that ``LYREBIRD_PORT_<NAME>`` asks for."""
    variable = f"LYREBIRD_PORT_{name.upper()}"
    text = os.environ.get(variable, "").strip()
    if not text:
        return None
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise Problem(f"{variable} is {text!r}, which is no port", "Give a number from 1024 to 65535, or unset it")
    return int(text)


_kept: list[socket.socket] = []  # of random_free: closed when the process ends


def is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free to a server
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def random_free(avoid: Collection[int]) -> int:
    """A free port that is not in ``avoid``, kept from others who look for one until this process ends.

    A server takes seconds to listen. Until then a socket of ours is bound to its port: a server may listen beside it
    (both set SO_REUSEADDR, and ours does not listen), while whoever looks for a free port in this way finds it taken.
    """
    for port in random.sample(FREE_PORTS, k=500):
        if port in avoid:
            continue
        kept = socket.socket()
        try:
            kept.bind(("127.0.0.1", port))
        except OSError:
            kept.close()
            continue
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _kept.append(kept)
        return port
    raise Problem("no free port could be found between 20000 and 32000", "End some of the programs that listen there")


def holder(port: int) -> str:
    """Who listens on this port, as far as this user may know: `` by postgres (process 17)`` or nothing."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    return ""


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step, readable by its owner only."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
