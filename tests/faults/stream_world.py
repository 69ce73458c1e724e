"""A consumer of a recorder's messages that is killed and started again, and what it leaves in the stores.

Each scenario is a source of its own name with streams of its own. Loads are judged without the audit's statistics,
which take seconds and have tests of their own; the acknowledgement that follows the verdict is the real one.

:func:`planted` puts in the faults that the comparison is there for.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any
from unittest import mock

import tomli_w
from support import PROCESSES

from ingestion import pipeline
from ingestion.contract import Context, Source
from ingestion.sources import field_recorder
from storage import warehouse
from storage.errors import Problem
from storage.gates import loads as gate
from storage.gates.audit import Verdict
from storage.objects import Objects
from storage.settings import Settings, options_file
from storage.stream import Message, Stream

GROUP = "lyrebird"
OPTIONS = {"claim_after": 0.05, "deliveries": 6}
KINDS = ("detections", "clips")
STAGES = (
    "received", "fetched", "before seal", "sealed", "parsed", "copied", "before commit", "committed", "judged",
    "accepted", "acknowledged",
)  # fmt: skip
BUGS = ("acknowledged when received", "acknowledged when committed, accepted or not")


def source(name: str, **options: Any) -> Source:
    """The source under another name, turned on in the options file."""
    known = {"sources": {name: OPTIONS | {"stream": name} | options}}
    options_file().write_text(tomli_w.dumps(known))
    return replace(field_recorder.SOURCE, name=name)


@contextmanager
def planted(bug: str) -> Iterator[None]:
    """One of BUGS, in this process."""
    receive = Stream.receive

    def at_once(self: Stream, stream: str, group: str, consumer: str, count: int) -> list[Message]:
        found = receive(self, stream, group, consumer, count)
        self.acknowledge(stream, group, [message.id for message in found])
        return found

    def whatever(context: Context, accepted: bool) -> None:
        field_recorder._settled(context, True)

    if bug == BUGS[0]:
        with mock.patch.object(Stream, "receive", at_once):
            yield
    else:
        mended = tuple(replace(resource, settled=whatever) for resource in field_recorder.SOURCE.resources)
        with mock.patch.object(field_recorder, "SOURCE", replace(field_recorder.SOURCE, resources=mended)):
            yield


def consume(
    name: str, settings: Settings, reached: Callable[[str], None] = lambda stage: None, *, accept: bool = True
) -> None:
    """A run: ingest and judge, as the tasks of the DAG do."""

    def verdict(*_: Any, **__: Any) -> Verdict:
        reached("judged")
        return Verdict(accept, "none" if accept else "critical", "" if accept else "not today")

    receive, acknowledge = Stream.receive, Stream.acknowledge

    def receives(self: Stream, stream: str, group: str, consumer: str, count: int) -> list[Message]:
        found = receive(self, stream, group, consumer, count)
        reached("received")
        return found

    def acknowledges(self: Stream, stream: str, group: str, ids: list[str]) -> None:
        if ids:
            reached("accepted")
        acknowledge(self, stream, group, ids)
        reached("acknowledged")

    with (
        mock.patch.object(gate, "audit", verdict),
        mock.patch.object(Stream, "receive", receives),
        mock.patch.object(Stream, "acknowledge", acknowledges),
        mock.patch.object(field_recorder, "READ", 10),
        mock.patch.object(field_recorder, "PAGE_MESSAGES", 25),
    ):
        one = replace(field_recorder.SOURCE, name=name)
        pipeline.ingest(one, settings, say=lambda text: None, reached=reached)
        pipeline.judge(one, settings, say=lambda text: None)


def drain(name: str, settings: Settings, runs: int = 25) -> None:
    """Run until nothing waits."""
    server = Stream(settings)
    for _ in range(runs):
        consume(name, settings)
        lags = [server.lag(f"{name}:{kind}", GROUP) for kind in KINDS]
        if not any(lag.pending or lag.undelivered for lag in lags):
            return
    raise AssertionError(f"{name} still waits after {runs} runs: {lags}")


def _run(
    name: str, settings: Settings, talk: Connection, stop_at: str, killer: str, bug: str, environment: dict[str, str]
) -> None:
    """The consumer: says each stage that it reaches, and at ``stop_at`` waits for an answer before it goes on.

    ``killer``: a text; whoever reads a message with it is killed.
    """
    os.environ.update(environment)  # the server that forks us has that of the test that needed it first
    stopped = False

    def reached(stage: str) -> None:
        nonlocal stopped
        talk.send(stage)
        if stage == stop_at and not stopped:
            stopped = True
            talk.recv()

    landed = field_recorder._refused

    def dies(message: Message, most: int) -> str | None:
        reason = landed(message, most)
        if killer and not reason and killer.encode() in message.fields.get("json", b""):
            os.kill(os.getpid(), signal.SIGKILL)
        return reason

    talk.send("began")
    try:
        with mock.patch.object(field_recorder, "_refused", dies), planted(bug) if bug else mock.MagicMock():
            consume(name, settings, reached)
    except Problem as problem:
        talk.send(f"problem: {problem}")
        sys.exit(1)
    except BaseException:
        talk.send(f"fault: {traceback.format_exc()}")
        sys.exit(3)


def start(
    name: str, settings: Settings, *, stop_at: str = "", killer: str = "", bug: str = ""
) -> tuple[BaseProcess, Connection]:
    """A consumer in a process of its own, which has begun; and the line to it."""
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=_run, args=(name, settings, theirs, stop_at, killer, bug, dict(os.environ)))
    process.start()
    theirs.close()
    assert ours.recv() == "began"
    return process, ours


def await_stage(line: Connection, stage: str) -> None:
    """Wait until the consumer has reached a stage. EOFError when it ends before."""
    while line.recv() != stage:
        pass


def said(line: Connection) -> list[str]:
    """What the consumer has said since, as far as it came through."""
    words = []
    try:
        while line.poll():
            words.append(line.recv())
    except (EOFError, ConnectionResetError):
        pass
    return words


def tables(name: str, settings: Settings) -> dict[str, list[Any]]:
    """What the messages have become: every version of every row, small files, and what was put into quarantine.

    Numbers of loads and positions in them are left out: they say in which batch a message came, and no more.
    """
    queries = {
        "detections": "select _key, _hash::text, _deleted, detection_id, revision, recorder, detected_at, species, "
        f"confidence, start_s, end_s, clip_id, latitude, longitude from raw.{name}_detections as r",
        "clips": "select _key, _deleted, clip_id, revision, recorder, recorded_at, duration_s, content_type, "
        f"reference, replace(audio_object, '{name}', 'NAME'), bytes from raw.{name}_clips as r",
    }
    seen = (
        f" where exists (select from ops.load as l where l.source = '{name}' and l.load = r._load and "
        "l.state = 'published')"
    )
    found: dict[str, list[Any]] = {}
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        for table, query in queries.items():
            sql.execute(query + seen)
            found[table] = sql.fetchall()
        sql.execute(
            "select resource, payload::jsonb ->> 'json', payload::jsonb ->> 'clip_id', reason from ops.quarantine as r "
            f"where source = '{name}' and exists (select from ops.load as l where l.source = '{name}' "
            "and l.load = r.load and l.state = 'published')"
        )
        found["quarantine"] = sql.fetchall()
    found["derived"] = [(key.removeprefix(f"{name}/"),) for key in Objects(settings).list("derived", f"{name}/")]
    return {table: sorted(tuple(map(str, row)) for row in rows) for table, rows in found.items()}


def differences(one: dict[str, list[Any]], other: dict[str, list[Any]]) -> dict[str, Any]:
    """Tables that are not row for row the same, with a few rows that only one of them has."""
    return {
        table: (len(mine), len(theirs), sorted(set(mine) - set(theirs))[:3], sorted(set(theirs) - set(mine))[:3])
        for (table, mine), theirs in zip(one.items(), other.values(), strict=True)
        if mine != theirs
    }


def pending(name: str, settings: Settings) -> dict[str, int]:
    """Messages that were given and not acknowledged."""
    server = Stream(settings)
    return {kind: server.lag(f"{name}:{kind}", GROUP).pending for kind in KINDS}


def lags(name: str, settings: Settings) -> list[tuple[Any, ...]]:
    """What ops.stream_lag remembers."""
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute(
            "select resource, undelivered, pending, oldest_at from ops.stream_lag where stream like %s "
            "order by observed_at",
            (f"{name}:%",),
        )
        return sql.fetchall()


def shown(found: dict[str, Any]) -> str:
    return json.dumps(found, indent=1, default=str)[:3_000]
