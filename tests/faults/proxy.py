"""A TCP proxy between a client and a server, which is slow, or cuts connections where it is told to."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: the connection ends with a reset, and what waits in it is lost


class Proxy:
    """Passes on what comes to ``port``.

    ``delay_s``: how long each piece waits. ``budgets``: how many bytes, both ways together, each of the next
    connections may carry before it is cut; those after them may carry any number. ``cut`` and ``passed`` count
    connections that were cut and pieces.
    """

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.delay_s = 0.0
        self.budgets: list[int] = []
        self.cut = self.passed = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            with self._lock:
                left = [self.budgets.pop(0) if self.budgets else 1 << 60]
            try:
                server = socket.create_connection(self._server)
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError:  # one of them has gone already
                client.close()
                continue
            for one, other in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=(one, other, left), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket, left: list[int]) -> None:
        """Everything from one to the other, to the end; ``left`` belongs to both directions."""
        try:
            while piece := one.recv(1 << 16):
                if self.delay_s:
                    time.sleep(self.delay_s)
                with self._lock:
                    self.passed += 1
                    may = min(len(piece), left[0])
                    left[0] -= len(piece)
                    if may < len(piece) and may >= 0:
                        self.cut += 1
                other.sendall(piece[: max(may, 0)])
                if may < len(piece):
                    raise ConnectionResetError
            other.shutdown(socket.SHUT_WR)
        except OSError:  # cut by us, or ended by one of them: the other one must hear of it
            for end in (one, other):
                with suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    end.shutdown(socket.SHUT_RDWR)  # wakes the other direction
                end.close()
