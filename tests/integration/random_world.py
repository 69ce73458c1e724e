"""Records for every raw table there is, few keys and many changes, so that batches of them meet each other.

`MAKERS` gives, for a raw table, a record of the n-th key whose other fields come from dice. Keys of one table are those
that another refers to: clips of recordings, notes of pieces, links of sentences.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from transform_world import KEYS, World, audio, clip, line, message, notes, piece, recording, roll
from upstreams import gbif, xeno_canto

NAMES = ("Tyto alba", "Corvus corax", "Avisus primus", "Cantor tertius", "Rhea americana intermedia")
LICENCES = ("CC0 1.0", "CC BY 2.0 FR", "public domain", None)
WORDS = ("the", "dog", "cat", "runs", "over", "a", "green", "field", "Hund", "läuft", "Идёт", "дождь")


def _text(dice: Random) -> str:
    return " ".join(dice.choices(WORDS, k=dice.randint(1, 9)))


def _recording(number: int, dice: Random) -> dict[str, Any]:
    return recording(
        number, rec=dice.choice(("recordist 1", "Recordist 1", "recordist 2", "")), q=dice.choice("ABC?"),
        type=dice.choice(("song", "call, canto", "?", "zzz")), split=dice.choice(("train", "valid", "")),
        cnt=dice.choice(("Here", "There")), also=dice.sample(NAMES, dice.randint(0, 2)),
    )  # fmt: skip


def _xeno_canto(number: int, dice: Random) -> dict[str, Any]:
    said = {"type": dice.choice(("song", "alarm call, call", "")), "time": dice.choice(xeno_canto.TIMES)}
    return xeno_canto.entry(number, dice.choice(NAMES), **said, q=dice.choice("ABCDE"))


def _label(number: int, dice: Random) -> dict[str, Any]:
    return {
        "file": f"f{number}.wav", "scientific_name": dice.choice((*NAMES, "")), "english_name": "",
        "label_set": "folder",
        "recordist": dice.choice(("Ann", None)), "split": dice.choice(("train", None)),
        "licence": dice.choice(LICENCES),
    }  # fmt: skip


def _clip(number: int, dice: Random) -> dict[str, Any]:
    key = ("aviary", f"sim-{number}") if number % 2 else ("xeno_canto", str(number))
    return clip(*key, audio_sha256=dice.choice((f"sha-{key[1]}", "another")), peak=round(dice.random(), 3))


def _detection(number: int, dice: Random) -> dict[str, Any]:
    return {
        "detection_id": f"d{number // 2}", "revision": 1 + number % 2, "recorder": dice.choice(("north",
        "south", None)),
        "detected_at": f"2026-05-0{dice.randint(1, 9)} 04:00:00+00", "species": dice.choice((*NAMES, "owl", None)),
        "confidence": round(dice.random(), 3), "start_s": 0.0, "end_s": 3.0, "clip_id": None, "latitude": 52.0,
        "longitude": 13.0,
    }  # fmt: skip


def _field_clip(number: int, dice: Random) -> dict[str, Any]:
    return {
        "clip_id": f"c{number // 2}", "revision": 1 + number % 2, "recorder": "north", "duration_s": 3.0, "bytes": 10,
        "recorded_at": f"2026-05-0{dice.randint(1, 9)} 04:00:00+00", "content_type": "audio/wav", "reference": None,
        "audio_object": None,
    }  # fmt: skip


def _account(number: int, dice: Random) -> dict[str, Any]:
    name = NAMES[number % len(NAMES)]
    ranks = [{"rank": "order", "name": "Ordo"}, {"rank": "family", "name": dice.choice(("Familia", "Altera"))}]
    return {
        "species": name, "title": name.title(), "binomial": name, "authority": None, "lead": _text(dice),
        "sections": [],
        "conservation_status": dice.choice(("Least Concern", "Vulnerable")), "licence": "CC BY-SA 4.0", "url": "u",
        "licence_url": "l", "attribution": "a", "revision": number, "modified": "2026-01-01", "taxonomy": ranks,
    }  # fmt: skip


def _score(number: int, dice: Random, **more: Any) -> dict[str, Any]:
    return {"path": f"s{number}.mid", "corpus": "c", "sha256": dice.choice("ab") * 64, "bytes": 10} | more


def _mutopia(number: int, dice: Random) -> dict[str, Any]:
    told = ("instruments", "style", "opus", "metre", "lyricist", "arranger", "composed", "edition", "music_id",
            "midi_url", "page_url", "typeset", "collections", "maintainer", "more_information",
            "licence_url")  # fmt: skip
    return {
        "piece_id": number, "title": _text(dice), "composer": dice.choice(("J. S. Bach", "Anon.")), "updated": None,
        "licence": dice.choice(LICENCES),
    } | dict.fromkeys(told)  # fmt: skip


def _piece(number: int, dice: Random) -> dict[str, Any]:
    return piece(
        f"p{number}", number, title=dice.choice((f"Choral {number}", "Aria", None)), licence=dice.choice(LICENCES),
        composer=dice.choice(("J. S. Bach", "Anon.", None)), split=dice.choice((None, "train", "test")),
        fingerprint=f"print-{dice.randint(0, 6)}", key_signature=dice.choice(("G major", None)),
    )  # fmt: skip


def _note(number: int, dice: Random) -> dict[str, Any]:
    of_piece = notes(f"p{number // 4}", 4)[number % 4]
    return of_piece | {"pitch": dice.randint(40, 80), "instrument": dice.choice(("Soprano", "Bass", None))}


def _message(number: int, dice: Random) -> dict[str, Any]:
    return message(number, dice.choice(("ru",)), target_text=_text(dice), licence=dice.choice(LICENCES))


def _line(number: int, dice: Random) -> dict[str, Any]:
    return line(number // 2, ("en", "de")[number % 2], _text(dice), "val" if number % 5 == 0 else "train")


def _sentence(number: int, dice: Random) -> dict[str, Any]:
    return {
        "sentence_id": number, "language": ("eng", "deu", "rus")[number % 3], "text": _text(dice), "added": None,
        "contributor": dice.choice(("ann", "bert", None)), "modified": None, "licence": dice.choice(LICENCES[:2]),
    }  # fmt: skip


def _link(number: int, dice: Random) -> dict[str, Any]:
    languages = ("eng", "deu", "rus")
    return {
        "sentence_id": number, "translation_id": number + 1, "language": languages[number % 3],
        "translation_language": languages[(number + 1) % 3],
    }  # fmt: skip


def _pair(number: int, dice: Random) -> dict[str, Any]:
    return {
        "language": "deu", "sentence_id": number, "translation_id": number + 1, "english": _text(dice),
        "licence": "CC BY",
        "translation": _text(dice), "contributor": "ann", "translator": dice.choice(("bert", "carl")),
        "attribution": "",
    }  # fmt: skip


def _audio(
    number: int, dice: Random, key: str = "recording_id", prefix: str = "sim-", suffix: str = ""
) -> dict[str, Any]:
    return audio(f"{prefix}{number}{suffix}", key) | {"bytes": dice.randint(1, 9)}


MAKERS: dict[str, Callable[[int, Random], dict[str, Any]]] = {
    "aviary_recordings": _recording,
    "aviary_audio": _audio,
    "audio_folder_labels": _label,
    "audio_folder_audio": lambda n, dice: _audio(n, dice, "file", "f", ".wav"),
    "xeno_canto_recordings": _xeno_canto,
    "xeno_canto_audio": lambda n, dice: _audio(n, dice, prefix="") | {"licence": None, "url": None},
    "gbif_sounds_occurrences": lambda n, dice: gbif.occurrence(n, recordedBy=dice.choice(("Ann", "Bert"))),
    "field_recorder_detections": _detection,
    "field_recorder_clips": _field_clip,
    "species_accounts": _account,
    "clips": _clip,
    "music21_corpus_scores": lambda n, dice: _score(n, dice, format="mxl"),
    "maestro_scores": lambda n, dice: _score(
        n,
        dice,
        composer="Anon.",
        title=None,
        split="train",
        year=2017,
        duration_s=1.0,
        audio_filename="a",
        licence=None,
    ),
    "midi_archive_scores": lambda n, dice: _score(n, dice, file="z.zip", licence=dice.choice(LICENCES), etag=None),
    "mutopia_pieces": _mutopia,
    "mutopia_scores": lambda n, dice: _score(
        n, dice, piece_id=n, title=None, composer=None, licence=None, updated=None, url="u"
    ),
    "notes_pieces": _piece,
    "notes": _note,
    "piano_roll_files_pieces": lambda n, dice: roll("valid", n, fingerprint=f"print-{dice.randint(0, 6)}"),
    "gettext_catalogues_messages": _message,
    "parallel_files_lines": _line,
    "tatoeba_sentences": _sentence,
    "tatoeba_links": _link,
    "manythings_pairs": _pair,
}


def apply(world: World, table: str, changes: Sequence[tuple[int, bool]], seed: int, state: str = "published") -> int:
    """One load of this table: for each (n, stays) the n-th key in a new version, or taken away. Gives its number."""
    dice = Random(f"{table}{seed}")
    made = [(MAKERS[table](number, dice), stays) for number, stays in changes]
    records = {json.dumps([record[name] for name in KEYS[table]]): (record, stays) for record, stays in made}
    stay = [record for record, stays in records.values() if stays]
    gone = [[record[name] for name in KEYS[table]] for record, stays in records.values() if not stays]
    return world.add(table, stay, gone, state)
