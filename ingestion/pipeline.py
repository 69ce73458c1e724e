"""The way of a page from a source to the warehouse: recover, fetch and land, seal, load, judge.

    fetch -> landing -> sealed segment -> documents -> [rows + counts + cursor] -> audit -> published or rejected

Everything that sources must not care about lives here, once.
"""

from __future__ import annotations

import errno
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from typing import Any

import psycopg2
from psycopg2.extensions import connection

from ingestion import journal
from ingestion.contract import Context, Gone, Resource, Source
from ingestion.loading import Counts, Stores, ensure_table, load_segment, point_cursor
from storage import settings as given
from storage import warehouse
from storage.documents import Documents
from storage.errors import Problem
from storage.gates import loads as gate
from storage.objects import Objects
from storage.settings import Settings

Say = Callable[[str], None]


@dataclass
class Report:
    """What an ingest did, for people and for scripts."""

    source: str
    recovered: list[int] = field(default_factory=list)
    loads: dict[int, dict[str, Any]] = field(default_factory=dict)

    def add(self, load: int, resource: str, counts: Counts) -> None:
        self.loads[load] = {"resource": resource} | asdict(counts)


def ingest(
    source: Source,
    settings: Settings,
    *,
    resources: list[str] | None = None,
    interval: journal.Interval | None = None,
    run_id: str = "",
    say: Say = print,
    reached: Say = lambda stage: None,
) -> Report:
    """Fetch what is new of a source and load it. Loads wait for :func:`judge` before anybody reads them.

    Raises Problem for an unknown resource, an unreadable source, or options that make no sense.
    """
    wanted = [r for r in source.resources if resources is None or r.name in resources]
    unknown = set(resources or ()) - {r.name for r in source.resources}
    if unknown:
        names = ", ".join(r.name for r in source.resources)
        raise Problem(f"{source.name} has no resource {sorted(unknown)[0]}", f"It has: {names}")
    report = Report(source.name)
    with _loader(source, settings) as stores:
        report.recovered = _recover(source, stores, say, reached)
        judge_pending(source, stores, settings, say)
        for resource in wanted:
            slice = interval[0].isoformat() if interval else "all"
            attempt = _Attempt(stores.warehouse, source, resource, slice, interval, run_id)
            with attempt:
                load = _fetch(source, resource, stores, settings, interval, slice, run_id, _throttled(say), reached)
                if load is None:
                    say(f"{source.name}/{resource.name}: nothing new")
                    continue
                counts = load_segment(source, load, stores, _throttled(say), reached)
                if counts is not None:
                    attempt.load = load
                    report.add(load, resource.name, counts)
                    say(
                        f"{source.name}/{resource.name}: load {load}, {counts.rows:,} records, "
                        f"{counts.versions:,} new or changed, {counts.quarantined:,} in quarantine"
                    )
    return report


def judge(source: Source, settings: Settings, say: Say = print) -> dict[int, tuple[str, str]]:
    """Audit the loads that wait for it. Returns the state that each got, and why."""
    with _loader(source, settings) as stores:
        return judge_pending(source, stores, settings, say)


def judge_pending(source: Source, stores: Stores, settings: Settings, say: Say) -> dict[int, tuple[str, str]]:
    db = stores.warehouse
    with db, db.cursor() as sql:
        sql.execute(
            "select load, resource, lane from ops.load where source = %s and state = 'loaded' order by load",
            (source.name,),
        )
        waiting = sql.fetchall()
    states = {}
    for load, name, lane in waiting:
        resource = next((r for r in source.resources if r.name == name), None)
        if resource is None:
            say(f"{source.name}: load {load} is of the resource {name}, which is no more; left as it is")
            continue
        verdict = gate.audit(
            settings, stores.objects, source.name, source.domain, source.table(resource), load, resource.mode
        )
        state = "published" if verdict.accepted else "rejected"
        journal.write_verdict(stores.objects, source.name, load, state, verdict.reason)
        with db, db.cursor() as sql:
            sql.execute(
                "update ops.load set state = %s, reason = %s, judged_at = now() where source = %s and load = %s",
                (state, verdict.reason, source.name, load),
            )
            point_cursor(db, source.name, name, lane)
        states[load] = (state, verdict.reason)
        say(f"{source.name}/{name}: load {load} {state}" + (f": {verdict.reason}" if verdict.reason else ""))
    return states


def rejected(source: Source, settings: Settings) -> list[tuple[int, str]]:
    """Resources' newest loads that were rejected, with the reason: what a person has to mend.

    A resource that was looked at since, and found as it was accepted last, is mended: no newer load says so, the
    ledger does.
    """
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute(
            """
            select load, reason from (
                select distinct on (resource, lane) * from ops.load where source = %s
                order by resource, lane, load desc
            ) as newest
            where state = 'rejected' and not exists (
                select from ops.ledger as l
                where (l.source, l.resource, l.lane) = (newest.source, newest.resource, newest.lane)
                  and l.state = 'done' and l.updated_at > newest.judged_at
            )
            order by load
            """,
            (source.name,),
        )
        return sql.fetchall()


def latest(source: Source, settings: Settings) -> int:
    """A number that grows whenever published data of the source, or of those it derives from, changed."""
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute(
            "select coalesce(sum(newest), 0)::bigint from (select max(load) as newest from ops.load "
            "where source = any(%s) and state = 'published' and versions > 0 group by source) as loads",
            ([source.name, *source.after],),
        )
        return int(warehouse.first(sql)[0])


def replay(source: Source, settings: Settings, say: Say = print) -> list[int]:
    """Drop what the warehouse and the document store hold of a source, and load it all again from landing."""
    with _loader(source, settings) as stores:
        db = stores.warehouse
        with db, db.cursor() as sql:
            for resource in source.resources:
                ensure_table(db, source, resource)
                sql.execute(f'truncate raw."{source.table(resource)}"')
                if resource.store == "documents":
                    stores.documents().database.drop_collection(source.table(resource))
            for table in ("load", "cursor", "landing", "quarantine"):
                sql.execute(f"delete from ops.{table} where source = %s", (source.name,))
        loads = _recover(source, stores, say, lambda stage: None)
        judge_pending(source, stores, settings, say)
    return loads


def make_tables(sources: list[Source], settings: Settings) -> None:
    """Make every raw table of the catalogue, so that models can name a table before its first load."""
    with closing(warehouse.connect(settings)) as db, db:
        for source in sources:
            for resource in source.resources:
                ensure_table(db, source, resource)


def options(source: Source) -> dict[str, Any]:
    """The source's options: its defaults, and what the options file says of it."""
    values = given.options().get("sources", {}).get(source.name, {})
    unknown = values.keys() - source.config.keys()
    if unknown:
        raise Problem(
            f"{given.options_file()}: {source.name} has no option {sorted(unknown)[0]}",
            f"Its options: {', '.join(source.config) or 'none'}",
        )
    return {name: values.get(name, default) for name, (default, _) in source.config.items()}


def _recover(source: Source, stores: Stores, say: Say, reached: Say) -> list[int]:
    """Load the sealed segments that the warehouse has not got: whatever was killed is finished here."""
    db = stores.warehouse
    with db, db.cursor() as sql:
        sql.execute("select load from ops.load where source = %s", (source.name,))
        known = {load for (load,) in sql.fetchall()}
    done = []
    for load in journal.segments(stores.objects, source.name):
        if load not in known:
            say(f"{source.name}: loading segment {load} from the journal")
            if load_segment(source, load, stores, _throttled(say), reached):
                done.append(load)
    return done


def _fetch(
    source: Source,
    resource: Resource,
    stores: Stores,
    settings: Settings,
    interval: journal.Interval | None,
    slice: str,
    run_id: str,
    say: Say,
    reached: Say,
) -> int | None:
    """Fetch pages from the cursor into landing and seal them. Returns the segment's number; None for nothing new."""
    db = stores.warehouse
    with db, db.cursor() as sql:
        sql.execute(
            "select cursor from ops.cursor where source = %s and resource = %s and lane = 'live'",
            (source.name, resource.name),
        )
        row = sql.fetchone()
    context = Context(options(source), row[0] if row else {}, resource, interval, settings, say)
    segment = journal.Segment(stores.objects, source.name, resource.name)
    try:
        for item in resource.fetch(context):
            segment.add(item)
            reached("fetched")
            what = "deleted" if isinstance(item, Gone) else item.name
            say(f"{source.name}/{resource.name}: {segment.pages:,} pages, {segment.bytes / 1e6:.1f} MB ({what})")
    except BaseException:
        segment.drop()
        raise
    if not segment.pages:
        segment.drop()
        return None
    reached("before seal")
    load = journal.last_segment(stores.objects, source.name) + 1
    if not segment.seal(load, lane="live", slice=slice, interval=interval, run_id=run_id):
        raise Problem(f"{source.name}: another loader sealed segment {load} just now", "Run it again")
    reached("sealed")
    return load


@contextmanager
def _loader(source: Source, settings: Settings) -> Iterator[Stores]:
    """The stores, with the lock that makes this process the source's only loader."""
    try:
        with (
            closing(warehouse.connect(settings, application=f"load {source.name}")) as lock,
            closing(warehouse.connect(settings, application=f"load {source.name}")) as db,
            warehouse.advisory_lock(lock, f"ingest:{source.name}"),
        ):
            yield Stores(db, Objects(settings), cache(partial(Documents, settings)))
    except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Problem(
            f"PostgreSQL failed while {source.name} was at work: {reason}",
            "Nothing is half done: run it again when `lyrebird status` shows it running",
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Problem(
            f"the disk is full: {error.filename or tempfile.gettempdir()}", "Free some space and run it again"
        ) from error


class _Attempt:
    """A line of the ledger: this slice was asked for, and what became of it."""

    def __init__(
        self,
        db: connection,
        source: Source,
        resource: Resource,
        slice: str,
        interval: journal.Interval | None,
        run_id: str,
    ) -> None:
        self.db = db
        self.load: int | None = None
        self._key = (source.name, resource.name, "live", slice)
        self._rest = (*(interval or (None, None)), run_id)

    def __enter__(self) -> None:
        with self.db, self.db.cursor() as sql:
            sql.execute(
                """
                insert into ops.ledger (source, resource, lane, slice, interval_start, interval_end, run_id, state)
                values (%s, %s, %s, %s, %s, %s, %s, 'running')
                on conflict (source, resource, lane, slice) do update
                set state = 'running', attempts = ops.ledger.attempts + 1, run_id = excluded.run_id,
                    error = null, updated_at = now()
                """,
                (*self._key, *self._rest),
            )

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, psycopg2.OperationalError) or self.db.closed:
            return  # the server is gone: the line stays `running`, and the next attempt counts on
        self.db.rollback()
        with self.db, self.db.cursor() as sql:
            sql.execute(
                """
                update ops.ledger set state = %s, error = %s, load = coalesce(%s, load), updated_at = now()
                where source = %s and resource = %s and lane = %s and slice = %s
                """,
                ("failed" if error else "done", str(error)[:2000] if error else None, self.load, *self._key),
            )


def _throttled(say: Say, seconds: float = 2.0) -> Say:
    """Pass a message on at most every so often."""
    last = 0.0

    def speak(text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            say(text)

    return speak
