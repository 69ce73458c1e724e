"""Aviary: a catalogue of simulated bird recordings, shaped like xeno-canto's API v3, for a platform without a network.

Every record says ``simulated: true``; the genera, recordists and places are invented, so nobody can take a number from
here for a finding about birds. What is sung, and why it is hard enough, is told in :mod:`.aviary_synth`.

Splits are published in the metadata and go by recordist: recordists and their backgrounds are disjoint between train,
valid and test. The cursor counts recordings, so raising ``recordings`` later adds only the new ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ingestion.contract import Bad, BadPage, Context, Gone, Landed, Page, Record, Resource, Source, describe
from storage.errors import Problem

if TYPE_CHECKING:
    from ingestion.sources.aviary_synth import Plan

URL = "simulated://aviary"
PER_PAGE = 100
LIMIT = 99_999  # ids have five digits


def recording_id(number: int) -> str:
    """Catalogue id of a recording, counted from 0; no real catalogue has such ids."""
    return f"SIM{number + 1:05d}"


def entry(seed: int, plan: Plan) -> dict[str, Any]:
    """One recording as the catalogue shows it: xeno-canto's fields, and what a simulation can tell on top."""
    import numpy as np

    from ingestion.sources import aviary_synth as synth

    rng = np.random.default_rng((seed, 5, plan.number))
    species, recordist = plan.species[0], plan.recordist
    made = date(2024, 3, 1) + timedelta(days=int(rng.integers(120)))
    name = recording_id(plan.number)
    seconds = round(plan.duration_s)
    quality = "ABCDE"[int(np.digitize(-plan.snr_db, (-15, -10, -5, 0)))]
    return {
        "id": name,
        "gen": species.genus,
        "sp": species.epithet,
        "ssp": "",
        "grp": "birds",
        "en": species.english,
        "rec": recordist.name,
        "cnt": "Simulated Sea",
        "loc": recordist.place,
        "lat": f"{recordist.latitude + rng.uniform(-0.01, 0.01):.4f}",
        "lon": f"{recordist.longitude + rng.uniform(-0.01, 0.01):.4f}",
        "alt": str(int(rng.integers(0, 40)) * 10),
        "type": "song",
        "sex": "",
        "stage": "adult",
        "method": "simulated",
        "url": f"{URL}/{name}",
        "file": f"{URL}/{name}/download",
        "file-name": f"{name}-{species.scientific}.flac",
        "lic": recordist.licence,
        "q": quality,
        "length": f"{seconds // 60}:{seconds % 60:02d}",
        "time": f"{int(rng.integers(4, 10)):02d}:{int(rng.integers(60)):02d}",
        "date": made.isoformat(),
        "uploaded": (made + timedelta(days=int(rng.integers(1, 30)))).isoformat(),
        "also": [other.scientific for other in plan.species[1:]],
        "rmk": f"Simulated recording; background: {recordist.background}",
        "regnr": "",
        "auto": "no",
        "dvc": recordist.device,
        "mic": "",
        "smp": str(synth.RATE_HZ),
        "simulated": True,
        "split": recordist.split,
        "background": recordist.background,
        "snr_db": plan.snr_db,
        "order": synth.ORDER,
        "family": species.family,
    }


def _outstanding(context: Context) -> tuple[int, range, list[int]]:
    """The seed, the numbers to hand out, and the numbers to take back (another seed is another aviary)."""
    seed, count = _natural(context, "seed"), _natural(context, "recordings")
    if count > LIMIT:
        raise Problem(f"aviary: {count} recordings are too many", f"Set recordings to at most {LIMIT}")
    done = int(context.cursor.get("recordings", 0))
    if context.cursor.get("seed", seed) != seed:
        return seed, range(count), list(range(count, done))
    return seed, range(done, count), []


def _natural(context: Context, option: str) -> int:
    """A whole number from the options; raises Problem for anything else."""
    value = context.config[option]
    try:
        number = int(str(value))
    except ValueError:
        number = -1
    if number < 0:
        raise Problem(f"aviary: {option} is {value!r}", f"Set {option} to a whole number, 0 or more")
    return number


def _fetch_recordings(context: Context) -> Iterator[Page | Gone]:
    from ingestion.sources import aviary_synth as synth

    seed, numbers, gone = _outstanding(context)
    total = int(context.config["recordings"])
    pages = -(-total // PER_PAGE)
    at = numbers.start
    while at < numbers.stop:
        number = at // PER_PAGE + 1
        until = min(number * PER_PAGE, numbers.stop)
        body = {
            "numRecordings": str(total),
            "numSpecies": str(len(synth.SPECIES)),
            "page": number,
            "numPages": pages,
            "recordings": [entry(seed, synth.plan(seed, each)) for each in range(at, until)],
        }
        yield Page(
            name=f"{URL}/api/3/recordings?seed={seed}&page={number}&from={recording_id(at)}",
            body=json.dumps(body, indent=1).encode(),
            cursor={"seed": seed, "recordings": until},
            content_type="application/json",
        )
        at = until
    for each in gone:
        yield Gone((recording_id(each),), {"seed": seed, "recordings": numbers.stop})


def _parse_recordings(page: Landed) -> Iterator[Record | Bad]:
    try:
        recordings = json.loads(page.read())["recordings"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadPage(f"{page.name} is not a page of recordings: {error}") from None
    for each in recordings:
        yield each if isinstance(each, dict) and each.get("id") else Bad(each, "a recording without an id")


def _fetch_audio(context: Context) -> Iterator[Page | Gone]:
    from ingestion.sources import aviary_synth as synth
    from storage.media import audio

    seed, numbers, gone = _outstanding(context)
    for number in numbers:
        plan = synth.plan(seed, number)
        name = recording_id(number)
        if (number - numbers.start) % PER_PAGE == 0:
            context.progress(f"singing {name} (of {numbers.stop})")
        yield Page(
            name=f"{URL}/{name}/download",
            body=audio.encode_flac(synth.render(seed, plan).astype("float32"), synth.RATE_HZ),
            cursor={"seed": seed, "recordings": number + 1},
            content_type="audio/flac",
            meta={"recording_id": name, "file_name": f"{name}-{plan.species[0].scientific}.flac"},
        )
    for each in gone:
        yield Gone((recording_id(each),), {"seed": seed, "recordings": numbers.stop})


def _parse_audio(page: Landed) -> Iterator[Record | Bad]:
    yield {
        "recording_id": page.meta["recording_id"],
        "file_name": page.meta["file_name"],
        "sha256": page.sha256,
        "bytes": page.size,
        "content_type": page.content_type,
    }


def _texts(descriptions: Sequence[tuple[str, str]]) -> list[pa.Field]:
    return [describe(name, pa.string(), description) for name, description in descriptions]


RECORDINGS = Resource(
    name="recordings",
    schema=pa.schema(
        [
            describe("id", pa.string(), "catalogue id", required=True),
            describe("gen", pa.string(), "genus of the species the recording is about", required=True),
            describe("sp", pa.string(), "species epithet", required=True),
            describe("rec", pa.string(), "recordist", required=True),
            describe("lic", pa.string(), "address of the licence, without its scheme", required=True),
            describe("split", pa.string(), "train, valid or test, by recordist", required=True),
            describe("simulated", pa.bool_(), "always true", required=True),
            describe("also", pa.list_(pa.string()), "scientific names of further species that sing", required=True),
            describe("snr_db", pa.float64(), "song over background in dB, between 1.5 and 7.5 kHz", required=True),
            *_texts(
                [
                    ("ssp", "subspecies; empty"),
                    ("grp", "group; always birds"),
                    ("en", "English name"),
                    ("cnt", "country; always Simulated Sea"),
                    ("loc", "place"),
                    ("lat", "latitude in degrees, as text"),
                    ("lon", "longitude in degrees, as text"),
                    ("alt", "metres above sea level, as text"),
                    ("type", "sound type"),
                    ("sex", "sex; empty"),
                    ("stage", "life stage"),
                    ("method", "recording method; always simulated"),
                    ("url", "address of the entry"),
                    ("file", "address of the audio"),
                    ("file-name", "name of the audio file"),
                    ("q", "quality, A (best) to E"),
                    ("length", "minutes and seconds, m:ss"),
                    ("time", "local time, hh:mm"),
                    ("date", "day of the recording, ISO 8601"),
                    ("uploaded", "day of the upload, ISO 8601"),
                    ("rmk", "remarks"),
                    ("regnr", "registration number; empty"),
                    ("auto", "automatic recording: yes or no"),
                    ("dvc", "recorder"),
                    ("mic", "microphone; empty"),
                    ("smp", "sample rate in Hz, as text"),
                    ("background", "kind of background"),
                    ("order", "order in the simulated taxonomy"),
                    ("family", "family in the simulated taxonomy"),
                ]
            ),
        ]
    ),
    key=("id",),
    store="documents",
    mode="merge",
    fetch=_fetch_recordings,
    parse=_parse_recordings,
    description="Catalogue entries of simulated recordings, in pages shaped like xeno-canto's API v3.",
)

AUDIO = Resource(
    name="audio",
    schema=pa.schema(
        [
            describe("recording_id", pa.string(), "catalogue id of the recording", required=True),
            describe("file_name", pa.string(), "name of the file", required=True),
            describe("sha256", pa.string(), "SHA-256 of the file", required=True),
            describe("bytes", pa.int64(), "size of the file", required=True),
            describe("content_type", pa.string(), "media type", required=True),
        ]
    ),
    key=("recording_id",),
    store="objects",
    mode="merge",
    fetch=_fetch_audio,
    parse=_parse_audio,
    description="The simulated recordings: 16 kHz mono FLAC of 4.5 to 5 s.",
)

SOURCE = Source(
    name="aviary",
    title="Aviary (simulated)",
    domain="birds",
    description=(
        "Simulated recordings of twelve invented species by twelve invented recordists, made on this machine. "
        "For trying the platform without a network; no finding about real birds can come of it."
    ),
    licence="per recording (Creative Commons, simulated)",
    cadence="0 3 * * *",
    cursor="seed and number of recordings made",
    volume="576 recordings, one more for each asked for; each of 5 to 12 seconds",
    resources=(RECORDINGS, AUDIO),
    config={
        "recordings": (576, "how many recordings the aviary holds; raising it later adds only the new ones"),
        "seed": (7, "which recordings: another seed is another aviary with the same species and recordists"),
    },
    simulated=True,
    url=URL,
)
