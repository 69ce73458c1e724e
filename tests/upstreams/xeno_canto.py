"""A double of xeno-canto's API v3 and of its downloads, on loopback.

Copied from:

* https://xeno-canto.org/explore/api, API v3, which all clients need since 2025-10 (read in a stored copy without a
  date, http://www.learndenglisch.com/proxies?url=https%3A%2F%2Fxeno-canto.org%2Fexplore%2Fapi): ``query`` and ``key``
  are required, ``per_page`` is 50 to 500 and 100 by default, ``page`` begins at 1.
* A public response with all its fields, of recording 254462, in the tests of a client's repository (read 2026-11):
  ``numRecordings`` and ``numSpecies`` are text, ``page`` and ``numPages`` numbers; the values of a recording are text
  or null, but for ``also``, ``sono``, ``osci`` and ``annotation-set``; and the error of a missing key, with 401.
* https://xeno-canto.org/help/search, the tags, in the words that clients' sources repeat (read 2026-11): ``cnt`` and
  ``gen`` match beginnings, ``"=…"`` whole values, ``q`` takes < and >, ``since`` a number of days or a date of upload,
  ``nr`` a number or a range, ``lic`` the conditions of the licence.
* https://github.com/ropensci/suwo/issues/36 (2025-12-24): 200 recordings at 100 a page are 3 pages, of which the last
  holds no recording.

The catalogue is the real one of ``shared/data/xeno_canto/recordings.csv``, where that is; what the file does not tell
(upload, licence, quality, coordinates, …) is made up by number, untidy as the real values are. Otherwise all is made.
The order of a list is not documented: here the newest come first, so an upload while somebody pages shifts all pages.
"""

from __future__ import annotations

import csv
import io
import random
import re
import wave
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from upstreams.faulty_server import FaultyServer, Reply, as_json

KEY = "a-members-key"
LICENCES = ("by-nc-sa/4.0", "by-nc-nd/4.0", "by-sa/4.0", "by/4.0")
NO_KEY = "Missing or invalid 'key' parameter. Visit https://xeno-canto.org/account to retrieve your API key."
NO_TAGS = "Xeno-canto API v3 only accepts queries using tags. Visit https://xeno-canto.org/explore/api for a list."
TAG = re.compile(r'([a-z-]+):("[^"]*"|\S+)')
TIMES = ("07:00", "17:30", "?", "?:?", "am", "06.15", "7:30pm", "xx:xx", "")


def entry(number: int, name: str, **told: Any) -> dict[str, Any]:
    """A recording as the API gives it, without the addresses, which the server adds."""
    rng = random.Random(number)
    genus, epithet, *rest = [*name.split(), "", ""][:9]
    made = {
        "id": str(number),
        "gen": genus,
        "sp": epithet,
        "ssp": " ".join(rest).strip(),
        "grp": "birds",
        "en": f"{epithet.title()} {genus}",
        "rec": rng.choice(("Ana Ruiz", "J. van der Berg", "Bob O'Neill", "坂本 綾")),
        "cnt": rng.choice(("Brazil", "Peru", "New Zealand")),
        "loc": rng.choice(('Parque Nacional, "Sur"', "Km 12\tof the road", "")),
        "lat": None if number % 7 == 0 else f"{rng.uniform(-60, 60):.4f}",
        "lon": None if number % 7 == 0 else f"{rng.uniform(-180, 180):.4f}",
        "alt": rng.choice(("150", "?", "-", "", "1200m")),
        "type": rng.choice(("song", "call, song", "uncertain", "", "mecánico")),
        "sex": rng.choice(("male", "", "male, female", "uncertain")),
        "stage": rng.choice(("adult", "")),
        "method": "field recording",
        "file-name": f"XC{number}-{genus}.{'mp3' if number % 2 else 'wav'}",
        "sono": {"small": f"https://xeno-canto.org/sounds/spectrograms/X/{number}/grey-small.png", "full": None},
        "osci": {"small": None, "med": None, "large": None},
        "lic": f"//creativecommons.org/licenses/{LICENCES[number % 4]}/",
        "q": "ABCDE"[number % 5] if number % 6 else "no score",
        "length": "1:02:03" if number % 50 == 0 else f"{rng.randrange(3)}:{rng.randrange(60):02d}",
        "time": TIMES[number % len(TIMES)],
        "date": f"{rng.randrange(1990, 2020)}-{rng.randrange(13):02d}-{rng.randrange(32):02d}",
        "uploaded": (date(2006, 1, 1) + timedelta(days=number * 6_500 // 1_000_000)).isoformat(),
        "also": ["Corvus corax", "Pipilo maculatus"][: number % 3],
        "rmk": "Line one.\r\nLine two: <b>loud</b> 'n' clear.",
        "animal-seen": "yes",
        "playback-used": "unknown",
        "temp": None,
        "regnr": "",
        "auto": "no",
        "dvc": "",
        "mic": "",
        "smp": "48000",
        "annotation-set": [],
    } | told
    if number % 11 == 0:
        del made["mic"], made["rmk"]  # fields come and go
    return made


def made(count: int, seed: int = 7) -> list[dict[str, Any]]:
    """A made-up catalogue."""
    rng = random.Random(seed)
    names = [
        f"{rng.choice(('Avisus', 'Cantor', 'Volator'))} {rng.choice(('primus', 'niger', 'minor'))}" for _ in range(9)
    ]
    numbers = sorted(rng.sample(range(1, 999_999), count))
    return [entry(number, f"{rng.choice(names)}{' borealis' if number % 5 == 0 else ''}") for number in numbers]


def real(file: Path) -> list[dict[str, Any]]:
    """The entries of the real catalogue, with what its file tells of them."""
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    return [
        entry(
            int(row["xc_id"].removeprefix("XC")),
            row["scientific_name"],
            en=row["common_name"],
            rec=row["recordist_name"],
            length=row["recording_length"],
            date=row["Date"],
            type=row["TYPE"],
            time=row["Time"],
            cnt=row["Country"],
        )
        for row in rows
    ]


def recordings(folder: Path) -> dict[str, Path]:
    """Whole recordings of the catalogue that lie in a folder, by number."""
    return {path.stem.removeprefix("XC"): path for path in sorted(folder.glob("XC*.*"))}


class XenoCanto(FaultyServer):
    """The double: a catalogue that tests may change, and how it misbehaves.

    ``waiting`` are uploads that appear one by one while somebody pages; ``shape`` renames the list of recordings;
    ``absent`` and ``files`` are numbers without audio, and with audio of their own.
    """

    def __init__(self, entries: Iterable[dict[str, Any]], files: dict[str, Path] | None = None) -> None:
        super().__init__()
        self.entries = {one["id"]: one for one in entries}
        self.waiting: list[dict[str, Any]] = []
        self.withdrawn: list[str] = []  # numbers that disappear one by one while somebody pages
        self.files = files or {}
        self.absent: set[str] = set()
        self.shape = "recordings"

    def wait(self, count: int) -> None:
        """Hold the newest entries back: they are uploaded while somebody pages."""
        newest = sorted(self.entries, key=int)[-count:]
        self.waiting += [self.entries.pop(number) for number in newest]

    def settle(self) -> None:
        """What was to appear has appeared, what was to go has gone."""
        for one in self.waiting:
            self.entries[one["id"]] = one
        for number in self.withdrawn:
            self.entries.pop(number, None)
        self.waiting, self.withdrawn = [], []

    def answer(self, path: str, params: dict[str, str]) -> Reply:
        if path == "/api/3/recordings":
            return self._list(params)
        number = path.removesuffix("/download").strip("/")
        if number not in self.entries or number in self.absent:
            return Reply(404, b"<html>no such recording</html>", "text/html")
        if number in self.files:
            kind = "audio/mpeg" if self.files[number].suffix == ".mp3" else "audio/x-wav"
            return Reply(200, self.files[number].read_bytes(), kind)
        return Reply(200, sound(int(number)), "audio/x-wav")

    def _list(self, params: dict[str, str]) -> Reply:
        if params.get("key") != KEY:
            return as_json({"error": "client_error", "message": NO_KEY}, 401)
        query = params.get("query", "")
        size, page = int(params.get("per_page", "100")), int(params.get("page", "1"))
        if not query or TAG.sub("", query).strip() or not 50 <= size <= 500:
            return as_json({"error": "client_error", "message": NO_TAGS}, 400)
        if page > 1 and self.faulty:
            if self.waiting:
                late = self.waiting.pop(0)
                self.entries[late["id"]] = late
            if self.withdrawn:
                self.entries.pop(self.withdrawn.pop(0), None)
        found = [one for one in self.entries.values() if all(_matches(one, *tag) for tag in TAG.findall(query))]
        found.sort(key=lambda one: -int(one["id"]))
        if page == 1 and self.shifts(len(found) > size, bool(self.waiting or self.withdrawn)):
            self.waiting.append(self.entries.pop(found.pop(0)["id"]))
        shown: list[Any] = [self._addressed(one) for one in found[(page - 1) * size : page * size]]
        if not shown and page > 1:
            shown = [{"also": []}]
        return as_json(
            {
                "numRecordings": str(len(found)),
                "numSpecies": str(len({(one["gen"], one["sp"]) for one in found})),
                "page": page,
                "numPages": len(found) // size + 1,
                self.shape: shown,
            }
        )

    def _addressed(self, one: dict[str, Any]) -> dict[str, Any]:
        number = one.get("id", "0")
        return {"url": f"{self.url}/{number}", "file": f"{self.url}/{number}/download"} | one


def _matches(one: dict[str, Any], tag: str, value: str) -> bool:
    value = value.strip('"').lower()
    if tag == "since":
        day = value
        if value.isdigit():
            day = (datetime.now(UTC).date() - timedelta(days=int(value))).isoformat()
        return bool(one["uploaded"] >= day)
    if tag == "nr":
        first, _, last = value.partition("-")
        return int(first) <= int(one["id"]) <= int(last or first)
    if tag == "q" and value[0] in "<>":
        better = one["q"].lower() < value[1:] and one["q"] != "no score"
        return better if value[0] == ">" else one["q"].lower() > value[1:] and one["q"] != "no score"
    if tag == "lic":
        return f"/{value}/" in one["lic"].replace("/4.0", "")
    field = str(one.get({"cnt": "cnt", "gen": "gen", "grp": "grp", "q": "q", "sp": "sp"}[tag])).lower()
    if tag == "sp" and " " in value:
        field = f"{one['gen']} {one['sp']}".lower()
    return field == value[1:] if value.startswith("=") else field.startswith(value)


def sound(number: int, seconds: float = 1.2, rate: int = 8_000) -> bytes:
    """A recording that is heard: noise of its own, as a WAV file."""
    body = io.BytesIO()
    with wave.open(body, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(random.Random(number).randbytes(int(seconds * rate) * 2))
    return body.getvalue()
