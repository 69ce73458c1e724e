"""The pages about the warehouse: questions are answered as the analyst, and the dictionary leaves nothing out."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from defusedxml import ElementTree
from psycopg2 import errors
from transform_world import World

from infra.reference import analyses, dictionary, schema
from storage import transform
from storage.gates import publish

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = sorted(path.stem for path in (transform.project() / "analyses").glob("*.sql"))


@pytest.fixture
def published(world: World) -> World:
    """The small world with all marts published, and in them what some questions are about."""
    for domain in transform.DOMAINS:
        publish.publish(domain, world.settings("transformer"), say=print)
    world.rows(  # a piece that came twice, a text translated in two ways, two versions of a model
        "update marts_music_v1.fct_pieces set fingerprint = 'twin' where piece_id in ('p1', 'p2');"
        "update marts_text_v1.mart_translation_training_pairs set source_text = 'Open the door', source_words = 3"
        " where target_language = 'rus' and pair_id in"
        " (select pair_id from marts_text_v1.mart_translation_training_pairs where target_language = 'rus' limit 2);"
        "insert into marts_platform_v1.fct_model_scores (model_name, model_version, dataset_version, split, metric,"
        " value, direction) select 'birds-aviary', version, 'd', 'valid', 'precision', version / 10.0, 'more'"
        " from generate_series(1, 2) as version"
    )
    return world


def environment(world: World) -> dict[str, str]:
    return os.environ | world.variables("analyst")


def test_fifteen_questions_are_answered_as_the_analyst(published: World, tmp_path: Path) -> None:
    settings = published.settings("analyst")
    asked = analyses.questions(environment(published))
    assert [question.name for question in asked] == QUESTIONS
    assert len(QUESTIONS) == 15
    assert published.value("show statement_timeout", role="analyst") == "5min"
    for question in asked:
        assert question.written.startswith(f"-- {question.text}\n"), question.name
        assert set(re.findall(r'"lyrebird"\."(\w+)"', question.compiled)) == {"marts"}, question.name
        began = time.monotonic()
        answer = analyses.ask(question, settings)
        assert answer.rows, question.name
        assert time.monotonic() - began < 2, question.name
    names = analyses.write(tmp_path, settings, environment(published))
    assert {name.removesuffix(".md") for name in names if name.endswith(".md")} == {*QUESTIONS, "README"}
    first = (tmp_path / "README.md").read_text()
    for question in asked:
        page = (tmp_path / f"{question.name}.md").read_text()
        assert f"]({question.name}.md)" in first
        assert ("imulated**" in page) == ("is_simulated" in question.written), question.name
        if question.plot:
            picture = tmp_path / f"{question.name}.svg"
            assert picture.stat().st_size < 200_000
            words = "".join(ElementTree.parse(picture).getroot().itertext())
            assert question.plot["x_label"] in words
            assert ("simulated data" in words) == ("is_simulated" in question.written)
    twice = next(question for question in asked if question.name == "music_same_piece_twice")
    assert analyses.ask(twice, settings).dicts()[0]["copies"] == 2


def test_a_question_ends_at_the_analysts_own_limit(published: World) -> None:
    published.rows("alter role analyst in database lyrebird set statement_timeout = '200ms'")
    slow = analyses.Question("slow", "How long?", "", "select pg_sleep(5)", "", None)
    with pytest.raises(errors.QueryCanceled):
        analyses.ask(slow, published.settings("analyst"))
    with pytest.raises(errors.InsufficientPrivilege):
        analyses.ask(replace(slow, compiled="select count(*) from core.recording"), published.settings("analyst"))


def described() -> dict[tuple[str, str], dict[str, str]]:
    """(layer, model) -> column -> description, as the properties of the project state them."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for layer in ("core", "marts"):
        for path in (transform.project() / "models" / layer).rglob("_models.yml"):
            for model in yaml.safe_load(path.read_text())["models"]:
                if not model["name"].startswith("sweep_"):
                    columns = {column["name"]: column["description"] for column in model["columns"]}
                    found[layer, model["name"]] = columns
    return found


def manifest() -> dict[str, Any]:
    """The manifest of some build of this world: all of them hold the whole project."""
    path = next((Path(os.environ["LYREBIRD_HOME"]) / "dbt").rglob("manifest.json"))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_the_dictionary_names_every_table_column_and_key(published: World) -> None:
    tables = schema.read(published.settings("analyst"))
    pages = dictionary.pages(tables, manifest())
    expected = described()
    assert {(table.schema, table.name) for table in tables} == expected.keys()
    for table in tables:
        page = pages[f"{table.domain}.md"]
        section = page.split(f"## {table.schema}.{table.name}\n")[1].split("\n## ")[0]
        rows = dict(re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", section, re.MULTILINE))
        assert rows == expected[table.schema, table.name]
        assert table.description in section
    held = published.rows(
        "select conrelid::regclass::text, contype from pg_constraint where connamespace = 'core'::regnamespace"
        " and conrelid <> 'core.vanished'::regclass and contype in ('p', 'u', 'f', 'c')"
    )
    of_core = [(f"core.{table.name}", key.kind) for table in tables if table.schema == "core" for key in table.keys]
    assert sorted(of_core) == sorted(held)
    assert all(any(key.kind == "p" for key in table.keys) for table in tables)  # of marts too, though they are views


def test_the_pictures_show_every_key_and_every_model(published: World) -> None:
    tables = schema.read(published.settings("analyst"))
    pages = dictionary.pages(tables, manifest())
    foreign = dict.fromkeys(dictionary.DOMAINS, 0)
    for table in tables:
        if table.schema == "core":
            foreign[table.domain] += len(table.parents())
            words = list(ElementTree.fromstring(pages[f"{table.domain}-keys.svg"]).itertext())
            assert {table.name, *(column.name for column in table.columns)} <= {*words}
        words = list(ElementTree.fromstring(pages[f"{table.domain}-lineage.svg"]).itertext())
        assert table.name in words
    for domain, count in foreign.items():
        assert pages.get(f"{domain}-keys.svg", "").count("<path ") == count, domain
    assert "Bird identification" in pages["birds-lineage.svg"]
    assert "raw.aviary_recordings" in pages["birds-lineage.svg"]


def test_the_dictionary_in_docs_is_up_to_date(published: World) -> None:
    """LYREBIRD_WRITE=1 writes it anew, where no installation runs that `make docs` could ask."""
    folder = ROOT / "docs" / "dictionary"
    pages = dictionary.pages(schema.read(published.settings("analyst")), manifest())
    if os.environ.get("LYREBIRD_WRITE"):
        dictionary.write(folder, pages)
    there = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    assert there == pages, "run `make docs` on a running installation"
