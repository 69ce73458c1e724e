"""How a crawler behaves among servers of others: parts for Scrapy, on what :mod:`ingestion.web` does for the rest.

Scrapy's own throttle, cache policy and robots.txt are used where they do the right thing. Here is what they lack: a
rate that all workers share, ``Retry-After``, no private addresses, a robots.txt that cannot be had taken for a
prohibition (RFC 9309, 2.3.1.4), gzip that was cut off or damaged not taken for a whole page, and a cache that a kill
does not spoil.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

from requests_hardened.ip_filter import InvalidIPAddress, get_ip_address
from scrapy import Request, Spider
from scrapy.core.downloader.handlers.http11 import HTTP11DownloadHandler
from scrapy.crawler import Crawler
from scrapy.downloadermiddlewares.robotstxt import RobotsTxtMiddleware
from scrapy.exceptions import IgnoreRequest
from scrapy.http import Headers, Response
from scrapy.responsetypes import responsetypes
from scrapy.robotstxt import RobotParser
from scrapy.utils.misc import build_from_crawler
from twisted.internet import threads
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHostnameResolver, IHostResolution
from zope.interface import implementer

from ingestion import wire
from ingestion.web import Web
from storage.settings import home

KEPT_S = 90 * 86_400  # how long an answer is kept to be asked whether it is still the same


class Turnstile(Web):
    """The rate of a host, of all workers together."""

    def turn(self, host: str) -> None:
        """Wait until one more request may be sent."""
        self.wait_for_turn(host)


class Wire(HTTP11DownloadHandler):
    """Download handler: a request waits for its turn, and for what its host asked, until the moment it is sent.

    A page is unpacked here, before the cache: what is damaged must not be kept there. Raises what :mod:`ingestion.wire`
    raises for it.
    """

    not_before: ClassVar[dict[str, float]] = {}  # host -> time.monotonic() until which it wants to be left alone

    @classmethod
    def hold(cls, host: str, seconds: float) -> None:
        cls.not_before[host] = max(cls.not_before.get(host, 0.0), time.monotonic() + seconds)

    async def download_request(self, request: Request) -> Response:
        host = wire.host(request.url)
        while (seconds := self.not_before.get(host, 0.0) - time.monotonic()) > 0:
            await asyncio.sleep(seconds)
        await asyncio.to_thread(self._crawler.spider.turnstile.turn, host)  # type: ignore[union-attr]
        response = await super().download_request(request)
        return await asyncio.to_thread(_unpacked, response, self._crawler.settings.getint("DOWNLOAD_MAXSIZE"))


def _unpacked(response: Response, most: int) -> Response:
    """An answer whose body is as the page is; other bodies than those of pages are of no use, and empty."""
    coding = b", ".join(response.headers.getlist("Content-Encoding")).decode("latin-1")
    if not coding:
        return response
    body = b""
    if response.status == 200:
        body = b"".join(wire.unpacked(response.url, coding, most, [response.body]))
    del response.headers["Content-Encoding"]
    kind = responsetypes.from_args(headers=response.headers, url=response.url, body=body)
    return response.replace(cls=kind, body=body)


class Robots(RobotsTxtMiddleware):
    """robots.txt, where a server that is in trouble forbids everything until it is not."""

    away: ClassVar[set[str]] = set()  # hosts whose robots.txt could not be had

    def __init__(self, crawler: Crawler) -> None:
        super().__init__(crawler)
        self._locks: dict[str, asyncio.Lock] = {}

    async def robot_parser(self, request: Request) -> RobotParser | None:
        # one at a time: of several that wait for the same file, Scrapy 2.19 gives it to the first, and None to the rest
        async with self._locks.setdefault(urlsplit(request.url).netloc, asyncio.Lock()):
            return await super().robot_parser(request)

    async def _parse_robots(self, response: Response, netloc: str, request: Request) -> None:
        if response.status >= 500:
            raise IgnoreRequest(f"answered {response.status}")
        if response.status != 200:
            response = response.replace(body=b"")  # there is none: everything is allowed
        await super()._parse_robots(response, netloc, request)

    def _robots_error(self, exc: Exception, netloc: str) -> None:  # noqa: ARG002 - the parent's signature
        self.away.add(netloc)
        nobody = build_from_crawler(self._parserimpl, self.crawler, b"User-agent: *\nDisallow: /\n")
        waiting = self._parsers[netloc]
        self._parsers[netloc] = nobody
        if isinstance(waiting, Deferred):
            waiting.callback(nobody)


@implementer(IHostResolution)
class _Resolution:
    def __init__(self, name: str) -> None:
        self.name = name

    def cancel(self) -> None:
        raise NotImplementedError


@implementer(IHostnameResolver)
class Resolver:
    """Names, and addresses written out, become public addresses, and private ones of the hosts that are allowed.

    The connection goes to the very address that was looked at.
    """

    refused: ClassVar[dict[tuple[str, int], str]] = {}  # host and port -> the address that was refused

    def __init__(self, reactor: ReactorBase, allowed: Collection[str]) -> None:
        self._reactor, self._allowed = reactor, {host.lower() for host in allowed}

    @classmethod
    def from_crawler(cls, crawler: Crawler, reactor: ReactorBase) -> Self:
        return cls(reactor, crawler.settings.getlist("ALLOWED_HOSTS"))

    def install_on_reactor(self) -> None:
        self._reactor.installNameResolver(self)  # type: ignore[attr-defined,arg-type]

    def resolveHostName(  # noqa: N802 - the interface's name
        self,
        resolutionReceiver: Any,  # noqa: N803 - an IResolutionReceiver
        hostName: str,  # noqa: N803
        portNumber: int = 0,  # noqa: N803
        addressTypes: Sequence[Any] | None = None,  # noqa: ARG002, N803
        transportSemantics: str = "TCP",  # noqa: ARG002, N803
    ) -> _Resolution:
        resolution = _Resolution(hostName)
        resolutionReceiver.resolutionBegan(resolution)

        def found(address: str) -> None:
            kind = IPv6Address if ip_address(address).version == 6 else IPv4Address
            resolutionReceiver.addressResolved(kind("TCP", address, portNumber))
            resolutionReceiver.resolutionComplete()

        def lost(_failure: Any) -> None:
            resolutionReceiver.resolutionComplete()  # without an address: the request fails

        looked_up = threads.deferToThread(self._look_up, hostName.strip("[]").lower(), portNumber)
        looked_up.addCallbacks(found, lost)
        return resolution

    def _look_up(self, host: str, port: int) -> str:
        if {host, f"{host}:{port}"} & self._allowed:
            return str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0])
        try:
            return str(get_ip_address(host, port, allow_loopback=False)[0])
        except InvalidIPAddress as error:
            self.refused[host, port] = str(error)
            raise


class Cache:
    """Storage for Scrapy's HTTP cache: a file an answer, written whole or not at all, and no pickle."""

    def __init__(self, settings: Any) -> None:  # noqa: ARG002 - Scrapy's signature
        self._folder = home() / "cache" / "pages"

    def open_spider(self, spider: Spider) -> None:
        self._fingerprinter = spider.crawler.request_fingerprinter
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - KEPT_S:
                    path.unlink()

    def close_spider(self, spider: Spider) -> None:
        pass

    def _path(self, request: Request) -> Path:
        return self._folder / self._fingerprinter.fingerprint(request).hex()

    def retrieve_response(self, _spider: Spider, request: Request) -> Response | None:
        try:
            line, _, body = self._path(request).read_bytes().partition(b"\n")
            head = json.loads(line)
        except (FileNotFoundError, ValueError):
            return None
        if hashlib.sha256(body).hexdigest() != head["sha256"] or "Content-Encoding" in head["headers"]:
            return None  # cut, or still packed as it came, as all were kept once
        headers = Headers({name: [value.encode("latin-1") for value in all_] for name, all_ in head["headers"].items()})
        kind = responsetypes.from_args(headers=headers, url=head["url"], body=body)
        return kind(url=head["url"], status=head["status"], headers=headers, body=body)

    def store_response(self, _spider: Spider, request: Request, response: Response) -> None:
        headers = {
            name.decode("latin-1"): [value.decode("latin-1") for value in all_]
            for name, all_ in response.headers.items()
        }
        digest = hashlib.sha256(response.body).hexdigest()
        head = {"url": response.url, "status": response.status, "headers": headers, "sha256": digest}
        with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
            file.write(json.dumps(head).encode() + b"\n" + response.body)
        with suppress(FileNotFoundError):  # a withdrawal has just cleared the cache
            os.replace(file.name, self._path(request))  # noqa: PTH105
