"""A recorder in the field that sends detections and clips to the stream server.

The format of the messages is our own: there is no public one for a queue of detections. Its fields are those of a row
of BirdNET-Analyzer's results (start, end, scientific name, confidence, file; its documentation, "Usage", read November
2026) and of the card of a recorder (where and when). They are sent with XADD as the documentation of Redis Streams has
it (redis.io/docs, "Redis Streams", read November 2026). By default it misbehaves as senders do that are told to send
at least once: messages come again, late and out of order, and some are no messages at all.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from storage.stream import Stream

SPECIES = ("Turdus merula", "Strix aluco", "Erithacus rubecula", "Luscinia megarhynchos")
BEGAN = datetime(2024, 5, 1, 3, tzinfo=UTC)
Fields = dict[str, bytes]

POISON: tuple[tuple[Fields, str], ...] = (
    ({"json": b"{ no json"}, "is no JSON"),
    ({"json": b"\xff\xfe"}, "is no JSON"),
    ({"json": b"[" * 100_000}, "is no JSON"),
    ({"json": b"[1, 2]"}, "is no JSON object"),
    ({"text": b"hello"}, "has the field 'text', which no message has"),
    ({"audio": b"RIFF"}, "has no field json"),
    ({"json": b'{"id": "d", "surprise": 1}'}, "has the unknown field 'surprise'"),
    ({"json": b'{"id": "d", "time": "yesterday"}'}, "_at is no time with a zone (ISO 8601): 'yesterday'"),
    ({"json": b'{"id": "d", "time": 5}'}, "_at is no time with a zone"),
    ({"json": b'{"id": null, "recorder": "r", "time": "2024-05-01T00:00Z"}'}, ""),
)


@dataclass
class Recorder:
    """A recorder with so many things to tell, the same for the same seed."""

    seed: int = 0
    detections: int = 60
    clips: int = 15
    repeats: bool = True
    shuffles: bool = True
    poison: bool = True
    sent: list[tuple[str, str]] = field(default_factory=list)

    def told(self, kind: str) -> list[Fields]:
        """What there is to tell, in order and once: some of it is corrected later."""
        dice = random.Random(f"{self.seed}{kind}")
        make = self._detection if kind == "detections" else self._clip
        count = self.detections if kind == "detections" else self.clips
        found = [make(dice, number, 1) for number in range(count)]
        return found + [make(dice, number, 2) for number in range(0, count, 7)]

    def messages(self, kind: str) -> list[Fields]:
        """What is sent, in this order."""
        dice = random.Random(f"{self.seed}{kind}sent")
        found = self.told(kind)
        if self.repeats:
            found += dice.sample(found, len(found) // 4)
        if self.shuffles:
            dice.shuffle(found)
        if self.poison:
            for fields, _ in POISON:
                found.insert(dice.randint(0, len(found)), fields)
        return found

    def send(self, server: Stream, stream: str, part: slice = slice(None)) -> None:
        """Send the messages, or a part of them, to ``<stream>:detections`` and ``<stream>:clips``."""
        for kind in ("detections", "clips"):
            for fields in self.messages(kind)[part]:
                self.sent.append((kind, server.send(f"{stream}:{kind}", fields)))

    def _detection(self, dice: random.Random, number: int, revision: int) -> Fields:
        message: dict[str, Any] = {
            "id": f"r{self.seed}/{number:06d}",
            "recorder": f"r{self.seed}",
            "time": (BEGAN + timedelta(seconds=3 * number)).isoformat(),
            "species": dice.choice(SPECIES),
            "confidence": round(dice.uniform(0.1, 1), 3),
            "start_s": 3 * (number % 20),
            "end_s": 3 * (number % 20) + 3.0,
            "clip": f"c{self.seed}/{number // 20}" if number % 3 else None,
            "lat": 52.5,
            "lon": 13.4,
        }
        return _fields(message | ({"revision": revision} if revision > 1 else {}))

    def _clip(self, dice: random.Random, number: int, revision: int) -> Fields:
        message: dict[str, Any] = {
            "id": f"c{self.seed}/{number}",
            "revision": revision,
            "recorder": f"r{self.seed}",
            "time": (BEGAN + timedelta(minutes=number)).isoformat().replace("+00:00", "Z"),
            "duration_s": 60,
            "content_type": "audio/flac",
        }
        if number % 3 == 0:
            return _fields(message | {"reference": f"sd-card://r{self.seed}/{number}-{revision}.flac"})
        return _fields(message) | {"audio": b"fLaC" + dice.randbytes(200 + number)}


def _fields(message: dict[str, Any]) -> Fields:
    return {"json": json.dumps(message, ensure_ascii=False).encode()}
