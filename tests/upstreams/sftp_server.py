"""An SFTP server with a folder of files, on loopback, out of paramiko: one user, one password, one host key."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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


class _Door(paramiko.ServerInterface):  # type: ignore[misc]
    def check_auth_password(self, username: str, password: str) -> int:
        right = (username, password) == (USER, PASSWORD)
        return int(paramiko.AUTH_SUCCESSFUL if right else paramiko.AUTH_FAILED)

    def check_channel_request(self, *_: Any) -> int:
        return int(paramiko.OPEN_SUCCEEDED)


def _files(folder: Path) -> Any:
    class Files(paramiko.SFTPServerInterface):  # type: ignore[misc]
        def _path(self, path: str) -> Path:
            return folder / self.canonicalize(path).lstrip("/")

        def list_folder(self, path: str) -> Any:
            try:
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
                return paramiko.SFTPAttributes.from_stat(self._path(path).stat())
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
            handle.stat = lambda: paramiko.SFTPAttributes.from_stat(os.fstat(file.fileno()))
            return handle

    return Files


@contextmanager
def serve(folder: Path) -> Iterator[Sftp]:
    """Serve a folder to USER with PASSWORD."""
    key = paramiko.ECDSAKey.generate()
    door = socket.create_server(("127.0.0.1", 0))
    host, port = door.getsockname()
    files, transports = _files(folder), []

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
                transport.start_server(server=_Door())

    thread = threading.Thread(target=welcome, daemon=True)
    thread.start()
    try:
        yield Sftp(host, port, f"[{host}]:{port} {key.get_name()} {key.get_base64()}\n")
    finally:
        door.shutdown(socket.SHUT_RDWR)
        door.close()
        thread.join()
        for transport in transports:
            transport.close()
