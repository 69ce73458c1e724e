"""What all workers share about the servers of others, through the real cache: rates, and who is left alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from faults.proxy import Proxy
from pydantic import SecretStr
from support import Stack
from upstreams.hostile_server import HostileServer, answer, serve

from ingestion.web import FAILURES, TRIES, Web
from storage.errors import Problem
from storage.settings import Settings

PROCESSES = multiprocessing.get_context("forkserver")
PER_SECOND = 5


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with serve() as running:
        yield running


@pytest.fixture
def cache(stack: Stack) -> Iterator[redis.Redis]:
    """The cache, as the loader may use it, emptied of what these tests left there; up again afterwards."""
    url = stack.settings("loader").cache_url.get_secret_value()
    with redis.Redis.from_url(url) as client:
        yield client
        deadline = time.monotonic() + 60
        while True:
            try:
                for key in client.scan_iter("lyrebird:*"):
                    client.delete(key)
                return
            except redis.RedisError:
                assert time.monotonic() < deadline
                time.sleep(0.2)


def web(settings: Settings, server: str, rate: str = "", rest: float = 120.0) -> Web:
    quick = time.sleep if rate else lambda seconds: None
    return Web(settings, rate=rate, allowed=[server], sleep=quick, rest=rest)


def asks(settings: Settings, server: str, path: str, times: int, together: Any, told: Any) -> None:
    """A worker: asks so many times, and tells how it went."""
    try:
        client = web(settings, server, f"{PER_SECOND}/second")
        together.wait(60)
        for _ in range(times):
            client.get(f"http://{server}{path}")
    except Exception as error:
        told.put(repr(error))
    else:
        told.put("")


def meets(settings: Settings, server: str, times: int, rest: float, told: Any) -> None:
    """A worker that gets nothing but failures: tells what each was."""
    client = web(settings, server, rest=rest)
    for _ in range(times):
        try:
            client.get(f"http://{server}/")
        except Problem as problem:
            told.put(str(problem))
        else:
            told.put("")


@contextmanager
def workers(*jobs: tuple[Callable[..., None], tuple[Any, ...]]) -> Iterator[Callable[[int], list[str]]]:
    """These jobs in processes of their own; gives a function that waits for so many of their words."""
    told = PROCESSES.Queue()
    running = [PROCESSES.Process(target=job, args=(*given, told)) for job, given in jobs]
    for process in running:
        process.start()
    try:
        yield lambda words: [told.get(timeout=60) for _ in range(words)]
    finally:
        for process in running:
            process.join(60)
            process.kill()


def crowded(times: list[float], seconds: float = 0.9) -> list[float]:
    """Spans in which more requests came than the rate allows. A little less than a second: networks jitter."""
    times = sorted(times)
    return [b - a for a, b in zip(times, times[PER_SECOND:], strict=False) if b - a < seconds]


@pytest.mark.parametrize("delay_s", [0.0, 0.02])
def test_two_processes_hold_one_rate_together_however_far_the_cache_is(
    stack: Stack, cache: redis.Redis, server: HostileServer, delay_s: float
) -> None:
    server.on("/a", answer(b"x"))
    server.on("/b", answer(b"x"))
    settings = stack.settings("loader")
    url = settings.cache_url.get_secret_value()
    parts = urlsplit(url)
    proxy = Proxy(parts.hostname or "", parts.port or 0)
    proxy.delay_s = delay_s
    through = SecretStr(url.replace(f"{parts.hostname}:{parts.port}", f"127.0.0.1:{proxy.port}"))
    settings = settings.model_copy(update={"cache_url": through})
    together = PROCESSES.Barrier(2)
    jobs = [(asks, (settings, server.host, path, 9, together)) for path in ("/a", "/b")]
    with workers(*jobs) as words:
        assert words(2) == ["", ""]
    proxy.close()
    assert len(server.asked) == 18 < proxy.passed
    assert crowded([request.at for request in server.asked]) == []
    halves = [[request.at for request in server.asked if request.path == path] for path in ("/a", "/b")]
    assert max(halves[0][0], halves[1][0]) < min(halves[0][-1], halves[1][-1])  # they were at it at the same time
    assert list(cache.scan_iter("lyrebird:limits*"))


def test_a_cache_that_is_killed_meanwhile_costs_no_request(
    stack: Stack, cache: redis.Redis, server: HostileServer
) -> None:
    server.on("/a", answer(b"x"))
    server.on("/b", answer(b"x"))
    settings = stack.settings("loader")
    together = PROCESSES.Barrier(2)
    jobs = [(asks, (settings, server.host, path, 12, together)) for path in ("/a", "/b")]
    with workers(*jobs) as words:
        while len(server.asked) < 4:
            time.sleep(0.01)
        os.kill(cache.info("server")["process_id"], signal.SIGKILL)
        assert words(2) == ["", ""]
    assert len(server.asked) == 24
    for path in ("/a", "/b"):  # each process holds the rate by itself then
        assert crowded([request.at for request in server.asked[4:] if request.path == path]) == []


def test_a_cache_that_hangs_is_not_waited_for_again_and_again(
    stack: Stack, cache: redis.Redis, server: HostileServer
) -> None:
    client = web(stack.settings("loader"), server.host, "100/second")
    url = server.on("/", answer(b"x"))
    client.get(url)
    process = cache.info("server")["process_id"]
    os.kill(process, signal.SIGSTOP)
    try:
        began = time.monotonic()
        for _ in range(20):
            client.get(url)
        assert time.monotonic() - began < 15
        assert client.get(server.on("/other", answer(b"y"))) is not None
        late = web(stack.settings("loader"), server.host, "100/second")
        assert late.get(url) is not None
    finally:
        os.kill(process, signal.SIGCONT)


def test_a_host_that_fails_is_left_alone_by_all_processes_and_comes_back(
    stack: Stack, cache: redis.Redis, server: HostileServer
) -> None:
    settings = stack.settings("loader")
    url = server.on("/", answer(status=503))
    with workers((meets, (settings, server.host, FAILURES, 600.0))) as words:
        assert all("answered 503" in said for said in words(FAILURES))
    assert len(server.asked) == FAILURES * TRIES
    here = web(settings, server.host, rest=600)
    with pytest.raises(Problem, match="failed 5 times in a row and is left alone for 600 seconds"):
        here.get(url)
    with workers((meets, (settings, server.host, 2, 600.0))) as words:
        assert all("is left alone" in said for said in words(2))
    assert len(server.asked) == FAILURES * TRIES
    server.on("/", answer(b"good"))
    time.sleep(1)
    with workers((meets, (settings, server.host, 1, 0.5))) as words:  # as if the 600 seconds were over
        assert words(1) == [""]
    found = here.get(url)
    assert found is not None
    assert found.body == b"good"


def test_failures_of_several_processes_count_together(stack: Stack, cache: redis.Redis, server: HostileServer) -> None:
    settings = stack.settings("loader")
    server.on("/", answer(status=500))
    with workers(*[(meets, (settings, server.host, FAILURES, 60.0))] * 2) as words:
        said = words(2 * FAILURES)
    assert sum("answered 500" in one for one in said) in (FAILURES, FAILURES + 1)  # one may be on its way
    assert sum("is left alone" in one for one in said) >= FAILURES - 1
