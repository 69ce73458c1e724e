"""One answer over the wire: within bounds of time and bytes whatever it says, and from public addresses only.

What libraries leave open: requests reads the bodies of redirects however long they are; http.client takes an end of
the connection within the head for the end of the head, and waits for a head that trickles in for ever; urllib3 takes a
gzip stream that was cut off for a whole one.
"""

from __future__ import annotations

import logging
import re
import socket
import threading
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from typing import Any, Self
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.auth import HTTPBasicAuth
from requests.utils import get_auth_from_url
from requests_hardened.ip_filter_adapter import IPFilterAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

from storage.errors import Unusable

AGENT = "lyrebird/0.1 (data platform; respects robots.txt and Retry-After)"
ADVICE = "Check the address, and that the server answers; `lyrebird ledger` keeps what failed"
CHUNK = 1 << 16


def session(allowed: Collection[str]) -> requests.Session:
    """A session that reaches public addresses, and private ones of the hosts (``host``, ``host:port``) allowed.

    It follows no redirects and asks for gzip. Its read timeout holds for the whole head of an answer.
    """
    made = _Session()
    made.auth = _of_the_address
    made.headers.update({"User-Agent": AGENT, "Accept-Encoding": "gzip"})
    for scheme in ("https", "http"):
        made.mount(f"{scheme}://", _Guard(scheme == "https", allowed))
    return made


def body(response: requests.Response, most: int, seconds: float) -> Iterator[bytes]:
    """The body as it comes over the wire, in pieces. urllib3's errors when it was cut, Unusable when it is too much
    or takes too long.
    """
    size = response.raw.length_remaining or 0  # what it says, until we know
    if size > most:
        raise _too_much(response.url)
    size = 0
    with Alarm(seconds, response.raw.shutdown) as alarm:
        try:
            while not alarm.rang and (chunk := response.raw.read1(CHUNK, decode_content=False)):
                size += len(chunk)
                if size > most:
                    raise _too_much(response.url)
                yield chunk
        except urllib3.exceptions.HTTPError:
            if not alarm.rang:
                raise
    if alarm.rang:
        raise Unusable(f"{shown(response.url)} takes longer than {seconds:,.0f} seconds", "Run it again later")
    if not size and response.raw.length_remaining is None and not response.raw.chunked:
        raise urllib3.exceptions.ProtocolError("the connection ended before the answer did")  # within its head


def unpacked(url: str, coding: str, most: int, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """A body without its ``Content-Encoding``, which may be gzip.

    urllib3's errors when it is damaged or was cut off, which urllib3 itself and Scrapy take for whole; Unusable when it
    unpacks to more than ``most`` bytes, or is packed in another way.
    """
    coding = coding.strip().lower()
    if coding in ("", "identity"):
        yield from chunks
        return
    if coding not in ("gzip", "x-gzip"):
        raise Unusable(f"{shown(url)} gave the encoding {coding[:40]!r}, which nobody asked for", ADVICE)
    size, unzip = 0, zlib.decompressobj(wbits=31)
    try:
        for chunk in chunks:
            rest = chunk
            while rest:
                if unzip.eof:
                    unzip = zlib.decompressobj(wbits=31)
                piece = unzip.decompress(rest, CHUNK)
                rest = unzip.unconsumed_tail or unzip.unused_data
                size += len(piece)
                if size > most:
                    raise _too_much(url)
                yield piece
    except zlib.error as error:
        raise urllib3.exceptions.DecodeError(f"damaged gzip: {error}") from error
    if not unzip.eof:
        raise urllib3.exceptions.ProtocolError("the gzip stream was cut off")


def _too_much(url: str) -> Unusable:
    return Unusable(
        f"{shown(url)} gives more bytes than are allowed",
        "Look at what that address gives; if it is meant, the limit is in the source's file in ingestion/sources",
    )


def host(url: str) -> str:
    """``host`` or ``host:port`` of an address, without a user's name and password."""
    parts = urllib3.util.parse_url(url)
    return f"{parts.host or ''}:{parts.port}" if parts.port else parts.host or ""


def shown(text: str) -> str:
    """Text for people: without the keys and passwords of the addresses in it."""
    text = re.sub(r"//[^/@\s]*@", "//", text)
    return re.sub(r"(?i)((?:key|token|secret|password|signature)=)[^&\s'\")>]*", r"\1…", text)


def reason(error: BaseException | None) -> str:
    """What was wrong in the end, out of errors within errors, in one short line."""
    while error is not None:
        inside = [getattr(error, "reason", None), *error.args]
        within = next((one for one in inside if isinstance(one, BaseException)), None)
        if within is None:
            break
        error = within
    said = str(error).splitlines()
    return shown(said[0])[:200] if said else type(error).__name__


class _Session(requests.Session):
    """A session that leaves redirects to us: requests would read their bodies to the end, however long."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:  # noqa: ARG002 - the parent's name
        return None


def _of_the_address(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """User and password of the address itself. Left alone, requests looks into .netrc, for any host we are led to."""
    user, password = get_auth_from_url(request.url or "")
    return HTTPBasicAuth(user, password)(request) if user or password else request


class _Guard(IPFilterAdapter):  # type: ignore[misc]  # the library has no types
    """Connects to public addresses, and to the private ones of hosts that are allowed."""

    def __init__(self, is_https: bool, allowed: Collection[str]) -> None:
        super().__init__(is_https_proto=is_https)
        self._allowed = {host.lower() for host in allowed}

    def build_connection_pool_key_attributes(self, request: requests.PreparedRequest, *rest: Any, **more: Any) -> Any:
        url = request.url or ""
        if {urlsplit(url).hostname, host(url)} & self._allowed:
            return HTTPAdapter.build_connection_pool_key_attributes(self, request, *rest, **more)
        return super().build_connection_pool_key_attributes(request, *rest, **more)

    def get_connection_with_tls_context(self, *args: Any, **more: Any) -> Any:
        pool = super().get_connection_with_tls_context(*args, **more)
        pool.ConnectionCls = _BriefTls if pool.scheme == "https" else _Brief
        return pool


class _BriefHead:
    """A connection on which the head of an answer is awaited so long and no longer, however it trickles in."""

    def getresponse(self) -> Any:
        here: Any = self
        with Alarm(here.timeout, here.sock.shutdown, socket.SHUT_RDWR) as alarm:
            response = super().getresponse()  # type: ignore[misc]
        if alarm.rang:  # http.client takes the end of the connection for the end of the head
            raise TimeoutError("the head of the answer took too long")
        return response


class _Brief(_BriefHead, HTTPConnection):
    pass


class _BriefTls(_BriefHead, HTTPSConnection):
    pass


class Alarm:
    """Calls a function in so many seconds, unless the block has been left by then."""

    def __init__(self, seconds: float, call: Callable[..., object], *args: object) -> None:
        self.rang = False

        def ring() -> None:
            self.rang = True
            with suppress(OSError, ValueError, RuntimeError):  # what it ends has ended already
                call(*args)

        self._timer = threading.Timer(seconds, ring)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._timer.cancel()


def _without_keys(record: logging.LogRecord) -> bool:
    record.msg, record.args = shown(record.getMessage()), ()
    return True


logging.getLogger("urllib3.connectionpool").addFilter(_without_keys)  # its debug lines hold whole addresses
