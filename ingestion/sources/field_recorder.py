"""Recorders in the field: they send what they hear, and clips of it, as messages; a consumer group takes them.

At least once in, exactly once out: a message is acknowledged when the load that holds it has been committed and
accepted, and not before. What is delivered again is found by its key and content. Which messages a load took lies in
its cursor, in the transaction of its rows; so whoever dies between the commit and the acknowledgement is made up for
by the next fetch, which acknowledges them first.

A message has the field ``json`` and, for a clip, may have the field ``audio``. It never changes: a correction is a
message with a higher ``revision``, so that the order of arrival does not matter.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ingestion.contract import Bad, BadPage, Blob, Context, Cursor, Landed, Page, Record, Resource, Source, describe
from storage import settings as given
from storage.errors import Problem

if TYPE_CHECKING:
    from storage.stream import Message, Stream

NAME = "field_recorder"
ARROW = "application/vnd.apache.arrow.stream"
PAGE_MESSAGES, PAGE_BYTES = 1_000, 16 << 20  # of a landed page at most; messages are read in smaller batches
READ = 16  # messages that are read together, which may be of the largest size
LARGEST = 8 << 20  # bytes of a message: a clip of a minute as FLAC has 2 MB
SHOWN = 600  # bytes of a bad message that quarantine shows: the whole lies in landing
LAG_DAYS = 30  # for which ops.stream_lag remembers

CONFIG: dict[str, tuple[Any, str]] = {
    "stream": ("", "the streams <name>:detections and <name>:clips of the stream server are read; empty = none"),
    "group": ("lyrebird", "name of the consumer group"),
    "size": (1_000, "so many waiting messages start a load"),
    "age": (900, "seconds after which a waiting message starts one, however few there are"),
    "most": (20_000, "about so many messages of one load at most; the others wait for the next"),
    "claim_after": (60, "seconds after which messages of a consumer that has died are taken over"),
    "deliveries": (20, "a message that was delivered more often than this, and never arrived, goes to quarantine"),
}

LANDED = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("json", pa.binary()),
        pa.field("audio", pa.binary()),
        pa.field("refused", pa.string()),
    ]
)


# ---------------------------------------------------------------- fetch


def _fetch(kind: str, context: Context) -> Iterator[Page]:
    """Messages that wait, as Arrow: those that a dead consumer has left, then new ones.

    Cursor: {"stream", "group", "taken": ids of the messages of the load}.
    """
    from storage.stream import Stream, pack

    config = _checked(context.config)
    if not config["stream"]:
        return
    stream, group = f"{config['stream']}:{kind}", config["group"]
    server = Stream(context.settings)
    server.join(stream, group)
    _acknowledge(server, context.cursor)
    note_lag(context, server, stream, group)
    consumer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    taken: list[str] = []
    landed: list[str] = []
    try:
        for number, batch in enumerate(_batches(_messages(server, stream, group, consumer, config, taken))):
            landed += [message.id for message in batch]
            cursor = {"stream": stream, "group": group, "taken": pack(landed)}
            yield Page(f"{stream}, part {number + 1}", _landed(batch, config["deliveries"]), cursor, ARROW)
    except BaseException:
        with suppress(Problem):  # whoever comes next need not wait until we count as dead
            server.give_back(stream, group, taken, config["claim_after"])
        raise


def _messages(
    server: Stream, stream: str, group: str, consumer: str, config: Mapping[str, Any], taken: list[str]
) -> Iterator[Message]:
    """Messages for this consumer until there are no more, or enough; ``taken`` notes them as they come.

    Those that two consumers have died over may be what kills them: half of them are taken, and nothing else. If that
    goes well they are innocent; if not, they are the suspects of the next time. So one that kills whoever reads it is
    soon alone, and goes to quarantine alone.
    """
    left = server.left(stream, group, config["claim_after"], config["most"])
    worst = max(left.values(), default=0)
    if worst > 1:
        suspects = [message for message, deliveries in left.items() if deliveries == worst]
        left = dict.fromkeys(suspects[: (len(suspects) + 1) // 2], worst)

    def batches() -> Iterator[list[Message]]:
        ids = list(left)
        for i in range(0, len(ids), READ):
            given = {message: left[message] for message in ids[i : i + READ]}
            yield server.claim(stream, group, consumer, config["claim_after"], given)
        while worst < 2 and (batch := server.receive(stream, group, consumer, READ)):
            yield batch

    for batch in batches():
        taken += [message.id for message in batch]
        yield from batch
        if len(taken) >= config["most"]:
            return


def _batches(messages: Iterator[Message]) -> Iterator[list[Message]]:
    batch: list[Message] = []
    size = 0
    for message in messages:
        batch.append(message)
        size += message.size
        if len(batch) >= PAGE_MESSAGES or size >= PAGE_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _landed(batch: Sequence[Message], most_deliveries: int) -> bytes:
    """A batch of messages as they came, and why one is refused unread."""
    rows = [
        {
            "id": message.id,
            "json": message.fields.get("json"),
            "audio": message.fields.get("audio"),
            "refused": _refused(message, most_deliveries),
        }
        for message in batch
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, LANDED) as writer:
        writer.write_table(pa.Table.from_pylist(rows, LANDED))
    return bytes(sink.getvalue())


def _refused(message: Message, most_deliveries: int) -> str | None:
    if message.deliveries > most_deliveries:
        return f"was delivered {message.deliveries:,} times and never arrived: it may be what stops the loader"
    if message.size > LARGEST:
        return f"has {message.size:,} bytes, more than {LARGEST:,}"
    unknown = sorted(message.fields.keys() - {"json", "audio"})
    return f"has the field {unknown[0]!r:.60}, which no message has" if unknown else None


def _settled(context: Context, accepted: bool) -> None:
    """Tell the stream that a load's messages have arrived; or, when it was rejected, that they are to come again."""
    from storage.stream import Stream, unpack

    stream, group = context.cursor["stream"], context.cursor["group"]
    try:
        server = Stream(context.settings)
        if accepted:
            _acknowledge(server, context.cursor)
            server.tidy(stream, group)
        else:
            server.give_back(stream, group, unpack(context.cursor["taken"]), context.config["claim_after"])
        note_lag(context, server, stream, group)
    except Problem as problem:
        context.say(f"{stream}: not told yet what was loaded: {problem}")  # the next fetch does it


def _acknowledge(server: Stream, cursor: Cursor) -> None:
    from storage.stream import unpack

    if cursor:
        server.acknowledge(cursor["stream"], cursor["group"], unpack(cursor["taken"]))


def note_lag(context: Context, server: Stream, stream: str, group: str) -> None:
    """Write down how far we are behind."""
    lag = server.lag(stream, group)
    with closing(context.warehouse()) as db, db, db.cursor() as sql:
        sql.execute(
            "insert into ops.stream_lag (source, resource, stream, consumer_group, undelivered, pending, oldest_at) "
            "values (%s, %s, %s, %s, %s, %s, %s)",
            (NAME, context.resource.name, stream, group, lag.undelivered, lag.pending, lag.oldest),
        )
        sql.execute(
            "delete from ops.stream_lag where source = %s and observed_at < now() - make_interval(days => %s)",
            (NAME, LAG_DAYS),
        )


def _checked(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options, if they make sense. Raises Problem that names the one that does not."""
    for name, (default, help_) in CONFIG.items():
        value = config[name]
        if isinstance(default, str):
            right = isinstance(value, str) and (bool(value) or not default)
        else:
            right = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e9
        if not right:
            raise Problem(f"sources.{NAME}: {name} cannot be {value!r:.60}", f"{name}: {help_}")
    return config


def awaited() -> dict[str, Any] | None:
    """What a trigger has to wait for, as the options file says at the moment; None while the source is off."""
    try:
        sources = given.options().get("sources")
        values = sources.get(NAME) if isinstance(sources, Mapping) else None
        config = _checked({name: default for name, (default, _) in CONFIG.items()} | dict(values or {}))
    except (Problem, TypeError, ValueError):
        return None  # whoever ingests is told
    if not config["stream"]:
        return None
    streams = [f"{config['stream']}:{kind}" for kind in (DETECTIONS.name, CLIPS.name)]
    return {"streams": streams, "group": config["group"], "size": config["size"], "age": config["age"]}


# ---------------------------------------------------------------- parse


def _parse(make: Callable[[dict[str, Any], bytes | None], Record], page: Landed) -> Iterator[Record | Bad]:
    """A record a message; one that is not what it should be is bad, with the reason."""
    try:
        table = pa.ipc.open_stream(page.read()).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise BadPage(f"no Arrow stream: {str(error).splitlines()[0]}") from error
    for batch in table.to_batches():
        for row in batch.to_pylist():
            body = row["json"]
            payload = {"message": row["id"], "json": (body or b"")[:SHOWN].decode("utf-8", "replace")}
            if row["refused"]:
                yield Bad(payload, row["refused"])
                continue
            try:
                yield make(_read(body), row["audio"])
            except _Wrong as wrong:
                yield Bad(payload, str(wrong))


class _Wrong(ValueError):
    """A message that is not of the shape agreed on."""


def _read(body: bytes | None) -> dict[str, Any]:
    if body is None:
        raise _Wrong("has no field json")
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _Wrong(f"is no JSON: {str(error)[:200] or 'too deep'}") from error
    if not isinstance(message, dict):
        raise _Wrong(f"is no JSON object: {str(message)[:60]}")
    return message


def _fields(message: Mapping[str, Any], names: Mapping[str, str]) -> Record:
    """A message's fields under our names; times as times."""
    unknown = message.keys() - names.keys()
    if unknown:
        raise _Wrong(f"has the unknown field {min(unknown)!r:.60}")
    record: Record = {names[name]: value for name, value in message.items() if value is not None}
    record.setdefault("revision", 1)
    for name, value in record.items():
        if name.endswith("_at"):
            record[name] = _time(name, value)
    return record


def _time(name: str, value: object) -> datetime:
    try:
        time = datetime.fromisoformat(value if isinstance(value, str) else "")
        if time.tzinfo is None:
            raise ValueError
        return time
    except ValueError:
        raise _Wrong(f"{name} is no time with a zone (ISO 8601): {value!r:.60}") from None


def _within(record: Record, name: str, low: float, high: float) -> None:
    value = record.get(name)
    if isinstance(value, (int, float)) and not low <= value <= high:
        raise _Wrong(f"{name} is not between {low:g} and {high:g}: {value!r:.60}")


def detection(message: dict[str, Any], audio: bytes | None) -> Record:
    """A detection: which species a recorder heard, when and how surely."""
    record = _fields(
        message,
        {
            "id": "detection_id",
            "revision": "revision",
            "recorder": "recorder",
            "time": "detected_at",
            "species": "species",
            "confidence": "confidence",
            "start_s": "start_s",
            "end_s": "end_s",
            "clip": "clip_id",
            "lat": "latitude",
            "lon": "longitude",
        },
    )
    if audio is not None:
        raise _Wrong("holds audio, which belongs into a clip")
    for name, (low, high) in {"confidence": (0, 1), "latitude": (-90, 90), "longitude": (-180, 180)}.items():
        _within(record, name, low, high)
    return record


def clip(message: dict[str, Any], audio: bytes | None) -> Record:
    """A clip: the sound itself, or where it is kept."""
    record = _fields(
        message,
        {
            "id": "clip_id",
            "revision": "revision",
            "recorder": "recorder",
            "time": "recorded_at",
            "duration_s": "duration_s",
            "content_type": "content_type",
            "reference": "reference",
        },
    )
    if (audio is None) == ("reference" not in record):
        raise _Wrong("has to hold either audio or a reference")
    kind = record.get("content_type", "")
    if not isinstance(kind, str) or not kind.startswith("audio/"):
        raise _Wrong(f"content_type is no audio: {kind!r:.60}")
    _within(record, "duration_s", 0, 3600)
    if audio is not None:
        record |= {"audio_object": Blob(audio, kind, _SUFFIXES.get(kind, "")), "bytes": len(audio)}
    return record


_SUFFIXES = {"audio/flac": ".flac", "audio/wav": ".wav", "audio/ogg": ".ogg", "audio/mpeg": ".mp3"}


# ---------------------------------------------------------------- the source

DETECTIONS = Resource(
    name="detections",
    schema=pa.schema(
        [
            describe("detection_id", pa.string(), "the recorder's own name for it", required=True),
            describe("revision", pa.int64(), "1, and more for each correction", required=True),
            describe("recorder", pa.string(), "which recorder", required=True),
            describe("detected_at", pa.timestamp("us", "UTC"), "when it was heard", required=True),
            describe("species", pa.string(), "scientific name", required=True),
            describe("confidence", pa.float64(), "how sure the recorder is, 0 to 1", required=True),
            describe("start_s", pa.float64(), "first second in the clip"),
            describe("end_s", pa.float64(), "second in the clip after the last"),
            describe("clip_id", pa.string(), "the clip it was heard in"),
            describe("latitude", pa.float64(), "where, in degrees north"),
            describe("longitude", pa.float64(), "where, in degrees east"),
        ]
    ),
    key=("detection_id", "revision"),
    fetch=partial(_fetch, "detections"),
    parse=partial(_parse, detection),
    settled=_settled,
    description="What recorders heard.",
)

CLIPS = Resource(
    name="clips",
    schema=pa.schema(
        [
            describe("clip_id", pa.string(), "the recorder's own name for it", required=True),
            describe("revision", pa.int64(), "1, and more for each correction", required=True),
            describe("recorder", pa.string(), "which recorder", required=True),
            describe("recorded_at", pa.timestamp("us", "UTC"), "when it begins", required=True),
            describe("duration_s", pa.float64(), "how long it is"),
            describe("content_type", pa.string(), "media type of the sound", required=True),
            describe("reference", pa.string(), "where the recorder keeps it, if it did not send it"),
            describe("audio_object", pa.string(), "address in the bucket derived, if it did"),
            describe("bytes", pa.int64(), "its size there"),
        ]
    ),
    key=("clip_id", "revision"),
    fetch=partial(_fetch, "clips"),
    parse=partial(_parse, clip),
    settled=_settled,
    description="Clips that recorders sent, or told of.",
)

SOURCE = Source(
    name=NAME,
    title="Recorders in the field",
    domain="birds",
    description="Detections and clips that recorders send as messages to the stream server.",
    licence="as agreed with those who run the recorders",
    cadence="40 5 * * *",
    cursor="messages that were taken and not yet acknowledged; the consumer group keeps the rest",
    volume="as many messages as recorders send",
    config=CONFIG,
    resources=(DETECTIONS, CLIPS),
    awaited=awaited,
)
