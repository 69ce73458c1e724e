"""Lineage of what comes from outside: each source's examples lead to what landed of it, and come out of it again.

The sources read from their doubles, and dbt builds and publishes the marts: the keys are those that people hold.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tomli_w
from upstreams.maestro import Maestro, tune
from upstreams.maestro import made as performances
from upstreams.manythings import Manythings
from upstreams.manythings import made as pairs
from upstreams.mutopia import Mutopia
from upstreams.mutopia import made as editions
from upstreams.tatoeba import Tatoeba
from upstreams.tatoeba import made as sentences
from upstreams.xeno_canto import KEY, XenoCanto
from upstreams.xeno_canto import made as entries

from infra import transforming
from ingestion import catalogue, forgetting, pipeline
from ingestion.rereading import differences
from ml import descendants, lineage
from ml.datasets import freeze
from storage import warehouse
from storage.errors import Problem
from storage.gates import audit
from storage.gates.audit import Verdict
from storage.objects import Objects
from storage.settings import options_file

if TYPE_CHECKING:
    from support import Stack

ROOT = Path(__file__).resolve().parents[2]
DRAWN = 4  # examples of each source
# source -> family, and the raw tables that its examples are made of
SOURCES = {
    "tatoeba": ("translation", ["tatoeba_links", "tatoeba_sentences", "tatoeba_sentences"]),
    "manythings": ("translation", ["manythings_pairs"]),
    "maestro": ("music", ["notes_pieces", "maestro_scores"]),
    "midi_archive": ("music", ["notes_pieces", "midi_archive_scores"]),
    "mutopia": ("music", ["notes_pieces", "mutopia_scores", "mutopia_pieces"]),
    "xeno_canto": ("birds", ["clips", "xeno_canto_audio", "xeno_canto_recordings"]),
}


@pytest.fixture(scope="module")
def published(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stores with the training marts of every domain, out of the doubles."""
    folder = tmp_path_factory.mktemp("songs")
    with zipfile.ZipFile(folder / "songs.zip", "w") as archive:
        for number in range(8):
            archive.writestr(f"side {number % 2}/{number}.mid", tune(2_000 + number))
    (folder / "alone.mid").write_bytes(tune(3_000))
    quiet = {"say": lambda text: None}
    with (
        Tatoeba(*sentences(400)).serving() as exports,
        Manythings(pairs(20)).serving() as picked,
        Maestro(performances(8)).serving() as release,
        Mutopia(editions(8)).serving() as site,
        XenoCanto(entries(24)).serving() as birds,
        pytest.MonkeyPatch.context() as patch,
    ):
        asked = {"rate": "", "allowed_hosts": [site.host, birds.host]}
        options: dict[str, dict[str, Any]] = {
            "tatoeba": {"location": f"{exports.url}/exports/"},
            "manythings": {"location": f"{picked.url}/anki/"},
            "maestro": {"location": f"{release.url}/magentadata/datasets/maestro/v3.0.0/"},
            "midi_archive": {"location": str(folder), "corpus": "songs", "licence": "CC0"},
            "mutopia": {"url": site.url, "rest_hours": 0} | asked,
            "xeno_canto": {"url": f"{birds.url}/api/3", "key": KEY, "per_page": 50} | asked,
        }
        for server in (exports, picked, release, site, birds):
            server.faulty = False
        options_file().write_text(tomli_w.dumps({"sources": options}))
        # loads are judged by their quarantine: the statistics take seconds, and have tests of their own
        patch.setattr(audit, "run", lambda *arguments, **given: Verdict(True, "none", ""))
        loader = stack.settings("loader")
        pipeline.make_tables(catalogue.sources(), loader)
        for name in (*options, "clips", "notes"):
            source = catalogue.source(name)
            pipeline.ingest(source, loader, **quiet)
            if name == "xeno_canto":  # its audio follows what is published
                pipeline.judge(source, loader, **quiet)
                pipeline.ingest(source, loader, **quiet)
            states = {state for state, _ in pipeline.judge(source, loader, **quiet).values()}
            assert states == {"published"}, name
        for domain in ("text", "music", "birds"):
            for step in ("core", "splits", "marts", "publish"):
                transforming.run(domain, step, stack.settings("transformer"), retry=False, **quiet)
        yield stack


def examples(stack: Stack, source: str) -> list[str]:
    """Keys of a source's examples, as readers see them."""
    mart = freeze.MARTS[SOURCES[source][0]]  # type: ignore[index]
    column = "corpus" if SOURCES[source][0] == "translation" else "source"
    with closing(warehouse.connect(stack.settings("analyst"))) as db, db, db.cursor() as sql:
        sql.execute(f"select {freeze.LAYOUTS[mart].key} from marts.{mart} where {column} = %s order by 1", (source,))
        return [key for (key,) in sql.fetchall()]


def test_what_readers_see_of_each_source_keeps_its_terms_and_splits(published: Stack) -> None:
    found: dict[str, set[tuple[Any, ...]]] = defaultdict(set)
    with closing(warehouse.connect(published.settings("analyst"))) as db, db, db.cursor() as sql:
        for mart, columns in {
            "mart_translation_training_pairs": "corpus, split_origin, licence",
            "mart_music_training_pieces": "source, split_origin, licence",
            "mart_birds_training_clips": "source, split_origin, label_set",
        }.items():
            sql.execute(f"select distinct {columns} from marts.{mart} where split is not null")
            for source, *rest in sql.fetchall():
                found[source].add(tuple(rest))
    assert found.pop("mutopia") <= {("assigned", one) for one in ("public-domain", "CC-BY", "CC-BY-SA", "CC0")}
    assert found == {
        "tatoeba": {("assigned", "CC-BY"), ("assigned", "CC0")},
        "manythings": {("assigned", "CC-BY")},
        "maestro": {("published", "CC-BY-NC-SA")},
        "midi_archive": {("assigned", "CC0")},
        "xeno_canto": {("assigned", "xeno_canto")},
    }


def trace(stack: Stack, source: str, place: int = 0) -> dict[str, Any]:
    return lineage.example(SOURCES[source][0], examples(stack, source)[place], stack.settings("admin"))


def again(stack: Stack, traced: dict[str, Any]) -> list[str]:
    return lineage.recompute(traced, stack.settings("admin"), differences)


@pytest.mark.parametrize("source", SOURCES)
def test_examples_come_out_of_what_landed_again(published: Stack, source: str) -> None:
    family, tables = SOURCES[source]
    keys = examples(published, source)
    assert len(keys) >= DRAWN
    for key in random.Random(source).sample(keys, DRAWN):
        traced = lineage.example(family, key, published.settings("admin"))
        json.dumps(traced)  # all of it is plain
        assert [one["table"] for one in traced["records"]] == tables
        for record in traced["records"]:
            assert record["load_state"]["state"] == "published"
            assert record["landing"]["sha256"] in record["landing"]["key"]
            assert (record["document"] is None) == (record["table"] != "xeno_canto_recordings")
        assert again(published, traced) == []


def test_each_source_says_where_the_object_came_from(published: Stack) -> None:
    found = {source: trace(published, source)["records"][-1] for source in SOURCES}
    assert found["tatoeba"]["landing"]["name"] == "sentences_detailed.tar.bz2"
    assert found["manythings"]["landing"]["name"] in ("deu-eng.zip", "rus-eng.zip")
    assert found["maestro"]["landing"]["name"].endswith("_wav--1.midi")
    assert {found["midi_archive"]["row"]["file"], found["midi_archive"]["key"]} & {"alone.mid", "songs.zip"}
    assert "/cgibin/piece-info.cgi?id=" in found["mutopia"]["landing"]["name"]
    recording = found["xeno_canto"]
    assert recording["document"]["doc"] == recording["row"]["doc"]
    assert recording["landing"]["name"].partition("?")[0].endswith("/api/3/recordings")
    assert KEY not in json.dumps(recording)


@contextmanager
def another(objects: Objects, bucket: str, key: str) -> Iterator[None]:
    """An object with one byte changed."""
    body = objects.get(bucket, key)
    objects.put(bucket, key, body[:-1] + bytes([body[-1] ^ 1]))
    try:
        yield
    finally:
        objects.put(bucket, key, body)


@pytest.mark.parametrize("source", SOURCES)
def test_a_byte_changed_in_landing_is_noticed_and_the_object_named(published: Stack, source: str) -> None:
    traced, objects = trace(published, source), Objects(published.settings("admin"))
    for address in {record["landing"]["key"] for record in traced["records"]}:
        with another(objects, *address.split("/", 1)):
            assert f"{address} has not the bytes that landed" in again(published, traced)
    assert again(published, traced) == []


def test_the_export_that_tells_the_licences_is_part_of_a_sentence(published: Stack) -> None:
    traced = trace(published, "tatoeba")
    beside = traced["records"][-1]["landing"]["meta"]["cc0"]
    with another(Objects(published.settings("admin")), *beside.split("/", 1)):
        assert again(published, traced) == [f"{beside} has not the bytes that landed"]


def test_a_clip_that_was_stored_otherwise_is_noticed(published: Stack) -> None:
    traced = trace(published, "xeno_canto")
    clip = traced["records"][0]
    with another(Objects(published.settings("admin")), "derived", clip["row"]["clip_object"]):
        assert again(published, traced) == [
            f"xeno_canto: {clip['row']['recording_key']} gives another clip_object than is stored "
            f"for {clip['key']} of raw.clips"
        ]


@contextmanager
def changed(stack: Stack, table: str, column: str, value: str, condition: str) -> Iterator[None]:
    """A column of one row with another value."""
    with closing(warehouse.connect(stack.settings("admin"))) as db:
        with db, db.cursor() as sql:
            sql.execute(f"select {column} from {table} where {condition}")
            ((before,),) = sql.fetchall()
            sql.execute(f"update {table} set {column} = %s where {condition}", (value,))
        try:
            yield
        finally:
            with db, db.cursor() as sql:
                sql.execute(f"update {table} set {column} = %s where {condition}", (before,))


def test_what_raw_or_the_mart_says_otherwise_is_noticed(published: Stack) -> None:
    traced = trace(published, "manythings")
    record, key = traced["records"][0], traced["key"]
    at = f"_load = {record['load']} and _position = {record['position']}"
    with changed(published, "raw.manythings_pairs", "translation", "Ganz anders.", at):
        traced = trace(published, "manythings")
        assert again(published, traced) == [
            f"{record['landing']['name']} gives something else for {record['key']} of raw.manythings_pairs"
        ]
    traced, mart = trace(published, "manythings"), "mart_translation_training_pairs"
    with changed(published, f"marts_text_v1.{mart}", "target_text", "Ganz anders.", f"pair_id = '{key}'"):
        assert again(published, traced) == ["what models are given is not what its records say"]
    assert again(published, traced) == []


@pytest.mark.parametrize("source", ["tatoeba", "maestro"])
def test_the_command_says_so_to_scripts(published: Stack, source: str) -> None:
    key = examples(published, source)[1]
    words = ["lineage", "example", SOURCES[source][0], key, "--recompute", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "infra.cli", *words], env=os.environ, cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    told = json.loads(done.stdout)
    assert told["recomputed"] is True
    assert told["key"] == key


def test_an_object_leads_to_all_that_was_made_of_it_and_to_nothing_else(published: Stack) -> None:
    admin, backwards = published.settings("admin"), defaultdict[str, set[str]](set)
    for source, (family, _) in SOURCES.items():
        for key in examples(published, source):
            for record in lineage.example(family, key, admin)["records"]:
                backwards[record["landing"]["key"]].add(key)
    assert len(backwards) > 60
    for address, keys in backwards.items():
        found = descendants.of(address, admin)
        (made,) = found["examples"].values()
        assert made["count"] == len(keys), address
        assert keys.issuperset(made["keys"]), address
        assert found["object"] == address
        assert (found["versions"], found["models"]) == ([], [])
    assert descendants.of(address.rsplit("/", 1)[1], admin) == found
    with pytest.raises(Problem, match="no published load has the object 'landing/nowhere'"):
        descendants.of("landing/nowhere", admin)


def test_an_object_leads_to_the_versions_and_models_that_hold_it(published: Stack) -> None:
    frozen = freeze.freeze("mart_translation_training_pairs", published.settings("trainer"))
    with closing(warehouse.connect(published.settings("trainer"))) as db, db, db.cursor() as sql:
        sql.execute(
            "insert into ml.score (model, model_version, dataset_version, split, metric, value, direction) "
            "values ('translation-en-de', 7, %s, 'valid', 'chrF', 1, 'more')",
            (frozen.version,),
        )
    told = published.settings("admin")
    german = [
        one["landing"]["key"]
        for key in examples(published, "manythings")
        for one in lineage.example("translation", key, told)["records"]
        if one["row"]["language"] == "deu"
    ]
    found = descendants.of(german[0], told)
    assert found["versions"] == [{"version": frozen.version, "name": frozen.name, "rows": len(german)}]
    assert found["models"] == [{"model": "translation-en-de", "version": 7, "dataset": frozen.version}]
    done = subprocess.run(
        [sys.executable, "-m", "infra.cli", "lineage", "object", german[0], "--json"],
        env=os.environ, cwd=ROOT, stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == found


def test_what_a_withdrawal_leaves_of_an_archive_still_gives_the_other_examples(published: Stack) -> None:
    first, *others = examples(published, "manythings")
    record = lineage.example("translation", first, published.settings("admin"))["records"][0]
    forgetting.forget(catalogue.source("manythings"), published.settings("loader"), [record["key"]], say=print)
    for key in others:
        traced = lineage.example("translation", key, published.settings("admin"))
        assert again(published, traced) == []
        traced["records"][0]["hash"] = record["hash"]
        erased = traced["records"][0]["landing"]["key"]
        if "/_erased/" in erased:
            assert again(published, traced) == [f"{erased} does not hold {traced['records'][0]['key']}"]
    assert any("/_erased/" in trace(published, "manythings", place)["records"][0]["landing"]["key"] for place in (1, 2))
