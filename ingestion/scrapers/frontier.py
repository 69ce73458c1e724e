"""The frontier of a crawl, in the warehouse: what is to be asked for, is being asked for, and has landed.

Scrapy keeps its queue in memory, or in files that a clean stop writes. Here each step is a transaction:

* a request is put where none with its fingerprint is, so nothing is asked for twice;
* it is *taken* before it is sent; what a dead crawler had taken waits again when the next one begins;
* its page is noted when it lies in the object store, so that it need not be asked for again;
* it has *landed* in the transaction in which the requests that its links make are put.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg2
import psycopg2.extras
from psycopg2.extensions import cursor

from storage import warehouse
from storage.errors import Problem
from storage.settings import Settings

LEAF = "leaf"  # callback of pages that lead nowhere: what is in them is for parse


@dataclass(frozen=True)
class Wanted:
    """A request as it waits: only what our spiders use of Scrapy's."""

    fingerprint: str
    url: str
    callback: str  # name of the spider's method
    arguments: dict[str, Any] = field(default_factory=dict)
    priority: int = 0
    known: bool = False  # it was found, and its page need not be asked for

    @property
    def request(self) -> str:
        return json.dumps({"url": self.url, "callback": self.callback, "arguments": self.arguments})


@dataclass(frozen=True)
class Visit:
    """A request and what became of it. ``landing`` is the address of its page, ``bucket/key``."""

    fingerprint: str
    url: str
    callback: str
    arguments: dict[str, Any]
    state: str
    priority: int
    tries: int
    redirects: int
    landing: str | None
    content_type: str
    reason: str
    lasting: bool


@dataclass(frozen=True)
class Crawl:
    """A crawl whose load has not been judged yet."""

    name: str
    question: dict[str, Any]
    ended_at: datetime | None


_COLUMNS = (
    "fingerprint, request ->> 'url', request ->> 'callback', request -> 'arguments', state, priority, tries, "
    "coalesce((request ->> 'redirects')::int, 0), landing, coalesce(content_type, ''), coalesce(reason, ''), lasting"
)


class Frontier:
    """Crawls of one resource. One process has it at a time: the pipeline's lock, and one of the crawler's own."""

    def __init__(self, settings: Settings, source: str, resource: str) -> None:
        self.source, self.resource = source, resource
        self._db = warehouse.connect(settings, application=f"crawl {source}")

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[cursor]:
        try:
            with self._db, self._db.cursor() as sql:
                yield sql
        except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise Problem(
                f"PostgreSQL failed while {self.source} was crawled: {reason}",
                "Run it again when `lyrebird status` shows it running: it goes on from there",
            ) from error

    # ------------------------------------------------------------ crawls

    def under_way(self) -> Crawl | None:
        with self._transaction() as sql:
            sql.execute(
                "select crawl, question, ended_at from ops.crawl where source = %s and resource = %s",
                (self.source, self.resource),
            )
            row = sql.fetchone()
        return Crawl(*row) if row else None

    def begin(self, question: dict[str, Any]) -> Crawl:
        # a name that no other crawl ever has: cursors speak of it, and they outlive the warehouse
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
        with self._transaction() as sql:
            sql.execute(
                "insert into ops.crawl (crawl, source, resource, question) values (%s, %s, %s, %s)",
                (name, self.source, self.resource, json.dumps(question)),
            )
        return Crawl(name, question, None)

    def end(self, crawl: str) -> datetime:
        """Note that nothing is left to ask for. When that was noted first counts."""
        with self._transaction() as sql:
            sql.execute(
                "update ops.crawl set ended_at = coalesce(ended_at, clock_timestamp()) where crawl = %s "
                "returning ended_at",
                (crawl,),
            )
            ended: datetime = warehouse.first(sql)[0]
        return ended

    def forget(self, crawl: str) -> None:
        with self._transaction() as sql:
            sql.execute("delete from ops.frontier where crawl = %s", (crawl,))
            sql.execute("delete from ops.crawl where crawl = %s", (crawl,))

    # ------------------------------------------------------------ requests

    @contextmanager
    def alone(self, crawl: str) -> Iterator[None]:
        """Hold the crawl: a crawler that is being killed may live a moment longer than whoever started it."""
        with warehouse.advisory_lock(self._db, f"crawl:{crawl}"):
            yield

    def resume(self, crawl: str) -> None:
        """What a crawler that is no more had taken waits again, and so does what failed and may be had by now.

        A leaf that cannot be had may stay so; a page that leads on cannot be done without. What failed comes after the
        others: several that never come would have the server taken for away before those behind them are asked for.
        """
        with self._transaction() as sql:
            sql.execute(
                """
                update ops.frontier set state = 'waiting', tries = 0, reason = null,
                    priority = priority - (state = 'failed')::int
                where crawl = %s
                  and (state = 'taken' or (state = 'failed' and not (lasting and request ->> 'callback' = %s)))
                """,
                (crawl, LEAF),
            )

    def put(self, crawl: str, wanted: Sequence[Wanted]) -> int:
        """Put requests that are not there yet. Returns how many were new."""
        with self._transaction() as sql:
            return self._put(sql, crawl, wanted)

    @staticmethod
    def _put(sql: cursor, crawl: str, wanted: Sequence[Wanted]) -> int:
        if not wanted:
            return 0
        psycopg2.extras.execute_values(
            sql,
            "insert into ops.frontier (crawl, fingerprint, request, state, priority) values %s "
            "on conflict (crawl, fingerprint) do nothing",
            [
                (crawl, one.fingerprint, one.request, "known" if one.known else "waiting", one.priority)
                for one in wanted
            ],
            page_size=len(wanted),
        )
        return sql.rowcount

    def take(self, crawl: str) -> Visit | None:
        """The next request, marked as taken; None when none waits."""
        with self._transaction() as sql:
            sql.execute(
                f"""
                update ops.frontier set state = 'taken', tries = tries + 1, at = clock_timestamp()
                where crawl = %(crawl)s and fingerprint = (
                    select fingerprint from ops.frontier where crawl = %(crawl)s and state = 'waiting'
                    order by priority desc, number limit 1
                )
                returning {_COLUMNS}
                """,
                {"crawl": crawl},
            )
            row = sql.fetchone()
        return Visit(*row) if row else None

    def again(self, crawl: str, fingerprint: str) -> None:
        """Let a taken request wait once more: its server was busy."""
        self._set(crawl, fingerprint, "state = 'waiting'")

    def moved(self, crawl: str, fingerprint: str, url: str, redirects: int) -> None:
        """Let a taken request wait under the address that it was redirected to; that is no try."""
        more = json.dumps({"url": url, "redirects": redirects})
        self._set(
            crawl, fingerprint, "state = 'waiting', tries = greatest(tries - 1, 0), request = request || %s", more
        )

    def untaken(self, crawl: str) -> None:
        """After a clean stop: what was taken and not sent waits again."""
        with self._transaction() as sql:
            sql.execute("update ops.frontier set state = 'waiting' where crawl = %s and state = 'taken'", (crawl,))

    def lies(self, crawl: str, fingerprint: str, landing: str, content_type: str) -> None:
        """Note that a taken request's page lies in the object store; its links have yet to be followed."""
        self._set(crawl, fingerprint, "landing = %s, content_type = %s", landing, content_type)

    def landed(self, crawl: str, fingerprint: str, wanted: Sequence[Wanted], most: int) -> None:
        """A page has landed, and these are the requests that its links make.

        Raises Problem when the crawl comes to more than ``most`` requests; nothing is noted then.
        """
        with self._transaction() as sql:
            sql.execute(
                "update ops.frontier set state = 'landed', at = clock_timestamp() "
                "where crawl = %s and fingerprint = %s",
                (crawl, fingerprint),
            )
            if not self._put(sql, crawl, wanted):
                return
            sql.execute("select count(*) from ops.frontier where crawl = %s and state <> 'known'", (crawl,))
            if warehouse.first(sql)[0] > most:
                raise Problem(
                    f"{self.source}: the pages lead to more than {most:,} others",
                    "Links may go round in circles: look at ops.frontier; if there is so much, raise `most_pages`",
                )

    def failed(self, crawl: str, fingerprint: str, reason: str, *, lasting: bool) -> None:
        self._set(crawl, fingerprint, "state = 'failed', reason = %s, lasting = %s", reason[:500], lasting)

    def unread(self, crawl: str, fingerprint: str) -> None:
        """A page that cannot be read is to be asked for again: the next one may be whole."""
        self._set(crawl, fingerprint, "state = 'waiting', tries = 0, landing = null")

    def _set(self, crawl: str, fingerprint: str, what: str, *values: Any) -> None:
        with self._transaction() as sql:
            sql.execute(
                f"update ops.frontier set {what}, at = clock_timestamp() where crawl = %s and fingerprint = %s",
                (*values, crawl, fingerprint),
            )

    def waits(self, crawl: str) -> bool:
        with self._transaction() as sql:
            sql.execute(
                "select exists (select from ops.frontier where crawl = %s and state = 'waiting')",
                (crawl,),
            )
            return bool(warehouse.first(sql)[0])

    def counts(self, crawl: str) -> dict[str, int]:
        """How many requests are in which state."""
        with self._transaction() as sql:
            sql.execute("select state, count(*) from ops.frontier where crawl = %s group by state", (crawl,))
            return dict(sql.fetchall())

    def visits(self, crawl: str, callback: str | None = None, state: str | None = None) -> list[Visit]:
        """Requests of a callback and in a state (all where None), in the order in which they were found."""
        with self._transaction() as sql:
            sql.execute(
                f"""
                select {_COLUMNS} from ops.frontier
                where crawl = %(crawl)s and (%(callback)s is null or request ->> 'callback' = %(callback)s)
                  and (%(state)s is null or state = %(state)s)
                order by number
                """,
                {"crawl": crawl, "callback": callback, "state": state},
            )
            return [Visit(*row) for row in sql.fetchall()]
