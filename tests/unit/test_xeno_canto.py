"""xeno-canto without stores: what is asked, what a page must be, and what its API does not say."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from upstreams.landed_bytes import LandedBytes
from upstreams.live import LIVE
from upstreams.xeno_canto import KEY, XenoCanto, entry, made, real

from ingestion import paging
from ingestion.contract import Bad, BadPage, Context
from ingestion.rows import check
from ingestion.sources import xeno_canto
from storage.errors import Problem
from storage.settings import Settings

GOLDEN = Path(__file__).parent / "golden" / "xeno_canto_page.json"
CATALOGUE = Path(__file__).resolve().parents[3] / "shared" / "data" / "xeno_canto" / "recordings.csv"
LIVE_KEY = os.environ.get("LYREBIRD_LIVE_XENO_CANTO_KEY", "")


def options(**given: Any) -> dict[str, Any]:
    return {name: default for name, (default, _) in xeno_canto.SOURCE.config.items()} | {"rate": ""} | given


def context(config: dict[str, Any], cursor: dict[str, Any] | None = None, interval: Any = None) -> Context:
    return Context(config, cursor or {}, xeno_canto.RECORDINGS, interval, Settings(), lambda text: None)


def api(config: dict[str, Any]) -> xeno_canto.Api:
    found = xeno_canto._api(context(config))
    assert found
    return found


@pytest.fixture
def upstream() -> Iterator[XenoCanto]:
    with XenoCanto(made(230)).serving() as server:
        assert isinstance(server, XenoCanto)
        server.every, server.shifted = 5, True
        yield server


def reach(server: XenoCanto, **given: Any) -> dict[str, Any]:
    return options(url=f"{server.url}/api/3", key=KEY, allowed_hosts=[server.host], per_page=50) | given


@pytest.fixture(params=["double", *LIVE])
def reached(request: pytest.FixtureRequest, upstream: XenoCanto) -> dict[str, Any]:
    """Options that lead to the double, and to the real service when a person asks for that."""
    if request.param == "double":
        return reach(upstream)
    if not LIVE_KEY:
        pytest.fail("xeno-canto answers nobody without a key: set LYREBIRD_LIVE_XENO_CANTO_KEY, or not LYREBIRD_LIVE")
    return options(url=xeno_canto.API, key=LIVE_KEY, query="gen:nothocercus grp:birds", per_page=50, rate="1/second")


def test_a_golden_page_becomes_its_recordings_with_every_field() -> None:
    body = GOLDEN.read_bytes()
    found = list(xeno_canto.RECORDINGS.parse(LandedBytes(body)))
    assert found == json.loads(body)["recordings"]
    reasons = [check(xeno_canto.RECORDINGS, one) for one in found if isinstance(one, dict)]
    assert reasons == ["", "", "id is missing"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"<html>down for maintenance</html>", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "a list where the API gives an object"),
        (b'{"error": "client_error", "message": "No query specified"}', "the API says: No query specified"),
        (b'{"numRecordings": "1", "numPages": 1, "items": []}', "no list of recordings"),
        (b'{"numRecordings": "1", "numPages": 1, "recordings": {"also": []}}', "no list of recordings"),
        (b'{"recordings": []}', "no count of recordings"),
        (b'{"numRecordings": "many", "numPages": 1, "recordings": []}', "no count of recordings"),
    ],
)
def test_a_page_that_is_none_says_so(body: bytes, reason: str) -> None:
    with pytest.raises(BadPage, match=reason):
        list(xeno_canto.RECORDINGS.parse(LandedBytes(body)))


def test_what_is_no_object_among_the_recordings_is_bad() -> None:
    body = json.dumps({"numRecordings": "2", "numPages": 1, "recordings": ["x", entry(7, "Avisus primus")]}).encode()
    first, second = xeno_canto.RECORDINGS.parse(LandedBytes(body))
    assert isinstance(first, Bad) and first.payload == "x"
    assert isinstance(second, dict) and second["id"] == "7"


def test_a_backfill_keeps_the_uploads_of_its_days_only() -> None:
    page = LandedBytes(GOLDEN.read_bytes(), days=["2013-01-05", "2013-01-06"])
    assert [one["id"] for one in xeno_canto.RECORDINGS.parse(page) if isinstance(one, dict)] == ["300011"]


@pytest.mark.parametrize("count", [1_500])
def test_every_entry_of_the_catalogue_keeps_the_page_contract(count: int) -> None:
    entries = made(count) + (real(CATALOGUE) if CATALOGUE.exists() else [])
    assert {check(xeno_canto.RECORDINGS, one) for one in entries} == {""}
    assert len({one["length"] for one in entries}) > 50 and any(one["lat"] is None for one in entries)


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({}, "grp:birds"),
        ({"country": "Brazil", "quality": "A"}, "grp:birds cnt:Brazil q:A"),
        ({"country": "New Zealand", "quality": ">C"}, 'grp:birds cnt:"New Zealand" q:">C"'),
        ({"query": "", "species": "Larus fuscus"}, 'sp:"Larus fuscus"'),
        ({"query": 'gen:larus type:"flight call"'}, 'gen:larus type:"flight call"'),
    ],
)
def test_options_become_tags(given: dict[str, Any], asked: str) -> None:
    assert xeno_canto.question(options(**given)) == asked


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"query": "larus"}, "no query of tags"),
        ({"query": ""}, "no query of tags"),
        ({"query": "gen:larus fuscus"}, "no query of tags"),
        ({"query": "since:3 grp:birds"}, "sets since: or nr:"),
        ({"query": "grp:birds nr:1-9"}, "sets since: or nr:"),
        ({"country": 'Brazil" nr:"1'}, "Leave the quotation marks out"),
        ({"per_page": 20}, "per_page is 20"),
        ({"per_page": "many"}, "per_page is 'many'"),
    ],
)
def test_options_that_make_no_sense_are_told(given: dict[str, Any], said: str) -> None:
    with pytest.raises(Problem, match=said):
        list(xeno_canto.RECORDINGS.fetch(context(options(url="http://127.0.0.1:1", key="k", **given))))


def test_without_an_address_nothing_is_asked_and_without_a_key_one_sentence_says_what_to_do() -> None:
    assert list(xeno_canto.RECORDINGS.fetch(context(options()))) == []
    with pytest.raises(Problem) as told:
        list(xeno_canto.RECORDINGS.fetch(context(options(url=xeno_canto.API))))
    assert str(told.value) == (
        "xeno_canto has no key, and the API answers nobody without one. Put a member's key "
        "(https://xeno-canto.org/account) into the option `key` of [sources.xeno_canto]"
    )


def test_a_wrong_key_is_told_and_never_shown(upstream: XenoCanto) -> None:
    with pytest.raises(Problem, match="xeno-canto refuses the key") as told:
        api(reach(upstream, key="s3cret-key")).ask()
    assert "https://xeno-canto.org/account" in told.value.remedy
    assert "s3cret" not in str(told.value)
    page = api(reach(upstream)).ask()
    assert KEY not in page.name and "query=grp%3Abirds" in page.name


def test_a_query_that_the_api_refuses_is_told(upstream: XenoCanto) -> None:
    with pytest.raises(Problem, match="does not understand the query 'grp:birds free text'"):
        api(reach(upstream, query="grp:birds")).ask("free text")


def test_a_list_is_read_to_its_end_in_spite_of_faults(reached: dict[str, Any]) -> None:
    """The contract with the API; ``LYREBIRD_LIVE=1`` tries it on the real one too."""
    sheets = list(xeno_canto._sheets(api(reached), "", {}, None))
    found = [one for sheet in sheets for one in sheet.records]
    assert len({one["id"] for one in found}) == len(found) == sheets[0].total > 0
    assert {check(xeno_canto.RECORDINGS, one) for one in found} == {""}
    assert [sheet.place for sheet in sheets] == list(range(2, len(sheets) + 2))
    again = list(xeno_canto._sheets(api(reached), "", {}, sheets[0].place))
    assert len(again) == len(sheets) - 1


def test_the_page_too_many_of_a_full_last_page_is_no_page(upstream: XenoCanto) -> None:
    upstream.faulty = False
    for number in sorted(upstream.entries)[200:]:
        del upstream.entries[number]
    sheets = list(xeno_canto._sheets(api(reach(upstream)), "", {}, None))
    assert [len(sheet.records) for sheet in sheets] == [50, 50, 50, 50]
    assert json.loads(api(reach(upstream)).ask(page=5).body or b"")["recordings"] == [{"also": []}]


def test_the_number_of_a_day_bounds_what_a_backfill_asks_for(upstream: XenoCanto, monkeypatch: Any) -> None:
    monkeypatch.setattr(xeno_canto, "FAR", 1)
    upstream.faulty = False
    days = ("2008-01-01", "2008-06-01")
    within = {number for number, one in upstream.entries.items() if days[0] <= one["uploaded"] < days[1]}
    interval = tuple(datetime.fromisoformat(day).replace(tzinfo=UTC) for day in days)
    turn = paging.turn(context(reach(upstream), interval=interval), "grp:birds")
    assert turn and turn.days == days
    more = xeno_canto._between(api(reach(upstream)), *days, slack=timedelta(days=3))
    assert more.startswith("since:2008-01-01 nr:1-")
    before = len(upstream.requests)
    sheets = list(xeno_canto._sheets(api(reach(upstream)), more, turn.meta(), None))
    assert {one["id"] for sheet in sheets for one in sheet.records} == within != set()
    assert len(upstream.requests) - before == 1  # of the five pages that were uploaded since
    late = {one["uploaded"] for sheet in sheets for one in sheet.aside}
    assert all(day < "2008-08-01" for day in late)


@pytest.mark.parametrize(
    ("gap", "days"),
    [
        (range(0), ("2005-01-01", "2006-11-01")),
        (range(100_000, 700_000), ("2010-06-01",)),
        (range(200_000, 1_000_000), ("2030-01-01",)),
    ],
)
def test_the_number_of_a_day_is_never_too_small(upstream: XenoCanto, gap: range, days: tuple[str, ...]) -> None:
    """Numbers that nobody has, many in a row; days before the first upload and after the last."""
    upstream.faulty = False
    crowd = [entry(number, "Avisus primus") for number in range(50_000, 50_600)]  # denser than a page
    kept = [one for number, one in upstream.entries.items() if int(number) not in gap]
    upstream.entries = {one["id"]: one for one in (*kept, *crowd)}
    for day in days:
        number = xeno_canto._number_of(api(reach(upstream)), date.fromisoformat(day))
        earlier = [int(one["id"]) for one in upstream.entries.values() if one["uploaded"] < day]
        assert number > max(earlier, default=0)
        later = sorted(int(one["id"]) for one in upstream.entries.values() if one["uploaded"] >= day)
        assert len([each for each in later if each <= number]) <= 2 * xeno_canto.BLOCK


@pytest.mark.parametrize(
    ("licence", "code"),
    [
        ("//creativecommons.org/licenses/by-nc-sa/4.0/", "BY-NC-SA"),
        ("https://creativecommons.org/licenses/by/4.0/", "BY"),
        ("https://creativecommons.org/publicdomain/zero/1.0/", "CC0"),
        ("CC-BY-SA", "BY-SA"),
        ("by-nc-nd", "BY-NC-ND"),
        ("PD", "CC0"),
        ("", ""),
        ("all rights reserved", "ALL RIGHTS RESERVED"),
    ],
)
def test_licences_in_short(licence: str, code: str) -> None:
    assert xeno_canto.code(licence) == code


def test_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    config = options(lag_days=3, full_every_days=30)
    monkeypatch.setattr(paging, "today", lambda: date(2024, 5, 10))
    first = paging.turn(context(config), "q")
    assert first and first.whole
    assert first.done() == {"question": "q", "since": "2024-05-10", "full": "2024-05-10"}
    then = paging.turn(context(config, first.done()), "q")
    assert then and then.since == "2024-05-07" and not then.whole
    assert then.done() == first.done()
    monkeypatch.setattr(paging, "today", lambda: date(2024, 6, 9))
    due = paging.turn(context(config, then.done()), "q")
    assert due and due.whole
    other = paging.turn(context(config, then.done()), "another")
    assert other and other.whole and other.stamps == {"question": "another"}
    half = first.going_on("list", 7)
    resumed = paging.turn(context(config, half), "q")
    assert resumed and resumed.whole and resumed.start == ("list", 7) and resumed.began == "2024-05-10"
    assert resumed.done() == {"question": "q", "since": "2024-05-10"}  # not full: what it missed before, nobody knows


def test_a_day_belongs_to_the_interval_in_which_it_begins() -> None:
    def days(first: datetime, last: datetime) -> Any:
        turn = paging.turn(context(options(), interval=(first, last)), "q")
        return turn and turn.days

    assert days(datetime(2024, 5, 1, tzinfo=UTC), datetime(2024, 5, 2, tzinfo=UTC)) == ("2024-05-01", "2024-05-02")
    assert days(datetime(2024, 5, 1, 4, tzinfo=UTC), datetime(2024, 5, 2, 4, tzinfo=UTC)) == (
        "2024-05-02",
        "2024-05-03",
    )
    assert days(datetime(2024, 5, 1, 4, tzinfo=UTC), datetime(2024, 5, 1, 5, tzinfo=UTC)) is None
