"""GBIF sounds without stores: what is asked, how a query that is too large is split, and what a page must be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest
from upstreams.gbif import Gbif, made, occurrence
from upstreams.landed_bytes import LandedBytes
from upstreams.live import LIVE

from ingestion import paging
from ingestion.contract import Bad, BadPage, Context
from ingestion.rows import check
from ingestion.sources import gbif_sounds
from storage.errors import Problem
from storage.settings import Settings


def options(**given: Any) -> dict[str, Any]:
    return {name: default for name, (default, _) in gbif_sounds.SOURCE.config.items()} | {"rate": ""} | given


def context(config: dict[str, Any], cursor: dict[str, Any] | None = None, interval: Any = None) -> Context:
    return Context(config, cursor or {}, gbif_sounds.OCCURRENCES, interval, Settings(), lambda text: None)


def api(config: dict[str, Any]) -> gbif_sounds.Api:
    found = gbif_sounds._api(context(config))
    assert found
    return found


@pytest.fixture
def upstream() -> Iterator[Gbif]:
    with Gbif(made(400)).serving() as server:
        assert isinstance(server, Gbif)
        server.every = 9
        yield server


def reach(server: Gbif, **given: Any) -> dict[str, Any]:
    return options(url=f"{server.url}/v1", allowed_hosts=[server.host]) | given


def read(api: gbif_sounds.Api) -> tuple[list[paging.Part], list[Any]]:
    parts = list(gbif_sounds._parts(api, api.query, api.count(api.query), {}))
    return parts, [one for part in parts for sheet in part.sheets(None) for one in sheet.records]


@pytest.fixture(params=["double", *LIVE])
def reached(request: pytest.FixtureRequest, upstream: Gbif) -> dict[str, Any]:
    """Options that lead to the double, and to the real service when a person asks for that."""
    if request.param == "double":
        return reach(upstream, deepest=150)
    few = {"taxonKey": 212, "country": "LU", "year": "2015,2016"}
    return options(url=gbif_sounds.API, filters=few, rate="1/second", deepest=200)


def test_a_large_query_is_split_until_each_part_can_be_read(reached: dict[str, Any]) -> None:
    """The contract with the API; ``LYREBIRD_LIVE=1`` tries it on the real one too."""
    asked = api(reached)
    parts, found = read(asked)
    assert len(parts) > 1
    assert len({one["key"] for one in found}) == len(found) == asked.count(asked.query)
    assert {check(gbif_sounds.OCCURRENCES, one) for one in found} == {""}


def test_a_query_that_is_small_is_not_split(upstream: Gbif) -> None:
    parts, found = read(api(reach(upstream)))
    assert len(parts) == 1 and len(found) == 400
    assert [params["offset"] for _, params in upstream.requests if "offset" in params][-1] == "300"
    assert api(reach(upstream, filters={"country": "BR", "hasCoordinate": True})).query == {
        "country": "BR",
        "hasCoordinate": "true",
        "mediaType": "Sound",
    }


def test_a_facet_that_not_all_records_have_is_passed_over(upstream: Gbif) -> None:
    for key in sorted(upstream.occurrences)[::9]:
        del upstream.occurrences[key]["year"]
    parts, found = read(api(reach(upstream, deepest=300)))
    assert len(found) == 400
    assert all("year=" not in part.name and "month=" in part.name for part in parts)


def test_records_that_no_part_reaches_are_counted(upstream: Gbif) -> None:
    """Everything about them is the same but the year, and some have none."""
    upstream.faulty = False
    upstream.occurrences = {
        key: occurrence(
            key, datasetKey="d", countryCode="DE", month=5, license="CC0", decimalLatitude=1.0,
            year=None if key % 10 == 0 else 2000 + key % 4,
        )
        for key in range(1, 201) if key % 13
    }  # fmt: skip
    parts, _ = read(api(reach(upstream, deepest=60)))
    assert [part.name.rsplit("&", 1)[-1] for part in parts[:-1]] == [f"year={year}" for year in range(2000, 2004)]
    assert [part.hidden for part in parts] == [False] * 4 + [True]
    (rest,) = parts[-1].sheets(None)
    (bad,) = gbif_sounds.OCCURRENCES.parse(LandedBytes(bytes(rest.page.body), "query", **rest.page.meta))  # type: ignore[arg-type]
    assert isinstance(bad, Bad) and bad.reason.startswith("19 records are in none of the parts")


def test_nothing_to_split_by_is_counted_too(upstream: Gbif) -> None:
    upstream.faulty = False
    upstream.occurrences = {
        key: occurrence(key, datasetKey="d", countryCode="DE", month=5, license="CC0", decimalLatitude=1.0, year=2000)
        for key in range(1, 101)
        if key % 13
    }
    parts, found = read(api(reach(upstream, deepest=60)))
    assert len([one for one in found if isinstance(one, dict)]) == 60
    assert next(parts[-1].sheets(None)).page.meta == {"unreached": 33}


def test_facets_of_many_values_are_paged(upstream: Gbif, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gbif_sounds, "BUCKETS", 2)
    asked = api(reach(upstream))
    values, now = gbif_sounds._facet(asked, asked.query, "year")
    assert sum(values.values()) == now == 400


def test_records_that_are_added_while_it_is_split_do_not_keep_it_from_being_split(
    upstream: Gbif, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers, answer = count(9_000_000_000), upstream.answer

    def grow(path: str, params: dict[str, str]) -> Any:
        if "facet" in params:
            key = next(numbers)
            upstream.occurrences[key] = occurrence(key)
        return answer(path, params)

    monkeypatch.setattr(upstream, "answer", grow)
    parts, found = read(api(reach(upstream, deepest=150)))
    assert len(parts) > 2 and not any(part.hidden for part in parts)
    assert {one["key"] for one in found} == upstream.occurrences.keys()


def test_a_part_that_outgrows_one_query_is_missing_something(upstream: Gbif) -> None:
    upstream.faulty = False
    asked = api(reach(upstream, deepest=150))
    for whole, total in ((True, 400), (False, 150)):
        sheets = list(gbif_sounds._sheets(asked, asked.query, {}, None, whole=whole))
        assert {sheet.total for sheet in sheets} == {total}
        assert sum(len(sheet.records) for sheet in sheets) == 150


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"Max offset of 100001 exceeded: 100001 + 1", "no JSON"),
        (b'{"count": 1, "endOfRecords": true, "occurrences": []}', "no list of results"),
        (b'{"endOfRecords": true, "results": []}', "no count"),
        (b'{"count": "1", "endOfRecords": true, "results": []}', "no count"),
        (b'{"count": 1, "results": []}', "no endOfRecords"),
    ],
)
def test_a_page_that_is_none_says_so(body: bytes, reason: str) -> None:
    with pytest.raises(BadPage, match=reason):
        list(gbif_sounds.OCCURRENCES.parse(LandedBytes(body)))


def test_records_without_a_key_break_the_contract_and_a_backfill_keeps_its_days() -> None:
    records: list[Any] = [occurrence(1, lastInterpreted="2024-05-01T23:59:59+00:00"), occurrence(2), "x"]
    del records[1]["key"]
    body = json.dumps({"count": 3, "endOfRecords": True, "results": records}).encode()
    whole = list(gbif_sounds.OCCURRENCES.parse(LandedBytes(body)))
    assert [check(gbif_sounds.OCCURRENCES, one) for one in whole if isinstance(one, dict)] == ["", "key is missing"]
    assert isinstance(whole[2], Bad)
    days = gbif_sounds.OCCURRENCES.parse(LandedBytes(body, days=["2024-05-01", "2024-05-02"]))
    assert [one["key"] for one in days if isinstance(one, dict)] == [1]


def test_options_that_make_no_sense_are_told_and_none_means_nothing_is_asked(upstream: Gbif) -> None:
    assert list(gbif_sounds.OCCURRENCES.fetch(context(options()))) == []
    for filters in ("taxonKey=212", {"offset": 3}, {"mediaType": "StillImage"}):
        with pytest.raises(Problem, match="filters is"):
            api(reach(upstream, filters=filters))
    with pytest.raises(Problem, match="deepest is -1"):
        api(reach(upstream, deepest=-1))
    with pytest.raises(Problem, match="GBIF has no sound for country=ZZ"):
        list(gbif_sounds.OCCURRENCES.fetch(context(reach(upstream, filters={"country": "ZZ"}))))


def test_an_interval_asks_for_its_days(upstream: Gbif, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(paging, "read", lambda context, parts, turn, known: [asked.extend(p.name for p in parts)])
    interval = (datetime(2020, 12, 5, tzinfo=UTC), datetime(2020, 12, 8, tzinfo=UTC))
    list(gbif_sounds.OCCURRENCES.fetch(context(reach(upstream), interval=interval)))
    assert asked == ["lastInterpreted=2020-12-05%2C2020-12-07&mediaType=Sound&taxonKey=212"]
