"""Lineage over real sources: every example leads to the bytes that landed, and the bytes give the example again."""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import frozen_world as world
import pytest
import soundfile
from support import Stack, rotating_seed

from ingestion import pipeline
from ingestion.contract import Source
from ingestion.derive.clips import SOURCE as CLIPS
from ingestion.derive.notes import SOURCE as NOTES
from ingestion.rereading import differences
from ingestion.sources.audio_folder import SOURCE as AUDIO_FOLDER
from ingestion.sources.aviary import SOURCE as AVIARY
from ingestion.sources.gettext_catalogues import SOURCE as GETTEXT
from ingestion.sources.music21_corpus import SOURCE as MUSIC21
from ingestion.sources.parallel_files import SOURCE as PARALLEL
from ingestion.sources.piano_roll_files import SOURCE as PIANO_ROLLS
from ml import lineage, registry
from ml.datasets import freeze
from storage import warehouse
from storage.errors import Problem

DRAWN = 50  # examples of each family

CURRENT = """(
    select distinct on (r._key) r.* from raw.{table} as r
    join ops.load as l on l.source = '{source}' and l.load = r._load and l.state = 'published'
    order by r._key, r._load desc, r._position desc
)"""


def of(source: Source, **options: Any) -> Source:
    """The source with these options."""
    return replace(source, config={n: (options.get(n, default), told) for n, (default, told) in source.config.items()})


@dataclass
class Ingested:
    """What the warehouse holds, and the folder that some of it came from."""

    stack: Stack
    folder: Path

    def load(self, *sources: Source) -> None:
        settings = self.stack.settings("loader")
        for source in sources:
            pipeline.ingest(source, settings, say=lambda text: None)
            states = pipeline.judge(source, settings, say=lambda text: None)
            assert {state for state, _ in states.values()} <= {"published"}, states

    def publish(self) -> None:
        """The training marts out of raw, with the keys that dbt gives them."""
        birds = self.select(
            f"select clip_id, source, clip_object, start_s, end_s, samples from {current('clips', 'clips')} as c "
            "where not _deleted order by clip_id"
        )
        shared = {"group_key": "g", "split_origin": "assigned", "licence": "CC0"}
        rows = [
            row
            | shared
            | {"recording_id": "r", "label_set": "aviary", "species": ["Parus major"], "primary_species": "Parus major"}
            | {"sample_rate": 16_000, "is_simulated": True, "split": world.split_of(number)}
            for number, row in enumerate(birds)
        ]
        world.publish(self.stack, "mart_birds_training_clips", rows)
        music = self.select(
            f"select piece_id, source, corpus, frames_quarter as frames from {current('notes', 'notes_pieces')} as p "
            "where not _deleted union all select piece_id, 'piano_roll_files', 'jsb-chorales', frames from "
            f"{current('piano_roll_files', 'piano_roll_files_pieces')} as p where not _deleted order by piece_id"
        )
        grid = {"grid": "quarter", "fingerprint": "f"}
        rows = [row | shared | grid | {"split": world.split_of(number)} for number, row in enumerate(music)]
        world.publish(self.stack, "mart_music_training_pieces", rows)
        text = self.select(
            "select md5('gettext_catalogues|' || jsonb_build_array(path, context, source_text, form::integer)"
            "::text) as pair_id, package as corpus, source_text, target_text from "
            f"{current('gettext_catalogues', 'gettext_catalogues_messages')} as m where not _deleted "
            "union all select md5('parallel_files|' || jsonb_build_array(o.corpus, o.part, o.language, "
            "o.line::integer)::text), o.corpus, e.text, o.text from "
            f"{current('parallel_files', 'parallel_files_lines')} as o join "
            f"{current('parallel_files', 'parallel_files_lines')} as e using (corpus, part, line) "
            "where o.language = 'de' and e.language = 'en' order by 1"
        )
        tongue = {"source_language": "eng", "target_language": "rus", "source_words": 2}
        unique = {row["pair_id"]: row for row in text}.values()
        rows = [row | shared | tongue | {"split": world.split_of(number)} for number, row in enumerate(unique)]
        world.publish(self.stack, "mart_translation_training_pairs", rows)

    def select(self, query: str) -> list[dict[str, Any]]:
        with closing(warehouse.connect(self.stack.settings("admin"))) as db, db, db.cursor() as sql:
            sql.execute(query)
            names = [column.name for column in sql.description or ()]
            return [dict(zip(names, row, strict=True)) for row in sql.fetchall()]

    def write_recording(self, name: str, number: int) -> None:
        folder = self.folder / "birds" / "clips"
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, world.sound(number, 7.5), 22_050, format="WAV")

    def write_labels(self, species: str) -> None:
        with (self.folder / "birds" / "clips.csv").open("w", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(["file", "scientific_name", "recordist"])
            lines.writerows([f"{number}.wav", species, "me"] for number in range(4))


def current(source: str, table: str) -> str:
    return CURRENT.format(source=source, table=table)


@pytest.fixture(scope="module")
def ingested(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ingested]:
    folder = tmp_path_factory.mktemp("data")
    made = Ingested(stack, folder)
    for number in range(4):
        made.write_recording(f"{number}.wav", number)
    made.write_labels("Turdus merula")
    (folder / "jsb_chorales").mkdir()
    rolls = {split: [[[60 + n, 64], [], [67]] * 4 for n in range(5)] for split in ("train", "valid")}
    (folder / "jsb_chorales" / "jsb-chorales-quarter.json").write_text(json.dumps(rolls))
    (folder / "multi30k").mkdir()
    for language, word in (("en", "bird"), ("de", "Vogel")):
        lines = "".join(f"{word} {number} \u2028\u00a0x\n" for number in range(50))
        (folder / "multi30k" / f"train.{language}").write_text(lines, encoding="utf-8")
    with world.marts(stack):
        made.load(
            of(AVIARY, recordings=50),
            of(AUDIO_FOLDER, location=str(folder)),
            of(MUSIC21, collections="bach-chorales", limit=42),
            of(GETTEXT, packages="sphinx", languages="ru"),
            of(PARALLEL, location=str(folder)),
            of(PIANO_ROLLS, location=str(folder)),
        )
        made.load(CLIPS, NOTES)
        made.publish()
        yield made


@pytest.mark.parametrize(
    ("family", "sources"),
    [
        ("birds", {"aviary", "audio_folder"}),
        ("music", {"music21_corpus", "piano_roll_files"}),
        ("translation", {"gettext_catalogues", "parallel_files"}),
    ],
)
def test_examples_lead_to_the_landed_bytes_and_back(ingested: Ingested, family: str, sources: set[str]) -> None:
    settings = ingested.stack.settings("admin")
    mart = freeze.MARTS[family]  # type: ignore[index]
    key = freeze.LAYOUTS[mart].key
    source = "source" if family != "translation" else "corpus"
    rows = ingested.select(f"select {key} as key, {source} as source from marts.{mart} order by 1")
    assert len(rows) > DRAWN
    drawn = random.Random(rotating_seed()).sample(rows, DRAWN)
    drawn += [next(row for row in rows if row["source"] == one) for one in {row["source"] for row in rows}]
    seen = set()
    for row in drawn:
        traced = lineage.example(family, row["key"], settings)
        json.dumps(traced)  # all of it is plain
        assert traced["mart"]["row"][key] == row["key"]
        for record in traced["records"]:
            assert record["load_state"]["state"] == "published"
            assert record["landing"]["key"].startswith("landing/")
            assert record["landing"]["sha256"] in record["landing"]["key"]
            assert record["landing"]["name"]
        seen.add(traced["records"][-1]["source"])
        assert lineage.recompute(traced, settings, differences) == [], row
    assert seen == sources


def test_a_simulated_clip_leads_to_its_document(ingested: Ingested) -> None:
    settings = ingested.stack.settings("admin")
    found = ingested.select("select clip_id from marts.mart_birds_training_clips where source = 'aviary' limit 1")
    traced = lineage.example("birds-aviary", found[0]["clip_id"], settings)
    clip, sound, recording = traced["records"]
    assert [one["table"] for one in traced["records"]] == ["clips", "aviary_audio", "aviary_recordings"]
    assert clip["landing"]["key"] == sound["landing"]["key"]
    document = recording["document"]
    assert document["collection"] == "aviary_recordings"
    assert document["doc"]["id"] == clip["row"]["recording_key"]
    assert document["doc"]["simulated"] is True
    assert document["doc"] == recording["row"]["doc"]


def test_recomputing_notices_another_sound(ingested: Ingested) -> None:
    settings = ingested.stack.settings("admin")
    found = ingested.select("select clip_id from marts.mart_birds_training_clips where source = 'aviary' limit 2")
    one, other = (lineage.example("birds", row["clip_id"], settings) for row in found)
    one["records"][0]["row"]["clip_object"] = other["records"][0]["row"]["clip_object"]
    key = one["records"][0]["key"]
    assert [reason.partition(" gives ")[2] for reason in lineage.recompute(one, settings, differences)] == [
        f"something else for {key} of raw.clips"
    ]
    piece = ingested.select("select piece_id from marts.mart_music_training_pieces limit 1")[0]["piece_id"]
    traced = lineage.example("music", piece, settings)
    row = traced["records"][0]["row"]
    row["frames" if "frames" in row else "frames_quarter"][0] = [1]
    assert lineage.recompute(traced, settings, differences)


def test_a_prediction_leads_through_model_and_shard_to_the_records_of_its_time(
    ingested: Ingested, tmp_path: Path
) -> None:
    ingested.stack.need("mlflow")
    settings, name = ingested.stack.settings("trainer"), "birds-aviary"
    frozen = freeze.freeze(name, settings)
    run = tmp_path / "run"
    run.mkdir()
    about = {"family": "birds", "dataset": {"version": frozen.version, "name": name, "simulated": True}, "code": "c"}
    score = {"name": "ap", "value": 0.9, "low": 0.8, "high": 1.0, "direction": "more", "rows": 3}
    score["baseline"] = {"name": "prior", "value": 0.1, "low": 0.1, "high": 0.2}
    scores = {"family": "birds", "dataset": frozen.version, "split": "valid", "metrics": [score]}
    for file, content in (("model.json", about), ("scores.json", scores), ("config.json", {"train": {"seed": 1}})):
        (run / file).write_text(json.dumps(content))
    (run / "weights.safetensors").write_bytes(b"weights")
    made = registry.import_run(run, settings, name)
    key = ingested.select(
        "select clip_id from marts.mart_birds_training_clips where source = 'audio_folder' and split = 'valid' limit 1"
    )[0]["clip_id"]
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute(
            "insert into ml.prediction (model, model_version, dataset_version, key, output, score) "
            "values (%s, %s, %s, %s, '{}', 0.5)",
            (name, made.version, frozen.version, key),
        )
    labelled = ingested.select("select max(_load) as load from raw.audio_folder_labels")[0]["load"]
    ingested.write_labels("Parus major")  # what the source says changes after the freeze
    ingested.load(of(AUDIO_FOLDER, location=str(ingested.folder)))

    admin = ingested.stack.settings("admin")
    traced = lineage.prediction(name, key, admin)
    json.dumps(traced)
    assert traced["model"]["run_id"] == made.run_id
    assert traced["model"]["dataset"] == frozen.version == traced["dataset"]["version"]
    shard = traced["shard"]
    assert shard["split"] == "valid"
    version = freeze.reader(freeze.show(frozen.version, admin), admin, tmp_path / "cache")
    row = version.table("valid").slice(shard["row"], 1).to_pylist()[0]
    assert (row["clip_id"], shard["file"]) == (key, "valid-00000.parquet")
    assert lineage.recompute(traced, admin, differences) == []
    then = traced["records"][-1]
    now = lineage.example("birds", key, admin)["records"][-1]
    assert (then["load"], then["row"]["scientific_name"]) == (labelled, "Turdus merula")
    assert now["load"] > labelled
    assert now["row"]["scientific_name"] == "Parus major"
    shutil.rmtree(ingested.stack.home / "models", ignore_errors=True)


def test_what_is_not_there_is_told(ingested: Ingested) -> None:
    admin = ingested.stack.settings("admin")
    with pytest.raises(Problem, match="has no row 'nobody'"):
        lineage.example("birds", "nobody", admin)
    with pytest.raises(Problem, match="no prediction for 'nobody'"):
        lineage.prediction("birds-aviary", "nobody", admin)
    with pytest.raises(Problem, match="no task"):
        lineage.example("opera", "nobody", admin)
    key = ingested.select("select clip_id from marts.mart_birds_training_clips limit 1")[0]["clip_id"]
    with pytest.raises(Problem, match="role admin"):
        lineage.example("birds", key, ingested.stack.settings("trainer"))
