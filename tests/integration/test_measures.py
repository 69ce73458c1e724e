"""What the project states of its marts without building anything from it: metrics, and the freshness of sources."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from transform_world import World

from storage import transform

STATED = yaml.safe_load((transform.project() / "models" / "metrics.yml").read_text())
AGGREGATES = {"sum": "sum({})", "count_distinct": "count(distinct {})", "average": "avg({})"}


def domain_of(mart: str) -> str:
    return next(domain for domain in transform.DOMAINS if mart in transform.marts(domain))


@pytest.mark.parametrize("model", STATED["semantic_models"], ids=lambda one: one["name"])
def test_each_measure_can_be_counted_by_each_dimension_and_along_its_days(world: World, model: dict[str, Any]) -> None:
    mart = model["model"].split("'")[1]
    table = f"{transform.next_schema(domain_of(mart))}.{mart}"
    keys = [f"({one.get('expr', one['name'])})" for one in model.get("entities", [])]
    world.rows(f"select {', '.join(['1', *keys])} from {table} limit 1")
    rows = world.value(f"select count(*) from {table}")
    for measure in model["measures"]:
        value = AGGREGATES[measure["agg"]].format(measure["expr"])
        (whole,) = world.rows(f"select {value} from {table}")
        assert (whole[0] is not None) == (rows > 0), measure["name"]
        for dimension in model["dimensions"]:
            by = dimension.get("expr", dimension["name"])
            if dimension["type"] == "time":
                joined = f"left join marts_next_platform.dim_day as d on d.day = ({by})::date"
                found = world.rows(f"select d.day, {value} from {table} {joined} group by d.day")
            else:
                found = world.rows(f"select {by}, {value} from {table} group by 1")
            if measure["agg"] == "sum":
                assert sum(part or 0 for _, part in found) == pytest.approx(whole[0] or 0), (measure, dimension)


def test_each_metric_is_of_a_measure_that_there_is() -> None:
    measures = {measure["name"] for model in STATED["semantic_models"] for measure in model["measures"]}
    simple = {one["name"]: one["type_params"]["measure"] for one in STATED["metrics"] if one["type"] == "simple"}
    assert set(simple.values()) == measures
    for one in STATED["metrics"]:
        if one["type"] == "ratio":
            assert {one["type_params"]["numerator"], one["type_params"]["denominator"]} <= simple.keys()


def freshness(world: World, folder: Path) -> dict[str, str]:
    """What `dbt source freshness` says of each raw table."""
    dbt = Path(sys.executable).parent / "dbt"
    told = subprocess.run(
        [
            *(dbt, "--no-use-colors", "source", "freshness", "--target", "published", "--select", "source:raw"),
            *("--target-path", folder, "--log-path", folder),
        ],
        cwd=transform.project(),
        env=os.environ | world.variables("transformer"),
        capture_output=True,
        text=True,
        check=False,
    )
    words = [line.split() for line in told.stdout.splitlines() if " freshness of " in line]
    return {
        line[line.index("freshness") + 2]: line[line.index("freshness") - 1] for line in words if "START" not in line
    }


def test_a_source_that_was_not_asked_in_time_is_told_and_one_with_nothing_new_is_not(
    world: World, tmp_path: Path
) -> None:
    world.rows(
        "insert into ops.ledger (source, resource, slice, state, updated_at) values "
        "('tatoeba', 'sentences', 'all', 'done', now() - interval '20 days'), "
        "('aviary', 'recordings', 'all', 'done', now() - interval '3 days'), "
        "('notes', 'notes', 'all', 'done', now() - interval '1 hour'), "
        "('notes', 'pieces', 'all', 'failed', now())"
    )
    found = freshness(world, tmp_path)
    late = {table for table, verdict in found.items() if verdict != "PASS"}
    assert late == {"raw.tatoeba_sentences", "raw.tatoeba_links", "raw.aviary_recordings", "raw.aviary_audio"}
    assert {verdict for table, verdict in found.items() if table in late} == {"WARN"}
    assert found["raw.xeno_canto_recordings"] == "PASS"  # it was never asked: it is not in use
