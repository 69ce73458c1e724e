"""Species accounts without stores: what an article says, and what is not as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from upstreams.landed_bytes import LandedBytes
from upstreams.live import LIVE
from upstreams.species_accounts import Encyclopedia, article, expected

from ingestion.contract import BadPage, Context
from ingestion.rows import check
from ingestion.sources import species_accounts
from storage.errors import Problem
from storage.settings import Settings

GOLDEN = Path(__file__).parent / "golden"
SITE = "http://wiki.example"


def body(species: str = "Turdus merula", **told: Any) -> bytes:
    server = Encyclopedia([article(species, **told)])
    server.url = SITE
    return server.answer(f"/wiki/{species.replace(' ', '_')}", {}).body


def page(text: bytes, species: str = "Turdus merula") -> LandedBytes:
    return LandedBytes(text, f"{SITE}/wiki/{species.replace(' ', '_')}", species=species)


def read(text: bytes, species: str = "Turdus merula") -> dict[str, Any]:
    (record,) = species_accounts.parse(page(text, species))
    assert isinstance(record, dict)
    return record


def test_the_golden_article_gives_the_golden_document() -> None:
    shown = read((GOLDEN / "species_account.html").read_bytes())
    assert shown == json.loads((GOLDEN / "species_account.json").read_text())
    assert check(species_accounts.ACCOUNTS, shown) == ""


@pytest.mark.parametrize("headings", ["new", "old"])
@pytest.mark.parametrize("species", ["Parus major", "Strix aluco", "Anas platyrhynchos"])
def test_an_article_is_read_as_it_is_written(species: str, headings: str) -> None:
    one = article(species, headings=headings)
    assert read(body(species, headings=headings), species) == expected(one, SITE)


@pytest.mark.parametrize(
    ("was", "becomes", "says"),
    [
        ('id="firstHeading"', 'id="heading"', "a heading"),
        ("infobox biota", "box", "a taxonomy box"),
        ("mw-parser-output", "output", "a taxonomy box"),
        (":</td>", "</td>", "ranks in its taxonomy box"),
        ("<p>", "<div>", "a text before its first heading"),
    ],
)
def test_an_article_that_is_not_as_it_was_is_a_bad_page(was: str, becomes: str, says: str) -> None:
    with pytest.raises(BadPage, match=says):
        read(body().replace(was.encode(), becomes.encode()))


@pytest.mark.parametrize("was", ["footer-info-copyright", "Creative Commons"])
def test_an_article_without_its_licence_breaks_the_contract(was: str) -> None:
    record = read(body().replace(was.encode(), b"elsewhere"))
    assert check(species_accounts.ACCOUNTS, record) == "licence is missing"


def test_the_licence_is_the_one_that_the_page_names() -> None:
    text = body().replace(b"ShareAlike 4.0 License", b"ShareAlike 5.0 License").replace(b"by-sa/4.0/", b"by-sa/5.0/")
    record = read(text)
    assert record["licence"] == "Creative Commons Attribution-ShareAlike 5.0 License"
    assert record["licence_url"] == "https://creativecommons.org/licenses/by-sa/5.0/"
    assert record["attribution"].endswith(record["licence"])


@pytest.mark.parametrize("text", [b"", b"\x00" * 10, b"\xff<p>", b"<div>" * 3_000])
def test_what_is_no_article_is_a_bad_page(text: bytes) -> None:
    with pytest.raises(BadPage):
        read(text)


def test_names_that_are_none_are_refused_before_anybody_is_asked() -> None:
    config = {name: default for name, (default, _) in species_accounts.SOURCE.config.items()}
    context = Context(
        config | {"url": SITE, "species": ["blackbird"]},
        {},
        species_accounts.ACCOUNTS,
        None,
        Settings(),
        lambda text: None,
    )
    with pytest.raises(Problem, match="'blackbird' is no scientific name"):
        list(species_accounts.fetch(context))


def test_off_until_an_address_is_given() -> None:
    config = {name: default for name, (default, _) in species_accounts.SOURCE.config.items()}
    context = Context(config, {}, species_accounts.ACCOUNTS, None, Settings(), lambda text: None)
    assert list(species_accounts.fetch(context)) == []


@pytest.fixture(params=["double", *LIVE])
def answered(request: pytest.FixtureRequest) -> bytes:
    """An article of the double, and of Wikipedia when a person asks for that."""
    if request.param == "double":
        return body()
    from ingestion.web import Web

    found = Web(Settings(), rate="1/second").get(f"{species_accounts.SITE}/Turdus_merula")
    assert found
    return found.body


def test_the_site_is_as_we_read_it(answered: bytes) -> None:
    record = read(answered)
    assert check(species_accounts.ACCOUNTS, record) == ""
    assert record["binomial"] == "Turdus merula"
    assert "by-sa" in record["licence_url"]
