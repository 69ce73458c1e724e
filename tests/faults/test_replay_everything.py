"""Everything but the object store is lost: PostgreSQL's folder, the document store's, both Redis servers'.

What the object store has (landing with its journal and verdicts, and the frozen versions) gives all of it back, row for
row: raw, core, history, the split of each leakage group, and marts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tomli_w
from support import Stack
from upstreams import maestro

from infra import transforming
from infra.embedded import stack as embedded
from ingestion import catalogue, pipeline
from ml.datasets import freeze, restore
from storage import warehouse
from storage.documents import Documents
from storage.gates import audit
from storage.gates.audit import Verdict
from storage.settings import options_file

SOURCES = [
    catalogue.source(name) for name in ("aviary", "audio_folder", "clips", "parallel_files", "midi_archive", "notes")
]
DOMAINS = ("birds", "text", "music")
FILES = 12
QUIET: dict[str, Any] = {"say": lambda text: None}
# What holds no moment at which something happened to run, and nothing but what sources gave and people were told.
OPS = {
    "load": "source, load, resource, lane, slice, state, pages, rows, versions, quarantined, bytes, fetched_at, "
    "reason, run_id, cursor",
    "landing": "*",
    "cursor": "source, resource, lane, cursor, load",
    "quarantine": "source, resource, load, position, payload, reason, landing",
}


@pytest.fixture
def place(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of recordings, of parallel text and of tunes, and audits that take no time."""
    monkeypatch.setattr(audit, "run", lambda *arguments, **options: Verdict(True, "none", ""))
    birds, text, tunes = tmp_path / "birds", tmp_path / "multi30k", tmp_path / "tunes"
    (birds / "clips").mkdir(parents=True)
    text.mkdir()
    tunes.mkdir()
    for number in range(FILES):
        samples = np.random.default_rng(number).normal(0, 0.1, 22_050 * 2)
        soundfile.write(birds / "clips" / f"{number}.wav", samples, 22_050, subtype="PCM_16")
    options = {
        "aviary": {"recordings": 12},
        "audio_folder": {"location": str(birds), "quarantine_share": 0.5},
        "parallel_files": {"location": str(tmp_path)},
        "midi_archive": {"location": str(tunes), "corpus": "tunes", "licence": "CC0"},
    }
    options_file().write_text(tomli_w.dumps({"sources": options}))
    yield tmp_path
    stack.reset()


def write(place: Path, generation: int) -> None:
    """What the sources hold. Later a label is corrected, a line is changed, lines go, and splits are published."""
    lines = ["file,scientific_name,recordist,split"]
    for number in range(FILES):
        name = "Strix aluco" if generation == 2 and number == 0 else "Tyto alba"
        lines.append(f"{number}.wav,{name},recordist {number % 4},{'test' if generation == 2 else ''}")
    lines.append(",Tyto alba,nobody,")  # a label of no file goes to quarantine
    (place / "birds" / "clips.csv").write_text("\n".join(lines) + "\n")
    for number in range(generation, 8):  # a tune goes, and one is another
        (place / "tunes" / f"{number}.mid").write_bytes(maestro.tune(number if number < 7 else 10 * generation))
    if generation == 2:
        (place / "tunes" / "1.mid").unlink()
    for language, words in (("en", "A dog runs over field number"), ("de", "Ein Hund läuft über Feld Nummer")):
        for part in ("train", "val"):
            rest = [f"{words} {part} {n}." for n in range(20 if generation == 1 else 18)]
            rest[3] += "" if generation == 1 else " !"
            (place / "multi30k" / f"{part}.{language}").write_text("\n".join(rest) + "\n", "utf-8")


def ingest(stack: Stack) -> None:
    loader = stack.settings("loader")
    for source in SOURCES:
        pipeline.ingest(source, loader, **QUIET)
        pipeline.judge(source, loader, **QUIET)


def transform(stack: Stack, *steps: str, domains: Sequence[str] = DOMAINS) -> None:
    for domain in domains:
        for step in steps:
            transforming.run(domain, step, stack.settings("transformer"), retry=False, **QUIET)


def rows(stack: Stack, query: str) -> list[tuple[Any, ...]]:
    with closing(warehouse.connect(stack.settings("admin"))) as db, db, db.cursor() as sql:
        sql.execute(query)
        return sql.fetchall()


def splits(stack: Stack) -> list[tuple[Any, ...]]:
    return rows(stack, "select domain, group_key, split, origin from ml.split_group order by 1, 2")


def everything(stack: Stack) -> dict[str, list[Any]]:
    """The rows of every table: what was loaded, what was built of it, and what readers see."""
    names = rows(
        stack,
        "select n.nspname || '.' || c.relname from pg_class as c join pg_namespace as n on n.oid = c.relnamespace "
        "where n.nspname in ('raw', 'staging', 'core', 'marts') and c.relkind in ('r', 'v') order by 1",
    )
    queries = {name: f"select to_jsonb(t)::text from {name} as t order by 1" for (name,) in names}
    queries |= {
        f"ops.{table}": f"select to_jsonb(t)::text from (select {columns} from ops.{table}) as t order by 1"
        for table, columns in OPS.items()
    }
    queries["ml.dataset"] = "select version, name, mart, where_clause, rows, uri, manifest from ml.dataset order by 1"
    found: dict[str, list[Any]] = {name: rows(stack, query) for name, query in queries.items()}
    database = Documents(stack.settings("admin")).database
    for name in sorted(database.list_collection_names()):
        found[f"documents.{name}"] = sorted(json.dumps(one, default=str) for one in database[name].find({}))
    return {name: of_it for name, of_it in found.items() if of_it}


def lose(stack: Stack) -> None:
    """The folders of every server but the object store's, and everything on this machine that was made of them."""
    embedded.down(stack.home)
    for name in ("postgres", "documents", "cache", "stream"):
        shutil.rmtree(stack.home / "data" / name)
    for name in ("dbt", "runs", "models", "gx"):
        shutil.rmtree(stack.home / name, ignore_errors=True)
    embedded.up(stack.home, only=stack.started)


def test_all_comes_back_from_the_object_store(stack: Stack, place: Path) -> None:
    loader = stack.settings("loader")
    pipeline.make_tables(catalogue.sources(), loader)
    for generation in (1, 2):
        write(place, generation)
        ingest(stack)
        domains = DOMAINS[: generation + 1]  # of music the versions lie in raw, and building it twice takes long
        transform(stack, "core", "splits", "marts", "publish", domains=domains)
        if generation == 1:  # groups got a split before anybody published one for them
            for mart in ("mart_birds_training_clips", "mart_translation_training_pairs"):
                freeze.freeze(mart, stack.settings("trainer"))
    before, assigned = everything(stack), splits(stack)
    wanted = {"raw.aviary_recordings", "raw.clips", "core.recording", "marts.mart_birds_training_clips", "ml.dataset"}
    wanted |= {"ops.quarantine", "documents.aviary_recordings", "marts.fct_sentence_pairs", "raw.notes"}
    assert wanted | {"core.piece", "marts.mart_music_training_pieces"} <= set(before)
    assert any("true" in json.dumps(json.loads(row[0])["_deleted"]) for row in before["raw.parallel_files_lines"])

    lose(stack)
    shutil.rmtree(place / "birds")  # nothing is asked of the sources
    shutil.rmtree(place / "multi30k")
    shutil.rmtree(place / "tunes")
    pipeline.make_tables(catalogue.sources(), loader)
    assert rows(stack, "select count(*) from ops.load") == [(0,)]
    for source in SOURCES:
        pipeline.replay(source, loader, **QUIET)
    transform(stack, "core", "splits")
    assert splits(stack) != assigned  # the sources publish other splits by now than those that models have learnt by
    done = restore.restore(stack.settings("admin"))
    assert done.versions == 2 and done.groups > 0
    assert splits(stack) == assigned
    assert restore.restore(stack.settings("admin")) == restore.Restored()
    transform(stack, "marts", "publish")
    after = everything(stack)
    assert after.keys() == before.keys()
    assert {name: (len(before[name]), len(after[name])) for name in before if before[name] != after[name]} == {}
