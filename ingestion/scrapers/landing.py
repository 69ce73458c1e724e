"""Between Scrapy and the frontier: requests are taken from it, pages land, and what they lead to is put into it.

take -> (landed before? read it : ask, wait, ask again) -> object store -> callback -> what it leads to
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any, Self
from urllib.parse import urlsplit

import urllib3
from scrapy import Request, Spider
from scrapy.crawler import Crawler
from scrapy.exceptions import (
    CannotResolveHostError,
    DownloadCancelledError,
    DownloadConnectionRefusedError,
    DownloadFailedError,
    DownloadTimeoutError,
    IgnoreRequest,
    ResponseDataLossError,
)
from scrapy.http import Headers, Response
from scrapy.responsetypes import responsetypes
from twisted.python.failure import Failure

from ingestion import wire
from ingestion.journal import BUCKET
from ingestion.scrapers.frontier import Frontier, Visit, Wanted
from ingestion.scrapers.manners import Resolver, Robots, Turnstile, Wire
from ingestion.web import BUSY, FAILURES, LONGEST_WAIT_S, TRIES, retry_after
from storage.errors import Problem, Unusable
from storage.objects import Objects

PASSING = (
    CannotResolveHostError,
    DownloadConnectionRefusedError,
    DownloadFailedError,
    DownloadTimeoutError,
    ResponseDataLossError,
    OSError,
    urllib3.exceptions.ProtocolError,  # of gzip: cut off, and damaged
    urllib3.exceptions.DecodeError,
)


class Lost(IgnoreRequest):
    """A page that cannot be had; ``lasting`` when there is no use in asking again."""

    def __init__(self, reason: str, *, lasting: bool) -> None:
        super().__init__(reason)
        self.reason, self.lasting = reason, lasting


class LandingSpider(Spider):
    """What our spiders share. Their callbacks give requests, and raise Problem for a page that is not as it was.

    What a callback needs to know is in its arguments. ``meta["turn"]`` tells a request from an earlier one for the same
    address; ``meta["known"]`` says that a page was found and need not be asked for.
    """

    def __init__(
        self,
        *,
        order: dict[str, Any],
        frontier: Frontier,
        objects: Objects,
        turnstile: Turnstile,
        **more: Any,
    ) -> None:
        super().__init__(**more)
        self.order, self.frontier, self.objects, self.turnstile = order, frontier, objects, turnstile
        self.crawl: str = order["crawl"]
        self.url: str = order["url"]
        self.arguments: dict[str, Any] = order["arguments"]
        self.allowed_domains = [urlsplit(self.url).hostname or ""]
        self.problem: Problem | None = None
        self._failures = 0
        self._said = 0.0
        self._closing: asyncio.Task[None] | None = None

    def wanted(self, request: Request) -> Wanted:
        """A request as the frontier keeps it."""
        if request.method != "GET" or request.body or request.callback is None:
            raise ValueError(f"the frontier keeps GET requests with a callback, not {request}")
        turn = request.meta.get("turn", 0)
        print_ = self.crawler.request_fingerprinter.fingerprint(request).hex()  # type: ignore[union-attr]
        return Wanted(
            f"{print_}/{turn}" if turn else print_,
            request.url,
            request.callback.__name__,
            dict(request.cb_kwargs),
            request.priority,
            bool(request.meta.get("known")),
        )

    def request(self, visit: Visit) -> Request:
        """A request as Scrapy sends it."""
        meta = {"row": visit.fingerprint, "tries": visit.tries}
        meta |= {"hops": visit.redirects, "redirect_times": visit.redirects}
        if visit.landing:
            meta |= {"landing": visit.landing, "content_type": visit.content_type, "dont_cache": True}
        callback: Callable[..., Any] = getattr(self, visit.callback)
        return Request(
            visit.url,
            callback=callback,
            errback=self.lost,
            cb_kwargs=visit.arguments,
            meta=meta,
            priority=visit.priority,
            dont_filter=False,
        )

    def leaf(self, _response: Response, **_facts: Any) -> Iterator[Request]:
        """A page that leads nowhere."""
        yield from ()

    def lost(self, failure: Failure) -> None:
        """Note that a page could not be had. When nothing can be had any more, stop asking."""
        request: Request = failure.request  # type: ignore[attr-defined]
        error = failure.value
        if isinstance(error, Problem):
            self.stop(error)
            return
        reason, lasting = str(error) or type(error).__name__, isinstance(error, IgnoreRequest)
        if isinstance(error, Lost):
            reason, lasting = error.reason, error.lasting
        elif "robots.txt" in reason:
            away = urlsplit(request.url).netloc in Robots.away
            reason = "has a robots.txt that cannot be had" if away else "is forbidden by robots.txt"
            refused = _refused(request.url)
            reason, lasting = refused or reason, bool(refused) or not away
        elif "offsite" in reason:
            reason = "is on another host"
        try:
            self.frontier.failed(self.crawl, request.meta["row"], wire.shown(reason), lasting=lasting)
        except Problem as problem:
            self.stop(problem)
        self._failures = 0 if lasting else self._failures + 1
        if self._failures >= FAILURES:
            self.close_early()

    def got(self) -> None:
        """A page has come."""
        self._failures = 0
        if time.monotonic() - self._said > 2:
            self._said = time.monotonic()
            counts = self.frontier.counts(self.crawl)
            say(f"{self.name}: {counts.get('landed', 0):,} pages landed, {counts.get('waiting', 0):,} wait")

    def stop(self, problem: Problem) -> None:
        """Give up, for this reason."""
        self.problem = self.problem or problem
        self.close_early()

    def close_early(self) -> None:
        if self._closing is None:
            engine = self.crawler.engine
            self._closing = asyncio.get_running_loop().create_task(engine.close_spider_async(reason="stopped"))  # type: ignore[union-attr]


class Scheduler:
    """Scrapy's scheduler, on the frontier. That is its filter of duplicates too."""

    def __init__(self, crawler: Crawler) -> None:
        self._crawler = crawler

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Self:
        return cls(crawler)

    @property
    def _spider(self) -> LandingSpider:
        spider = self._crawler.spider
        if not isinstance(spider, LandingSpider):
            raise TypeError(f"{spider} is no LandingSpider")
        return spider

    def open(self, spider: Spider) -> None:  # noqa: ARG002 - Scrapy's signature
        """What a crawler that is no more had under way waits again."""
        self._spider.frontier.resume(self._spider.crawl)

    def close(self, reason: str) -> None:  # noqa: ARG002 - Scrapy's signature
        with suppress(Problem):
            self._spider.frontier.untaken(self._spider.crawl)

    def enqueue_request(self, request: Request) -> bool:
        """Put a request, or put back one that is to be sent again or elsewhere."""
        spider = self._spider
        try:
            if "row" not in request.meta:
                return spider.frontier.put(spider.crawl, [spider.wanted(request)]) > 0
            row, hops = request.meta["row"], request.meta["redirect_times"]
            if hops != request.meta["hops"]:
                spider.frontier.moved(spider.crawl, row, request.url, hops)
            else:
                spider.frontier.again(spider.crawl, row)
        except Problem as problem:
            spider.stop(problem)
        return True

    def has_pending_requests(self) -> bool:
        try:
            return self._spider.problem is None and self._spider.frontier.waits(self._spider.crawl)
        except Problem as problem:
            self._spider.stop(problem)
            return False

    def next_request(self) -> Request | None:
        spider = self._spider
        try:
            visit = spider.frontier.take(spider.crawl) if spider.problem is None else None
        except Problem as problem:
            spider.stop(problem)
            return None
        return spider.request(visit) if visit else None


class Landing:
    """Downloader middleware, the first of all: a page lands before the spider sees it; what failed is tried again."""

    def __init__(self, crawler: Crawler) -> None:
        self._crawler = crawler

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Self:
        return cls(crawler)

    @property
    def _spider(self) -> LandingSpider:
        return self._crawler.spider  # type: ignore[return-value]

    async def process_request(self, request: Request) -> Response | None:
        """A page that has landed is not asked for again."""
        if "landing" not in request.meta:
            return None
        bucket, key = request.meta["landing"].split("/", 1)
        body = await asyncio.to_thread(self._spider.objects.get, bucket, key)
        headers = Headers({"Content-Type": request.meta["content_type"]})
        kind = responsetypes.from_args(headers=headers, url=request.url, body=body)
        return kind(url=request.url, headers=headers, body=body, flags=["landed"], request=request)

    async def process_response(self, request: Request, response: Response) -> Request | Response:
        if "landed" in response.flags:
            return response
        if response.status in BUSY:
            told = response.headers.to_unicode_dict()
            seconds = retry_after({str(name): text for name, text in told.items()}) or 0.0
            return self._later(request, f"answered {response.status}", seconds)
        if "row" not in request.meta:  # robots.txt
            return response
        if response.status != 200:
            raise Lost(f"answered {response.status}", lasting=True)
        spider = self._spider
        sha256 = hashlib.sha256(response.body).hexdigest()
        key = f"{spider.order['source']}/{spider.order['resource']}/{sha256[:2]}/{sha256}"
        kind = (response.headers.get("Content-Type") or b"").decode("latin-1").split(";")[0].strip().lower()
        await asyncio.to_thread(spider.objects.put, BUCKET, key, response.body, kind or "application/octet-stream")
        spider.frontier.lies(spider.crawl, request.meta["row"], f"{BUCKET}/{key}", kind)
        spider.got()
        return response

    async def process_exception(self, request: Request, exception: Exception) -> Request | None:
        if isinstance(exception, Unusable):
            raise Lost(exception.what.removeprefix(wire.shown(request.url)).strip(), lasting=True)
        if isinstance(exception, (IgnoreRequest, Problem)):
            return None
        if isinstance(exception, CannotResolveHostError) and (refused := _refused(request.url)):
            raise Lost(refused, lasting=True)
        if isinstance(exception, DownloadCancelledError):
            raise Lost("gives more bytes than are allowed", lasting=True)
        if isinstance(exception, PASSING):
            return self._later(request, f"cannot be read: {str(exception) or type(exception).__name__}", 0.0)
        return None

    def _later(self, request: Request, what: str, seconds: float) -> Request:
        """The request once more, after a pause for its host. Raises Lost when that was tried often enough."""
        tries = request.meta.get("tries", 1)
        if seconds > LONGEST_WAIT_S:
            raise Lost(f"{what} and asks to wait {seconds:,.0f} seconds", lasting=False)
        if tries >= TRIES:
            raise Lost(what, lasting=False)
        pause = max(seconds, min(0.25 * 2**tries, 60))
        Wire.hold(wire.host(request.url), pause)
        say(f"{wire.host(request.url)} {what}: asking again in {pause:.0f} s")
        return request.replace(dont_filter=True, meta=request.meta | {"tries": tries + 1})


def _refused(url: str) -> str:
    """Why an address is refused; "" when it is not."""
    parts = urlsplit(url)
    address = Resolver.refused.get((parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)))
    advice = f"if that is meant, name {wire.host(url)} in the option allowed_hosts"
    return f"leads to a private address, {address}: {advice}" if address else ""


class Following:
    """Spider middleware, the first to see what a callback gives: it is put in one step with the page's landing."""

    def __init__(self, crawler: Crawler) -> None:
        self._crawler = crawler

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Self:
        return cls(crawler)

    async def process_spider_output(self, response: Response, result: AsyncIterator[Any]) -> AsyncIterator[Any]:
        spider: LandingSpider = self._crawler.spider  # type: ignore[assignment]
        row = response.request.meta["row"]  # type: ignore[union-attr]
        try:
            try:
                found = [spider.wanted(request) async for request in result]
                spider.frontier.landed(spider.crawl, row, found, spider.order["most"])
            except Problem:
                spider.frontier.unread(spider.crawl, row)
                raise
            except Exception as error:
                spider.frontier.unread(spider.crawl, row)
                raise Problem(
                    f"{spider.name} cannot read {wire.shown(response.url)}: {type(error).__name__}: {error}",
                    "Look at the page: its markup may have changed",
                ) from error
        except Problem as problem:
            spider.stop(problem)
        nothing: tuple[Any, ...] = ()  # all of it is in the frontier
        for one in nothing:
            yield one


def say(text: str) -> None:
    """Tell whoever started the crawler."""
    sys.stdout.write(json.dumps({"say": text}) + "\n")
    sys.stdout.flush()
