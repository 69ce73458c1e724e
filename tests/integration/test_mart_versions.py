"""A mart whose contract changes: the new version and the one before are both published, until a date."""

from __future__ import annotations

import shutil
from datetime import date, timedelta
from pathlib import Path

import pytest
import yaml
from psycopg2 import errors
from transform_world import World

from storage import transform
from storage.gates import publish

MARTS = Path("models/marts/birds")
NEXT_YEAR = (date.today() + timedelta(days=365)).isoformat()
YESTERDAY = (date.today() - timedelta(days=1)).isoformat()


@pytest.fixture
def checkout(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose dbt project may be changed, with the marts of birds published from it as they were."""
    publish.publish("birds", world.settings("transformer"), say=print)
    shutil.copytree(transform.project(), tmp_path / "dbt_project", ignore=shutil.ignore_patterns("target", "logs"))
    monkeypatch.setenv("LYREBIRD_CHECKOUT", str(tmp_path))
    monkeypatch.setenv("LYREBIRD_HOME", str(tmp_path / "home"))  # builds of this project are no state for others
    return tmp_path / "dbt_project"


def rename_a_column(project: Path, deprecated: str) -> None:
    """A second version of dim_species calls english_name vernacular_name; one mart still reads the first."""
    new = project / MARTS / "dim_species.sql"
    shutil.copyfile(new, project / MARTS / "dim_species_v1.sql")
    new.write_text(new.read_text().replace("species.english_name", "species.english_name as vernacular_name"))
    properties = project / MARTS / "_models.yml"
    marts = yaml.safe_load(properties.read_text())
    mart = next(one for one in marts["models"] if one["name"] == "dim_species")
    column = next(one for one in mart["columns"] if one["name"] == "english_name")
    column["name"] = "vernacular_name"
    mart["latest_version"] = 2
    mart["versions"] = [
        {"v": 2, "defined_in": "dim_species"},
        {
            "v": 1,
            "deprecation_date": deprecated,
            "columns": [{"include": "all", "exclude": ["vernacular_name"]}, {**column, "name": "english_name"}],
        },
    ]
    properties.write_text(yaml.safe_dump(marts, sort_keys=False))
    reader = project / MARTS / "agg_species_minutes.sql"
    reader.write_text(reader.read_text().replace("ref('dim_species')", "ref('dim_species', v=1)"))


def build(world: World) -> str:
    """Build and publish the marts of birds; what dbt said."""
    said: list[str] = []
    transform.build("birds", "marts", world.settings("transformer"), say=said.append)
    assert publish.publish("birds", world.settings("transformer"), say=print) == 2
    return " ".join(said)


def test_both_versions_are_published_and_dbt_warns_whoever_reads_the_old_one(world: World, checkout: Path) -> None:
    before = world.rows("select to_jsonb(mart) from marts.dim_species as mart order by species_id")
    rename_a_column(checkout, NEXT_YEAR)
    said = build(world)
    assert "dim_species_v1" in transform.marts("birds")
    owl = "from marts.{} where scientific_name = 'Tyto alba'"
    assert world.value(f"select vernacular_name {owl.format('dim_species')}", role="analyst") == "Barn Owl"
    assert world.value(f"select english_name {owl.format('dim_species_v1')}", role="analyst") == "Barn Owl"
    kept = "select to_jsonb(mart) from marts.dim_species_v1 as mart order by species_id"
    assert world.rows(kept, role="trainer") == before
    with pytest.raises(errors.UndefinedColumn):
        world.value("select english_name from marts.dim_species", role="analyst")
    assert f"reference to dim_species.v1, which is slated for deprecation on '{NEXT_YEAR}" in said


def test_dbt_names_a_version_whose_date_is_past(world: World, checkout: Path) -> None:
    rename_a_column(checkout, YESTERDAY)
    assert f"reference to dim_species.v1, which was deprecated on '{YESTERDAY}" in build(world)
