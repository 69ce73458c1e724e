"""Small published training marts with real clip objects, for the tests of freezing, registering and tracing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
from psycopg2.extras import Json, execute_values
from support import Stack

from storage import warehouse
from storage.media import audio
from storage.objects import Objects

MARTS = {
    "mart_birds_training_clips": (
        "clip_id text, recording_id text, source text, label_set text, species text[], primary_species text, "
        "group_key text, split text, split_origin text, start_s double precision, end_s double precision, "
        "sample_rate integer, samples integer, clip_object text, snr_db double precision, recordist text, "
        "licence text, is_simulated boolean"
    ),
    "mart_music_training_pieces": (
        "piece_id text, source text, corpus text, title text, composer text, grid text, frames jsonb, "
        "n_frames integer, fingerprint text, group_key text, split text, split_origin text, licence text"
    ),
    "mart_translation_training_pairs": (
        "pair_id text, corpus text, source_language text, target_language text, source_text text, target_text text, "
        "source_words integer, group_key text, cluster_key text, split text, split_origin text, licence text"
    ),
    "dim_corpus": "corpus_id text, source text, name text",
}
Rows = list[dict[str, Any]]


def publish(stack: Stack, mart: str, rows: Sequence[dict[str, Any]]) -> None:
    """Make the mart hold these rows and no others."""
    with closing(warehouse.connect(stack.settings("transformer"))) as db, db, db.cursor() as sql:
        sql.execute(f"drop table if exists marts.{mart}")
        sql.execute(f"create table marts.{mart} ({MARTS[mart]})")
        if rows:
            columns = list(rows[0])
            values = [[Json(v) if isinstance(v, list) and c == "frames" else v for c, v in row.items()] for row in rows]
            execute_values(sql, f"insert into marts.{mart} ({', '.join(columns)}) values %s", values)


@contextmanager
def marts(stack: Stack) -> Iterator[None]:
    """The four marts, empty, and no trace of them or of what was frozen and scored afterwards."""

    def forget() -> None:
        with closing(warehouse.connect(stack.settings("transformer"))) as db, db, db.cursor() as sql:
            for mart in MARTS:
                sql.execute(f"drop table if exists marts.{mart}")
        with closing(warehouse.connect(stack.settings("trainer"))) as db, db, db.cursor() as sql:
            for table in ("dataset", "score", "promotion", "prediction"):
                sql.execute(f"delete from ml.{table}")
        objects = Objects(stack.settings("admin"))
        for key in list(objects.list("datasets")):
            objects.delete("datasets", key)

    forget()
    for mart in MARTS:
        publish(stack, mart, [])
    try:
        yield
    finally:
        forget()


def split_of(number: int) -> str:
    return ("train", "train", "train", "valid", "test")[number % 5]


SPECIES = (["Parus major"], ["Turdus merula"], [], ["Parus major", "Turdus merula"])
PITCHES = {"Parus major": 3_500, "Turdus merula": 1_200}  # Hz


def sound(number: int, seconds: float = 1.0) -> Any:
    """A clip unlike any other: noise, and a tone near the pitch of each species heard in it. 16 bit at 16 kHz."""
    random = np.random.default_rng(number)
    time = np.arange(int(seconds * 16_000)) / 16_000
    wave = random.normal(0, 500, len(time))
    for species in SPECIES[number % 4]:
        wave += 6_000 * np.sin(2 * np.pi * (PITCHES[species] + random.uniform(-150, 150)) * time)
    return wave.astype(np.int16)


def clips(stack: Stack, count: int, label_set: str = "aviary") -> Rows:
    """Rows of the birds' mart; their FLAC objects are put into the bucket ``derived``."""
    objects, rows = Objects(stack.settings("loader")), []
    for number in range(count):
        body = audio.encode_flac(sound(number), 16_000)
        key = f"clips/{hashlib.sha256(body).hexdigest()}.flac"
        objects.put("derived", key, body, "audio/flac")
        species = SPECIES[number % 4]
        rows.append(
            {
                "clip_id": f"clip-{number:03d}",
                "recording_id": f"recording-{number // 2:03d}",
                "source": "aviary",
                "label_set": label_set,
                "species": species,
                "primary_species": species[0] if species else "",
                "group_key": f"recordist-{number % 5}",
                "split": split_of(number),
                "split_origin": "assigned",
                "start_s": 0.0,
                "end_s": 1.0,
                "sample_rate": 16_000,
                "samples": 16_000,
                "clip_object": key,
                "snr_db": None,
                "recordist": f"recordist {number % 5}",
                "licence": "CC0" if number % 2 else "CC-BY",
                "is_simulated": True,
            }
        )
    return rows


def pieces(count: int) -> Rows:
    return [
        {
            "piece_id": f"piece-{number:03d}",
            "source": "music21_corpus",
            "corpus": "bach-chorales",
            "title": None if number % 3 else f"Chorale {number}",
            "composer": "J. S. Bach",
            "grid": "quarter",
            "frames": [[48 + (number + step) % 12, 60, 64, 67] if step % 7 else [] for step in range(8 + number % 5)],
            "n_frames": 8 + number % 5,
            "fingerprint": f"print-{number}",
            "group_key": f"print-{number}",
            "split": split_of(number),
            "split_origin": "assigned",
            "licence": "public-domain",
        }
        for number in range(count)
    ]


def pairs(count: int, target_language: str = "rus") -> Rows:
    return [
        {
            "pair_id": hashlib.md5(f"{target_language}{number}".encode(), usedforsecurity=False).hexdigest(),
            "corpus": "django",
            "source_language": "eng",
            "target_language": target_language,
            "source_text": f"Delete {number} files \u2028 “now”",
            "target_text": f"Удалить файлы: {number} 🐦",
            "source_words": 3,
            "group_key": f"group-{number // 10}",
            "cluster_key": f"group-{number // 10}",
            "split": split_of(number // 10),
            "split_origin": "assigned",
            "licence": "BSD",
        }
        for number in range(count)
    ]


def manifest_in_store(stack: Stack, uri: str) -> dict[str, Any]:
    bucket, key = uri.removeprefix("s3://").split("/", 1)
    found: dict[str, Any] = json.loads(Objects(stack.settings("trainer")).get(bucket, f"{key}/manifest.json"))
    return found
