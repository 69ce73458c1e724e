"""Frozen versions on real stores: named by content, whole, one snapshot, and what is wrong is named."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import frozen_world as world
import psycopg2
import pyarrow.parquet as pq
import pytest
from support import Stack

from ml import tasks
from ml.datasets import freeze, versions
from ml.datasets.read import Version
from storage import warehouse
from storage.errors import Problem
from storage.objects import Objects
from storage.roles import environment_of


@pytest.fixture(autouse=True)
def published(stack: Stack) -> Iterator[None]:
    with world.marts(stack):
        yield


def stored(stack: Stack) -> dict[str, Any]:
    """Every object of the bucket, with the time it was written."""
    client = Objects(stack.settings("trainer")).client
    found = client.list_objects_v2(Bucket="datasets").get("Contents", [])
    return {item["Key"]: item["LastModified"] for item in found}


def read(stack: Stack, frozen: freeze.Frozen, cache: Path) -> Version:
    return freeze.reader(freeze.show(frozen.version, stack.settings("trainer")), stack.settings("trainer"), cache)


def test_birds_shards_hold_the_very_samples(stack: Stack, tmp_path: Path) -> None:
    rows = world.clips(stack, 150)
    world.publish(stack, "mart_birds_training_clips", rows)
    frozen = freeze.freeze("birds-aviary", stack.settings("trainer"))
    assert (frozen.new, frozen.rows, frozen.name) == (True, 150, "birds-aviary")
    version = read(stack, frozen, tmp_path)
    by_key = {row["clip_id"]: row for row in rows}
    seen = set()
    for split in ("train", "valid", "test"):
        table = version.table(split)
        assert table.schema.names == list(freeze.LAYOUTS["mart_birds_training_clips"].columns)
        for row in table.to_pylist():
            wanted = by_key[row["clip_id"]]
            assert row["pcm"] == world.sound(int(row["clip_id"][-3:])).astype("<i2").tobytes()
            assert (row["species"], row["split"], row["sample_rate"]) == (wanted["species"], split, 16_000)
            seen.add(row["clip_id"])
    assert seen == set(by_key)


def test_manifest_tells_counts_licences_and_where_it_comes_from(stack: Stack) -> None:
    world.publish(stack, "mart_birds_training_clips", world.clips(stack, 20))
    with closing(warehouse.connect(stack.settings("admin"))) as db, db, db.cursor() as sql:
        sql.execute("delete from ops.load where source = 'aviary'")
        for load, state in ((1, "published"), (2, "published"), (3, "rejected")):
            sql.execute(
                "insert into ops.load (source, load, resource, state, pages, rows, versions, quarantined, bytes, "
                "fetched_at) values ('aviary', %s, 'audio', %s, 1, 1, 1, 0, 1, now())",
                (load, state),
            )
        sql.execute("insert into ops.publication values ('birds', 990, 'marts_birds_v990', '{}', '{}', 'dbt-run')")
    try:
        frozen = freeze.freeze("birds-aviary", stack.settings("trainer"))
    finally:
        with closing(warehouse.connect(stack.settings("admin"))) as db, db, db.cursor() as sql:
            sql.execute("delete from ops.load where source = 'aviary'")
            sql.execute("delete from ops.publication where version = 990")
    manifest = world.manifest_in_store(stack, frozen.uri)
    assert manifest["splits"] == {
        "train": {"rows": 12, "groups": 3},
        "valid": {"rows": 4, "groups": 1},
        "test": {"rows": 4, "groups": 1},
    }
    assert manifest["licences"] == {"CC-BY": 10, "CC0": 10}
    assert manifest["simulated"] is True
    assert manifest["key"] == ["clip_id"]
    assert manifest["statistics"]["train"]["seconds"] == 12.0
    assert sum(manifest["statistics"][s]["species"].get("Parus major", 0) for s in manifest["splits"]) == 10
    assert manifest["loads"]["aviary"] == 2
    assert manifest["publication"] == {"version": 990, "schema": "marts_birds_v990", "invocation_id": "dbt-run"}
    assert manifest["overlap"] == {}
    assert freeze.show("birds-aviary", stack.settings("trainer"))["version"] == frozen.version


def test_the_same_rows_give_the_same_version_and_write_nothing(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = world.pairs(1_500)
    world.publish(stack, "mart_translation_training_pairs", rows)
    first = freeze.freeze("translation-en-ru", stack.settings("trainer"))
    before = stored(stack)
    world.publish(stack, "mart_translation_training_pairs", rows[::-1])  # another order, another table
    monkeypatch.setattr(freeze, "SHARD_BYTES", 1)  # other Parquet files
    again = freeze.freeze("translation-en-ru", stack.settings("trainer"))
    assert (first.new, again.new) == (True, False)
    assert again.version == first.version
    assert again.uri == first.uri
    assert stored(stack) == before
    assert len(freeze.versions(stack.settings("trainer"))) == 1


@pytest.mark.parametrize(
    ("column", "value"),
    [("target_text", "другое"), ("split", "valid"), ("licence", None), ("pair_id", "0")],
)
def test_any_change_of_content_gives_another_version(stack: Stack, column: str, value: str | None) -> None:
    rows = world.pairs(1_500)
    world.publish(stack, "mart_translation_training_pairs", rows)
    first = freeze.freeze("translation-en-ru", stack.settings("trainer"))
    rows[0][column] = value
    world.publish(stack, "mart_translation_training_pairs", rows)
    assert freeze.freeze("translation-en-ru", stack.settings("trainer")).version != first.version


def test_a_column_that_no_version_holds_does_not_matter(stack: Stack) -> None:
    rows = world.pieces(60)
    world.publish(stack, "mart_music_training_pieces", rows)
    first = freeze.freeze("music-chorales", stack.settings("trainer"))
    for row in rows:
        row["composer"] = "Johann Sebastian Bach"
    world.publish(stack, "mart_music_training_pieces", rows)
    assert freeze.freeze("music-chorales", stack.settings("trainer")).version == first.version


def test_music_frames_come_back(stack: Stack, tmp_path: Path) -> None:
    rows = world.pieces(60)
    world.publish(stack, "mart_music_training_pieces", rows)
    version = read(stack, freeze.freeze("music-chorales", stack.settings("trainer")), tmp_path)
    found = {row["piece_id"]: row for split in version.manifest["splits"] for row in version.table(split).to_pylist()}
    assert {key: row["frames"] for key, row in found.items()} == {row["piece_id"]: row["frames"] for row in rows}
    assert found["piece-001"]["title"] is None


def test_large_splits_become_several_shards(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freeze, "SHARD_BYTES", 1 << 20)
    world.publish(stack, "mart_birds_training_clips", world.clips(stack, 150))
    frozen = freeze.freeze("birds-aviary", stack.settings("trainer"))
    version = read(stack, frozen, tmp_path)
    assert len(version.shards("train")) > 1
    keys = version.table("train", ["clip_id"])["clip_id"].to_pylist()
    assert len(keys) == 90
    assert keys == sorted(keys)
    assert pq.read_metadata(version.shards("train")[0]).row_group(0).num_rows <= 64
    assert freeze.verify(frozen.version, stack.settings("trainer"))["rows"] == 150


def test_groups_over_splits_are_counted(stack: Stack) -> None:
    rows = world.pairs(1_500)
    for row in rows[:3]:
        row["cluster_key"] = "shared"
    rows[0]["split"], rows[1]["split"], rows[2]["split"] = "train", "train", "valid"
    world.publish(stack, "mart_translation_training_pairs", rows)
    manifest = world.manifest_in_store(stack, freeze.freeze("translation-en-ru", stack.settings("trainer")).uri)
    assert manifest["overlap"] == {"train": {"groups": 1, "rows": 2}, "valid": {"groups": 1, "rows": 1}}


def test_a_condition_narrows_and_is_not_the_tasks_newest(stack: Stack) -> None:
    world.publish(stack, "mart_translation_training_pairs", world.pairs(1_500))
    settings = stack.settings("trainer")
    whole = freeze.freeze("translation-en-ru", settings)
    some = freeze.freeze("translation-en-ru", settings, "source_text like 'Delete 1%' -- begins with one")
    assert 0 < some.rows < whole.rows
    newest = freeze.latest(tasks.task("translation-en-ru"), settings)
    assert newest is not None
    assert newest["version"] == whole.version


def test_two_versions_are_compared_row_by_row(stack: Stack) -> None:
    settings = stack.settings("trainer")
    rows = world.pairs(1_500)
    world.publish(stack, "mart_translation_training_pairs", rows)
    first = freeze.freeze("translation-en-ru", settings)
    by_key = sorted(rows, key=lambda row: row["pair_id"])
    gone, changed, moved = by_key[0], by_key[700], next(row for row in by_key[1:] if row["split"] == "test")
    changed["target_text"] = "другое"
    moved["split"] = "valid"
    new = world.pairs(1_503)[1_500:]
    kept = [row for row in rows if row is not gone]
    world.publish(stack, "mart_translation_training_pairs", [*kept, *new])
    second = freeze.freeze("translation-en-ru", settings)
    found = versions.diff(first.version, second.version, settings)
    assert found["rows"] == {"only_first": 1, "only_second": 3, "changed": 1, "moved": 1, "same": 1_497}
    assert found["keys"] == {
        "only_first": [gone["pair_id"]],
        "only_second": sorted(row["pair_id"] for row in new),
        "changed": [changed["pair_id"]],
        "moved": [moved["pair_id"]],
    }
    assert sum(a for a, _ in found["splits"].values()) == 1_500
    assert sum(b for _, b in found["splits"].values()) == 1_502
    same = versions.diff("translation-en-ru", second.version, settings)  # a name is its newest
    assert same["rows"]["same"] == 1_502 and not same["keys"]


def test_versions_of_two_marts_are_not_compared(stack: Stack) -> None:
    settings = stack.settings("trainer")
    world.publish(stack, "mart_translation_training_pairs", world.pairs(1_500))
    world.publish(stack, "mart_music_training_pieces", world.pieces(60))
    texts, music = (freeze.freeze(name, settings) for name in ("translation-en-ru", "music-chorales"))
    with pytest.raises(Problem, match="Compare two versions of one mart"):
        versions.diff(texts.version, music.version, settings)


def test_the_cache_holds_no_more_than_its_limit_and_what_was_read_last(stack: Stack, tmp_path: Path) -> None:
    settings = stack.settings("trainer")
    made = []
    for count in (1_500, 1_600, 1_700):
        world.publish(stack, "mart_translation_training_pairs", world.pairs(count))
        made.append(freeze.show(freeze.freeze("translation-en-ru", settings).version, settings))
    sizes = [sum(shard["bytes"] for shard in one["shards"]) for one in made]
    access = environment_of("trainer") | {"LYREBIRD_DATASET_CACHE_GB": str((sizes[0] + sizes[1] + 1_000) / 1e9)}

    def read_all(one: dict[str, Any]) -> None:
        version = Version(one["uri"], tmp_path, access)
        for split in version.manifest["splits"]:
            version.table(split)
        time.sleep(0.02)  # clocks of file systems are coarse

    def kept() -> set[str]:
        return {path.parent.name[-16:] for path in tmp_path.glob("*/*.parquet")}

    for one in (made[0], made[1], made[0]):
        read_all(one)
    assert kept() == {made[0]["version"], made[1]["version"]}
    read_all(made[2])
    assert made[2]["version"] in kept()
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*.parquet")) <= sizes[0] + sizes[1] + 1_000
    assert len(list(tmp_path.glob(f"*{made[2]['version']}/*.parquet"))) == len(made[2]["shards"])


def test_a_whole_mart_can_be_frozen(stack: Stack) -> None:
    world.publish(stack, "mart_translation_training_pairs", world.pairs(30) + world.pairs(30, "deu"))
    frozen = freeze.freeze("mart_translation_training_pairs", stack.settings("trainer"))
    assert (frozen.rows, frozen.name) == (60, "translation-training-pairs")


def test_a_task_takes_over_a_version_of_exactly_its_rows(stack: Stack) -> None:
    settings = stack.settings("trainer")
    world.publish(stack, "mart_music_training_pieces", world.pieces(60))
    mart = freeze.freeze("mart_music_training_pieces", settings)
    with pytest.raises(Problem, match="nothing is frozen for music-chorales"):
        freeze.newest("music-chorales", settings)
    narrowed = freeze.freeze("music-chorales", settings, "n_frames > 0")
    assert (narrowed.version, narrowed.new, narrowed.name) == (mart.version, False, "music-training-pieces")
    own = freeze.freeze("music-chorales", settings)
    assert (own.version, own.new, own.name, own.uri) == (mart.version, False, "music-chorales", mart.uri)
    assert freeze.newest("music-chorales", settings)["version"] == mart.version
    assert world.manifest_in_store(stack, own.uri)["name"] == "music-chorales"
    assert freeze.freeze("mart_music_training_pieces", settings).name == "music-chorales"
    assert freeze.verify(mart.version, settings)["intact"]


@pytest.mark.parametrize(
    ("what", "where", "words"),
    [
        ("translation-en-ru", "", "no training rows"),
        ("translation-en-ru", "no_such_column = 1", "no_such_column"),
        ("translation-en-ru", "true); drop table marts.dim_corpus; select (1", "cannot be read"),
        ("mart_of_nothing", "", "no training mart"),
        ("opera-singing", "", "no task"),
    ],
)
def test_what_cannot_be_frozen_is_a_sentence(stack: Stack, what: str, where: str, words: str) -> None:
    with pytest.raises(Problem, match=words):
        freeze.freeze(what, stack.settings("trainer"), where)
    assert stored(stack) == {}
    with closing(warehouse.connect(stack.settings("trainer"))) as db, db, db.cursor() as sql:
        sql.execute("select to_regclass('marts.dim_corpus') is not null")
        assert warehouse.first(sql)[0]


def test_no_training_split_and_a_missing_clip_object_are_named(stack: Stack) -> None:
    rows = world.clips(stack, 10)
    world.publish(stack, "mart_birds_training_clips", [row for row in rows if row["split"] != "train"])
    with pytest.raises(Problem, match="birds-aviary has no training rows"):
        freeze.freeze("birds-aviary", stack.settings("trainer"))
    rows[4]["clip_object"] = "clips/none.flac"
    world.publish(stack, "mart_birds_training_clips", rows)
    with pytest.raises(Problem, match="clip-004"):
        freeze.freeze("birds-aviary", stack.settings("trainer"))
    assert stored(stack) == {}


def test_a_mart_that_is_not_published_is_named(stack: Stack) -> None:
    with closing(warehouse.connect(stack.settings("transformer"))) as db, db, db.cursor() as sql:
        sql.execute("drop table marts.mart_music_training_pieces")
    with pytest.raises(Problem, match="not published"):
        freeze.freeze("music-chorales", stack.settings("trainer"))
    assert tasks.trainable("music", stack.settings("trainer")) == []


def test_damage_is_named_and_freezing_again_mends_it(stack: Stack) -> None:
    settings, objects = stack.settings("trainer"), Objects(stack.settings("trainer"))
    world.publish(stack, "mart_music_training_pieces", world.pieces(60))
    frozen = freeze.freeze("music-chorales", settings)
    assert freeze.verify(frozen.version, settings) == {
        "version": frozen.version,
        "shards": 3,
        "rows": 60,
        "intact": True,
    }
    key = next(key for key in stored(stack) if key.endswith("valid-00000.parquet"))
    body = bytearray(objects.get("datasets", key))
    body[len(body) // 2] ^= 1
    objects.put("datasets", key, bytes(body))
    with pytest.raises(Problem, match=r"valid-00000\.parquet"):
        freeze.verify(frozen.version, settings)
    mended = freeze.freeze("music-chorales", settings)
    assert (mended.version, mended.new) == (frozen.version, False)
    assert freeze.verify(frozen.version, settings)["intact"]
    objects.delete("datasets", key)
    with pytest.raises(Problem, match=r"valid-00000\.parquet"):
        freeze.verify(frozen.version, settings)


def test_killed_before_it_was_recorded_the_version_is_taken_over(stack: Stack) -> None:
    settings = stack.settings("trainer")
    world.publish(stack, "mart_music_training_pieces", world.pieces(60))
    frozen = freeze.freeze("music-chorales", settings)
    before = stored(stack)
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute("delete from ml.dataset")
    again = freeze.freeze("music-chorales", settings)
    assert (again.version, again.new) == (frozen.version, True)
    assert stored(stack) == before
    assert freeze.verify(again.version, settings)["intact"]


def test_the_snapshot_is_taken_after_the_publish_lock(stack: Stack) -> None:
    """A publication that is under way when the freeze begins is waited for and then seen whole."""
    settings = stack.settings("trainer")
    world.publish(stack, "mart_music_training_pieces", world.pieces(60))
    result: list[freeze.Frozen] = []
    with closing(warehouse.connect(stack.settings("transformer"))) as publishing:
        with publishing.cursor() as sql:
            sql.execute("select pg_advisory_xact_lock(%s)", (warehouse.PUBLISH_LOCK,))
        thread = threading.Thread(target=lambda: result.append(freeze.freeze("music-chorales", settings)))
        thread.start()
        try:
            deadline = time.monotonic() + 20
            while not _waits(stack):
                assert time.monotonic() < deadline, "the freeze does not wait for the publish lock"
                time.sleep(0.05)
            with publishing.cursor() as sql:  # the switch: another table takes the name
                sql.execute("create table marts.next (like marts.mart_music_training_pieces)")
                sql.execute(
                    "insert into marts.next select * from marts.mart_music_training_pieces where piece_id < 'piece-055'"
                )
                sql.execute("drop table marts.mart_music_training_pieces")
                sql.execute("alter table marts.next rename to mart_music_training_pieces")
        finally:
            publishing.commit()
            thread.join(60)
    assert [frozen.rows for frozen in result] == [55]


def _waits(stack: Stack) -> bool:
    with closing(warehouse.connect(stack.settings("admin"))) as db, db, db.cursor() as sql:
        sql.execute("select count(*) from pg_locks where locktype = 'advisory' and not granted")
        return bool(warehouse.first(sql)[0])


def test_the_freeze_only_reads_the_warehouse(stack: Stack) -> None:
    """Not even a condition that calls a writing function changes anything."""
    world.publish(stack, "mart_music_training_pieces", world.pieces(60))
    with pytest.raises(Problem, match="cannot be read"):
        freeze.freeze("music-chorales", stack.settings("trainer"), "nextval('ops.audit_id_seq') > 0")
    with (
        closing(warehouse.connect(stack.settings("trainer"))) as db,
        db.cursor() as sql,
        pytest.raises(psycopg2.errors.InsufficientPrivilege),
    ):
        sql.execute("delete from marts.mart_music_training_pieces")


def test_trainable_tasks_follow_the_marts(stack: Stack) -> None:
    settings = stack.settings("trainer")
    assert [tasks.trainable(family, settings) for family in tasks.FAMILIES] == [[], [], []]
    world.publish(stack, "mart_birds_training_clips", world.clips(stack, 60, "garden") + world.clips(stack, 5, "few"))
    assert [one.name for one in tasks.trainable("birds", settings)] == ["birds-garden"]
    world.publish(stack, "mart_music_training_pieces", world.pieces(100))
    assert [one.name for one in tasks.trainable("music", settings)] == ["music-chorales"]
    rows = world.pairs(2_000) + world.pairs(2_000, "deu") + world.pairs(1_700, "zho") + world.pairs(500, "fra")
    world.publish(stack, "mart_translation_training_pairs", rows)
    assert [one.name for one in tasks.trainable("translation", settings)] == ["translation-en-ru"]
    corpus = {"corpus_id": "1", "source": "parallel_files", "name": "django"}
    world.publish(stack, "dim_corpus", [corpus])
    names = [one.name for one in tasks.trainable("translation", settings)]
    assert names == ["translation-en-ru", "translation-en-de", "translation-en-zh"]  # too little French
    world.publish(stack, "mart_translation_training_pairs", [row for row in rows if row["split"] == "train"])
    assert tasks.trainable("translation", settings) == []
