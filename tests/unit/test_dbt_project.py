"""The dbt project as text: what its own tests would only notice at run time, or never."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from storage import transform

PROJECT = transform.project()
MODELS = {path.stem: path for path in (PROJECT / "models").rglob("*.sql")}
LAYERS = ("staging", "intermediate", "core", "marts")


def properties() -> dict[str, dict[str, Any]]:
    found = {}
    for path in (PROJECT / "models").rglob("_models.yml"):
        for model in yaml.safe_load(path.read_text())["models"]:
            for name in files(model):
                assert name not in found, f"{name} is described twice"
                assert MODELS[name].parent == path.parent, f"{name} is described in another folder"
                found[name] = model
    return found


def files(model: dict[str, Any]) -> list[str]:
    """The files of a model: its own, or one for each of its versions."""
    versions = model.get("versions", [{"defined_in": model["name"]}])
    return [one.get("defined_in") or f"{model['name']}_v{one['v']}" for one in versions]


PROPERTIES = properties()


def refs(name: str) -> set[str]:
    return set(re.findall(r"ref\('(\w+)'\)", MODELS[name].read_text()))


def folder(name: str) -> tuple[str, str]:
    layer, domain = MODELS[name].relative_to(PROJECT / "models").parts[:2]
    return layer, domain


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_and_column_is_described(name: str) -> None:
    assert PROPERTIES[name]["description"]
    for column in PROPERTIES[name].get("columns", []):
        assert column["description"].endswith("."), column["name"]
    if not name.startswith("sweep_"):
        assert PROPERTIES[name]["columns"]


def test_layers_read_only_what_lies_before_them() -> None:
    for name, path in MODELS.items():
        layer, domain = folder(name)
        sources = set(re.findall(r"source\('(\w+)'", path.read_text()))
        if "current_version(" in path.read_text():
            sources.add("raw")
        assert "raw" not in sources or layer == "staging", f"{name} reads raw"
        for parent in refs(name) & MODELS.keys():
            parent_layer, parent_domain = folder(parent)
            assert parent_domain in (domain, "shared"), f"{name} of {domain} reads {parent} of {parent_domain}"
            ephemeral = "materialized='ephemeral'" in path.read_text()
            allowed = LAYERS.index(layer) + (1 if ephemeral else 0)
            assert LAYERS.index(parent_layer) <= allowed, f"{name} in {layer} reads {parent} in {parent_layer}"
        if layer == "staging":
            assert not refs(name), f"{name} joins"


def test_each_mart_belongs_to_one_domain() -> None:
    names = [mart for domain in transform.DOMAINS for mart in transform.marts(domain)]
    assert len(names) == len(set(names))
    assert {"mart_birds_training_clips", "mart_music_training_pieces", "mart_translation_training_pairs"} <= set(names)
    assert sorted(names) == sorted(name for name in MODELS if folder(name)[0] == "marts")


@pytest.mark.parametrize("domain", ["birds", "music", "text"])
def test_a_domains_sweep_takes_all_its_core_models_children_first(domain: str) -> None:
    swept = re.findall(r"ref\('(\w+)'\)", MODELS[f"sweep_{domain}"].read_text())
    core = {name for name in MODELS if folder(name) == ("core", domain)} - {f"sweep_{domain}"}
    assert set(swept) == core
    assert len(swept) == len(core)
    for name in swept:
        stated = [*PROPERTIES[name].get("constraints", [])]
        stated += [one for column in PROPERTIES[name]["columns"] for one in column.get("constraints", [])]
        parents = {re.search(r"ref\('(\w+)'\)", one["to"])[1] for one in stated if one["type"] == "foreign_key"}
        for parent in parents & core:
            assert swept.index(name) < swept.index(parent), f"{parent} is swept before its child {name}"


def test_marts_wait_for_the_sweep_of_what_they_read() -> None:
    def through(name: str) -> set[str]:
        parents = refs(name) & MODELS.keys()
        return parents.union(*(through(parent) for parent in parents)) if parents else set()

    for name in MODELS:
        layer, domain = folder(name)
        if layer == "marts" and any(folder(parent)[0] == "core" for parent in through(name)):
            assert f"sweep_{domain}" in through(name), name


def test_core_keys_are_stated_the_same_for_merging_and_for_postgres() -> None:
    for name, path in MODELS.items():
        if folder(name)[0] != "core" or name.startswith("sweep_"):
            continue
        keys = re.search(r"unique_key=(\[.*?\]|'\w+')", path.read_text())
        stated = next(one["columns"] for one in PROPERTIES[name]["constraints"] if one["type"] == "primary_key")
        assert keys, f"{name} has no unique_key"
        assert re.findall(r"\w+", keys[1]) == stated, name


def test_every_licence_code_is_in_the_seed() -> None:
    with (PROJECT / "seeds" / "shared" / "licences.csv").open() as file:
        codes = {row["licence_code"] for row in csv.DictReader(file)}
    macro = (PROJECT / "macros" / "sql" / "licence_code.sql").read_text()
    assert set(re.findall(r"(?:then|else) '([^']+)'", macro)) <= codes


def test_codes_of_languages_are_unique_and_whole() -> None:
    with (PROJECT / "seeds" / "text" / "languages.csv").open() as file:
        rows = list(csv.DictReader(file))
    for column, length in (("iso_639_3", 3), ("iso_639_1", 2)):
        codes = [row[column] for row in rows if row[column]]
        assert len(codes) == len(set(codes))
        assert {len(code) for code in codes} == {length}
    counted = {row["iso_639_3"] for row in rows if not row["counts_as"]}
    assert {row["counts_as"] for row in rows} - {""} <= counted
    assert {"eng", "rus", "deu", "fra", "spa"} <= counted
    assert len({row["name"] for row in rows if row["iso_639_3"] in counted}) == len(counted)


def test_nothing_phones_home_and_core_is_never_refreshed() -> None:
    project = yaml.safe_load((PROJECT / "dbt_project.yml").read_text())
    assert project["flags"]["send_anonymous_usage_stats"] is False
    assert project["models"]["lyrebird"]["core"]["+full_refresh"] is False
    assert project["models"]["lyrebird"]["core"]["+contract"] == {"enforced": True}
    assert project["models"]["lyrebird"]["marts"]["+contract"] == {"enforced": True}


EXPOSURES = yaml.safe_load((PROJECT / "models" / "exposures.yml").read_text())["exposures"]


def test_each_training_mart_has_an_exposure() -> None:
    exposed = {parent for one in EXPOSURES if one["type"] == "ml" for parent in one["depends_on"]}
    assert exposed == {
        f"ref('{mart}')"
        for mart in ("mart_birds_training_clips", "mart_music_training_pieces", "mart_translation_training_pairs")
    }


def test_the_exposures_of_analyses_name_the_marts_that_they_read() -> None:
    read: dict[str, set[str]] = {}
    for path in (PROJECT / "analyses").glob("*.sql"):
        found = re.findall(r"ref\('\w+'\)", path.read_text())
        read.setdefault(path.stem.split("_")[0], set()).update(found)
    exposed = {one["name"]: set(one["depends_on"]) for one in EXPOSURES if one["type"] == "analysis"}
    assert exposed == {f"{domain}_analyses": marts for domain, marts in read.items()}


def test_no_secret_and_no_host_in_the_profile() -> None:
    text = Path(PROJECT / "profiles.yml").read_text()
    assert re.findall(r"^\s+(?:password|host|user): (?!\"\{\{ env_var\()", text, re.MULTILINE) == []
