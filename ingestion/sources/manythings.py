"""manythings.org: sentence pairs of Tatoeba that a teacher of English picked, English and one other language a file.

``deu-eng.zip`` (https://www.manythings.org/anki/) holds ``deu.txt``, one pair a line and tab-separated: English, the
other language, and the attribution that the licence asks for::

    Go.	Geh.	CC-BY 2.0 (France) Attribution: tatoeba.org #2877272 (CM) & #8597805 (Roujin)

The attribution is kept as it is, and read: the sentences' numbers at Tatoeba and who wrote them. A line without one
goes to quarantine, as nobody may use it. When a file has changed, all languages are read again: a pair that is in no
file any more is deleted. Files that have not changed are taken from landing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from ingestion import archives
from ingestion.contract import LOCATION, Bad, BadPage, Context, Landed, Page, Record, Resource, Source, describe
from ingestion.journal import BUCKET, digest
from storage.errors import Problem

URL = "https://www.manythings.org/anki/"
LARGEST = 1 << 30  # bytes that a file may unpack to
LONGEST = 1 << 16  # bytes of a line
_TYPE = "application/zip"
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:_[a-z]{2,4})?\Z")
_ATTRIBUTION = re.compile(
    r"(?P<licence>CC-BY 2\.0 \(France\)) Attribution: tatoeba\.org "
    r"#(?P<source>[1-9]\d{0,8}) \((?P<writer>[^)]+)\) & #(?P<target>[1-9]\d{0,8}) \((?P<translator>.+)\)"
)


def fetch(context: Context) -> Iterator[Page]:
    """The files of all languages, when one of them or the list has changed.

    Cursor: {"files": {name: [mark, landing key]}}; the mark is the file's etag, or its SHA-256 where it has none.
    """
    location = context.location()
    if location is None:
        return
    before: dict[str, list[str]] = context.cursor.get("files", {})
    files = {f"{language}-eng.zip": language for language in _languages(context.config["languages"])}
    now, waiting = {}, {}
    for name in files:
        mark = location.entry(name).etag
        if mark and before.get(name, [""])[0] == mark:
            now[name] = before[name]
            continue
        waiting[name] = path = location.fetch(name)
        sha256 = digest(path)[0]
        now[name] = [mark or sha256, f"{BUCKET}/{SOURCE.name}/{PAIRS.name}/{sha256[:2]}/{sha256}"]
    if now == before:
        return
    for name, path in waiting.items():
        for _ in _lines(path, name):  # a damaged file is not landed: the run fails, and the next one asks again
            pass
    cursor = {"files": now}
    for name, language in files.items():
        ref = None if name in waiting else now[name][1]
        yield Page(name, waiting.get(name), cursor, _TYPE, {"language": language}, ref=ref)


def parse(landed: Landed) -> Iterator[Record | Bad]:
    """A record a line. Raises BadPage for an archive that is damaged."""
    language = landed.meta["language"]
    try:
        with landed.path() as path:
            for number, line in _lines(path, landed.name):
                yield _record(line, number, language)
    except Problem as problem:
        raise BadPage(problem.what) from None


def _lines(path: Path, name: str) -> Iterator[tuple[int, bytes]]:
    """Lines of the table in a file, numbered from 1. Raises Problem when it is damaged, or there is no table."""
    tables = 0
    for member in archives.members(path, pattern="**/*.txt", name=name, most=LARGEST):
        if isinstance(member, archives.Refused):
            raise Problem(f"{name} holds {member.name}: {member.reason}", "Look at what the location gives")
        if Path(member.name).name.startswith("_"):  # _about.txt
            continue
        tables += 1
        with member.open() as table:
            number = 0
            while line := table.readline(LONGEST):
                number += 1
                yield number, line
                while not line.endswith(b"\n") and (line := table.readline(LONGEST)):
                    pass  # the rest of a line that is too long
    if not tables:
        raise Problem(f"{name} holds no table", "Look at what the location gives")


def _record(line: bytes, number: int, language: str) -> Record | Bad:
    shown = line[:300].decode("utf-8", "backslashreplace").strip()
    try:
        fields = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n").split("\t")
    except UnicodeDecodeError as error:
        return Bad(shown, f"line {number} is no valid UTF-8: {error.reason}")
    if len(fields) != 3:
        return Bad(shown, f"line {number} has {len(fields)} fields, not 3")
    found = _ATTRIBUTION.fullmatch(fields[2].strip())
    if not found:
        return Bad(shown, f"line {number} has no attribution that can be read")
    return {
        "language": language,
        "sentence_id": int(found["source"]),
        "translation_id": int(found["target"]),
        "english": fields[0],
        "translation": fields[1],
        "contributor": found["writer"],
        "translator": found["translator"],
        "licence": found["licence"],
        "attribution": fields[2].strip(),
    }


def _languages(given: str | Iterable[str]) -> list[str]:
    """The option as a list. Raises Problem for what are no codes of languages."""
    names = given.split(",") if isinstance(given, str) else [str(name) for name in given]
    found = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    wrong = next((name for name in found if not _LANGUAGE.match(name)), "")
    if wrong or not found:
        raise Problem(
            f"manythings: {f'{wrong!r} is no language' if wrong else 'there is no language to read'}",
            f"Set `languages` to what stands before -eng.zip at {URL}, such as deu,rus",
        )
    return found


PAIRS = Resource(
    name="pairs",
    mode="replace",
    key=("language", "sentence_id", "translation_id"),
    fetch=fetch,
    parse=parse,
    description="English sentences and their translations, with their attribution.",
    schema=pa.schema(
        [
            describe("language", pa.string(), "language of the translation, as the file is named", required=True),
            describe("sentence_id", pa.int64(), "number of the English sentence at Tatoeba", required=True),
            describe("translation_id", pa.int64(), "number of the translation at Tatoeba", required=True),
            describe("english", pa.string(), "the English sentence, as it is", required=True),
            describe("translation", pa.string(), "its translation, as it is", required=True),
            describe("contributor", pa.string(), "member of Tatoeba who wrote the English sentence", required=True),
            describe("translator", pa.string(), "member of Tatoeba who wrote the translation", required=True),
            describe("licence", pa.string(), "terms, as the line states them", required=True),
            describe("attribution", pa.string(), "the whole attribution, to be given on", required=True),
        ]
    ),
)

SOURCE = Source(
    name="manythings",
    title="Bilingual sentence pairs of manythings.org",
    domain="text",
    description="English sentences of Tatoeba with translations, picked for learners. Off until set.",
    licence="CC BY 2.0 FR with the contributors' names, which each line gives",
    cadence="25 7 * * 0",
    cursor="mark and landing key of each archive",
    volume="up to some hundred thousand pairs a language",
    url=URL,
    config={
        **LOCATION,
        "location": ("", f"where the zip files lie: {URL}, or a copy of it; empty: nothing is read"),
        "languages": (["deu", "rus"], "languages, as the files name them: deu is deu-eng.zip"),
    },
    resources=(PAIRS,),
)
