"""xeno-canto: the catalogue of bird (and other) sounds of https://xeno-canto.org, and its audio, through API v3.

* API: ``GET /api/3/recordings?query=…&key=…&page=…&per_page=…`` (https://xeno-canto.org/explore/api). The query is made
  of tags (https://xeno-canto.org/help/search), a page has 50 to 500 recordings, the key is a member's.
* The live reading asks for what was uploaded ``since`` the day of the last one, less ``lag_days``: uploads of a day may
  show late. Edits and deletions of older recordings have no date to ask for, so the whole list is read every
  ``full_every_days``. Only pages that hold something new land; a changed recording is a new version of its document.
* A backfill asks for the uploads of an interval. The API knows no last day, and a list would go on to the newest
  upload; where that is far, it is bounded by a catalogue number of ``lag_days`` after the interval, which is searched
  for: numbers rise with the day of the upload. What lies beyond the interval is left out.
* Audio follows its metadata: each run fetches files of published recordings that are not here yet, of the licences
  wanted, until ``most_bytes`` have come. Files that cannot be had are noted in quarantine, to be tried again after a
  week; when they are many the run ends there. What lies on a server that is in trouble waits for the next run.

Numbers, dates and coordinates are text in this API; nothing is tidied here.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pyarrow as pa

from ingestion import paging
from ingestion.contract import Bad, BadPage, Context, Gone, Landed, Page, Record, Resource, Source, describe
from ingestion.trouble import AGAIN_DAYS, Trouble
from storage.errors import Problem

if TYPE_CHECKING:
    from ingestion.web import Web

API = "https://xeno-canto.org/api/3"
PER_PAGE = (50, 500)  # what the API allows
FAR = 20  # pages of later uploads from which on it pays to search where the interval ends
NEWER = 10**9  # a catalogue number that no recording will have
BLOCK = 500  # catalogue numbers that are looked at together in that search: as many as a page holds
LARGEST = 500_000_000  # bytes of one audio file
SECONDS = 3_600.0  # that it may take
BATCH = 500  # recordings whose audio is looked up together
BYTES = ("application/octet-stream", "binary/octet-stream")  # what servers call a file they do not know
AUDIO_TYPES = ("audio/mpeg", "audio/x-wav", "audio/wav", "audio/vnd.wave", "audio/flac", "audio/x-flac", "audio/ogg")


@dataclass(frozen=True)
class Api:
    """The way to the API: where it is, with which key, and what is asked of it."""

    web: Web
    url: str
    key: str
    question: str
    per_page: int

    def ask(self, more: str = "", page: int = 1, per_page: int | None = None) -> Page:
        """A page of what the question and ``more`` tags find, as it came. Raises Problem when there is none."""
        query = f"{self.question} {more}".strip()
        params = {"query": query, "page": page, "per_page": per_page or self.per_page}
        try:
            answer = self.web.get(f"{self.url}/recordings", params=params | {"key": self.key})
        except Problem as error:
            if " answered 401" in error.what or " answered 403" in error.what:
                raise Problem(f"xeno-canto refuses the key that xeno_canto has ({error.what})", _KEY) from error
            if " answered 400" in error.what:
                raise Problem(f"xeno-canto does not understand the query {query!r}", _TAGS) from error
            raise
        name = f"{self.url}/recordings?{urlencode(params)}"  # without the key, which is nobody else's
        return Page(name, answer.body if answer else b"", {}, "application/json")

    def count(self, more: str) -> int:
        """How many recordings the question finds with these further tags. Raises Problem for no proper answer."""
        return self.look(more).total

    def look(self, more: str, per_page: int = PER_PAGE[0]) -> Listing:
        """The first page of them, which is not kept."""
        page = self.ask(more, per_page=per_page)
        try:
            return listing(page.body)
        except BadPage as error:
            raise Problem(f"{page.name} gave {error}", "Look at it; the API may have changed") from None


@dataclass(frozen=True)
class Listing:
    """What a page of the API holds."""

    recordings: list[Any]
    total: int
    pages: int


_KEY = "Put a member's key (https://xeno-canto.org/account) into the option `key` of [sources.xeno_canto]"
_TAGS = "Mend the options of [sources.xeno_canto]; https://xeno-canto.org/help/search lists the tags"


def _api(context: Context) -> Api | None:
    """The API as the options say; None when no address is given. Raises Problem for options that make no sense."""
    config = context.config
    url = str(config["url"] or "").rstrip("/")
    if not url:
        return None
    key = str(config["key"] or "").strip()
    if not key:
        raise Problem("xeno_canto has no key, and the API answers nobody without one", _KEY)
    per_page = paging.natural(config, "per_page")
    if not PER_PAGE[0] <= per_page <= PER_PAGE[1]:
        raise Problem(f"xeno_canto: per_page is {per_page}", f"Set it to {PER_PAGE[0]} to {PER_PAGE[1]}")
    return Api(context.web(), url, key, question(config), per_page)


def question(config: Mapping[str, Any]) -> str:
    """The tags of the options as one query. Raises Problem for text that is no tag, and for tags that we set."""
    tags = [str(config["query"] or "").strip()]
    for option, tag in (("country", "cnt"), ("species", "sp"), ("quality", "q")):
        value = str(config[option] or "").strip()
        if '"' in value:
            raise Problem(f"xeno_canto: {option} is {value!r}", "Leave the quotation marks out")
        if value:
            tags.append(f'{tag}:"{value}"' if re.search(r"\W", value) else f"{tag}:{value}")
    asked = " ".join(tag for tag in tags if tag)
    if not re.fullmatch(r'([a-z][a-z-]*:("[^"]*"|[^\s"]+)(\s+|$))+', asked):
        raise Problem(f"xeno_canto: {asked!r} is no query of tags such as `grp:birds cnt:brazil`", _TAGS)
    if re.search(r"\b(since|nr):", asked):
        raise Problem(f"xeno_canto: {asked!r} sets since: or nr:", "Leave them out: the source asks for what is new")
    return asked


def listing(body: object) -> Listing:
    """A page of the API, checked. Raises BadPage that says what is not as documented."""
    try:
        answer = json.loads(body if isinstance(body, bytes) else b"")
    except (ValueError, RecursionError) as error:
        raise BadPage(f"no JSON: {error}") from None
    if not isinstance(answer, dict):
        raise BadPage(f"a {type(answer).__name__} where the API gives an object")
    if "error" in answer:
        raise BadPage(f"the API says: {answer.get('message') or answer['error']}")
    recordings = answer.get("recordings")
    if not isinstance(recordings, list):
        raise BadPage("no list of recordings: the API is not as it was")
    try:
        return Listing(recordings, int(answer["numRecordings"]), int(answer["numPages"]))
    except (KeyError, TypeError, ValueError) as error:
        raise BadPage(f"no count of recordings and pages: {error!r}") from None


def _sheets(api: Api, more: str, meta: Mapping[str, Any], start: Any) -> Iterator[paging.Sheet]:
    """The pages of a list from page ``start`` on."""
    number = int(start or 1)
    while True:
        page = replace(api.ask(more, number), meta=meta)
        if _beyond(page.body, (number - 1) * api.per_page):
            return
        try:
            found = listing(page.body)
        except BadPage:
            raise paging.Broken(page) from None
        if not (found.total or more):
            raise Problem(f"xeno-canto has no recording for the query {api.question!r}", _TAGS)
        kept = [one for one in found.recordings if _falls(one, meta)]
        aside = [one for one in found.recordings if not _falls(one, meta)]
        number += 1
        yield paging.Sheet(page, kept, found.total, number, aside)
        if number > found.pages or not found.recordings:
            return


def _beyond(body: object, given: int) -> bool:
    """Whether a page holds nothing because all recordings are on the pages before it, which had so many.

    The API may count a page too many when the last one is full (https://github.com/ropensci/suwo/issues/36); that page
    is not empty, and holds no recording.
    """
    try:
        found = json.loads(body) if isinstance(body, bytes) else {}
        listed = found["recordings"]
        return given > 0 and given >= int(found["numRecordings"]) and not any("id" in one for one in listed)
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def _falls(one: Any, meta: Mapping[str, Any]) -> bool:
    """Whether a recording was uploaded on the days that the page was asked for."""
    return not isinstance(one, dict) or paging.within(meta, one.get("uploaded"))


def _fetch_recordings(context: Context) -> Iterator[Page | Gone]:
    api = _api(context)
    turn = paging.turn(context, api.question) if api else None
    if api is None or turn is None:
        return
    more = f"since:{turn.since}" if turn.since else ""
    if turn.days:
        more = _between(api, *turn.days, timedelta(days=paging.natural(context.config, "lag_days")))
    yield from paging.read(
        context,
        [paging.Part("list", partial(_sheets, api, more, turn.meta()))],
        turn,
        paging.Known(
            SOURCE.name, SOURCE.table(RECORDINGS), lambda number: number.isdigit() and api.count(f"nr:{number}") > 0
        ),
    )


def _between(api: Api, first: str, last: str, slack: timedelta) -> str:
    """Tags for what was uploaded from ``first`` on, and not for much that was uploaded after ``last`` and the slack."""
    more = f"since:{first}"
    if api.count(more) <= FAR * api.per_page:
        return more
    return f"{more} nr:1-{_number_of(api, date.fromisoformat(last) + slack)}"


def _number_of(api: Api, day: date) -> int:
    """A catalogue number from which on recordings were uploaded on ``day`` or later; numbers are given at upload."""
    every = replace(api, question="", per_page=PER_PAGE[1])
    low, high = 0, BLOCK
    while every.count(f"nr:{high}-{NEWER}"):
        high *= 2
    while high - low > BLOCK:
        middle = (low + high) // 2
        if min(_uploads_from(every, middle), default="~") >= day.isoformat():
            high = middle
        else:
            low = middle
    return high + BLOCK


def _uploads_from(every: Api, number: int) -> list[str]:
    """Days on which the next recordings from a catalogue number on were uploaded; none when it is the newest."""
    empty, width = 0, BLOCK  # numbers from there on that nobody has, and that are looked at
    while number + width < NEWER:
        found = every.look(f"nr:{number + empty}-{number + width - 1}", every.per_page)
        if not found.total:
            empty, width = width, 4 * width
        elif found.total > every.per_page:
            width = (empty + width) // 2
        else:
            return [str(one["uploaded"]) for one in found.recordings if isinstance(one, dict) and one.get("uploaded")]
    return []


def _parse_recordings(page: Landed) -> Iterator[Record | Bad]:
    for one in listing(page.read()).recordings:
        if not isinstance(one, dict):
            yield Bad(one, "no recording: the API gives objects")
        elif _falls(one, page.meta):
            yield one


@dataclass(frozen=True)
class _File:
    """An audio file to fetch, and the recording it belongs to."""

    recording: str
    name: str
    url: str
    licence: str

    @property
    def server(self) -> str:
        """Scheme and host of its address, whatever that is: it is the recordist's word."""
        return "/".join(_absolute(self.url).split("/", 3)[:3])

    def meta(self) -> dict[str, str]:
        return {"recording_id": self.recording, "file_name": self.name, "licence": self.licence, "url": self.url}


def _fetch_audio(context: Context) -> Iterator[Page | Gone]:
    if not str(context.config["url"] or ""):
        return
    most, at_once = paging.natural(context.config, "most_bytes"), max(paging.natural(context.config, "at_once"), 1)
    licences = context.config["licences"]
    wanted = {code(str(name)) for name in ([licences] if isinstance(licences, str) else licences) if name}
    failed = {
        number: day
        for number, day in context.cursor.get("failed", {}).items()
        if paging.today() - date.fromisoformat(day) < timedelta(days=AGAIN_DAYS)
    }
    web = context.web()
    got = files = 0
    trouble = Trouble[_File]()

    def due() -> Iterator[tuple[int, _File]]:
        for number, file in enumerate(_outstanding(context)):
            if got >= most:
                context.say(f"{got / 1e6:,.0f} MB have come; the rest waits for the next run")
                return
            if trouble.too_many:
                context.say(f"{len(trouble.own):,} files cannot be had; the rest waits for the next run")
                return
            if file.recording in failed or trouble.away(file.server):
                continue
            if not wanted or code(file.licence) in wanted:
                yield number, file

    with tempfile.TemporaryDirectory(prefix="lyrebird-") as folder:

        def fetch(item: tuple[int, _File]) -> tuple[_File, Path, str | Problem]:
            number, file = item
            path = Path(folder) / str(number)
            try:
                answer = web.download(
                    _absolute(file.url), path, most=LARGEST, seconds=SECONDS, types=AUDIO_TYPES + BYTES
                )
            except Problem as error:
                return file, path, error
            return file, path, answer.content_type if answer else ""

        for file, path, outcome in web.each(due(), fetch, at_once):
            if isinstance(outcome, Problem):
                context.say(outcome.what)
                trouble.failed(file, outcome, file.server)
                continue
            trouble.came(file.server)
            got, files = got + path.stat().st_size, files + 1
            yield Page(file.url, path, {"failed": failed}, outcome, file.meta())
            path.unlink()
    waiting, withdrawn = trouble.rest(), list(_withdrawn(context))
    if waiting and not files and not withdrawn and not trouble.own:
        raise waiting[0]
    for file, reason in trouble.own:
        failed = failed | {file.recording: paging.today().isoformat()}
        yield Page(file.url, b"", {"failed": failed}, meta=file.meta() | {"failed": reason})
    for recording in withdrawn:
        yield Gone((recording,), {"failed": failed})


def code(licence: str) -> str:
    """The licence in short, as BY-NC-SA, of an address or a name; PD and CC0 are one."""
    text = licence.lower()
    if re.search(r"zero|cc0|publicdomain|\bpd\b", text):
        return "CC0"
    found = re.search(r"by(-nc)?(-sa|-nd)?", text)
    return found[0].upper() if found else text.strip().upper()


def _absolute(url: str) -> str:
    """The catalogue has given addresses without a scheme."""
    return f"https:{url}" if url.startswith("//") else url


def _outstanding(context: Context) -> Iterator[_File]:
    """Files of published recordings that are not here, or that the catalogue has under another name by now."""
    for found in _compare(
        context,
        """
        not m._deleted and m.url <> ''
        and (a._key is null or a._deleted or (a.file_name, a.url) is distinct from (m.file_name, m.url))
        """,
    ):
        yield _File(*found)


def _withdrawn(context: Context) -> Iterator[str]:
    """Recordings that are gone from the catalogue and have audio here."""
    for recording, *_ in _compare(context, "m._deleted and not a._deleted"):
        yield recording


def _compare(context: Context, condition: str) -> Iterator[tuple[str, str, str, str]]:
    """Recordings as published (m) for which this holds beside their audio (a): id, file name, address, licence."""
    last = ""
    with closing(context.warehouse()) as db:
        db.autocommit = True  # nothing is locked while files come
        with db.cursor() as sql:
            metadata, audio = f"raw.{SOURCE.table(RECORDINGS)}", f"raw.{SOURCE.table(AUDIO)}"
            sql.execute("select to_regclass(%s) is not null, to_regclass(%s) is not null", (metadata, audio))
            described, begun = sql.fetchone() or (False, False)
        none = "(select 0, 0, '', false, '', '' where false) as r (_load, _position, _key, _deleted, file_name, url)"
        while described:
            with db.cursor() as sql:
                sql.execute(
                    f"""
                    select m._key, m.file_name, m.url, m.licence
                    from (
                        select distinct on (r._key)
                            r._key,
                            r._deleted,
                            coalesce(r.doc ->> 'file-name', '') as file_name,
                            coalesce(r.doc ->> 'file', '') as url,
                            coalesce(r.doc ->> 'lic', '') as licence
                        from {metadata} as r
                        join ops.load as l on l.source = %(source)s and l.load = r._load and l.state = 'published'
                        where %(last)s = '' or r._key < %(last)s
                        order by r._key desc, r._load desc, r._position desc
                    ) as m
                    left join lateral (
                        select r._key, r._deleted, r.file_name, r.url
                        from {f"{audio} as r" if begun else none}
                        join ops.load as l on l.source = %(source)s and l.load = r._load and l.state <> 'rejected'
                        where r._key = m._key
                        order by r._load desc, r._position desc
                        limit 1
                    ) as a on true
                    where {condition}
                    order by m._key desc
                    limit {BATCH}
                    """,
                    {"source": SOURCE.name, "last": last},
                )
                found = sql.fetchall()
            yield from found
            if len(found) < BATCH:
                return
            last = found[-1][0]


def _parse_audio(page: Landed) -> Iterator[Record | Bad]:
    from storage.media import audio

    if "failed" in page.meta:
        yield Bad({name: page.meta[name] for name in ("recording_id", "url")}, page.meta["failed"], counted=False)
        return
    kind = page.content_type
    if kind in ("", *BYTES):
        kind = audio.CONTENT_TYPES.get(PurePosixPath(page.meta["file_name"]).suffix.lower(), BYTES[0])
    yield {
        "recording_id": page.meta["recording_id"],
        "file_name": page.meta["file_name"],
        "sha256": page.sha256,
        "bytes": page.size,
        "content_type": kind,
        "licence": page.meta["licence"],
        "url": page.meta["url"],
    }


def _texts(descriptions: Mapping[str, str], *, required: bool = False) -> list[pa.Field]:
    return [describe(name, pa.string(), text, required=required) for name, text in descriptions.items()]


RECORDINGS = Resource(
    name="recordings",
    schema=pa.schema(
        [
            *_texts(
                {
                    "id": "catalogue number",
                    "gen": "genus; Mystery when nobody knows it",
                    "sp": "species epithet",
                    "rec": "recordist",
                    "lic": "address of the licence, with or without its scheme",
                    "uploaded": "day of the upload, ISO 8601",
                },
                required=True,
            ),
            *_texts(
                {
                    "ssp": "subspecies; empty when not named",
                    "grp": "group: birds, grasshoppers, bats, frogs, land mammals",
                    "en": "English name",
                    "cnt": "country",
                    "loc": "place",
                    "lat": "latitude in degrees, as text; null when not known",
                    "lon": "longitude in degrees, as text; null when not known",
                    "alt": "metres above sea level, as text; ? when not known",
                    "type": "sound types, separated by commas, and free text of old",
                    "sex": "sex",
                    "stage": "life stage",
                    "method": "recording method",
                    "url": "address of the entry",
                    "file": "address of the audio; empty for species whose recordings are held back",
                    "file-name": "name of the audio file",
                    "q": "quality, A (best) to E, or no score",
                    "length": "m:ss or h:mm:ss",
                    "time": "local time, as the recordist wrote it: hh:mm, ?, am, …",
                    "date": "day of the recording; parts that are not known are 00",
                    "rmk": "remarks",
                    "animal-seen": "whether the animal was seen: yes, no or unknown",
                    "playback-used": "whether it was lured by playback: yes, no or unknown",
                    "temp": "temperature in degrees Celsius, as text, of some groups",
                    "regnr": "registration number of the specimen",
                    "auto": "automatic recording: yes, no or unknown",
                    "dvc": "recorder",
                    "mic": "microphone",
                    "smp": "sample rate in Hz, as text",
                }
            ),
            describe("also", pa.list_(pa.string()), "scientific names of species in the background"),
        ]
    ),
    key=("id",),
    store="documents",
    mode="merge",
    partition="date",
    fetch=_fetch_recordings,
    parse=_parse_recordings,
    description="Catalogue entries, every field of them, as API v3 gives them; by day of upload.",
)

AUDIO = Resource(
    name="audio",
    schema=pa.schema(
        [
            describe("recording_id", pa.string(), "catalogue number of the recording", required=True),
            describe("file_name", pa.string(), "name of the file in the catalogue", required=True),
            describe("sha256", pa.string(), "SHA-256 of the file", required=True),
            describe("bytes", pa.int64(), "size of the file", required=True),
            describe("content_type", pa.string(), "media type", required=True),
            describe("licence", pa.string(), "licence of the recording when the file was fetched", required=True),
            describe("url", pa.string(), "where it came from", required=True),
        ]
    ),
    key=("recording_id",),
    store="objects",
    mode="merge",
    fetch=_fetch_audio,
    parse=_parse_audio,
    description="Audio of published entries, of the licences wanted, so many bytes a run.",
)

SOURCE = Source(
    name="xeno_canto",
    title="xeno-canto",
    domain="birds",
    description=(
        "Sounds of birds and other animals from all over the world, shared by their recordists. Off until `url` and "
        "`key` are set; please read https://xeno-canto.org/about/terms before fetching much."
    ),
    licence="per recording (Creative Commons, mostly BY-NC-SA and BY-NC-ND)",
    cadence="20 5 * * *",
    cursor="time of the last reading, and of the last whole one",
    volume="about a million recordings; audio as `most_bytes` allows",
    resources=(RECORDINGS, AUDIO),
    config={
        "url": ("", f"address of the API, {API}; empty: nothing is asked"),
        "key": ("", "the API's key of a member, from https://xeno-canto.org/account"),
        "query": ("grp:birds", "which recordings, in tags of https://xeno-canto.org/help/search; not since: and nr:"),
        "country": ("", "only this country, as the catalogue writes it"),
        "species": ("", "only this species, by its scientific name"),
        "quality": ("", 'only this quality: A, or a comparison such as ">C"'),
        "per_page": (500, "recordings a request gives, 50 to 500"),
        "lag_days": (3, "days before the last reading from which on uploads are asked for again"),
        "full_every_days": (30, "after how many days the whole list is read again, for edits and deletions"),
        "licences": ([], 'audio of these licences only, e.g. ["BY", "BY-SA", "CC0"]; empty: of all'),
        "most_bytes": (1_000_000_000, "bytes of audio a run fetches, give or take the files under way; 0: none"),
        "at_once": (4, "audio files fetched side by side"),
        "rate": ("1/second", "requests to one server, of all workers together"),
        "allowed_hosts": ([], "hosts that may have private addresses (host or host:port)"),
    },
    url="https://xeno-canto.org",
)
