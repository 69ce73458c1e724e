"""music21's corpus as files: which ones, byte for byte, only when something changed."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest
from upstreams.landed_bytes import LandedBytes

from ingestion import rows
from ingestion.contract import Context, Page
from ingestion.sources import music21_corpus
from storage.errors import Problem
from storage.settings import Settings

SCORES = music21_corpus.SOURCE.resources[0]


def fetch(cursor: dict[str, Any] | None = None, **options: Any) -> list[Page]:
    config = {name: default for name, (default, _) in music21_corpus.SOURCE.config.items()} | options
    return list(music21_corpus.fetch(Context(config, cursor or {}, SCORES, None, Settings(), lambda text: None)))


@pytest.fixture
def corpus() -> Path:
    found = importlib.util.find_spec("music21")
    assert found is not None and found.origin is not None, "the extra `demo` is not installed"
    return Path(found.origin).parent / "corpus"


def test_the_chorales_and_the_nottingham_tunes_come_byte_for_byte(corpus: Path) -> None:
    pages = fetch()
    corpora = [page.meta["corpus"] for page in pages]
    assert corpora.count("bach-chorales") >= 400
    assert corpora.count("nottingham") >= 1
    names = {page.name for page in pages}
    assert len(names) == len(pages)
    assert "bach/bwv66.6.mxl" in names
    assert not {"bach/bwv846.mxl", "bach/bwv277.krn", "bach/choraleAnalyses"} & names
    for page in pages[::50]:
        assert page.body == (corpus / page.name).read_bytes()


@pytest.mark.usefixtures("corpus")
def test_nothing_new_makes_no_page_and_a_change_of_the_options_does() -> None:
    pages = fetch(limit=3)
    assert len(pages) == 4  # three chorales, and the one file of Nottingham
    assert fetch(pages[-1].cursor, limit=3) == []
    assert len(fetch(pages[-1].cursor, limit=2)) == 3


@pytest.mark.usefixtures("corpus")
def test_an_unknown_collection_lists_the_known_ones() -> None:
    with pytest.raises(Problem, match=r"no collection 'mozart'.*bach-chorales, nottingham"):
        fetch(collections="bach-chorales, mozart")


def test_without_music21_one_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Problem, match=r"music21.*is not installed.*make install"):
        fetch()


@pytest.mark.usefixtures("corpus")
def test_a_record_describes_its_object() -> None:
    (page, *_) = fetch(collections="bach-chorales", limit=1)
    assert isinstance(page.body, bytes)
    (record,) = SCORES.parse(LandedBytes(page.body, page.name, page.content_type, **page.meta))
    assert isinstance(record, dict)
    assert rows.check(SCORES, record) == ""
    assert record["sha256"] == hashlib.sha256(page.body).hexdigest()
    assert (record["bytes"], record["format"], record["composer"]) == (
        *(len(page.body), "mxl", "Johann Sebastian Bach"),
    )
