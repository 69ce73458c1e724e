"""Mutopia without stores: what its pages say, and what is not as it was."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from upstreams.landed_bytes import LandedBytes
from upstreams.live import LIVE
from upstreams.mutopia import Mutopia, expected, made, piece, sound

from ingestion.contract import Bad, BadPage, Context
from ingestion.rows import check
from ingestion.sources import mutopia
from storage.errors import Problem
from storage.settings import Settings

GOLDEN = Path(__file__).parent / "golden"
SITE = "http://site.example"


def double(count: int = 25) -> Mutopia:
    server = Mutopia(made(count))
    server.url, server.faulty = SITE, False
    return server


def listing(server: Mutopia, start: int, **more: str) -> mutopia.Listing:
    reply = server.answer("/cgibin/make-table.cgi", {"startat": str(start)} | more)
    return mutopia.read_listing(reply.body, f"{SITE}/cgibin/make-table.cgi?startat={start}")


def page(body: bytes, number: int = 276, **meta: Any) -> LandedBytes:
    return LandedBytes(body, f"{SITE}/cgibin/piece-info.cgi?id={number}", piece=number, **meta)


def read(server: Mutopia, number: int) -> dict[str, Any]:
    body = server.answer("/cgibin/piece-info.cgi", {"id": str(number)}).body
    (record,) = mutopia.parse_piece(page(body, number))
    assert isinstance(record, dict)
    return record


def test_the_golden_page_of_a_piece_gives_the_golden_row() -> None:
    (record,) = mutopia.parse_piece(page((GOLDEN / "mutopia_piece.html").read_bytes()))
    assert isinstance(record, dict)
    shown = record | {"updated": record["updated"].isoformat()}
    assert shown == json.loads((GOLDEN / "mutopia_piece.json").read_text())
    assert check(mutopia.PIECES, record) == ""


def test_every_piece_is_read_as_the_site_has_it() -> None:
    server = double(200)
    for number, one in server.pieces.items():
        record, wanted = read(server, number), expected(one, SITE)
        assert {name: str(record[name]) if name == "updated" else record[name] for name in wanted} == wanted
        assert check(mutopia.PIECES, record) == ""


def test_the_listing_is_read_page_by_page_to_its_end() -> None:
    server = double(25)
    pages = [listing(server, start) for start in (0, 10, 20, 30)]
    assert [(len(one.pieces), one.next) for one in pages] == [(10, 10), (10, 20), (5, None), (0, None)]
    shown = dict(entry for one in pages for entry in one.pieces)
    assert shown == {one.number: expected(one, SITE)["updated"] for one in server.pieces.values()}


@pytest.mark.parametrize(
    ("was", "becomes", "says"),
    [
        ("result-table", "results", "a table of class result-table"),
        ("outer-table", "outer", "a table of class result-table"),
        ("piece-info.cgi?id=", "piece/", "a link to piece-info.cgi and a day"),
        ("/0", "-0", "a link to piece-info.cgi and a day"),
    ],
)
def test_a_listing_that_is_not_as_it_was_is_a_problem(was: str, becomes: str, says: str) -> None:
    body = double().answer("/cgibin/make-table.cgi", {"startat": "0"}).body.replace(was.encode(), becomes.encode())
    with pytest.raises(Problem) as raised:
        mutopia.read_listing(body, "http://x/y")
    assert raised.value.what.startswith("mutopia: http://x/y has not")
    assert says in raised.value.what


@pytest.mark.parametrize("body", [b"", b"<html></html>", b"\x00\xff" * 50, b"<table><tr><td>" * 2_000])
def test_what_is_no_page_of_a_piece_is_a_bad_page(body: bytes) -> None:
    with pytest.raises(BadPage, match="has not a heading"):
        list(mutopia.parse_piece(page(body)))
    assert not mutopia.is_missing(body)


@pytest.mark.parametrize(
    ("was", "becomes", "missing"),
    [
        ("Copyright:", "Licence:", "licence"),
        ("Last updated:", "Changed:", "updated"),
        ("MIDI file", "Sound file", "midi_url"),
        ("Style:", "Sort:", "style"),
        ("Music ID Number:", "Number:", "music_id"),
    ],
)
def test_a_fact_that_is_not_where_it_was_breaks_the_contract(was: str, becomes: str, missing: str) -> None:
    server = double()
    body = server.answer("/cgibin/piece-info.cgi", {"id": str(min(server.pieces))}).body
    (record,) = mutopia.parse_piece(page(body.replace(was.encode(), becomes.encode())))
    assert isinstance(record, dict)
    assert check(mutopia.PIECES, record) == f"{missing} is missing"


def test_a_piece_that_is_not_there_is_told_from_one_that_cannot_be_read() -> None:
    server = double()
    assert mutopia.is_missing(server.answer("/cgibin/piece-info.cgi", {"id": "9999"}).body)
    assert not mutopia.is_missing(server.answer("/cgibin/piece-info.cgi", {"id": str(min(server.pieces))}).body)


def test_marks_in_titles_and_remarks_are_text() -> None:
    server = double()
    server.pieces = {
        7: replace(piece(7), title='<b>"Été" & co</b>', edition="A < B", remarks="See <a href='x'>it</a>.")
    }
    record = read(server, 7)
    assert record["title"] == '<b>"Été" & co</b>'
    assert record["edition"] == "A < B"
    assert record["more_information"] == "See it."


def test_a_midi_file_is_a_row_and_anything_else_is_not() -> None:
    told = {"piece": 7, "title": "T", "composer": None, "licence": "Public Domain", "updated": "2020-02-29", "url": "u"}
    (record,) = mutopia.parse_score(LandedBytes(sound(7), "A/O1/a/a.mid", **told))
    assert isinstance(record, dict)
    assert check(mutopia.SCORES, record) == ""
    assert (record["path"], record["updated"], record["bytes"]) == ("A/O1/a/a.mid", date(2020, 2, 29), len(sound(7)))
    for body, more, says in ((b"<html>", {}, "is no MIDI file"), (b"", {"failed": "answered 404"}, "answered 404")):
        (bad,) = mutopia.parse_score(LandedBytes(body, "a.mid", **told, **more))
        assert isinstance(bad, Bad)
        assert says in bad.reason


def test_off_until_an_address_is_given() -> None:
    config = {name: default for name, (default, _) in mutopia.SOURCE.config.items()}
    for resource in mutopia.SOURCE.resources:
        assert list(resource.fetch(Context(config, {}, resource, None, Settings(), lambda text: None))) == []


@pytest.fixture(params=["double", *LIVE])
def answered(request: pytest.FixtureRequest) -> tuple[bytes, bytes]:
    """The first page of the listing and the page of piece 276, of the double, and of the site when a person asks."""
    if request.param == "double":
        server = Mutopia([*made(25), piece(276)])
        server.url = SITE
        parts = (("/cgibin/make-table.cgi", {"startat": "0"}), ("/cgibin/piece-info.cgi", {"id": "276"}))
        return tuple(server.answer(*part).body for part in parts)  # type: ignore[return-value]
    from ingestion.web import Web

    web = Web(Settings(), rate="1/second")
    found = [web.get(f"{mutopia.SITE}/cgibin/{one}") for one in ("make-table.cgi?startat=0", "piece-info.cgi?id=276")]
    assert found[0] and found[1]
    return found[0].body, found[1].body


def test_the_site_is_as_we_read_it(answered: tuple[bytes, bytes]) -> None:
    shown = mutopia.read_listing(answered[0], "live")
    assert len(shown.pieces) == mutopia.PER_PAGE
    assert shown.next == mutopia.PER_PAGE
    (record,) = mutopia.parse_piece(page(answered[1]))
    assert isinstance(record, dict)
    assert check(mutopia.PIECES, record) == ""
