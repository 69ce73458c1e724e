"""Recorders' messages through the whole pipeline with the real audit; the trigger that waits for them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import redis
import tomli_w
from support import Stack
from upstreams.recorder import Recorder

from infra.embedded import stack as embedded
from ingestion import journal, pipeline
from ingestion.sources import field_recorder
from storage import warehouse
from storage.errors import Problem
from storage.objects import Objects
from storage.settings import Settings, watched_stream
from storage.stream import ASIDE, Stream

ROOT = Path(__file__).resolve().parents[2]
GROUP = "lyrebird"


@pytest.fixture
def options(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "lyrebird.toml"
    monkeypatch.setenv("LYREBIRD_OPTIONS", str(path))
    return path


@pytest.fixture(scope="module")
def settings(stack: Stack) -> Settings:
    return stack.settings("loader")


@pytest.fixture(scope="module")
def server(settings: Settings) -> Stream:
    return Stream(settings)


@pytest.fixture
def stream(server: Stream, request: pytest.FixtureRequest) -> Iterator[str]:
    """A name for the streams of one test."""
    name = f"test-{abs(hash(request.node.name))}"
    yield name
    server.client.delete(*(f"{name}:{kind}" for kind in ("detections", "clips")))


def turn_on(options: Path, stream: str, **more: Any) -> None:
    options.write_text(tomli_w.dumps({"sources": {"field_recorder": {"stream": stream} | more}}))


def query(stack: Stack, statement: str) -> list[tuple[Any, ...]]:
    with closing(warehouse.connect(stack.settings("loader"))) as db, db, db.cursor() as sql:
        sql.execute(statement)
        return sql.fetchall()


def cycle(settings: Settings) -> list[str]:
    pipeline.ingest(field_recorder.SOURCE, settings, say=lambda text: None)
    return [state for state, _ in pipeline.judge(field_recorder.SOURCE, settings, say=lambda text: None).values()]


# ---------------------------------------------------------------- the source


def test_it_is_off_until_a_person_turns_it_on(stack: Stack, options: Path, settings: Settings) -> None:
    assert field_recorder.awaited() is None
    nowhere = settings.model_copy(update={"stream_url": settings.stream_url.__class__("redis://127.0.0.1:1/0")})
    assert cycle(nowhere) == []


def test_messages_become_rows_small_files_and_quarantine(
    stack: Stack, options: Path, settings: Settings, server: Stream, stream: str
) -> None:
    turn_on(options, stream)
    recorder = Recorder(seed=1, detections=200, clips=200)
    recorder.send(server, stream)
    assert cycle(settings) == ["published", "published"]
    rows = query(stack, "select * from raw.field_recorder_detections where recorder = 'r1'")
    assert len(rows) == 200 + 29
    first = json.loads(recorder.told("detections")[0]["json"])
    assert query(
        stack,
        "select detection_id, revision, detected_at, species, confidence, start_s, end_s, latitude from "
        "raw.field_recorder_detections where detection_id = 'r1/000000' and revision = 1",
    ) == [
        (first["id"], 1, datetime.fromisoformat(first["time"]), first["species"], first["confidence"], 0.0, 3.0, 52.5)
    ]
    told = {
        (message["id"], message["revision"]): fields.get("audio")
        for fields in recorder.told("clips")
        for message in [json.loads(fields["json"])]
    }
    objects = Objects(settings)
    kept = query(stack, "select clip_id, revision, audio_object, bytes, reference from raw.field_recorder_clips")
    assert {(clip, revision) for clip, revision, *_ in kept} == told.keys()
    for clip, revision, address, size, reference in kept:
        audio = told[clip, revision]
        assert (address is None) == (audio is None) == (reference is not None)
        if audio is not None:
            assert objects.get("derived", address) == audio
            assert size == len(audio)
    assert query(stack, "select count(*) from ops.quarantine where source = 'field_recorder'") == [(20,)]
    assert cycle(settings) == []
    lag = query(stack, "select resource, undelivered, pending from ops.stream_lag order by observed_at")
    sent = [len(recorder.messages(kind)) for kind in ("detections", "clips")]
    assert lag[:2] == [("detections", sent[0], 0), ("clips", sent[1], 0)]
    assert {row[1:] for row in lag[2:]} == {(0, 0)}


def test_a_batch_of_poison_is_rejected_and_comes_again_with_good_messages(
    stack: Stack, options: Path, settings: Settings, server: Stream, stream: str
) -> None:
    turn_on(options, stream, claim_after=0.01)
    Recorder(seed=2, detections=20, clips=0).send(server, stream)
    assert cycle(settings)[0] == "rejected"  # ten of some forty are bad
    assert query(stack, "select undelivered, pending from ops.stream_lag where resource = 'detections' "
                 "order by observed_at desc limit 1") == [(0, 38)]  # fmt: skip
    time.sleep(0.02)
    Recorder(seed=3, detections=400, clips=0, poison=False).send(server, stream)
    assert "published" in cycle(settings)
    published = query(
        stack,
        "select count(distinct r._key) from raw.field_recorder_detections as r join ops.load as l "
        "on l.source = 'field_recorder' and l.load = r._load and l.state = 'published' where recorder in ('r2', 'r3')",
    )
    assert published == [(20 + 3 + 400 + 58,)]
    assert server.lag(f"{stream}:detections", GROUP).pending == 0


def test_pages_land_as_arrow_with_the_bytes_as_they_came(
    stack: Stack, options: Path, settings: Settings, server: Stream, stream: str
) -> None:
    turn_on(options, stream)
    sent = b'{"id": "x",  "recorder": "r9", "time": "2024-05-01T00:00Z", "species": "A b", "confidence": 1}'
    for _ in range(30):
        server.send(f"{stream}:detections", {"json": sent})
    assert cycle(settings) == ["published"]
    load = query(stack, "select max(load) from ops.load where source = 'field_recorder'")[0][0]
    header, entries = journal.read_segment(Objects(settings), "field_recorder", load)
    (entry,) = entries
    table = pa.ipc.open_stream(entry.read()).read_all()
    assert table.column("json").to_pylist() == [sent] * 30
    assert sorted(header.cursor) == ["group", "stream", "taken"]
    assert query(stack, "select count(*) from raw.field_recorder_detections where recorder = 'r9'") == [(1,)]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"stream": 5}, "stream cannot be 5"),
        ({"group": ""}, "group cannot be ''"),
        ({"size": 0}, "size cannot be 0"),
        ({"age": "soon"}, "age cannot be 'soon'"),
        ({"most": True}, "most cannot be True"),
        ({"colour": 1}, "field_recorder has no option colour"),
    ],
)
def test_a_mistake_in_the_options_is_one_sentence(
    options: Path, settings: Settings, more: dict[str, Any], said: str
) -> None:
    turn_on(options, **({"stream": "s"} | more))
    with pytest.raises(Problem, match=said):
        pipeline.ingest(field_recorder.SOURCE, settings, say=lambda text: None)
    assert "colour" in more or field_recorder.awaited() is None


def test_what_is_no_stream_is_one_sentence(options: Path, settings: Settings, server: Stream, stream: str) -> None:
    turn_on(options, stream)
    server.client.set(f"{stream}:detections", "text")
    with pytest.raises(Problem, match="the stream server refused xgroup_create: WRONGTYPE"):
        pipeline.ingest(field_recorder.SOURCE, settings, say=lambda text: None)


# ---------------------------------------------------------------- the trigger


def arrivals(stream: str, size: int = 5, age: float = 3600) -> Any:
    from ingestion.arrivals import Arrivals

    return Arrivals([f"{stream}:{kind}" for kind in ("detections", "clips")], GROUP, size, age)


async def event(trigger: Any, seconds: float) -> dict[str, int] | None:
    """The payload of its first event; None when none comes in time."""
    found = trigger.run()
    try:
        return (await asyncio.wait_for(anext(found), seconds)).payload  # type: ignore[no-any-return]
    except TimeoutError:
        return None
    finally:
        await found.aclose()


def fires(trigger: Any, seconds: float = 5) -> dict[str, int] | None:
    return asyncio.run(event(trigger, seconds))


def tell(server: Stream, stream: str, count: int, kind: str = "detections") -> None:
    for _ in range(count):
        server.send(f"{stream}:{kind}", {"json": "{}"})


def test_it_fires_when_enough_messages_wait(server: Stream, stream: str) -> None:
    assert fires(arrivals(stream), 0.3) is None  # neither stream is there yet
    tell(server, stream, 4)
    assert fires(arrivals(stream), 0.3) is None
    tell(server, stream, 1, "clips")
    assert (fires(arrivals(stream)) or {})["undelivered"] == 5
    server.join(f"{stream}:detections", GROUP)
    server.receive(f"{stream}:detections", GROUP, "me", 100)
    assert fires(arrivals(stream), 0.3) is None  # somebody has them
    assert (fires(arrivals(stream, size=1)) or {})["undelivered"] == 1


def test_it_fires_when_one_has_waited_long_enough(server: Stream, stream: str) -> None:
    tell(server, stream, 1)
    assert fires(arrivals(stream, age=30), 0.3) is None
    began = time.monotonic()
    assert fires(arrivals(stream, age=1.5), 5) is not None
    assert time.monotonic() - began > 0.8


def test_it_sleeps_until_a_message_comes(server: Stream, stream: str) -> None:
    async def main() -> tuple[float, float]:
        waiting = asyncio.create_task(event(arrivals(stream, size=1), 20))
        await asyncio.sleep(1)
        commands = server.client.info("commandstats")
        await asyncio.sleep(2)
        looked = server.client.info("commandstats")["cmdstat_xinfo|groups"]["calls"]
        assert looked == commands["cmdstat_xinfo|groups"]["calls"]  # it does not ask, it is told
        sent = time.monotonic()
        tell(server, stream, 1)
        assert await waiting is not None
        return sent, time.monotonic()

    sent, fired = asyncio.run(main())
    assert fired - sent < 3


def test_it_fires_for_what_a_dead_consumer_has_left_and_not_for_what_was_rejected(
    server: Stream, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ingestion import arrivals as module

    assert module.ASIDE == ASIDE
    tell(server, stream, 2)
    name = f"{stream}:detections"
    server.join(name, GROUP)
    one, two = server.receive(name, GROUP, "dead", 10)
    assert fires(arrivals(stream), 0.3) is None  # it may be at work
    monkeypatch.setattr(module, "LEFT_S", 0.1)
    time.sleep(0.2)
    assert (fires(arrivals(stream)) or {})["left"] == 2
    server.acknowledge(name, GROUP, [one.id])
    server.give_back(name, GROUP, [two.id], 0.1)
    time.sleep(0.2)
    assert fires(arrivals(stream), 0.3) is None


def test_it_asks_less_and_less_often_while_nobody_takes_the_messages(
    server: Stream, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ingestion import arrivals as module

    monkeypatch.setattr(module, "REST_S", 0.1)
    now_ms = int(time.time() * 1000)
    for number in range(6):  # all of one millisecond, so that the time of the oldest does not tell what was taken
        server._do("xadd", f"{stream}:detections", {"json": "{}"}, id=f"{now_ms}-{number}")

    async def main() -> list[float]:
        times: list[float] = []
        found = arrivals(stream).run()
        for _ in range(5):
            await anext(found)
            times.append(time.monotonic())
        tell(server, stream, 1)
        server.join(f"{stream}:detections", GROUP)
        server.receive(f"{stream}:detections", GROUP, "me", 2)  # somebody takes some
        for _ in range(2):
            await anext(found)
            times.append(time.monotonic())
        await found.aclose()
        return times

    times = asyncio.run(main())
    gaps = [later - sooner for sooner, later in pairwise(times)]
    assert [round(gap, 1) >= 0.1 * 2**n for n, gap in enumerate(gaps[:5])] == [True] * 5
    assert gaps[5] < gaps[4] / 2


def test_it_outlives_the_stream_server(
    stack: Stack, server: Stream, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ingestion import arrivals as module

    monkeypatch.setattr(module, "REST_S", 1)

    def kill() -> None:
        (pid,) = [one.pid for one in embedded.status(stack.home) if one.name == "stream"]
        os.kill(pid or 0, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while True:
            try:
                tell(server, stream, 1)
                return
            except Problem:
                assert time.monotonic() < deadline
                time.sleep(0.2)

    async def main() -> dict[str, int] | None:
        waiting = asyncio.create_task(event(arrivals(stream, size=1), 60))
        await asyncio.sleep(0.5)
        await asyncio.to_thread(kill)
        return await waiting

    assert (asyncio.run(main()) or {})["undelivered"] == 1


def test_the_watcher_may_look_and_nothing_else(server: Stream, stream: str) -> None:
    tell(server, stream, 1)
    name = f"{stream}:detections"
    server.join(name, GROUP)
    watcher = redis.Redis.from_url(watched_stream())
    assert len(watcher.xread({name: "0-0"}) or []) == 1
    assert watcher.xinfo_groups(name)
    for command in (
        ("xadd", name, "*", "a", "b"), ("xreadgroup", "group", GROUP, "me", "streams", name, ">"),
        ("xack", name, GROUP, "1-1"), ("xtrim", name, "maxlen", "0"), ("del", name), ("get", "x"), ("keys", "*"),
        ("flushall",), ("config", "get", "*"), ("xgroup", "destroy", name, GROUP), ("acl", "whoami"),
    ):  # fmt: skip
        with pytest.raises(redis.exceptions.NoPermissionError):
            watcher.execute_command(*command)


def test_the_trigger_is_remade_from_what_it_says_of_itself() -> None:
    from importlib import import_module

    path, options = arrivals("s").serialize()
    module, name = path.rsplit(".", 1)
    again = getattr(import_module(module), name)(**json.loads(json.dumps(options)))
    assert again.serialize() == (path, options)


# ---------------------------------------------------------------- the DAG

PROBE = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
sys.path.append(sys.argv[1])
bag = DagBag(sys.argv[1] + "/ingest.py", known_pools={"default_pool", "gpu", "transform"})
dag = bag.dags["ingest_field_recorder"]
condition = getattr(dag.timetable, "asset_condition", None)
print("FOUND" + json.dumps({
    "errors": bag.import_errors, "cron": getattr(dag.timetable, "expression", None), "tasks": sorted(dag.task_ids),
    "watched": [[condition.name, w.name, *w.trigger.serialize()] for w in condition.watchers] if condition else None,
    "loaded": sorted({"redis", "pymongo"} & set(sys.modules)),
}))
"""


def dag(options: Path, home: Path) -> dict[str, Any]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    child = subprocess.run(
        [sys.executable, "-c", PROBE, str(ROOT / "dags")],
        env=kept | {"HOME": str(home), "AIRFLOW_HOME": str(home), "PYTHONPATH": str(ROOT)}
        | {"LYREBIRD_OPTIONS": str(options)},
        cwd=home, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    line = next((line for line in child.stdout.splitlines() if line.startswith("FOUND")), "")
    assert line, child.stderr[-2000:]
    return dict(json.loads(line.removeprefix("FOUND")))


def test_the_dag_waits_for_messages_once_the_source_is_on(tmp_path: Path, options: Path) -> None:
    off = dag(options, tmp_path)
    assert (off["errors"], off["watched"], off["cron"]) == ({}, None, field_recorder.SOURCE.cadence)
    turn_on(options, "garden", size=10, age=60)
    on = dag(options, tmp_path)
    assert (on["errors"], on["cron"], on["loaded"]) == ({}, None, [])
    assert on["tasks"] == off["tasks"] == ["announce", "audit", "ingest"]
    streams = {"streams": ["garden:detections", "garden:clips"], "group": "lyrebird", "size": 10, "age": 60}
    assert on["watched"] == [["stream_field_recorder", "field_recorder", "ingestion.arrivals.Arrivals", streams]]
    options.write_text("no toml")
    assert dag(options, tmp_path)["errors"] == {}
