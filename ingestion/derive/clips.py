"""Recordings that have landed -> clips of five seconds, 16 kHz mono: the part of the audio that SQL cannot read.

Works on published loads only. A recording that is new gives a page that refers to the landed object; a recording that
changed or went takes the clips that came from it along first. A file that cannot be decoded goes to quarantine, whole,
and the others go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pyarrow as pa
from psycopg2.extensions import cursor as Sql  # noqa: N812 - the name is taken by our own cursors

from ingestion.contract import Bad, BadPage, Blob, Context, Gone, Landed, Page, Record, Resource, Source, describe

SAMPLE_RATE_HZ = 16_000
WINDOW_S = 5.0
SHORTEST_S = 1.0  # a rest shorter than this is left out: too little is heard in it
# Where recordings come from: source -> the column that names a recording.
UPSTREAMS = {"aviary": "recording_id", "audio_folder": "file", "xeno_canto": "recording_id"}


def _fetch(context: Context) -> Iterator[Page | Gone]:
    """A page for each recording in loads published since the cursor ({source: load}), in the order of the loads.

    Stops before a load that waits for its audit, so that none is left out when a later one is published first.
    """
    cursor = {source: int(context.cursor.get(source, 0)) for source in UPSTREAMS}
    for source, column in UPSTREAMS.items():
        with closing(context.warehouse()) as db, db, db.cursor() as sql:
            changed = _changed(sql, source, column, cursor[source])
            before = _clips_of(sql, source, [key for _, key, *_ in changed])
        for load, key, deleted, landing, sha256, content_type in changed:
            cursor = cursor | {source: load}
            for clip_id, clip_sha256 in before.pop(key, []):
                if deleted or clip_sha256 != sha256:
                    yield Gone((clip_id,), cursor)
            if not deleted:
                meta = {"source": source, "recording_key": key, "audio_sha256": sha256}
                yield Page(f"{source}: {key}", None, cursor, content_type, meta, ref=landing)


def _changed(sql: Sql, source: str, column: str, since: int) -> list[tuple[int, str, bool, str, str, str]]:
    """Versions of recordings after load ``since``: load, key, whether it went, landing key, SHA-256, media type."""
    table = f"raw.{source}_audio"
    sql.execute("select to_regclass(%s) is not null", (table,))
    if not (sql.fetchone() or (False,))[0]:
        return []
    sql.execute(
        f"""
        select a._load, coalesce(a.{column}, a._key), a._deleted, p.key, a.sha256, a.content_type
        from {table} as a
        join ops.load as l on l.source = %(source)s and l.load = a._load
        left join ops.landing as p on p.source = l.source and p.load = a._load and p.position = a._page
        where a._load > %(since)s and l.state = 'published'
          and not exists (
            select from ops.load as w
            where w.source = l.source and w.resource = l.resource and w.state = 'loaded'
              and w.load > %(since)s and w.load < a._load
          )
        order by a._load, a._position
        """,
        {"source": source, "since": since},
    )
    return sql.fetchall()


def _clips_of(sql: Sql, source: str, recordings: list[str]) -> dict[str, list[tuple[str, str]]]:
    """Clips there are of these recordings: recording -> (clip, SHA-256 of the audio it was cut from)."""
    sql.execute("select to_regclass('raw.clips') is not null")
    if not (sql.fetchone() or (False,))[0]:
        return {}
    sql.execute(
        """
        select recording_key, _key, audio_sha256
        from (
            select distinct on (c._key) c._key, c._deleted, c.source, c.recording_key, c.audio_sha256
            from raw.clips as c
            join ops.load as l on l.source = 'clips' and l.load = c._load and l.state <> 'rejected'
            order by c._key, c._load desc, c._position desc
        ) as current
        where not _deleted and source = %s and recording_key = any(%s)
        order by recording_key, _key
        """,
        (source, recordings),
    )
    clips: dict[str, list[tuple[str, str]]] = {}
    for recording, clip, sha256 in sql.fetchall():
        clips.setdefault(recording, []).append((clip, sha256))
    return clips


def parse(page: Landed) -> Iterator[Record | Bad]:
    """The clips of one recording. Raises BadPage when it cannot be decoded whole: before any clip, so none stays."""
    from storage.media import audio

    source, recording = page.meta["source"], page.meta["recording_key"]
    window, shortest = int(WINDOW_S * SAMPLE_RATE_HZ), int(SHORTEST_S * SAMPLE_RATE_HZ)
    try:
        with page.path() as file:
            audio.verify(file, name=recording)
            for first, pcm in audio.cut(audio.blocks(file, SAMPLE_RATE_HZ, name=recording), window, shortest):
                yield {
                    "clip_id": f"{source}:{recording}:{first * 1000 // SAMPLE_RATE_HZ}",
                    "source": source,
                    "recording_key": recording,
                    "audio_sha256": page.meta["audio_sha256"],
                    "audio_key": page.key,
                    "start_s": first / SAMPLE_RATE_HZ,
                    "end_s": (first + len(pcm)) / SAMPLE_RATE_HZ,
                    "sample_rate": SAMPLE_RATE_HZ,
                    "samples": len(pcm),
                    "clip_object": Blob(audio.encode_flac(pcm, SAMPLE_RATE_HZ), "audio/flac", ".flac"),
                    "rms_db": round(audio.level_db(pcm), 2),
                    "peak": round(float(abs(pcm).max()), 5),
                }
    except audio.AudioError as error:
        raise BadPage(error.what) from error


CLIPS = Resource(
    name="clips",
    schema=pa.schema(
        [
            describe("clip_id", pa.string(), "source:recording:start in milliseconds", required=True),
            describe("source", pa.string(), "source of the recording", required=True),
            describe("recording_key", pa.string(), "key of the recording in its source", required=True),
            describe("audio_sha256", pa.string(), "SHA-256 of the file it was cut from", required=True),
            describe("audio_key", pa.string(), "address of that file in landing", required=True),
            describe("start_s", pa.float64(), "first second in the recording", required=True),
            describe("end_s", pa.float64(), "second in the recording after the last", required=True),
            describe("sample_rate", pa.int32(), "samples a second: 16000", required=True),
            describe("samples", pa.int32(), "samples in the clip", required=True),
            describe("clip_object", pa.string(), "address in the bucket derived: FLAC, mono, 16 bit", required=True),
            describe("rms_db", pa.float64(), "level in dB of full scale; -120 is digital silence", required=True),
            describe("peak", pa.float64(), "largest absolute sample; full scale is 1", required=True),
        ]
    ),
    key=("clip_id",),
    store="rows",
    mode="merge",
    fetch=_fetch,
    parse=parse,
    description="Windows of 5 s, end to end; a rest of 1 s or more makes one too, and a shorter recording is one clip.",
)

SOURCE = Source(
    name="clips",
    title="Clips",
    domain="birds",
    description=f"Clips cut from the recordings of {', '.join(UPSTREAMS)}, decoded to 16 kHz mono.",
    licence="as the recording's",
    cadence="",
    cursor="last published load of each source of recordings",
    volume="a clip for each five seconds",
    resources=(CLIPS,),
    after=tuple(UPSTREAMS),
)
