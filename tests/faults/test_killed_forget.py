"""A withdrawal is killed anywhere; run again, the stores are as after one that nothing disturbed."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from unittest import mock

import forgetting_world as world
import pytest
from support import Stack, rotating_seed

from ingestion import pipeline
from storage.objects import Objects
from storage.settings import Settings

State = dict[str, list[str]]
KILLS = 3


@pytest.fixture(scope="module")
def settings(stack: Stack) -> Iterator[Settings]:
    yield stack.settings("admin")
    stack.reset()


@pytest.fixture(scope="module")
def calm(stack: Stack, settings: Settings) -> tuple[State, State, float]:
    """The stores before a withdrawal that nothing disturbs, and after it; and how long that took."""
    refill(stack, settings)
    before = world.left(settings)
    began = time.monotonic()
    world.forget(settings)
    return before, world.left(settings), time.monotonic() - began


def refill(stack: Stack, settings: Settings) -> None:
    """The stores with the aviary in them, and a version, predictions and splits of it."""
    stack.reset()
    world.fill(stack.settings("loader"))
    world.build_on(settings)


def test_the_undisturbed_withdrawal_takes_what_it_should(settings: Settings, calm: tuple[State, State, float]) -> None:
    before, after, _ = calm
    assert [len(before[table]) for table in ("recordings", "audio", "clips", "documents", "derived")] == [8] * 5
    gone = sum(any(word in row for word in ("SIM00002", "Sim Aldous")) for row in before["recordings"])
    assert gone >= 2
    assert [len(after[table]) for table in ("recordings", "audio", "clips", "documents", "derived")] == [8 - gone] * 5
    assert len(before["splits"]) - len(after["splits"]) == 1
    assert len(before["prediction"]) - len(after["prediction"]) == gone
    assert after["dataset"] == [f'["v1", [{gone}]]']
    assert not any("SIM00002" in row or "Sim Aldous" in row for rows in after.values() for row in rows)
    assert sum("forget" in row for row in after["load"]) == 3


@pytest.mark.parametrize("stage", world.STAGES)
def test_killed_at_a_stage_and_run_again(
    stack: Stack, settings: Settings, calm: tuple[State, State, float], stage: str
) -> None:
    refill(stack, settings)
    assert world.killed(settings, stage) == -signal.SIGKILL
    world.forget(settings)
    assert world.differences(calm[1], world.left(settings)) == {}


@pytest.mark.parametrize("seed", range(KILLS))
def test_killed_at_random_with_the_source_at_work_in_between(
    stack: Stack, settings: Settings, calm: tuple[State, State, float], seed: int
) -> None:
    dice = random.Random(f"{rotating_seed()} {seed}")
    refill(stack, settings)
    for _ in range(2):
        assert world.killed(settings, after_s=dice.uniform(0.1, 1.1) * calm[2]) in (0, -signal.SIGKILL)
        for source in (world.AVIARY, world.CLIPS):  # they find nothing new, and mend nothing that is half done
            world.ingest(source, stack.settings("loader"))
    world.forget(settings)
    assert world.differences(calm[1], world.left(settings)) == {}


def test_what_was_built_of_rows_that_were_about_to_go_is_built_again(stack: Stack, settings: Settings) -> None:
    refill(stack, settings)
    assert world.killed(settings, "sealed") == -signal.SIGKILL
    sources, loader = (world.AVIARY, world.CLIPS), stack.settings("loader")
    for source in sources:
        world.ingest(source, loader)
    built = [pipeline.latest(source, loader) for source in sources]  # a transform reads raw now, and remembers these
    world.forget(settings)
    assert all(pipeline.latest(source, loader) > number for source, number in zip(sources, built, strict=True))


def test_a_replay_after_a_kill_keeps_out_what_has_a_tombstone(stack: Stack, settings: Settings) -> None:
    refill(stack, settings)
    assert world.killed(settings, "tombstones") == -signal.SIGKILL
    pipeline.replay(world.AVIARY, stack.settings("loader"), say=lambda text: None)
    state = world.left(settings)
    assert not any("SIM00002" in row or "Sim Aldous" in row for row in state["recordings"] + state["audio"])
    assert len(state["recordings"]) == len(state["audio"]) > 3


def test_the_comparison_sees_a_clip_that_was_left(
    stack: Stack, settings: Settings, calm: tuple[State, State, float]
) -> None:
    """The test of the tests above."""
    refill(stack, settings)
    delete = Objects.delete

    def spare(objects: Objects, bucket: str, key: str) -> None:
        if bucket != "derived":
            delete(objects, bucket, key)

    with mock.patch.object(Objects, "delete", spare):
        world.forget(settings)
    found = world.differences(calm[1], world.left(settings))
    assert set(found) == {"derived"}
