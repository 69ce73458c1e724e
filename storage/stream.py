"""The stream server: a Redis-protocol server that evicts nothing and syncs every write. Consumer groups on streams.

A message is given to one consumer of a group, and stays its own until it is acknowledged. What a consumer that died has
left is claimed by the next after a while. Commands as in the documentation of Redis Streams (redis.io, "Redis Streams",
read November 2026); Valkey 9 answers the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import redis

from storage.errors import Problem
from storage.settings import Settings

ASIDE = "aside"  # consumer that holds what was given back; it is nobody, and never dies
CHUNK = 1_000  # ids in one command
IDLE_CONSUMER_MS = 3_600_000
# In one step, so that no message can come to a consumer between the look at it and its end: it would be lost.
FORGET = """
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
    local one = {}
    for i = 1, #info, 2 do one[info[i]] = info[i + 1] end
    if one['pending'] == 0 and one['idle'] > tonumber(ARGV[2]) and one['name'] ~= ARGV[3] then
        redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], one['name'])
    end
end
"""


@dataclass(frozen=True)
class Message:
    """A message of a stream: its id there, its fields, and how often it has been given to a consumer by now."""

    id: str
    fields: Mapping[str, bytes]
    deliveries: int = 1

    @property
    def size(self) -> int:
        return sum(map(len, self.fields.values()))


@dataclass(frozen=True)
class Lag:
    """What a group has not done yet: messages given to nobody, and given but not acknowledged; since when."""

    undelivered: int
    pending: int
    oldest: datetime | None


def moment(message: str) -> datetime:
    """When a message came: its id begins with the milliseconds."""
    return datetime.fromtimestamp(place(message)[0] / 1000, UTC)


def place(message: str) -> tuple[int, int]:
    """An id as the server orders it."""
    milliseconds, number = message.split("-")
    return int(milliseconds), int(number)


def pack(ids: Sequence[str]) -> str:
    """Ids of messages in a few characters each: in order, each told by its distance from the one before."""
    words: list[str] = []
    before = (0, 0)
    for milliseconds, number in sorted(map(place, ids)):
        step = milliseconds - before[0]
        words.append(f"{step}-{number if step else number - before[1]}")
        before = (milliseconds, number)
    return " ".join(words)


def unpack(text: str) -> list[str]:
    ids: list[str] = []
    milliseconds = number = 0
    for word in text.split():
        step, more = place(word)
        milliseconds, number = milliseconds + step, more if step else number + more
        ids.append(f"{milliseconds}-{number}")
    return ids


class Stream:
    """Messages in order, at least once: acknowledged only after what they caused has been committed."""

    def __init__(self, settings: Settings) -> None:
        settings.need("stream_url")
        self.client = redis.Redis.from_url(
            settings.stream_url.get_secret_value(), socket_timeout=30, socket_connect_timeout=5
        )

    def send(self, stream: str, fields: Mapping[str, bytes | str]) -> str:
        return _text(self._do("xadd", stream, dict(fields)))

    def join(self, stream: str, group: str) -> None:
        """Make the group, which begins with the first message, unless it is there; and the stream likewise."""
        with suppress(_GroupExists):
            self._do("xgroup_create", stream, group, id="0", mkstream=True)

    def receive(self, stream: str, group: str, consumer: str, count: int) -> list[Message]:
        """The next messages that nobody has been given; none when there are none."""
        answer = self._do("xreadgroup", group, consumer, {stream: ">"}, count=count)
        return [Message(_text(i), _fields(fields)) for _, batch in answer or [] for i, fields in batch]

    def left(self, stream: str, group: str, idle_s: float, most: int) -> dict[str, int]:
        """Messages that were given to a consumer so long ago, and not acknowledged; and how often they were given."""
        found: dict[str, int] = {}
        after = "-"
        while len(found) < most:
            span = {"min": after, "max": "+", "count": CHUNK, "idle": int(1000 * idle_s)}
            batch = self._do("xpending_range", stream, group, **span)
            found |= {_text(one["message_id"]): int(one["times_delivered"]) for one in batch}
            if len(batch) < CHUNK:
                break
            after = f"({_text(batch[-1]['message_id'])}"
        return found

    def claim(self, stream: str, group: str, consumer: str, idle_s: float, given: Mapping[str, int]) -> list[Message]:
        """Take over messages of :meth:`left`, and only these: each is then given once more.

        What was taken out of the stream, or claimed by another, meanwhile does not come. (XAUTOCLAIM would do both in
        one command, and count a delivery for everything it meets.)
        """
        found = self._do("xclaim", stream, group, consumer, int(1000 * idle_s), list(given)) if given else []
        return [Message(_text(i), _fields(fields), given[_text(i)] + 1) for i, fields in found if i is not None]

    def acknowledge(self, stream: str, group: str, ids: Sequence[str]) -> None:
        for chunk in _chunks(ids):
            self._do("xack", stream, group, *chunk)

    def give_back(self, stream: str, group: str, ids: Sequence[str], idle_s: float) -> None:
        """Let the next consumer have these at once, as if they had never been given to anybody."""
        for chunk in _chunks(ids):
            options = {"idle": int(1000 * idle_s) + 1, "retrycount": 0, "justid": True}
            self._do("xclaim", stream, group, ASIDE, 0, chunk, **options)

    def lag(self, stream: str, group: str) -> Lag:
        """How far the group is behind. A stream or group that is not there lags by nothing."""
        try:
            groups = self._do("xinfo_groups", stream)
        except _NoStream:
            return Lag(0, 0, None)
        info = next((one for one in groups if _text(one["name"]) == group), None)
        last = _text(info["last-delivered-id"]) if info else "0-0"
        first = self._do("xrange", stream, f"({last}", "+", count=1)
        oldest = [_text(i) for i, _ in first]
        pending = int(info["pending"]) if info else 0
        if pending:
            oldest.append(_text(self._do("xpending", stream, group)["min"]))
        undelivered = info["lag"] if info else self._do("xlen", stream)
        if undelivered is None:  # the server has lost count: messages were deleted from the middle
            undelivered = sum(1 for _ in self._after(stream, last))
        return Lag(int(undelivered), pending, min(map(moment, oldest), default=None))

    def _after(self, stream: str, last: str) -> Iterator[str]:
        while batch := self._do("xrange", stream, f"({last}", "+", count=CHUNK):
            for i, _ in batch:
                last = _text(i)
                yield last

    def tidy(self, stream: str, group: str) -> None:
        """Drop messages that every group of the stream is done with, and consumers that are idle and hold none."""
        needed = []
        for info in self._do("xinfo_groups", stream):
            name = _text(info["name"])
            first = self._do("xpending", stream, name)["min"] if info["pending"] else info["last-delivered-id"]
            needed.append(_text(first))
        if needed:
            self._do("xtrim", stream, minid=min(needed, key=place), approximate=False)
        self._do("eval", FORGET, 1, stream, group, IDLE_CONSUMER_MS, ASIDE)

    def _do(self, command: str, *args: Any, **options: Any) -> Any:
        try:
            return getattr(self.client, command)(*args, **options)
        except redis.ResponseError as error:
            words = str(error)
            if words.startswith("BUSYGROUP"):
                raise _GroupExists(words) from error
            if words.startswith("no such key"):
                raise _NoStream(words) from error
            raise Problem(f"the stream server refused {command}: {words}", "Is it a stream of messages?") from error
        except redis.RedisError as error:
            raise Problem(f"the stream server failed: {error}", "`lyrebird status` shows whether it is up") from error


class _GroupExists(Problem):
    """The group was there already."""


class _NoStream(Problem):
    """There is no such stream."""


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _fields(fields: Mapping[bytes, bytes] | None) -> dict[str, bytes]:
    return {name.decode("utf-8", "replace"): value for name, value in (fields or {}).items()}


def _chunks(ids: Sequence[str]) -> Iterable[list[str]]:
    return (list(ids[i : i + CHUNK]) for i in range(0, len(ids), CHUNK))
