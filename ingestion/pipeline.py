"""The way of a page from a source to the warehouse: recover, fetch and land, seal, load, judge.

    fetch -> landing -> sealed segment -> documents -> [rows + counts + cursor] -> audit -> published or rejected

Slices of a source are fetched side by side, a slice by one process at a time; what was sealed is loaded in the order
of its numbers, by one process at a time. The lane `live` goes on from its cursor; the lane `backfill` asks for an
interval, has cursors of its own and never moves the live one.

Everything that sources must not care about lives here, once.
"""

from __future__ import annotations

import errno
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2.extensions import connection
from psycopg2.extras import execute_values

from ingestion import journal
from ingestion.contract import Context, Gone, Page, Resource, Source
from ingestion.loading import (
    Counts,
    Stores,
    document_text,
    ensure_table,
    load_segment,
    note_replayed,
    point_cursor,
    version_id,
)
from storage import settings as given
from storage import warehouse
from storage.documents import Documents
from storage.errors import Problem
from storage.gates import audit as gates
from storage.gates import loads as gate
from storage.objects import Objects
from storage.settings import Settings

Say = Callable[[str], None]
COPIES = 2 << 30  # bytes of what has just landed that stay on this machine until they are loaded


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
    report, failed = Report(source.name), list[Problem]()  # one resource that fails does not stop the others
    lane, slice = ("backfill", slice_name(interval)) if interval else ("live", "all")
    with _holding(f"fetch:{source.name}:{lane}:{slice}", source, settings, fetches=True) as stores:
        with _holding(_loading(source), source, settings) as loader:
            report.recovered = _load_sealed(source, loader, settings, report, say, reached)
            judge_pending(source, loader, settings, say)
        for resource in wanted:
            if interval and resource.partition != "date":
                continue
            attempt = _Attempt(stores.warehouse, source, resource, lane, slice, interval, run_id)
            try:
                with attempt, journal.Copies(COPIES if resource.store != "objects" else 0) as copies:
                    load = _fetch(source, resource, stores, settings, attempt, say, reached, copies)
                    if load is None:
                        say(f"{source.name}/{resource.name}: nothing new")
                        continue
                    with _holding(_loading(source), source, settings, copies) as loader:
                        _load_sealed(source, loader, settings, report, say, reached)
                    attempt.load = load
            except Problem as problem:
                if failed:
                    say(f"{source.name}/{resource.name} failed as well: {problem.what}")
                failed.append(problem)
        offered = _offered_once_more(source, stores.warehouse)
    if offered:
        from ingestion import forgetting

        try:
            forgetting.sweep(source, settings, say)
        except Problem as problem:
            failed.append(problem)
    if failed:
        raise failed[0]
    return report


def _offered_once_more(source: Source, db: connection) -> bool:
    """Whether a load met what was withdrawn before: the rows stayed out, but its pages have landed with it."""
    with db, db.cursor() as sql:
        sql.execute("select exists (select from ops.load where source = %s and forgotten > 0)", (source.name,))
        return bool(warehouse.first(sql)[0])


Slice = tuple[list[str] | None, journal.Interval | None]  # resources (None: all) and interval (None: what is new)


def ingest_slices(
    source: Source, settings: Settings, wanted: list[Slice], *, run_id: str = "", say: Say = print
) -> Report:
    """:func:`ingest` of one slice after another. One that fails does not keep the others from being fetched.

    Raises Problem at the end when any failed.
    """
    whole, failed = Report(source.name), list[Problem]()
    for resources, interval in wanted:
        try:
            report = ingest(source, settings, resources=resources, interval=interval, run_id=run_id, say=say)
        except Problem as problem:
            if len(wanted) == 1:
                raise
            say(f"{source.name}: {slice_name(interval) if interval else 'what is new'} failed: {problem.what}")
            failed.append(problem)
            continue
        whole.recovered += report.recovered
        whole.loads |= report.loads
    if failed:
        raise Problem(
            f"{len(failed)} of {len(wanted)} slices of {source.name} failed; the first: {failed[0].what}",
            f"`lyrebird ingest {source.name} --failed` asks for these again, and for no others",
        )
    return whole


def slices(
    source: Source, since: datetime | None = None, until: datetime | None = None, days: int = 1
) -> list[journal.Interval | None]:
    """The intervals of a backfill, of so many days each; ``[None]``, which is what is new, without an interval.

    Times without a zone are UTC. Raises Problem for half an interval, an empty one, and sources without dates.
    """
    if since is None and until is None:
        return [None]
    if since is None or until is None:
        raise Problem("--since and --until are the two ends of an interval", "Give both, or neither")
    start, end = (moment.replace(tzinfo=moment.tzinfo or UTC) for moment in (since, until))
    if start >= end:
        raise Problem(f"nothing lies between {start:%Y-%m-%d %H:%M} and {end:%Y-%m-%d %H:%M}", "--until is not in it")
    if not any(resource.partition == "date" for resource in source.resources):
        raise Problem(f"{source.name} cannot be asked for an interval", "Leave out --since and --until")
    found: list[journal.Interval | None] = []
    while start < end:
        found.append((start, min(start + timedelta(days=days), end)))
        start += timedelta(days=days)
    return found


def judge(source: Source, settings: Settings, say: Say = print) -> dict[int, tuple[str, str]]:
    """Audit the loads that wait for it. Returns the state that each got, and why."""
    with _holding(_loading(source), source, settings) as stores:
        return judge_pending(source, stores, settings, say)


def judge_pending(
    source: Source, stores: Stores, settings: Settings, say: Say, only: str = ""
) -> dict[int, tuple[str, str]]:
    """:func:`judge`, for a caller that holds the lock of the source's loads; of the resource ``only``, if named."""
    db = stores.warehouse
    with db, db.cursor() as sql:
        sql.execute(
            "select load, resource, lane, cursor from ops.load where source = %s and state = 'loaded' "
            "and %s in ('', resource) order by load",
            (source.name, only),
        )
        waiting = sql.fetchall()
    states = {}
    for load, name, lane, cursor in waiting:
        resource = next((r for r in source.resources if r.name == name), None)
        if resource is None:
            say(f"{source.name}: load {load} is of the resource {name}, which is no more; left as it is")
            continue
        now = resource.known(cursor).schema.names if resource.columns else None
        verdict = gate.audit(
            settings,
            stores.objects,
            source.name,
            source.domain,
            source.table(resource),
            load,
            resource.mode,
            only=now,
            # records that are read again were in quarantine before: that many of them still are says nothing new
            quarantine_share=options(source)["quarantine_share"] if lane != "replay" else 1.0,
        )
        state = "published" if verdict.accepted else "rejected"
        _settle(source, load, name, lane, stores, state, verdict.reason)
        if resource.settled and lane != "forget":
            resource.settled(Context(options(source), cursor, resource, None, settings, say), verdict.accepted)
        states[load] = (state, verdict.reason)
        say(f"{source.name}/{name}: load {load} {state}" + (f": {verdict.reason}" if verdict.reason else ""))
    return states


def _settle(source: Source, load: int, resource: str, lane: str, stores: Stores, state: str, reason: str) -> None:
    """Write a verdict into landing, where a replay finds it, and then into the warehouse: a rejected slice failed."""
    journal.write_verdict(stores.objects, source.name, load, state, reason)
    with stores.warehouse as db, db.cursor() as sql:
        sql.execute(
            "update ops.load set state = %s, reason = %s, judged_at = now() where source = %s and load = %s",
            (state, reason, source.name, load),
        )
        if state == "rejected":
            sql.execute(
                """
                update ops.ledger as g set state = 'failed', error = l.reason, load = l.load, updated_at = now()
                from ops.load as l
                where (l.source, l.load) = (%s, %s) and coalesce(g.load, 0) <= l.load
                  and (g.source, g.resource, g.lane, g.slice) = (l.source, l.resource, l.lane, l.slice)
                """,
                (source.name, load),
            )
        if lane == "replay" and state == "published":
            note_replayed(sql, source.name, load)
        point_cursor(db, source.name, resource, lane)


def accept(source: Source, load: int, settings: Settings, say: Say = print) -> None:
    """Publish a load that the audit rejected: somebody has looked at it, and it is as it should be.

    Raises Problem unless it was rejected and nothing of its resource has come since, which was not compared with it.
    """
    with _holding(_loading(source), source, settings) as stores:
        with stores.warehouse as db, db.cursor() as sql:
            sql.execute(
                "select resource, lane, state, reason, (select max(load) from ops.load as l "
                "where l.source = o.source and l.resource = o.resource) from ops.load as o "
                "where source = %s and load = %s",
                (source.name, load),
            )
            row = sql.fetchone()
        if row is None or row[2] != "rejected":
            what = "there is none" if row is None else f"it is {row[2]}"
            raise Problem(f"load {load} of {source.name} was not rejected: {what}", "`lyrebird ledger` shows the loads")
        name, lane, _, reason, newest = row
        if newest != load:
            raise Problem(
                f"load {newest} of {source.name}/{name} came after load {load}",
                f"Ingest again; then accept what is rejected of it: `lyrebird audit {source.name} --accept LOAD`",
            )
        resource = next(one for one in source.resources if one.name == name)
        gates.accept(settings, f"load.{source.table(resource)}")
        _settle(source, load, name, lane, stores, "published", f"accepted by a person; the audit said: {reason}")
        with stores.warehouse as db, db.cursor() as sql:
            sql.execute(
                "update ops.ledger set state = 'done', error = null, updated_at = now() "
                "where source = %s and resource = %s and lane = %s and load = %s and state = 'failed' and error = %s",
                (source.name, name, lane, load, reason),
            )
    say(f"{source.name}/{name}: load {load} published, although {reason}")


@contextmanager
def exclusively(sources: list[Source], settings: Settings) -> Iterator[Stores]:
    """The stores, while nobody fetches or loads these sources: one would not see what is on its way into landing."""
    with ExitStack() as held:
        for source in sources:
            lock = held.enter_context(closing(warehouse.connect(settings, application=f"forget {source.name}")))
            held.enter_context(warehouse.advisory_lock(lock, f"fetches:{source.name}"))
        stores = [held.enter_context(_holding(_loading(source), source, settings)) for source in sources]
        yield stores[0]


def load_pending(source: Source, stores: Stores, settings: Settings, say: Say) -> None:
    """Load and judge what is sealed, for a caller that holds the lock of the source's loads."""
    _load_sealed(source, stores, settings, Report(source.name), say, lambda stage: None)
    judge_pending(source, stores, settings, say)


def rejected(source: Source, settings: Settings) -> list[tuple[int, str]]:
    """The newest loads of slices that were rejected, with the reason: what a person has to mend.

    A slice that was looked at since, and found as it was accepted last, is mended: no newer load says so, the
    ledger does.
    """
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute(
            """
            select load, reason from (
                select distinct on (resource, lane, slice) * from ops.load where source = %s and lane <> 'replay'
                order by resource, lane, slice, load desc
            ) as newest
            where state = 'rejected' and not exists (
                select from ops.ledger as l
                where (l.source, l.resource, l.lane, l.slice)
                    = (newest.source, newest.resource, newest.lane, newest.slice)
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
            "select coalesce(sum(newest), 0)::bigint from (select max(load) as newest from ops.load where "
            "source = any(%s) and state = 'published' and (versions > 0 or lane = 'forget') group by source) as loads",
            ([source.name, *source.after],),
        )
        return int(warehouse.first(sql)[0])


def replay(source: Source, settings: Settings, say: Say = print) -> list[int]:
    """Drop what the warehouse and the document store hold of a source, and load it all again from landing.

    Transforms of its domain wait, and refuse to begin when the replay did not come to its end. Fetches wait too: they
    would find no cursor, and ask for everything once more.
    """
    with (
        _holding(f"transform.{source.domain}", source, settings),
        exclusively([source], settings) as stores,
        ExitStack() as ledger,
    ):
        db = stores.warehouse
        for resource in source.resources:
            ledger.enter_context(_Attempt(db, source, resource, "rebuild", source.domain, None, "replay"))
        with db, db.cursor() as sql:
            for resource in source.resources:
                ensure_table(db, source, resource)
                sql.execute(f'truncate raw."{source.table(resource)}"')
                if resource.store == "documents":
                    stores.documents().database.drop_collection(source.table(resource))
            names = [resource.name for resource in source.resources]  # what is no more cannot be loaded again
            sql.execute(  # what shared a page with somebody who was withdrawn stays: no page would give it back
                "delete from ops.quarantine as q where source = %s and resource = any(%s) and (landing is null "
                "or exists (select from ops.landing as n where (n.source, n.key) = (q.source, q.landing)))",
                (source.name, names),
            )
            for table in ("load", "cursor", "landing"):
                sql.execute(f"delete from ops.{table} where source = %s and resource = any(%s)", (source.name, names))
        loads = _load_sealed(source, stores, settings, Report(source.name), say, lambda stage: None)
        judge_pending(source, stores, settings, say)
    return loads


def project(source: Source, settings: Settings, say: Say = print) -> int:
    """Make the documents that raw shows again from the document store, whatever raw holds. Returns how many.

    Raises Problem when the store has not got one of them: then only a replay from landing helps.
    """
    count = 0
    with _holding(_loading(source), source, settings) as stores, stores.warehouse as db:
        for resource in source.resources:
            if resource.store != "documents":
                continue
            table = source.table(resource)
            with db.cursor("versions") as sql, db.cursor() as write:
                sql.execute(f'select _load, _position, _key, _hash from raw."{table}" where not _deleted')
                while lines := sql.fetchmany(1_000):
                    ids = [version_id(key, content.replace("-", "")) for _, _, key, content in lines]
                    found = stores.documents().read_versions(table, ids)
                    texts = [document_text(found[address]["doc"]) for address in ids]
                    execute_values(
                        write,
                        f'update raw."{table}" as r set doc = v.doc::jsonb from (values %s) as v (load, position, doc) '
                        "where r._load = v.load and r._position = v.position",
                        [(load, position, text) for (load, position, *_), text in zip(lines, texts, strict=True)],
                        page_size=1_000,
                    )
                    count += len(lines)
                    say(f"{source.name}/{resource.name}: {count:,} documents")
    return count


def replay_quarantine(source: Source, settings: Settings, ids: list[int] | None = None, say: Say = print) -> list[int]:
    """Read the pages of records in quarantine again, with the parser as it is now. Returns the loads this gave.

    All of the source's, or those of the records ``ids``. They are loads of their own, in the lane `replay`: what is
    good now appears unless something newer has come of its key; what is not goes to quarantine again. Records whose
    page a withdrawal has erased cannot be read again, and stay as they are.
    """
    report = Report(source.name)
    with _holding(f"fetch:{source.name}:replay", source, settings, fetches=True) as stores:
        with _holding(_loading(source), source, settings) as loader:
            _load_sealed(source, loader, settings, report, say, lambda stage: None)  # what a killed replay left
        with stores.warehouse as db, db.cursor() as sql:
            sql.execute(
                """
                select q.resource, original, array_agg(distinct q.landing) filter (where there),
                       count(*) filter (where not there)
                from ops.quarantine as q
                join ops.load as l on (l.source, l.load) = (q.source, q.load)
                cross join lateral (
                    select case when l.lane = 'replay' then l.slice::bigint else l.load end
                ) as o (original)
                cross join lateral (
                    select exists (
                        select from ops.landing as n where (n.source, n.load, n.key) = (q.source, original, q.landing)
                    )
                ) as p (there)
                where q.source = %s and replayed_at is null and landing is not null
                  and (%s::bigint[] is null or id = any(%s))
                group by 1, 2 order by 2
                """,
                (source.name, ids, ids),
            )
            groups = sql.fetchall()
        known = {resource.name: resource for resource in source.resources}
        for name, original, keys, erased in groups:
            if name not in known:
                say(f"{source.name}: load {original} is of the resource {name}, which is no more; left as it is")
                continue
            if erased:
                say(
                    f"{source.name}/{name}: {erased:,} records of load {original} stay: a withdrawal erased their pages"
                )
            if not keys:
                continue
            segment = journal.Segment(stores.objects, source.name, name)
            for page in _landed(stores.warehouse, source, original, keys):
                segment.add(page)
            segment.seal(lane="replay", slice=str(original), interval=None, run_id="quarantine replay")
            say(f"{source.name}/{name}: {segment.pages:,} pages of load {original} once more")
        with _holding(_loading(source), source, settings) as loader:
            loads = _load_sealed(source, loader, settings, report, say, lambda stage: None)
            judge_pending(source, loader, settings, say)
    return loads


def _landed(db: connection, source: Source, load: int, keys: list[str]) -> list[Page]:
    """Pages of a load as its journal has them, by their keys in landing."""
    with db, db.cursor() as sql:
        sql.execute(
            "select n.name, n.key, n.content_type, n.meta, n.fetched_at, l.cursor from ops.landing as n "
            "join ops.load as l using (source, load) where source = %s and load = %s and key = any(%s) "
            "order by position",
            (source.name, load, keys),
        )
        return [
            Page(name, None, cursor, content_type, meta, ref=key, fetched_at=fetched_at)
            for name, key, content_type, meta, fetched_at, cursor in sql.fetchall()
        ]


def unfinished(source: Source, settings: Settings) -> list[Slice]:
    """Slices that were asked for and failed or were rejected, or were left by a process that died."""
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute(
            "select resource, interval_start, interval_end from ops.ledger where source = %s and state <> 'done' "
            "and lane in ('live', 'backfill') and resource = any(%s) order by interval_start nulls first, resource",
            (source.name, [resource.name for resource in source.resources]),
        )
        return [([resource], (start, end) if start else None) for resource, start, end in sql.fetchall()]


def gaps(settings: Settings, source: str = "") -> list[tuple[str, str, Any, Any]]:
    """Intervals between the first and the last that were asked for which no finished slice covers."""
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute(
            """
            select source, resource, lower(gap), upper(gap) from (
                select source, resource,
                       tstzmultirange(tstzrange(min(interval_start), max(interval_end))) - coalesce(
                           range_agg(tstzrange(interval_start, interval_end)) filter (where state = 'done'), '{}'
                       ) as missing
                from ops.ledger where interval_start is not null and %s in ('', source) group by 1, 2
            ) as asked, unnest(missing) as gap
            order by 1, 2, 3
            """,
            (source,),
        )
        return sql.fetchall()


def make_tables(sources: list[Source], settings: Settings) -> None:
    """Make every raw table of the catalogue, so that models can name a table before its first load."""
    with closing(warehouse.connect(settings)) as db, db:
        for source in sources:
            for resource in source.resources:
                ensure_table(db, source, resource)


def options(source: Source) -> dict[str, Any]:
    """The source's options: its defaults, and what the options file says of it."""
    sources = given.options().get("sources", {})
    values = sources.get(source.name, {}) if isinstance(sources, Mapping) else sources
    if not isinstance(values, Mapping):
        raise Problem(
            f"{given.options_file()}: what it says of {source.name} is {values!r}",
            f"Begin a table with the line [sources.{source.name}], and give its options below",
        )
    known = {name: default for name, (default, _) in source.config.items()}
    known["quarantine_share"] = source.quarantine_share
    unknown = values.keys() - known.keys()
    if unknown:
        raise Problem(
            f"{given.options_file()}: {source.name} has no option {sorted(unknown)[0]}",
            f"Its options: {', '.join(known)}",
        )
    share = values.get("quarantine_share", 0)
    if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share <= 1:
        raise Problem(f"{given.options_file()}: quarantine_share of {source.name} is {share!r}", "It is from 0 to 1")
    return {**known, **values}


def slice_name(interval: journal.Interval) -> str:
    """The name of an interval in the ledger."""
    return "/".join(moment.astimezone(UTC).isoformat(timespec="seconds") for moment in interval)


def _loading(source: Source) -> str:
    """The lock under which segments of a source are loaded and judged."""
    return f"load:{source.name}"


def _load_sealed(
    source: Source, stores: Stores, settings: Settings, report: Report, say: Say, reached: Say
) -> list[int]:
    """Load the sealed segments that the warehouse has not got, in their order: ours, and what was left behind.

    A load is compared with those before it that count. So what waits for its verdict gets it before the next load of
    the same resource: a row that only says what a load says that is rejected afterwards would be lost with it.
    """
    db = stores.warehouse
    with db, db.cursor() as sql:
        sql.execute("select load, resource from ops.load where source = %s", (source.name,))
        known = dict(sql.fetchall())
    sealed, names = journal.segments(stores.objects, source.name), {resource.name for resource in source.resources}
    if lost := {load for load, name in known.items() if name in names}.difference(sealed):
        raise Problem(
            f"the warehouse has load {min(lost)} of {source.name}, and landing has not: it is older",
            f"`lyrebird replay {source.name}` makes the tables as landing has them; then ingest what is missing",
        )
    done = []
    for load in sealed:
        if load in known:
            continue
        header, entries = journal.read_segment(stores.objects, source.name, load, stores.copies)
        judge_pending(source, stores, settings, say, header.resource)
        counts = load_segment(source, header, entries, stores, _throttled(say), reached)
        if counts is None:
            continue
        name = header.resource
        report.add(load, name, counts)
        say(
            f"{source.name}/{name}: load {load}, {counts.rows:,} records, "
            f"{counts.versions:,} new or changed, {counts.quarantined:,} in quarantine"
        )
        done.append(load)
    return done


def _fetch(
    source: Source,
    resource: Resource,
    stores: Stores,
    settings: Settings,
    attempt: _Attempt,
    say: Say,
    reached: Say,
    copies: journal.Copies,
) -> int | None:
    """Fetch pages from the lane's cursor into landing and seal them. The segment's number; None for nothing new."""
    context = _context(source, resource, stores.warehouse, settings, attempt, say)
    segment = journal.Segment(stores.objects, source.name, resource.name, copies)
    try:
        for item in resource.fetch(context):
            segment.add(item)
            reached("fetched")
            what = "deleted" if isinstance(item, Gone) else item.name
            size = f"{segment.pages:,} pages, {segment.bytes / 1e6:.1f} MB"
            context.progress(f"{source.name}/{resource.name}: {size} ({what})")
    except BaseException:
        segment.drop()
        raise
    if not segment.pages:
        segment.drop()
        return None
    reached("before seal")
    load = segment.seal(lane=attempt.lane, slice=attempt.slice, interval=attempt.interval, run_id=attempt.run_id)
    reached("sealed")
    return load


def _context(
    source: Source, resource: Resource, db: connection, settings: Settings, attempt: _Attempt, say: Say
) -> Context:
    """What fetch may use. A backfill asks for its whole interval each time: its cursor only says what came of it."""
    cursor: dict[str, Any] = {}
    if attempt.interval is None:
        with db, db.cursor() as sql:
            sql.execute(
                "select cursor from ops.cursor where source = %s and resource = %s and lane = %s",
                (source.name, resource.name, attempt.lane),
            )
            row = sql.fetchone()
        cursor = row[0] if row else {}
    return Context(options(source), cursor, resource, attempt.interval, settings, say, _throttled(say))


@contextmanager
def _holding(
    lock_name: str,
    source: Source,
    settings: Settings,
    copies: Mapping[str, Path] | None = None,
    *,
    fetches: bool = False,
) -> Iterator[Stores]:
    """The stores, with a lock that one process holds at a time.

    One that ``fetches`` keeps those out who may not be disturbed by it (:func:`exclusively`).
    """
    try:
        with (
            closing(warehouse.connect(settings, application=f"load {source.name}")) as lock,
            closing(warehouse.connect(settings, application=f"load {source.name}")) as db,
            warehouse.advisory_lock(lock, lock_name),
            warehouse.advisory_lock(lock, f"fetches:{source.name}", shared=True) if fetches else nullcontext(),
        ):
            yield Stores(db, Objects(settings), cache(partial(Documents, settings)), copies or {})
    except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Problem(
            f"PostgreSQL failed while {source.name} was at work: {reason}",
            "Nothing is half done: run it again when `lyrebird status` shows it running",
        ) from error
    except psycopg2.errors.UniqueViolation as error:  # the connection that held the lock was lost, and another came
        raise Problem(
            f"another process loaded {source.name} at the same time ({error.diag.constraint_name} was there already)",
            "Nothing is doubled: run it again",
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
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
        lane: str,
        slice: str,
        interval: journal.Interval | None,
        run_id: str,
    ) -> None:
        self.db = db
        self.load: int | None = None
        self.lane, self.slice, self.interval, self.run_id = lane, slice, interval, run_id
        self._key = (source.name, resource.name, lane, slice)
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
                  and not (state = 'failed' and load = %s)  -- another process has judged it meanwhile
                """,
                ("failed" if error else "done", str(error)[:2000] if error else None, self.load, *self._key, self.load),
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
