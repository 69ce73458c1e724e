"""The warehouse: PostgreSQL, through psycopg2 for COPY and transactions, through SQLAlchemy for tools that want it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

import psycopg2
import psycopg2.extras
from psycopg2.extensions import connection
from sqlalchemy import URL, Engine, create_engine

from storage.errors import Problem
from storage.settings import Settings

# Publishing marts takes this lock exclusively, freezing a dataset takes it shared: a snapshot never straddles a switch.
PUBLISH_LOCK = zlib.crc32(b"lyrebird.publish")


def connect(settings: Settings, *, application: str = "lyrebird") -> connection:
    """A new connection. The caller commits and closes (``with closing(connect(…)) as db, db:`` does both).

    Raises Problem when the server cannot be reached or refuses the role.
    """
    settings.need("postgres_host", "postgres_user")
    try:
        return psycopg2.connect(
            host=settings.postgres_host,
            port=settings.postgres_port,
            dbname=settings.postgres_database,
            user=settings.postgres_user,
            password=settings.postgres_password.get_secret_value(),
            application_name=application,
            connect_timeout=10,
        )
    except psycopg2.OperationalError as error:
        where = f"{settings.postgres_user}@{settings.postgres_host}:{settings.postgres_port}"
        reason = str(error).strip().splitlines()[0]
        if "too many connections" in reason or "remaining connection slots" in reason:
            raise Problem(
                f"PostgreSQL at {where} has no connection left for {settings.postgres_user}: {reason}",
                "Wait, or end what holds them: `select * from pg_stat_activity`",
            ) from error
        raise Problem(
            f"PostgreSQL at {where} does not answer: {reason}", "Is the stack up? `lyrebird status`"
        ) from error


def url(settings: Settings) -> URL:
    """The SQLAlchemy URL; its ``str`` hides the password."""
    return URL.create(
        "postgresql+psycopg2",
        settings.postgres_user,
        settings.postgres_password.get_secret_value(),
        settings.postgres_host,
        settings.postgres_port,
        settings.postgres_database,
    )


def client_url(kind: str, settings: Settings) -> str:
    """The address, password and all, that a client of the role takes: ``sqlalchemy`` or ``jdbc``. Names without a
    schema are marts.
    """
    if kind == "sqlalchemy":
        full = url(settings).update_query_dict({"options": "-csearch_path=marts"})
        return full.render_as_string(hide_password=False)
    user, password = settings.postgres_user, settings.postgres_password.get_secret_value()
    query = urlencode({"user": user, "password": password, "currentSchema": "marts"})
    return f"jdbc:postgresql://{settings.postgres_host}:{settings.postgres_port}/{settings.postgres_database}?{query}"


def engine(settings: Settings) -> Engine:
    """A SQLAlchemy engine without a pool of its own: our processes are short."""
    from sqlalchemy.pool import NullPool

    return create_engine(url(settings), poolclass=NullPool)


@contextmanager
def advisory_lock(db: connection, name: str, *, wait: bool = True, shared: bool = False) -> Iterator[bool]:
    """A session lock by name. Yields whether it was obtained (always, when waiting). ``shared`` excludes others not."""
    kind = "_shared" if shared else ""
    key = zlib.crc32(name.encode())
    with db.cursor() as sql:
        if wait:
            sql.execute(f"select pg_advisory_lock{kind}(%s)", (key,))
            held = True
        else:
            sql.execute(f"select pg_try_advisory_lock{kind}(%s)", (key,))
            held = bool(first(sql)[0])
    db.commit()
    try:
        yield held
    finally:
        if held and not db.closed:
            db.rollback()
            with db.cursor() as sql:
                sql.execute(f"select pg_advisory_unlock{kind}(%s)", (key,))
            db.commit()


def first(sql: psycopg2.extensions.cursor) -> tuple[Any, ...]:
    """The next row, where the statement always gives one."""
    row = sql.fetchone()
    if row is None:
        raise Problem("the warehouse gave no row where there is always one", "Run `lyrebird up` to migrate it")
    return row
