"""Transforms on a real PostgreSQL: dbt builds every domain from empty, and again on top of what is there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from transform_world import Built, World, candidates, clip, message, notes, piece, recording, roll

from infra import transforming
from storage import transform, warehouse
from storage.errors import Problem

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = {"primary_key": "p", "foreign_key": "f", "unique": "u", "check": "c"}


def rows_by_status(outcome: dict[str, Any]) -> set[str]:
    return {status for layer in ("core", "marts") for status in outcome[layer]["counts"]}


def core_tables(world: World) -> list[str]:
    found = world.rows(
        "select tablename from pg_tables where schemaname = 'core' and tablename != 'vanished' order by 1"
    )
    return [name for (name,) in found]


def content(world: World, schema: str, table: str) -> str:
    return world.value(
        f"select coalesce(md5(string_agg(row::text, '|' order by row::text)), '') from {schema}.{table} as row"
    )


def constraints(world: World) -> Counter:
    """How many constraints of each kind every table of core has, as PostgreSQL holds them."""
    found = world.rows(
        "select relname, contype from pg_constraint join pg_class on conrelid = pg_class.oid"
        " join pg_namespace on relnamespace = pg_namespace.oid"
        " where nspname = 'core' and relname != 'vanished' and contype in ('p', 'f', 'u', 'c')"
    )
    return Counter(found)


def declared(home: Path) -> Counter:
    """The same out of dbt's manifest."""
    manifest = json.loads((home / "dbt" / "birds" / "by-hand" / "core" / "manifest.json").read_text())
    counts: Counter = Counter()
    for node in manifest["nodes"].values():
        if node["resource_type"] == "model" and node["fqn"][1] == "core" and node["config"]["contract"]["enforced"]:
            stated = [
                *node["constraints"],
                *(one for column in node["columns"].values() for one in column["constraints"]),
            ]
            counts.update((node["name"], CONSTRAINTS[one["type"]]) for one in stated if one["type"] in CONSTRAINTS)
    return counts


def test_every_domain_builds_from_empty(built: Built) -> None:
    for domain, outcome in built.outcomes.items():
        assert rows_by_status(outcome) <= {"success", "pass"}, domain
        names = {node["name"] for layer in ("core", "marts") for node in outcome[layer]["nodes"]}
        assert set(transform.marts(domain)) <= names


def test_marts_hold_what_the_sources_gave(world: World) -> None:
    clips = dict(
        world.rows("select recording_key, to_jsonb(mart) from marts_next_birds.mart_birds_training_clips as mart"
                   " join marts_next_birds.fct_recordings using (recording_id)")
    )  # fmt: skip
    assert clips["sim-1"]["species"] == ["Avisus secundus", "Cantor tertius"]
    assert clips["sim-1"]["primary_species"] == "Avisus secundus"
    assert (clips["sim-1"]["split"], clips["sim-1"]["split_origin"]) == ("train", "published")
    assert clips["sim-1"]["licence"] == "CC-BY-NC-SA"
    assert clips["sim-1"]["is_simulated"] is True
    assert clips["none_1.wav"]["species"] == []
    assert clips["none_1.wav"]["primary_species"] == ""
    assert clips["owl_1.wav"]["split_origin"] == "assigned"
    taxa = world.rows("select family, bird_order from marts_next_birds.dim_species where scientific_name = 'Tyto alba'")
    assert taxa == [("Tytonidae", "Strigiformes")]

    frames = world.value(
        "select frames from marts_next_music.mart_music_training_pieces where piece_id = 'jsb/valid/0'"
    )
    assert frames == [[72, 67], []] * 8
    assert (
        world.value("select corpus from marts_next_music.fct_pieces where piece_id = 'jsb/valid/0'") == "jsb-chorales"
    )

    pairs = world.rows(
        "select source_language, target_language, split, count(*) from"
        " marts_next_text.mart_translation_training_pairs where corpus = 'multi30k' group by 1, 2, 3 order by 3"
    )
    assert pairs == [("eng", "deu", "train", 4), ("eng", "deu", "valid", 1)]


def test_every_row_is_in_the_mart_or_excluded_with_a_reason(world: World) -> None:
    reasons = dict(world.rows("select key, reason from marts_next_birds.fct_birds_training_exclusions"))
    assert sorted(reasons.values()) == ["no_clip", "no_label"]
    for domain, total, mart in (
        ("birds", "select count(*) + 1 from raw.clips", "mart_birds_training_clips"),
        ("music", "select count(*) from core.piece", "mart_music_training_pieces"),
        ("text", "select count(*) from staging.int_text_pairs", "mart_translation_training_pairs"),
    ):
        kept = world.value(f"select count(*) from marts_next_{domain}.{mart}")
        left_out = world.value(f"select count(*) from marts_next_{domain}.fct_{domain}_training_exclusions")
        assert kept + left_out == world.value(total), domain
        assert kept > 0, domain


def test_postgres_holds_the_constraints_of_the_manifest(world: World, built: Built) -> None:
    assert constraints(world) == declared(built.home)
    assert constraints(world)["note", "f"] == 1
    with pytest.raises(Exception, match="foreign key"):
        world.rows("delete from core.recording")


def project_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    """Let the project be a copy of ours in which one thing in the properties of birds is another."""
    monkeypatch.setenv("LYREBIRD_HOME", str(tmp_path / "home"))  # what dbt has parsed is of this project
    mine = tmp_path / "dbt_project"
    shutil.copytree(transform.project(), mine, ignore=shutil.ignore_patterns("target", "logs"))
    path = mine / "models" / "core" / "birds" / "_models.yml"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    monkeypatch.setattr(transform, "project", lambda: mine)


def test_a_single_model_run_by_hand_keeps_the_constraints(world: World, built: Built, tmp_path: Path) -> None:
    before = constraints(world)
    with closing(warehouse.connect(world.settings("transformer"))) as db:
        for argv in (["run", "--select", "recording"], ["run", "--select", "recording", "--full-refresh"]):
            lines, code = transform._dbt(db, tmp_path / "dbt", [*argv, "--target", "platform"],
                                         world.settings("transformer"), print)  # fmt: skip
            assert code == 0, lines[-10:]
            assert constraints(world) == before == declared(built.home)


def test_a_constraint_that_is_new_in_a_contract_is_missed_until_core_is_rebuilt(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = world.settings("transformer")
    project_with(
        tmp_path, monkeypatch, "expression: 'length_s >= 0'", "expression: 'length_s >= 0'\n          - type: unique"
    )
    world.add("aviary_recordings", [recording(0, length="0:06")], gone=[[f"sim-{number}"] for number in range(1, 24)])
    with pytest.raises(Problem, match=r"does not hold: recording: unique \(length_s\).*warehouse rebuild"):
        transform.build("birds", "core", settings, say=print)
    transform.rebuild_core(settings, say=print)
    assert constraints(world)["recording", "u"] == 2
    assert set(transform.build("birds", "core", settings, say=print)["counts"]) <= {"success", "pass"}


def test_a_foreign_key_that_a_dropped_parent_took_along_is_missed(world: World) -> None:
    settings = world.settings("transformer")
    world.rows("drop table core.genus cascade")
    with pytest.raises(Problem, match=r"does not hold: species: foreign key \(genus_id\)"):
        transform.build("birds", "core", settings, say=print)
    transform.rebuild_core(settings, say=print)
    assert set(transform.build("birds", "core", settings, say=print)["counts"]) <= {"success", "pass"}


def test_an_incremental_build_changes_what_changed_and_removes_what_is_gone(world: World, built: Built) -> None:
    before = constraints(world)
    written = dict(world.rows("select recording_id, xmin::text from core.recording"))
    world.add(
        "aviary_recordings",
        [recording(0, rec="recordist 9", sp="novus", en="New bird"), recording(30)],
        gone=[["sim-5"]],
    )
    world.add("clips", [clip("aviary", "sim-30")])
    world.add("aviary_recordings", [recording(1, q="E")], state="rejected")
    world.add("aviary_recordings", [], gone=[["sim-2"]], state="loaded")
    outcome = candidates("birds", world.settings("transformer"))
    assert rows_by_status(outcome) <= {"success", "pass"}

    keys = {key for (key,) in world.rows("select recording_key from core.recording where source = 'aviary'")}
    assert keys == {f"sim-{number}" for number in (*range(24), 30)} - {"sim-5"}
    assert world.value("select quality from core.recording where recording_key = 'sim-1'") == "A"
    assert world.value("select name from core.recordist join core.recording using (recordist_id)"
                       " where recording_key = 'sim-0'") == "recordist 9"  # fmt: skip
    species = {name for (name,) in world.rows("select scientific_name from core.species")}
    assert "Avisus novus" in species
    assert world.value("select count(*) from core.clip join core.recording using (recording_id)"
                       " where recording_key = 'sim-30'") == 1  # fmt: skip
    assert world.value("select count(*) from core.vanished") == 0
    assert constraints(world) == before == declared(built.home)
    rewritten = world.rows("select recording_id, recording_key, xmin::text from core.recording")
    changed = {key for recording_id, key, xmin in rewritten if written.get(recording_id) != xmin}
    assert changed == {"sim-0", "sim-30"}


def test_a_full_rebuild_of_core_equals_the_incremental_one(world: World, built: Built) -> None:
    settings = world.settings("transformer")
    world.add("notes_pieces", [piece("p1", 1, title="Renamed", composer="Anon."), piece("p20", 20)], gone=[["p2"]])
    world.add("notes", notes("p20"), gone=[["p2", number] for number in range(8)])
    world.add("gettext_catalogues_messages", [message(3, target_text="Другой перевод")],
              gone=[[message(4)["path"], None, message(4)["source_text"], 0]])  # fmt: skip
    for domain in ("music", "text"):
        transform.build(domain, "core", settings, say=print)
    tables = core_tables(world)
    assert len(tables) > 25
    grown = {table: content(world, "core", table) for table in tables}
    assert world.value("select count(*) from core.piece where piece_id = 'p2'") == 0
    assert world.value("select count(*) from core.composer") == 2
    rebuilt = world.lyrebird("transformer", "warehouse", "rebuild")
    assert {domain: set(counts) <= {"success", "pass"} for domain, counts in rebuilt.items()} == {
        "birds": True, "music": True, "text": True
    }  # fmt: skip
    assert {table: content(world, "core", table) for table in core_tables(world)} == grown
    assert constraints(world) == declared(built.home)


def test_splits_stay_and_training_rows_that_bridge_them_leave(world: World) -> None:
    settings = world.settings("transformer")
    recorded = dict(world.rows("select group_key, split from ml.split_group where domain = 'music'"))
    assert set(recorded.values()) <= {"train", "valid", "test"}
    assert recorded["valid-0"] == "valid"
    [(twin, fingerprint)] = world.rows(
        "select piece_id, group_key from marts_next_music.mart_music_training_pieces"
        " where source = 'music21_corpus' and split = 'train' order by 1 limit 1"
    )
    # a held-out piece turns up that is the same music as one that we train on, and many new pieces
    world.add("piano_roll_files_pieces", [roll("valid", 50, fingerprint=fingerprint)])
    world.add("notes_pieces", [piece(f"n{number}", 100 + number) for number in range(60)])
    candidates("music", settings)
    after = dict(world.rows("select group_key, split from ml.split_group where domain = 'music'"))
    assert recorded.items() <= after.items()
    assert len(after) == len(recorded) + 60
    counts = Counter(after[f"print-{100 + number}"] for number in range(60))
    assert counts["train"] > counts["valid"] + counts["test"] > 0
    assert world.rows(
        "select key, reason from marts_next_music.fct_music_training_exclusions where reason like 'br%'"
    ) == [(twin, "bridges_splits")]
    held_out = (
        "select split, split_origin from marts_next_music.mart_music_training_pieces where piece_id = 'jsb/valid/50'"
    )
    assert world.rows(held_out) == [("valid", "published")]
    assert transform.assign_splits("music", settings) == {}


def test_a_failing_model_is_named_and_a_retry_builds_only_what_is_left(world: World) -> None:
    settings = world.settings("transformer")
    load = world.add("notes", [notes("p0")[0] | {"pitch": 200}])
    with pytest.raises(Problem, match=r"(?s)core of music.*note \(error\).*check constraint"):
        transform.build("music", "core", settings, say=print)
    assert world.value("select count(*) from core.note") == 96  # what was there stays
    world.rows("update ops.load set state = 'rejected' where source = 'notes' and load = %s", (load,))
    outcome = transform.build("music", "core", settings, retry=True, say=print)
    assert set(outcome["counts"]) <= {"success", "pass"}
    ran = json.loads((transform.target_path("music", "core") / "run_results.json").read_text())["results"]
    models = {one["unique_id"] for one in ran if not one["unique_id"].startswith("operation.")}
    assert models == {"model.lyrebird.note", "model.lyrebird.sweep_music"}


def test_two_builds_of_a_domain_wait_for_each_other(world: World) -> None:
    settings = world.settings("transformer")
    outcomes: list[dict[str, Any]] = []
    build = Thread(target=lambda: outcomes.append(transform.build("platform", "marts", settings, say=print)))
    with (
        closing(warehouse.connect(settings)) as db,
        warehouse.advisory_lock(db, "transform.platform"),
    ):
        build.start()
        build.join(2)
        assert build.is_alive()
        assert world.value("select count(*) from pg_locks where locktype = 'advisory' and not granted") == 1
    build.join(120)
    assert outcomes[0]["layer"] == "marts"


def test_unknown_names_are_refused_in_a_sentence(world: World) -> None:
    with pytest.raises(Problem, match="no domain fish"):
        transform.build("fish", "core", world.settings("transformer"))
    with pytest.raises(Problem, match="no layer gold"):
        transform.build("birds", "gold", world.settings("transformer"))


class Hand:
    """dbt as Ann-B types it, in the environment that `lyrebird env` prints once marts are published."""

    def __init__(self, world: World, folder: Path, project: Path | None = None) -> None:
        self.world, self.project = world, project or transform.project()
        variables = world.variables("transformer") | {
            "DBT_DEFER": "true",
            "DBT_DEFER_STATE": str(transform.published_state()),
            "DBT_TARGET_PATH": str(folder / "target"),
            "DBT_LOG_PATH": str(folder / "logs"),
        }
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "USER": "Ann-B"} | variables
        self.before = self.tables()

    def dbt(self, *argv: str) -> subprocess.CompletedProcess[str]:
        dbt = Path(sys.executable).parent / "dbt"
        return subprocess.run(
            [dbt, *argv], cwd=self.project, env=self.environment, capture_output=True, text=True, check=False
        )

    def tables(self) -> set[tuple[str, str]]:
        return {*self.world.rows("select schemaname, tablename from pg_tables where schemaname not like 'pg_%'")}

    def made(self, *argv: str) -> set[tuple[str, str]]:
        """Run dbt, which succeeds; the tables that are there now and were not before. None of those before is gone."""
        done = self.dbt(*argv)
        assert done.returncode == 0, done.stdout
        assert self.before <= self.tables()
        return self.tables() - self.before


@pytest.fixture
def published(world: World) -> World:
    """The world with the marts of birds published, and the state that people defer to."""
    transforming.run("birds", "publish", world.settings("transformer"), retry=False, say=print)
    return world


def keys_of_ann(world: World) -> set[tuple[str, str]]:
    """Which table of Ann's refers to which, by foreign keys."""
    return {
        *world.rows(
            "select conrelid::regclass::text, confrelid::regclass::text from pg_constraint"
            " where contype = 'f' and conrelid::regclass::text like 'dev%%'"
        )
    }


def test_dbt_by_hand_builds_into_a_schema_of_ones_own(published: World, tmp_path: Path) -> None:
    hand = Hand(published, tmp_path)
    of_readers = content(published, "marts", "fct_recordings")
    new = hand.made("run")
    assert {schema for schema, _ in new} == {"dev_ann_b_staging", "dev_ann_b_core", "dev_ann_b_marts"}
    assert content(published, "marts", "fct_recordings") == of_readers
    assert content(published, "dev_ann_b_marts", "fct_recordings") == of_readers
    assert len(keys_of_ann(published)) > 10
    assert {parent.split(".")[0] for _, parent in keys_of_ann(published)} == {"dev_ann_b_core"}
    refused = hand.dbt("run", "--target", "published")
    assert refused.returncode != 0
    assert "Nothing is built in the target published" in refused.stdout


def test_dbt_by_hand_reads_what_it_does_not_build_as_it_is_published(published: World, tmp_path: Path) -> None:
    hand = Hand(published, tmp_path)
    published.rows("update marts_birds_v1.dim_species set scientific_name = 'Avisus publicus' where genus = 'Cantor'")
    assert hand.made("run", "--select", "agg_species_minutes") == {("dev_ann_b_marts", "agg_species_minutes")}
    names = published.rows("select scientific_name from dev_ann_b_marts.agg_species_minutes")
    assert ("Avisus publicus",) in names
    assert hand.dbt("test", "--select", "fct_recordings").returncode == 0


def test_a_part_of_core_by_hand_ties_and_sweeps_nothing_that_is_published(published: World, tmp_path: Path) -> None:
    hand = Hand(published, tmp_path)
    published.rows("create schema dev_ann_b_core authorization transformer")
    published.rows(  # what a merge of hers has noted, of a table that she has dropped since
        "set role transformer; create table dev_ann_b_core.vanished (model text, key text, primary key (model, key));"
        "insert into dev_ann_b_core.vanished select 'clip', clip_id from core.clip"
    )
    before = content(published, "core", "clip")
    new = hand.made("run", "--select", "genus", "species", "sweep_birds")
    assert new == {("dev_ann_b_core", name) for name in ("genus", "species", "vanished")}
    assert keys_of_ann(published) == {("dev_ann_b_core.species", "dev_ann_b_core.genus")}  # and none to core.family
    assert content(published, "core", "clip") == before


def test_only_what_differs_from_the_published_state_is_built(published: World, tmp_path: Path) -> None:
    copy = tmp_path / "dbt_project"
    shutil.copytree(transform.project(), copy, ignore=shutil.ignore_patterns("target", "logs"))
    hand = Hand(published, tmp_path, copy)
    recipe = re.search(r"^changed:.*\n\t.*dbt (build .*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    argv = re.sub(r'"\$\$\{DBT_DEFER_STATE:[^}]*\}"', str(transform.published_state()), recipe[1]).split()
    assert hand.made(*argv) == set()
    model = copy / "models" / "marts" / "birds" / "dim_species.sql"
    model.write_text(model.read_text().replace("species.english_name", "upper(species.english_name) as english_name"))
    assert hand.made(*argv) == {("dev_ann_b_marts", "dim_species"), ("dev_ann_b_marts", "agg_species_minutes")}
    assert ("BARN OWL",) in published.rows("select english_name from dev_ann_b_marts.dim_species")
    assert ("Barn Owl",) in published.rows("select english_name from marts.dim_species")


def test_the_projects_own_unit_tests_pass_and_its_docs_are_one_page(world: World, tmp_path: Path) -> None:
    settings = world.settings("transformer")
    with closing(warehouse.connect(settings)) as db:
        argv = ["test", "--select", "test_type:unit", "--target", "platform"]
        lines, code = transform._dbt(db, built_target(tmp_path), argv, settings, print)
    assert code == 0, "\n".join(lines[-40:])
    page = transform.docs(settings, say=print) / "index.html"
    assert "mart_birds_training_clips" in page.read_text()


def built_target(tmp_path: Path) -> Path:
    return tmp_path / "dbt"
