"""The document store is on the way to the marts, not beside it: without its versions they cannot be built again.

What marts say of a simulated recording (its species, its place, when it was made) is nowhere but in its document. So a
document that is changed in the store changes the marts; when both the store and raw have lost theirs, no mart can be
built until a replay has brought them back from landing; and all that time readers keep what they have.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from infra import transforming
from ingestion import catalogue, pipeline
from storage import warehouse
from storage.documents import Documents
from storage.errors import Problem
from storage.gates import audit
from storage.gates.audit import Verdict
from storage.settings import options_file

if TYPE_CHECKING:
    from support import Stack

COLLECTION = "aviary_recordings"
AVIARY = catalogue.source("aviary")
MARTS = ("fct_recordings", "mart_birds_training_clips")
QUIET: dict[str, Any] = {"say": lambda text: None}


@pytest.fixture
def readers(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    """The stores with published marts of simulated birds."""
    options_file().write_text("[sources.aviary]\nrecordings = 12\n")
    monkeypatch.setattr(audit, "run", lambda *arguments, **options: Verdict(True, "none", ""))
    loader = stack.settings("loader")
    pipeline.make_tables(catalogue.sources(), loader)
    for source in (AVIARY, catalogue.source("clips")):
        pipeline.ingest(source, loader, **QUIET)
        pipeline.judge(source, loader, **QUIET)
    assert build(stack) == 1
    yield stack
    stack.reset()


def build(stack: Stack) -> int | None:
    """Build the marts of birds and publish them. Their version, or None where they are row for row as before."""
    settings = stack.settings("transformer")
    for step in ("core", "splits", "marts"):
        transforming.run("birds", step, settings, retry=False, **QUIET)
    published: int | None = transforming.run("birds", "publish", settings, retry=False, **QUIET)["published"]
    return published


def shown(stack: Stack) -> dict[str, list[dict[str, Any]]]:
    """The rows of marts, as readers see them."""
    found = {}
    with closing(warehouse.connect(stack.settings("analyst"))) as db, db, db.cursor() as sql:
        for mart in MARTS:
            sql.execute(f"select to_jsonb(m) from marts.{mart} as m order by to_jsonb(m)::text")
            found[mart] = [row for (row,) in sql.fetchall()]
    return found


def forget_projection(stack: Stack) -> None:
    with closing(warehouse.connect(stack.settings("loader"))) as db, db, db.cursor() as sql:
        sql.execute(f"update raw.{COLLECTION} set doc = '{{}}'")


def test_marts_are_built_of_the_versions_in_the_document_store(readers: Stack) -> None:
    loader, before = readers.settings("loader"), shown(readers)
    versions = Documents(readers.settings("admin")).database[COLLECTION]
    assert versions.count_documents({}) == 12
    assert all(before.values())

    # both copies are lost: nothing can be built, and readers do not notice
    versions.drop()
    forget_projection(readers)
    with pytest.raises(Problem, match=rf"12 of 12 versions are not in the collection {COLLECTION}\. Run .*replay"):
        pipeline.project(AVIARY, loader, **QUIET)
    with pytest.raises(Problem, match="core of birds"):
        build(readers)
    assert shown(readers) == before

    # landing gives them back: the same marts, row for row, so there is nothing to switch
    pipeline.replay(AVIARY, loader, **QUIET)
    assert versions.count_documents({}) == 12
    assert build(readers) is None
    assert shown(readers) == before

    # what the projection has lost comes from the store, and says what the store says
    forget_projection(readers)
    assert versions.update_one({"key": "SIM00003"}, {"$set": {"doc.q": "E", "doc.rec": "Somebody Else"}}).modified_count
    assert pipeline.project(AVIARY, loader, **QUIET) == 12
    assert build(readers) == 2
    after = shown(readers)
    differs = [(old, new) for mart in MARTS for old, new in _matched(before[mart], after[mart]) if old != new]
    assert {new.get("quality", "E") for _, new in differs} == {"E"}
    assert {new.get("recordist", "Somebody Else") for _, new in differs} == {"Somebody Else"}
    assert {new.get("recording_key", "SIM00003") for _, new in differs} == {"SIM00003"}
    assert len({new["recording_id"] for _, new in differs}) == 1


def _matched(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Rows before and after, by key."""
    by_key = {row.get("clip_id") or row["recording_id"]: row for row in old}
    assert by_key.keys() == {row.get("clip_id") or row["recording_id"] for row in new}
    return [(by_key[row.get("clip_id") or row["recording_id"]], row) for row in new]
