"""A web server on loopback that does what a test tells it, byte by byte: what no well-meant server would let us do.

    with serve() as server:
        server.on("/list", answer(b"", status=503), answer(b"[]"))    # the first request, and all that follow
        web.get(server.url + "/list")
        assert len(server.asked) == 2

A deed gets the request and gives the raw bytes to send, in pieces; a number among them is a pause in seconds, and
CUT closes the connection at once.
"""

from __future__ import annotations

import gzip
import socket
import socketserver
import ssl
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

CUT = object()  # the connection is reset here


@dataclass(frozen=True)
class Request:
    path: str
    query: str
    headers: dict[str, str]  # names in lower case
    at: float = field(default_factory=time.monotonic)


Deed = Callable[[Request], Iterator[Any]]


class HostileServer:
    """Where it is, what it was asked, and what it does."""

    def __init__(self, port: int, certificate: str = "") -> None:
        self.host = f"127.0.0.1:{port}"
        self.certificate = certificate
        self.url = f"{'https' if certificate else 'http'}://{self.host}"
        self.asked: list[Request] = []
        self.stopping = threading.Event()
        self._deeds: dict[str, list[Deed]] = {}
        self._turns: dict[str, int] = defaultdict(int)
        self._lock = threading.Lock()

    def on(self, path: str, *deeds: Deed) -> str:
        """Do these one after another at ``path``, the last one for ever. Gives the address."""
        self._deeds[path] = list(deeds)
        self._turns.pop(path, None)
        return self.url + path

    def deed_for(self, request: Request) -> Deed:
        with self._lock:
            self.asked.append(request)
            deeds = self._deeds.get(request.path, [answer(b"", status=404)])
            turn = min(self._turns[request.path], len(deeds) - 1)
            self._turns[request.path] += 1
            return deeds[turn]


@contextmanager
def serve(*, tls: bool = False) -> Iterator[HostileServer]:
    """Run one; with ``tls`` under a certificate that it signed itself."""
    with TemporaryDirectory() as folder, socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Handler) as tcp:
        tcp.daemon_threads = True
        hostile = HostileServer(tcp.server_address[1], _certificate(folder) if tls else "")
        tcp.hostile = hostile  # type: ignore[attr-defined]
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(hostile.certificate)
            tcp.socket = context.wrap_socket(tcp.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=tcp.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield hostile
        finally:
            hostile.stopping.set()
            tcp.shutdown()
            thread.join()


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        hostile: HostileServer = self.server.hostile  # type: ignore[attr-defined]
        with suppress(OSError):
            while line := self.rfile.readline():
                target = line.split()[1].decode()
                headers = {}
                while header := self.rfile.readline().strip():
                    name, _, value = header.decode("latin-1").partition(":")
                    headers[name.lower()] = value.strip()
                path, _, query = target.partition("?")
                request = Request(path, query, headers)
                last = b""
                for piece in hostile.deed_for(request)(request):
                    if hostile.stopping.is_set():
                        return
                    if piece is CUT:  # a reset, not an orderly end
                        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        self.request.close()
                        return
                    if isinstance(piece, bytes):
                        self.request.sendall(piece)
                        last = last or piece
                    elif hostile.stopping.wait(piece):
                        return
                if b"keep-alive" not in last:
                    return


def _certificate(folder: str) -> str:
    """A file with a key and its certificate for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = Path(folder) / "certificate.pem"
    path.write_bytes(private + certificate.public_bytes(pem))
    return str(path)


def head(status: int = 200, **headers: object) -> bytes:
    """Status line and headers; ``Content_Length=3`` is a header's name and value, one that is None is left out."""
    lines = [f"HTTP/1.1 {status} Whatever", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items() if value is not None]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def answer(body: bytes = b"", status: int = 200, **headers: object) -> Deed:
    """A whole and honest answer."""
    return lambda request: iter([head(status, **{"Content_Length": len(body)} | headers) + body])


def pieces(*parts: Any) -> Deed:
    """These bytes and pauses as they are."""
    return lambda request: iter(parts)


def trickle(first: bytes, piece: bytes, pause: float) -> Deed:
    """``first``, and then ``piece`` after ``pause`` seconds, for ever."""

    def deed(request: Request) -> Iterator[Any]:
        yield first
        while True:
            yield pause
            yield piece

    return deed


def endless(first: bytes, piece: bytes = b"x" * 65_536) -> Deed:
    """``first``, and then ``piece`` as fast as it goes, for ever."""

    def deed(request: Request) -> Iterator[Any]:
        yield first
        while True:
            yield piece

    return deed


def bomb(megabytes: int) -> bytes:
    """A gzip stream of zeros: a thousandth of what it unpacks to."""
    return gzip.compress(bytes(megabytes << 20), 9)


@dataclass
class File:
    """A file that is served with ETag and ranges, as good servers do, but for the faults that are switched on."""

    body: bytes
    etag: str | None = '"v1"'
    ranges: bool = True  # False: a range is ignored, the whole comes
    if_range: bool = True  # False: a range is given though the file is another one by now
    cut_after: int | None = None  # bytes of a body after which the connection is reset
    pause: float = 0.0  # after each piece
    short_by: int = 0  # bytes that a range ends before the end

    def __call__(self, request: Request) -> Iterator[Any]:
        start, total = 0, len(self.body)
        asked = request.headers.get("range")
        if asked and self.ranges and (not self.if_range or request.headers.get("if-range") in (None, self.etag)):
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        if asked and start >= total:
            yield head(416, Content_Range=f"bytes */{total}", Content_Length=0)
            return
        if self.etag and request.headers.get("if-none-match") == self.etag:
            yield head(304, ETag=self.etag)
            return
        body = self.body[start : total - self.short_by if start else total]
        span = f"bytes {start}-{start + len(body) - 1}/{total}" if start else None
        status = 206 if start else 200
        yield head(status, Content_Length=len(body), ETag=self.etag, Content_Range=span, Content_Type="audio/mpeg")
        end = len(body) if self.cut_after is None else min(self.cut_after, len(body))
        for at in range(0, end, 4096):
            yield body[at : min(at + 4096, end)]
            if self.pause:
                yield self.pause
        if end < len(body):
            yield 0.05  # what was sent arrives before the reset throws it away
            yield CUT
