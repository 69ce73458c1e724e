"""Whatever comes in, in whatever order: the warehouse grown batch by batch is the one built at once from the same raw.

The tables compared are those of dbt's manifest: a new model is compared without a word here, and a new raw table that
nothing makes records for turns this red. Batches differ with each commit; LYREBIRD_SEED brings them back.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from random_world import MAKERS, apply
from support import rotating_seed
from transform_world import Built, Server, World

from storage import transform, warehouse

DOMAINS = [domain for domain in transform.DOMAINS if domain not in transform.WITHOUT_CORE]
SEED = rotating_seed()
CHANGE = st.tuples(st.integers(0, 12), st.booleans() | st.just(True))
LOAD = st.tuples(
    st.sampled_from(sorted(MAKERS)),
    st.lists(CHANGE, min_size=1, max_size=6),
    st.integers(0, 1_000_000),
    st.sampled_from(["published", "published", "published", "late", "rejected", "replay"]),
)
BATCHES = st.lists(st.lists(LOAD, min_size=4, max_size=12), min_size=2, max_size=3)


def build(world: World, target: Path) -> dict[str, Any]:
    """Everything but the marts, the splits, the marts, as the transforms of all domains do. Returns dbt's manifest."""
    settings = world.settings("transformer")
    with closing(warehouse.connect(settings)) as db:
        for layer in ("core", "marts"):
            with db, db.cursor() as sql:
                if layer == "marts":
                    for domain in transform.DOMAINS:
                        transform.assign_splits(domain, settings)
                        sql.execute(f"drop schema if exists {transform.next_schema(domain)} cascade")
            wanted = "tag:staging tag:intermediate resource_type:seed tag:core" if layer == "core" else "tag:marts"
            argv = [
                "build",
                "--exclude-resource-type",
                "unit_test",
                "--target",
                "platform",
                "--select",
                *wanted.split(),
            ]
            lines, code = transform._dbt(db, target, argv, settings, lambda line: None)
            assert code == 0, "\n".join(lines[-30:])
    found: dict[str, Any] = json.loads((target / "manifest.json").read_text())
    return found


def relations(manifest: dict[str, Any]) -> Iterator[str]:
    """Every table and view that the project builds, as schema.name."""
    for node in manifest["nodes"].values():
        built = node["resource_type"] == "seed" or node["config"]["materialized"] in ("table", "view", "incremental")
        if node["resource_type"] in ("model", "seed") and built:
            yield f"{node['schema']}.{node['name']}"


def contents(world: World, manifest: dict[str, Any]) -> dict[str, str]:
    return {
        name: world.value(
            f"select md5(coalesce(string_agg(row::text, e'\\n' order by row::text), '')) from {name} as row"
        )
        for name in relations(manifest)
    }


def rebuilt(server: Server, world: World, target: Path) -> dict[str, str]:
    """What the tables are when all is built from raw alone, in a copy of the database: the splits on record stay."""
    copy = server.database("rebuilt", world.database)
    for schema in ("core", "staging"):
        copy.rows(f"drop schema {schema} cascade; create schema {schema} authorization transformer")
    try:
        return contents(copy, build(copy, target))
    finally:
        server.drop("rebuilt")


def replay(world: World, table: str) -> None:
    """What a replay of a source does to raw: all its versions leave, and come again the same."""
    world.rows(
        f"create temporary table kept as table raw.{table}; delete from raw.{table};"
        f"insert into raw.{table} select * from kept order by _load desc, _position"
    )


def drive(built: Built, tmp: Path, batches: list[list[Any]]) -> None:
    print(f"LYREBIRD_SEED={SEED}")
    world = built.copy()
    late: list[tuple[str, int]] = []
    for number, batch in enumerate(batches):
        for source, load in late:
            world.rows("update ops.load set state = 'published' where source = %s and load = %s", (source, load))
        late = []
        for table, changes, dice, how in batch:
            if how == "replay":
                replay(world, table)
                continue
            state = {"late": "loaded"}.get(how, how)
            load = apply(world, table, changes, dice, state)
            if how == "late":
                late.append((next(s for s in world.loads if table == s or table.startswith(f"{s}_")), load))
        manifest = build(world, tmp / "grown")
        assert set(MAKERS) >= {node["name"] for node in manifest["sources"].values() if node["source_name"] == "raw"}, (
            "a raw table that no batch ever changes"
        )
        grown, whole = contents(world, manifest), rebuilt(built.server, world, tmp / "whole")
        assert grown.keys() == whole.keys()
        different = [name for name in grown if grown[name] != whole[name]]
        assert not different, f"after batch {number}: {different}"


def check(built: Built, tmp: Path, monkeypatch: pytest.MonkeyPatch, examples: int) -> None:
    monkeypatch.setenv("LYREBIRD_HOME", str(built.home))

    # each step takes two builds: batches are not made smaller after a failure, they are printed
    @seeded(SEED)
    @settings(
        max_examples=examples, deadline=None, phases=[Phase.generate], database=None, print_blob=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(BATCHES)
    def batches_in_any_order(batches: list[list[Any]]) -> None:
        drive(built, tmp, batches)

    batches_in_any_order()


def everything(dice: random.Random) -> list[Any]:
    """A load of every table, so that no relation is compared empty."""
    return [(table, [(n, True) for n in range(9)], dice.randint(0, 99), "published") for table in sorted(MAKERS)]


def test_grown_equals_built_at_once(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LYREBIRD_HOME", str(built.home))
    dice = random.Random(SEED)
    ways = ("published", "published", "late", "rejected", "replay")
    changed = [
        (table, [(dice.randint(0, 9), dice.random() < 0.7) for _ in range(4)], dice.randint(0, 99), dice.choice(ways))
        for table in sorted(MAKERS)
    ]
    drive(built, tmp_path, [everything(dice), changed])


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_grown_equals_built_at_once_whatever_comes(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(built, tmp_path, monkeypatch, examples=8)
