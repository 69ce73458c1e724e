"""The pipeline on real stores: exactly once, nothing dropped in silence, rejected loads unseen, replayable."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pyarrow as pa
import pytest
from support import Stack

from ingestion import pipeline
from ingestion.contract import Bad, BadPage, Context, Gone, Landed, Page, Resource, Source, describe
from storage import warehouse
from storage.documents import Documents
from storage.errors import Problem
from storage.settings import options_file

SCHEMA = pa.schema(
    [
        describe("id", pa.string(), "Identity.", required=True),
        describe("value", pa.int64(), "A number."),
    ]
)


class Upstream:
    """A source whose pages a test writes: each page is a list of records (or broken text), fetched once."""

    def __init__(self, name: str, *, mode: str = "merge", store: str = "rows") -> None:
        self.pages: list[Any] = []
        self.source = Source(
            name=name,
            title=name,
            domain="text",
            description="",
            licence="none",
            cadence="@daily",
            resources=(
                Resource(
                    name="things",
                    schema=SCHEMA,
                    key=("id",),
                    fetch=self.fetch,
                    parse=self.parse,
                    mode=mode,  # type: ignore[arg-type]
                    store=store,  # type: ignore[arg-type]
                ),
            ),
        )

    def fetch(self, context: Context) -> Iterator[Page | Gone]:
        for number in range(context.cursor.get("next", 0), len(self.pages)):
            page = self.pages[number]
            cursor = {"next": number + 1}
            if isinstance(page, Gone):
                yield Gone(page.key, cursor)
            else:
                body = page if isinstance(page, bytes) else json.dumps(page).encode()
                yield Page(f"page {number}", body, cursor)

    @staticmethod
    def parse(page: Landed) -> Iterator[dict[str, Any] | Bad]:
        try:
            records = json.loads(page.read())
        except ValueError as error:
            raise BadPage(f"no JSON: {error}") from error
        for record in records:
            if "bad" in record:
                yield Bad(record, "said to be bad")
            else:
                yield record


def rows(stack: Stack, query: str) -> list[tuple[Any, ...]]:
    with closing(warehouse.connect(stack.settings("loader"))) as db, db, db.cursor() as sql:
        sql.execute(query)
        return sql.fetchall()


def current(stack: Stack, name: str, column: str = "value") -> list[tuple[Any, ...]]:
    """What readers may see: the latest version of published loads."""
    return rows(
        stack,
        f"select _key, {column} from (select distinct on (r._key) r.* from raw.{name}_things as r "
        f"join ops.load as l on l.source = '{name}' and l.load = r._load and l.state = 'published' "
        "order by r._key, r._load desc, r._position desc) as c where not _deleted order by 1",
    )


def cycle(stack: Stack, upstream: Upstream, **options: Any) -> dict[int, tuple[str, str]]:
    settings = stack.settings("loader")
    pipeline.ingest(upstream.source, settings, say=lambda text: None, **options)
    return pipeline.judge(upstream.source, settings, say=lambda text: None)


def test_versions_are_kept_and_the_latest_published_counts(stack: Stack) -> None:
    upstream = Upstream("versions")
    upstream.pages = [[{"id": "a", "value": 1}, {"id": "b", "value": 2}]]
    assert cycle(stack, upstream) == {1: ("published", "")}
    assert cycle(stack, upstream) == {}  # nothing new: no load
    upstream.pages.append([{"id": "a", "value": 1}, {"id": "b", "value": 3}])  # a unchanged, b changed
    upstream.pages.append(Gone(("a",), {}))
    cycle(stack, upstream)
    upstream.pages.append([{"id": "b", "value": 2}, {"id": "b", "value": 2}])  # back to what it was: a version again
    cycle(stack, upstream)
    assert current(stack, "versions") == [("b", 2)]
    history = rows(stack, "select _load, _key, value, _deleted from raw.versions_things order by _load, _position")
    assert history == [
        (1, "a", 1, False),
        (1, "b", 2, False),
        (2, "b", 3, False),
        (2, "a", None, True),
        (3, "b", 2, False),
    ]


def test_a_snapshot_deletes_what_it_no_longer_holds(stack: Stack) -> None:
    upstream = Upstream("snapshot", mode="replace")
    upstream.pages = [[{"id": "a", "value": 1}, {"id": "b", "value": 2}]]
    cycle(stack, upstream)
    upstream.pages.append([{"id": "b", "value": 2}])
    cycle(stack, upstream)
    assert current(stack, "snapshot") == [("b", 2)]


def test_a_snapshot_deletes_nothing_that_is_in_quarantine(stack: Stack) -> None:
    upstream = Upstream("torn", mode="replace")
    whole = [{"id": f"{number:03}", "value": number} for number in range(100)]
    upstream.pages = [whole]
    cycle(stack, upstream)
    upstream.pages.append([*whole[2:], {"id": "001", "value": "broken"}])  # 000 is gone, 001 cannot be read
    cycle(stack, upstream)
    kept = dict(current(stack, "torn"))
    assert len(kept) == 99
    assert kept["001"] == 1
    upstream.pages.append([*whole[4:], {"id": None, "value": 2}])  # 002 and 003 are not there; which one is this?
    cycle(stack, upstream)
    assert len(current(stack, "torn")) == 99
    upstream.pages.append(whole[4:])
    cycle(stack, upstream)
    assert len(current(stack, "torn")) == 96


def test_bad_records_and_pages_go_to_quarantine_and_the_rest_is_loaded(stack: Stack) -> None:
    upstream = Upstream("dirty")
    good = [{"id": f"g{number}", "value": number} for number in range(200)]
    bad = [
        {"id": None, "value": 1},
        {"id": "x", "value": "text"},
        {"id": "y", "value": 2**70},
        {"id": "nul\x00", "value": 1},
        {"id": "z", "value": 1, "surprise": 1},
        {"bad": True},
    ]
    upstream.pages = [good + bad, b"{ no json"]
    assert cycle(stack, upstream) == {1: ("published", "")}
    assert len(current(stack, "dirty")) == len(good)
    reasons = [
        reason for (reason,) in rows(stack, "select reason from ops.quarantine where source = 'dirty' order by id")
    ]
    assert len(reasons) == len(bad) + 1
    assert reasons[0] == "id is missing"
    assert "64 bits" in reasons[2]
    assert "NUL" in reasons[3]
    assert reasons[-1].startswith("no JSON")


def test_too_much_quarantine_rejects_the_load_and_readers_keep_the_old(stack: Stack) -> None:
    upstream = Upstream("rotten")
    upstream.pages = [[{"id": "a", "value": 1}]]
    cycle(stack, upstream)
    upstream.pages.append([{"id": "a", "value": 5}, {"bad": 1}])
    states = cycle(stack, upstream)
    assert states[2][0] == "rejected"
    assert "quarantine" in states[2][1]
    assert current(stack, "rotten") == [("a", 1)]
    upstream.pages[1] = [{"id": "a", "value": 5}, {"id": "b", "value": 6}]  # mended: fetched again, not taken as known
    assert cycle(stack, upstream)[3][0] == "published"
    assert current(stack, "rotten") == [("a", 5), ("b", 6)]


def test_a_source_says_how_much_quarantine_it_bears(stack: Stack) -> None:
    """One record of ten is bad, for both."""
    patient, strict = Upstream("patient"), Upstream("strict")
    options_file().write_text("[sources.patient]\nquarantine_share = 0.2\n[sources.strict]\nquarantine_share = 0.05\n")
    try:
        for upstream in (patient, strict):
            upstream.pages = [[*({"id": str(number), "value": number} for number in range(9)), {"bad": 1}]]
        assert cycle(stack, patient) == {1: ("published", "")}
        ((state, reason),) = cycle(stack, strict).values()
        assert state == "rejected" and "quarantine" in reason
        assert len(current(stack, "patient")) == 9 and current(stack, "strict") == []
        for wrong, shown in (("2", "2"), ("-0.1", "-0.1"), ("nan", "nan"), ("'x'", "'x'"), ("true", "True")):
            options_file().write_text(f"[sources.strict]\nquarantine_share = {wrong}\n")
            with pytest.raises(Problem, match=f"quarantine_share of strict is {shown}. It is from 0 to 1"):
                cycle(stack, strict)
    finally:
        options_file().unlink()


def test_a_rejection_is_over_when_the_source_is_as_it_was(stack: Stack) -> None:
    upstream = Upstream("reverted")
    settings = stack.settings("loader")
    upstream.pages = [[{"id": "a", "value": 1}]]
    cycle(stack, upstream)
    upstream.pages.append([{"bad": 1}])
    cycle(stack, upstream)
    cycle(stack, upstream)  # still bad: fetched and rejected again
    assert [load for load, _ in pipeline.rejected(upstream.source, settings)] == [3]
    upstream.pages.pop()
    assert cycle(stack, upstream) == {}  # as it was accepted: nothing new
    assert pipeline.rejected(upstream.source, settings) == []
    assert current(stack, "reverted") == [("a", 1)]


def test_a_shrunken_snapshot_is_rejected(stack: Stack) -> None:
    upstream = Upstream("shrunk", mode="replace")
    upstream.pages = [[{"id": f"{number:03}", "value": number} for number in range(100)]]
    cycle(stack, upstream)
    upstream.pages.append([{"id": "001", "value": 1}])
    state, reason = cycle(stack, upstream)[2]
    assert state == "rejected"
    assert "100 rows before" in reason
    assert len(current(stack, "shrunk")) == 100
    audits = rows(
        stack, "select success, severity, docs_url from ops.audit where subject = 'load.shrunk_things' order by id"
    )
    assert [(success, severity) for success, severity, _ in audits] == [(True, "none"), (False, "critical")]
    assert "audits/validations/" in audits[1][2]

    settings = stack.settings("loader")
    with pytest.raises(Problem, match="load 1 of shrunk was not rejected: it is published"):
        pipeline.accept(upstream.source, 1, settings)
    pipeline.accept(upstream.source, 2, settings)  # it has really shrunk, says a person
    assert current(stack, "shrunk") == [("001", 1)]
    pipeline.replay(upstream.source, settings)
    assert current(stack, "shrunk") == [("001", 1)]
    upstream.pages.append([{"id": "001", "value": 2}])
    assert cycle(stack, upstream)[3][0] == "published"  # the cursor had gone on, and one row is what was there before


def test_a_load_that_others_followed_is_not_accepted_afterwards(stack: Stack) -> None:
    upstream = Upstream("followed", mode="replace")
    upstream.pages = [[{"id": f"{number:03}", "value": number} for number in range(100)]]
    cycle(stack, upstream)
    upstream.pages.append([{"id": "001", "value": 1}])
    for _ in range(2):
        cycle(stack, upstream)  # rejected, and fetched again
    with pytest.raises(Problem, match="load 3 of followed/things came after load 2"):
        pipeline.accept(upstream.source, 2, stack.settings("loader"))


def test_documents_reach_the_warehouse_only_through_the_document_store(stack: Stack) -> None:
    upstream = Upstream("papers", store="documents")
    upstream.pages = [[{"id": "a", "value": 1, "more": {"deep": [1, "zwei"]}}]]
    cycle(stack, upstream)
    assert current(stack, "papers", "doc") == [("a", {"id": "a", "value": 1, "more": {"deep": [1, "zwei"]}})]
    documents = Documents(stack.settings("loader"))
    assert documents.database["papers_things"].count_documents({}) == 1


@pytest.mark.parametrize(
    "stage", ["fetched", "before seal", "sealed", "parsed", "documents", "copied", "before commit", "committed"]
)
def test_a_loader_that_dies_at_any_boundary_leaves_the_same_tables(stack: Stack, stage: str) -> None:
    name = f"dies_{stage.replace(' ', '_')}"
    upstream = Upstream(name, store="documents")
    upstream.pages = [[{"id": f"{number}", "value": number} for number in range(20)]]

    class Died(RuntimeError):
        pass

    def die(reached: str) -> None:
        if reached == stage:
            raise Died

    with pytest.raises(Died):
        cycle(stack, upstream, reached=die)
    cycle(stack, upstream)
    assert [key for key, _ in current(stack, name, "doc")] == sorted(str(number) for number in range(20))
    assert rows(stack, f"select count(*), max(rows) from ops.load where source = '{name}'") == [(1, 20)]
    assert rows(stack, f"select cursor from ops.cursor where source = '{name}'") == [({"next": 1},)]


def test_replay_rebuilds_rows_documents_and_verdicts(stack: Stack) -> None:
    upstream = Upstream("again", store="documents")
    upstream.pages = [[{"id": "a", "value": 1}], [{"id": "b", "value": 2}, {"bad": 1}, {"bad": 2}]]
    pages = upstream.pages
    upstream.pages = pages[:1]
    cycle(stack, upstream)
    upstream.pages = pages
    cycle(stack, upstream)  # rejected
    tables = ("raw.again_things", "ops.cursor where source = 'again'")
    state = "select load, state, reason, rows, versions, quarantined from ops.load where source = 'again' order by 1"

    def snapshot() -> list[Any]:
        columns = {tables[0]: "*", tables[1]: "resource, cursor, load"}
        return [sorted(map(str, rows(stack, f"select {columns[table]} from {table}"))) for table in tables] + [
            rows(stack, state)
        ]

    before = snapshot()
    Documents(stack.settings("loader")).database["again_things"].drop()
    replayed = pipeline.replay(upstream.source, stack.settings("loader"), say=lambda text: None)
    assert replayed == [1, 2]
    assert snapshot() == before
    assert Documents(stack.settings("loader")).database["again_things"].count_documents({}) == 2


def test_what_raw_shows_of_documents_is_made_of_the_document_store(stack: Stack) -> None:
    upstream = Upstream("shown", store="documents")
    upstream.pages = [[{"id": "a", "value": 1, "more": {"deep": ["ж"]}}, {"id": "b", "value": 2}]]
    cycle(stack, upstream)
    settings = stack.settings("loader")
    before = current(stack, "shown", "doc")
    collection = Documents(settings).database["shown_things"]

    def lose_raw() -> None:
        with closing(warehouse.connect(stack.settings("admin"))) as db, db, db.cursor() as sql:
            sql.execute("update raw.shown_things set doc = null")

    lose_raw()
    assert pipeline.project(upstream.source, settings, say=lambda text: None) == 2
    assert current(stack, "shown", "doc") == before
    # the store is what counts: what it holds is what raw shows
    collection.update_one({"key": "b"}, {"$set": {"doc.value": 3}})
    pipeline.project(upstream.source, settings, say=lambda text: None)
    assert dict(current(stack, "shown", "doc"))["b"]["value"] == 3
    collection.drop()
    lose_raw()
    with pytest.raises(Problem, match="2 of 2 versions are not in the collection shown_things"):
        pipeline.project(upstream.source, settings, say=lambda text: None)
    assert [doc for _, doc in current(stack, "shown", "doc")] == [None, None]
    pipeline.replay(upstream.source, settings, say=lambda text: None)
    assert current(stack, "shown", "doc") == before


def test_versions_are_stored_once_whoever_stores_them(stack: Stack) -> None:
    documents = Documents(stack.settings("loader"))
    versions = [{"_id": f"{number}", "doc": {"n": number}} for number in range(2_500)]
    assert documents.put_versions("once", versions[:1_500]) == 1_500
    assert documents.put_versions("once", versions) == 1_000
    assert documents.put_versions("once", []) == 0
    with ThreadPoolExecutor(4) as pool:
        news = pool.map(lambda _: documents.put_versions("raced", versions), range(4))
        assert sum(news) == 2_500
    assert documents.database["raced"].count_documents({}) == 2_500
    assert documents.read_versions("raced", ["7", "2499"])["7"]["doc"] == {"n": 7}
