"""A web server with a directory of files, on loopback: what `http(s)://` locations are tried against.

By default (``faulty``) the first request for every third address gets a fault, as those of ``faulty_server`` do: 429
with ``Retry-After``, 503, or half of the body. It gives no ranges: the whole comes again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from upstreams.faulty_server import FAULTS


class _Files(SimpleHTTPRequestHandler):
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._fault = self.server.fault(self.path)
        if self._fault in ("429", "503"):
            self.send_response(int(self._fault))
            self.send_header("Content-Length", "0")
            if self._fault == "429":
                self.send_header("Retry-After", "1")
            self.end_headers()
        else:
            super().do_GET()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        body = source.read()
        outputfile.write(body[: len(body) // 2] if self._fault == "cut" else body)


class _Server(ThreadingHTTPServer):
    faulty = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Files, directory=str(folder)))
        self._asked: set[str] = set()
        self._lock = threading.Lock()

    def fault(self, path: str) -> str:
        """The fault that this request meets; "" for none."""
        with self._lock:
            new = self.faulty and path not in self._asked
            self._asked.add(path)
            return FAULTS[len(self._asked) // 3 % len(FAULTS)] if new and len(self._asked) % 3 == 0 else ""


@contextmanager
def serve(folder: Path, *, faulty: bool = True) -> Iterator[str]:
    """Serve a folder; gives the address, with a slash at the end."""
    server = _Server(folder)
    server.faulty = faulty
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
