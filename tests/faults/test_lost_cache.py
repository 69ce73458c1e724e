"""Losing the cache loses speed, not data: a source of the web is loaded while the cache is killed, hangs or forgets."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import loading_world as world
import pytest
import redis
from proxy import Proxy
from pydantic import SecretStr
from support import Stack, rotating_seed, until
from upstreams.hostile_server import answer, serve

from storage.settings import Settings


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    """The address of a server that has the pages."""
    with serve() as running:
        for path, page in world.web_pages(2).items():
            running.on(path, answer(page))
        yield f"http://{running.host}"


@pytest.fixture(scope="module")
def calm(settings: Settings, upstream: str) -> dict[str, list[Any]]:
    """What the pages come to without any cache."""
    without = settings.model_copy(update={"cache_url": type(settings.cache_url)("")})
    for generation in (1, 2):
        world.load("calm", generation, without, url=upstream)
    return world.tables("calm", settings)


@pytest.mark.parametrize("loss", ["killed", "stopped", "emptied"])
def test_a_source_of_the_web_is_loaded_whole_whatever_becomes_of_the_cache(
    stack: Stack, settings: Settings, upstream: str, calm: dict[str, list[Any]], loss: str
) -> None:
    name = f"cache_{loss}"
    with redis.Redis.from_url(stack.settings("admin").cache_url.get_secret_value()) as cache:
        pid = cache.info("server")["process_id"]
        try:
            for generation in (1, 2):
                loader, line = world.start(name, generation, settings, stop_at="fetched", nth=4, url=upstream)
                for _ in range(4):
                    world.await_stage(line, "fetched")
                if generation == 1 or loss == "emptied":
                    assert list(cache.scan_iter("lyrebird:*"))  # it was in use
                    if loss == "emptied":
                        cache.flushall()
                    else:
                        os.kill(pid, signal.SIGKILL if loss == "killed" else signal.SIGSTOP)
                line.send("go on")
                loader.join(120)
                assert loader.exitcode == 0, world.said(line)[-1]
        finally:
            if loss == "stopped":
                os.kill(pid, signal.SIGCONT)
        found = world.differences(calm, world.tables(name, settings))
        assert found == {}, found
        until(lambda: _answers(cache), 60)


@pytest.mark.parametrize("fault", ["cut", "slow"])
def test_a_bad_way_to_the_cache_loses_and_doubles_nothing(
    settings: Settings, upstream: str, calm: dict[str, list[Any]], fault: str
) -> None:
    name, url = f"cache_{fault}", settings.cache_url.get_secret_value()
    parts = urlsplit(url)
    proxy = Proxy(parts.hostname or "", parts.port or 0)
    through = url.replace(f"{parts.hostname}:{parts.port}", f"127.0.0.1:{proxy.port}")
    own = settings.model_copy(update={"cache_url": SecretStr(through)})
    dice = random.Random(f"{rotating_seed()} cache")
    proxy.delay_s = 0.005 if fault == "slow" else 0.0
    try:
        for generation in (1, 2):
            proxy.budgets = [int(dice.lognormvariate(7, 1)) for _ in range(12)] if fault == "cut" else []
            code, words = world.run(name, generation, own, url=upstream)
            assert code == 0, words[-1]
    finally:
        proxy.close()
    assert proxy.cut >= 2 if fault == "cut" else proxy.passed > 50
    found = world.differences(calm, world.tables(name, settings))
    assert found == {}, found


def _answers(cache: redis.Redis) -> bool:
    try:
        return bool(cache.ping())
    except redis.RedisError:
        return False
