"""Exactly once: a loader is killed at any moment, or runs twice, or its servers are; run again, the tables are equal.

Every comparison is row by row with those of an undisturbed run: rows, versions, documents, journal, cursor and counts.
Where the kills come differs with each commit; the number that makes them come there again is printed (LYREBIRD_SEED).
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import loading_world as world
import pytest
from support import Stack, rotating_seed

from infra.embedded import stack as embedded
from storage.settings import Settings

# How often a loader is killed at each boundary, more often where its transaction is open; and at random points.
AT = {stage: 7 if stage in world.OPEN else 3 for stage in world.STAGES}
ANYWHERE = "anywhere"
AT_RANDOM = 7
PER_GENERATION = 6  # kills of one source before it is let finish
Tables = dict[str, list[Any]]


def same(name: str, settings: Settings, calm: Tables) -> None:
    found = world.differences(calm, world.tables(name, settings))
    assert found == {}, (name, found)


def killed(
    at: str, name: str, generation: int, settings: Settings, dice: random.Random, steps: Counter[str], bug: str
) -> tuple[str, bool] | None:
    """Kill a loader at one of the times that it reaches a stage, or anywhere.

    Gives the stage that it had reached, and whether PostgreSQL had a transaction of it open that had written
    something; None when it came to its end before.
    """
    stop: dict[str, Any] = {} if at == ANYWHERE else {"stop_at": at, "nth": dice.randint(1, steps[at])}
    loader, line = world.start(name, generation, settings, bug=bug, **stop)
    reached, last = Counter[str](), "began"
    try:
        for _ in range(dice.randint(1, steps.total()) if at == ANYWHERE else 10**6):
            last = line.recv()
            reached[last] += 1
            if stop and reached[at] == stop["nth"]:
                break
    except (EOFError, ConnectionResetError):
        loader.join()
        assert loader.exitcode == 0, f"{name}: {last}"
        return None
    if at == ANYWHERE:
        time.sleep(dice.uniform(0, 0.03))
    states = world.kill(loader, name, settings)
    if loader.exitcode == 0:
        return None  # it came to its end while we were waiting
    assert loader.exitcode == -signal.SIGKILL, (name, last)
    said = world.said(line)
    return (said[-1] if said else last), bool(states)


def survive(
    plan: list[str], dice: random.Random, prefix: str, settings: Settings, calm: Tables, bug: str = ""
) -> list[tuple[str, str, bool]]:
    """Kill loaders as planned, several of a source before one may finish, and compare what each source comes to.

    Gives of each kill where it was planned, the stage that was reached, and whether a transaction was open.
    """
    _, words = world.run(f"{prefix}_counted", 1, settings)
    steps = Counter(words)
    waiting, kills = deque(plan), list[tuple[str, str, bool]]()
    for number in range(4 * len(plan)):
        name = f"{prefix}_{number}"
        for generation in (1, 2):
            for _ in range(min(PER_GENERATION, len(waiting))):
                at = waiting.popleft()
                found = killed(at, name, generation, settings, dice, steps, bug)
                if found is None:
                    waiting.append(at)  # there was no such stage left to reach
                else:
                    kills.append((at, *found))
            code, words = world.run(name, generation, settings, bug=bug)
            assert code == 0, f"{name}: {words[-1:]}"
        same(name, settings, calm)
        if not waiting:
            break
    return kills


def table(kills: list[tuple[str, str, bool]], number: int) -> str:
    """Where the kills landed, for people."""
    lines = [f"LYREBIRD_SEED={number}: loaders killed, by the stage that they had reached last"]
    lines += [f"{'':<18}{'at it':>8}{'anywhere':>10}{'in an open transaction':>25}"]
    for stage in ("began", *world.STAGES):
        of_it = [(at, is_open) for at, reached, is_open in kills if reached == stage]
        anywhere = sum(at == ANYWHERE for at, _ in of_it)
        lines.append(f"{stage:<18}{len(of_it) - anywhere:>8}{anywhere:>10}{sum(o for _, o in of_it):>25}")
    lines.append(f"{'all':<18}{'':>8}{len(kills):>10}{sum(is_open for *_, is_open in kills):>25}")
    return "\n".join(lines)


def test_the_undisturbed_run_has_everything_in_it(calm: Tables, settings: Settings) -> None:
    assert len(calm["load"]) == 2 * len(world.KINDS)
    assert {table: len(rows) > 0 for table, rows in calm.items()} == dict.fromkeys(calm, True)
    assert len(calm["rows"]) > 300
    assert all(any(row[4] == "True" for row in calm[kind]) for kind in ("rows", "list"))  # deletions
    assert len(calm["quarantine"]) > 6
    world.load("calm", 2, settings)
    same("calm", settings, calm)  # nothing new is no load


def test_loaders_killed_at_every_boundary_and_anywhere_leave_the_same_tables(
    calm: Tables,
    settings: Settings,
    capsys: pytest.CaptureFixture[str],
    record_property: Callable[[str, object], None],
) -> None:
    number = rotating_seed()
    dice = random.Random(number)
    plan = [stage for stage, times in AT.items() for _ in range(times)] + [ANYWHERE] * AT_RANDOM
    dice.shuffle(plan)
    kills = survive(plan, dice, "killed", settings, calm)
    shown = table(kills, number)
    record_property("kills", shown)
    with capsys.disabled():
        print(f"\n{shown}")
    assert len(kills) == len(plan) >= 50
    at = Counter(at for at, *_ in kills)
    assert min(at[stage] for stage in world.STAGES) >= 3
    assert all(is_open == (at in world.OPEN) for at, _, is_open in kills if at != ANYWHERE), shown
    assert 2 * sum(is_open for *_, is_open in kills) >= len(kills), shown
    assert len({reached for at, reached, _ in kills if at == ANYWHERE}) >= 3, shown


def test_two_loaders_of_one_source_at_once(calm: Tables, settings: Settings) -> None:
    for generation in (1, 2):
        both = [world.start("twice", generation, settings) for _ in range(2)]
        for loader, line in both:
            loader.join(60)
            assert loader.exitcode == 0, world.said(line)
    same("twice", settings, calm)


def test_a_loader_that_hangs_holds_the_next_one_up_and_loses_nothing(calm: Tables, settings: Settings) -> None:
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
    same("hangs", settings, calm)


@pytest.mark.parametrize(
    ("server", "stage"),
    [
        ("postgres", "sealed"), ("postgres", "copied"), ("objects", "fetched"), ("objects", "sealed"),
        ("documents", "parsed"), ("documents", "documents"),
    ],
)  # fmt: skip
def test_a_server_killed_under_a_loader_is_one_sentence_and_the_next_run_finishes(
    stack: Stack, calm: Tables, settings: Settings, server: str, stage: str
) -> None:
    name = f"without_{server}_at_{stage}"
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
    same(name, settings, calm)


# ---------------------------------------------------------------- the test of the tests


@pytest.mark.parametrize("bug", world.BUGS)
def test_the_kills_find_a_cursor_that_is_committed_apart_from_the_rows(
    calm: Tables, settings: Settings, bug: str
) -> None:
    """With the fault that they are there for the test above is red, and without a kill nobody would see the fault."""
    prefix = f"planted_{world.BUGS.index(bug)}"
    for generation in (1, 2):
        assert world.run(f"{prefix}_calm", generation, settings, bug=bug)[0] == 0
    same(f"{prefix}_calm", settings, calm)
    with pytest.raises(AssertionError) as red:
        survive(["before commit"] * 4, random.Random(rotating_seed()), prefix, settings, calm, bug)
    said = ("'rows'", "'papers'", "'list'", "'by_days'", "at the same time")  # they are lost, or a key is there twice
    assert any(word in str(red.value) for word in said), red.value
