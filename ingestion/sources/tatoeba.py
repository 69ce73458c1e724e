"""Tatoeba: sentences in hundreds of languages and which translates which, out of the weekly exports.

* Exports (https://tatoeba.org/downloads, "Fields and structure"): tables of tab-separated fields without a header, each
  in a tar.bz2. ``sentences_detailed``: id, language (ISO 639-3), text, owner, added, modified. ``sentences_CC0``: the
  sentences that are CC0 besides; all others are CC BY 2.0 FR, which asks for the owner's name. ``links``: sentence id
  and translation id, each pair both ways. A tab, line break or backslash within a field is written after a backslash;
  ``\\N`` is a field that is not known.
* Archives land as they came and are read as streams: neither an archive nor a table is ever wholly in memory or
  unpacked on the disk. What is joined is joined over a byte for each sentence id: 14 MB for all there are today.
* Sentences of the ``languages`` become rows, and links from a language to a later one of the list. The texts of a pair
  meet in SQL, which has a disk to join on.

An export that has not changed (by ETag, date or content) is left alone. One that is damaged is not landed at all: the
run fails, what was published stays, and the next run asks again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from ingestion import archives
from ingestion.contract import LOCATION, Bad, BadPage, Context, Landed, Page, Record, Resource, Source, describe
from ingestion.journal import BUCKET, digest
from storage.errors import Problem

URL = "https://downloads.tatoeba.org/exports/"
DETAILED, CC0, LINKS = "sentences_detailed.tar.bz2", "sentences_CC0.tar.bz2", "links.tar.bz2"
LICENCE, FREE = "CC BY 2.0 FR", "CC0 1.0"
LARGEST = 64 << 30  # bytes that an export may unpack to
LONGEST = 1 << 16  # bytes of a line; the longest sentence there is has some 10,000
LARGEST_ID = 250_000_000  # a byte each: ids past this are no ids of Tatoeba
MOST_LANGUAGES = 100
_LANGUAGE = re.compile(r"[a-z]{2,8}\Z")
_TYPE = "application/x-bzip2"


def fetch_sentences(context: Context) -> Iterator[Page]:
    """The exports of sentences, when one of them or the list of languages has changed.

    Cursor: {"languages": [...], "marks": {file: etag, or SHA-256 where there is none}}.
    """
    location = context.location()
    if location is None:
        return
    languages = _languages(context.config["languages"])
    marks = {name: location.entry(name).etag for name in (CC0, DETAILED)}
    if context.cursor == {"languages": languages, "marks": marks}:
        return
    with location.copy(CC0) as free, location.copy(DETAILED) as detailed:
        sums = {CC0: digest(free)[0], DETAILED: digest(detailed)[0]}
        cursor = {"languages": languages, "marks": {name: mark or sums[name] for name, mark in marks.items()}}
        if context.cursor == cursor:
            return
        for path in (free, detailed):
            _read_through(path)
        yield Page(CC0, free, cursor, _TYPE)
        meta = {"languages": languages, "cc0": address(sums[CC0])}
        yield Page(DETAILED, detailed, cursor, _TYPE, meta)


def fetch_links(context: Context) -> Iterator[Page]:
    """The export of links, when it or the sentences that are here have changed.

    Cursor: {"sentences": landing key of the export they are links of, "languages": [...], "links": mark}.
    """
    location = context.location()
    if location is None:
        return
    here = _sentences_here(context)
    if here is None:
        context.say("tatoeba: the links wait for the sentences")
        return
    sentences, languages = here
    mark = location.entry(LINKS).etag
    cursor = {"sentences": sentences, "languages": languages, "links": mark}
    if context.cursor == cursor:
        return
    with location.copy(LINKS) as path:
        cursor["links"] = mark or digest(path)[0]
        if context.cursor == cursor:
            return
        _read_through(path)
        yield Page(DETAILED, None, cursor, _TYPE, ref=sentences)
        yield Page(LINKS, path, cursor, _TYPE, {"languages": languages, "sentences": sentences})


def parse_sentences(landed: Landed) -> Iterator[Record | Bad]:
    """A record for each sentence of the languages. Only the detailed export has any; the other is read beside it."""
    if landed.name != DETAILED:
        return
    with _damage(), _beside(landed, landed.meta["cc0"]) as free, landed.path() as detailed:
        yield from sentences(detailed, free, landed.meta["languages"])


def parse_links(landed: Landed) -> Iterator[Record | Bad]:
    """A record for each link from one of the languages to a later one of their list."""
    if landed.name != LINKS:
        return
    languages = landed.meta["languages"]
    with _damage():
        with _beside(landed, landed.meta["sentences"]) as detailed:
            of = language_of(detailed, languages)
        with landed.path() as path:
            yield from links(path, of, languages)


def sentences(detailed: Path, free: Path, languages: list[str]) -> Iterator[Record | Bad]:
    """The sentences of these languages. Problem for a damaged archive."""
    is_free = language_of(free, languages)
    wanted = {language.encode() for language in languages}
    for number, line in lines(detailed):
        fields = split(line)
        if len(fields) > 1 and fields[1] not in wanted:
            continue
        if len(fields) != 6:
            yield _bad(number, line, f"has {len(fields)} fields, not 6")
            continue
        try:
            language, text, owner, added, modified = (_text(field) for field in fields[1:])
        except UnicodeDecodeError as error:
            yield _bad(number, line, f"is no valid UTF-8: {error.reason}")
            continue
        sentence = _id(fields[0])
        if sentence is None:
            yield _bad(number, line, "begins with no sentence id")
            continue
        yield {
            "sentence_id": sentence,
            "language": language,
            "text": text,
            "contributor": owner or None,
            "added": added,
            "modified": modified,
            "licence": FREE if sentence < len(is_free) and is_free[sentence] else LICENCE,
        }


def links(path: Path, of: bytearray, languages: list[str]) -> Iterator[Record | Bad]:
    """The links from a language to a later one of the list; ``of`` is as :func:`language_of` gives it."""
    for number, line in lines(path):
        fields = line.split(b"\t")
        ids = [_id(field) for field in fields]
        if len(ids) != 2 or ids[0] is None or ids[1] is None:
            yield _bad(number, line, "is no pair of sentence ids")
            continue
        source, target = ids[0], ids[1]
        if max(source, target) >= len(of) or not 0 < of[source] < of[target]:
            continue
        yield {
            "sentence_id": source,
            "translation_id": target,
            "language": languages[of[source] - 1],
            "translation_language": languages[of[target] - 1],
        }


def language_of(path: Path, languages: list[str]) -> bytearray:
    """For each sentence id the place of its language in the list, from 1; 0 for other languages and no sentence."""
    place = {language.encode(): index for index, language in enumerate(languages, 1)}
    found = bytearray()
    for _, line in lines(path):
        fields = line.split(b"\t", 2)
        index = place.get(fields[1], 0) if len(fields) > 1 else 0
        sentence = _id(fields[0]) if index else None
        if sentence is not None:
            if sentence >= len(found):
                found.extend(bytes(sentence + 1 - len(found)))
            found[sentence] = index
    return found


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines of the tables in an export, numbered from 1, without their ends.

    A line break within a field stands after a backslash; what is longer than LONGEST is cut there.
    """
    for member in archives.members(path, pattern="**/*.csv", most=LARGEST, most_each=LARGEST):
        if isinstance(member, archives.Refused):
            raise Problem(f"{path.name} holds {member.name}: {member.reason}", "Look at what the location gives")
        with member.open() as table:
            yield from enumerate(_whole_lines(table), 1)


def _whole_lines(table: BinaryIO) -> Iterator[bytes]:
    line = b""
    while part := table.readline(LONGEST):
        line += part
        if len(line) < LONGEST and line.endswith(b"\\\n") and _speaks_of_the_break(line):
            continue
        while len(line) >= LONGEST and not part.endswith(b"\n") and (part := table.readline(LONGEST)):
            pass  # the rest of a line that is too long
        yield line[:LONGEST].removesuffix(b"\n")
        line = b""
    if line:
        yield line


def _speaks_of_the_break(line: bytes) -> bool:
    """Whether the backslash before the line break is not itself behind one."""
    text = line.removesuffix(b"\n")
    return (len(text) - len(text.rstrip(b"\\"))) % 2 == 1


def split(line: bytes) -> list[bytes]:
    """The fields of a line, as they are written."""
    if b"\\" not in line:
        return line.split(b"\t")
    return [match[0][1:] for match in re.finditer(rb"\t(?:[^\t\\]|\\.|\\\Z)*", b"\t" + line, re.DOTALL)]


def _text(field: bytes) -> str | None:
    r"""A field as text: None for ``\N``, and what stands after a backslash for itself."""
    if field == rb"\N":
        return None
    if b"\\" in field:
        field = re.sub(rb"\\(.)", lambda match: b"\0" if match[1] == b"0" else match[1], field, flags=re.DOTALL)
    return field.decode()


def _id(field: bytes) -> int | None:
    if not field.isdigit() or len(field) > 9:
        return None
    number = int(field)
    return number if 0 < number <= LARGEST_ID else None


def _bad(number: int, line: bytes, reason: str) -> Bad:
    return Bad(f"line {number}: {line[:200].decode('utf-8', 'backslashreplace')}", f"line {number} {reason}")


def _read_through(path: Path) -> None:
    """Raises Problem for an archive that is damaged, cut short or without a table."""
    if not sum(1 for _ in lines(path)):
        raise Problem(f"{path.name} holds no table with lines", "Look at what the location gives")


@contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except Problem as problem:
        raise BadPage(problem.what) from None


def address(sha256: str) -> str:
    """Where an export of sentences with this hash lands."""
    return f"{BUCKET}/{SOURCE.name}/{SENTENCES.name}/{sha256[:2]}/{sha256}"


@contextmanager
def _beside(landed: Landed, key: str) -> Iterator[Path]:
    """Another landed export, which the journal's entry of this one names."""
    with replace(landed, key=key).path() as path:
        yield path


def _sentences_here(context: Context) -> tuple[str, list[str]] | None:
    """The export of sentences that was loaded last and not rejected: its landing key and its languages.

    None when there is none, or when a withdrawal has taken it: an older one would not fit the sentences that are here.
    """
    with closing(context.warehouse()) as db, db, db.cursor() as sql:
        sql.execute(
            """
            select i.key, i.meta, i.name from ops.landing as i
            join ops.load as l on l.source = i.source and l.load = i.load and l.state <> 'rejected'
            where i.source = %s and i.resource = %s
            order by i.load desc, i.name = %s desc, i.position desc limit 1
            """,
            (SOURCE.name, SENTENCES.name, DETAILED),
        )
        row = sql.fetchone()
    return (row[0], list(row[1]["languages"])) if row and row[2] == DETAILED else None


def _languages(given: str | Iterable[str]) -> list[str]:
    """The option as a list. Raises Problem for what are no codes of languages."""
    names = given.split(",") if isinstance(given, str) else [str(name) for name in given]
    found = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    wrong = next((name for name in found if not _LANGUAGE.match(name)), None)
    if wrong is not None or not 1 < len(found) <= MOST_LANGUAGES:
        what = f"{wrong!r} is no language" if wrong is not None else f"{len(found)} languages make no pairs"
        raise Problem(f"tatoeba: {what}", "Set `languages` to codes of ISO 639-3, such as eng,deu,rus")
    return found


SENTENCES = Resource(
    name="sentences",
    mode="replace",
    key=("sentence_id",),
    fetch=fetch_sentences,
    parse=parse_sentences,
    description="Sentences of the languages wanted, with who gave them and on which terms.",
    schema=pa.schema(
        [
            describe("sentence_id", pa.int64(), "number of the sentence at Tatoeba", required=True),
            describe("language", pa.string(), "language, ISO 639-3", required=True),
            describe("text", pa.string(), "the sentence, as it is", required=True),
            describe("contributor", pa.string(), "member who owns it; null for an orphan"),
            describe("added", pa.string(), "when it was added, as exported; zeros where nobody knows"),
            describe("modified", pa.string(), "when it was changed last, as exported; zeros where nobody knows"),
            describe("licence", pa.string(), f"{LICENCE}, or {FREE} where the member gave it up", required=True),
        ]
    ),
)

SOURCE = Source(
    name="tatoeba",
    title="Tatoeba",
    domain="text",
    description="Sentences and their translations, collected by the members of https://tatoeba.org. Off until set.",
    licence=f"{LICENCE} with the contributor's name, or {FREE}: per sentence",
    cadence="10 7 * * 0",
    cursor="marks of the exports",
    volume="over ten million sentences and twenty million links; the exports have about 1 GB",
    url="https://tatoeba.org/downloads",
    config={
        **LOCATION,
        "location": ("", f"where the weekly exports lie: {URL}, or a copy of it; empty: nothing is read"),
        "languages": (["eng", "deu", "rus"], "languages, ISO 639-3; pairs go from each one to those after it"),
    },
    resources=(
        SENTENCES,
        Resource(
            name="links",
            mode="replace",
            key=("sentence_id", "translation_id"),
            fetch=fetch_links,
            parse=parse_links,
            description="Which sentence translates which, between the languages wanted, in one direction.",
            schema=pa.schema(
                [
                    describe("sentence_id", pa.int64(), "the sentence, in the language named first", required=True),
                    describe("translation_id", pa.int64(), "its translation", required=True),
                    describe("language", pa.string(), "language of the sentence", required=True),
                    describe("translation_language", pa.string(), "language of the translation", required=True),
                ]
            ),
        ),
    ),
)
