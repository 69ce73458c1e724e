"""Tatoeba's exports as records: fields as MySQL writes them, licence and contributor of each, in bounded memory."""

from __future__ import annotations

import bz2
import io
import random
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from upstreams import tatoeba as double

from ingestion import rows
from ingestion.contract import Bad
from ingestion.sources import tatoeba
from storage.errors import Problem

LANGUAGES = ["eng", "deu", "rus"]
SENTENCES, LINKS = tatoeba.SOURCE.resources


@pytest.fixture
def exports(tmp_path: Path) -> double.Tatoeba:
    made = double.Tatoeba(*double.made(400))
    write(made, tmp_path)
    return made


def write(made: double.Tatoeba, folder: Path) -> None:
    for name, body in made.exports.items():
        (folder / name.rsplit("/", 1)[1]).write_bytes(body)


def records(found: Any) -> list[dict[str, Any]]:
    return [one for one in found if not isinstance(one, Bad)]


def test_sentences_arrive_as_they_are_with_licence_and_contributor(exports: double.Tatoeba, tmp_path: Path) -> None:
    found = list(tatoeba.sentences(tmp_path / tatoeba.DETAILED, tmp_path / tatoeba.CC0, LANGUAGES))
    assert {one["sentence_id"]: one for one in records(found)} == exports.rows(LANGUAGES)
    assert len(found) == len(exports.rows(LANGUAGES)) + (exports.sentences[-1].language in LANGUAGES)
    assert [rows.check(SENTENCES, one) for one in records(found)] == [""] * len(found)
    texts = [one["text"] for one in records(found)]
    assert any("\n" in text for text in texts) and any("\t" in text for text in texts)
    assert any("\\" in text for text in texts)
    assert {one["licence"] for one in records(found)} == {"CC BY 2.0 FR", "CC0 1.0"}
    assert None in {one["contributor"] for one in records(found)}


@pytest.mark.parametrize("languages", [LANGUAGES, LANGUAGES[::-1], ["fra", "cmn"], ["eng", "xyz"]])
def test_links_go_one_way_between_the_languages(exports: double.Tatoeba, tmp_path: Path, languages: list[str]) -> None:
    of = tatoeba.language_of(tmp_path / tatoeba.DETAILED, languages)
    found = list(tatoeba.links(tmp_path / tatoeba.LINKS, of, languages))
    assert {(one["sentence_id"], one["translation_id"]) for one in records(found)} == exports.pairs(languages)
    spoken = {sentence.number: sentence.language for sentence in exports.sentences}
    for one in records(found):
        assert one["language"] == spoken[one["sentence_id"]]
        assert one["translation_language"] == spoken[one["translation_id"]]
        assert rows.check(LINKS, one) == ""
    assert len(found) == len(exports.pairs(languages))


def test_lines_that_keep_to_nothing_are_named_and_the_others_arrive(exports: double.Tatoeba, tmp_path: Path) -> None:
    exports.broken = (*double.BROKEN, b"1\teng\t" + b"x" * 200_000 + b"\tCK\t\\N\t\\N\n")
    exports.renew()
    write(exports, tmp_path)
    found = list(tatoeba.sentences(tmp_path / tatoeba.DETAILED, tmp_path / tatoeba.CC0, LANGUAGES))
    good = exports.rows(LANGUAGES)
    refused = [one.reason for one in found if isinstance(one, Bad)]
    refused += [rows.check(SENTENCES, one) for one in records(found) if one["sentence_id"] not in good]
    said = " ".join(refused)
    assert len(refused) == len(exports.broken)
    for reason in ("3 fields", "8 fields", "no sentence id", "no valid UTF-8", "text is missing", "NUL"):
        assert reason in said
    assert {key: one for one in records(found) if (key := one["sentence_id"]) in good} == good

    path = tmp_path / tatoeba.LINKS
    path.write_bytes(double.archive("links.csv", b"1\t2\t3\n1\n\n-1\t5\n1\t" + b"9" * 400 + b"\n1\tx\n"))
    bad = list(tatoeba.links(path, bytearray(b"\0\1\2"), LANGUAGES))
    assert [type(one) for one in bad] == [Bad] * 6


@given(st.lists(st.lists(st.none() | st.text("ab\\\t\nN0", max_size=6), min_size=2, max_size=4), max_size=8))
def test_what_mysql_writes_is_read_again(table: list[list[str | None]]) -> None:
    written = double.table(table)
    read = [[tatoeba._text(one) for one in tatoeba.split(line)] for line in tatoeba._whole_lines(io.BytesIO(written))]
    assert read == table


@pytest.mark.parametrize("damage", ["cut", "flipped", "no archive", "empty", "no table", "a link"])
def test_a_damaged_export_is_never_half_an_export(exports: double.Tatoeba, tmp_path: Path, damage: str) -> None:
    path = tmp_path / tatoeba.LINKS
    body = path.read_bytes()
    link = io.BytesIO()
    with tarfile.open(fileobj=link, mode="w:bz2") as tar:
        entry = tarfile.TarInfo("links.csv")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(entry)
    path.write_bytes(
        {
            "cut": body[: len(body) // 2],
            "flipped": body[: len(body) // 2] + bytes([body[len(body) // 2] ^ 255]) + body[len(body) // 2 + 1 :],
            "no archive": b"<html>down for maintenance</html>" * 40,
            "empty": b"",
            "no table": double.archive("readme.txt", b"hello"),
            "a link": link.getvalue(),
        }[damage]
    )
    with pytest.raises(Problem, match=r"links\.tar\.bz2|page"):
        tatoeba._read_through(path)


@pytest.mark.parametrize(
    ("given", "reason"),
    [("eng", "1 languages make no pairs"), ("", "0 languages"), ("eng,de; drop", "'de; drop' is no language")],
)
def test_a_list_of_languages_that_makes_no_sense(given: str, reason: str) -> None:
    with pytest.raises(Problem, match=reason):
        tatoeba._languages(given)


def test_languages_are_a_list_or_a_text() -> None:
    assert tatoeba._languages(" eng, deu,eng ,") == tatoeba._languages(["eng", "deu"]) == ["eng", "deu"]


def big(folder: Path, count: int) -> int:
    """Exports of so many sentences, as streams: what is written is never wholly in memory. Returns bytes of text."""
    rng = random.Random(3)
    total = 0
    for name, line in (
        (tatoeba.DETAILED, lambda n: f"{n}\t{('eng', 'deu')[n % 2]}\t{rng.random()} {'x' * 60}\tann\t\\N\t\\N\n"),
        (tatoeba.LINKS, lambda n: f"{n}\t{n + 1}\n"),
    ):
        text = folder / "text"
        with text.open("w") as file:
            for number in range(1, count):
                total += file.write(line(number))
        with bz2.open(folder / name, "wb", compresslevel=1) as packed, tarfile.open(fileobj=packed, mode="w|") as tar:
            tar.add(text, arcname=name.replace(".tar.bz2", ".csv"))
        text.unlink()
    (folder / tatoeba.CC0).write_bytes(double.archive("sentences_CC0.csv", b""))
    return total


def test_an_export_is_read_in_memory_that_does_not_grow_with_it(tmp_path: Path) -> None:
    """A byte for each sentence id is all that stays: here 1 % of the text."""
    peaks = {}
    for count in (4_000, 40_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        size = big(folder, count)
        languages = ["eng", "deu"]
        tracemalloc.start()
        read = sum(1 for _ in tatoeba.sentences(folder / tatoeba.DETAILED, folder / tatoeba.CC0, languages))
        of = tatoeba.language_of(folder / tatoeba.DETAILED, languages)
        linked = sum(1 for _ in tatoeba.links(folder / tatoeba.LINKS, of, languages))
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (read, linked, len(of)) == (count - 1, count // 2 - 1, count)
    assert peaks[40_000] < peaks[4_000] + 4 * 40_000
    assert peaks[40_000] < size / 3
