"""A web server on loopback that misbehaves as real ones do, for the doubles of APIs.

Every so many addresses, the first request for one gets a fault: 429 with ``Retry-After``, 503, or an answer that is cut
in the middle; asked again, it is answered, or gets the next fault. Lists that have pages shift besides: what is first
appears when somebody has read the first page. With ``faulty = False`` it only answers.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

FAULTS = ("429", "503", "cut")


@dataclass
class Reply:
    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


def as_json(value: Any, status: int = 200) -> Reply:
    return Reply(status, json.dumps(value).encode())


class FaultyServer:
    """Subclasses say what is answered; ``requests`` are the paths and parameters that were asked for, in order."""

    def __init__(self) -> None:
        self.faulty = True
        self.every = 3  # addresses, of which one meets faults
        self.times = 1  # requests for it that do
        self.shifted = False  # whether a list has
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.arrived: list[float] = []  # when requests did, by the monotonic clock
        self.latency = 0.0  # seconds until an answer
        self.heads: list[str] = []  # the paths that were only asked about
        self.met: list[str] = []  # the faults that requests met
        self.url = ""
        self.lock = threading.Lock()
        self._asked: Counter[str] = Counter()
        self._good: set[str] = set()  # addresses that meet no fault

    def answer(self, path: str, params: dict[str, str]) -> Reply:
        raise NotImplementedError

    @contextmanager
    def serving(self) -> Iterator[FaultyServer]:
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                params = dict(parse_qsl(parts.query, keep_blank_values=True))
                double.arrived.append(time.monotonic())
                time.sleep(double.latency)
                with double.lock:
                    double.requests.append((parts.path, params))
                    fault = double._fault(self.path)
                    reply = double.answer(parts.path, params) if fault in ("", "cut") else None
                if fault == "429":
                    reply = Reply(429, b"slow down", "text/plain", {"Retry-After": "1"})
                elif fault == "503":
                    reply = Reply(503, b"<html>down for maintenance</html>", "text/html")
                assert reply
                double._send(self, reply, cut=fault == "cut")

            def do_HEAD(self) -> None:
                path = urlsplit(self.path).path
                with double.lock:
                    double.heads.append(path)
                    reply = double.answer(path, {})
                double._send(self, reply, cut=False, bodiless=True)

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    def shifts(self, more: bool, scripted: bool) -> bool:
        """Whether it is time to hold something back: a first page was asked for, and there are more.

        Never where a test has ``scripted`` what comes and goes.
        """
        now = self.faulty and more and not scripted and not self.shifted
        self.shifted |= now or scripted
        return now

    def _fault(self, path: str) -> str:
        """The fault that this request meets; "" for none."""
        if not self.faulty:
            return ""
        self._asked[path] += 1
        if self._asked[path] == 1 and len(self._asked) % self.every:
            self._good.add(path)
        if path in self._good or self._asked[path] > self.times:
            return ""
        self.met.append(FAULTS[len(self.met) % len(FAULTS)])
        return self.met[-1]

    @staticmethod
    def _send(handler: BaseHTTPRequestHandler, reply: Reply, *, cut: bool, bodiless: bool = False) -> None:
        """The reply; of a body that is large enough, the part that was asked for."""
        etag = f'"{hashlib.sha256(reply.body).hexdigest()[:16]}"'
        body, status = reply.body, reply.status
        start = handler.headers.get("Range", "").removeprefix("bytes=").split("-")[0]
        ranged = status == 200 and start.isdigit() and handler.headers.get("If-Range") == etag
        if ranged:
            status, body = 206, body[int(start) :]
        handler.send_response(status)
        handler.send_header("Content-Type", reply.content_type)
        handler.send_header("Content-Length", str(len(body)))
        handler.send_header("ETag", etag)
        if ranged:
            handler.send_header("Content-Range", f"bytes {start}-{len(reply.body) - 1}/{len(reply.body)}")
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        if not bodiless:
            handler.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            handler.close_connection = True
