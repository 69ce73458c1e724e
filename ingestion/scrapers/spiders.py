"""The spiders: what leads to what. They read as much of a page as they need for that; the sources read the rest."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from scrapy import Request
from scrapy.http import Response

from ingestion.scrapers.frontier import LEAF
from ingestion.scrapers.landing import LandingSpider
from ingestion.sources import mutopia
from storage.errors import Problem

CHANGED = "Look at the page: its markup may have changed"
MOST_CHECKED = 100  # pieces that a listing has lost: more of them, and it is the listing that is broken


class MutopiaPieces(LandingSpider):
    """The listing, ten pieces a page, and the pages of those pieces that are new or have another date.

    The listing may move while it is read. Each request overlaps with the page before by a row; when the two have no
    piece in common, pieces were taken away, and the reading goes back. Pieces known from an earlier crawl that are
    not in the listing are asked for: they may be gone, or have moved to where it was read already.
    """

    name = "mutopia_pieces"

    async def start(self) -> AsyncIterator[Request]:
        yield self._listing(0, [], 0)

    def _listing(self, start: int, before: list[int], turn: int, why: str = "") -> Request:
        query = "&".join(f"{name}={value}" for name, value in self.arguments["query"].items())
        return Request(
            f"{self.url}/cgibin/make-table.cgi?startat={start}&{query}",
            callback=self.listing,
            cb_kwargs={"start": start, "before": before, "turn": turn, "why": why},
            priority=10,  # soon: the less it moves meanwhile
            meta={"turn": turn},
        )

    def _piece(self, piece: int, *, known: bool = False) -> Request:
        return Request(
            f"{self.url}/cgibin/piece-info.cgi?id={piece}",
            callback=self.leaf,
            cb_kwargs={"piece": piece},
            meta={"known": known},
        )

    def listing(self, response: Response, start: int, before: list[int], turn: int, why: str) -> Iterator[Request]:
        """A page of the listing. ``why`` it is asked for: "" as the next; "end", to see that there is none after a full
        page without a link; "doubt", because there was one.
        """
        page = mutopia.read_listing(response.body, response.url)
        pieces = [piece for piece, _ in page.pieces]
        if why == "end" and pieces:
            yield self._listing(max(start - mutopia.PER_PAGE, 0), before, turn + 1, "doubt")
            return
        if why != "end" and start and before and not set(pieces) & set(before):
            yield self._listing(max(start - mutopia.PER_PAGE, 0), before, turn + 1)
            return
        known = self.arguments["known"]
        for piece, updated in page.pieces:
            yield self._piece(piece, known=known.get(str(piece)) == updated)
        if page.next is not None and page.next <= start:
            raise Problem(f"mutopia: the link Next of {response.url} leads back to {page.next}", CHANGED)
        if page.next is not None and pieces:
            yield self._listing(start + max(len(pieces) - 1, 1), pieces, turn)
        elif len(pieces) >= mutopia.PER_PAGE and why == "doubt":
            raise Problem(f"mutopia: {response.url} has no link Next, and there are more pieces", CHANGED)
        elif len(pieces) >= mutopia.PER_PAGE:
            yield self._listing(start + len(pieces), pieces, turn, "end")
        else:
            yield from self._missing(pieces, response.url)

    def _missing(self, pieces: list[int], url: str) -> Iterator[Request]:
        """Requests for the pieces that should be in the listing and were not."""
        seen = {visit.arguments["piece"] for visit in self.frontier.visits(self.crawl, LEAF)} | set(pieces)
        if not seen:
            raise Problem(f"mutopia: {url} lists no piece at all", "Mend the options composer, instrument and style")
        missing = [piece for piece in map(int, self.arguments["expected"]) if piece not in seen]
        if len(missing) > max(MOST_CHECKED, len(seen) // 10):
            raise Problem(
                f"mutopia: the listing up to {url} has {len(seen):,} pieces and lacks {len(missing):,} that it had",
                CHANGED,
            )
        for piece in missing:
            yield self._piece(piece)


class MutopiaMidi(LandingSpider):
    """The MIDI files of published pieces."""

    name = "mutopia_midi"

    async def start(self) -> AsyncIterator[Request]:
        for piece in self.arguments["pieces"]:
            yield Request(piece["url"], callback=self.leaf, cb_kwargs=piece, meta={"turn": piece["piece"]})


class SpeciesAccounts(LandingSpider):
    """The article of each species."""

    name = "species_accounts"

    async def start(self) -> AsyncIterator[Request]:
        for species, address in self.arguments["species"].items():
            yield Request(address, callback=self.leaf, cb_kwargs={"species": species})


SPIDERS: dict[str, type[LandingSpider]] = {
    spider.name: spider for spider in (MutopiaPieces, MutopiaMidi, SpeciesAccounts)
}
