"""Scores that have landed -> pieces and notes: the part of the music that SQL cannot read.

Works on published loads only. A score that is new gives one page per resource, which refers to the landed object; a
score that changed or went takes the rows that came from it along first, so that nothing of an older version stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from ingestion.contract import Bad, BadPage, Context, Gone, Landed, Page, Record, Resource, Source, describe
from storage.media import frames, scores
from storage.media.scores import ScoreError, Tune

UPSTREAM = "music21_corpus"
GRID = "quarter"
_KEPT = 512  # scores

# Both resources read the same objects, one after the other in one process: reading each of them once halves the work.
_read: dict[tuple[str, str], list[Tune | ScoreError]] = {}


def fetch(context: Context) -> Iterator[Page | Gone]:
    """A page for each score of loads published since the cursor ({source: load}), in the order of the loads.

    Stops before a load that waits for its audit, so that none is left out when a later one is published first.
    """
    since = int(context.cursor.get(UPSTREAM, 0))
    with closing(context.warehouse()) as db, db, db.cursor() as sql:
        sql.execute(
            """
            select s._load, s._key, s._deleted, s._landing, s.corpus, s.composer, s.licence
            from raw.music21_corpus_scores as s
            join ops.load as l on l.source = %(source)s and l.load = s._load
            where s._load > %(since)s and l.state = 'published'
              and not exists (
                select from ops.load as w
                where w.source = l.source and w.resource = l.resource and w.state = 'loaded'
                  and w.load > %(since)s and w.load < s._load
              )
            order by s._load, s._position
            """,
            {"source": UPSTREAM, "since": since},
        )
        changed = sql.fetchall()
        before = _keys_of(sql, context.resource.name, [path for _, path, *_ in changed]) if context.cursor else {}
    for load, path, deleted, landing, corpus, composer, licence in changed:
        cursor = {UPSTREAM: load}
        for key in before.pop(path, []):
            yield Gone(key, cursor)
        if not deleted:
            meta = {"source": UPSTREAM, "corpus": corpus, "composer": composer, "licence": licence}
            suffix = PurePosixPath(path).suffix
            yield Page(path, None, cursor, scores.CONTENT_TYPES.get(suffix, ""), meta, ref=landing)


def parse_pieces(landed: Landed) -> Iterator[Record | Bad]:
    for tune in _tunes(landed):
        if isinstance(tune, ScoreError):
            yield Bad(tune.name, tune.reason)
            continue
        voices = scores.voices(tune)
        sounding = frames.to_frames((note for note in scores.played(tune) if note.part in voices), GRID)
        yield {
            "piece_id": _piece_id(landed, tune),
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
            "split": None,
            "frames_quarter": sounding,
        }


def parse_notes(landed: Landed) -> Iterator[Record | Bad]:
    for tune in _tunes(landed):
        if isinstance(tune, ScoreError):
            yield Bad(tune.name, tune.reason)
            continue
        piece_id = _piece_id(landed, tune)
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
        try:
            found = scores.read(landed.read(), PurePosixPath(landed.name).suffix, landed.name)
        except ScoreError as error:
            raise BadPage(error.reason) from error
        if len(_read) >= _KEPT:
            _read.clear()
        _read[key] = found
    return _read[key]


def _title(landed: Landed, tune: Tune) -> str | None:
    """The title; where the file gives none, or its own name for one, the number of a work of Bach."""
    path = PurePosixPath(landed.name)
    if tune.title and tune.title != path.name:
        return tune.title
    return f"BWV {path.stem.removeprefix('bwv')}" if path.stem.startswith("bwv") else None


def _piece_id(landed: Landed, tune: Tune) -> str:
    """``bach/bwv1.6``; in a file of many tunes ``nottingham-dataset/reelsa-c#80``."""
    stem = str(PurePosixPath(landed.name).with_suffix(""))
    return stem if tune.number is None else f"{stem}#{tune.number}"


def _keys_of(sql: Any, resource: str, paths: list[str]) -> dict[str, list[tuple[Any, ...]]]:
    """Keys of the rows that were derived from these paths before, so far as they still stand."""
    columns = ("piece_id",) if resource == "pieces" else ("piece_id", "note")
    table = "notes_pieces" if resource == "pieces" else "notes"
    pieces = "select piece_id from raw.notes_pieces where path = any(%s)"
    sql.execute(
        f"""
        select distinct {", ".join(columns)} from raw.{table} where not _deleted and piece_id in ({pieces})
        order by {", ".join(columns)}
        """,
        (paths,),
    )
    keys = sql.fetchall()
    sql.execute("select distinct piece_id, path from raw.notes_pieces where path = any(%s)", (paths,))
    path_of = dict(sql.fetchall())
    grouped: dict[str, list[tuple[Any, ...]]] = {}
    for key in keys:
        grouped.setdefault(path_of[key[0]], []).append(tuple(key))
    return grouped


SOURCE = Source(
    name="notes",
    title="Notes of the scores",
    domain="music",
    description="Pieces and notes, read out of the scores that have landed and passed their audit.",
    licence="that of the score",
    cadence="",
    after=(UPSTREAM,),
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
                    describe("piece_id", pa.string(), "path without its suffix; in a tune book #number", required=True),
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
            schema=pa.schema(
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
            ),
        ),
    ),
)
