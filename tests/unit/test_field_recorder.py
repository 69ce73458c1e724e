"""Messages of recorders without servers: their shape, how they land, and how their ids are kept."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from upstreams.landed_bytes import LandedBytes
from upstreams.recorder import POISON, Recorder

from ingestion import rows
from ingestion.contract import Bad, BadPage, Blob
from ingestion.sources import field_recorder
from storage import stream
from storage.stream import Message

RESOURCES = {resource.name: resource for resource in field_recorder.SOURCE.resources}
DETECTION = {
    "id": "d", "recorder": "r", "time": "2024-05-01T03:00:00+02:00", "species": "Tyto alba", "confidence": 0.5,
}  # fmt: skip
CLIP = {"id": "c", "recorder": "r", "time": "2024-05-01T03:00:00Z", "content_type": "audio/flac"}


def parsed(kind: str, *messages: Message, most: int = 20) -> list[Any]:
    body = field_recorder._landed(messages, most)
    assert body == field_recorder._landed(messages, most)
    return list(RESOURCES[kind].parse(LandedBytes(body)))


def told(kind: str, message: dict[str, Any], audio: bytes | None = None) -> Any:
    fields = {"json": json.dumps(message).encode()} | ({"audio": audio} if audio is not None else {})
    (found,) = parsed(kind, Message("1-1", fields))
    return found


def test_what_a_recorder_tells_keeps_the_contract() -> None:
    recorder = Recorder()
    for kind, resource in RESOURCES.items():
        messages = [Message(f"1-{n}", fields) for n, fields in enumerate(recorder.told(kind))]
        found = parsed(kind, *messages)
        assert len(found) == len(messages)
        for record in found:
            plain = {name: "key" if isinstance(value, Blob) else value for name, value in record.items()}
            assert rows.check(resource, plain) == ""


def test_a_detection_and_a_clip() -> None:
    assert told("detections", DETECTION | {"revision": 3, "lat": -5, "clip": None}) == {
        "detection_id": "d", "revision": 3, "recorder": "r", "species": "Tyto alba", "confidence": 0.5, "latitude": -5,
        "detected_at": datetime(2024, 5, 1, 1, tzinfo=UTC),
    }  # fmt: skip
    assert told("clips", CLIP, b"fLaC") == {
        "clip_id": "c", "revision": 1, "recorder": "r", "recorded_at": datetime(2024, 5, 1, 3, tzinfo=UTC),
        "content_type": "audio/flac", "audio_object": Blob(b"fLaC", "audio/flac", ".flac"), "bytes": 4,
    }  # fmt: skip
    assert told("clips", CLIP | {"reference": "sd://1"})["reference"] == "sd://1"


@pytest.mark.parametrize(
    ("kind", "message", "audio", "said"),
    [
        ("detections", DETECTION, b"x", "holds audio, which belongs into a clip"),
        ("detections", DETECTION | {"confidence": 1.5}, None, "confidence is not between 0 and 1: 1.5"),
        ("detections", DETECTION | {"lat": 91}, None, "latitude is not between -90 and 90: 91"),
        ("detections", DETECTION | {"time": "2024-05-01T03:00:00"}, None, "detected_at is no time with a zone"),
        ("detections", DETECTION | {"colour": 1}, None, "has the unknown field 'colour'"),
        ("clips", CLIP, None, "has to hold either audio or a reference"),
        ("clips", CLIP | {"reference": "sd://1"}, b"x", "has to hold either audio or a reference"),
        ("clips", CLIP | {"content_type": "text/html"}, b"x", "content_type is no audio: 'text/html'"),
        ("clips", CLIP | {"content_type": 5}, b"x", "content_type is no audio: 5"),
        ("clips", CLIP | {"duration_s": -1}, b"x", "duration_s is not between 0 and 3600: -1"),
    ],
)
def test_what_is_wrong_with_a_message_is_said(kind: str, message: Any, audio: bytes | None, said: str) -> None:
    found = told(kind, message, audio)
    assert isinstance(found, Bad)
    assert found.reason.startswith(said)
    assert found.payload == {"message": "1-1", "json": json.dumps(message)}


def test_poison_is_told_from_good_messages_around_it() -> None:
    good = {"json": json.dumps(DETECTION).encode()}
    for fields, said in POISON:
        before, bad, after = parsed(
            "detections", *(Message(f"1-{i}", one) for i, one in enumerate((good, fields, good)))
        )
        assert before == after
        if said:
            assert isinstance(bad, Bad) and said in bad.reason
            assert len(json.dumps(bad.payload)) < 4_000  # quarantine keeps so many characters
        else:
            assert rows.check(RESOURCES["detections"], bad) == "detection_id is missing"


def test_a_message_that_is_too_large_or_came_too_often_is_refused_unread() -> None:
    good = {"json": json.dumps(DETECTION).encode()}
    large = good | {"audio": bytes(field_recorder.LARGEST)}
    found = parsed("detections", Message("1-1", good, 20), Message("1-2", good, 21), Message("1-3", large))
    assert isinstance(found[0], dict)
    assert found[1].reason.startswith("was delivered 21 times and never arrived")
    assert found[2].reason.startswith("has 8,388,")


NAMES = st.sampled_from([*DETECTION, *CLIP, "revision", "reference", "x"])
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text(), max_size=1)
NESTED = st.recursive(st.none() | st.floats() | st.text(), st.lists)
BODIES = st.binary(max_size=60) | (NESTED | st.dictionaries(NAMES, VALUES)).map(
    lambda value: json.dumps(value).encode()
)


@seed(1)
@settings(max_examples=100, deadline=None)
@given(BODIES, st.none() | st.binary(max_size=5))
def test_whatever_is_sent_is_a_record_or_is_said_to_be_bad(body: bytes, audio: bytes | None) -> None:
    fields = {"json": body} | ({} if audio is None else {"audio": audio})
    for kind, resource in RESOURCES.items():
        (found,) = parsed(kind, Message("1-1", fields))
        if isinstance(found, Bad):
            assert found.reason
        else:
            plain = {name: "key" if isinstance(value, Blob) else value for name, value in found.items()}
            if not rows.check(resource, plain):
                assert rows.copy_bytes(rows.data_columns(resource), rows.batch_of(resource, [plain]))


def test_a_page_that_is_no_arrow_is_a_bad_page() -> None:
    body = field_recorder._landed([Message("1-1", {"json": b"{}" * 500})], 5)
    for damaged in (b"", b"text", body[:150]):
        with pytest.raises(BadPage, match="no Arrow stream"):
            list(RESOURCES["clips"].parse(LandedBytes(damaged)))


IDS = st.lists(st.tuples(st.integers(0, 2**63), st.integers(0, 2**63)), unique=True, max_size=20)
NEAR = st.lists(st.tuples(st.integers(10**12, 10**12 + 5), st.integers(0, 3)), unique=True, max_size=20)


@seed(2)
@settings(max_examples=200, deadline=None)
@given(IDS | NEAR)
def test_ids_survive_their_packing(places: list[tuple[int, int]]) -> None:
    ids = [f"{milliseconds}-{number}" for milliseconds, number in places]
    assert stream.unpack(stream.pack(ids)) == sorted(ids, key=stream.place)


def test_ids_of_a_load_take_little_room() -> None:
    ids = [f"{1_714_532_400_000 + 3 * n}-{n % 2}" for n in range(20_000)]
    assert len(stream.pack(ids)) < 5 * len(ids)


class Held:
    """The part of a stream that says what dead consumers have left."""

    def __init__(self, left: dict[str, int], new: int = 0) -> None:
        self.held, self.new, self.claimed = left, new, []  # type: ignore[var-annotated]

    def left(self, *_: Any) -> dict[str, int]:
        return self.held

    def claim(self, _stream: str, _group: str, _consumer: str, _idle: float, given: dict[str, int]) -> list[Message]:
        self.claimed += given
        return [Message(i, {}, deliveries + 1) for i, deliveries in given.items()]

    def receive(self, *_: Any) -> list[Message]:
        count, self.new = min(self.new, field_recorder.READ), max(0, self.new - field_recorder.READ)
        return [Message(f"9-{n}", {}) for n in range(count)]


def taken(held: Held, most: int = 10_000) -> list[Message]:
    config = {"claim_after": 1, "most": most}
    return list(field_recorder._messages(held, "s", "g", "me", config, []))  # type: ignore[arg-type]


def test_what_one_has_died_over_is_taken_with_the_new_and_what_two_have_died_over_by_halves() -> None:
    assert len(taken(Held({f"1-{n}": n % 2 for n in range(150)}, new=30))) == 180
    suspected = Held({f"1-{n}": 1 + n % 3 for n in range(30)}, new=30)
    found = taken(suspected)
    assert [message.deliveries for message in found] == [4] * 5  # half of those of three deliveries, nothing new
    assert len(taken(Held({"1-1": 7}, new=30))) == 1
    assert len(taken(Held({}, new=1_000), most=250)) == 256  # about so many: what was given is kept
