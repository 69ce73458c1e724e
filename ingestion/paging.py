"""Reading a list page by page while it changes; knowing afterwards what is new, what was missed and what is gone.

A catalogue is asked for what came since the last reading (:class:`Turn`), now and then for all it has, and in a
backfill for the days of an interval.

Servers that give pages by number or offset promise nothing about the list between two requests: an entry that is added
pushes others to the next page, where they come again; one that is taken away pulls others to a page that has been
read, and they are missed. So a part of the list is read again while fewer records came than the server counts.

A page lands when it holds something new: what the warehouse has already makes no load. Keys are noted in temporary
tables of the warehouse, so that a list of any length is read in the memory of one page.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from ingestion import rows
from ingestion.contract import Context, Cursor, Gone, Page
from ingestion.journal import digest
from storage.errors import Problem

READS = 3  # how often a part is read at most while something of it is missing
MOST_CHECKED = 100  # records that seem gone from a list that did not hold still: no more are asked for one by one


@dataclass(frozen=True)
class Sheet:
    """A page of a list, taken apart.

    ``records`` are what its parse gives, good or bad; ``aside`` are entries that count and were not asked for;
    ``total`` is how many entries the server counts in this part of the list; ``place`` is JSON that says where the
    next sheet is.
    """

    page: Page
    records: Sequence[Any]
    total: int
    place: Any
    aside: Sequence[Any] = ()


class Broken(Exception):
    """A page that is no page of the list: it lands, its parse says why, and the reading stops before it."""

    def __init__(self, page: Page) -> None:
        super().__init__(page.name)
        self.page = page


@dataclass(frozen=True)
class Part:
    """A part of the list: its name, and its sheets from a place on (None: the beginning).

    ``hidden``: it stands for entries that no sheet shows. So what is not seen need not be gone.
    """

    name: str
    sheets: Callable[[Any], Iterator[Sheet]]
    hidden: bool = False


@dataclass(frozen=True)
class Turn:
    """What is to be read now: the days of an interval, what came ``since`` a day, or everything (both None).

    ``start`` (part, place) is where an earlier reading stopped.
    """

    since: str | None = None  # ISO 8601
    days: tuple[str, str] | None = None  # the first, and the one after the last
    start: tuple[str, Any] | None = None
    stamps: Cursor = field(default_factory=dict)  # of the readings before
    began: str = ""

    @property
    def whole(self) -> bool:
        return self.since is None and self.days is None

    def meta(self) -> dict[str, Any]:
        """What parse must know of it."""
        return {"days": list(self.days)} if self.days else {}

    def going_on(self, part: str, place: Any) -> Cursor:
        """The cursor while it is under way."""
        where = {"since": self.since, "began": self.began, "part": part, "place": place}
        return self.done() if self.days else self.stamps | {"reading": where}

    def done(self) -> Cursor:
        """The cursor afterwards. One that went on was not of the whole: nobody knows what its beginning has missed."""
        if self.days:
            return {"days": list(self.days)}  # a backfill asks for the whole interval each time
        whole = {"full": self.began} if self.whole and self.start is None else {}
        return self.stamps | {"since": self.began} | whole


def today() -> date:
    return datetime.now(UTC).date()


def turn(context: Context, question: str) -> Turn | None:
    """What is to be read now, by the cursor, the interval and the options ``lag_days`` and ``full_every_days``.

    None when no day begins in the interval. Another question than the last is a reading from the beginning.
    """
    if context.interval:
        first, last = (_day(moment).isoformat() for moment in context.interval)
        return Turn(days=(first, last)) if first < last else None
    cursor = context.cursor
    if cursor.get("question") != question:
        return Turn(stamps={"question": question}, began=today().isoformat())
    stamps = {name: cursor[name] for name in ("question", "since", "full") if name in cursor}
    if under_way := cursor.get("reading"):
        start = (under_way["part"], under_way["place"])
        return Turn(under_way["since"], None, start, stamps, under_way["began"])
    every, lag = (natural(context.config, option) for option in ("full_every_days", "lag_days"))
    if "full" not in cursor or today() - date.fromisoformat(cursor["full"]) >= timedelta(days=every):
        return Turn(stamps=stamps, began=today().isoformat())
    since = date.fromisoformat(cursor["since"]) - timedelta(days=lag)
    return Turn(since.isoformat(), stamps=stamps, began=today().isoformat())


def _day(moment: datetime) -> date:
    """The first day that begins at or after a moment: a day belongs to the interval in which it begins."""
    moment = moment.astimezone(UTC)
    return moment.date() + timedelta(days=moment.time() > time.min)


def within(meta: Mapping[str, Any], day: object) -> bool:
    """Whether a day (ISO 8601) is one that a page was asked for, by the page's meta."""
    if "days" not in meta:
        return True
    first, last = meta["days"]
    return bool(first <= str(day) < last)


def natural(config: Mapping[str, Any], option: str) -> int:
    """A whole number from the options; raises Problem for anything else."""
    try:
        number = int(str(config[option]))
    except ValueError:
        number = -1
    if number < 0:
        raise Problem(f"the option {option} is {config[option]!r}", f"Set {option} to a whole number, 0 or more")
    return number


@dataclass(frozen=True)
class Known:
    """Where it is written what is known: a source's table in ``raw``; and how its server is asked for one key."""

    source: str
    table: str
    there: Callable[[str], bool]


def read(context: Context, parts: Iterable[Part], turn: Turn, known: Known) -> Iterator[Page | Gone]:
    """Pages that hold something new, then the keys that are gone; the cursor of the last says that all was read.

    Nothing comes when nothing is new. Only a whole list gives its last page even so, to say that it was read. A server
    that fails in the middle of a long list is asked for the rest by the next run; one that fails before anything new
    has come, or within an interval, which is asked for as a whole, is a Problem.
    """
    here = context.cursor
    held: Page | None = None  # a page with news waits until it is known whether it is the last
    newest: Page | None = None
    with closing(_Notes(context, known)) as notes:
        try:
            for part in _from(parts, turn.start):
                notes.hidden |= part.hidden
                for sheet in _in_full(part, turn, notes):
                    here = turn.going_on(part.name, sheet.place)
                    newest = replace(sheet.page, cursor=here)
                    if notes.see(part.name, sheet):
                        if held:
                            yield held
                        held = newest
        except Broken as error:
            if held:
                yield held
            yield replace(error.page, cursor=here)
            return
        except Problem as problem:
            if held is None or turn.days:
                raise
            context.say(f"{problem.what}; the rest waits for the next run")
            yield replace(held, cursor=here)
            return
        gone = notes.gone() if turn.whole and turn.start is None else iter(())
        last: Page | Gone | None = held or (newest if turn.whole else None)
        for key in gone:
            if last is not None:
                yield last
            last = Gone(key, here)
        if not notes.complete:
            context.say("the list changes faster than it is read: the next run reads it again")
        if last is not None:
            yield replace(last, cursor=turn.done() if notes.complete else context.cursor)


def _in_full(part: Part, turn: Turn, notes: _Notes) -> Iterator[Sheet]:
    """The sheets of a part; all of them once more while fewer records came than the server counts."""
    place = turn.start[1] if turn.start and turn.start[0] == part.name else None
    seen = 0
    for attempt in range(READS):
        totals = set()
        for sheet in part.sheets(place):
            totals.add(sheet.total)
            yield sheet
        before, seen, wanted = seen, notes.count(part.name), max(totals, default=0)
        if place is not None or seen >= wanted or (attempt and seen == before):
            notes.still &= len(totals) < 2 and seen == wanted
            return  # all of it is here, or the server counts more than it shows
        notes.context.say(f"{part.name}: {seen:,} of {wanted:,} records came, so it is read again")
    notes.complete = False


def _from(parts: Iterable[Part], start: tuple[str, Any] | None) -> Iterator[Part]:
    """The parts from the one where an earlier reading stopped; all, when there is no such part any more."""
    if start is None:
        yield from parts
        return
    every = list(parts)
    yield from every[next((number for number, part in enumerate(every) if part.name == start[0]), 0) :]


class _Notes:
    """What the warehouse knows of a resource, and what this reading has seen of it."""

    def __init__(self, context: Context, known: Known) -> None:
        self.context, self.known = context, known
        self.complete = self.still = True  # all parts were read in full; none of them moved meanwhile
        self.hidden = False  # the list has entries that nobody is shown
        self._spoilt: set[str] = set()
        self._db = context.warehouse()
        self._db.autocommit = True  # nothing is locked while servers are slow
        with self._db.cursor() as sql:
            sql.execute("create temporary table seen (part text, key text, primary key (part, key))")
            sql.execute("create temporary table told (key text primary key, hash uuid not null)")
            sql.execute("select to_regclass(%s) is not null", (f"raw.{known.table}",))
            table = f'raw."{known.table}"'
            if not (sql.fetchone() or (False,))[0]:
                table = "pg_temp.nothing"
                sql.execute(
                    "create temporary table nothing "
                    "(_load bigint, _position bigint, _key text, _hash uuid, _deleted boolean)"
                )
        self._versions = (
            f"from {table} as r join ops.load as l on l.source = %(source)s and l.load = r._load "
            "and l.state <> 'rejected'"
        )

    def close(self) -> None:
        self._db.close()

    def see(self, part: str, sheet: Sheet) -> bool:
        """Note the sheet's records. Whether it holds something that neither the warehouse nor this reading has."""
        good = {key: rows.hash_of(self.context.resource, one) for one in sheet.records if (key := self._key(one))}
        every = {self._key(one) or _sign(one) for one in (*sheet.records, *sheet.aside)}
        values = {"source": self.known.source, "part": part, "every": [*every]}
        values |= {"keys": [*good], "hashes": [*good.values()]}
        with self._db.cursor() as sql:
            sql.execute("insert into seen select %(part)s, unnest(%(every)s::text[]) on conflict do nothing", values)
            sql.execute(
                f"""
                select s.key
                from unnest(%(keys)s::text[], %(hashes)s::uuid[]) as s (key, hash)
                left join told as t on t.key = s.key
                left join lateral (
                    select r._hash, r._deleted {self._versions}
                    where r._key = s.key order by r._load desc, r._position desc limit 1
                ) as c on true
                where coalesce(t.hash, case when not c._deleted then c._hash end) is distinct from s.hash
                """,
                values,
            )
            news = sql.fetchall()
            if news:
                sql.execute(
                    "insert into told select * from unnest(%(keys)s::text[], %(hashes)s::uuid[]) "
                    "on conflict (key) do update set hash = excluded.hash",
                    values,
                )
        bad = not all(self._key(one) for one in sheet.records)
        return bool(news) or (bad and self._is_new(sheet.page))

    def _key(self, one: Any) -> str:
        """The key of a record; "" for what breaks the contract, and may hold what no table can."""
        if not isinstance(one, dict) or rows.check(self.context.resource, one):
            return ""
        return rows.key_text(tuple(map(one.get, self.context.resource.key)))

    def _is_new(self, page: Page) -> bool:
        """Whether the very page has not landed: what is bad on it is in quarantine then."""
        sha256, _ = digest(page.body or b"")
        if sha256 in self._spoilt:
            return False
        self._spoilt.add(sha256)
        with self._db.cursor() as sql:
            sql.execute(
                "select exists (select from ops.landing as d join ops.load as l using (source, load) "
                "where d.source = %s and d.sha256 = %s and d.resource = %s and l.state <> 'rejected')",
                (self.known.source, sha256, self.context.resource.name),
            )
            return not (sql.fetchone() or (False,))[0]

    def count(self, part: str) -> int:
        """Records of a part that came, each counted once."""
        with self._db.cursor() as sql:
            sql.execute("select count(*) from seen where part = %s", (part,))
            return int((sql.fetchone() or (0,))[0])

    def gone(self) -> Iterator[tuple[Any, ...]]:
        """Keys of records that are known, or came earlier in this reading, and are not in the list any more.

        When the list moved, each is asked for; when that would be too many, the reading counts as not complete. When it
        has hidden entries each is asked for too, and when these would be too many, none is said to be gone.
        """
        if not self.complete:
            return
        with self._db.cursor() as sql:
            sql.execute(f"create temporary table missing as {self._missing}", {"source": self.known.source})
            if (self.hidden or not self.still) and sql.rowcount > MOST_CHECKED:
                self.complete = self.hidden
                return
            keys, last = [""], ""
            while keys:
                sql.execute("select key from missing where key > %s order by key limit 1000", (last,))
                keys = [key for (key,) in sql.fetchall()]
                for last in keys:
                    key = tuple(json.loads(last)) if last.startswith("[") else (last,)
                    if (self.still and not self.hidden) or not self.known.there(str(key[0])):
                        yield key

    @property
    def _missing(self) -> str:
        return f"""
            select key from (
                select _key as key from (
                    select distinct on (r._key) r._key, r._deleted {self._versions}
                    order by r._key, r._load desc, r._position desc
                ) as c where not _deleted
                union
                select key from told
            ) as known
            where not exists (select from seen where seen.key = known.key)"""


def _sign(one: Any) -> str:
    """What tells an entry without a proper key from others."""
    try:
        return f"no record: {rows.hash_text(one)}"
    except RecursionError:
        return "no record: too deep"
