"""Parallel text: a row a line, numbered so that languages meet; damaged files and lines are seen."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, seed
from hypothesis import strategies as st
from upstreams.landed_bytes import LandedBytes

from ingestion import rows
from ingestion.contract import Bad, BadPage, Context, Page
from ingestion.sources import parallel_files
from storage.settings import Settings

LINES = parallel_files.SOURCE.resources[0]
TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\x00"), max_size=20), max_size=8
)


def parse(body: bytes, name: str = "multi30k/train.de") -> list[Any]:
    return list(LINES.parse(LandedBytes(body, name)))


def fetch(location: Path | str, cursor: dict[str, Any] | None = None) -> list[Page]:
    context = Context({"location": str(location)}, cursor or {}, LINES, None, Settings(), lambda text: None)
    pages = parallel_files.fetch(context)  # a page's file is there for its turn only
    return [replace(page, body=page.body.read_bytes()) for page in pages]  # type: ignore[union-attr]


@seed(9)
@given(TEXTS, st.booleans())
def test_lines_are_kept_as_they_are(texts: list[str], packed: bool) -> None:
    body = "".join(f"{text}\n" for text in texts).encode()
    name = "multi30k/val.fr"
    found = parse(gzip.compress(body), f"{name}.gz") if packed else parse(body, name)
    assert [rows.check(LINES, record) for record in found] == [""] * len(texts)
    expected = [text.removeprefix("\ufeff") if index == 0 else text for index, text in enumerate(texts)]
    assert [(record["line"], record["text"]) for record in found] == list(enumerate(expected, start=1))


@pytest.mark.parametrize(
    ("name", "split", "part", "language"),
    [
        ("multi30k/train.en.gz", "train", "train", "en"),
        ("multi30k/val.de.gz", "valid", "val", "de"),
        ("multi30k/valid.de", "valid", "valid", "de"),
        ("multi30k/test_2016_flickr.fr.gz", "test", "test_2016_flickr", "fr"),
        ("multi30k/test.2017.pt-BR", "test", "test.2017", "pt-BR"),
    ],
)
def test_names_tell_split_part_and_language(name: str, split: str, part: str, language: str) -> None:
    body = gzip.compress(b"x\n") if name.endswith(".gz") else b"x\n"
    assert parse(body, name) == [
        {"corpus": "multi30k", "split": split, "part": part, "language": language, "line": 1, "text": "x"}
    ]


@pytest.mark.parametrize("name", ["multi30k/README", "multi30k/extra.de", "train.de", "multi30k/train.gz"])
def test_names_that_tell_nothing_are_bad_pages(name: str) -> None:
    with pytest.raises(BadPage):
        parse(b"x\n", name)


def test_only_newlines_part_lines() -> None:
    body = "eins\r\nzw\u2028ei\n\ndrei\x0cdrei".encode()
    assert [(r["line"], r["text"]) for r in parse(body)] == [
        (1, "eins"),
        (2, "zw\u2028ei"),
        (3, ""),
        (4, "drei\x0cdrei"),
    ]


def test_invalid_utf8_is_bad_with_its_line_number_and_the_lines_after_keep_theirs() -> None:
    first, bad, third = parse(b"eins\nzw\xff\xfei\ndrei\n")
    assert isinstance(bad, Bad)
    assert "line 2 is no valid UTF-8" in bad.reason
    assert ((first["line"], first["text"]), (third["line"], third["text"])) == ((1, "eins"), (3, "drei"))


def test_a_line_that_is_too_long_is_bad_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_files, "MAX_LINE", 10)
    bad, whole, also = parse(b"x" * 35 + b"\n" + b"y" * 10 + b"\n" + b"z\n")
    assert isinstance(bad, Bad)
    assert "line 1 is longer" in bad.reason
    assert ((whole["line"], whole["text"]), (also["line"], also["text"])) == ((2, "y" * 10), (3, "z"))


@pytest.mark.parametrize("cut", [1, 12, 400, -9, -1])
def test_a_gzip_file_cut_short_gives_nothing(cut: int) -> None:
    packed = gzip.compress("".join(f"Zeile {number * 7919}\n" for number in range(500)).encode())
    found = []
    with pytest.raises(BadPage, match="damaged or was cut short"):
        for record in LINES.parse(LandedBytes(packed[:cut], "multi30k/train.de.gz")):
            found.append(record)
    assert found == []


def test_what_is_called_gz_and_is_none_is_a_bad_page() -> None:
    with pytest.raises(BadPage, match="damaged"):
        parse(b"plain text\n", "multi30k/train.de.gz")


def test_an_empty_file_has_no_lines() -> None:
    assert parse(b"") == []
    assert parse(gzip.compress(b""), "multi30k/train.de.gz") == []


def test_only_new_and_changed_files_are_fetched(tmp_path: Path) -> None:
    folder = tmp_path / "multi30k"
    folder.mkdir()
    (folder / "train.de").write_text("eins\n")
    (folder / "train.en.gz").write_bytes(gzip.compress(b"one\n"))
    (folder / "README").write_text("about")
    pages = fetch(tmp_path)
    assert [page.name for page in pages] == ["multi30k/train.de", "multi30k/train.en.gz"]
    assert fetch(tmp_path, pages[-1].cursor) == []
    (folder / "val.de").write_text("zwei\n")
    assert [page.name for page in fetch(tmp_path, pages[-1].cursor)] == ["multi30k/val.de"]
    assert fetch("") == []


@pytest.mark.data
def test_multi30k_is_aligned(data: Path) -> None:
    counts = {}
    for page in fetch(data):
        found = list(LINES.parse(LandedBytes(page.body, page.name)))
        assert not [record for record in found if isinstance(record, Bad)]
        counts[found[0]["part"], found[0]["language"]] = len(found)
    expected = {"train": 29_000, "val": 1_014, "test_2016_flickr": 1_000}
    assert counts == {(part, language): count for part, count in expected.items() for language in ("en", "de", "fr")}
