"""Show audited marts to readers: views in ``marts`` over a versioned schema, switched in one transaction.

dbt builds a domain's marts into ``marts_next_<domain>``. :func:`publish` renames that schema to
``marts_<domain>_v<N>`` and points the views of ``marts`` at it, all at once, so that a statement over several marts
sees one version of each domain. Readers are never made to wait long: the switch gives up a lock that it does not get
at once, and tries again.

A freeze holds :data:`LOCK` shared while it reads, because a snapshot from before a switch would read the new tables
as empty; publishing holds it exclusively.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg2.errors
from psycopg2 import sql as pg
from psycopg2.extensions import connection, cursor

from storage import transform, warehouse
from storage.errors import Problem
from storage.settings import Settings

LOCK = warehouse.PUBLISH_LOCK
READERS = ("analyst", "trainer")
TRIES = 50  # to take all views at a moment when nobody reads, before we wait in the queue for them
PATIENCE = 900.0  # seconds until a switch gives up; a reader may hold its lock as long as its statement runs
Say = Callable[[str], None]


@dataclass(frozen=True)
class Publication:
    """One row of ``ops.publication``: which schema the views of a domain's marts show since then."""

    version: int
    schema: str
    marts: list[str]
    fingerprint: dict[str, str]
    invocation_id: str | None


def publish(domain: str, settings: Settings, invocation_id: str | None = None, say: Say | None = None) -> int | None:
    """Publish what was built into ``marts_next_<domain>``; returns its version.

    Returns None, and leaves readers alone, when nothing was built or when every mart is row for row what readers see
    already. With the ``invocation_id`` of the build, a repeated call after a success returns the version it made.
    Raises Problem when a mart of the domain is missing or is not of the last complete build.
    """
    tell = say or _to_stderr
    with (
        closing(warehouse.connect(settings, application="lyrebird publish")) as db,
        warehouse.advisory_lock(db, f"transform.{domain}"),
    ):
        now = current(db, domain)
        stamp = _stamp(db, domain)
        if stamp is None:
            if now and invocation_id and now.invocation_id == invocation_id:
                return now.version
            tell(f"nothing to publish: {transform.next_schema(domain)} does not exist")
            return None
        marts = _complete(domain, stamp)
        fingerprint = {mart: _fingerprint(db, transform.next_schema(domain), mart) for mart in marts}
        if now and now.fingerprint == fingerprint:
            with db, db.cursor() as sql:
                sql.execute(pg.SQL("drop schema {} cascade").format(pg.Identifier(transform.next_schema(domain))))
            tell(f"{domain}: the marts are what version {now.version} shows already; nothing to switch")
            _drop_older(db, domain, tell)
            return None
        version = _next_version(db, domain)
        new = Publication(version, f"marts_{domain}_v{version}", marts, fingerprint, stamp["invocation_id"])
        _switch(db, domain, now, new, built=True)
        tell(f"{domain}: version {version} is published ({len(marts)} marts)")
        _drop_older(db, domain, tell)
        return version


def rollback(domain: str, settings: Settings, say: Say | None = None) -> int:
    """Show the version before the present one again. It is a publication too: it gets a new number.

    Returns that number. Raises Problem when no earlier version is kept.
    """
    tell = say or _to_stderr
    with (
        closing(warehouse.connect(settings, application="lyrebird publish")) as db,
        warehouse.advisory_lock(db, f"transform.{domain}"),
    ):
        publications = _publications(db, domain)
        now = publications[0] if publications else None
        kept = _kept_schemas(db, domain)
        old = next((one for one in publications if now and one.schema != now.schema and one.schema in kept), None)
        if now is None or old is None:
            raise Problem(f"no earlier version of the marts of {domain} is kept", "There is nothing to go back to")
        new = Publication(now.version + 1, old.schema, old.marts, old.fingerprint, old.invocation_id)
        _switch(db, domain, now, new, built=False)
        tell(f"{domain}: version {new.version} shows version {old.version} again")
        return new.version


def current(db: connection, domain: str) -> Publication | None:
    """What readers see of a domain; None before the first publication."""
    return next(iter(_publications(db, domain)), None)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _rows(db: connection, statement: str | pg.Composed, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    with db, db.cursor() as sql:
        sql.execute(statement, values)
        return sql.fetchall()


def _publications(db: connection, domain: str) -> list[Publication]:
    """All publications of a domain, the latest first."""
    found = _rows(
        db,
        "select version, schema, marts, fingerprint, invocation_id from ops.publication where domain = %s"
        " order by version desc",
        (domain,),
    )
    return [Publication(*row) for row in found]


def _next_version(db: connection, domain: str) -> int:
    return int(
        _rows(db, "select coalesce(max(version), 0) + 1 from ops.publication where domain = %s", (domain,))[0][0]
    )


def _stamp(db: connection, domain: str) -> dict[str, Any] | None:
    """What the last complete build noted, with the tables that are there now. None when there is no such schema."""
    schema = transform.next_schema(domain)
    found = _rows(db, "select obj_description(oid, 'pg_namespace') from pg_namespace where nspname = %s", (schema,))
    if not found:
        return None
    stamp: dict[str, Any] = json.loads(found[0][0] or '{"invocation_id": null, "tables": {}}')
    there = _rows(
        db,
        "select relname, pg_class.oid from pg_class join pg_namespace on relnamespace = pg_namespace.oid"
        " where nspname = %s and relkind = 'r'",
        (schema,),
    )
    return stamp | {"there": {name: int(oid) for name, oid in there}}


def _complete(domain: str, stamp: dict[str, Any]) -> list[str]:
    """The domain's marts, all of which the stamped build made."""
    marts = transform.marts(domain)
    remedy = f"Run `lyrebird transform {domain}` again"
    missing = [mart for mart in marts if mart not in stamp["there"]]
    if missing:
        raise Problem(f"the marts of {domain} are not complete: {', '.join(missing)} not built", remedy)
    foreign = [mart for mart in marts if stamp["tables"].get(mart) != stamp["there"][mart]]
    if foreign:
        raise Problem(f"{', '.join(foreign)} in {transform.next_schema(domain)} not of a complete build", remedy)
    return marts


def _fingerprint(db: connection, schema: str, mart: str) -> str:
    """What a mart holds, in one line: its columns, how many rows, and two sums of 64-bit hashes of the rows.

    The sums do not depend on the order of rows, and are computed in passing, in constant memory.
    """
    columns = ",".join(" ".join(column) for column in _columns(db, schema, mart))
    [(rows, first, second)] = _rows(
        db,
        pg.SQL(
            "select count(*), coalesce(sum(hashtextextended(mart::text, 0)::numeric), 0),"
            " coalesce(sum(hashtextextended(mart::text, 1)::numeric), 0) from {} as mart"
        ).format(pg.Identifier(schema, mart)),
    )
    return f"{columns};{rows};{first};{second}"


def _columns(db: connection, schema: str, name: str) -> list[tuple[str, str]]:
    """Names and types of a table's or view's columns, in order; empty when there is none."""
    found = _rows(
        db,
        "select attname, format_type(atttypid, atttypmod) from pg_attribute"
        " join pg_class on attrelid = pg_class.oid join pg_namespace on relnamespace = pg_namespace.oid"
        " where nspname = %s and relname = %s and attnum > 0 and not attisdropped order by attnum",
        (schema, name),
    )
    return [(str(column), str(kind)) for column, kind in found]


def _switch(db: connection, domain: str, now: Publication | None, new: Publication, *, built: bool) -> None:
    """Point the views at the new schema in one transaction, however often it has to be tried.

    The locks of all views are taken at once. Who waits for the first of them keeps a reader of two marts from its
    second, who keeps us from ours: so mostly we do not wait, but take them in a moment when nobody reads. Where
    statements are long there may be no such moment, and now and then we wait: newcomers then queue behind us.
    """
    schema = transform.next_schema(domain) if built else new.schema
    # a view can be replaced where its columns stay and others follow; else it is dropped and made again
    replaceable = {}
    for mart in new.marts:
        shown = _columns(db, "marts", mart)
        replaceable[mart] = shown == _columns(db, schema, mart)[: len(shown)]
    gone = [mart for mart in (now.marts if now else []) if mart not in new.marts]
    views = [pg.Identifier("marts", mart) for mart in [*gone, *new.marts] if _columns(db, "marts", mart)]
    deadline = time.monotonic() + PATIENCE
    with _exclusive(db):
        for waits in itertools.cycle([False] * TRIES + [True]):
            try:
                with db, db.cursor() as sql:
                    sql.execute("set local lock_timeout = '200ms'")
                    if views:
                        lock = pg.SQL("lock table {} in access exclusive mode").format(pg.SQL(", ").join(views))
                        sql.execute(lock if waits else lock + pg.SQL(" nowait"))
                    _point(sql, domain, new, replaceable, gone, built=built)
                return
            except (psycopg2.errors.LockNotAvailable, psycopg2.errors.DeadlockDetected) as error:
                if time.monotonic() > deadline:
                    raise Problem(
                        f"the marts of {domain} could not be switched: readers held them for {PATIENCE:.0f} s",
                        "End the long statements (pg_stat_activity shows them), then run "
                        f"`lyrebird transform {domain} --step publish`",
                    ) from error
                time.sleep(random.uniform(0.05, 0.25) if waits else random.uniform(0, 0.01))
            except psycopg2.errors.DependentObjectsStillExist as error:
                raise Problem(
                    f"a mart of {domain} has other columns now, and a view reads it: {error.diag.message_detail}",
                    "Drop that view, publish, and make it again",
                ) from error


@contextmanager
def _exclusive(db: connection) -> Iterator[None]:
    """Hold :data:`LOCK` exclusively; waits for freezes to end."""
    with db, db.cursor() as sql:
        sql.execute("select pg_advisory_lock(%s)", (LOCK,))
    try:
        yield
    finally:
        if not db.closed:
            db.rollback()
            with db, db.cursor() as sql:
                sql.execute("select pg_advisory_unlock(%s)", (LOCK,))


def _point(
    sql: cursor, domain: str, new: Publication, replaceable: dict[str, bool], gone: list[str], *, built: bool
) -> None:
    if built:
        before, after = pg.Identifier(transform.next_schema(domain)), pg.Identifier(new.schema)
        sql.execute(pg.SQL("alter schema {} rename to {}").format(before, after))
    for mart in [*gone, *(mart for mart in new.marts if not replaceable[mart])]:
        sql.execute(pg.SQL("drop view if exists {}").format(pg.Identifier("marts", mart)))
    for mart in new.marts:
        view, table = pg.Identifier("marts", mart), pg.Identifier(new.schema, mart)
        sql.execute(pg.SQL("create or replace view {} as select * from {}").format(view, table))
        sql.execute(
            pg.SQL("grant select on {} to {}").format(view, pg.SQL(", ").join(pg.Identifier(name) for name in READERS))
        )
        _copy_comments(sql, new.schema, mart)
    sql.execute(
        "insert into ops.publication (domain, version, schema, marts, fingerprint, invocation_id)"
        " values (%s, %s, %s, %s, %s, %s)",
        (domain, new.version, new.schema, new.marts, json.dumps(new.fingerprint), new.invocation_id),
    )


def _copy_comments(sql: cursor, schema: str, mart: str) -> None:
    """The views carry the descriptions of tables and columns: readers see only the views."""
    sql.execute(
        "select attname, col_description(attrelid, attnum), obj_description(attrelid, 'pg_class') from pg_attribute"
        " where attrelid = %s::regclass and attnum > 0 and not attisdropped",
        (f'"{schema}"."{mart}"',),
    )
    columns = sql.fetchall()
    comments = [pg.SQL("comment on view {} is {}").format(pg.Identifier("marts", mart), pg.Literal(columns[0][2]))]
    for column, description, _ in columns:
        name = pg.Identifier("marts", mart, column)
        comments.append(pg.SQL("comment on column {} is {}").format(name, pg.Literal(description)))
    sql.execute(pg.SQL("; ").join(comments))


def _kept_schemas(db: connection, domain: str) -> set[str]:
    """The versioned schemas of a domain that exist."""
    pattern = f"^marts_{domain}_v[0-9]+$"
    return {name for (name,) in _rows(db, "select nspname from pg_namespace where nspname ~ %s", (pattern,))}


def _drop_older(db: connection, domain: str, tell: Say) -> None:
    """Drop versions before the last but one, and from before a withdrawal, whose rows they may show.

    One that is still being read waits for the next publication.
    """
    now, *before = dict.fromkeys(publication.schema for publication in _publications(db, domain))
    clean = _rows(
        db,
        "select schema from ops.publication where domain = %s group by schema having min(published_at) > "
        "(select coalesce(max(loaded_at), '-infinity') from ops.load where lane = 'forget')",
        (domain,),
    )
    keep = {now, *(schema for schema in before[:1] if (schema,) in clean)}
    for schema in sorted(_kept_schemas(db, domain) - keep):
        try:
            with db, db.cursor() as sql:
                sql.execute("set local lock_timeout = '1s'")
                sql.execute("select tablename from pg_tables where schemaname = %s", (schema,))
                tables = [pg.Identifier(schema, name) for (name,) in sql.fetchall()]
                if tables:
                    # without cascade: a view of somebody else keeps the tables it reads
                    sql.execute(pg.SQL("drop table {}").format(pg.SQL(", ").join(tables)))
                sql.execute(pg.SQL("drop schema {}").format(pg.Identifier(schema)))
        except (psycopg2.errors.LockNotAvailable, psycopg2.errors.DependentObjectsStillExist):
            tell(f"{domain}: {schema} is still being read and stays for now")
