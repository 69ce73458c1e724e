"""An FTP server with a folder of files, on loopback: pyftpdlib, which is a real one, made to lose connections.

``said`` are answers of its own making to commands; ``listing`` is one to LIST and MLSD, and ``endless`` sends files and
listings for ever, in small pieces with a ``pause`` between.

By default (``faulty``) the first transfer of every file ends in its middle, and the server calls it complete all the
same (226, RFC 959); every other time the connection for commands is lost besides. ``at_cut`` is then called with its
path.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler, TLS_FTPHandler
from pyftpdlib.ioloop import IOLoop
from pyftpdlib.servers import FTPServer

USER, PASSWORD = "ann", "hunter/2@home"
LATER = ("MLSD", "MLST", "SIZE", "MDTM", "FEAT")


@dataclass
class Ftp:
    """The server's address, and what was asked of it."""

    host: str
    port: int
    faulty: bool = True
    commands: list[str] = field(default_factory=list)
    cut: set[str] = field(default_factory=set)
    said: dict[str, str] = field(default_factory=dict)
    listing: bytes | None = None
    endless: bytes = b""
    pause: float = 0.0
    at_cut: Callable[[Path], object] = lambda path: None


class _Endless:
    """A producer of the same bytes for ever."""

    def __init__(self, server: Ftp) -> None:
        self._server = server

    def more(self) -> bytes:
        time.sleep(self._server.pause)
        return self._server.endless


@contextmanager
def serve(folder: Path, *, faulty: bool = True, old: bool = False, certificate: str = "") -> Iterator[Ftp]:
    """Serve a folder to USER with PASSWORD; with ``old`` without what RFC 3659 added in 2007.

    With a ``certificate``, a PEM file that holds its key too, over TLS and not without.
    """
    base = TLS_FTPHandler if certificate else FTPHandler
    logging.getLogger("pyftpdlib").setLevel(logging.ERROR)
    people = DummyAuthorizer()
    people.add_user(USER, PASSWORD, str(folder), perm="elr")

    class Handler(base):  # type: ignore[misc, valid-type]
        authorizer = people
        certfile, tls_control_required, tls_data_required = certificate, True, True
        auth_failed_timeout = 0
        use_sendfile = False
        proto_cmds = {  # noqa: RUF012 - as its parent has it
            name: facts for name, facts in base.proto_cmds.items() if not old or name not in LATER
        }

        def pre_process_command(self, line: str, cmd: str, arg: str) -> None:
            server.commands.append(f"{cmd} {arg}".strip())
            if cmd in server.said:
                self.respond(server.said[cmd])
                return
            super().pre_process_command(line, cmd, arg)

        def push_dtp_data(self, data: Any, isproducer: bool = False, file: Any = None, cmd: Any = None) -> None:
            if server.endless:
                super().push_dtp_data(_Endless(server), True, None, cmd)
                return
            if server.listing is not None and file is None:
                super().push_dtp_data(server.listing, False, None, cmd)
                return
            if not server.faulty or file is None or file.name in server.cut:
                super().push_dtp_data(data, isproducer, file, cmd)
                return
            server.cut.add(file.name)
            half = file.read(Path(file.name).stat().st_size // 2)
            file.close()
            server.at_cut(Path(file.name))
            super().push_dtp_data(half or b" "[:0], cmd=cmd)
            if len(server.cut) % 2:
                self.close_when_done()

    running = FTPServer(("127.0.0.1", 0), Handler, ioloop=IOLoop())
    server = Ftp(*running.address[:2], faulty)
    stop = threading.Event()

    def loop() -> None:
        while not stop.is_set():
            running.serve_forever(timeout=0.05, blocking=False)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        stop.set()
        thread.join()
        running.close_all()
