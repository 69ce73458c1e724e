"""Tombstones: what else goes with a record, and what they match."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from ingestion import catalogue, tombstones
from ingestion.contract import Resource, describe
from ingestion.tombstones import KEY, Tombstone, Withdrawn, digest

SCHEMA = pa.schema([describe("id", pa.int64(), "", required=True), describe("who", pa.string(), "")])
THINGS = Resource("things", SCHEMA, ("id",), lambda context: [], lambda page: iter(()))


def siblings(source: str, resource: str, key: str, **values: Any) -> set[tuple[str, str, str]]:
    one = catalogue.source(source)
    named = next(each for each in one.resources if each.name == resource)
    return {(mark.resource, mark.field, mark.sha256) for mark in tombstones.siblings(one, named, key, values)}


def test_a_recording_goes_with_its_audio_and_a_piece_with_its_scores() -> None:
    assert siblings("aviary", "recordings", "SIM1", id="SIM1") == {
        ("recordings", KEY, digest("SIM1")),
        ("audio", KEY, digest("SIM1")),
    }
    assert ("scores", "piece_id", digest("12")) in siblings("mutopia", "pieces", "[12]", piece_id=12)
    assert ("links", "sentence_id", digest("12")) in siblings("tatoeba", "sentences", "[12]", sentence_id=12)


@pytest.mark.parametrize(
    ("record", "matches"),
    [
        ({"id": 7, "who": "x"}, True),
        ({"id": 8, "who": "me"}, True),
        ({"id": 8, "who": "Me"}, False),
        ({"id": "7", "who": None}, False),  # another key: it is a text
        ({"who": "me"}, True),  # it breaks its contract, and is theirs all the same
        ({}, False),
        (["me"], False),
        ("me", False),
    ],
)
def test_a_record_is_known_by_its_key_or_a_value(record: object, matches: bool) -> None:
    marks = [Tombstone("things", KEY, digest("[7]")), Tombstone("things", "who", digest("me"))]
    assert Withdrawn.of("things", marks).has(THINGS, record) is matches
    assert not Withdrawn.of("others", marks).has(THINGS, record)


def test_values_are_compared_as_postgres_shows_them() -> None:
    assert [tombstones.text_of(value) for value in ("é", 12, True, 1.5, ["a"])] == ["é", "12", "true", "1.5", '["a"]']
