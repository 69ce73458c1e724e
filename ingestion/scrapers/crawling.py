"""A crawl as a source sees it: begun or gone on with, finished, and its landed pages given to the pipeline.

A crawl ends in one load. Its requests are forgotten when that load has been judged; the load's cursor names the crawl,
so that what was killed in between is made up for, and says when it ended: for ``rest_hours`` no other is begun, so a
run that makes up for a killed one asks nobody for anything.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from psycopg2.extensions import cursor
from pydantic import SecretStr

from ingestion import paging, rows
from ingestion.contract import Bad, BadPage, Context, Landed, Page
from ingestion.journal import digest
from ingestion.scrapers.frontier import LEAF, Frontier, Visit
from storage.errors import Problem
from storage.roles import KEPT, KEPT_OURS, PR_SET_PDEATHSIG, QUIET
from storage.settings import Settings

OPTIONS: dict[str, tuple[Any, str]] = {
    "rate": ("1/second", "requests to one server, of all workers together"),
    "most_pages": (20_000, "requests of one crawl: with more it stops, for it may be going round in circles"),
    "rest_hours": (12, "hours after a crawl in which no other is begun"),
    "allowed_hosts": ([], "hosts that may have private addresses (host or host:port)"),
}
FEW = 25  # one page in so many may fail and be noted: more of them are left to the next crawl
PATIENCE_S = 30  # in which a crawler that is told to stop should have finished what is under way


@dataclass(frozen=True)
class Done:
    """A crawl that has ended: its name, when it ended (ISO 8601), and what it asked for, in the order of finding."""

    name: str
    ended: str
    visits: list[Visit]

    def cursor(self) -> dict[str, str]:
        return {"crawl": self.name, "ended": self.ended}


def crawl(
    context: Context,
    source: str,
    spider: str,
    *,
    question: dict[str, Any],
    arguments: dict[str, Any],
) -> Done | None:
    """Ask for all that the spider finds, or for what is left of it. None while the last crawl has yet to rest.

    ``question`` is what makes it another crawl; ``arguments`` are for the spider. Leaves may be missing at their
    server; any other page that cannot be had is a Problem, and so is trouble of the server, which passes: the next run
    goes on from there. Where the server gave other leaves, the trouble is with the one: a few of those are among the
    visits, as failed, and more of them are left to the next crawl.
    """
    with closing(Frontier(context.settings, source, context.resource.name)) as frontier:
        found = frontier.under_way()
        if found and (found.name == context.cursor.get("crawl") or found.question != question):
            frontier.forget(found.name)  # loaded and judged, or nobody's question any more
            found = None
        if found is None:
            if context.cursor.get("question", question) == question and _rests(context):
                return None
            found = frontier.begin(question)
        ended = found.ended_at
        if ended is None:
            order = {
                "spider": spider,
                "crawl": found.name,
                "source": source,
                "resource": context.resource.name,
                "url": str(context.config["url"]).rstrip("/"),
                "rate": str(context.config["rate"]),
                "allowed": list(context.config["allowed_hosts"]),
                "most": paging.natural(context.config, "most_pages"),
                "arguments": arguments,
            }
            _run(order, context)
            _check(frontier, found.name, source)
            ended = frontier.end(found.name)
        return Done(found.name, ended.isoformat(), _fit(frontier.visits(found.name), context.say))


def forget(context: Context, source: str, name: str) -> None:
    """Forget a crawl's requests: it has been made use of."""
    with closing(Frontier(context.settings, source, context.resource.name)) as frontier:
        frontier.forget(name)


def settled(source: str) -> Callable[[Context, bool], None]:
    """For ``Resource.settled``. After a rejection too: what was rejected is asked for anew."""

    def forget_it(context: Context, _accepted: bool) -> None:
        if "crawl" in context.cursor:
            forget(context, source, context.cursor["crawl"])

    return forget_it


def lost(visit: Visit, cursor: dict[str, Any], meta: Mapping[str, Any]) -> Page:
    """A page that could not be had, for parse to say so: it goes to quarantine with the reason, ``meta["failed"]``."""
    body = json.dumps({"url": visit.url, "failed": visit.reason}).encode()
    return Page(visit.url, body, cursor, "application/json", {**meta, "failed": visit.reason})


def news(context: Context, source: str, table: str, pages: Iterable[Page]) -> Iterator[Page]:
    """Those of the pages that hold something that the warehouse has not.

    A page that breaks its contract is news until it lies in quarantine with a load that was accepted.
    """
    objects = context.objects()
    with closing(context.warehouse()) as db:
        db.autocommit = True  # nothing is locked while pages are read
        with db.cursor() as sql:
            sql.execute("select to_regclass(%s) is not null", (f"raw.{table}",))
            exists = bool((sql.fetchone() or (False,))[0])
            for page in pages:
                key = page.ref or ""
                sha256 = key.rsplit("/", 1)[-1] if page.ref else digest(page.body or b"")[0]
                landed = Landed(
                    objects, 0, page.name, key, sha256, 0, page.content_type, datetime.now(UTC), page.meta
                )  # fmt: skip
                if not exists or _is_new(context, source, table, landed, sql):
                    yield page


def _is_new(context: Context, source: str, table: str, landed: Landed, sql: cursor) -> bool:
    bad = False
    try:
        for record in context.resource.parse(landed):
            if isinstance(record, Bad) or rows.check(context.resource, record):
                bad = True
                continue
            sql.execute(
                f"""
                select r._hash, r._deleted from raw."{table}" as r
                join ops.load as l on l.source = %s and l.load = r._load and l.state <> 'rejected'
                where r._key = %s order by r._load desc, r._position desc limit 1
                """,
                (source, rows.key_text(tuple(map(record.get, context.resource.key)))),
            )
            found = sql.fetchone()
            if not found or (found[0].replace("-", ""), found[1]) != (rows.hash_of(context.resource, record), False):
                return True
    except BadPage:
        bad = True
    if bad:
        sql.execute(
            "select exists (select from ops.landing as d join ops.load as l using (source, load) "
            "where d.source = %s and d.sha256 = %s and d.resource = %s and l.state <> 'rejected')",
            (source, landed.sha256, context.resource.name),
        )
        return not (sql.fetchone() or (False,))[0]
    return False


def _rests(context: Context) -> bool:
    hours = paging.natural(context.config, "rest_hours")
    ended = str(context.cursor.get("ended") or "")
    return bool(ended) and datetime.now(UTC) - datetime.fromisoformat(ended) < timedelta(hours=hours)


def _fit(visits: list[Visit], say: Callable[[str], None]) -> list[Visit]:
    """The visits without those failed ones that are more than a few and may be had by the next crawl."""
    passing = [visit for visit in visits if visit.state == "failed" and not visit.lasting]
    left = {visit.fingerprint for visit in passing[sum(visit.state == "landed" for visit in visits) // FEW :]}
    if left:
        say(f"{passing[-1].url} {passing[-1].reason}; {len(left):,} pages are left to the next crawl")
    return [visit for visit in visits if visit.fingerprint not in left]


def _check(frontier: Frontier, name: str, source: str) -> None:
    """Raise Problem for what could not be had, but for leaves that are at fault themselves."""
    from ingestion import wire

    failed = frontier.visits(name, state="failed")
    given = {urlsplit(visit.url).netloc for visit in frontier.visits(name, LEAF, "landed")}
    waits = frontier.waits(name)
    missing = [
        visit
        for visit in failed
        if visit.callback != LEAF or not (visit.lasting or (urlsplit(visit.url).netloc in given and not waits))
    ]
    if missing:
        first, rest = missing[0], f", and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        advice = wire.ADVICE if first.lasting else "Run it again later: it goes on from there"
        raise Problem(f"{source}: {wire.shown(first.url)} {first.reason}{rest}", advice)
    if waits or not frontier.counts(name):
        raise Problem(f"{source}: the crawl was stopped before its end", "Run it again: it goes on from there")


def _run(order: dict[str, Any], context: Context) -> None:
    """Run the crawler. Raises Problem with what it says when it fails."""
    checkout = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "ingestion.scrapers"],
            cwd=checkout,
            env=_environment(context.settings),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            errors="replace",
            preexec_fn=_END_WITH_PARENT if sys.platform == "linux" else None,  # noqa: PLW1509 - one system call
        )
        try:
            problem = _listen(child, order, context.progress)
        finally:
            _stop(child)
        if problem:
            raise Problem(*problem)
        if child.returncode:
            raise Problem(
                f"the crawler of {order['source']} ended with {child.returncode}: {_last_words(log)}",
                "Run it again: it goes on from there",
            )


def _listen(
    child: subprocess.Popen[str], order: dict[str, Any], progress: Callable[[str], None]
) -> tuple[str, str] | None:
    """Give the crawler its order and hear what it says, a JSON object a line, to its end."""
    problem = None
    if child.stdin is None or child.stdout is None:
        return None
    try:
        child.stdin.write(json.dumps(order))
        child.stdin.close()
    except BrokenPipeError:  # it has ended already, and its log says why
        return None
    for line in child.stdout:
        said = json.loads(line)
        if "problem" in said:
            problem = (said["problem"][0], said["problem"][1])
        else:
            progress(said["say"])
    child.wait()
    return problem


def _stop(child: subprocess.Popen[str]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if child.poll() is None:
            child.send_signal(number)
            try:
                child.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                continue


def _last_words(log: IO[str]) -> str:
    from ingestion import wire

    log.seek(0)
    lines = [line.strip() for line in log if line.strip()]
    return wire.shown(lines[-1])[:300] if lines else "it said nothing"


# Whoever started the crawler may be killed: it then ends at once, and the frontier knows what was under way.
_END_WITH_PARENT = partial(ctypes.CDLL(None).prctl, PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _environment(settings: Settings) -> dict[str, str]:
    """The environment of a crawler: the basics and what these settings say, and nothing else of ours."""
    found = {name: os.environ[name] for name in (*KEPT, *KEPT_OURS) if name in os.environ} | QUIET
    for name in Settings.model_fields:
        value = getattr(settings, name)
        found[f"LYREBIRD_{name.upper()}"] = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
    return found
