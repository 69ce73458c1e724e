"""Species accounts: the article about each species of bird in an encyclopedia, as Wikipedia makes its pages.

Taxonomy box and text become a document, with the licence that the page names and with what its attribution needs:
title, address of the very revision, and the licence's own address. Which species is told by the option, or else by
the recordings that are here. There is an interface for programs too; what people see is scraped here, so that any
encyclopedia on MediaWiki will do. Pages that have not changed are told so by the HTTP cache of the crawler.

An article without its taxonomy box, text or licence is not as it was, and goes to quarantine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urljoin

import pyarrow as pa

from ingestion.contract import Bad, BadPage, Context, Gone, Landed, Page, Record, Resource, Source, describe
from ingestion.scrapers import crawling
from storage.errors import Problem

if TYPE_CHECKING:
    from parsel import Selector

NAME = "species_accounts"
SITE = "https://en.wikipedia.org/wiki"
BINOMIAL = re.compile(r"[A-Z][a-z]+(-[a-z]+)? [a-z]{3,}(-[a-z]+)?")
_CLUTTER = "sup[contains(@class, 'reference') or contains(@class, 'noprint')]"
_HEADINGS = ("h2", "h3")

# Species heard in recordings, by table: those of a document are in its fields gen and sp, or species.
_HEARD = {
    "aviary_recordings": "concat(r.doc ->> 'gen', ' ', r.doc ->> 'sp')",
    "xeno_canto_recordings": "concat(r.doc ->> 'gen', ' ', r.doc ->> 'sp')",
    "gbif_sounds_occurrences": "r.doc ->> 'species'",
    "audio_folder_labels": "r.scientific_name",
    "field_recorder_detections": "r.species",
}


# ---------------------------------------------------------------- the page


def parse(landed: Landed) -> Iterator[Record | Bad]:
    """An article. BadPage that says what is not there."""
    from parsel import Selector

    species = landed.meta["species"]
    if landed.meta.get("failed"):
        yield Bad({"species": species, "url": landed.name}, landed.meta["failed"])
        return
    page = Selector(text=landed.read().decode("utf-8", "replace").replace("\x00", ""), type="html")
    content = page.css("div.mw-parser-output")[:1]
    box = content.css("table.infobox.biota")[:1]
    title = _text(page.css("h1#firstHeading"))
    taxonomy = [
        {"rank": rank.rstrip(":").lower(), "name": name}
        for row in box.css("tr")
        if len(cells := row.xpath("./td")) == 2
        and (rank := _text(cells[0])).endswith(":")
        and (name := _text(cells[1]))
    ]
    sections = list(_sections(content))
    for found, wanted in (
        (title, "a heading, h1#firstHeading"),
        (box, "a taxonomy box, table.infobox.biota"),
        (taxonomy, "ranks in its taxonomy box"),
        (sections and not sections[0]["heading"], "a text before its first heading"),
    ):
        if not found:
            raise BadPage(f"{landed.name} has not {wanted}, as the article about a species had")
    address = urljoin(landed.name, page.css('link[rel="canonical"]::attr(href)').get() or landed.name)
    revision = _first(r"[?&]oldid=(\d{1,15})", page.css("li#t-permalink a::attr(href)").get() or "") or _first(
        r'"wgRevisionId":\s*(\d{1,15})', " ".join(page.css("head script::text").getall())
    )
    binomial, authority = _binomial(box)
    licence, terms = _licence(page, landed.name)
    permalink = f"{address}?oldid={revision}" if revision else address
    yield {
        "species": species,
        "title": title,
        "url": address,
        "revision": int(revision) if revision else None,
        "modified": _day(_text(page.css("li#footer-info-lastmod"))),
        "redirected_from": _text(page.css("span.mw-redirectedfrom a")) or None,
        "licence": licence,
        "licence_url": terms,
        "attribution": f"“{title}”, by the contributors of {permalink}, {licence}" if licence else None,
        "taxonomy": taxonomy,
        "binomial": binomial,
        "authority": authority,
        "conservation_status": _below(box, "Conservation status"),
        "lead": sections[0]["text"],
        "sections": sections[1:],
    }


def _sections(content: Any) -> Iterator[dict[str, str]]:
    """The text, with the heading that it stands under; "" is that of the beginning."""
    heading, paragraphs = "", list[str]()
    for node in content.xpath("./*"):
        title = node if node.root.tag in _HEADINGS else node.xpath("./h2 | ./h3")[:1]
        if node.root.tag == "p":
            text = _text(node)
            paragraphs += [text] if text else []
        elif title and (node.root.tag in _HEADINGS or "mw-heading" in (node.attrib.get("class") or "")):
            if paragraphs:
                yield {"heading": heading, "text": "\n\n".join(paragraphs)}
            heading, paragraphs = _text(title.css("span.mw-headline") or title), []
    if paragraphs:
        yield {"heading": heading, "text": "\n\n".join(paragraphs)}


def _binomial(box: Any) -> tuple[str | None, str | None]:
    """The scientific name, and who gave it when."""
    whole = _below(box, "Binomial name")
    name = _text(box.css("span.binomial")) or (_first(r"([A-Z][a-z-]+ [a-z-]+)", whole or ""))
    if not name:
        return None, None
    return name, (whole or "").removeprefix(name).strip() or None


def _below(box: Any, heading: str) -> str | None:
    """Text of the row below a heading in the box."""
    row = box.xpath(".//tr[th[contains(., $heading)]]/following-sibling::tr[1]", heading=heading)
    return _text(row) or None


def _licence(page: Selector, url: str) -> tuple[str | None, str | None]:
    """Name and address of the licence of the text, as the foot of the page tells."""
    links = page.css("li#footer-info-copyright a")
    named = next((link for link in links if re.search(r"Creative Commons|CC BY", _text(link))), None)
    if named is None:
        return None, None
    addresses = [*links.xpath("@href").getall(), *page.css('link[rel="license"]::attr(href)').getall()]
    terms = next((one for one in addresses if "creativecommons.org/licenses/" in one), named.attrib.get("href", ""))
    return _text(named), urljoin(url, terms)


def _text(found: Any) -> str:
    """Text as it is read: without the numbers of footnotes and the links for editing."""
    unwanted = f"ancestor::{_CLUTTER} or ancestor::style or ancestor::span[contains(@class, 'mw-editsection')]"
    pieces = found.xpath(f".//text()[not({unwanted})]").getall()
    return " ".join("".join(pieces).split())


def _first(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return found[1] if found else None


def _day(text: str) -> str | None:
    """The day in "This page was last edited on 3 May 2024, at 12:01 (UTC)", ISO 8601."""
    found = _first(r"(\d{1,2} [A-Z][a-z]+ \d{4})", text)
    try:
        return datetime.strptime(found, "%d %B %Y").date().isoformat() if found else None
    except ValueError:
        return None


# ---------------------------------------------------------------- fetch


def fetch(context: Context) -> Iterator[Page | Gone]:
    url = str(context.config["url"] or "").rstrip("/")
    if not url:
        return
    species = _species(context)
    if not species:
        return
    question = {"url": url, "species": species if context.config["species"] else "as heard"}
    done = crawling.crawl(
        context,
        NAME,
        "species_accounts",
        question=question,
        arguments={"species": {name: f"{url}/{quote(name.replace(' ', '_'))}" for name in species}},
    )
    if done is None:
        return
    cursor = done.cursor() | {"question": question}
    pages: list[Page] = []
    none: list[str] = []
    for visit in sorted(done.visits, key=lambda one: one.arguments["species"]):
        meta = {"species": visit.arguments["species"]}
        if visit.state == "landed":
            pages.append(Page(visit.url, None, cursor, visit.content_type, meta, visit.landing))
        elif visit.reason in ("answered 404", "answered 410"):
            none.append(meta["species"])
        else:
            pages.append(crawling.lost(visit, cursor, meta))
    if none and not pages:
        raise Problem(
            f"{url} has an article about none of {len(none):,} species, such as {none[0]}",
            f"Correct the option `url` of [sources.{NAME}]: it is the address that an article's title is put after",
        )
    if none:
        context.say(f"{NAME}: no article about {', '.join(none)}")
    found = False
    for page in crawling.news(context, NAME, SOURCE.table(context.resource), pages):
        found = True
        yield page
    for name in _here(context, none):
        found = True
        yield Gone((name,), cursor)
    if not found:
        crawling.forget(context, NAME, done.name)


def _species(context: Context) -> list[str]:
    """Species to read about: those of the option, or those heard. Raises Problem for what is no scientific name."""
    given = context.config["species"]
    names = [given] if isinstance(given, str) else list(given)
    names = sorted({str(name).strip() for name in names if str(name).strip()})
    for name in names:
        if not BINOMIAL.fullmatch(name):
            raise Problem(
                f"sources.{NAME}: {name!r} is no scientific name of a species", "Write names such as Turdus merula"
            )
    return names or [name for name in _heard(context) if BINOMIAL.fullmatch(name)]


def _heard(context: Context) -> list[str]:
    """Species of recordings in published loads."""
    found: set[str] = set()
    with closing(context.warehouse()) as db, db, db.cursor() as sql:
        for table, name in _HEARD.items():
            sql.execute("select to_regclass(%s) is not null", (f"raw.{table}",))
            if not (sql.fetchone() or (False,))[0]:
                continue
            sql.execute(
                f"select distinct {name} from raw.{table} as r join ops.load as l on l.source = %s "
                f"and l.load = r._load and l.state = 'published' where {name} is not null",
                (table.rsplit("_", 1)[0],),
            )
            found |= {name for (name,) in sql.fetchall()}
    return sorted(found)


def _here(context: Context, names: list[str]) -> list[str]:
    """Those of the species of which there is an article here."""
    with closing(context.warehouse()) as db, db, db.cursor() as sql:
        sql.execute("select to_regclass('raw.species_accounts') is not null")
        if not names or not (sql.fetchone() or (False,))[0]:
            return []
        sql.execute(
            f"""
            select _key from (
                select distinct on (r._key) r._key, r._deleted from raw.species_accounts as r
                join ops.load as l on l.source = '{NAME}' and l.load = r._load and l.state <> 'rejected'
                where r._key = any(%s)
                order by r._key, r._load desc, r._position desc
            ) as c where not _deleted order by 1
            """,
            (names,),
        )
        return [name for (name,) in sql.fetchall()]


ACCOUNTS = Resource(
    name=NAME,
    schema=pa.schema(
        [
            describe("species", pa.string(), "scientific name that was asked for", required=True),
            describe("title", pa.string(), "title of the article", required=True),
            describe("url", pa.string(), "address of the article", required=True),
            describe("revision", pa.int64(), "number of its revision"),
            describe("modified", pa.string(), "day of that revision, ISO 8601"),
            describe("redirected_from", pa.string(), "title that led there"),
            describe("licence", pa.string(), "licence of the text, by its name", required=True),
            describe("licence_url", pa.string(), "address of the licence", required=True),
            describe("attribution", pa.string(), "how to name the article and its authors", required=True),
            describe(
                "taxonomy",
                pa.list_(pa.struct([("rank", pa.string()), ("name", pa.string())])),
                "ranks of the taxonomy box, from the top",
                required=True,
            ),
            describe("binomial", pa.string(), "scientific name that the article gives"),
            describe("authority", pa.string(), "who named the species, and when"),
            describe("conservation_status", pa.string(), "status, as the box tells"),
            describe("lead", pa.string(), "text before the first heading", required=True),
            describe(
                "sections",
                pa.list_(pa.struct([("heading", pa.string()), ("text", pa.string())])),
                "the rest of the text, by heading",
            ),
        ]
    ),
    key=("species",),
    store="documents",
    mode="merge",
    fetch=fetch,
    parse=parse,
    settled=crawling.settled(NAME),
    description="Articles about species: taxonomy, text, licence and attribution.",
)

SOURCE = Source(
    name=NAME,
    title="Species accounts",
    domain="birds",
    description="Articles about species of birds in an encyclopedia such as Wikipedia. Off until `url` is set.",
    licence="CC BY-SA, as each page names it",
    cadence="30 3 1 * *",
    cursor="the crawl that the load came from",
    volume="a page a species",
    resources=(ACCOUNTS,),
    config={
        "url": ("", f"address of its articles, {SITE}; empty: nothing is asked"),
        "species": ([], 'scientific names, e.g. ["Turdus merula"]; empty: those of the recordings that are here'),
    }
    | crawling.OPTIONS,
    url="https://en.wikipedia.org",
)
