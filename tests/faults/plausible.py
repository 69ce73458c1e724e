"""Data of every source as it might be: one seed, one world of recordings, pieces and sentences that belong together.

Distributions are those of the real sources in kind, not in number: skewed species and contributors, lengths that are
log-normal, fields that are sometimes empty, texts in several scripts. Every seed draws anew from the same world.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from itertools import product
from typing import Any

Record = dict[str, Any]
Records = dict[str, list[Record]]

_WORLD = random.Random("what all seeds share")
_SYLLABLES = ["ka", "ri", "to", "mel", "os", "pha", "nur", "e", "lin", "cor", "vis", "tur", "du", "sa", "qui", "ax"]


def _name(chance: random.Random, parts: int) -> str:
    return "".join(chance.choice(_SYLLABLES) for _ in range(parts)).capitalize()


PEOPLE = [f"{_name(_WORLD, 2)} {_name(_WORLD, 3)}" for _ in range(40)]
FAMILIES = [(f"{_name(_WORLD, 3)}idae", f"{_name(_WORLD, 3)}iformes") for _ in range(12)]
SPECIES = [
    (_name(_WORLD, 3), _name(_WORLD, 2).lower(), f"{_name(_WORLD, 2)} Bird", *_WORLD.choice(FAMILIES))
    for _ in range(30)
]
PLACES = [(country, f"{_name(_WORLD, 3)} Wood") for country in ("Brazil", "Poland", "India", "Kenya") for _ in range(9)]
COMPOSERS = [f"{_name(_WORLD, 2)}, {_name(_WORLD, 1)}" for _ in range(25)]
ENGLISH = [_name(_WORLD, parts).lower() for parts in (1, 2, 2, 3) for _ in range(60)]
CYRILLIC = str.maketrans("abcdefghijklmnopqrstuvwxyz", "абцдефгхийклмнопярстувшхыз")
LICENCES = [
    "//creativecommons.org/licenses/by-nc-sa/4.0/",
    "//creativecommons.org/licenses/by-nc-nd/2.5/",
    "//creativecommons.org/licenses/by/4.0/",
]


class Draw(random.Random):
    """Random numbers, and what is made of them here."""

    def often(self, things: list[Any]) -> Any:
        """The first ones more often than the last."""
        return things[min(int(self.expovariate(1) / 4 * len(things)), len(things) - 1)]

    def maybe(self, share: float, value: Any, other: Any = None) -> Any:
        return value if self.random() < share else other

    def day(self, first: date = date(2024, 1, 1), days: int = 700) -> date:
        return first + timedelta(days=self.randrange(days))

    def sha(self) -> str:
        return hashlib.sha256(self.randbytes(8)).hexdigest()

    def sentence(self, language: str = "en") -> str:
        words = [self.often(ENGLISH) for _ in range(max(3, round(self.lognormvariate(1.9, 0.4))))]
        text = " ".join(words).capitalize() + "."
        if language in ("ru", "rus"):
            return text.lower().translate(CYRILLIC).capitalize()
        return text.replace("a", "ä").replace("o", "ö") if language in ("de", "deu") else text


def recording(draw: Draw, number: str) -> Record:
    """A document in the shape of the xeno-canto API."""
    genus, epithet, english, family, order = draw.often(SPECIES)
    country, place = draw.often(PLACES)
    day = draw.day()
    return {
        "id": number,
        "gen": genus,
        "sp": epithet,
        "ssp": draw.maybe(0.1, _name(draw, 2).lower(), ""),
        "grp": "birds",
        "en": english,
        "family": family,
        "order": order,
        "rec": draw.often(PEOPLE),
        "cnt": country,
        "loc": place,
        "lat": f"{draw.gauss(10, 25):.4f}",
        "lon": f"{draw.gauss(20, 40):.4f}",
        "alt": draw.maybe(0.8, str(int(draw.expovariate(1 / 400))), ""),
        "type": draw.choice(["song", "call", "song, call", "alarm call"]),
        "sex": draw.choice(["male", "female", "", ""]),
        "stage": draw.choice(["adult", "juvenile", "", ""]),
        "method": draw.maybe(0.9, "field recording", "in the hand"),
        "url": f"//xeno-canto.org/{number}",
        "file": f"https://xeno-canto.org/{number}/download",
        "file-name": f"XC{number}-{genus} {epithet}.mp3",
        "lic": draw.often(LICENCES),
        "q": draw.often(list("ABCDE")),
        "length": f"{int(draw.lognormvariate(0, 0.7))}:{draw.randrange(60):02}",
        "time": f"{draw.randrange(4, 21):02}:{draw.randrange(60):02}",
        "date": day.isoformat(),
        "uploaded": (day + timedelta(days=draw.randrange(1, 90))).isoformat(),
        "rmk": draw.maybe(0.4, draw.sentence("de"), ""),
        "animal-seen": draw.choice(["yes", "no"]),
        "playback-used": draw.maybe(0.2, "yes", "no"),
        "temp": draw.maybe(0.5, str(round(draw.gauss(15, 6))), ""),
        "regnr": "",
        "auto": "no",
        "dvc": draw.often(["Zoom H5", "AudioMoth", "Sony PCM-D10"]),
        "mic": draw.often(["Sennheiser ME66", "built-in"]),
        "smp": draw.choice(["44100", "48000"]),
        "also": [" ".join(draw.often(SPECIES)[:2]) for _ in range(draw.randrange(3))],
    }


def birds(draw: Draw, size: int) -> Records:
    simulated = [
        {
            name: value
            for name, value in recording(draw, f"SIM{n:05}").items()
            if name not in ("animal-seen", "playback-used", "temp")
        }
        | {
            "simulated": True,
            "snr_db": round(draw.gauss(8, 4), 2),
            "background": draw.choice(["rain", "wind", "none"]),
            "split": draw.choices(["train", "valid", "test"], [8, 1, 1])[0],
        }
        for n in range(size)
    ]
    uploaded = [recording(draw, str(700_000 + 37 * n + draw.randrange(30))) for n in range(size)]
    files = [f"folder/{n:04}_{_name(draw, 2).lower()}.wav" for n in range(size)]

    def audio(key: str, name: str) -> Record:
        return {
            name: key,
            "sha256": draw.sha(),
            "bytes": int(draw.lognormvariate(13, 0.8)),
            "content_type": "audio/mpeg",
        }

    heard_in = {
        "aviary": [audio(one["id"], "recording_id") for one in simulated],
        "xeno_canto": [audio(one["id"], "recording_id") for one in uploaded],
        "audio_folder": [audio(file, "file") for file in files],
    }
    labels = []
    for file in files:
        genus, epithet, english, *_ = draw.often(SPECIES)
        labels.append(
            {
                "file": file,
                "scientific_name": f"{genus} {epithet}",
                "english_name": english,
                "recordist": draw.often(PEOPLE),
                "split": draw.maybe(0.9, draw.choices(["train", "valid", "test"], [8, 1, 1])[0]),
                "licence": draw.maybe(0.8, "CC BY 4.0"),
                "label_set": "folder",
            }
        )
    clips = [
        {
            "clip_id": hashlib.md5(f"{source}/{key}/{start}".encode(), usedforsecurity=False).hexdigest(),
            "source": source,
            "recording_key": key,
            "audio_sha256": sha,
            "audio_key": f"landing/{source}/{draw.sha()}",
            "start_s": 5.0 * start,
            "end_s": 5.0 * start + draw.choice([5.0, 5.0, 3.2]),
            "sample_rate": 16_000,
            "samples": draw.choice([80_000, 80_000, 51_200]),
            "clip_object": f"derived/clips/{draw.sha()}.flac",
            "rms_db": round(draw.gauss(-30, 6), 2),
            "peak": round(min(1.0, draw.betavariate(2, 3)), 4),
        }
        for source, audios in heard_in.items()
        for key, sha in ((one.get("recording_id") or one["file"], one["sha256"]) for one in audios)
        if draw.random() < 0.9
        for start in range(draw.choice([1, 1, 2]))
    ]
    sounds = []
    for n in range(size):
        genus, epithet, _, family, order = draw.often(SPECIES)
        day, place = draw.day(), draw.often(PLACES)
        sounds.append(
            {
                "key": 1_000_000 + 17 * n + draw.randrange(15),
                "datasetKey": draw.choice(["b1047888", "50c9509d"]),
                "lastInterpreted": f"{day + timedelta(days=draw.randrange(100))}T04:05:06.000+00:00",
                "media": [
                    {
                        "type": "Sound",
                        "identifier": f"https://sounds.example/{draw.sha()}.mp3",
                        "license": draw.often(LICENCES),
                    }
                ],
                "publishingCountry": draw.often(["US", "NL", "GB"]),
                "basisOfRecord": draw.maybe(0.8, "HUMAN_OBSERVATION", "MACHINE_OBSERVATION"),
                "occurrenceID": f"https://observations.example/{draw.randrange(10**8)}",
                "catalogNumber": draw.maybe(0.7, str(draw.randrange(10**8))),
                "scientificName": f"{genus} {epithet} (Linnaeus, 1758)",
                "species": f"{genus} {epithet}",
                "genus": genus,
                "family": family,
                "order": order,
                "class": "Aves",
                "taxonKey": SPECIES.index((genus, epithet, _, family, order)) + 2_480_000,
                "speciesKey": SPECIES.index((genus, epithet, _, family, order)) + 2_480_000,
                "recordedBy": draw.often(PEOPLE),
                "rightsHolder": draw.maybe(0.9, draw.often(PEOPLE)),
                "license": draw.often(LICENCES),
                "countryCode": draw.often(["BR", "PL", "IN", "KE"]),
                "stateProvince": draw.maybe(0.8, place[1]),
                "locality": draw.maybe(0.5, place[1]),
                "decimalLatitude": round(draw.gauss(10, 25), 5),
                "decimalLongitude": round(draw.gauss(20, 40), 5),
                "coordinateUncertaintyInMeters": draw.maybe(0.6, round(draw.lognormvariate(4, 1), 1)),
                "eventDate": f"{day}T{draw.randrange(4, 20):02}:00",
                "year": day.year,
                "month": day.month,
                "day": day.day,
                "modified": f"{day + timedelta(days=1)}T00:00:00.000+00:00",
                "references": f"https://observations.example/{draw.randrange(10**8)}",
            }
        )
    accounts = [
        {
            "species": f"{genus} {epithet}",
            "title": english,
            "url": f"https://pages.example/{genus}_{epithet}",
            "revision": 10**9 + draw.randrange(10**7),
            "modified": draw.day().isoformat(),
            "redirected_from": draw.maybe(0.2, f"{genus} {_name(draw, 2).lower()}"),
            "licence": "CC BY-SA 4.0",
            "licence_url": "https://creativecommons.org/licenses/by-sa/4.0/",
            "attribution": f"Contributors of {english}",
            "taxonomy": [
                {"rank": "order", "name": order},
                {"rank": "family", "name": family},
                {"rank": "genus", "name": genus},
            ],
            "binomial": f"{genus} {epithet}",
            "authority": draw.maybe(0.8, f"{_name(draw, 2)}, 1766"),
            "conservation_status": draw.often(["LC", "NT", "VU"]),
            "lead": " ".join(draw.sentence("de") for _ in range(4)),
            "sections": [{"heading": "Voice", "text": draw.sentence()} for _ in range(draw.randrange(1, 5))],
        }
        for genus, epithet, english, family, order in [
            (one[0], f"{one[1]}{suffix}", *one[2:]) for suffix in ("", "us", "a", "um", "is", "ens") for one in SPECIES
        ]
    ]
    recorders = [f"garden-{n}" for n in range(4)]

    def at() -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=draw.randrange(60 * 24 * 90))

    heard = [
        {
            "clip_id": f"heard-{n}",
            "revision": 1,
            "recorder": draw.often(recorders),
            "recorded_at": at(),
            "duration_s": round(draw.gauss(5, 0.5), 2),
            "content_type": "audio/flac",
            "reference": draw.maybe(0.5, f"s3://garden/{draw.sha()}.flac"),
            "audio_object": f"derived/field_recorder/{draw.sha()}.flac",
            "bytes": int(draw.lognormvariate(11, 0.4)),
        }
        for n in range(size)
    ]
    detections = [
        {
            "detection_id": f"detection-{n}",
            "revision": draw.maybe(0.1, 2, 1),
            "recorder": one["recorder"],
            "detected_at": one["recorded_at"],
            "species": " ".join(draw.often(SPECIES)[:2]),
            "confidence": round(draw.betavariate(5, 2), 3),
            "start_s": round(draw.uniform(0, 3), 1),
            "end_s": round(draw.uniform(3, 5), 1),
            "clip_id": one["clip_id"],
            "latitude": round(draw.gauss(52, 0.01), 5),
            "longitude": round(draw.gauss(21, 0.01), 5),
        }
        for n, one in enumerate(heard)
    ]
    return {
        "aviary_recordings": simulated,
        "aviary_audio": [one | {"file_name": f"{one['recording_id']}.wav"} for one in heard_in["aviary"]],
        "xeno_canto_recordings": uploaded,
        "xeno_canto_audio": [
            file | {"file_name": one["file-name"], "licence": one["lic"], "url": one["file"]}
            for file, one in zip(heard_in["xeno_canto"], uploaded, strict=True)
        ],
        "audio_folder_labels": labels,
        "audio_folder_audio": [one | {"etag": draw.maybe(0.5, draw.sha()[:16])} for one in heard_in["audio_folder"]],
        "gbif_sounds_occurrences": sounds,
        "species_accounts": accounts,
        "clips": clips,
        "field_recorder_clips": heard,
        "field_recorder_detections": detections,
    }


def music(draw: Draw, size: int) -> Records:
    def frames(steps: int) -> list[list[int]]:
        top = draw.randrange(65, 77)
        return [sorted({top + draw.randrange(-5, 5), top - 12, top - 20}) for _ in range(steps)]

    def score(path: str) -> Record:
        return {"path": path, "sha256": draw.sha(), "bytes": int(draw.lognormvariate(9, 0.6))}

    corpus = [
        score(f"bach/bwv{n}.{draw.randrange(1, 9)}.mxl")
        | {
            "corpus": draw.often(["bach-chorales", "nottingham"]),
            "format": "mxl",
            "composer": draw.maybe(0.9, draw.often(COMPOSERS)),
            "licence": "public domain",
        }
        for n in range(size)
    ]
    maestro = []
    for n in range(size):
        name = f"{draw.randrange(2004, 2019)}/MIDI-{n:04}.midi"
        maestro.append(
            score(name)
            | {
                "corpus": "maestro",
                "composer": draw.often(COMPOSERS),
                "title": draw.sentence("de")[:40],
                "split": draw.choices(["train", "validation", "test"], [8, 1, 1])[0],
                "year": int(name[:4]),
                "duration_s": round(draw.lognormvariate(6, 0.5), 3),
                "audio_filename": name.replace("midi", "wav"),
                "licence": "CC BY-NC-SA 4.0",
            }
        )
    archive = [
        score(f"tunes/{_name(draw, 3)}-{n}.mid")
        | {
            "file": "tunes.zip",
            "corpus": draw.often(["tunes", "dances", "songs"]),
            "licence": draw.often(["public domain", "CC BY 4.0"]),
            "etag": draw.sha()[:12],
        }
        for n in range(size)
    ]
    pieces = [
        {
            "piece_id": 5 * n + draw.randrange(4),
            "title": draw.sentence("de")[:50],
            "instruments": draw.often(["Piano", "Guitar", "Voice, Piano", "String Quartet"]),
            "composer": draw.often(COMPOSERS),
            "style": draw.often(["Baroque", "Classical", "Romantic"]),
            "licence": draw.often(["Creative Commons Attribution-ShareAlike 4.0", "Public Domain"]),
            "licence_url": draw.maybe(0.9, "https://creativecommons.org/licenses/by-sa/4.0/"),
            "updated": draw.day(),
            "music_id": f"Mutopia-{draw.day():%Y/%m/%d}-{n}",
            "midi_url": f"https://mutopia.example/ftp/{draw.sha()[:10]}/piece.mid",
            "page_url": f"https://mutopia.example/cgibin/piece-info.cgi?id={n}",
            "opus": draw.maybe(0.6, f"Op. {draw.randrange(1, 120)}"),
            "metre": draw.maybe(0.1, draw.sentence()),
            "lyricist": draw.maybe(0.1, draw.often(PEOPLE)),
            "arranger": draw.maybe(0.2, draw.often(PEOPLE)),
            "composed": draw.maybe(0.6, str(draw.randrange(1690, 1910))),
            "edition": draw.maybe(0.7, f"{_name(draw, 3)} & Sons, {draw.randrange(1850, 1930)}"),
            "typeset": "LilyPond",
            "collections": draw.maybe(0.2, f"{_name(draw, 3)} collection"),
            "maintainer": draw.often(PEOPLE),
            "more_information": draw.maybe(0.3, draw.sentence("de")),
        }
        for n in range(size)
    ]
    typeset = [
        score(f"{one['music_id']}/piece.mid")
        | {
            "piece_id": one["piece_id"],
            "corpus": "mutopia",
            "title": one["title"],
            "composer": one["composer"],
            "licence": one["licence"],
            "updated": one["updated"],
            "url": one["midi_url"],
        }
        for one in pieces
    ]
    notated, notes = [], []
    for one in [*corpus[: size // 2], *maestro[: size // 4], *typeset[: size // 4]]:
        source = {"maestro": "maestro", "mutopia": "mutopia"}.get(one["corpus"], "music21_corpus")
        identity = one["path"].rsplit(".", 1)[0]
        parts = draw.randrange(1, 5)
        notated.append(
            {
                "piece_id": identity,
                "source": source,
                "path": one["path"],
                "number": draw.maybe(0.3, draw.randrange(40)),
                "corpus": one["corpus"],
                "title": draw.maybe(0.9, one.get("title") or draw.sentence()[:30]),
                "composer": one["composer"],
                "time_signature": draw.often(["4/4", "3/4", "6/8"]),
                "key_signature": draw.often(["G major", "C major", "D minor", "A minor"]),
                "tempo_bpm": round(draw.gauss(100, 18), 1),
                "parts": parts,
                "quarters": float(4 * draw.randrange(4, 40)),
                "fingerprint": draw.sha()[:32],
                "licence": one["licence"],
                "split": one["split"].replace("validation", "valid") if "split" in one else None,
                "frames_quarter": frames(draw.maybe(0.1, 5, draw.randrange(12, 40))),
            }
        )
        for note in range(12):
            notes.append(
                {
                    "piece_id": identity,
                    "note": note,
                    "part": note % parts,
                    "instrument": draw.maybe(0.9, f"Part {note % parts}"),
                    "onset_quarters": note / 2,
                    "duration_quarters": draw.choice([0.5, 1.0, 2.0]),
                    "pitch": min(120, max(20, round(draw.gauss(66, 8)))),
                    "velocity": draw.maybe(0.95, min(127, max(1, round(draw.gauss(70, 12))))),
                }
            )
    rolls = [
        {
            "piece_id": f"jsb/{split}/{n}",
            "file": "chorales/jsb-chorales-quarter.json",
            "split": split,
            "number": n,
            "grid": "quarter",
            "frames": frames(draw.randrange(20, 60)),
            "fingerprint": draw.sha()[:32],
        }
        for split, share in (("train", 0.6), ("valid", 0.2), ("test", 0.2))
        for n in range(int(size * share))
    ]
    return {
        "music21_corpus_scores": corpus,
        "maestro_scores": maestro,
        "midi_archive_scores": archive,
        "mutopia_pieces": pieces,
        "mutopia_scores": typeset,
        "notes_pieces": notated,
        "notes": notes,
        "piano_roll_files_pieces": rolls,
    }


def text(draw: Draw, size: int) -> Records:
    messages = []
    for n, (package, language) in product(range(size // 4), (("django", "ru"), ("django", "de"), ("sphinx", "ru"))):
        messages.append(
            {
                "package": package,
                "package_version": "5.2",
                "language": language,
                "context": draw.maybe(0.1, "verb", ""),
                "source_text": f"{draw.sentence()[:-1]} {n}",
                "target_text": draw.sentence(language),
                "form": draw.maybe(0.1, 1, 0),
                "path": f"{package}/locale/{language}/LC_MESSAGES/django.mo",
                "licence": "BSD-3-Clause",
            }
        )
    lines = []
    for part, split, share in (("train", "train", 0.8), ("val", "valid", 0.1), ("test_2016_flickr", "test", 0.1)):
        for n in range(int(size * share)):
            for language in ("en", "de"):
                lines.append(
                    {
                        "corpus": "multi30k",
                        "split": split,
                        "part": part,
                        "language": language,
                        "line": n,
                        "text": draw.sentence(language),
                    }
                )
    languages = ["eng", "rus", "deu"]
    sentences = [
        {
            "sentence_id": 100 + 3 * n + draw.randrange(3),
            "language": language,
            "text": draw.sentence(language),
            "contributor": draw.maybe(0.95, draw.often(PEOPLE).replace(" ", "")),
            "added": draw.maybe(0.95, f"{draw.day()} 10:11:12"),
            "modified": draw.maybe(0.95, f"{draw.day(days=800)} 10:11:12"),
            "licence": draw.maybe(0.9, "CC BY 2.0 FR", "CC0 1.0"),
        }
        for n, language in ((n, languages[n % 3]) for n in range(2 * size))
    ]
    of = {language: [one for one in sentences if one["language"] == language] for language in languages}
    links = [
        {
            "sentence_id": one["sentence_id"],
            "translation_id": other["sentence_id"],
            "language": "eng",
            "translation_language": other["language"],
        }
        for language in ("rus", "deu")
        for one, other in zip(of["eng"], of[language], strict=False)
        if draw.random() < 0.9
    ]
    pairs = [
        {
            "language": other["language"],
            "sentence_id": one["sentence_id"],
            "translation_id": other["sentence_id"],
            "english": one["text"],
            "translation": other["text"],
            "contributor": one["contributor"] or "someone",
            "translator": other["contributor"] or "someone",
            "licence": "CC BY 2.0 FR",
            "attribution": f"CC-BY 2.0 (France): tatoeba.org #{one['sentence_id']} & #{other['sentence_id']}",
        }
        for language in ("rus", "deu")
        for one, other in zip(of["eng"], of[language], strict=False)
        if draw.random() < 0.6
    ]
    return {
        "gettext_catalogues_messages": messages,
        "parallel_files_lines": lines,
        "tatoeba_sentences": sentences,
        "tatoeba_links": links,
        "manythings_pairs": pairs,
    }


def platform(draw: Draw, size: int) -> Records:
    """The platform's own tables, as some months of use leave them."""
    sources = ["aviary", "xeno_canto", "notes", "tatoeba"]

    def at() -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=draw.randrange(60 * 24 * 90))

    loads, quarantined = [], []
    for n in range(size):
        fetched, source = at(), draw.often(sources)
        loads.append(
            {
                "source": source,
                "load": 1000 + n,
                "resource": draw.choice(["recordings", "audio"]),
                "lane": draw.maybe(0.9, "live", "backfill"),
                "slice": draw.maybe(0.2, f"{fetched:%Y-%m-%d}"),
                "state": draw.maybe(0.95, "published", "rejected"),
                "pages": draw.randrange(1, 60),
                "rows": int(draw.lognormvariate(6, 1)),
                "versions": int(draw.lognormvariate(5, 1)),
                "quarantined": int(draw.expovariate(1)),
                "bytes": int(draw.lognormvariate(13, 1)),
                "fetched_at": fetched,
                "loaded_at": fetched + timedelta(seconds=draw.expovariate(1 / 60)),
                "judged_at": fetched + timedelta(seconds=90 + draw.expovariate(1 / 60)),
                "reason": draw.maybe(0.05, "too few rows"),
                "run_id": f"scheduled__{fetched:%Y-%m-%dT%H:%M}",
            }
        )
        quarantined.append(
            {
                "source": source,
                "load": 1000 + n,
                "resource": "recordings",
                "position": draw.randrange(60),
                "payload": draw.sentence(),
                "reason": draw.often(["lic is missing", "lat is no text", "the page cannot be read"]),
                "landing": f"landing/{draw.sha()}",
                "run_id": f"scheduled__{fetched:%Y-%m-%dT%H:%M}",
                "at": fetched,
                "replayed_at": draw.maybe(0.1, fetched + timedelta(days=2)),
            }
        )
    audits = [
        {
            "subject": f"load.{draw.often(sources)}",
            "kind": draw.maybe(0.6, "load", "mart"),
            "domain": draw.often(["birds", "music", "text"]),
            "severity": draw.choices(["none", "warning", "critical"], [8, 1, 1])[0],
            "success": draw.maybe(0.9, True, False),
            "expectations": draw.randrange(10, 60),
            "failed": "[]",
            "docs_url": draw.maybe(0.9, f"audits/{draw.sha()}.html"),
            "at": at(),
        }
        for _ in range(size)
    ]
    scores = [
        {
            "model": model,
            "model_version": version,
            "dataset_version": draw.sha()[:12],
            "split": split,
            "metric": metric,
            "value": round(draw.betavariate(6, 3), 4),
            "low": round(draw.betavariate(5, 4), 4),
            "high": round(draw.betavariate(7, 2), 4),
            "direction": "more",
            "baseline_name": "majority",
            "baseline": 0.3,
            "baseline_low": 0.28,
            "baseline_high": 0.33,
            "rows": draw.randrange(100, 900),
            "at": at(),
        }
        for model in ("birds-aviary", "translation-en-ru")
        for version in range(1, size // 12)
        for split in ("valid", "test")
        for metric in ("accuracy", "f1", "recall")
    ]
    predictions = [
        {
            "model": draw.often(["birds-aviary", "translation-en-ru", "music-chorales"]),
            "model_version": draw.randrange(1, 40),
            "dataset_version": draw.often(["a1", "b2"]),
            "key": f"row-{n}",
            "output": "{}",
            "score": round(draw.betavariate(5, 2), 4),
            "predicted_at": at(),
        }
        for n in range(6 * size)
    ]
    return {
        "ops.load": loads,
        "ops.quarantine": quarantined,
        "ops.audit": audits,
        "ml.score": scores,
        "ml.prediction": predictions,
    }


MAKERS: dict[str, Callable[[Draw, int], Records]] = {"birds": birds, "music": music, "text": text, "platform": platform}


@lru_cache(maxsize=40)
def records(domain: str, seed: int, size: int = 300) -> Records:
    """What the domain's sources hold: records by raw table (or, for the platform, by table of its own).

    They are made once and shared: who changes them takes a copy.
    """
    return MAKERS[domain](Draw(f"{domain} {seed}"), size)
