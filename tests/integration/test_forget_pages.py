"""Withdrawal from pages that hold other records too: these stay, bit for bit, also when all is loaded again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING, Any, Literal

import frozen_world
import numpy as np
import pyarrow as pa
import pytest
import soundfile

from ingestion import catalogue, forgetting, journal, pipeline
from ingestion.contract import Bad, BadPage, Context, Gone, Landed, Page, Resource, Source, describe
from ml.datasets import freeze, withdrawal
from storage import warehouse
from storage.documents import Documents
from storage.errors import Problem
from storage.gates import audit
from storage.gates.audit import Verdict
from storage.objects import Objects
from storage.settings import home, options_file

if TYPE_CHECKING:
    from pathlib import Path

    from support import Stack

QUIET: dict[str, Any] = {"say": lambda text: None}
SCHEMA = pa.schema(
    [
        describe("id", pa.string(), "", required=True),
        describe("who", pa.string(), ""),
        describe("value", pa.float64(), ""),
        describe("more", pa.list_(pa.int64()), ""),
    ]
)
Kind = Literal["rows", "documents", "batches"]
KINDS: tuple[Kind, ...] = ("rows", "documents", "batches")


class Upstream:
    """A source of one resource whose pages a test writes: lists of records, broken text, or keys that went."""

    def __init__(self, name: str, kind: Kind) -> None:
        self.pages: list[Any] = []
        schema = pa.schema(list(SCHEMA)[:3]) if kind == "batches" else SCHEMA
        store: Any = "documents" if kind == "documents" else "rows"
        parse = self.parse_batches if kind == "batches" else self.parse
        things = Resource("things", schema, ("id",), self.fetch, parse, store=store)
        self.source = Source(name, name, "text", "", "none", "@daily", (things,), quarantine_share=1.0)
        self.table = f"raw.{name}_things"

    def fetch(self, context: Context) -> Iterator[Page | Gone]:
        for number in range(context.cursor.get("next", 0), len(self.pages)):
            page, cursor = self.pages[number], {"next": number + 1}
            if isinstance(page, Gone):
                yield Gone(page.key, cursor)
            else:
                body = page if isinstance(page, bytes) else json.dumps(page).encode()
                yield Page(f"page {number}", body, cursor, meta={"number": number})

    @staticmethod
    def parse(page: Landed) -> Iterator[dict[str, Any] | Bad]:
        try:
            for record in json.loads(page.read()):
                yield Bad(record, "said to be bad") if "bad" in record else record
        except ValueError as error:
            raise BadPage(f"no JSON: {error}") from error

    @classmethod
    def parse_batches(cls, page: Landed) -> Iterator[Bad | pa.RecordBatch]:
        found = list(cls.parse(page))
        yield from (one for one in found if isinstance(one, Bad))
        good = [
            {"id": one["id"], "who": one.get("who"), "value": one["value"]} for one in found if isinstance(one, dict)
        ]
        yield pa.RecordBatch.from_pylist(good, schema=pa.schema(list(SCHEMA)[:3]))


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Audits learn nothing here: that takes seconds, and has tests of its own."""
    monkeypatch.setattr(audit, "run", lambda *arguments, **options: Verdict(True, "none", ""))


def cycle(stack: Stack, source: Source) -> dict[int, dict[str, Any]]:
    report = pipeline.ingest(source, stack.settings("loader"), **QUIET)
    pipeline.judge(source, stack.settings("loader"), **QUIET)
    return report.loads


def forget(stack: Stack, source: Source, *keys: str, **more: Any) -> dict[str, Any]:
    return forgetting.forget(source, stack.settings("admin"), keys, **QUIET, **more).summary


def rows(stack: Stack, query: str, *values: Any) -> list[tuple[Any, ...]]:
    with closing(warehouse.connect(stack.settings("admin"))) as db, db, db.cursor() as sql:
        sql.execute(query, values or None)
        return sql.fetchall()


def whole(stack: Stack, upstream: Upstream, without: Sequence[str] = ()) -> dict[str, Any]:
    """What the stores have of other records than these."""
    name, others = upstream.source.name, list(without)
    documents = Documents(stack.settings("admin")).database[f"{name}_things"].find({"key": {"$nin": others}})
    return {
        "rows": rows(
            stack, f"select to_jsonb(t)::text from {upstream.table} as t where _key <> all(%s) order by 1", others
        ),
        "documents": sorted((one["_id"], one["hash"], json.dumps(one["doc"])) for one in documents),
    }


def written(stack: Stack, source: str, word: str) -> list[str]:
    """Objects of landing in which a word is written."""
    objects = Objects(stack.settings("admin"))
    keys = objects.list("landing", f"{source}/")
    return [key for key in keys if word.encode() in key.encode() + objects.get("landing", key)]


def record(name: str, who: str = "somebody", value: float = 1 / 3) -> dict[str, Any]:
    return {"id": name, "who": who, "value": value, "more": [1, 2**53 + 1]}


def filled(stack: Stack, name: str, kind: Kind) -> Upstream:
    """Three pages: `mine` is on the first and, as it was, on the last, which has further versions of others."""
    upstream = Upstream(name, kind)
    bad = {"id": "odd", "bad": "mine was here"}
    upstream.pages = [[record("a"), record("mine", "me"), record("b", "me"), bad, record("c")], [record("d"), bad]]
    cycle(stack, upstream.source)
    upstream.pages += [[record("a", value=2.5), record("mine", "me"), record("e")], Gone(("d",), {})]
    cycle(stack, upstream.source)
    return upstream


@pytest.mark.parametrize("kind", KINDS)
def test_other_records_of_the_pages_stay_as_they_are(stack: Stack, kind: Kind) -> None:
    upstream = filled(stack, f"shared_{kind}", kind)
    name, source = upstream.source.name, upstream.source
    before = whole(stack, upstream, ["mine"])
    assert len(before["rows"]) == 7
    assert rows(stack, f"select count(*) from {upstream.table} where _key = 'mine'") == [(1,)]  # as it was: one row
    assert len(written(stack, name, "mine")) == 3  # the page of the bad record names it too

    found = forget(stack, source, "mine")
    assert (found["records"], found["pages"], found["objects"]) == ({f"{name}_things": ["mine"]}, 2, 2)
    assert whole(stack, upstream) == before
    assert [key.split("/")[1] for key in written(stack, name, "mine")] == ["things"]
    held = rows(stack, "select load, payload from ops.quarantine where source = %s", name)
    assert len(held) == 1 and "mine" in held[0][1]  # of the page that had only this and d
    landings = rows(
        stack, "select key, name, meta::text from ops.landing where source = %s order by load, position", name
    )
    assert [(key.split("/")[2], said, meta) for key, said, meta in landings[::2]] == [("_erased", "", "{}")] * 2

    pipeline.replay(source, stack.settings("loader"), **QUIET)
    assert whole(stack, upstream) == before
    assert cycle(stack, source) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_of_a_page_can_be_withdrawn_later(stack: Stack, kind: Kind) -> None:
    upstream = filled(stack, f"twice_{kind}", kind)
    forget(stack, upstream.source, "mine")
    before = whole(stack, upstream, ["a", "d"])
    found = forget(stack, upstream.source, "a", "d")  # a has two versions; d went before, and its deletion names it
    assert found["pages"] == 4
    assert whole(stack, upstream) == before
    pipeline.replay(upstream.source, stack.settings("loader"), **QUIET)
    assert whole(stack, upstream) == before
    _, entries = journal.read_segment(Objects(stack.settings("admin")), upstream.source.name, 2)
    assert [(page.erased is not None, page.gone) for page in entries] == [(True, None), (True, None)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_that_offers_it_again_finds_it_refused(stack: Stack, kind: Kind) -> None:
    upstream = filled(stack, f"again_{kind}", kind)
    name = upstream.source.name
    forget(stack, upstream.source, where=[("who", "me")])
    before = whole(stack, upstream)
    upstream.pages.append([record("b", value=9.0), record("new", "me"), record("f")])  # b once more, and a new one
    upstream.pages.append(upstream.pages[0])  # the very page
    [load] = cycle(stack, upstream.source).values()
    assert load["forgotten"] == 4
    after = whole(stack, upstream, ["f", "a", "c"])
    assert after["documents"] == [one for one in before["documents"] if '"a"' not in one[2] and '"c"' not in one[2]]
    assert rows(stack, f"select _key from {upstream.table} where _load = 4 order by 1") == [("a",), ("f",)]
    assert written(stack, name, '"me"') == []
    assert rows(stack, "select sum(forgotten) from ops.load where source = %s", name) == [(0,)]
    stays = whole(stack, upstream)
    pipeline.replay(upstream.source, stack.settings("loader"), **QUIET)
    assert whole(stack, upstream) == stays


def test_a_page_that_is_read_together_with_an_erased_one_keeps_its_records(stack: Stack) -> None:
    upstream = Upstream("together", "rows")
    [things] = upstream.source.resources
    body = json.dumps([record("mine", "me"), record("a")]).encode()
    address = f"landing/together/things/{hashlib.sha256(body).hexdigest()[:2]}/{hashlib.sha256(body).hexdigest()}"

    def fetch_links(context: Context) -> Iterator[Page | Gone]:
        if not context.cursor:
            yield Page("links", b'["a", "mine"]', {"done": True}, meta={"things": address})

    def parse_links(page: Landed) -> Iterator[dict[str, Any] | Bad]:
        known = {one["id"] for one in json.loads(page.objects.get(*page.meta["things"].split("/", 1)))}
        for name in json.loads(page.read()):
            yield {"link": f"to {name}", "known": name in known, "id": name}

    schema = pa.schema([("link", pa.string()), ("known", pa.bool_()), ("id", pa.string())])
    links = replace(things, name="links", schema=schema, key=("link",), fetch=fetch_links, parse=parse_links)
    source = replace(upstream.source, resources=(things, links))
    upstream.pages = [json.loads(body)]
    cycle(stack, source)
    found = forget(stack, source, "mine")  # the link to it names it in a field that is its key elsewhere
    assert found["records"] == {"together_things": ["mine"], "together_links": ["to mine"]}
    assert not Objects(stack.settings("admin")).exists(*address.split("/", 1))
    for _ in range(2):
        assert rows(stack, "select link, known, _position from raw.together_links") == [("to a", True, 1)]
        assert written(stack, "together", "mine") == []
        pipeline.replay(source, stack.settings("loader"), **QUIET)


def test_what_is_not_there_is_one_sentence_and_changes_nothing(stack: Stack) -> None:
    upstream = filled(stack, "nobody", "rows")
    listed = list(Objects(stack.settings("admin")).list("landing", "nobody/"))
    for keys, where, message in (
        (["mine", "nowhere"], [], "nobody has no record 'nowhere'. Give a key as"),
        ([], [("who", "Nobody At All")], "nobody has no record whose who is 'Nobody At All'. Its fields: id, more"),
        ([], [("colour", "red")], "nobody has no record whose colour is 'red'"),
    ):
        with pytest.raises(Problem) as problem:
            forget(stack, upstream.source, *keys, where=where)
        assert message in str(problem.value)
    with pytest.raises(Problem, match=r"nobody has no resource papers\. It has: things"):
        forget(stack, upstream.source, "mine", resources=["papers"])
    with pytest.raises(Problem, match=r"clips is derived from aviary, .*\. Forget it there"):
        forget(stack, catalogue.source("clips"), "aviary:SIM00001:0")
    assert list(Objects(stack.settings("admin")).list("landing", "nobody/")) == listed
    forget(stack, upstream.source, "odd")  # it was never more than a bad record
    assert rows(stack, "select count(*) from ops.quarantine where source = 'nobody'") == [(0,)]


def held(stack: Stack, name: str) -> list[str]:
    """What quarantine shows of a source's records that were not read again since."""
    found = rows(
        stack, "select payload from ops.quarantine where source = %s and replayed_at is null order by payload", name
    )
    return [payload for (payload,) in found]


@pytest.mark.parametrize("kind", KINDS)
def test_bad_records_of_others_stay_though_their_page_is_erased(stack: Stack, kind: Kind) -> None:
    name = f"others_{kind}"
    upstream = Upstream(name, kind)
    odd, named, broken = (
        {"id": one, "who": who, "bad": "x"} for one, who in (("odd", "you"), ("o2", "me"), ("b1", "you"))
    )
    upstream.pages = [
        [record("a"), record("mine", "me"), odd, named, {"id": "mine", "bad": "x"}],
        [record("d"), broken],
    ]
    cycle(stack, upstream.source)
    assert len(held(stack, name)) == 4
    forget(stack, upstream.source, where=[("who", "me")])
    assert held(stack, name) == [json.dumps(broken), json.dumps(odd)]

    said: list[str] = []
    [load] = pipeline.replay_quarantine(upstream.source, stack.settings("loader"), say=said.append)
    assert f"{name}/things: 1 records of load 1 stay: a withdrawal erased their pages" in said
    assert rows(stack, "select pages, quarantined from ops.load where (source, load) = (%s, %s)", name, load) == [
        (1, 1)
    ]
    assert held(stack, name) == [json.dumps(broken), json.dumps(odd)]
    for _ in range(2):
        pipeline.replay(upstream.source, stack.settings("loader"), **QUIET)
        assert held(stack, name) == [json.dumps(broken), json.dumps(odd)]

    forget(stack, upstream.source, "odd")  # whose page is gone already
    assert held(stack, name) == [json.dumps(broken)]


def test_nothing_but_records_of_erased_pages_in_quarantine_makes_no_load(stack: Stack) -> None:
    upstream = Upstream("only_erased", "rows")
    upstream.pages = [[record("mine", "me"), {"id": "odd", "bad": "x"}]]
    cycle(stack, upstream.source)
    forget(stack, upstream.source, "mine")
    assert pipeline.replay_quarantine(upstream.source, stack.settings("loader"), **QUIET) == []
    assert len(held(stack, "only_erased")) == 1


def test_texts_in_quarantine_go_by_the_words_in_them_and_beginnings_of_records_always(stack: Stack) -> None:
    upstream = Upstream("in_words", "rows")

    def parse(page: Landed) -> Iterator[dict[str, Any] | Bad]:
        for one in json.loads(page.read()):
            yield one if isinstance(one, dict) and "bad" not in one else Bad(one, "no record")

    [things] = upstream.source.resources
    source = replace(upstream.source, resources=(replace(things, parse=parse),))
    long = {"bad": "y" * 5_000, "id": "long"}
    upstream.pages = [[record("17", "A. Bird"), record("a"), "17\tof A. Bird", "17\tof nobody", "18\tof nobody", long]]
    cycle(stack, source)
    assert len(held(stack, "in_words")) == 4
    forget(stack, source, where=[("who", "A. Bird")])
    assert held(stack, "in_words") == ["18\tof nobody"]


def test_a_withdrawal_waits_for_a_fetch_and_takes_what_it_has_landed(stack: Stack) -> None:
    upstream = filled(stack, "at_work", "rows")
    landed, go_on = Event(), Event()

    def slow(context: Context) -> Iterator[Page | Gone]:
        yield from upstream.fetch(context)
        landed.set()
        go_on.wait(60)

    upstream.pages.append([record("mine", "me", value=7.0), record("z")])
    [things] = upstream.source.resources
    at_work = replace(upstream.source, resources=(replace(things, fetch=slow),))
    with ThreadPoolExecutor(2) as both:
        fetching = both.submit(cycle, stack, at_work)
        assert landed.wait(60)
        withdrawing = both.submit(forget, stack, upstream.source, "mine")
        time.sleep(1.5)
        assert not withdrawing.done()
        go_on.set()
        assert fetching.result(60)[3]["forgotten"] == 0
        assert withdrawing.result(60)["pages"] == 3
    assert written(stack, "at_work", '"mine"') == []
    assert rows(stack, "select _key from raw.at_work_things where _key in ('mine', 'z')") == [("z",)]


def test_what_a_fetch_that_failed_has_landed_goes_too(stack: Stack) -> None:
    upstream = filled(stack, "unsealed", "rows")

    def torn(context: Context) -> Iterator[Page | Gone]:
        yield from upstream.fetch(context)
        raise Problem("the line is cut", "")

    upstream.pages.append([record("mine", "me", value=70707.5), record("z")])
    [things] = upstream.source.resources
    with pytest.raises(Problem, match="the line is cut"):
        cycle(stack, replace(upstream.source, resources=(replace(things, fetch=torn),)))
    kept = [home() / "cache" / "downloads" / "0123.part", home() / "cache" / "pages" / "4567"]
    for path in kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half of mine")
    assert len(written(stack, "unsealed", "70707.5")) == 1
    forget(stack, upstream.source, "mine")
    assert written(stack, "unsealed", "70707.5") == written(stack, "unsealed", '"mine"') == []
    for path in kept:
        assert not path.exists() and path.parent.exists()  # the folders are of all sources
    cycle(stack, upstream.source)  # and what else was on that page comes all the same
    assert rows(stack, "select _key from raw.unsealed_things where _key in ('mine', 'z')") == [("z",)]


def test_a_withdrawal_waits_for_a_crawler_whose_starter_is_no_more(stack: Stack) -> None:
    upstream, settings = filled(stack, "orphan", "rows"), stack.settings("loader")
    with closing(warehouse.connect(settings)) as crawler, ThreadPoolExecutor(1) as aside:
        with crawler, crawler.cursor() as sql:
            sql.execute(
                "insert into ops.crawl (crawl, source, resource, question) values ('c1', 'orphan', 'things', '{}')"
            )
        with warehouse.advisory_lock(crawler, "crawl:c1"):
            withdrawing = aside.submit(forget, stack, upstream.source, "mine")
            time.sleep(1.5)
            assert not withdrawing.done()
            Objects(settings).put("landing", "orphan/things/00/late", b'{"id": "mine"}', "application/json")
        withdrawing.result(60)
    assert written(stack, "orphan", '"mine"') == []
    assert rows(stack, "select count(*) from ops.crawl where source = 'orphan'") == [(0,)]


def test_published_records_that_turn_out_to_be_of_somebody_withdrawn(stack: Stack) -> None:
    """A loader may not say of versions and models that they are concerned: it asks for somebody who may."""
    upstream = filled(stack, "relabelled", "documents")
    forget(stack, upstream.source, where=[("who", "me")])
    upstream.pages.append([record("a", "me", value=3.0), record("f")])
    again = r"turn out to be of somebody who was withdrawn\. `lyrebird forget relabelled --again`"
    for _ in range(2):  # until it is done
        with pytest.raises(Problem, match=again):
            cycle(stack, upstream.source)
    pipeline.judge(upstream.source, stack.settings("loader"), **QUIET)
    before = pipeline.latest(upstream.source, stack.settings("loader"))
    found = forget(stack, upstream.source, again=True)
    assert found["records"] == {"relabelled_things": ["a"]}
    assert pipeline.latest(upstream.source, stack.settings("loader")) > before
    assert rows(stack, "select distinct _key from raw.relabelled_things where _key in ('a', 'c', 'f')") == [
        ("c",),
        ("f",),
    ]
    assert written(stack, "relabelled", '"a"') == []
    assert cycle(stack, upstream.source) == {}
    stays = whole(stack, upstream)
    pipeline.replay(upstream.source, stack.settings("loader"), **QUIET)
    assert whole(stack, upstream) == stays


def test_a_key_of_several_tables_of_a_database_asks_which(stack: Stack) -> None:
    upstream = filled(stack, "tables", "rows")
    [things] = upstream.source.resources
    both = replace(
        upstream.source,
        resources=tuple(
            replace(things, name=name, schema=pa.schema([]), columns=lambda cursor: SCHEMA) for name in ("one", "other")
        ),
    )
    cycle(stack, both)
    with pytest.raises(Problem, match=r"'mine' is a key of one, other\. Say which table is meant, with --resource"):
        forget(stack, both, "mine")
    found = forget(stack, both, "mine", resources=["other"])
    assert found["records"] == {"tables_other": ["mine"]}
    assert rows(stack, "select count(*) from raw.tables_one where _key = 'mine'") == [(1,)]


def test_the_same_file_of_another_record_stays(stack: Stack, tmp_path: Path) -> None:
    folder = tmp_path / "birds" / "clips"
    folder.mkdir(parents=True)
    samples = np.random.default_rng(5).normal(0, 0.1, 22_050 * 6)
    for name in ("mine.wav", "same.wav"):
        soundfile.write(folder / name, samples, 22_050, subtype="PCM_16")
    (tmp_path / "birds" / "clips.csv").write_text("file,scientific_name\nmine.wav,Tyto alba\nsame.wav,Tyto alba\n")
    options_file().write_text(f"[sources.audio_folder]\nlocation = '{tmp_path / 'birds'}'\n")
    audio_folder, clips = catalogue.source("audio_folder"), catalogue.source("clips")
    pipeline.make_tables([audio_folder, clips, catalogue.source("aviary")], stack.settings("loader"))
    for source in (audio_folder, clips):
        cycle(stack, source)
    objects = Objects(stack.settings("admin"))
    files = list(objects.list("derived"))
    assert len(files) == 2  # two windows, each of both recordings

    found = forget(stack, audio_folder, "clips/mine.wav")
    assert sorted(found["records"]) == ["audio_folder_audio", "audio_folder_labels", "clips"]
    assert (found["objects"], found["files"]) == (1, 0)  # the table of labels; the sound is another's as well
    kept = "select recording_key, clip_object, audio_key from raw.clips order by _key"
    for _ in range(2):
        assert {key for key, *_ in rows(stack, kept)} == {"clips/same.wav"}
        assert sorted(file for _, file, _ in rows(stack, kept)) == sorted(files)
        for _, file, address in rows(stack, kept):
            assert objects.exists("derived", file)
            assert objects.exists(*address.split("/", 1))
        assert written(stack, "audio_folder", "mine.wav") == written(stack, "clips", "mine.wav") == []
        for source in (audio_folder, clips):
            pipeline.replay(source, stack.settings("loader"), **QUIET)
    options_file().unlink()


def test_pairs_are_found_by_either_text(stack: Stack) -> None:
    """Lines of parallel text and sentences of tatoeba: a pair is named for one record and made of two or three."""
    settings = stack.settings("admin")
    lines = [(part, language, n) for part in ("train", "val") for language in ("en", "de", "fr") for n in (1, 2)]
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute(
            "create table raw.parallel_files_lines (_key text, corpus text, part text, language text, line int)"
        )
        for part, language, n in lines:
            key = json.dumps(["c", part, language, n])
            sql.execute("insert into raw.parallel_files_lines values (%s, 'c', %s, %s, %s)", (key, part, language, n))
        sql.execute("create table raw.tatoeba_links (_key text, sentence_id bigint, translation_id bigint)")
        for pair in ((1, 2), (1, 3), (4, 5)):
            sql.execute("insert into raw.tatoeba_links values (%s, %s, %s)", (json.dumps(pair), *pair))
        sql.execute("select md5('parallel_files|' || _key::jsonb::text), _key from raw.parallel_files_lines")
        named = {key: pair for pair, key in sql.fetchall()}
        sql.execute("select md5('tatoeba|' || _key::jsonb::text), _key from raw.tatoeba_links")
        named |= {key: pair for pair, key in sql.fetchall()}
        found = {
            "an English line": withdrawal.mart_keys(
                db, "parallel_files", {"parallel_files_lines": ['["c", "train", "en", 1]']}
            ),
            "another line": withdrawal.mart_keys(
                db, "parallel_files", {"parallel_files_lines": ['["c", "train", "de", 1]']}
            ),
            "a sentence": withdrawal.mart_keys(db, "tatoeba", {"tatoeba_sentences": ["[3]"], "tatoeba_links": []}),
        }
    pairs = {what: keys["mart_translation_training_pairs"] for what, keys in found.items()}
    train = {language: named[json.dumps(["c", "train", language, 1])] for language in ("en", "de", "fr")}
    assert pairs["an English line"] == set(train.values())  # no pair is named for the English line itself
    assert pairs["another line"] == {train["de"]}
    assert pairs["a sentence"] == {named["[1, 3]"]}


def test_a_version_is_marked_once_for_a_withdrawal(stack: Stack) -> None:
    settings = stack.settings("admin")
    with frozen_world.marts(stack):
        frozen_world.publish(stack, "mart_music_training_pieces", frozen_world.pieces(60))
        with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
            sql.execute(
                "insert into ops.load (source, load, resource, state, pages, rows, versions, quarantined, bytes, "
                "fetched_at) values ('piano_roll_files', 1, 'pieces', 'published', 1, 1, 1, 0, 1, now())"
            )
        frozen = freeze.freeze("music-chorales", stack.settings("trainer"))
        keys = {"piano_roll_files_pieces": ["piece-003", "piece-004", "no-such-piece"]}
        for _ in range(2):
            assert withdrawal.mark("w1", "piano_roll_files", keys, settings).versions[0]["rows"] == 2
        assert withdrawal.mark("w2", "maestro", keys, settings).versions == []  # it holds nothing of that source
        [(marks,)] = rows(stack, "select withdrawn from ml.dataset where version = %s", frozen.version)
        assert {name: one["rows"] for name, one in marks.items()} == {"w1": 2}
