"""manythings.org's files as records: the attribution of each line is kept, read, and never done without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from upstreams import manythings as double
from upstreams.landed_bytes import LandedBytes

from ingestion import rows
from ingestion.contract import Bad, BadPage
from ingestion.sources import manythings
from storage.errors import Problem

GOLDEN = Path(__file__).parent / "golden" / "manythings_deu.txt"
(PAIRS,) = manythings.SOURCE.resources


def parsed(made: double.Manythings, language: str) -> list[Any]:
    page = LandedBytes(made.file(language), f"{language}-eng.zip", "application/zip", language=language)
    return list(PAIRS.parse(page))


@pytest.mark.parametrize("language", ["deu", "rus", "spa"])
def test_pairs_arrive_with_their_attribution(language: str) -> None:
    made = double.Manythings(double.made(30))
    found = parsed(made, language)
    wanted = [one.row() for one in made.pairs if one.language == language]
    assert found == [*wanted, wanted[-1]]  # the last one is there twice
    assert [rows.check(PAIRS, one) for one in found] == [""] * len(found)


def test_lines_as_published() -> None:
    """Lines of the real file, as public repositories quote them."""
    lines = GOLDEN.read_bytes().splitlines(keepends=True)
    first, second, *others = (manythings._record(line, number, "deu") for number, line in enumerate(lines, 1))
    assert isinstance(first, dict) and isinstance(second, dict)
    assert first == double.Pair(*double.PUBLIC[0]).row()
    assert (second["contributor"], second["translation"]) == ("papabear", "Lauf!")
    assert [one.reason for one in others if isinstance(one, Bad)] == [
        "line 3 has 2 fields, not 3",
        "line 4 has no attribution that can be read",
    ]


def test_lines_without_attribution_are_never_used() -> None:
    made = double.Manythings(double.made(30))
    good = [one.row() for one in made.pairs if one.language == "deu"]
    made.extra = (
        b"Hi.\tHallo.\n",
        b"Hi.\tHallo.\tCC-BY 4.0\n",
        b"No UTF-8 \xff\tx\ty\n",
        b"\n",
        b"x" * 100_000 + b"\n",
    )
    found = parsed(made, "deu")
    assert [one for one in found if isinstance(one, dict)] == [*good, good[-1]]
    assert len([one for one in found if isinstance(one, Bad)]) == len(made.extra)
    made.old, made.extra = True, ()
    assert all(isinstance(one, Bad) for one in parsed(made, "deu"))


def test_a_damaged_file_is_a_bad_page() -> None:
    body = double.Manythings(double.made(30)).file("deu")
    for damaged in (
        b"",
        b"<html>busy</html>",
        body[: len(body) // 2],
        body[: len(body) // 2] + b"\xff\x00" + body[len(body) // 2 + 2 :],
    ):
        with pytest.raises(BadPage):
            list(PAIRS.parse(LandedBytes(damaged, "deu-eng.zip", language="deu")))


@pytest.mark.parametrize("given", ["", [], "deu;rus", "../deu", "DEU"])
def test_a_list_of_languages_that_makes_no_sense(given: Any) -> None:
    with pytest.raises(Problem, match="manythings: "):
        manythings._languages(given)
