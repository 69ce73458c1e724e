"""An SFTP server with a folder of files, on loopback, out of paramiko: one user, one password, one host key.

By default (``faulty``) the first transfer of every file ends in its middle, with the whole connection.

``key`` is a public key by which the user comes in without the password (as ssh writes it in base64).

``size`` is what it says of every file; ``listing`` is a number of names that it makes up; each read takes ``pause``.
"""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paramiko

USER, PASSWORD = "ann", "hunter/2@home"


@dataclass
class Sftp:
    """The server's address, and the line that makes it known."""

    host: str
    port: int
    known: str
    faulty: bool = True
    cut: set[str] = field(default_factory=set)
    key: str = ""
    size: int | None = None
    listing: int = 0
    pause: float = 0.0


class _Door(paramiko.ServerInterface):  # type: ignore[misc]
    def __init__(self, server: Sftp, transport: paramiko.Transport) -> None:
        self._server, self.transport = server, transport

    def get_allowed_auths(self, _: str) -> str:
        return "password,publickey"

    def check_auth_publickey(self, username: str, key: Any) -> int:
        right = (username, key.get_base64()) == (USER, self._server.key)
        return int(paramiko.AUTH_SUCCESSFUL if right else paramiko.AUTH_FAILED)

    def check_auth_password(self, username: str, password: str) -> int:
        right = (username, password) == (USER, PASSWORD)
        return int(paramiko.AUTH_SUCCESSFUL if right else paramiko.AUTH_FAILED)

    def check_channel_request(self, *_: Any) -> int:
        return int(paramiko.OPEN_SUCCEEDED)


def _files(folder: Path, server: Sftp) -> Any:
    class Files(paramiko.SFTPServerInterface):  # type: ignore[misc]
        def __init__(self, door: _Door) -> None:
            self._door = door

        def _path(self, path: str) -> Path:
            return folder / self.canonicalize(path).lstrip("/")

        def _told(self, one: Any) -> Any:
            one.st_size = one.st_size if server.size is None else server.size
            return one

        def list_folder(self, path: str) -> Any:
            try:
                if server.listing:
                    same = paramiko.SFTPAttributes()
                    same.filename, same.st_mode, same.st_size = "x" * 200, stat.S_IFREG, 1
                    return [same] * server.listing
                found = []
                for name in os.listdir(self._path(path)):  # noqa: PTH208
                    one = paramiko.SFTPAttributes.from_stat(os.lstat(self._path(path) / name))
                    one.filename = name
                    found.append(one)
                return found
            except OSError as error:
                return paramiko.SFTPServer.convert_errno(error.errno)

        def stat(self, path: str) -> Any:
            try:
                return self._told(paramiko.SFTPAttributes.from_stat(self._path(path).stat()))
            except OSError as error:
                return paramiko.SFTPServer.convert_errno(error.errno)

        lstat = stat

        def open(self, path: str, flags: int, _: Any) -> Any:
            try:
                file = self._path(path).open("rb")
            except OSError as error:
                return paramiko.SFTPServer.convert_errno(error.errno)
            handle = paramiko.SFTPHandle(flags)
            handle.filename, handle.readfile = str(path), file
            handle.stat = lambda: self._told(paramiko.SFTPAttributes.from_stat(os.fstat(file.fileno())))
            read = handle.read

            middle = os.fstat(file.fileno()).st_size // 2

            def badly(offset: int, length: int) -> Any:
                time.sleep(server.pause)
                if server.faulty and path not in server.cut and offset + length > middle:
                    server.cut.add(path)
                    self._door.transport.close()
                return read(offset, length)

            handle.read = badly
            return handle

    return Files


@contextmanager
def serve(folder: Path) -> Iterator[Sftp]:
    """Serve a folder to USER with PASSWORD."""
    key = paramiko.ECDSAKey.generate()
    door = socket.create_server(("127.0.0.1", 0))
    host, port = door.getsockname()
    server = Sftp(host, port, f"[{host}]:{port} {key.get_name()} {key.get_base64()}\n")
    files, transports = _files(folder, server), []

    def welcome() -> None:
        while True:
            try:
                connection, _ = door.accept()
            except OSError:
                return
            transport = paramiko.Transport(connection)
            transports.append(transport)
            transport.add_server_key(key)
            transport.set_subsystem_handler("sftp", paramiko.SFTPServer, files)
            with suppress(paramiko.SSHException, EOFError):
                transport.start_server(server=_Door(server, transport))

    thread = threading.Thread(target=welcome, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        door.shutdown(socket.SHUT_RDWR)
        door.close()
        thread.join()
        for transport in transports:
            transport.close()
