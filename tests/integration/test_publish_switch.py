"""Publishing: readers see whole, audited sets of marts, or the ones before."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Any

import psycopg2
import psycopg2.extensions
import pytest
from psycopg2 import errors
from support import PROCESSES
from transform_world import World

from storage import transform, warehouse
from storage.errors import Problem
from storage.gates import publish
from storage.settings import Settings


def candidates(world: World, mark: str, change: str = "") -> None:
    """Build marts_next_birds anew out of the published birds, as dbt would: every species and recordist marked."""
    settings = world.settings("transformer")
    with closing(warehouse.connect(settings)) as db:
        with db, db.cursor() as sql:
            sql.execute("drop schema if exists marts_next_birds cascade; create schema marts_next_birds")
            for mart in transform.marts("birds"):
                sql.execute(f"create table marts_next_birds.{mart} as select * from marts.{mart}")
            sql.execute("update marts_next_birds.dim_species set english_name = %s", (mark,))
            sql.execute("update marts_next_birds.dim_recordist set name = %s", (mark,))
            if change:
                sql.execute(change)
        transform._stamp(db, "birds", f"build-{mark}")


def published(world: World) -> int | None:
    return publish.publish("birds", world.settings("transformer"), say=print)


def versions(world: World) -> list[str]:
    found = world.rows("select nspname from pg_namespace where nspname like 'marts\\_birds\\_v%' order by 1")
    return [name for (name,) in found]


def test_the_analyst_reads_marts_and_nothing_else(world: World) -> None:
    assert published(world) == 1
    assert world.value("select count(*) from marts.fct_recordings", role="analyst") == 28
    assert world.value("select count(*) from marts.mart_birds_training_clips", role="trainer") > 0
    for relation in (
        "marts_birds_v1.fct_recordings", "core.recording", "raw.clips", "staging.stg_clips__clips", "ops.load",
        "ml.split_group", "marts_next_music.fct_pieces",
    ):  # fmt: skip
        with pytest.raises(errors.InsufficientPrivilege):
            world.rows(f"select count(*) from {relation}", role="analyst")
    with pytest.raises(errors.InsufficientPrivilege):
        world.rows("create view marts.mine as select 1", role="analyst")
    described = world.value("select col_description('marts.fct_recordings'::regclass, 1)")
    assert described == "The recording."


def test_nothing_new_is_not_published_again(world: World) -> None:
    settings = world.settings("transformer")
    assert publish.publish("birds", settings, invocation_id="other", say=print) == 1
    build = world.value("select invocation_id from ops.publication where domain = 'birds'")
    told: list[str] = []
    assert publish.publish("birds", settings, say=told.append) is None
    assert "nothing to publish" in told[0]
    assert publish.publish("birds", settings, invocation_id=build) == 1  # the task was killed after its commit
    transform.build("birds", "marts", settings, say=print)
    assert publish.publish("birds", settings, say=told.append) is None
    assert "version 1" in told[1]
    assert versions(world) == ["marts_birds_v1"]
    assert world.value("select count(*) from pg_namespace where nspname = 'marts_next_birds'") == 0


def test_an_incomplete_or_foreign_set_is_refused_and_readers_keep_theirs(world: World) -> None:
    assert published(world) == 1
    candidates(world, "two", "drop table marts_next_birds.dim_species")
    with pytest.raises(Problem, match="not complete: dim_species not built"):
        published(world)
    candidates(world, "two")
    world.rows("create table marts_next_birds.other as table marts_next_birds.dim_species;"
               "drop table marts_next_birds.dim_species;"
               "alter table marts_next_birds.other rename to dim_species")  # fmt: skip
    with pytest.raises(Problem, match="dim_species in marts_next_birds not of a complete build"):
        published(world)
    world.rows("comment on schema marts_next_birds is null")
    with pytest.raises(Problem, match="not of a complete build"):
        published(world)
    assert world.value("select count(*) from marts.dim_species where english_name = 'two'", role="analyst") == 0
    assert versions(world) == ["marts_birds_v1"]


# Two orders of locking: a switch that does not give up its locks would deadlock with one of them.
STATEMENTS = (
    "select min(s.english_name), max(s.english_name), min(r.name), max(r.name)"
    " from marts.dim_species s cross join marts.dim_recordist r",
    "select min(r.name), max(r.name), min(s.english_name), max(s.english_name)"
    " from marts.dim_recordist r cross join marts.dim_species s",
)


@dataclass
class Seen:
    """What readers in a loop have seen: marks, statements that saw several at once or none, and errors."""

    marks: set[str | None] = field(default_factory=set)
    mixed: list[set[str | None]] = field(default_factory=list)
    trouble: list[Exception] = field(default_factory=list)
    statements: int = 0


@contextmanager
def reading(world: World) -> Iterator[Seen]:
    """Four readers of two marts in one statement, for as long as the block lasts."""
    stop, seen = Event(), Seen()

    def read(statement: str) -> None:
        with closing(warehouse.connect(world.settings("analyst"))) as db:
            while not stop.is_set():
                try:
                    with db, db.cursor() as sql:
                        sql.execute(statement)
                        marks = set(sql.fetchone() or ())
                except psycopg2.Error as error:
                    seen.trouble.append(error)
                    return
                seen.statements += 1
                seen.marks |= marks
                if len(marks) != 1 or marks == {None}:
                    seen.mixed.append(marks)

    readers = [Thread(target=read, args=(statement,)) for statement in STATEMENTS * 2]
    for reader in readers:
        reader.start()
    try:
        yield seen
    finally:
        stop.set()
        for reader in readers:
            reader.join(20)


def test_readers_see_one_version_in_every_statement_and_no_error(world: World) -> None:
    assert published(world) == 1
    candidates(world, "start")
    assert published(world) == 2
    with reading(world) as seen:
        for number in range(6):
            candidates(world, f"mark {number}")
            assert published(world) == 3 + number
            time.sleep(0.1)
    assert not seen.trouble
    assert not seen.mixed
    assert {f"mark {number}" for number in range(6)} <= seen.marks


class Counted(psycopg2.extensions.cursor):
    """A cursor whose process is killed before its last statement, or before the first one that says ``words``."""

    left, words = 0, ""

    def execute(self, query: Any, values: Any = None) -> None:
        Counted.left -= 1
        if Counted.left == 0 or (Counted.words and Counted.words in str(query)):
            os.kill(os.getpid(), signal.SIGKILL)
        super().execute(query, values)


def publishing(settings: Settings, statements: int, words: str = "") -> int:
    """Publish, and be killed after so many statements or at these words; how many of them were left."""
    plain, Counted.left, Counted.words = warehouse.connect, statements, words

    def connect(*words: Any, **options: Any) -> Any:
        db = plain(*words, **options)
        db.cursor_factory = Counted
        return db

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warehouse, "connect", connect)
        publish.publish("birds", settings, say=print)
    return Counted.left


def building(settings: Settings, _: int) -> None:
    transform.build("birds", "marts", settings, run="killed", say=print)


def version(world: World) -> int:
    return int(world.value("select max(version) from ops.publication where domain = 'birds'"))


def test_kills_of_builds_and_switches_and_marts_that_fail_their_audit_show_to_no_reader(world: World) -> None:
    settings, chance = world.settings("transformer"), random.Random(11)
    assert published(world) == 1
    candidates(world, "good 0")
    statements = 10_000 - publishing(settings, 10_000)
    points = [(point, "") for point in (*chance.sample(range(1, statements - 20), 5), statements - 10)]
    points += 2 * [(10_000, "pg_advisory_unlock")]  # the first thing after the switch
    with reading(world) as seen:
        for number, (point, words) in enumerate(chance.sample(points, len(points)), 1):
            candidates(world, f"refused {number}")  # complete, and never published: its audit failed
            candidates(world, f"good {number}")
            shown = version(world)
            child = PROCESSES.Process(target=publishing, args=(settings, point, words))
            child.start()
            child.join(120)
            assert child.exitcode == -signal.SIGKILL
            assert version(world) == shown + bool(words)
            published(world)  # what was killed is done by the next one, wherever it was
            assert version(world) == shown + 1
            assert world.value("select min(english_name) from marts.dim_species", role="analyst") == f"good {number}"
        candidates(world, "half")
        child = PROCESSES.Process(target=building, args=(settings, 0))
        child.start()
        half = (
            "select 1 from pg_namespace as n where nspname = 'marts_next_birds'"
            " and obj_description(oid, 'pg_namespace') is null"
            " and exists (select from pg_class where relnamespace = n.oid and relkind = 'r')"
        )
        until_rows(world, half)  # dbt has begun to build
        child.kill()
        child.join()
        with pytest.raises(Problem, match=r"not complete|not of a complete build"):
            published(world)  # it waits for the dbt that has outlived its starter
    assert not seen.trouble
    assert not seen.mixed
    assert seen.statements > 100
    assert seen.marks >= {f"good {number}" for number in range(1, 9)}
    assert all(mark is not None and mark.startswith("good ") for mark in seen.marks), seen.marks


def until_rows(world: World, statement: str) -> None:
    end = time.monotonic() + 120
    while not world.rows(statement):
        assert time.monotonic() < end
        time.sleep(0.1)


def forced_order(world: World, switch: str) -> tuple[object, ...]:
    """What a reader of two marts sees that has found the first one when the switch begins, and waits for the second.

    ``switch`` are the statements that somebody runs who holds the second.
    """
    found: list[tuple[object, ...]] = []

    def read() -> None:
        with closing(warehouse.connect(world.settings("admin"))) as db, db.cursor() as sql:
            sql.execute(STATEMENTS[0])
            found.append(warehouse.first(sql))

    reader = Thread(target=read)
    with closing(warehouse.connect(world.settings("admin"))) as db:
        with db, db.cursor() as sql:
            sql.execute("lock table marts.dim_recordist in access exclusive mode")
            reader.start()
            while not world.value("select count(*) from pg_locks where not granted"):
                time.sleep(0.02)
            sql.execute(switch)
        reader.join(20)
    return found[0]


def test_renaming_schemas_would_show_a_mixture_where_views_show_none(world: World) -> None:
    assert published(world) == 1
    candidates(world, "old")
    assert published(world) == 2
    # ours: the reader that waits keeps the switch away from the view that it has found
    candidates(world, "new")
    switching = Thread(target=lambda: published(world))
    switching.start()
    assert len(set(forced_order(world, "select 1"))) == 1
    switching.join(30)
    assert world.value("select min(english_name) from marts.dim_species", role="analyst") == "new"
    # the same with tables in a schema that is renamed: the first of the old set, the second of the new one
    candidates(world, "newer")
    world.rows(
        "alter schema marts rename to marts_as_views; alter schema marts_birds_v3 rename to marts;"
        "alter schema marts_next_birds rename to marts_newer"
    )
    mixture = forced_order(world, "alter schema marts rename to marts_old; alter schema marts_newer rename to marts")
    assert set(mixture) == {"new", "newer"}


def test_a_snapshot_from_before_a_switch_reads_the_new_marts_as_empty_unless_it_holds_the_lock(world: World) -> None:
    assert published(world) == 1
    everything = world.value("select count(*) from marts.fct_recordings", role="trainer")
    assert everything > 0
    with closing(warehouse.connect(world.settings("trainer"))) as freeze:
        freeze.set_session(isolation_level="REPEATABLE READ")
        for locked in (False, True):
            switch = Thread(target=lambda: published(world))
            with freeze, freeze.cursor() as sql:
                if locked:
                    sql.execute("select pg_advisory_lock_shared(%s)", (publish.LOCK,))
                    freeze.commit()
                sql.execute("select 1")  # the snapshot
                candidates(world, f"locked {locked}")
                switch.start()
                switch.join(30 if not locked else 1.5)
                assert switch.is_alive() == locked
                sql.execute("select count(*) from marts.fct_recordings")
                assert warehouse.first(sql)[0] == (everything if locked else 0)
            if locked:
                with freeze, freeze.cursor() as sql:
                    sql.execute("select pg_advisory_unlock_shared(%s)", (publish.LOCK,))
            switch.join(30)
            assert not switch.is_alive()


def test_columns_may_change_and_marts_may_go(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert published(world) == 1
    candidates(world, "two", "alter table marts_next_birds.dim_species rename english_name to vernacular;"
                             "alter table marts_next_birds.dim_recordist add column extra int")  # fmt: skip
    fewer = [mart for mart in transform.marts("birds") if mart != "agg_species_minutes"]
    monkeypatch.setattr(transform, "marts", lambda domain: fewer)
    assert published(world) == 2
    assert world.value("select min(vernacular) from marts.dim_species", role="analyst") == "two"
    assert world.rows("select extra from marts.dim_recordist limit 1", role="analyst") == [(None,)]
    with pytest.raises(errors.UndefinedTable):
        world.rows("select * from marts.agg_species_minutes", role="analyst")


def test_a_view_of_somebody_else_is_named_rather_than_dropped(world: World) -> None:
    assert published(world) == 1
    world.rows("create schema theirs; create view theirs.names as select english_name from marts.dim_species")
    candidates(world, "two")
    assert published(world) == 2
    assert world.value("select min(english_name) from theirs.names") == "two"
    candidates(world, "three", "alter table marts_next_birds.dim_species rename english_name to vernacular")
    with pytest.raises(Problem, match=r"theirs\.names"):
        published(world)
    assert world.value("select min(english_name) from theirs.names") == "two"


def test_the_version_before_is_kept_and_can_be_shown_again(world: World) -> None:
    settings = world.settings("transformer")
    with pytest.raises(Problem, match="no earlier version"):
        publish.rollback("birds", settings)
    assert published(world) == 1
    for number, mark in enumerate(("two", "three"), start=2):
        candidates(world, mark)
        assert published(world) == number
    assert versions(world) == ["marts_birds_v2", "marts_birds_v3"]
    assert world.lyrebird("transformer", "marts", "rollback", "birds") == {"published": 4}
    assert world.value("select min(english_name) from marts.dim_species", role="analyst") == "two"
    candidates(world, "five")
    assert published(world) == 5
    assert world.value("select min(english_name) from marts.dim_species", role="analyst") == "five"
    assert versions(world) == ["marts_birds_v2", "marts_birds_v5"]


def test_publishing_waits_for_a_freeze_and_for_long_readers(world: World) -> None:
    assert published(world) == 1
    candidates(world, "two")
    done: list[int | None] = []
    switch = Thread(target=lambda: done.append(published(world)))
    with (
        closing(warehouse.connect(world.settings("trainer"))) as freeze,
        closing(warehouse.connect(world.settings("analyst"))) as reader,
    ):
        with freeze.cursor() as sql:
            sql.execute("select pg_advisory_xact_lock_shared(%s)", (publish.LOCK,))
        with reader.cursor() as sql:
            sql.execute("select count(*) from marts.dim_species")
        switch.start()
        switch.join(1.5)
        assert switch.is_alive()
        freeze.commit()
        switch.join(1.5)
        assert switch.is_alive()  # the reader's transaction still holds the view
        started = time.monotonic()
        assert world.value("select count(*) from marts.dim_recordist", role="analyst") > 0
        assert time.monotonic() - started < 2  # and nobody else waits for long
        reader.commit()
        switch.join(20)
    assert done == [2]
