"""A double of GBIF's occurrence search, on loopback.

Copied from:

* https://techdocs.gbif.org/openapi/occurrence-search.json and the source that this page is made from, in
  ``gbif/occurrence`` (``OccurrenceSearchResource.java`` @ 57b0bb7): ``limit`` of at most 300 (a larger one is cut to
  that), offset and limit that together do not pass 100,000, ``facet`` with ``facetLimit`` and ``facetOffset``,
  ``year``, ``month`` and ``lastInterpreted`` that take a value or a range ``from,to`` (``*`` for open), ``gbifId``.
* ``{"offset", "limit", "endOfRecords", "count", "results", "facets"}`` and the fields of an occurrence with a sound: a
  public response of 2020-12 (iNaturalist, key 2550010453, in a README of a client), with names such as
  ``http://unknown.org/nick`` and Darwin Core extensions.
* Past the limit: 400, ``text/plain``, ``Max offset of 100001 exceeded: 100001 + 1`` (reported by several clients).
* Order: year descending, month ascending, key ascending, no year last (``SortUtils.java`` of ``gbif/pipelines``).

Records are made up, by seed. Their order shifts while somebody pages when records are added or taken away.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

from upstreams.faulty_server import FaultyServer, Reply, as_json

DATASETS = ("50c9509d-22c7-4a22-a47d-8c48425ef4a7", "b1047888-ae52-4179-9dd5-5448ea342a24")
FACETS = {
    "country": "countryCode",
    "license": "license",
    "gbifId": "key",
    "taxonKey": "classKey",
}


def occurrence(key: int, **told: Any) -> dict[str, Any]:
    """An occurrence as the search gives it."""
    rng = random.Random(key)
    genus = rng.choice(("Calyptorhynchus", "Corvus", "Parus"))
    day = f"{rng.randrange(1, 29):02d}"
    year, month = rng.randrange(2016, 2021), rng.randrange(1, 13)
    address = f"https://sounds.example/{key}.mp3?1578125176"
    made = {
        "key": key,
        "datasetKey": DATASETS[key % 2],
        "publishingCountry": "US",
        "protocol": "DWC_ARCHIVE",
        "lastCrawled": "2020-12-19T14:48:48.451+00:00",
        "lastParsed": f"2020-12-{day}T16:56:44.477+00:00",
        "crawlId": 244,
        "extensions": {
            "http://rs.gbif.org/terms/1.0/Multimedia": [
                {"http://purl.org/dc/terms/format": "audio/mpeg", "http://purl.org/dc/terms/identifier": address}
            ]
        },
        "basisOfRecord": "HUMAN_OBSERVATION",
        "occurrenceStatus": "PRESENT",
        "taxonKey": 2480115,
        "classKey": 212,
        "scientificName": f"{genus} funereus (Shaw, 1794)",
        "order": "Passeriformes",
        "family": "Cacatuidae",
        "genus": genus,
        "species": f"{genus} funereus",
        "decimalLongitude": round(rng.uniform(-180, 180), 5),
        "decimalLatitude": round(rng.uniform(-90, 90), 5),
        "coordinateUncertaintyInMeters": 5577.0,
        "year": year,
        "month": month,
        "day": int(day),
        "eventDate": f"{year}-{month:02d}-{day}T19:05:00",
        "issues": ["COORDINATE_ROUNDED"],
        "modified": "2020-01-05T10:09:11.000+00:00",
        "lastInterpreted": f"2020-12-{day}T16:56:44.477+00:00",
        "references": f"https://www.inaturalist.org/observations/{key}",
        "license": f"http://creativecommons.org/licenses/{rng.choice(('by', 'by-nc'))}/4.0/legalcode",
        "media": [
            {"type": "StillImage", "identifier": f"https://sounds.example/{key}.jpg"},
            {"type": "Sound", "format": "audio/mpeg", "identifier": address, "license": "CC-BY-NC"},
        ],
        "class": "Aves",
        "countryCode": rng.choice(("AU", "BR", "DE")),
        "http://unknown.org/nick": "lifeisamazing",
        "gbifID": str(key),
        "recordedBy": rng.choice(("lifeisamazing", "Ana Ruiz | Bob O'Neill")),
    } | told
    if key % 13 == 0:
        del made["decimalLatitude"], made["decimalLongitude"], made["recordedBy"]
    if key % 17 == 0:
        made["eventDate"] = f"{made['year']}-{made['month']:02d}"
    return {name: value for name, value in made.items() if value is not None}


def made(count: int, seed: int = 7) -> list[dict[str, Any]]:
    return [occurrence(key) for key in sorted(random.Random(seed).sample(range(10**9, 4 * 10**9), count))]


class Gbif(FaultyServer):
    """The double: occurrences that tests may change, and how deep one query goes."""

    def __init__(self, occurrences: Iterable[dict[str, Any]], deepest: int = 100_000) -> None:
        super().__init__()
        self.occurrences = {one["key"]: one for one in occurrences}
        self.deepest = deepest
        self.waiting: list[dict[str, Any]] = []
        self.withdrawn: list[int] = []
        self.shape = "results"

    def settle(self) -> None:
        """What was to appear has appeared, what was to go has gone."""
        for one in self.waiting:
            self.occurrences[one["key"]] = one
        for key in self.withdrawn:
            self.occurrences.pop(key, None)
        self.waiting, self.withdrawn = [], []

    def answer(self, path: str, params: dict[str, str]) -> Reply:
        if path != "/v1/occurrence/search":
            return Reply(404, b"", "text/plain")
        asked = dict(params)
        offset, limit = int(asked.pop("offset", "0")), min(int(asked.pop("limit", "20")), 300)
        facet = asked.pop("facet", "")
        first, size = int(asked.pop("facetOffset", "0")), int(asked.pop("facetLimit", "10"))
        if offset + limit > self.deepest + 1:
            said = f"Max offset of {self.deepest + 1} exceeded: {offset} + {limit}"
            return Reply(400, said.encode(), "text/plain")
        if offset and self.faulty:
            if self.waiting:
                late = self.waiting.pop(0)
                self.occurrences[late["key"]] = late
            if self.withdrawn:
                self.occurrences.pop(self.withdrawn.pop(0), None)
        found = [one for one in self.occurrences.values() if all(_matches(one, *each) for each in asked.items())]
        found.sort(key=lambda one: (-one.get("year", -1), one.get("month", 13), one["key"]))
        if not offset and self.shifts(len(found) > limit > 0, bool(self.waiting or self.withdrawn)):
            self.waiting.append(self.occurrences.pop(found.pop(0)["key"]))
        facets = []
        if facet:
            values = [_value(one, facet) for one in found]
            counts = Counter(value for value in values if value is not None).most_common()
            shown = [{"name": name, "count": count} for name, count in counts[first : first + size]]
            facets = [{"field": facet.upper(), "counts": shown}]
        return as_json(
            {
                "offset": offset,
                "limit": limit,
                "endOfRecords": offset + limit >= len(found),
                "count": len(found),
                self.shape: found[offset : offset + limit],
                "facets": facets,
            }
        )


def _value(one: dict[str, Any], name: str) -> str | None:
    if name == "hasCoordinate":
        return str("decimalLatitude" in one).lower()
    value = one.get(FACETS.get(name, name))
    return None if value is None else str(value)


def _matches(one: dict[str, Any], name: str, wanted: str) -> bool:
    if name == "mediaType":
        return any(media["type"] == wanted for media in one["media"])
    value = _value(one, name)
    if name == "lastInterpreted":
        day = str(value)[:10]
        first, _, last = wanted.partition(",")
        return (first == "*" or day >= first) and (last == "*" or day <= (last or first))
    return value == wanted
