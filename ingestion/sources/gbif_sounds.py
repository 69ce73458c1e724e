"""GBIF: occurrences of species that come with a sound, from https://www.gbif.org, through its occurrence search.

* API: ``GET /v1/occurrence/search?mediaType=Sound&…&limit=…&offset=…``, keyless, at most 300 records a page
  (https://techdocs.gbif.org/en/openapi/v1/occurrence). One query gives 100,000 records and no more, so a larger one is
  split by facets until each part is small enough: by the first whose counts add up to all of the query's records, since
  a record without a year, say, is in no year's part. Where none adds up, the records that no part reaches are counted,
  and the count goes to quarantine: nothing is left out in silence.
* The live reading asks for what GBIF ``lastInterpreted`` since the day of the last one, less ``lag_days``; a record
  that a publisher took back has no date to ask for, so the whole is read every ``full_every_days``. A backfill asks for
  what was last interpreted in an interval. Interpreting anew, which GBIF does now and then with everything, gives new
  versions of the documents.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pyarrow as pa

from ingestion import paging
from ingestion.contract import Bad, BadPage, Context, Gone, Landed, Page, Record, Resource, Source, describe
from storage.errors import Problem

if TYPE_CHECKING:
    from ingestion.web import Web

API = "https://api.gbif.org/v1"
MOST_PER_PAGE = 300
FACETS = ("year", "month", "country", "datasetKey", "license", "basisOfRecord", "publishingCountry", "hasCoordinate")
BUCKETS = 1_000  # values of a facet in one answer

Query = dict[str, str]


@dataclass(frozen=True)
class Api:
    """The way to the search: where it is, what is asked of it, and how much one query gives."""

    web: Web
    url: str
    query: Query
    per_page: int
    deepest: int

    def ask(self, query: Mapping[str, str], **more: object) -> Page:
        """The answer to a query, as it came. Raises Problem when there is none."""
        params = dict(query) | {name: str(value) for name, value in more.items()}
        name = f"{self.url}/occurrence/search?{urlencode(params)}"
        try:
            answer = self.web.get(f"{self.url}/occurrence/search", params=params)
        except Problem as error:
            if " answered 400" in error.what:
                raise Problem(f"GBIF does not understand {name}", _FILTERS) from error
            raise
        return Page(name, answer.body if answer else b"", {}, "application/json")

    def look(self, query: Mapping[str, str], **more: object) -> dict[str, Any]:
        """The answer to a query that is not kept. Raises Problem for one that is not as documented."""
        page = self.ask(query, **more)
        try:
            return answer(page.body)
        except BadPage as error:
            raise Problem(f"{page.name} gave {error}", "Look at it; the API may have changed") from None

    def count(self, query: Mapping[str, str]) -> int:
        return int(self.look(query, limit=0)["count"])


_FILTERS = "Mend `filters` of [sources.gbif_sounds]; the parameters are at https://techdocs.gbif.org"


def _api(context: Context) -> Api | None:
    """The API as the options say; None when no address is given. Raises Problem for options that make no sense."""
    config = context.config
    url = str(config["url"] or "").rstrip("/")
    if not url:
        return None
    filters = config["filters"]
    if not isinstance(filters, Mapping) or filters.keys() & {
        "limit",
        "offset",
        "facet",
        "mediaType",
        "lastInterpreted",
    }:
        raise Problem(f"gbif_sounds: filters is {filters!r}", _FILTERS)
    query = {str(name): _text(value) for name, value in filters.items()} | {"mediaType": "Sound"}
    per_page = min(max(paging.natural(config, "per_page"), 1), MOST_PER_PAGE)
    return Api(context.web(), url, query, per_page, max(paging.natural(config, "deepest"), 1))


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def answer(body: object) -> dict[str, Any]:
    """A page of the API, checked. Raises BadPage that says what is not as documented."""
    try:
        found = json.loads(body if isinstance(body, bytes) else b"")
    except (ValueError, RecursionError) as error:
        raise BadPage(f"no JSON: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("results"), list):
        raise BadPage("no list of results: the API is not as it was")
    if not isinstance(found.get("count"), int) or not isinstance(found.get("endOfRecords"), bool):
        raise BadPage("no count or no endOfRecords: the API is not as it was")
    return found


def _parts(api: Api, query: Query, count: int, meta: Mapping[str, Any]) -> Iterator[paging.Part]:
    """A query of so many records, in parts that can be read to their end."""
    best: dict[str, int] = {}
    by, unreached = FACETS[0], max(count - api.deepest, 0)
    for facet in FACETS if unreached else ():
        values, now = ({}, 0) if facet in query else _facet(api, query, facet)
        others = now - sum(values.values())  # fewer than none: records with several values each
        if len(values) > 1 and 0 <= others < unreached:
            best, by, unreached = values, facet, others
        if not unreached:
            break
    for value in sorted(best):
        yield from _parts(api, query | {by: value}, best[value], meta)
    if not best:
        yield paging.Part(_name(query), partial(_sheets, api, query, meta, whole=not unreached))
    if unreached:
        yield paging.Part(f"{_name(query)} rest", lambda start: _rest(api, query, by, unreached), hidden=True)


def _name(query: Query) -> str:
    return urlencode(sorted(query.items()))


def _facet(api: Api, query: Query, facet: str) -> tuple[dict[str, int], int]:
    """How many records of the query have each value of a facet, and how many there are at that moment."""
    values: dict[str, int] = {}
    while True:
        found = api.look(query, limit=0, facet=facet, facetLimit=BUCKETS, facetOffset=len(values))
        try:
            counts = found["facets"][0]["counts"]
            more = {str(one["name"]): int(one["count"]) for one in counts}
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise Problem(f"GBIF gave no counts of the facet {facet}: {error!r}", "The API may have changed") from None
        values |= more
        if len(counts) < BUCKETS:
            return values, int(found["count"])


def _sheets(
    api: Api, query: Query, meta: Mapping[str, Any], start: Any, *, whole: bool = True
) -> Iterator[paging.Sheet]:
    """The pages of a query from an offset on, as far as one query goes: to its end, if that is the ``whole`` of it."""
    offset = int(start or 0)
    while offset < api.deepest:
        page = replace(api.ask(query, limit=min(api.per_page, api.deepest - offset), offset=offset), meta=meta)
        try:
            found = answer(page.body)
        except BadPage:
            raise paging.Broken(page) from None
        results = found["results"]
        offset += len(results)
        kept = [one for one in results if _falls(one, meta)]
        aside = [one for one in results if not _falls(one, meta)]
        total = found["count"] if whole else min(found["count"], api.deepest)
        yield paging.Sheet(page, kept, total, offset, aside)
        if found["endOfRecords"] or not results:
            return


def _rest(api: Api, query: Query, facet: str, unreached: int) -> Iterator[paging.Sheet]:
    """A page that says how many records of a query are in none of its parts; parse puts it into quarantine."""
    page = api.ask(query, limit=0, facet=facet, facetLimit=BUCKETS)
    yield paging.Sheet(replace(page, meta={"unreached": unreached}), [unreached], 1, 1)


def _falls(one: Any, meta: Mapping[str, Any]) -> bool:
    """Whether a record was last interpreted in the days that the page was asked for."""
    return not isinstance(one, dict) or paging.within(meta, str(one.get("lastInterpreted"))[:10])


def _fetch(context: Context) -> Iterator[Page | Gone]:
    api = _api(context)
    turn = paging.turn(context, _name(api.query)) if api else None
    if api is None or turn is None:
        return
    query = dict(api.query)
    if turn.days:
        last = date.fromisoformat(turn.days[1]) - timedelta(days=1)
        query["lastInterpreted"] = f"{turn.days[0]},{last.isoformat()}"
    elif turn.since:
        query["lastInterpreted"] = f"{turn.since},*"
    count = api.count(query)
    if turn.whole and not count:
        raise Problem(f"GBIF has no sound for {_name(query)}", _FILTERS)
    yield from paging.read(
        context,
        _parts(api, query, count, turn.meta()),
        turn,
        paging.Known(SOURCE.name, SOURCE.table(OCCURRENCES), lambda key: api.count(api.query | {"gbifId": key}) > 0),
    )


def _parse(page: Landed) -> Iterator[Record | Bad]:
    if "unreached" in page.meta:
        number = page.meta["unreached"]
        reason = f"{number:,} records are in none of the parts that the query was split into"
        yield Bad(page.name, reason, counted=False)
        return
    for one in answer(page.read())["results"]:
        if not isinstance(one, dict):
            yield Bad(one, "no occurrence: the API gives objects")
        elif _falls(one, page.meta):
            yield one


OCCURRENCES = Resource(
    name="occurrences",
    schema=pa.schema(
        [
            describe("key", pa.int64(), "GBIF's key of the occurrence", required=True),
            describe("datasetKey", pa.string(), "dataset it belongs to", required=True),
            describe("lastInterpreted", pa.string(), "when GBIF last worked on it, ISO 8601", required=True),
            describe(
                "media", pa.list_(pa.struct([])), "sounds, pictures and films, with their addresses", required=True
            ),
            describe("publishingCountry", pa.string(), "country of the publisher, ISO 3166-1"),
            describe("basisOfRecord", pa.string(), "HUMAN_OBSERVATION, MACHINE_OBSERVATION, PRESERVED_SPECIMEN, …"),
            describe("occurrenceID", pa.string(), "the publisher's identifier"),
            describe("catalogNumber", pa.string(), "the publisher's number, in its catalogue"),
            describe("scientificName", pa.string(), "name as GBIF understands it, with its author"),
            describe("species", pa.string(), "genus and epithet; none when it is not told"),
            describe("genus", pa.string(), "genus"),
            describe("family", pa.string(), "family"),
            describe("order", pa.string(), "order"),
            describe("class", pa.string(), "class"),
            describe("taxonKey", pa.int64(), "key of the name in GBIF's backbone"),
            describe("speciesKey", pa.int64(), "key of the species in GBIF's backbone"),
            describe("recordedBy", pa.string(), "who recorded"),
            describe("rightsHolder", pa.string(), "who holds the rights"),
            describe("license", pa.string(), "address of the licence of the record"),
            describe("countryCode", pa.string(), "country, ISO 3166-1"),
            describe("stateProvince", pa.string(), "state or province"),
            describe("locality", pa.string(), "place"),
            describe("decimalLatitude", pa.float64(), "degrees north"),
            describe("decimalLongitude", pa.float64(), "degrees east"),
            describe("coordinateUncertaintyInMeters", pa.float64(), "how far off the place may be"),
            describe("eventDate", pa.string(), "when, ISO 8601; a year, a month, a day, a time or an interval of them"),
            describe("year", pa.int64(), "year"),
            describe("month", pa.int64(), "month"),
            describe("day", pa.int64(), "day of the month"),
            describe("modified", pa.string(), "when the publisher last changed it, ISO 8601"),
            describe("references", pa.string(), "page of the record at its publisher"),
        ]
    ),
    key=("key",),
    store="documents",
    mode="merge",
    partition="date",
    fetch=_fetch,
    parse=_parse,
    description="Occurrences with sound media, every field of them; by the day GBIF last interpreted them.",
)

SOURCE = Source(
    name="gbif_sounds",
    title="GBIF sounds",
    domain="birds",
    description=(
        "Occurrences that come with a sound, from the Global Biodiversity Information Facility: who heard what, where "
        "and when, and where the sound lies. Off until `url` is set."
    ),
    licence="per record (CC0, CC BY or CC BY-NC); each sound has its own",
    cadence="50 5 * * *",
    cursor="time of the last reading; a mark for each part of the search",
    volume="millions of records; 300 to a page, 100,000 to a search",
    resources=(OCCURRENCES,),
    config={
        "url": ("", f"address of the API, {API}; empty: nothing is asked"),
        "filters": ({"taxonKey": 212}, "further parameters of the search; taxonKey 212 is birds"),
        "per_page": (300, "records a request gives, at most 300"),
        "deepest": (100_000, "records that one query gives; a larger one is split"),
        "lag_days": (3, "days before the last reading from which on it asks again for what was interpreted"),
        "full_every_days": (90, "after how many days everything is read again, for records that were taken back"),
        "rate": ("1/second", "requests to one server, of all workers together"),
        "allowed_hosts": ([], "hosts that may have private addresses (host or host:port)"),
    },
    url="https://www.gbif.org",
)
