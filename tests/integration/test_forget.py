"""Withdrawal, after a whole chain: what is withdrawn is in no store any more, stays away, and nothing else has changed.

The scan looks for the name of a recordist, the keys of the recordings, and their very bytes (of files and clips), in
every object of landing, derived and docs, in every document, and in every row of every schema.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from infra import sentences, training, transforming, withdrawing
from ingestion import catalogue, pipeline
from ingestion.sources import aviary, aviary_synth
from ml.datasets import freeze, restore
from storage import roles, warehouse
from storage.cache import Cache
from storage.documents import Documents
from storage.errors import Problem
from storage.objects import Objects
from storage.settings import options_file

if TYPE_CHECKING:
    from support import Stack

AVIARY, CLIPS = catalogue.source("aviary"), catalogue.source("clips")
QUIET: dict[str, Any] = {"say": lambda text: None}
WHO = "Sim Ismene"  # a recordist of the split `valid`
TASK = "birds-aviary"


def offer(recordings: int) -> None:
    options_file().write_text(f"[sources.aviary]\nrecordings = {recordings}\n")


def ingest(stack: Stack) -> dict[int, dict[str, Any]]:
    """Load what is new of the aviary, and cut its clips. The loads of the aviary."""
    loader = stack.settings("loader")
    report = pipeline.ingest(AVIARY, loader, **QUIET)
    ingest_clips(stack)
    return report.loads


def ingest_clips(stack: Stack) -> None:
    loader = stack.settings("loader")
    for source in (AVIARY, CLIPS):
        if source is CLIPS:
            pipeline.ingest(source, loader, **QUIET)
        assert {state for state, _ in pipeline.judge(source, loader, **QUIET).values()} <= {"published"}


def transform(stack: Stack) -> int | None:
    settings = stack.settings("transformer")
    published: int | None = transforming.run("birds", "", settings, retry=False, **QUIET)["published"]
    return published


def forget(stack: Stack, who: str, dry_run: bool = False) -> dict[str, Any]:
    return withdrawing.forget(AVIARY, [], [f"rec={who}"], [], stack.settings("admin"), dry_run=dry_run, **QUIET)


def select(stack: Stack, query: str, *values: Any) -> list[tuple[Any, ...]]:
    with closing(warehouse.connect(stack.settings("admin"))) as db, db, db.cursor() as sql:
        sql.execute(query, values or None)
        return sql.fetchall()


def tables(stack: Stack) -> list[str]:
    """Every table and view of ours."""
    found = select(
        stack,
        "select format('%I.%I', table_schema, table_name) from information_schema.tables "
        "where table_schema not in ('pg_catalog', 'information_schema') order by 1",
    )
    return [name for (name,) in found]


def traces(stack: Stack, words: set[str], bodies: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
    """Places where one of the words is written, or a body with one of these SHA-256 lies."""
    found, objects = [], Objects(stack.settings("admin"))
    sought = [word.encode() for word in words]
    for bucket in ("landing", "derived", "docs"):
        for key in objects.list(bucket):
            body = objects.get(bucket, key)
            if any(word in key.encode() + body for word in sought) or hashlib.sha256(body).hexdigest() in bodies:
                found.append(f"{bucket}/{key}")
    database = Documents(stack.settings("admin")).database
    for name in database.list_collection_names():
        for one in database[name].find({}):
            if any(word in json.dumps(one, ensure_ascii=False, default=str) for word in words):
                found.append(f"documents {name} {one['_id']}")
    for table in tables(stack):
        for (row,) in select(stack, f"select t::text from {table} as t"):
            if any(word in row for word in words):
                found.append(f"{table} {row[:200]}")
    return found


def recordings_of(stack: Stack, recordist: str) -> dict[str, str]:
    """Key -> SHA-256 of the recording, as raw has them."""
    return dict(
        select(
            stack,
            "select a._key, a.sha256 from raw.aviary_audio as a join raw.aviary_recordings as r using (_key) "
            "where r.doc ->> 'rec' = %s order by 1",
            recordist,
        )
    )


def state(stack: Stack, without: set[str]) -> dict[str, Any]:
    """What there is of the other recordings: rows, documents, pages, clips, marts, splits."""
    others = list(without)
    found = {
        "recordings": select(stack, "select * from raw.aviary_recordings where _key <> all(%s) order by _key", others),
        "audio": select(stack, "select * from raw.aviary_audio where _key <> all(%s) order by _key", others),
        "clips": select(
            stack, "select * from raw.clips where split_part(_key, ':', 2) <> all(%s) order by _key", others
        ),
        "mart": select(
            stack,
            "select to_jsonb(m) from marts.mart_birds_training_clips as m "
            "where split_part(clip_id, ':', 2) <> all(%s) order by clip_id",
            others,
        ),
        "splits": select(stack, "select domain, group_key, split, origin from ml.split_group order by 1, 2"),
    }
    objects = Objects(stack.settings("admin"))
    shas = {sha256 for (sha256,) in select(stack, "select sha256 from raw.aviary_audio where _key <> all(%s)", others)}
    found["pages"] = [key for key in objects.list("landing", "aviary/audio/") if key.rsplit("/", 1)[1] in shas]
    documents = Documents(stack.settings("admin")).database["aviary_recordings"].find({"key": {"$nin": others}})
    found["documents"] = sorted((one["_id"], json.dumps(one["doc"])) for one in documents)
    return found


@pytest.fixture
def chain(stack: Stack) -> Iterator[Stack]:
    """Simulated birds from the source to a frozen version, with a model and predictions on it."""
    offer(36)
    pipeline.make_tables(catalogue.sources(), stack.settings("loader"))
    ingest(stack)
    assert transform(stack) == 1
    frozen = freeze.freeze(TASK, stack.settings("trainer"))
    with closing(warehouse.connect(stack.settings("trainer"))) as db, db, db.cursor() as sql:
        sql.execute(
            "insert into ml.score (model, model_version, dataset_version, split, metric, value, direction) "
            "values (%s, 3, %s, 'valid', 'macro_f1', 0.5, 'more')",
            (TASK, frozen.version),
        )
        sql.execute(
            "insert into ml.prediction (model, model_version, dataset_version, key, output) "
            "select %s, 3, %s, clip_id, '{}' from marts.mart_birds_training_clips where split <> 'train' "
            "returning key",
            (TASK, frozen.version),
        )
        predicted = [key for (key,) in sql.fetchall()]
    Cache(stack.settings("trainer")).put_many({f"prediction:{TASK}:{key}": {"key": key} for key in predicted})
    yield stack
    stack.reset()


def check_versions(stack: Stack, old: str, clips: set[str]) -> None:
    """The version that held the clips is marked and refused; a new one is without them."""
    settings = stack.settings("trainer")
    listed = json.loads(roles.run("trainer", ["dataset", "list", "--json"], **QUIET))
    assert [(one["version"], one["withdrawn"]) for one in listed] == [(old, len(clips))]
    assert freeze.show(TASK, settings)["withdrawn"].popitem()[1]["rows"] == len(clips)
    with pytest.raises(
        Problem, match=rf"{len(clips)} rows of the dataset version {old} .*withdrawn\. Freeze a new one"
    ):
        training.train(TASK, "", "smoke", [], settings, QUIET["say"])
    new = freeze.freeze(TASK, settings)
    assert new.new
    assert "withdrawn" not in freeze.show(TASK, settings)
    keys = set(freeze.reader(freeze.show(TASK, settings), settings).column("clip_id"))
    assert keys == set(freeze.reader(freeze.show(old, settings), settings).column("clip_id")) - clips

    # the marks outlive the warehouse, and the split of who was withdrawn does not come back with the other groups
    splits = "select group_key, split from ml.split_group order by 1"
    groups = select(stack, splits)
    with closing(warehouse.connect(stack.settings("admin"))) as db, db, db.cursor() as sql:
        sql.execute("update ml.dataset set withdrawn = null; delete from ml.split_group")
    restore.restore(stack.settings("admin"))
    assert freeze.show(old, settings)["withdrawn"].popitem()[1]["rows"] == len(clips)
    assert "withdrawn" not in freeze.show(new.version, settings)
    assert select(stack, splits) == groups


def check_offers(chain: Stack, words: set[str], bodies: set[str]) -> None:
    """The source offers new recordings of theirs, the files first: when it says whose they are, somebody has to act."""
    offer(72)
    new = {aviary.recording_id(n) for n in range(36, 72) if aviary_synth.plan(7, n).recordist.name == WHO}
    pipeline.ingest(AVIARY, chain.settings("loader"), resources=["audio"], **QUIET)
    ingest_clips(chain)
    bodies |= {
        sha256 for (sha256,) in select(chain, "select sha256 from raw.aviary_audio where _key = any(%s)", list(new))
    }
    assert len(traces(chain, new, bodies)) > 2 * len(new) > 4
    for _ in range(2):
        with pytest.raises(Problem, match=r"turn out to be of somebody who was withdrawn.*forget aviary --again"):
            ingest(chain)
    assert select(chain, "select sum(forgotten) from ops.load") == [(len(new),)]
    roles.run("admin", ["forget", "aviary", "--again"], **QUIET)
    ingest(chain)
    assert traces(chain, words | new, bodies) == []
    assert len(recordings_of(chain, "Sim Kent")) > 2
    assert select(chain, "select count(*), max(forgotten) from ops.load where forgotten > 0") == [(0, None)]


def test_a_recordist_is_withdrawn_from_everywhere_and_stays_away(chain: Stack) -> None:
    theirs = recordings_of(chain, WHO)
    assert len(theirs) > 2
    clips = select(
        chain, "select _key, clip_object from raw.clips where recording_key = any(%s) order by 1", list(theirs)
    )
    bodies = {*theirs.values(), *(key.rsplit("/", 1)[1].removesuffix(".flac") for _, key in clips)}
    words = {WHO, *theirs}
    assert len(traces(chain, words, bodies)) > 40  # the scan sees what is there
    before, objects = state(chain, set(theirs)), Objects(chain.settings("admin"))
    everything = [key for bucket in ("landing", "derived") for key in objects.list(bucket)]

    would = forget(chain, WHO, dry_run=True)
    assert [key for bucket in ("landing", "derived") for key in objects.list(bucket)] == everything
    command = ["forget", "aviary", "--where", f"rec={WHO}", "--dry-run", "--json"]
    assert json.loads(roles.run("admin", command, **QUIET).splitlines()[-1]) == would
    with pytest.raises(Problem, match=r"aviary has no record 'SIM99999'\. Give a key as `_key`"):
        roles.run("admin", ["forget", "aviary", "--key", "SIM99999"], **QUIET)
    found = forget(chain, WHO)
    assert {**would, "dry_run": False} == found
    assert sorted(found["records"]) == ["aviary_audio", "aviary_recordings", "clips"]
    assert found["records"]["aviary_recordings"] == list(theirs)
    assert found["objects"] == len(theirs) + 1  # the page that names them all; what remains of it is kept apart
    assert found["files"] == len(clips) == found["predictions"]
    [version] = found["versions"]
    assert (version["name"], version["rows"]) == (TASK, len(clips))
    assert found["models"] == [{"model": TASK, "version": 3, "dataset": version["version"]}]
    assert f"{TASK} version 3 was trained on" in sentences.forgotten(found)

    with pytest.raises(Problem, match=rf"still shows {len(clips)} rows of what was withdrawn\. Build it anew with"):
        freeze.freeze(TASK, chain.settings("trainer"))
    assert transform(chain) == 2
    assert traces(chain, words, bodies) == []
    after = state(chain, set(theirs))
    group = ("birds", f"aviary/recordist/{WHO.replace(' ', '').lower()}", "valid", "published")
    assert group in before["splits"]
    before["splits"].remove(group)
    assert after == before
    cache = Cache(chain.settings("trainer"))
    assert [cache.get(f"prediction:{TASK}:{key}") for key, _ in clips] == [None] * len(clips)

    check_versions(chain, version["version"], {key for key, _ in clips})

    # a replay gives the rows as they are, and none of theirs
    for source in (AVIARY, CLIPS):
        pipeline.replay(source, chain.settings("loader"), **QUIET)
    assert transform(chain) is None
    assert state(chain, set()) == after
    assert traces(chain, words, bodies) == []

    check_offers(chain, words, bodies)
