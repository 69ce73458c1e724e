"""Connections that are slow, or end in the middle of a word: the same tables, after as many runs as it takes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import loading_world as world
import pytest
from proxy import Proxy
from pydantic import SecretStr
from support import rotating_seed

from storage import warehouse
from storage.settings import Settings

SERVERS = ("postgres", "documents", "objects")
RUNS = 30


def same(name: str, settings: Settings, calm: dict[str, list[Any]]) -> None:
    found = world.differences(calm, world.tables(name, settings))
    assert found == {}, (name, found)


class Network:
    """A proxy in front of each server that a loader uses, and settings that lead through them."""

    def __init__(self, settings: Settings) -> None:
        urls = {"documents": settings.mongo_url.get_secret_value(), "objects": settings.s3_endpoint}
        at = {name: (parts.hostname or "", parts.port or 0) for name, url in urls.items() if (parts := urlsplit(url))}
        at["postgres"] = (settings.postgres_host, settings.postgres_port)
        self.proxies = {name: Proxy(*at[name]) for name in SERVERS}

        def through(name: str) -> str:
            host, port = at[name]
            return urls[name].replace(f"{host}:{port}", f"127.0.0.1:{self.proxies[name].port}")

        self.settings = settings.model_copy(
            update={
                "postgres_host": "127.0.0.1",
                "postgres_port": self.proxies["postgres"].port,
                # without the option the client would go on to the address that the server names
                "mongo_url": SecretStr(f"{through('documents')}&directConnection=true"),
                "s3_endpoint": through("objects"),
            }
        )


@pytest.fixture
def network(settings: Settings) -> Iterator[Network]:
    made = Network(settings)
    yield made
    for proxy in made.proxies.values():
        proxy.close()


def test_a_slow_network_only_takes_longer(calm: dict[str, list[Any]], settings: Settings, network: Network) -> None:
    for proxy in network.proxies.values():
        proxy.delay_s = 0.003
    for generation in (1, 2):
        code, words = world.run("slow", generation, network.settings)
        assert code == 0, words[-1]
    same("slow", settings, calm)
    assert {name: proxy.passed > 10 for name, proxy in network.proxies.items()} == dict.fromkeys(SERVERS, True)


@pytest.mark.parametrize("server", SERVERS)
def test_connections_that_are_cut_anywhere_lose_and_double_nothing(
    calm: dict[str, list[Any]], settings: Settings, network: Network, server: str
) -> None:
    dice, name = random.Random(f"{rotating_seed()} {server}"), f"cut_{server}"
    proxy, failed = network.proxies[server], 0
    for generation in (1, 2):
        proxy.budgets = [int(dice.lognormvariate(9.5, 1.5)) for _ in range(12)]  # mostly 3 to 60 kB
        for _ in range(RUNS):
            code, words = world.run(name, generation, network.settings)
            if code == 0:
                break
            failed += 1
            assert code == 1, words[-1]
            assert words[-1].startswith("problem: "), words[-1]
            assert "lyrebird status" in words[-1], words[-1]
        assert code == 0
    assert proxy.cut >= 3
    same(name, settings, calm)
    if server == "postgres":  # the others are asked again at once
        assert failed


def test_a_loader_whose_lock_was_lost_doubles_nothing(calm: dict[str, list[Any]], settings: Settings) -> None:
    """PostgreSQL ends the connection that holds the lock, and a second loader comes while the first is at work."""
    name = "unlocked"
    first, line = world.start(name, 1, settings, stop_at="before commit")
    world.await_stage(line, "before commit")
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute(
            "select pg_terminate_backend(a.pid) from pg_stat_activity as a join pg_locks as l on l.pid = a.pid "
            "where l.locktype = 'advisory' and application_name = %s",
            (f"load {name}",),
        )
        assert sql.rowcount >= 2  # of the fetch, and of the loading
    second, heard = world.start(name, 1, settings)
    second.join(1)
    assert second.is_alive()  # it waits for what the first has not committed
    line.send("go on")
    first.join(60)
    second.join(60)
    for loader, talk in ((first, line), (second, heard)):
        words = world.said(talk)
        assert loader.exitcode in (0, 1), words[-1]
    for generation in (1, 2):
        assert world.run(name, generation, settings)[0] == 0
    same(name, settings, calm)
