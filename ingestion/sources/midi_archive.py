"""MIDI files of anybody: in a folder, on a web server, in S3 or on an FTP server, loose or in zip and tar archives.

Every MIDI file lands as an object of its own, whatever it came in, and is named by its path at the location; a file in
an archive by ``<archive>/<member>``. What an archive will not give (a link, a name that leads out of it, more than it
may unpack to), what is too large and what does not begin as MIDI does goes to quarantine, and the rest loads. Whether a
file can be played shows in ``derive/notes``, which reads it.

Collections of MIDI have files by the hundred thousand. So the cursor is a hash of the listing and not a list, what is
known of the files is asked of ``raw`` once, and small files are read side by side where that is faster. Files that
cannot be had are noted in quarantine, to be tried again after a week; when they are many the run ends there. When a run
is interrupted by the server, what has come is kept, and the next run goes on with the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ingestion import archives, paging
from ingestion.contract import LOCATION, Bad, Context, Gone, Landed, Page, Record, Resource, Source, describe
from ingestion.journal import digest
from ingestion.locations import fingerprint
from ingestion.trouble import AGAIN_DAYS, Trouble
from storage.errors import Problem, Unusable
from storage.media import midi

if TYPE_CHECKING:
    from ingestion.locations import Entry, Location

SUFFIXES = (".mid", ".midi", ".kar")
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz")
HEAD = b"MThd"
ENOUGH = 25  # members in a row that cannot be read: the rest of the archive is left
LARGEST_ARCHIVE = 64 << 30  # bytes that an archive may unpack to

Cursor = dict[str, Any]


@dataclass(frozen=True)
class Terms:
    """What the options say of all files, and what tells one version of a file from another."""

    corpus: str
    licence: str
    etag: str = ""


def fetch(context: Context) -> Iterator[Page | Gone]:
    """New and changed files, one by one, and deletions of what has gone.

    Cursor: {"listing": hash of the listing that all of this brought up to date, or "" while there is more to come,
    "failed": the files that could not be had, with the day}.
    """
    location = context.location()
    if location is None:
        return
    entries = [one for one in location.list() if one.name.lower().endswith(SUFFIXES + ARCHIVES)]
    if not entries:
        wanted = ", ".join(SUFFIXES + ARCHIVES)
        raise Problem(
            f"there is no MIDI at {location.url}",
            f"Put files there ({wanted}), or name another location for midi_archive",
        )
    corpus = str(context.config["corpus"]).strip() or location.name or SOURCE.name
    terms = Terms(corpus, str(context.config["licence"]).strip())
    listing = fingerprint(entries, location.url, corpus, terms.licence)
    before = context.cursor.get("failed", {})
    young = (paging.today() - timedelta(days=AGAIN_DAYS)).isoformat()
    failed = {name: day for name, day in before.items() if day > young}
    if context.cursor.get("listing") == listing and failed == before and all(entry.etag for entry in entries):
        return
    trouble = Trouble[str]()
    last: Page | Gone | None = None  # only the last one says that the listing is done
    for page in _pages(context, location, entries, terms, failed, trouble):
        if last is not None:
            yield last
        last = replace(page, cursor={"listing": "", "failed": failed})
    waiting = trouble.rest()
    if last is None and waiting and not trouble.own:
        raise waiting[0]
    if last is None and len(trouble.own) == len(entries):
        raise Problem(
            f"none of the {len(entries):,} files at {location.url} can be had: {trouble.own[0][1]}",
            "Correct the location, or the files",
        )
    for name, reason in trouble.own:
        if last is not None:
            yield last
        failed = failed | {name: paging.today().isoformat()}
        last = Page(name, b"", {"listing": "", "failed": failed}, midi.CONTENT_TYPE, {"missing": reason})
    if last is not None:
        done = not waiting and not trouble.too_many
        yield replace(last, cursor={"listing": listing if done else "", "failed": failed})


def _pages(
    context: Context,
    location: Location,
    entries: Sequence[Entry],
    terms: Terms,
    left_out: Collection[str],
    trouble: Trouble[str],
) -> Iterator[Page | Gone]:
    """What is new, changed or gone. Of what could not be had, ``trouble`` knows."""
    known = _known(context)
    changed = [
        one
        for one in entries
        if one.name not in left_out and (not one.etag or known.get(one.name) != replace(terms, etag=one.etag))
    ]
    loose = [one for one in changed if one.name.lower().endswith(SUFFIXES)]
    yield from _loose(context, location, loose, terms, known, trouble)
    for one in changed:
        if not one.name.lower().endswith(SUFFIXES) and not trouble.away() and not trouble.too_many:
            yield from _archived(context, location, one, terms, known, trouble)
    gone = known.keys() - {one.name for one in entries}
    for lost in sorted(_paths(context, sorted(gone))):
        yield Gone((lost,), {"listing": ""})


def _loose(
    context: Context,
    location: Location,
    entries: Sequence[Entry],
    terms: Terms,
    known: Mapping[str, Terms],
    trouble: Trouble[str],
) -> Iterator[Page]:
    """MIDI files that lie there as they are."""
    etags = {one.name: one.etag for one in entries}
    for one in entries:
        if (one.size or 0) > midi.MAX_BYTES:
            _failed(context, trouble, one.name, Unusable(f"{one.name} has more than {midi.MAX_BYTES:,} bytes"))
    small = (one.name for one in entries if (one.size or 0) <= midi.MAX_BYTES)
    for name, body in location.read_each(small, midi.MAX_BYTES):
        if isinstance(body, Problem):
            _failed(context, trouble, name, body)
            if trouble.away() or trouble.too_many:
                return
            continue
        trouble.came()
        found = replace(terms, etag=etags[name] or digest(body)[0])
        if known.get(name) != found:
            yield _page(name, name, body, found)


def _archived(
    context: Context,
    location: Location,
    entry: Entry,
    terms: Terms,
    known: Mapping[str, Terms],
    trouble: Trouble[str],
) -> Iterator[Page | Gone]:
    """MIDI files of an archive, when it is new or has changed."""
    with ExitStack() as held:
        try:
            path = held.enter_context(location.copy(entry.name))
        except Problem as problem:
            _failed(context, trouble, entry.name, problem)
            return
        trouble.came()
        found = replace(terms, etag=entry.etag or digest(path)[0])
        if known.get(entry.name) == found:
            return
        is_empty = True
        for page in _unpacked(context, entry.name, path, found, again=entry.name in known):
            is_empty = is_empty and isinstance(page, Gone)
            yield page
        if is_empty:
            _failed(context, trouble, entry.name, Unusable(f"{entry.name} holds no MIDI"))


def _failed(context: Context, trouble: Trouble[str], name: str, problem: Problem) -> None:
    context.say(problem.what)
    trouble.failed(name, problem)


def _unpacked(context: Context, file: str, path: Path, terms: Terms, *, again: bool) -> Iterator[Page | Gone]:
    """The MIDI files of an archive; deletions of those that it held before, when it has changed."""
    before = _paths(context, [file]) if again else set()
    failures = 0
    members = archives.members(path, name=file, most=LARGEST_ARCHIVE)
    while True:
        try:
            member = next(members, None)
            if member is None:
                break
        except Problem as problem:  # the archive itself is damaged or hostile: what follows cannot be had
            yield _unusable(file, problem.what)
            return
        name = f"{file}/{member.name}"
        before.discard(name)
        if isinstance(member, archives.Refused):
            yield _unusable(name, member.reason)
            continue
        if not member.name.lower().endswith(SUFFIXES):
            continue
        if member.size > midi.MAX_BYTES:
            yield _unusable(name, f"it has more than {midi.MAX_BYTES:,} bytes")
            continue
        try:
            with member.open() as stream:
                body = stream.read()
        except Problem as problem:
            failures += 1
            yield _unusable(name, problem.what)
            if failures == ENOUGH:
                yield _unusable(file, f"{ENOUGH} files in a row cannot be read: the rest is left out")
                return
            continue
        failures = 0
        yield _page(name, file, body, terms)
    for gone in sorted(before):
        yield Gone((gone,), {"listing": ""})


def _page(name: str, file: str, body: bytes, terms: Terms) -> Page:
    meta = {"file": file, "corpus": terms.corpus, "licence": terms.licence, "etag": terms.etag}
    if not body.startswith(HEAD):
        meta["failed"] = "it does not begin as a MIDI file does"
    return Page(name, body, {"listing": ""}, midi.CONTENT_TYPE, meta)


def _unusable(name: str, reason: str) -> Page:
    return Page(name, b"", {"listing": ""}, midi.CONTENT_TYPE, {"failed": reason})


def _known(context: Context) -> dict[str, Terms]:
    """Files and archives whose MIDI is in raw, with what was said of them when they were read."""
    with closing(context.warehouse()) as db, db, db.cursor() as sql:
        if not _begun(sql):
            return {}
        sql.execute(f"select file, min(corpus), min(licence), min(etag) from ({_CURRENT}) as c group by file")
        return {file: Terms(*said) for file, *said in sql}


def _paths(context: Context, files: Sequence[str]) -> set[str]:
    """Paths of the MIDI that came in these files and is still there."""
    with closing(context.warehouse()) as db, db, db.cursor() as sql:
        if not files or not _begun(sql):
            return set()
        sql.execute(f"select path from ({_CURRENT}) as c where file = any(%s)", (list(files),))
        return {path for (path,) in sql}


def _begun(sql: Any) -> bool:
    sql.execute("select to_regclass('raw.midi_archive_scores') is not null")
    return bool(sql.fetchone()[0])


_CURRENT = """
    select * from (
        select distinct on (r._key) r.* from raw.midi_archive_scores as r
        join ops.load as l on l.source = 'midi_archive' and l.load = r._load and l.state <> 'rejected'
        order by r._key, r._load desc, r._position desc
    ) as latest where not _deleted
"""


def parse(landed: Landed) -> Iterator[Record | Bad]:
    for name in ("failed", "missing"):  # what came and is no good; what did not come
        if name in landed.meta:
            yield Bad({"path": landed.name}, landed.meta[name], counted=name == "failed")
            return
    meta: Mapping[str, Any] = landed.meta
    yield {"path": landed.name, "sha256": landed.sha256, "bytes": landed.size, **meta}


SOURCE = Source(
    name="midi_archive",
    title="MIDI files",
    domain="music",
    description="MIDI files of any collection, loose or in zip and tar archives. Off until a location is set.",
    licence="as the collection's publisher says: the option `licence`",
    cadence="55 7 * * *",
    cursor="fingerprint of the listing",
    volume="as many files as there are; `make bench AREA=ingestion` measures listings and journals of many",
    config={
        **LOCATION,
        "corpus": ("", "name of the collection; empty: the last part of the location"),
        "licence": ("unknown", "terms of the collection"),
    },
    resources=(
        Resource(
            name="scores",
            store="objects",
            mode="merge",
            key=("path",),
            fetch=fetch,
            parse=parse,
            description="A MIDI file.",
            schema=pa.schema(
                [
                    describe(
                        "path", pa.string(), "path at the location; in an archive <archive>/<member>", required=True
                    ),
                    describe("file", pa.string(), "the file it came in: itself, or the archive", required=True),
                    describe("corpus", pa.string(), "name of the collection", required=True),
                    describe("licence", pa.string(), "terms, as the options say", required=True),
                    describe("etag", pa.string(), "what told the version of that file from others", required=True),
                    describe("sha256", pa.string(), "hash of the MIDI file", required=True),
                    describe("bytes", pa.int64(), "size of the MIDI file", required=True),
                ]
            ),
        ),
    ),
)
