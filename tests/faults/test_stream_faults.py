"""Messages at least once in, exactly once out, whatever is killed and however they come.

Each result is compared row by row with that of a run in peace: nothing lost, nothing twice, quarantine included.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
import stream_world as world
from proxy import Proxy
from pydantic import SecretStr
from support import Stack, rotating_seed
from upstreams.recorder import POISON, Recorder

from infra.embedded import stack as embedded
from storage import warehouse
from storage.settings import Settings
from storage.stream import ASIDE, Stream

KILLS = 4
Tables = dict[str, list[Any]]


@pytest.fixture(scope="module")
def settings(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LYREBIRD_OPTIONS", str(tmp_path_factory.mktemp("options") / "lyrebird.toml"))
        yield stack.settings("loader")


@pytest.fixture(scope="module")
def server(settings: Settings) -> Stream:
    return Stream(settings)


@pytest.fixture(scope="module")
def calm(settings: Settings, server: Stream) -> Tables:
    """Every message once and in order, with nothing in the way."""
    world.source("calm")
    Recorder(repeats=False, shuffles=False).send(server, "calm")
    world.consume("calm", settings)
    return world.tables("calm", settings)


def same(name: str, settings: Settings, calm: Tables) -> None:
    found = world.differences(calm, world.tables(name, settings))
    assert found == {}, world.shown(found)
    assert world.pending(name, settings) == {"detections": 0, "clips": 0}


def kill(process: Any) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def test_the_undisturbed_run_has_everything_in_it(calm: Tables, settings: Settings, server: Stream) -> None:
    assert len(calm["detections"]) == 60 + 9
    assert len(calm["clips"]) == 15 + 3
    assert len(calm["derived"]) > 8
    assert len(calm["quarantine"]) == 2 * len(POISON)
    reasons = {row[-1] for row in calm["quarantine"]}
    assert all(any(said in reason for reason in reasons) for _, said in POISON), reasons
    same("calm", settings, calm)
    # what everybody is done with leaves the stream: it has no room for all that ever came
    assert [server.client.xlen(f"calm:{kind}") for kind in world.KINDS] == [1, 1]
    assert [row[:3] for row in world.lags("calm", settings)] == [
        ("detections", 79, 0), ("clips", 28, 0), ("detections", 0, 0), ("clips", 0, 0)
    ]  # fmt: skip
    assert world.lags("calm", settings)[0][3] is not None and world.lags("calm", settings)[-1][3] is None
    world.consume("calm", settings)
    same("calm", settings, calm)  # nothing new is no load


def test_messages_repeated_and_out_of_order_are_the_same_tables(
    calm: Tables, settings: Settings, server: Stream
) -> None:
    for seed in range(3):
        name = f"shuffled_{seed}"
        world.source(name)
        recorder = Recorder()
        order = random.Random(seed)
        for kind in world.KINDS:
            messages = recorder.messages(kind)
            order.shuffle(messages)
            for i in range(0, len(messages), 30):  # what repeats comes in another load
                for fields in messages[i : i + 30]:
                    server.send(f"{name}:{kind}", fields)
                world.consume(name, settings)
        same(name, settings, calm)


@pytest.mark.parametrize("stage", world.STAGES)
def test_a_consumer_killed_at_any_stage_loses_nothing_and_doubles_nothing(
    calm: Tables, settings: Settings, server: Stream, stage: str
) -> None:
    name = f"killed_{stage.replace(' ', '_')}"
    world.source(name)
    recorder = Recorder()
    for part in (slice(0, 40), slice(40, None)):
        recorder.send(server, name, part)
        consumer, line = world.start(name, settings, stop_at=stage)
        world.await_stage(line, stage)
        kill(consumer)
        assert consumer.exitcode == -signal.SIGKILL
        time.sleep(0.06)  # until it counts as dead
    world.drain(name, settings)
    same(name, settings, calm)


@pytest.mark.parametrize("stage", ["committed", "judged", "accepted"])
def test_one_killed_after_the_commit_and_before_the_acknowledgement_makes_no_second_load(
    calm: Tables, settings: Settings, server: Stream, stage: str
) -> None:
    name = f"unacknowledged_{stage}"
    world.source(name)
    Recorder(repeats=False, shuffles=False).send(server, name)
    consumer, line = world.start(name, settings, stop_at=stage)
    world.await_stage(line, stage)
    assert world.pending(name, settings)["detections"] == 79  # committed, and not acknowledged
    kill(consumer)
    time.sleep(0.06)
    world.drain(name, settings)
    same(name, settings, calm)
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute("select resource, sum(rows + quarantined) from ops.load where source = %s group by 1", (name,))
        assert dict(sql.fetchall()) == {"detections": 79, "clips": 28}  # each was loaded once, none again


def test_consumers_killed_at_random_while_messages_come(calm: Tables, settings: Settings, server: Stream) -> None:
    hit: list[str] = []
    world.source("counted")
    Recorder().send(server, "counted", slice(0, 50))
    consumer, line = world.start("counted", settings)
    consumer.join()
    steps = len(world.said(line))
    for seed in range(KILLS):
        dice, name = random.Random(seed), f"random_{seed}"
        world.source(name)
        recorder = Recorder()
        at = 0
        while at < 100:
            step = dice.randint(20, 80)
            recorder.send(server, name, slice(at, at + step))
            at += step
            consumer, line = world.start(name, settings)
            last = ""
            with suppress(EOFError):  # it has come to its end before
                for _ in range(dice.randint(1, steps)):
                    last = line.recv()
                time.sleep(dice.uniform(0, 0.03))
                os.kill(consumer.pid or 0, signal.SIGKILL)
                hit.append(last)
            consumer.join()
            assert consumer.exitcode in (0, -signal.SIGKILL), (seed, last)
            time.sleep(0.06)
        world.drain(name, settings)
        same(name, settings, calm)
    assert len(set(hit)) >= 3, hit


def test_two_consumers_at_once(calm: Tables, settings: Settings, server: Stream) -> None:
    name = "both"
    world.source(name)
    recorder = Recorder()
    for part in (slice(0, 50), slice(50, None)):
        recorder.send(server, name, part)
        both = [world.start(name, settings) for _ in range(2)]
        for consumer, line in both:
            consumer.join(60)
            assert consumer.exitcode == 0, world.said(line)
    world.drain(name, settings)
    same(name, settings, calm)


def test_what_another_consumer_of_the_group_has_left_is_claimed_when_it_counts_as_dead(
    calm: Tables, settings: Settings, server: Stream
) -> None:
    name = "stranger"
    world.source(name, claim_after=1.5)
    Recorder().send(server, name)
    server.join(f"{name}:detections", world.GROUP)
    taken = server.receive(f"{name}:detections", world.GROUP, "stranger", 30)
    world.consume(name, settings)
    assert world.pending(name, settings)["detections"] == len(taken) == 30  # it may still be at work
    time.sleep(1.6)
    world.drain(name, settings)
    same(name, settings, calm)


@pytest.mark.parametrize("stage", ["received", "fetched", "judged"])
def test_the_stream_server_is_killed_under_a_consumer(
    stack: Stack, calm: Tables, settings: Settings, server: Stream, stage: str
) -> None:
    name = f"without_stream_at_{stage}"
    world.source(name)
    Recorder().send(server, name)
    consumer, line = world.start(name, settings, stop_at=stage)
    world.await_stage(line, stage)
    (pid,) = [one.pid for one in embedded.status(stack.home) if one.name == "stream"]
    try:
        os.kill(pid or 0, signal.SIGKILL)
        line.send("go on")
        consumer.join(90)
        words = world.said(line)
        assert consumer.exitcode in (0, 1), words[-1]
        if consumer.exitcode:
            assert words[-1].startswith("problem: the stream server failed"), words[-1]
            assert "lyrebird status" in words[-1]
    finally:
        deadline = time.monotonic() + 90  # the supervisor starts it again
        while not all(one.healthy for one in embedded.status(stack.home) if one.name in stack.started):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        embedded.up(stack.home, only=stack.started)
    time.sleep(0.06)
    world.drain(name, settings)
    same(name, settings, calm)


@pytest.fixture
def network(settings: Settings) -> Iterator[tuple[Proxy, Settings]]:
    """A proxy in front of the stream server, and settings that lead through it."""
    url = settings.stream_url.get_secret_value()
    parts = urlsplit(url)
    proxy = Proxy(parts.hostname or "", parts.port or 0)
    through = url.replace(f"{parts.hostname}:{parts.port}", f"127.0.0.1:{proxy.port}")
    yield proxy, settings.model_copy(update={"stream_url": SecretStr(through)})
    proxy.close()


def test_a_slow_way_to_the_stream_server_only_takes_longer(
    calm: Tables, settings: Settings, server: Stream, network: tuple[Proxy, Settings]
) -> None:
    name, (proxy, through) = "slow_stream", network
    proxy.delay_s = 0.005
    world.source(name)
    Recorder().send(server, name)
    consumer, line = world.start(name, through)
    consumer.join(120)
    assert consumer.exitcode == 0, world.said(line)[-1]
    assert proxy.passed > 20
    same(name, settings, calm)


def test_connections_to_the_stream_server_that_are_cut_anywhere_lose_and_double_nothing(
    calm: Tables, settings: Settings, server: Stream, network: tuple[Proxy, Settings]
) -> None:
    name, (proxy, through) = "cut_stream", network
    dice = random.Random(f"{rotating_seed()} stream")
    world.source(name, deliveries=500)  # a message whose connection is cut has been delivered once more
    recorder = Recorder()
    for start in range(0, 120, 40):
        recorder.send(server, name, slice(start, start + 40) if start < 80 else slice(start, None))
        for _ in range(4):
            proxy.budgets = [int(dice.lognormvariate(8, 1.5)) for _ in range(6)]  # mostly 1 to 15 kB
            consumer, line = world.start(name, through)
            consumer.join(120)
            words = world.said(line)
            assert consumer.exitcode in (0, 1), words[-1]
            if consumer.exitcode:
                assert words[-1].startswith("problem: the stream server failed"), words[-1]
            time.sleep(0.06)
    assert proxy.cut >= 5
    proxy.budgets = []
    world.drain(name, through)
    same(name, settings, calm)


def test_a_message_that_kills_whoever_reads_it_goes_to_quarantine_alone(
    calm: Tables, settings: Settings, server: Stream
) -> None:
    name = "deadly"
    world.source(name)
    recorder = Recorder()
    recorder.send(server, name, slice(0, 20))
    server.send(f"{name}:detections", {"json": b'{"id": "deadly"}'})
    ends = []
    for _ in range(40):
        consumer, line = world.start(name, settings, killer="deadly")
        consumer.join(60)
        ends.append(consumer.exitcode)
        assert consumer.exitcode in (0, -signal.SIGKILL), world.said(line)
        time.sleep(0.06)
        lag = server.lag(f"{name}:detections", world.GROUP)
        if not lag.pending and not lag.undelivered:
            break
    assert ends.count(-signal.SIGKILL) == world.OPTIONS["deliveries"]
    recorder.send(server, name, slice(20, None))
    world.drain(name, settings)
    tables = world.tables(name, settings)
    refused = [row for row in tables["quarantine"] if "deadly" in row[1]]
    assert len(refused) == 1
    assert "was delivered 7 times and never arrived" in refused[0][-1]
    tables["quarantine"].remove(refused[0])
    found = world.differences(calm, tables)
    assert found == {}, world.shown(found)


def test_a_rejected_load_gives_its_messages_back_and_they_come_with_the_next(
    calm: Tables, settings: Settings, server: Stream
) -> None:
    name = "rejected"
    world.source(name)
    recorder = Recorder()
    recorder.send(server, name, slice(0, 40))
    world.consume(name, settings, accept=False)
    assert world.pending(name, settings) == {"detections": 40, "clips": 32}
    assert set(server.left(f"{name}:detections", world.GROUP, 0, 100).values()) == {0}  # no death is held against them
    (holder,) = {
        one["consumer"] for one in server.client.xpending_range(f"{name}:detections", world.GROUP, "-", "+", 99)
    }
    assert holder.decode() == ASIDE
    assert world.tables(name, settings)["detections"] == []
    recorder.send(server, name, slice(40, None))
    world.drain(name, settings)
    same(name, settings, calm)


def test_a_fetch_that_fails_gives_its_messages_back_at_once(calm: Tables, settings: Settings, server: Stream) -> None:
    name = "failed"
    world.source(name, claim_after=3600)
    Recorder().send(server, name)

    class Failed(RuntimeError):
        pass

    def fail(stage: str) -> None:
        if stage == "fetched":
            raise Failed

    with pytest.raises(Failed):
        world.consume(name, settings, fail)
    world.drain(name, settings, runs=2)  # none has to wait for the hour after which a consumer counts as dead
    same(name, settings, calm)


def test_a_group_of_somebody_else_keeps_its_messages(settings: Settings, server: Stream, calm: Tables) -> None:
    name = "shared"
    world.source(name)
    server.join(f"{name}:detections", "others")
    Recorder().send(server, name)
    world.drain(name, settings)
    same(name, settings, calm)
    held = []
    while batch := server.receive(f"{name}:detections", "others", "other", 100):
        held += batch
    assert len(held) == len(Recorder().messages("detections"))


def test_replay_from_landing_gives_the_same_tables_and_takes_no_message(
    stack: Stack, settings: Settings, server: Stream, calm: Tables
) -> None:
    from ingestion import pipeline

    name = "replayed"
    one = world.source(name)
    Recorder().send(server, name)
    world.drain(name, settings)
    server.client.delete(*(f"{name}:{kind}" for kind in world.KINDS))
    pipeline.replay(one, settings, say=lambda text: None)
    found = world.differences(calm, world.tables(name, settings))
    assert found == {}, world.shown(found)


# ---------------------------------------------------------------- the test of the tests


def test_the_comparison_sees_an_acknowledgement_before_the_commit(
    calm: Tables, settings: Settings, server: Stream
) -> None:
    bug, name = world.BUGS[0], "planted_early"
    world.source(name)
    Recorder().send(server, name)
    consumer, line = world.start(name, settings, stop_at="fetched", bug=bug)
    world.await_stage(line, "fetched")
    kill(consumer)
    time.sleep(0.06)
    world.drain(name, settings)
    found = world.differences(calm, world.tables(name, settings))
    assert "detections" in found
    assert found["detections"][1] < found["detections"][0]  # lost


def test_the_comparison_sees_an_acknowledgement_of_what_was_rejected(
    calm: Tables, settings: Settings, server: Stream
) -> None:
    bug, name = world.BUGS[1], "planted_rejected"
    world.source(name)
    Recorder().send(server, name)
    with world.planted(bug):
        world.consume(name, settings, accept=False)
    world.drain(name, settings)
    assert set(world.differences(calm, world.tables(name, settings))) >= {"detections", "clips"}
