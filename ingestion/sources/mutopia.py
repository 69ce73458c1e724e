"""Mutopia: editions of classical music by volunteers, https://www.mutopiaproject.org: what they are, and their MIDI.

There is no interface for programs, so its pages are scraped (:mod:`ingestion.scrapers`): the listing
(``cgibin/make-table.cgi?startat=…``, ten pieces a page) and the page of each piece (``cgibin/piece-info.cgi?id=…``).
The markup is that of the site's own scripts, ``MutopiaProject/MutopiaWeb``.

* A run reads the whole listing, and the pages of those pieces that are new or have another date; every
  ``full_every_days`` the pages of all. What the listing has no more is asked for once, and then gone.
* MIDI follows: a run fetches the files of those pieces that are not here yet or have changed. Each file of a zip lands
  as a page of its own, as if it had come alone.

A listing that is not as it was fails the crawl; the page of a piece that is not goes to quarantine.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus, urljoin, urlsplit

import pyarrow as pa

from ingestion import archives, paging
from ingestion.contract import Bad, BadPage, Context, Gone, Landed, Page, Record, Resource, Source, describe
from ingestion.scrapers import crawling
from ingestion.scrapers.frontier import LEAF, Visit
from ingestion.trouble import AGAIN_DAYS
from storage.errors import Problem

if TYPE_CHECKING:
    from parsel import Selector

NAME = "mutopia"
SITE = "https://www.mutopiaproject.org"
PER_PAGE = 10  # pieces on a page of the listing
MIDI = "audio/midi"
LARGEST_MIDI = 8 << 20  # bytes of one file

# label in a piece's table -> column
LABELS = {
    "Instrument(s):": "instruments",
    "Style:": "style",
    "Lyricist(s):": "lyricist",
    "Arranger(s):": "arranger",
    "Opus:": "opus",
    "Meter:": "metre",
    "Date of composition:": "composed",
    "Source:": "edition",
    "Copyright:": "licence",
    "Last updated:": "updated",
    "Music ID Number:": "music_id",
    "Typeset using:": "typeset",
    "Part of the following collections:": "collections",
}
NOTHING = ("", "Not known", "n/a", "?")  # what stands for nothing
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


# ---------------------------------------------------------------- pages


@dataclass(frozen=True)
class Listing:
    """A page of the listing: pieces with the day of their last change (ISO 8601), and where the next page starts."""

    pieces: list[tuple[int, str]]
    next: int | None


def read_listing(body: bytes, url: str) -> Listing:
    """Read a page of the listing. Raises Problem that says what is not as it was."""
    page = _select(body)
    tables = page.css("table.outer-table table.result-table")
    if not tables and "no matches were found" not in " ".join(page.css("div.alert ::text").getall()):
        raise _changed(url, "a table of class result-table for each piece, or the words `no matches were found`")
    pieces = []
    for table in tables:
        ids = table.css("a").re(r'href="(?:[^"]*/)?piece-info\.cgi\?id=(\d{1,9})"')
        days = [day for text in table.css("td::text").getall() if (day := _day(text.strip(), r"\d{2}"))]
        if len(ids) != 1 or len(days) != 1:
            raise _changed(url, "a link to piece-info.cgi and a day in the table of each piece")
        pieces.append((int(ids[0]), days[0].isoformat()))
    nexts = [
        int(start)
        for link in page.css("a")
        if " ".join(link.css("::text").getall()).strip().startswith("Next")
        for start in link.re(r"make-table\.cgi\?startat=(\d{1,9})")
    ]
    return Listing(pieces, nexts[0] if nexts else None)


def is_missing(body: bytes) -> bool:
    """Whether the site says that there is no such piece."""
    return bool(re.search(r"Piece \(ID=\d+\) not found", " ".join(_select(body).css("h2::text").getall())))


def parse_piece(landed: Landed) -> Iterator[Record | Bad]:
    """The page of a piece. BadPage when its tables are not there."""
    if landed.meta.get("failed"):
        yield Bad({"piece_id": landed.meta["piece"], "url": landed.name}, landed.meta["failed"])
        return
    page = _select(landed.read())
    tables = page.css("table.result-table")
    facts = next((table for table in tables if table.xpath(".//b[.='Instrument(s):']")), None)
    files = next((table for table in tables if table.xpath(".//b[.='Download:']")), None)
    title = _text(page.css("h2")[:1])
    if facts is None or files is None or not title:
        wanted = "a heading, a table with `Instrument(s):` and one with `Download:`"
        raise BadPage(f"{landed.name} has not {wanted}, as the page of a piece had")
    found = _facts(facts)
    licence = facts.xpath(".//td[b='Copyright:']/a")
    midi = next((link for link in files.css("a") if _text(link).startswith("MIDI file")), None)
    composer = _text(page.css("h4")[:1]).removeprefix("by ")
    composer = re.sub(r"\((Anonymous|Traditional)\)", r"\1", composer)
    updated = _day(found.get("updated") or "", "[A-Z][a-z]{2}")
    yield {
        "piece_id": landed.meta["piece"],
        "title": title,
        "composer": _something(composer),
        **{name: found.get(name) for name in LABELS.values() if name not in ("licence", "updated")},
        "licence": _something(_text(licence[:1])),
        "licence_url": next((url for url in licence.xpath("@href").getall() if "creativecommons.org" in url), None),
        "updated": updated,
        "maintainer": _something(_text(page.xpath("//td[b='Maintainer:']")).removeprefix("Maintainer:")),
        "more_information": _something(_text(page.css("div.more-info"))),
        "midi_url": urljoin(landed.name, midi.attrib["href"]) if midi is not None and "href" in midi.attrib else None,
        "page_url": landed.name,
    }


def _facts(table: Selector) -> dict[str, str | None]:
    """Column -> what stands behind its label, up to the next one; a cell may have two."""
    found: dict[str, str | None] = {}
    for label in table.xpath(".//td/b"):
        name = LABELS.get(_text(label))
        if name:
            behind = label.root.tail or ""
            for node in label.root.itersiblings():
                if node.tag == "b":
                    break
                behind += "".join(node.itertext()) + (node.tail or "")
            found[name] = _something(" ".join(behind.split()).rstrip(","))
    return found


def _day(text: str, month: str) -> date | None:
    """2016/04/05, or 2016/Apr/05 with more behind it."""
    found = re.match(rf"(\d{{4}})/({month})/(\d{{2}})(?!\d)", text)
    if not found:
        return None
    number = MONTHS.index(found[2]) + 1 if found[2] in MONTHS else int(found[2]) if found[2].isdigit() else 0
    try:
        return date(int(found[1]), number, int(found[3]))
    except ValueError:
        return None


def _select(body: bytes) -> Selector:
    from parsel import Selector

    return Selector(text=body.decode("utf-8", "replace").replace("\x00", ""), type="html")


def _text(found: Any) -> str:
    """All text of what was found, in one line."""
    pieces = found.xpath("descendant-or-self::text()").getall()
    return " ".join("".join(pieces).split())


def _something(text: str) -> str | None:
    text = text.strip()
    return None if text in NOTHING else text


def _changed(url: str, wanted: str) -> Problem:
    return Problem(f"mutopia: {url} has not {wanted}", "Look at the page: its markup has changed")


def parse_score(landed: Landed) -> Iterator[Record | Bad]:
    """A MIDI file, or why there is none."""
    meta = landed.meta
    reason = meta.get("failed")
    body = b"" if reason else landed.read()
    if not reason and not body.startswith(b"MThd"):
        reason = "is no MIDI file: it does not begin with MThd"
    if reason:
        yield Bad({"piece_id": meta["piece"], "path": landed.name}, reason)
        return
    yield {
        "path": landed.name,
        "piece_id": meta["piece"],
        "corpus": NAME,
        "title": meta["title"],
        "composer": meta["composer"],
        "licence": meta["licence"],
        "updated": date.fromisoformat(meta["updated"]),
        "url": meta["url"],
        "sha256": landed.sha256,
        "bytes": len(body),
    }


# ---------------------------------------------------------------- fetch


def _fetch_pieces(context: Context) -> Iterator[Page | Gone]:
    if not str(context.config["url"] or ""):
        return
    options = ("composer", "instrument", "style")
    query = {name.capitalize(): quote_plus(str(context.config[name] or "")) for name in options}
    question = {"url": str(context.config["url"]).rstrip("/"), "query": query}
    same = context.cursor.get("question") == question
    whole = not same or _full(context)
    known = _known(context)
    done = crawling.crawl(
        context,
        NAME,
        "mutopia_pieces",
        question=question,
        arguments={"query": query, "known": {} if whole else known, "expected": [*known] if same else []},
    )
    if done is None:
        return
    # whether a crawl that was gone on with was of the whole is seen by what it asked for
    whole = not any(visit.state == "known" for visit in done.visits)
    now = done.ended[:10]
    cursor = done.cursor() | {"question": question, "full": now if whole else context.cursor.get("full", now)}
    pages: list[Page] = []
    gone: list[Gone] = []
    objects = context.objects()
    for visit in sorted(done.visits, key=lambda one: (one.callback, one.arguments.get("piece", 0))):
        if visit.callback != LEAF or visit.state == "known":
            continue
        piece = visit.arguments["piece"]
        if visit.state == "landed" and is_missing(objects.get(*_address(visit.landing or ""))):
            gone += [Gone((piece,), cursor)] if str(piece) in known else []
        elif visit.state == "landed":
            meta = {"piece": piece}
            pages.append(Page(visit.url, None, cursor, visit.content_type, meta, visit.landing))
        else:
            pages.append(crawling.lost(visit, cursor, {"piece": piece}))
    new = list(crawling.news(context, NAME, SOURCE.table(context.resource), pages))
    if not new and whole:
        new = pages[-1:]  # says that all was read
    yield from new
    yield from gone
    if not new and not gone:
        crawling.forget(context, NAME, done.name)


def _address(key: str) -> tuple[str, str]:
    bucket, rest = key.split("/", 1)
    return bucket, rest


def _full(context: Context) -> bool:
    days = paging.natural(context.config, "full_every_days")
    full = context.cursor.get("full")
    return not full or paging.today() - date.fromisoformat(full) >= timedelta(days=days)


def _current(columns: str, table: str) -> str:
    """The latest version of each key, in loads that were not rejected."""
    return f"""
        select distinct on (r._key) r._deleted, {columns} from {table} as r
        join ops.load as l on l.source = '{NAME}' and l.load = r._load and l.state <> 'rejected'
        order by r._key, r._load desc, r._position desc"""


def _known(context: Context) -> dict[str, str]:
    """Pieces that are here -> the day of their last change."""
    with closing(context.warehouse()) as db, db, db.cursor() as sql:
        sql.execute("select to_regclass('raw.mutopia_pieces') is not null")
        if not (sql.fetchone() or (False,))[0]:
            return {}
        sql.execute(
            f"select piece_id, updated from ({_current('piece_id, updated', 'raw.mutopia_pieces')}) as c "
            "where not _deleted order by piece_id"
        )
        return {str(piece): updated.isoformat() for piece, updated in sql.fetchall()}


def _fetch_scores(context: Context) -> Iterator[Page | Gone]:
    if not str(context.config["url"] or ""):
        return
    failed = {
        piece: day
        for piece, day in context.cursor.get("failed", {}).items()
        if paging.today() - date.fromisoformat(day) < timedelta(days=AGAIN_DAYS)
    }
    wanted, files = _outstanding(context)
    wanted = [piece for piece in wanted if str(piece["piece"]) not in failed]
    known = _known(context)
    gone = [piece for piece in files if str(piece) not in known]
    if not wanted and not gone:
        return
    question = {"url": str(context.config["url"]).rstrip("/")}
    done = None
    if wanted:
        done = crawling.crawl(
            context,
            NAME,
            "mutopia_midi",
            question=question,
            arguments={"pieces": wanted},
        )
        if done is None:
            return
    cursor = (done.cursor() if done else dict(context.cursor)) | {"question": question}
    today = datetime.now(UTC).date().isoformat()
    visits = sorted(done.visits, key=lambda one: int(one.arguments["piece"])) if done else []
    lost = {str(visit.arguments["piece"]): today for visit in visits if visit.state == "failed"}
    cursor["failed"] = failed | lost
    for visit in visits:
        if visit.state != "landed":
            yield crawling.lost(visit, cursor, visit.arguments)
            continue
        came = set[str]()
        for page in _scores(context, visit, cursor):
            came |= {page.name} if "failed" not in page.meta else set()
            yield page
        if came:  # another edition may have other files; where nothing of it is to be had, the one before stays
            for path in files.get(visit.arguments["piece"], []):
                if path not in came:
                    yield Gone((path,), cursor)
    for piece in gone:
        for path in files[piece]:
            yield Gone((path,), cursor)


def _scores(context: Context, visit: Visit, cursor: dict[str, Any]) -> Iterator[Page]:
    """The landed file, or each of a zip, under its path at the site."""
    meta = visit.arguments
    name = urlsplit(meta["url"]).path.removeprefix(urlsplit(str(context.config["url"])).path).lstrip("/")
    name = name.removeprefix("ftp/")
    if not name.endswith(".zip"):
        yield Page(name, None, cursor, MIDI, meta, visit.landing)
        return
    with tempfile.TemporaryDirectory(prefix="lyrebird-") as folder:
        path = Path(folder) / "zip"
        context.objects().download(*_address(visit.landing or ""), path)
        try:
            for member in archives.members(path, name=name, most_each=LARGEST_MIDI):
                if isinstance(member, archives.Refused):
                    yield _refused(f"{name}/{member.name}", member.reason, cursor, meta)
                elif member.name.lower().endswith((".mid", ".midi")):
                    yield Page(f"{name}/{member.name}", member.open().read(), cursor, MIDI, meta)
        except Problem as error:
            yield _refused(name, error.what, cursor, meta)


def _refused(name: str, reason: str, cursor: dict[str, Any], meta: Mapping[str, Any]) -> Page:
    return Page(name, b"", cursor, MIDI, {**meta, "failed": reason})


def _outstanding(context: Context) -> tuple[list[dict[str, Any]], dict[int, list[str]]]:
    """Pieces whose MIDI is not here, or of another day or licence; and the paths that are here, by piece."""
    have: dict[int, list[str]] = {}
    stand: dict[int, tuple[str, date, str]] = {}
    with closing(context.warehouse()) as db, db, db.cursor() as sql:
        sql.execute(
            "select to_regclass('raw.mutopia_pieces') is not null, to_regclass('raw.mutopia_scores') is not null"
        )
        described, begun = sql.fetchone() or (False, False)
        if begun:
            columns = "piece_id, path, url, updated, licence"
            current = _current(columns, "raw.mutopia_scores")
            sql.execute(f"select {columns} from ({current}) as c where not _deleted order by 1, 2")
            for piece, path, url, updated, licence in sql.fetchall():
                have.setdefault(piece, []).append(path)
                stand[piece] = (url, updated, licence)
        if not described:
            return [], have
        columns = "piece_id, midi_url, updated, licence, licence_url, title, composer"
        current = _current(columns, "raw.mutopia_pieces")
        sql.execute(f"select {columns} from ({current}) as c where not _deleted order by piece_id")
        found = sql.fetchall()
    wanted = []
    for piece, url, updated, licence, terms, title, composer in found:
        under = f"{licence} ({terms})" if terms else licence
        if stand.get(piece) != (url, updated, under):
            told = {"title": title, "composer": composer, "licence": under}
            wanted.append({"piece": piece, "url": url, "updated": updated.isoformat()} | told)
    return wanted, have


def _texts(descriptions: Mapping[str, str], *, required: bool = False) -> list[pa.Field]:
    return [describe(name, pa.string(), text, required=required) for name, text in descriptions.items()]


PIECES = Resource(
    name="pieces",
    schema=pa.schema(
        [
            describe("piece_id", pa.int64(), "number of the piece at Mutopia", required=True),
            *_texts({"title": "title", "instruments": "instruments, as free text"}, required=True),
            *_texts({"composer": "composer with years, or Anonymous or Traditional; null when not told"}),
            *_texts({"style": "style, such as Baroque", "licence": "licence, by its name"}, required=True),
            *_texts({"licence_url": "address of the licence"}),
            describe("updated", pa.date32(), "day of the last change", required=True),
            *_texts(
                {
                    "music_id": "Mutopia-year/month/day-number",
                    "midi_url": "address of its MIDI file, or of a zip of several",
                    "page_url": "address of its page",
                },
                required=True,
            ),
            *_texts(
                {
                    "opus": "opus or catalogue number",
                    "metre": "metre of a hymn",
                    "lyricist": "who wrote the words",
                    "arranger": "who arranged it",
                    "composed": "when it was composed, as free text",
                    "edition": "the edition that was typeset",
                    "typeset": "software and version",
                    "collections": "collections it is part of",
                    "maintainer": "who typeset it",
                    "more_information": "remarks",
                }
            ),
        ]
    ),
    key=("piece_id",),
    mode="merge",
    fetch=_fetch_pieces,
    parse=parse_piece,
    settled=crawling.settled(NAME),
    description="Editions, as the page of each tells.",
)

SCORES = Resource(
    name="scores",
    schema=pa.schema(
        [
            describe("path", pa.string(), "path of the file at the site; in a zip <zip>/<file>", required=True),
            describe("piece_id", pa.int64(), "number of the piece at Mutopia", required=True),
            *_texts({"corpus": "collection, mutopia", "title": "title of the piece"}, required=True),
            *_texts({"composer": "composer of the piece"}),
            *_texts({"licence": "licence of the piece when the file was fetched, with its address"}, required=True),
            describe("updated", pa.date32(), "day of the piece's last change", required=True),
            *_texts({"url": "address that it came from", "sha256": "hash of the file"}, required=True),
            describe("bytes", pa.int64(), "size of the file", required=True),
        ]
    ),
    key=("path",),
    store="objects",
    mode="merge",
    fetch=_fetch_scores,
    parse=parse_score,
    settled=crawling.settled(NAME),
    description="MIDI files of the editions.",
)

SOURCE = Source(
    name=NAME,
    title="Mutopia",
    domain="music",
    description="Editions of classical music that volunteers typeset, and their MIDI. Off until `url` is set.",
    licence="per piece: public domain or Creative Commons BY or BY-SA",
    cadence="10 3 * * 6",
    cursor="the crawl that the load came from, and when all pages were read",
    volume="about 2,000 pieces, a page and some MIDI files each",
    resources=(PIECES, SCORES),
    config={
        "url": ("", f"address of the site, {SITE}; empty: nothing is asked"),
        "composer": ("", "only of this composer, as the site abbreviates it: BachJS; empty: of all"),
        "instrument": ("", "only for this instrument, as the site has it: Piano"),
        "style": ("", "only of this style, as the site has it: Baroque"),
        "full_every_days": (28, "after how many days the pages of all pieces are read again, whatever their date"),
    }
    | crawling.OPTIONS,
    url=SITE,
)
