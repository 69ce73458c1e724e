"""A small source whose loading is killed and tried again, and the comparison of what it leaves in the stores.

The loader runs in processes of its own, forked from a server that has imported everything: they can be killed at any
moment, and start in milliseconds. Loads are judged without the audit's statistics, which take seconds and have tests of
their own.

:func:`planted` puts in the faults that the comparison is there for.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource as limits
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pyarrow as pa
from support import PROCESSES

from ingestion import journal, loading, pipeline
from ingestion.contract import Bad, BadPage, Blob, Context, Gone, Landed, Page, Record, Resource, Source, describe
from storage import warehouse
from storage.documents import Documents
from storage.errors import Problem
from storage.gates import loads as gate
from storage.gates.audit import Verdict
from storage.objects import Objects
from storage.settings import Settings

PAGES, RECORDS, BATCH = 10, 30, 100
DAY = (datetime(2024, 5, 1, tzinfo=UTC), datetime(2024, 5, 2, tzinfo=UTC))
KINDS = ("rows", "papers", "list")

# What a loader tells it has reached, in this order; between the marked ones its transaction is open.
OPEN = ("parsed", "documents", "copied", "before commit")
STAGES = ("fetched", "before seal", "sealed", *OPEN, "committed", "audited", "verdict written", "settled")
FIELDS = [
    describe("id", pa.string(), "", required=True),
    describe("value", pa.int64(), ""),
    describe("text", pa.string(), ""),
    describe("when", pa.float64(), ""),
]
BUGS = ("bookkeeping is committed before the rows", "rows are committed before the bookkeeping")


def _pages(generation: int) -> list[Any]:
    """What the upstream holds: a later generation adds pages that change, take back and repeat earlier records."""
    pages: list[Any] = []
    for number in range(PAGES * generation):
        records: list[dict[str, Any]] = [
            {
                "id": f"{(number * 17 + i) % 200:03d}",
                "value": number * 1000 + i % 7,
                "text": "ж\t\\" * (i % 3),
                "when": i / 3,
            }
            for i in range(RECORDS)
        ]
        if number % 4 == 1:
            records.append({"id": None, "value": number})
        pages.append(json.dumps(records).encode() if number % 7 != 5 else b"{ no json")
        if number % 5 == 4:
            pages.append(f"{number * 3 % 200:03d}")  # the upstream takes this one back
    return pages


def parse(page: Landed) -> Iterator[Record | Bad]:
    try:
        yield from json.loads(page.read())
    except ValueError as error:
        raise BadPage(f"no JSON: {error}") from error


def source(name: str, generation: int, reached: Callable[[str], None] = lambda stage: None, url: str = "") -> Source:
    """Rows with small files, and documents, out of the same pages; ``url``: they are asked for there, politely.

    Besides, a list that is read whole.
    """
    options = {"rate": "100/second", "allowed_hosts": [url.removeprefix("http://")]}

    def fetch(context: Context) -> Iterator[Page | Gone]:
        pages, web = _pages(generation), context.web() if url else None
        for number in range(context.cursor.get("next", 0), len(pages)):
            page, cursor = pages[number], {"next": number + 1}
            if web and isinstance(page, bytes):
                answer = web.get(f"{url}/{number}")
                page = answer.body if answer else page
            yield (
                Gone((page,), cursor)
                if isinstance(page, str)
                else Page(f"page {number}", page, cursor, meta={"n": number})
            )

    def fetch_list(context: Context) -> Iterator[Page]:
        if context.cursor.get("generation") != generation:
            lines = [{"id": f"{i}", "value": i * (1 + i % 5 // generation)} for i in range(250) if i % 7 != generation]
            yield Page("list", json.dumps(lines).encode(), {"generation": generation})

    def parse_rows(page: Landed) -> Iterator[Record | Bad]:
        for record in parse(page):
            assert isinstance(record, dict)
            blob = Blob(f"{record['value'] % 5}".encode() * 100, "text/plain", ".txt")
            yield record | ({"file": blob} if record["value"] % 11 == 0 else {})

    file = describe("file", pa.string(), "")

    def settled(context: Context, accepted: bool) -> None:
        reached("settled")

    resources = (
        Resource("rows", pa.schema([*FIELDS, file]), ("id",), fetch, parse_rows, settled=settled),
        Resource("papers", pa.schema(FIELDS), ("id",), fetch, parse, store="documents", settled=settled),
        Resource("list", pa.schema(FIELDS[:2]), ("id",), fetch_list, parse, mode="replace", settled=settled),
    )
    config = {option: (value, "") for option, value in options.items()}
    return Source(name, name, "text", "", "none", "@daily", resources, config)


def by_day(name: str, generation: int) -> Source:
    """Rows that come when a day is asked for. It is asked for as a whole each time: so of loads there may be more."""

    def fetch(context: Context) -> Iterator[Page]:
        for number in range(2 + generation if context.interval else 0):
            lines = [{"id": f"{number} {i}", "value": i if i % 5 else generation} for i in range(60)]
            yield Page(f"day, page {number}", json.dumps(lines).encode(), {"generation": generation})

    days = Resource("days", pa.schema(FIELDS[:2]), ("id",), fetch, parse, partition="date")
    return Source(f"{name}_by", name, "text", "", "none", "@daily", (days,))


def web_pages(generation: int) -> dict[str, bytes]:
    """Paths of what ``url`` has to serve, and their bodies."""
    return {f"/{number}": page for number, page in enumerate(_pages(generation)) if isinstance(page, bytes)}


@contextmanager
def planted(bug: str, settings: Settings) -> Iterator[None]:
    """One of BUGS, in this process: the cursor and the counts are committed apart from the rows."""
    record: Callable[..., None] = loading._record

    def apart(db: Any, *rest: Any) -> None:
        if bug == BUGS[0]:
            with closing(warehouse.connect(settings)) as other, other:
                record(other, *rest)
        else:
            db.commit()
            record(db, *rest)

    with mock.patch.object(loading, "_record", apart):
        yield


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """A temporary folder with room for so many bytes, on a disk of its own that goes with this process.

    An ordinary user may make one where user namespaces are allowed. Raises OSError where not.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def done(answer: int) -> None:
        if answer:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    namespace, user, private = 0x00020000, 0x10000000, 0x40000 | 0x4000  # CLONE_NEWNS, CLONE_NEWUSER, MS_PRIVATE|REC
    me, mine = os.geteuid(), os.getegid()
    done(libc.unshare(namespace | (user if me else 0)))
    if me:  # who has no number in the new namespace can make no file on a disk of it
        for name, text in (("setgroups", "deny"), ("uid_map", f"{me} {me} 1"), ("gid_map", f"{mine} {mine} 1")):
            Path(f"/proc/self/{name}").write_text(text)
    done(libc.mount(b"none", b"/", None, private, None))
    with tempfile.TemporaryDirectory() as folder:
        done(libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, f"size={size}".encode()))
        try:
            with mock.patch.object(tempfile, "tempdir", folder):
                yield
        finally:
            done(libc.umount2(folder.encode(), 2))  # MNT_DETACH


@dataclass(frozen=True)
class Trouble:
    """What is done to a loader: it stops at the ``nth`` time that it reaches ``stop_at``, until it is answered; it has
    one of BUGS; its temporary disk has ``disk`` bytes, or no file of it more than ``file``; its pages are at ``url``.
    """

    stop_at: str = ""
    nth: int = 1
    bug: str = ""
    disk: int = 0
    file: int = 0
    url: str = ""


def _load(name: str, generation: int, settings: Settings, talk: Connection, trouble: Trouble) -> None:
    """The loader: says each stage that it reaches, and where it is to stop waits for an answer before it goes on."""
    passed = 0

    def reached(stage: str) -> None:
        nonlocal passed
        talk.send(stage)
        passed += stage == trouble.stop_at
        if stage == trouble.stop_at and passed == trouble.nth:
            talk.recv()

    talk.send("began")
    try:
        with ExitStack() as troubles:
            if trouble.bug:
                troubles.enter_context(planted(trouble.bug, settings))
            if trouble.disk:
                troubles.enter_context(small_disk(trouble.disk))
            if trouble.file:
                limits.setrlimit(limits.RLIMIT_FSIZE, (trouble.file, trouble.file))
            load(name, generation, settings, reached, trouble.url)
    except Problem as problem:
        talk.send(f"problem: {problem}")
        sys.exit(1)
    except BaseException:
        talk.send(f"fault: {traceback.format_exc()}")
        sys.exit(3)


def start(name: str, generation: int, settings: Settings, **trouble: Any) -> tuple[BaseProcess, Connection]:
    """A loader in a process of its own, which has begun; and the line to it. ``trouble``: see Trouble."""
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(
        target=_load, args=(name, generation, settings, theirs, Trouble(**trouble)), daemon=True
    )
    process.start()
    theirs.close()
    assert ours.recv() == "began"
    return process, ours


def run(name: str, generation: int, settings: Settings, **trouble: Any) -> tuple[int | None, list[str]]:
    """A loader in a process of its own, to its end: its exit code, and what it said."""
    process, line = start(name, generation, settings, **trouble)
    words = []
    with suppress(EOFError, ConnectionResetError):
        while line.poll(120):
            words.append(line.recv())
    process.join(60)
    return process.exitcode, words


def kill(loader: BaseProcess, name: str, settings: Settings) -> list[str]:
    """SIGKILL. Gives the states of its transactions at that moment which had written something, as PostgreSQL tells.

    It is stopped before PostgreSQL is asked, so that it is still there when it is killed.
    """
    try:
        stopped = psutil.Process(loader.pid)
        stopped.suspend()
        while stopped.status() != psutil.STATUS_STOPPED:
            time.sleep(0.001)
    except psutil.NoSuchProcess:  # it has come to its end meanwhile
        loader.join()
        return []
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute(
            "select state from pg_stat_activity where application_name = any(%s) and backend_xid is not null",
            ([f"load {name}", f"load {name}_by"],),
        )
        states = [state for (state,) in sql.fetchall()]
    stopped.kill()
    loader.join()
    return states


def await_stage(line: Connection, stage: str) -> None:
    """Wait until the loader has reached a stage. EOFError when it ends before."""
    while line.recv() != stage:
        pass


def said(line: Connection) -> list[str]:
    """What the loader has said since, as far as it came through."""
    words = []
    try:
        while line.poll():
            words.append(line.recv())
    except (EOFError, ConnectionResetError):
        pass
    return words


def load(
    name: str,
    generation: int,
    settings: Settings,
    reached: Callable[[str], None] = lambda stage: None,
    url: str = "",
) -> None:
    """The loader: ingests what is new and a day, and judges, as the tasks of a DAG do; in small batches, so that a
    load has several.
    """
    write_verdict: Callable[..., None] = journal.write_verdict

    def audited(*_: Any, **__: Any) -> Verdict:
        reached("audited")
        return Verdict(True, "none", "")

    def written(*verdict: Any) -> None:
        write_verdict(*verdict)
        reached("verdict written")

    one = source(name, generation, reached, url)
    with (
        mock.patch.object(loading, "BATCH", BATCH),
        mock.patch.object(gate, "audit", audited),
        mock.patch.object(journal, "write_verdict", written),
    ):
        pipeline.ingest(one, settings, say=lambda text: None, reached=reached)
        pipeline.judge(one, settings, say=lambda text: None)
        one = by_day(name, generation)
        pipeline.ingest(one, settings, interval=DAY, say=lambda text: None, reached=reached)
        pipeline.judge(one, settings, say=lambda text: None)


def tables(name: str, settings: Settings) -> dict[str, list[Any]]:
    """Everything that loading leaves in the stores, but for times and the source's own name."""
    mine = f"where source = '{name}'"
    version = "_load, _position, _page, _key, _deleted"
    queries = {
        # the address of a small file has the source's name in it, and so has the hash of a row that holds one
        "rows": f"select {version}, case when file is null then _hash end, id, value, text, "
        f'"when", file from raw.{name}_rows',
        "papers": f"select {version}, _hash, doc::text from raw.{name}_papers",
        "list": f"select {version}, _hash, id, value from raw.{name}_list",
        "by_days": f"select _key, _deleted, _again, _hash, id, value from raw.{name}_by_days",
        "load": "select load, resource, lane, slice, state, pages, rows, versions, quarantined, bytes "
        f"from ops.load {mine}",
        "cursor": f"select resource, lane, cursor::text, load from ops.cursor {mine}",
        "landing": f"select load, position, resource, key, sha256, name, bytes, meta::text from ops.landing {mine}",
        "quarantine": f"select load, resource, position, payload, reason, landing from ops.quarantine {mine}",
        "ledger": f"select resource, slice, state, error from ops.ledger {mine}",
    }
    found: dict[str, list[Any]] = {}
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        for table, query in queries.items():
            sql.execute("select to_regclass(%s)", (f"raw.{name}_{table}",))
            there = table not in (*KINDS, "by_days") or sql.fetchone() != (None,)
            sql.execute(query if there else "select where false")
            found[table] = sql.fetchall()
    documents = Documents(settings).database[f"{name}_papers"].find({})
    found["documents"] = [
        (one["_id"], one["key"], one["hash"], one["landing"], json.dumps(one["doc"])) for one in documents
    ]
    objects = Objects(settings)
    segments = journal.segments(objects, name)
    found["segments"] = [(number,) for number in segments]
    found["verdicts"] = [
        (number, (journal.read_verdict(objects, name, number) or {}).get("state")) for number in segments
    ]
    found["pages"] = [(key,) for kind in KINDS for key in objects.list("landing", f"{name}/{kind}/")]
    found["derived"] = [(key,) for key in objects.list("derived", f"{name}/")]
    return {table: sorted(tuple(_plain(value, name) for value in row) for row in rows) for table, rows in found.items()}


def _plain(value: Any, name: str) -> str:
    """A value that compares, without the source's name in front of addresses."""
    return str(value).replace(f"/{name}/", "/NAME/").replace(f"{name}/", "NAME/")


def differences(one: dict[str, list[Any]], other: dict[str, list[Any]]) -> dict[str, Any]:
    """Tables that are not row for row the same, with a few rows that only one of them has."""
    return {
        table: (len(mine), len(theirs), sorted(set(mine) - set(theirs))[:3], sorted(set(theirs) - set(mine))[:3])
        for (table, mine), theirs in zip(one.items(), other.values(), strict=True)
        if mine != theirs
    }
