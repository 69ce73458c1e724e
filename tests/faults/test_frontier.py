"""Crawls that are killed: nothing is lost, nothing comes twice, and no page that had landed is asked for again.

The crawler is killed while it asks, and within each of the transactions that a page goes through; whoever started it is
killed too. Afterwards the tables hold, row by row, what the site has.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import psutil
import pytest
from upstreams import mutopia as site
from upstreams.mutopia import Mutopia

from ingestion import pipeline
from ingestion.scrapers.__main__ import SETTINGS
from ingestion.sources import mutopia
from storage import roles, warehouse
from storage.errors import Problem
from storage.gates import audit
from storage.gates.audit import Verdict
from storage.settings import Role, options_file

if TYPE_CHECKING:
    from support import Stack

ROOT = Path(__file__).resolve().parents[2]
SEED = 20
KILLS = 3  # of a crawl, one after another, each with another soon after
AT_ONCE = SETTINGS["CONCURRENT_REQUESTS"]
PATIENCE_S = 120
QUIET = {"say": lambda text: None}
LOADER = (
    "import sys; from ingestion import pipeline; from ingestion.sources import mutopia; from storage.settings import "
)
LOADER += "Settings; pipeline.ingest(mutopia.SOURCE, Settings(), say=lambda text: None)"
Asked = tuple[str, dict[str, str]]


@pytest.fixture(autouse=True)
def world(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(audit, "run", lambda *arguments, **options: Verdict(True, "none", ""))
    yield
    stack.reset()


@pytest.fixture
def music() -> Iterator[Mutopia]:
    with Mutopia(site.made(27)).serving() as server:
        assert isinstance(server, Mutopia)
        server.faulty = False
        values = {"url": server.url, "rate": "", "allowed_hosts": [server.host]}
        lines = ["[sources.mutopia]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
        options_file().write_text("\n".join(lines) + "\n")
        yield server


def query(stack: Stack, text: str, role: Role = "loader") -> list[tuple[Any, ...]]:
    with closing(warehouse.connect(stack.settings(role))) as db, db, db.cursor() as sql:
        sql.execute(text)
        return sql.fetchall() if sql.description else []


def until(true: Callable[[], bool]) -> None:
    """Wait until something is so."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < PATIENCE_S, "it never was"
        time.sleep(0.02)


def asked_for(server: Mutopia, count: int, over: Callable[[], object]) -> None:
    """Wait until so many requests have come, or there will be no more."""
    until(lambda: bool(over()) or len(server.requests) >= count)


def held(stack: Stack, run: Run) -> None:
    """Wait until a transaction is held, and end its crawler, and then itself."""
    sleeping = "select pid from pg_stat_activity where wait_event = 'PgSleep'"
    until(lambda: run.over() or bool(query(stack, sleeping, "admin")))
    assert not run.over(), run.problem
    run.kill()
    query(stack, f"select pg_terminate_backend(pid) from ({sleeping}) as held", "admin")


def crawlers() -> list[psutil.Process]:
    """Crawlers of this process, and of those that it started."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if "ingestion.scrapers" in child.cmdline():
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


class Run:
    """An ingest in a thread, whose crawler somebody kills."""

    def __init__(self, stack: Stack) -> None:
        self.problem: Problem | None = None
        self._thread = threading.Thread(target=self._ingest, args=(stack,), daemon=True)
        self._thread.start()

    def _ingest(self, stack: Stack) -> None:
        try:
            pipeline.ingest(mutopia.SOURCE, stack.settings("loader"), **QUIET)
        except Problem as problem:
            self.problem = problem

    def over(self) -> bool:
        return not self._thread.is_alive()

    def kill(self, number: int = signal.SIGKILL) -> None:
        for crawler in crawlers():
            crawler.send_signal(number)
        self._thread.join(PATIENCE_S)
        assert self.over()


def landed(stack: Stack) -> list[Asked]:
    """What need not be asked for any more."""
    found = query(stack, "select request ->> 'url' from ops.frontier where landing is not null")
    return [_asked(url) for (url,) in found]


def _asked(url: str) -> Asked:
    parts = urlsplit(url)
    return parts.path, dict(parse_qsl(parts.query, keep_blank_values=True))


def finish(stack: Stack) -> None:
    settings = stack.settings("loader")
    pipeline.ingest(mutopia.SOURCE, settings, **QUIET)
    states = pipeline.judge(mutopia.SOURCE, settings, **QUIET)
    assert {state for state, _ in states.values()} <= {"published"}


def same(stack: Stack, server: Mutopia) -> None:
    """The tables hold what the site has, each row once, and nothing is left of the crawl."""
    rows = query(stack, "select piece_id, to_jsonb(r) from raw.mutopia_pieces as r order by 1")
    wanted = {number: site.expected(one, server.url) for number, one in sorted(server.pieces.items())}
    assert [number for number, _ in rows] == list(wanted)
    assert [{name: row[name] for name in wanted[number]} for number, row in rows] == list(wanted.values())
    files = query(stack, "select path from raw.mutopia_scores order by 1")
    assert len(files) == len(set(files)) == sum(one.files for one in server.pieces.values())
    assert query(stack, "select count(*) from ops.frontier") == query(stack, "select count(*) from ops.crawl") == [(0,)]
    assert query(stack, "select count(*) from ops.load") == [(2,)]


def test_a_crawler_killed_while_it_asks_goes_on_where_it_was(stack: Stack, music: Mutopia) -> None:
    dice = random.Random(SEED)
    kills = 0
    for _ in range(KILLS):
        before, aim = len(music.requests), dice.randint(3, 14)
        run = Run(stack)
        asked_for(music, before + aim, run.over)
        time.sleep(dice.uniform(0, 0.1))
        run.kill()
        kills += run.problem is not None
        told, begun = landed(stack), len(music.requests)
        finish_one = Run(stack)
        asked_for(music, begun + 3, finish_one.over)
        finish_one.kill()
        assert not [one for one in music.requests[begun:] if one in told], "it had landed"
    assert kills >= 2
    told, begun = landed(stack), len(music.requests)
    finish(stack)
    assert not [one for one in music.requests[begun:] if one in told]
    same(stack, music)
    pages = [(path, *params.items()) for path, params in music.requests if path != "/robots.txt"]
    assert len(pages) - len(set(pages)) <= 2 * KILLS * AT_ONCE  # what was under way when it was killed, and no more


@pytest.mark.parametrize(
    ("moment", "when"),
    [
        ("taken", "new.state = 'taken' and old.state = 'waiting'"),
        ("in the object store, and not noted", "new.landing is not null and old.landing is null"),
        ("noted, and its links not followed", "new.state = 'landed' and old.state = 'taken'"),
    ],
)
def test_a_crawler_killed_within_a_transaction_goes_on_where_it_was(
    stack: Stack, music: Mutopia, moment: str, when: str
) -> None:
    """A trigger holds the transaction of the fifth page, and of the listing's first, until the crawler is dead."""
    hold = f"""
        create function ops.hold() returns trigger language plpgsql as $$
        begin
            if {when} and new.number in (select number from ops.hold_at) then perform pg_sleep(60); end if;
            return new;
        end $$;
        create table ops.hold_at (number bigint);
        grant select on ops.hold_at to loader;
        create trigger hold before update on ops.frontier for each row execute function ops.hold();
        """
    query(stack, hold, "admin")
    try:
        for position in (0, 4):
            begun = (query(stack, "select min(number) from ops.frontier") or [(None,)])[0][0]
            if begun is None:  # identities go on counting
                begun = query(stack, "select coalesce(pg_sequence_last_value("
                              "pg_get_serial_sequence('ops.frontier', 'number')), 0) + 1", "admin")[0][0]  # fmt: skip
            query(stack, f"delete from ops.hold_at; insert into ops.hold_at values ({begun + position})", "admin")
            run = Run(stack)
            held(stack, run)
            query(stack, "delete from ops.hold_at", "admin")
            told = landed(stack)
            music.requests.clear()
            assert run.problem and "ended with -9" in run.problem.what
        finish(stack)
        assert not [one for one in music.requests if one in told], moment
        same(stack, music)
    finally:
        query(stack, "drop function ops.hold cascade; drop table ops.hold_at", "admin")


def test_who_started_the_crawler_may_be_killed_and_it_ends_too(stack: Stack, music: Mutopia) -> None:
    dice = random.Random(SEED + 1)
    for aim in (dice.randint(3, 12), dice.randint(20, 45)):
        loader = subprocess.Popen(
            [sys.executable, "-c", LOADER], cwd=ROOT, env=roles.environment("loader") | {"PYTHONPATH": str(ROOT)}
        )
        asked_for(music, aim, lambda process=loader: process.poll() is not None)
        left = crawlers()
        os.kill(loader.pid, signal.SIGKILL)
        loader.wait()
        _, alive = psutil.wait_procs(left, timeout=10)
        assert not alive
        told, begun = landed(stack), len(music.requests)
    finish(stack)
    assert not [one for one in music.requests[begun:] if one in told]
    same(stack, music)


def test_a_crawler_that_is_told_to_stop_finishes_what_is_under_way(stack: Stack, music: Mutopia) -> None:
    run = Run(stack)
    asked_for(music, 8, run.over)
    run.kill(signal.SIGTERM)
    assert run.problem and "was stopped before its end" in run.problem.what
    states = dict(query(stack, "select state, count(*) from ops.frontier group by 1"))
    assert states["waiting"] and states["landed"] and not states.get("taken")
    told, begun = landed(stack), len(music.requests)
    finish(stack)
    assert not [one for one in music.requests[begun:] if one in told]
    same(stack, music)


@pytest.mark.parametrize("stage", ["fetched", "before seal", "sealed", "before commit", "committed"])
def test_a_loader_that_dies_after_the_crawl_asks_nobody_again(stack: Stack, music: Mutopia, stage: str) -> None:
    class Killed(BaseException):
        pass

    def die(reached: str) -> None:
        if reached == stage:
            raise Killed

    with pytest.raises(Killed):
        pipeline.ingest(mutopia.SOURCE, stack.settings("loader"), reached=die, **QUIET)
    music.requests.clear()
    finish(stack)
    finish(stack)
    assert music.asked("cgibin") == []
    same(stack, music)
