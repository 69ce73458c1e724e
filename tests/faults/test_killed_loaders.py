"""Exactly once: a loader is killed at any moment, or runs twice, or its servers are; run again, the tables are equal.

Every comparison is row by row with those of an undisturbed run: rows, versions, documents, journal, cursor and counts.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import loading_world as world
import pytest
from support import Stack

from infra.embedded import stack as embedded
from ingestion import loading
from storage import warehouse
from storage.settings import Settings

KILLS = 8
Tables = dict[str, list[Any]]


@pytest.fixture(scope="module")
def settings(stack: Stack) -> Settings:
    return stack.settings("loader")


@pytest.fixture(scope="module")
def calm(settings: Settings) -> tuple[Tables, float]:
    """Two generations, loaded with nothing in the way; and how long one took."""
    began = time.monotonic()
    for generation in (1, 2):
        world.load("calm", generation, settings)
    return world.tables("calm", settings), (time.monotonic() - began) / 2


def test_the_undisturbed_run_has_everything_in_it(calm: tuple[Tables, float], settings: Settings) -> None:
    tables, _ = calm
    assert len(tables["load"]) == 4
    assert {len(rows) > 0 for rows in tables.values()} == {True}
    assert len(tables["rows"]) > 300
    assert any(row[4] == "True" for row in tables["rows"])  # deletions
    assert len(tables["quarantine"]) > 6
    world.load("calm", 2, settings)
    assert world.differences(tables, world.tables("calm", settings)) == {}  # nothing new is no load


def test_loaders_killed_at_any_moment_leave_the_same_tables(calm: tuple[Tables, float], settings: Settings) -> None:
    tables, seconds = calm
    hit: list[str] = []  # the stage that each killed loader had reached
    for seed in range(KILLS):
        dice, name = random.Random(seed), f"killed_{seed}"
        for generation in (1, 2):
            for _ in range(dice.randint(1, 2)):
                loader, line = world.start(name, generation, settings)
                loader.join(dice.uniform(0, 1.1) * seconds)
                if loader.is_alive() and loader.pid:
                    os.kill(loader.pid, signal.SIGKILL)
                loader.join()
                words = world.said(line)
                assert loader.exitcode in (0, -signal.SIGKILL), (seed, words)
                if loader.exitcode:
                    hit.append(words[-1] if words else "began")
            world.load(name, generation, settings)
        assert world.differences(tables, world.tables(name, settings)) == {}, seed
    assert len(set(hit) - {"began", "committed"}) >= 2, hit  # the kills came while there was work to spoil


def test_two_loaders_of_one_source_at_once(calm: tuple[Tables, float], settings: Settings) -> None:
    for generation in (1, 2):
        both = [world.start("twice", generation, settings) for _ in range(2)]
        for loader, line in both:
            loader.join(60)
            assert loader.exitcode == 0, world.said(line)
    assert world.differences(calm[0], world.tables("twice", settings)) == {}


def test_a_loader_that_hangs_holds_the_next_one_up_and_loses_nothing(
    calm: tuple[Tables, float], settings: Settings
) -> None:
    first, answer = world.start("hangs", 1, settings, stop_at="copied")
    world.await_stage(answer, "copied")
    second, line = world.start("hangs", 1, settings)
    second.join(0.5)
    assert second.is_alive()
    assert not world.said(line)
    os.kill(first.pid or 0, signal.SIGKILL)
    second.join(60)
    assert second.exitcode == 0, world.said(line)
    first.join()
    world.load("hangs", 2, settings)
    assert world.differences(calm[0], world.tables("hangs", settings)) == {}


@pytest.mark.parametrize(
    ("server", "stage"),
    [
        ("postgres", "sealed"), ("postgres", "copied"), ("objects", "fetched"), ("objects", "sealed"),
        ("documents", "parsed"), ("documents", "documents"),
    ],
)  # fmt: skip
def test_a_server_killed_under_a_loader_is_one_sentence_and_the_next_run_finishes(
    stack: Stack, calm: tuple[Tables, float], settings: Settings, server: str, stage: str
) -> None:
    name = f"without_{server}_at_{stage}"
    tables, _ = calm
    loader, line = world.start(name, 1, settings, stop_at=stage)
    world.await_stage(line, stage)
    (pid,) = [one.pid for one in embedded.status(stack.home) if one.name == server]
    try:
        os.kill(pid or 0, signal.SIGKILL)
        line.send("go on")
        loader.join(90)
        words = world.said(line)
        assert loader.exitcode in (0, 1), words[-1]  # 3 would be a stack trace; 0 when the server was back in time
        if loader.exitcode:
            assert words[-1].startswith("problem: "), words
            assert "lyrebird status" in words[-1]
            assert "password" not in words[-1]
    finally:
        deadline = time.monotonic() + 90  # the supervisor starts it again
        while not all(one.healthy for one in embedded.status(stack.home) if one.name in stack.started):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        embedded.up(stack.home, only=stack.started)
    for generation in (1, 2):
        world.load(name, generation, settings)
    assert world.differences(tables, world.tables(name, settings)) == {}


@pytest.mark.parametrize(
    "bug", ["bookkeeping is committed before the rows", "rows are committed before the bookkeeping"]
)
def test_the_comparison_sees_a_cursor_that_is_committed_apart_from_the_rows(
    calm: tuple[Tables, float], settings: Settings, monkeypatch: pytest.MonkeyPatch, bug: str
) -> None:
    """The test of the tests above: with the fault that they are there for, the tables differ."""
    early = "before the rows" in bug
    name = "planted_early" if early else "planted_late"
    record: Callable[..., None] = loading._record

    def apart(db: Any, *rest: Any) -> None:
        if early:
            with closing(warehouse.connect(settings)) as other, other:
                record(other, *rest)
        else:
            db.commit()
            record(db, *rest)

    class Killed(BaseException):
        pass

    def die(stage: str) -> None:
        if stage == "before commit":
            raise Killed

    with monkeypatch.context() as planted:
        planted.setattr(loading, "_record", apart)
        with pytest.raises(Killed):
            world.load(name, 1, settings, die)
    differences: dict[str, Any] = {}
    try:
        for generation in (1, 2):
            world.load(name, generation, settings)
        differences = world.differences(calm[0], world.tables(name, settings))
    except Exception as error:
        differences = {"rows": error}  # the same rows a second time break the key
    assert "rows" in differences
