"""Scores and MIDI files that have landed -> pieces and notes: the part of the music that SQL cannot read.

Works on published loads only. A score that is new gives one page per resource, which refers to the landed object; a
score that changed or went takes the rows that came from it along first, so that nothing of an older version stays.

MIDI says when notes sound, not how they are written: a file of a performance has its seconds in place of quarters, at
the tempo that it states.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from ingestion.contract import Bad, BadPage, Context, Gone, Landed, Page, Record, Resource, Source, describe
from storage.media import frames, midi, scores
from storage.media.midi import MidiError
from storage.media.scores import ScoreError, Tune

# Where scores come from: source -> composer, title and split in its table of scores.
UPSTREAMS = {
    "music21_corpus": ("composer", "null", "null"),
    "maestro": ("composer", "title", "split"),
    "midi_archive": ("null", "null", "null"),
    "mutopia": ("composer", "title", "null"),
}
MIDI = (".mid", ".midi", ".kar")
GRID = "quarter"
_KEPT, _KEPT_NOTES = 512, 300_000  # scores, and their notes
_TOGETHER = 200  # scores whose earlier rows are looked up at once

# Both resources read the same objects, one after the other in one process: reading each of them once halves the work.
_read: dict[tuple[str, str], list[Tune | ScoreError]] = {}


def fetch(context: Context) -> Iterator[Page | Gone]:
    """A page for each score of loads published since the cursor ({source: load}), in the order of the loads.

    Stops before a load that waits for its audit, so that none is left out when a later one is published first.
    """
    cursor = {source: int(context.cursor.get(source, 0)) for source in UPSTREAMS}
    for source in UPSTREAMS:
        changed = _changed(context, source, cursor[source])
        for start in range(0, len(changed), _TOGETHER):
            batch = changed[start : start + _TOGETHER]
            before = _keys_of(context, source, [path for _, path, *_ in batch]) if cursor[source] else {}
            for load, path, deleted, landing, corpus, licence, composer, title, split in batch:
                after = cursor | {source: load}
                for key in before.pop(path, []):
                    yield Gone(key, after)
                if not deleted:
                    meta = {"source": source, "corpus": corpus, "composer": composer, "licence": licence}
                    told = {name: value for name, value in (("title", title), ("split", split)) if value}
                    yield Page(path, None, after, _content_type(path), meta | told, ref=landing)
        cursor |= {source: max((load for load, *_ in changed), default=cursor[source])}


def _content_type(path: str) -> str:
    suffix = PurePosixPath(path).suffix.lower()
    return midi.CONTENT_TYPE if suffix in MIDI else scores.CONTENT_TYPES.get(suffix, "")


def _changed(context: Context, source: str, since: int) -> list[tuple[Any, ...]]:
    """The latest versions of scores after load ``since``: load, path, whether it went, landing key, what is said."""
    table = f"raw.{source}_scores"
    with closing(context.warehouse()) as db, db, db.cursor() as sql:
        sql.execute("select to_regclass(%s) is not null", (table,))
        if not (sql.fetchone() or (False,))[0]:
            return []
        sql.execute(
            f"""
            select _load, _key, _deleted, landing, corpus, licence, {", ".join(UPSTREAMS[source])}
            from (
                select distinct on (s._key) s.*, p.key as landing
                from {table} as s
                join ops.load as l on l.source = %(source)s and l.load = s._load
                left join ops.landing as p on p.source = l.source and p.load = s._load and p.position = s._page
                where s._load > %(since)s and l.state = 'published'
                  and not exists (
                    select from ops.load as w
                    where w.source = l.source and w.resource = l.resource and w.state = 'loaded'
                      and w.load > %(since)s and w.load < s._load
                  )
                order by s._key, s._load desc, s._position desc
            ) as latest
            order by _load, _position
            """,
            {"source": source, "since": since},
        )
        return sql.fetchall()


def parse_pieces(landed: Landed) -> Iterator[Record | Bad]:
    for tune in _tunes(landed):
        if isinstance(tune, ScoreError):
            yield Bad(tune.name, tune.reason)
            continue
        voices = scores.voices(tune)
        sounding = frames.to_frames((note for note in scores.played(tune) if note.part in voices), GRID)
        yield {
            "piece_id": _piece_id(landed, tune.number),
            "source": landed.meta["source"],
            "path": landed.name,
            "number": tune.number,
            "corpus": landed.meta["corpus"],
            "title": _title(landed, tune),
            "composer": landed.meta["composer"] or tune.composer,
            "time_signature": tune.time_signature,
            "key_signature": tune.key_signature,
            "tempo_bpm": tune.tempo_bpm,
            "parts": len(tune.parts),
            "quarters": tune.quarters,
            "fingerprint": frames.fingerprint(sounding, GRID),
            "licence": landed.meta["licence"],
            "split": landed.meta.get("split"),
            "frames_quarter": sounding,
        }


def parse_notes(landed: Landed) -> Iterator[Record | Bad | pa.RecordBatch]:
    if PurePosixPath(landed.name).suffix.lower() in MIDI:
        yield _heard_notes(landed)
        return
    for tune in _tunes(landed):
        if isinstance(tune, ScoreError):
            yield Bad(tune.name, tune.reason)
            continue
        piece_id = _piece_id(landed, tune.number)
        for index, note in enumerate(tune.notes):
            yield {
                "piece_id": piece_id,
                "note": index,
                "part": note.part,
                "instrument": tune.parts[note.part] or None,
                "onset_quarters": note.onset,
                "duration_quarters": note.duration,
                "pitch": note.pitch,
                "velocity": note.velocity,
            }


def _tunes(landed: Landed) -> list[Tune | ScoreError]:
    """The tunes of a landed score; BadPage when it cannot be read as a whole."""
    key = (landed.sha256, landed.name)
    if key not in _read:
        suffix = PurePosixPath(landed.name).suffix
        try:
            if suffix.lower() in MIDI:
                found: list[Tune | ScoreError] = [_performance(landed.read(), landed.name)]
            else:
                found = scores.read(landed.read(), suffix, landed.name)
        except (ScoreError, MidiError) as error:
            raise BadPage(error.reason) from error
        if len(_read) >= _KEPT or sum(_size(tunes) for tunes in (*_read.values(), found)) > _KEPT_NOTES:
            _read.clear()
        _read[key] = found
    return _read[key]


def _size(tunes: list[Tune | ScoreError]) -> int:
    return sum(len(tune.notes) if isinstance(tune, Tune) else 1 for tune in tunes)


def _heard(data: bytes, name: str) -> midi.Midi:
    """Raises MidiError without any note."""
    heard = midi.read(data, name)
    if not len(heard.onsets):
        raise MidiError(name, "no notes in it, drums apart")
    return heard


def _heard_notes(landed: Landed) -> pa.RecordBatch:
    """The notes of a MIDI file, all at once: there are thousands in each."""
    try:
        heard = _heard(landed.read(), landed.name)
    except MidiError as error:
        raise BadPage(error.reason) from error
    names = pa.array([_shown(track) or None for track in heard.tracks], pa.string())
    parts = pa.array(heard.parts)
    columns = {
        "piece_id": pa.repeat(pa.scalar(_piece_id(landed, None)), len(parts)),
        "note": pa.array(np.arange(len(parts))),
        "part": parts,
        "instrument": names.take(parts) if len(names) > 1 else pa.repeat(names[0], len(parts)),
        "onset_quarters": pa.array(heard.onsets),
        "duration_quarters": pa.array(heard.durations),
        "pitch": pa.array(heard.pitches),
        "velocity": pa.array(heard.velocities),
    }
    return pa.record_batch([columns[field.name] for field in NOTES], schema=NOTES)


def _performance(data: bytes, name: str) -> Tune:
    """A MIDI file as a tune that is played once, from its start to its end."""
    heard = _heard(data, name)
    end = float(np.max(heard.onsets + heard.durations))
    return Tune(
        number=None,
        title=None,
        composer=None,
        time_signature=heard.time_signature,
        key_signature=None,
        tempo_bpm=heard.tempo_bpm,
        parts=tuple(_shown(track) for track in heard.tracks),
        notes=heard.notes,
        spans=((0.0, end),),
    )


def _shown(track: str) -> str:
    """A track's name as text that can be stored: it may be in any encoding."""
    return " ".join(track.replace("\x00", " ").encode("utf-8", "replace").decode().split())


def _title(landed: Landed, tune: Tune) -> str | None:
    """The title that the source tells, or the file; where that is its own name, the number of a work of Bach."""
    if landed.meta.get("title"):
        return str(landed.meta["title"])
    path = PurePosixPath(landed.name)
    if tune.title and tune.title != path.name:
        return tune.title
    return f"BWV {path.stem.removeprefix('bwv')}" if path.stem.startswith("bwv") else None


def _piece_id(landed: Landed, number: int | None) -> str:
    """``bach/bwv1.6``; in a file of many tunes ``nottingham-dataset/reelsa-c#80``; ``maestro/2018/x.midi``.

    Of other sources nobody knows that their files differ in more than the suffix, or from music21's.
    """
    if landed.meta["source"] != "music21_corpus":
        return f"{landed.meta['source']}/{landed.name}"
    stem = str(PurePosixPath(landed.name).with_suffix(""))
    return stem if number is None else f"{stem}#{number}"


def _keys_of(context: Context, source: str, paths: list[str]) -> dict[str, list[tuple[Any, ...]]]:
    """Keys of the rows that were derived from these scores before, so far as they still stand."""
    pieces = context.resource.name == "pieces"
    columns = "d.piece_id" if pieces else "d.piece_id, d.note"
    grouped: dict[str, list[tuple[Any, ...]]] = {}
    with closing(context.warehouse()) as db, db, db.cursor() as sql:
        sql.execute(
            f"""
            select distinct p.path, {columns}
            from (
                select distinct piece_id, path from raw.notes_pieces where source = %s and path = any(%s)
            ) as p
            join raw.{"notes_pieces" if pieces else "notes"} as d on d.piece_id = p.piece_id
            where not d._deleted
            order by p.path, {columns}
            """,
            (source, paths),
        )
        for path, *key in sql:
            grouped.setdefault(path, []).append(tuple(key))
    return grouped


NOTES = pa.schema(
    [
        describe("piece_id", pa.string(), "piece it belongs to", required=True),
        describe("note", pa.int64(), "number in the piece, by onset, part and pitch", required=True),
        describe("part", pa.int64(), "part it is in, 0 = top of the score", required=True),
        describe("instrument", pa.string(), "name of the part"),
        describe("onset_quarters", pa.float64(), "onset in quarters from the start", required=True),
        describe("duration_quarters", pa.float64(), "length in quarters", required=True),
        describe("pitch", pa.int64(), "MIDI pitch, 60 = middle C", required=True),
        describe("velocity", pa.int64(), "MIDI velocity 1-127; null in written music"),
    ]
)

SOURCE = Source(
    name="notes",
    title="Notes of the scores",
    domain="music",
    description="Pieces and notes, read out of the scores that have landed and passed their audit.",
    licence="that of the score",
    cadence="",
    cursor="last published load of each source of scores",
    volume="thousands of notes a piece",
    after=tuple(UPSTREAMS),
    resources=(
        Resource(
            name="pieces",
            mode="merge",
            key=("piece_id",),
            fetch=fetch,
            parse=parse_pieces,
            description="A piece of music: a score, or one tune of a tune book.",
            schema=pa.schema(
                [
                    describe("piece_id", pa.string(), "path, with #number in a tune book", required=True),
                    describe("source", pa.string(), "source of the score", required=True),
                    describe("path", pa.string(), "path of the score in its source", required=True),
                    describe("number", pa.int64(), "reference number in a tune book"),
                    describe("corpus", pa.string(), "collection, such as bach-chorales", required=True),
                    describe("title", pa.string(), "title as printed, or the BWV number"),
                    describe("composer", pa.string(), "composer"),
                    describe("time_signature", pa.string(), "the first one, such as 3/4"),
                    describe("key_signature", pa.string(), "the first one: A major, or 3 sharps without a mode"),
                    describe("tempo_bpm", pa.float64(), "the first tempo, quarters a minute"),
                    describe("parts", pa.int64(), "parts in the score", required=True),
                    describe("quarters", pa.float64(), "length as written, in quarters", required=True),
                    describe("fingerprint", pa.string(), "the same for the same tune in any key", required=True),
                    describe("licence", pa.string(), "terms of music and encoding", required=True),
                    describe("split", pa.string(), "split that the source publishes; null where it has none"),
                    describe(
                        "frames_quarter",
                        pa.list_(pa.list_(pa.int16())),
                        "MIDI pitches that sound at each quarter, ascending: repeats played, the singers where named",
                        required=True,
                    ),
                ]
            ),
        ),
        Resource(
            name="notes",
            mode="merge",
            key=("piece_id", "note"),
            fetch=fetch,
            parse=parse_notes,
            description="A note as written, ties joined.",
            schema=NOTES,
        ),
    ),
)
