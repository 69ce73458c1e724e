"""A double of an encyclopedia on MediaWiki with articles about species, on loopback.

The markup is that of English Wikipedia, as far as it is public in code: the taxonomy box of its ``Module:Autotaxobox``
(``{|class="infobox biota"``, a row of two cells for each rank, the rank with a colon; in ``MASangys/wikipedia.zh``)
with the rows ``Conservation status`` and ``Binomial name`` and ``<span class="binomial">`` that many scrapers select;
the foot of the skin Vector (``footer-info-lastmod``, ``footer-info-copyright``; stories of ``mediawiki/skins/Vector``)
with the licence that its pages have named since 2023, CC BY-SA 4.0; headings in ``div.mw-heading`` since MediaWiki 1.43
and in ``span.mw-headline`` before. Read November 2026. An article that is not there is answered with 404; a title that
redirects is answered with the other article and ``mw-redirectedfrom``.

Articles are made up; some boxes lack the status or who named the species. The last
part of each is a comment that differs with every answer, as on Wikipedia.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from html import escape
from typing import Any
from urllib.parse import unquote

from upstreams.faulty_server import FaultyServer, Reply

ROBOTS = "User-agent: *\nAllow: /wiki/\nDisallow: /w/\nDisallow: /wiki/Special:\n"
LICENCE = "Creative Commons Attribution-ShareAlike 4.0 License"
TERMS = "https://creativecommons.org/licenses/by-sa/4.0/"


@dataclass(frozen=True)
class Article:
    species: str
    title: str
    family: str
    authority: str
    status: str
    revision: int
    lead: str
    sections: tuple[tuple[str, str], ...]
    headings: str = "new"  # or "old"


def article(species: str, **told: Any) -> Article:
    rng = random.Random(species)
    genus, epithet = species.split()
    made = Article(
        species,
        f"{rng.choice(('Common', 'Lesser', 'Painted'))} {epithet} bird",
        rng.choice(("Turdidae", "Paridae", "Strigidae")),
        rng.choice(("Linnaeus, 1758", "(Gmelin, JF), 1788", "")),
        rng.choice(("Least Concern", "Vulnerable", "")),
        rng.randrange(10**8, 10**9),
        f"The bird {species} is a member of the genus {genus}. It sings at dawn & dusk.",
        (
            ("Description", f"{epithet.title()} birds are {rng.randrange(10, 60)} cm long.\n\nThe sexes differ."),
            ("Voice", "A clear whistle, “tee-oo”."),
        ),
        rng.choice(("new", "old")),
    )
    return replace(made, **told)


def expected(one: Article, url: str, species: str | None = None) -> dict[str, Any]:
    """The document that an article should become."""
    genus, epithet = one.species.split()
    address = f"{url}/wiki/{one.title.replace(' ', '_')}"
    return {
        "species": species or one.species,
        "title": one.title,
        "url": address,
        "revision": one.revision,
        "modified": "2024-05-03",
        "redirected_from": one.species,
        "licence": LICENCE,
        "licence_url": TERMS,
        "attribution": f"“{one.title}”, by the contributors of {address}?oldid={one.revision}, {LICENCE}",
        "taxonomy": [
            {"rank": "kingdom", "name": "Animalia"},
            {"rank": "class", "name": "Aves"},
            {"rank": "family", "name": one.family},
            {"rank": "genus", "name": genus},
            {"rank": "species", "name": f"{genus[0]}. {epithet}"},
        ],
        "binomial": one.species,
        "authority": one.authority or None,
        "conservation_status": f"{one.status} (IUCN 3.1)" if one.status else None,
        "lead": one.lead,
        "sections": [{"heading": heading, "text": text} for heading, text in one.sections],
    }


class Encyclopedia(FaultyServer):
    """The site. ``changed`` is what of its markup is not as it was: ``box`` or ``licence``."""

    def __init__(self, articles: Iterable[Article]) -> None:
        super().__init__()
        self.articles = {one.species: one for one in articles}
        self.changed = ""
        self.noise = False  # something in each page differs with every answer
        self.robots = ROBOTS
        self._answers = itertools.count()

    def asked(self, what: str) -> list[str]:
        return [path for path, _ in self.requests if what in path]

    def answer(self, path: str, params: dict[str, str]) -> Reply:  # noqa: ARG002 - the parent's signature
        if path == "/robots.txt":
            return Reply(200, self.robots.encode(), "text/plain")
        title = unquote(path).removeprefix("/wiki/").replace("_", " ")
        one = self.articles.get(title)
        if one is None:
            return Reply(404, b"<html><h1 id=firstHeading>Not here</h1></html>", "text/html")
        return Reply(200, self._page(one).encode(), "text/html")

    def _page(self, one: Article) -> str:
        genus, epithet = one.species.split()
        address = f"{self.url}/wiki/{one.title.replace(' ', '_')}"
        ranks = (("Kingdom", "Animalia"), ("Class", "Aves"), ("Family", one.family), ("Genus", f"<i>{genus}</i>"))
        rows = "".join(f'<tr><td>{rank}:</td><td><a href="/wiki/{name}">{name}</a></td></tr>' for rank, name in ranks)
        status = (
            '<tr><th colspan="2"><div><a href="/wiki/Conservation_status">Conservation status</a></div></th></tr>'
            f'<tr><td colspan="2"><a href="/wiki/LC">{one.status}</a> (IUCN 3.1)'
            '<sup id="cite_ref-1" class="reference"><a href="#1">[1]</a></sup></td></tr>'
        )
        box = (
            '<table class="infobox biota" style="text-align: left;"><tbody>'
            f'<tr><th colspan="2">{one.title}</th></tr>'
            '<tr><td colspan="2"><a href="/wiki/File:A.jpg"><img src="//upload.example/a.jpg" /></a></td></tr>'
            f"{status if one.status else ''}"
            '<tr><th colspan="2">Scientific classification <span class="plainlinks">'
            '<a href="/wiki/Template:Taxonomy">Edit this classification</a></span></th></tr>'
            f"{rows}<tr><td>Species:</td><td><div><i><b>{genus[0]}. {epithet}</b></i></div></td></tr>"
            '<tr><th colspan="2"><a href="/wiki/Binomial_nomenclature">Binomial name</a></th></tr>'
            f'<tr><td colspan="2"><b><span class="binomial"><i>{one.species}</i></span></b><br />'
            f"<div> {one.authority}</div></td></tr></tbody></table>"
        )
        if self.changed == "box":
            box = box.replace("infobox biota", "taxobox")
        lead = escape(one.lead).replace(".", '.<sup class="reference"><a href="#2">[2]</a></sup>', 1)
        body = f"{box}<style>.a{{color:red}}</style><p class='mw-empty-elt'>\n</p><p>{lead}\n</p>"
        body += '<div id="toc"><a href="/wiki/Special:Calendar/1">tomorrow</a></div>'
        for heading, text in one.sections:
            edit = '<span class="mw-editsection">[<a href="/w/index.php?action=edit">edit</a>]</span>'
            if one.headings == "new":
                body += f'<div class="mw-heading mw-heading2"><h2 id="{heading}">{heading}</h2>{edit}</div>'
            else:
                body += f'<h2><span class="mw-headline" id="{heading}">{heading}</span>{edit}</h2>'
            body += "".join(f"<p>{escape(paragraph)}</p>" for paragraph in text.split("\n\n"))
        body += '<div class="mw-heading mw-heading2"><h2>References</h2></div><ol><li>A</li></ol>'
        link = "/wiki/Wikipedia:Text_of_the_Creative_Commons_Attribution-ShareAlike_4.0_International_License"
        rights = (
            f'<li id="footer-info-copyright">Text is available under the <a href="{link}">{LICENCE}</a>'
            f'<a rel="license" href="{TERMS}" style="display:none;"></a>; additional terms may apply.</li>'
        )
        if self.changed == "licence":
            rights = '<li id="footer-info-copyright">All rights reserved.</li>'
        noise = f"<!-- Saved in parser cache, {next(self._answers)} -->" if self.noise else ""
        return (
            '<!DOCTYPE html>\n<html class="client-nojs" lang="en" dir="ltr">\n<head>\n<meta charset="UTF-8">\n'
            f"<title>{one.title} - Wikipedia</title>\n"
            f'<script>RLCONF={{"wgRevisionId":{one.revision},"wgArticleId":1}};</script>\n'
            f'<link rel="canonical" href="{address}">\n</head>\n<body>\n'
            f'<h1 id="firstHeading" class="firstHeading"><span class="mw-page-title-main">{one.title}</span></h1>\n'
            '<div id="siteSub">From Wikipedia, the free encyclopedia</div>\n'
            f'<div id="contentSub"><span class="mw-redirectedfrom">(Redirected from <a href="/w/index.php?redirect=no">'
            f"{one.species}</a>)</span></div>\n"
            f'<div id="mw-content-text"><div class="mw-content-ltr mw-parser-output" lang="en" dir="ltr">{body}'
            f"{noise}</div></div>\n"
            f'<li id="t-permalink"><a href="/w/index.php?title=A&amp;oldid={one.revision}">Permanent link</a></li>\n'
            '<ul id="footer-info"><li id="footer-info-lastmod"> This page was last edited on 3 May 2024, at 12:01 '
            f'<span class="anonymous-show">(UTC)</span>.</li>{rights}</ul>\n</body>\n</html>\n'
        )
