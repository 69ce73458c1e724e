"""Servers of others: asked politely, within bounds, and never where an answer should not lead us.

* polite: rates that all workers share through the cache, ``Retry-After`` obeyed, a host that keeps failing left alone
  by all of them for a while, conditional requests, downloads that go on where they stopped;
* bounded: bytes, seconds and redirects of an answer have limits, whatever its headers say (:mod:`ingestion.wire`);
* careful: private addresses are refused unless the source allows the host, and keys in addresses are shown nowhere.

Without the cache, rates and the memory of failures hold within this process only.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import http.client
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urljoin

import limits
import limits.storage
import limits.strategies
import pybreaker
import redis
import redis.backoff
import redis.retry
import requests
import tenacity
import urllib3
from requests_hardened.ip_filter import InvalidIPAddress

from ingestion import wire
from storage.errors import Problem, Unusable
from storage.settings import Settings, home

CONNECT_S = 10.0
TRIES = 5
REDIRECTS = 5
LONGEST_WAIT_S = 300.0  # what a server may ask us to wait within one run
FAILURES = 5  # after so many requests in a row that failed with all their tries, a host is left alone
BUSY = (408, 425, 429, 500, 502, 503, 504)
MB = 1 << 20
KEPT_S = 7 * 86_400  # how long the part of a download waits for the rest

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Answer:
    """What a server gave. ``mark`` is its ETag or date, to be shown the next time; ``body`` is empty for a download.

    ``url`` is where it came from in the end, without keys.
    """

    url: str
    body: bytes = field(repr=False)
    content_type: str
    mark: str
    size: int  # bytes

    def json(self) -> Any:
        """The body as JSON. Raises Problem when it is none, or nested deeper than Python reads."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise Problem(f"{self.url} gave no JSON: {error}", "Look at it; its interface may have changed") from None


class _Busy(Exception):
    """The server wants to be asked again, after so many seconds when it said how long."""

    def __init__(self, what: str, seconds: float | None = None) -> None:
        super().__init__(what)
        self.seconds = seconds


class Web:
    """A source's way to the servers it reads from. Threads may share it.

    ``rate`` is as in the ``limits`` library, e.g. ``1/second``; ``allowed`` names hosts (``host`` or ``host:port``)
    that may have private addresses. ``patience`` is how many seconds the head of an answer may take, and a pause in
    its body; ``rest`` for how many a host that keeps failing is left alone; ``sleep`` waits.
    Every method raises Problem for what cannot be had: Unusable when that is the fault of the thing asked for.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        rate: str = "",
        allowed: Collection[str] = (),
        say: Callable[[str], None] = lambda text: None,
        sleep: Callable[[float], None] = time.sleep,
        patience: float = 30.0,
        rest: float = 120.0,
    ) -> None:
        self._say, self._sleep, self._patience, self._rest = say, sleep, patience, rest
        address = settings.cache_url.get_secret_value()
        self._cache = _Pool.of(address) if address else None
        self._rate = _parse_rate(rate) if rate else None
        self._limiters = _limiters(address, self._cache) if rate else []
        self._breakers: dict[str, pybreaker.CircuitBreaker] = {}
        self.session = wire.session(allowed)

    def get(
        self,
        url: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        mark: str = "",
        types: Collection[str] = (),
        most: int = 32 * MB,
        seconds: float = 300,
    ) -> Answer | None:
        """The answer in memory; None when it has not changed since ``mark``.

        ``types`` are the content types to accept, all when empty; ``most`` the bytes and ``seconds`` the time it may
        take. ``headers`` go to this host only, not to where it redirects.
        """

        def once() -> Answer | None:
            with self._ask(url, _conditions(mark), params, headers) as response:
                if response.status_code == HTTPStatus.NOT_MODIFIED:
                    return None
                _accept(response, types)
                body = bytearray()
                coding = response.headers.get("Content-Encoding", "")
                for chunk in wire.unpacked(response.url, coding, most, wire.body(response, most, seconds)):
                    body += chunk
                return _answer(response, bytes(body), len(body))

        return self._tried(url, once)

    def head(self, url: str) -> Answer:
        """What the server says of a thing without giving it: mark, type, and size, -1 where it does not say."""

        def once() -> Answer:
            with self._ask(url, {"Accept-Encoding": "identity"}, method="HEAD") as response:
                response.raw.read1(1)  # nothing; the connection is free for the next request
                length = response.headers.get("Content-Length", "")
                return _answer(response, b"", int(length) if re.fullmatch(r"[0-9]{1,18}", length) else -1)

        return self._tried(url, once)

    def download(
        self,
        url: str,
        path: Path,
        *,
        mark: str = "",
        types: Collection[str] = (),
        most: int = 4096 * MB,
        seconds: float = 3600,
    ) -> Answer | None:
        """The answer, byte for byte as the server keeps it, as the file ``path``; None when unchanged since ``mark``.

        What was cut goes on where it stopped, in a later run too, if the server can and the file is still the same.
        """
        with _Partial(url) as part:

            def once() -> Answer | None:
                wanted = {"Accept-Encoding": "identity"} | (part.range() or _conditions(mark))
                with self._ask(url, wanted) as response:
                    if response.status_code == HTTPStatus.NOT_MODIFIED:
                        return None
                    _accept(response, types)
                    whole = part.begin(response)
                    for chunk in wire.body(response, most - part.size, seconds):
                        part.file.write(chunk)
                    if whole is not None and part.size != whole:
                        raise _Busy("gave less than there is", 0)
                    return _answer(response, b"", part.size)

            answer = self._tried(url, once)
            if answer is not None:
                part.finish(path)
        return answer

    def each(self, items: Iterable[T], get: Callable[[T], R], at_once: int = 4) -> Iterator[R]:
        """``get`` of every item, ``at_once`` side by side, in order; never more than twice as many wait in memory.

        An error of one comes out in its place; what follows is not begun.
        """
        with ThreadPoolExecutor(at_once, thread_name_prefix="web") as pool:
            waiting: list[Future[R]] = []
            try:
                for item in items:
                    if len(waiting) >= 2 * at_once:
                        yield waiting.pop(0).result()
                    waiting.append(pool.submit(get, item))
                while waiting:
                    yield waiting.pop(0).result()
            finally:
                for future in waiting:
                    future.cancel()

    def _ask(
        self,
        url: str,
        wanted: Mapping[str, str],
        params: Mapping[str, Any] | None = None,
        own: Mapping[str, str] | None = None,
        method: str = "GET",
    ) -> requests.Response:
        """A request and what it redirects to: the answer, its status looked at, its body not yet read."""
        home_page = urljoin(url, "/")
        for _ in range(REDIRECTS + 1):
            self.wait_for_turn(wire.host(url))
            headers = dict(own or {} if urljoin(url, "/") == home_page else {}) | dict(wanted)
            response = self.session.request(
                method, url, params=params, headers=headers, stream=True, timeout=(CONNECT_S, self._patience)
            )
            if not response.is_redirect:
                break
            response.close()
            to = response.headers["Location"].encode("latin-1", "replace").decode("utf-8", "replace")
            url, params = urljoin(response.url, to), None
        status = response.status_code
        if status in BUSY:
            response.close()
            raise _Busy(f"answered {status}", retry_after(response.headers))
        if status == HTTPStatus.NOT_MODIFIED and status in _expected(wanted):
            response.raw.read1(1)  # nothing; the connection is free for the next request
        elif status not in _expected(wanted):
            response.close()
            what = f"answered {status} {http.client.responses.get(status, '')}".strip()
            kind = Problem if status >= HTTPStatus.INTERNAL_SERVER_ERROR else Unusable
            raise kind(f"{wire.shown(url)} {'leads on and on' if response.is_redirect else what}", wire.ADVICE)
        return response

    def _tried(self, url: str, once: Callable[[], T]) -> T:
        """``once``, again while the world is at fault, with pauses that grow or that the server asks for."""

        def warn(state: tenacity.RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            self._say(f"{wire.host(url)} {wire.reason(error)}: asking again in {state.upcoming_sleep:.0f} s")

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_may_pass),
            stop=tenacity.stop_after_attempt(TRIES),
            wait=_pause,
            sleep=self._sleep,
            before_sleep=warn,
            reraise=True,
        )
        try:
            with self._breaker(wire.host(url)).calling():  # not .call(), which lets one thread through at a time
                found: T = retrying(once)
        except InvalidIPAddress as error:
            raise Unusable(
                f"{wire.shown(url)} leads to a private address, {error}",
                "If that is meant, name that host, or host:port, in the source's option `allowed_hosts`",
            ) from None
        except pybreaker.CircuitBreakerError:
            raise Problem(
                f"{wire.host(url)} failed {FAILURES} times in a row and is left alone for {self._rest:,.0f} seconds",
                "Run it again later",
            ) from None
        except _Busy as error:
            when = f" and asks to wait {error.seconds:,.0f} seconds" if error.seconds else ""
            raise Problem(f"{wire.shown(url)} {error}{when}", "Run it again later") from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, UnicodeError, ValueError) as error:
            kind = Problem if isinstance(error, _SERVERS) else Unusable
            raise kind(f"cannot read {wire.shown(url)}: {wire.reason(error)}", wire.ADVICE) from None
        return found

    def wait_for_turn(self, host: str) -> None:
        """Wait until the host's rate allows one more request, of all workers together."""
        for limiter in self._limiters:  # that of all, and then our own, which counts on when the cache is away
            with suppress(redis.RedisError):
                while self._rate is not None and not limiter.hit(self._rate, "web", host):
                    until = limiter.get_window_stats(self._rate, "web", host).reset_time
                    self._sleep(min(max(until - time.time(), 0.02), 60))

    def _breaker(self, host: str) -> pybreaker.CircuitBreaker:
        """The host's circuit breaker, one for all workers."""
        if host not in self._breakers:
            storage = _Failures(self._cache, host) if self._cache else None
            breaker = pybreaker.CircuitBreaker(
                fail_max=FAILURES,
                reset_timeout=self._rest,
                state_storage=storage,
                exclude=[lambda error: not isinstance(error, (_Busy, *_PASSING))],
                throw_new_error_on_trip=False,
            )
            self._breakers.setdefault(host, breaker)
        return self._breakers[host]


class _Pool(redis.ConnectionPool):
    """Connections to the cache. When it is away it is not asked again for a while: losing it loses little time."""

    _away_until = 0.0

    @classmethod
    def of(cls, address: str) -> _Pool:
        never = redis.retry.Retry(redis.backoff.NoBackoff(), 0)
        pool: _Pool = cls.from_url(address, socket_timeout=2, socket_connect_timeout=2, retry=never)
        return pool

    def get_connection(self, *args: Any, **options: Any) -> Any:
        if time.monotonic() < self._away_until:
            raise redis.ConnectionError("the cache was away a moment ago")
        try:
            return super().get_connection(*args, **options)
        except redis.RedisError:
            self._away_until = time.monotonic() + 30
            raise


class _Failures(pybreaker.CircuitRedisStorage):
    """What all workers know of a host's failures. Without the cache a host counts as well."""

    def __init__(self, pool: _Pool, host: str) -> None:
        super().__init__(pybreaker.STATE_CLOSED, redis.Redis(connection_pool=pool), namespace=f"lyrebird:web:{host}")

    def _initialize_redis_state(self, state: str) -> None:
        with suppress(redis.RedisError):
            super()._initialize_redis_state(state)


class _Partial:
    """The part of a download that is here already: kept by address between runs, one worker at a time has it."""

    def __init__(self, url: str) -> None:
        name = hashlib.sha256(url.encode()).hexdigest()[:32]
        folder = _downloads(home())
        self._part, self._mark = folder / f"{name}.part", folder / f"{name}.mark"

    def __enter__(self) -> Self:
        while True:
            self.file = self._part.open("ab+")
            fcntl.flock(self.file, fcntl.LOCK_EX)
            if self._is_there():
                return self
            self.file.close()  # another worker finished it while we waited: begin another one

    def __exit__(self, *exception: object) -> None:
        if self._is_there() and not self.size:
            self._part.unlink()
        self.file.close()

    def _is_there(self) -> bool:
        """Whether the open file is still the one at its address."""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self.file.fileno()), self._part.stat())
        return False

    @property
    def size(self) -> int:
        return self.file.seek(0, os.SEEK_END)

    def range(self) -> dict[str, str]:
        """Headers that ask for the rest; none when there is nothing to go on from."""
        mark = self._kept_mark()
        return {"Range": f"bytes={self.size}-", "If-Range": mark} if mark and self.size else {}

    def begin(self, response: requests.Response) -> int | None:
        """Let the file end where the answer begins. Returns the size that the whole must have, if the server says.

        Raises _Busy when the answer belongs to another file by now: the next try begins anew.
        """
        if response.status_code == HTTPStatus.OK:
            self._forget()
            self._mark.write_text(_mark(response, strong=True))
            return None
        found = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", response.headers.get("Content-Range", ""))
        same = _mark(response, strong=True) in ("", self._kept_mark())
        if response.status_code != HTTPStatus.PARTIAL_CONTENT or not found or int(found[1]) != self.size or not same:
            self._forget()
            raise _Busy("has another file by now", 0)
        return None if found[2] == "*" else int(found[2])

    def finish(self, path: Path) -> None:
        """Give the file to ``path``."""
        self.file.flush()
        self._mark.unlink(missing_ok=True)
        shutil.move(self._part, path)

    def _kept_mark(self) -> str:
        return self._mark.read_text() if self._mark.exists() else ""

    def _forget(self) -> None:
        self._mark.unlink(missing_ok=True)
        self.file.truncate(0)


def clear_downloads() -> None:
    """Remove the parts of downloads that nobody is at work on."""
    for path in _downloads(home()).glob("*.part"):
        with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as part:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            path.with_suffix(".mark").unlink(missing_ok=True)


@functools.cache
def _downloads(state: Path) -> Path:
    """The folder of partial downloads. Those that nobody came back for are removed, once per process."""
    folder = state / "cache" / "downloads"
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < time.time() - KEPT_S:
                path.unlink()
    return folder


def _accept(response: requests.Response, types: Collection[str]) -> None:
    """Raises Problem when an answer that is no error has another content type than wanted."""
    found = _content_type(response)
    if types and response.ok and found not in types:
        raise Unusable(
            f"{wire.shown(response.url)} gave {found[:80] or 'no content type'}, not {' or '.join(sorted(types))}",
            "Look at the page: it may be an error in another form, or the interface has changed",
        )


def _answer(response: requests.Response, body: bytes, size: int) -> Answer:
    return Answer(wire.shown(response.url), body, _content_type(response), _mark(response), size)


def _content_type(response: requests.Response) -> str:
    return response.headers.get("Content-Type", "").split(";")[0].strip().lower()


def _expected(wanted: Mapping[str, str]) -> set[int]:
    """Statuses that answer a request with these headers."""
    asked = {200}
    if "Range" in wanted:
        asked |= {HTTPStatus.PARTIAL_CONTENT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE}
    if "If-None-Match" in wanted or "If-Modified-Since" in wanted:
        asked |= {HTTPStatus.NOT_MODIFIED}
    return asked


def _mark(response: requests.Response, *, strong: bool = False) -> str:
    """ETag, or else date, of what was given; with ``strong`` only what If-Range may name (RFC 9110, 13.1.5)."""
    etag = response.headers.get("ETag", "")
    if re.fullmatch(r'(W/)?"[\x21\x23-\x7e\x80-\xff]{0,200}"', etag):
        return "" if strong and etag.startswith("W/") else etag
    date = response.headers.get("Last-Modified", "")
    return date if re.fullmatch(r"[A-Za-z0-9,:+ -]{1,40}", date) else ""


def _conditions(mark: str) -> dict[str, str]:
    if not mark:
        return {}
    return {"If-None-Match" if mark.startswith(('"', "W/")) else "If-Modified-Since": mark}


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait, as a number or a date."""
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # no date, or one without a zone
        return None


_growing = tenacity.wait_exponential_jitter(multiplier=0.5, max=60)


def _pause(state: tenacity.RetryCallState) -> float:
    """Seconds until the next try: ever more, and no fewer than the server asks for."""
    error = state.outcome.exception() if state.outcome else None
    return max(_growing(state), (error.seconds or 0.0) if isinstance(error, _Busy) else 0.0)


_SERVERS = (  # trouble of a server, or of the way to it
    requests.ConnectionError,
    requests.Timeout,
    urllib3.exceptions.ProtocolError,
    urllib3.exceptions.TimeoutError,
    urllib3.exceptions.SSLError,
)
_PASSING = (*_SERVERS, urllib3.exceptions.DecodeError)


def _may_pass(error: BaseException) -> bool:
    """Whether it is worth asking again in this run."""
    if isinstance(error, _Busy):
        return (error.seconds or 0) <= LONGEST_WAIT_S
    return isinstance(error, _PASSING)


def _parse_rate(rate: str) -> limits.RateLimitItem:
    try:
        return limits.parse(rate)
    except ValueError:
        raise Problem(f"{rate!r} is no rate", "Write one such as 1/second or 300/hour in the option `rate`") from None


def _limiters(address: str, cache: _Pool | None) -> list[limits.strategies.MovingWindowRateLimiter]:
    """What keeps the rate: the one of all workers first, where there is a cache, and that of this process."""
    stores: list[limits.storage.Storage] = [limits.storage.MemoryStorage()]
    if cache:
        stores.insert(0, limits.storage.RedisStorage(address, connection_pool=cache, key_prefix="lyrebird:limits"))
    return [limits.strategies.MovingWindowRateLimiter(store) for store in stores]


pybreaker.CircuitRedisStorage.logger.disabled = True  # a stack trace for every look while the cache is away
