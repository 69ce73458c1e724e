"""Spoiled data is caught and good data is let be: a slice of the matrix at each commit, all of it in the long tests.

The whole, by hand and with a page: `python -m faults.spoiling`, docs/results/spoiling.md.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import spoiling
from spoiling import WAYS, Loads, Table
from support import rotating_seed
from transform_world import World

from storage import transform, warehouse
from storage.gates import audit, ranges

SLICE = 4  # resources of a commit


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with spoiling.temporary_world() as made:
        yield made


def test_what_a_commits_resources_are_spoiled_with_is_caught(world: World) -> None:
    chosen = random.Random(rotating_seed()).sample(spoiling.resources(), SLICE)
    with closing(warehouse.connect(world.settings("admin"))) as db:
        results = [Loads(db, source, resource).run(count=1, clean=5) for source, resource in chosen]
    caught, cells = spoiling.share_caught(results)
    told = "\n".join(map(spoiling.told, results))
    assert cells >= 9 * SLICE, told
    assert caught >= 0.9 * cells, told
    assert sum(len(result.alarms) for result in results) <= 1, told


def test_great_expectations_and_the_matrix_judge_alike(world: World, tmp_path: Path) -> None:
    source, resource = next(one for one in spoiling.resources() if one[1].name == "scores")
    with closing(warehouse.connect(world.settings("admin"))) as db:
        gate = Loads(db, source, resource)
        history: list[dict[str, object]] = []
        for seed in range(spoiling.HISTORY):
            spoiling.learn(history, gate.profile(gate.drawn(seed).rows, history[0] if history else None)[0])
        table = gate.drawn(spoiling.FIRST_SPOILED)
        spoiling.truncated_text(table, spoiling.Draw(1))
        now, columns = gate.profile(table.rows, history[0])
    bounds = ranges.bounds(history, now, columns, resource.mode)
    results = audit.validate(tmp_path, "load.scores", bounds)
    assert [result.success for result in results] == [bound.holds() for bound in bounds]
    assert {result.success for result in results} == {True, False}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_spoils_something_somewhere_and_no_key_where_it_does_not_mean_to(way: str) -> None:
    tried = 0
    for source, resource in spoiling.resources():
        drawn = Loads(None, source, resource).drawn(3)  # type: ignore[arg-type]
        table = Table([dict(row) for row in drawn.rows], drawn.kinds, drawn.key)
        if WAYS[way](table, spoiling.Draw(1)):
            tried += 1
            assert table.rows != drawn.rows
            if way not in ("duplicated keys", "half the rows"):
                keys = [tuple(map(row.get, drawn.key)) for row in table.rows]
                assert keys == [tuple(map(row.get, drawn.key)) for row in drawn.rows]
        else:
            assert table.rows == drawn.rows
    assert tried >= 3


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_whole_matrix_holds_its_bounds(world: World) -> None:
    results = spoiling.matrix(world, transform.DOMAINS, say=print)
    marts = {mart for domain in transform.DOMAINS for mart in transform.marts(domain)}
    tables = {f"raw.{source.table(resource)}" for source, resource in spoiling.resources()}
    assert {result.name for result in results} == tables | {f"marts.{mart}" for mart in marts}
    assert len(WAYS) >= 12
    caught, cells = spoiling.share_caught(results)
    assert caught >= 0.9 * cells
    assert {result.name: result.alarms for result in results if len(result.alarms) > 1} == {}
