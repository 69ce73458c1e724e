"""A double of Mutopia's web site, on loopback.

The markup is that of the site's own scripts, in ``MutopiaProject/MutopiaWeb`` (read November 2026): the listing of
``cgibin/make-table.cgi`` @ 24bdd4c, ten tables a page and a link Next unless the file of pieces is at its end; the page
of a piece of ``cgibin/piece-info.cgi`` and the frame of ``cgibin/HTMLcommon.pm`` @ 07fb4f4; the words for a piece that
does not exist. Pieces are ordered by composer and place, as ``bin/Update_website.pl`` @ 02bb902 has it, and a link to
a MIDI file ends in ``.mid`` or ``-mids.zip``. What its robots.txt says is not known; here it keeps robots out of
``/private/``.

Pieces are made up, by seed. While somebody pages, pieces come and go, and every page shifts. Links of a calendar lead
on for ever.
"""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from upstreams.faulty_server import FaultyServer, Reply

COMPOSERS = {
    "BachJS": "J. S. Bach (1685–1750)",
    "CarulliF": "F. Carulli (1770–1841)",
    "SorF": "F. Sor (1778–1839)",
    "Traditional": "Traditional",
    "VivaldiA": "A. Vivaldi (1678–1741)",
}
LICENCES = {
    "Public Domain": ("publicdomain", "http://creativecommons.org/licenses/publicdomain/"),
    "Creative Commons Attribution-ShareAlike 4.0": ("ccasa", "http://creativecommons.org/licenses/by-sa/4.0/"),
    "Creative Commons Attribution 3.0": ("cca", "http://creativecommons.org/licenses/by/3.0/"),
}
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
ROBOTS = "User-agent: *\nDisallow: /private/\n"


@dataclass(frozen=True)
class Piece:
    """A piece, as the site's file of pieces has it; "" for what is not told."""

    number: int
    composer: str
    place: str  # below ftp/, with the composer
    title: str
    instruments: str
    style: str
    licence: str
    updated: tuple[int, int, int]
    opus: str = ""
    metre: str = ""
    lyricist: str = ""
    arranger: str = ""
    composed: str = ""
    edition: str = ""
    maintainer: str = "A. Typesetter"
    remarks: str = ""
    files: int = 1  # MIDI files; more than one come in a zip

    @property
    def name(self) -> str:
        return self.place.rsplit("/", 1)[1]

    @property
    def midi(self) -> str:
        return f"{self.place}/{self.name}" + ("-mids.zip" if self.files > 1 else ".mid")

    @property
    def music_id(self) -> str:
        year, month, day = self.updated
        return f"Mutopia-{year:04d}/{month:02d}/{day:02d}-{self.number}"


def piece(number: int, **told: Any) -> Piece:
    rng = random.Random(number)
    composer = told.pop("composer", None) or rng.choice(sorted(COMPOSERS))
    opus = rng.choice(("", f"Op. {rng.randrange(1, 99)}", f"BWV {rng.randrange(1, 1100)}"))
    made = Piece(
        number,
        composer,
        f"{composer}/O{rng.randrange(1, 60)}/piece-{number}",
        f"{rng.choice(('Étude', 'Minuet & Trio', 'Prelude', 'Air'))} No. {number}",
        rng.choice(("Guitar", "Piano", "Voice (SATB), Organ", "Harpsichord")),
        rng.choice(("Baroque", "Classical", "Folk", "Hymn")),
        rng.choice(sorted(LICENCES)),
        (rng.randrange(2002, 2024), rng.randrange(1, 13), rng.randrange(1, 29)),
        opus=opus,
        metre=rng.choice(("", "", "8,7,8,7")),
        lyricist=rng.choice(("", "", "n/a", "A. Poet (1800–1870)")),
        composed=rng.choice(("", "1721", "c. 1800")),
        edition=rng.choice(("", "Bach-Gesellschaft", "Milano: <Ricordi>")),
        remarks=rng.choice(("", "Second <i>edition</i>.")),
        files=rng.choice((1, 1, 3)),
    )
    return replace(made, **told)


def made(count: int, seed: int = 5) -> list[Piece]:
    return [piece(number) for number in sorted(random.Random(seed).sample(range(1, 2400), count))]


def expected(one: Piece, url: str) -> dict[str, Any]:
    """The row that a piece should become."""
    return {
        "piece_id": one.number,
        "title": one.title,
        "composer": COMPOSERS[one.composer],
        "instruments": one.instruments,
        "style": one.style,
        "opus": one.opus or None,
        "metre": one.metre or None,
        "lyricist": None if one.lyricist == "n/a" else one.lyricist or None,
        "arranger": None,
        "composed": one.composed or None,
        "edition": one.edition or None,
        "licence": one.licence,
        "licence_url": LICENCES[one.licence][1],
        "updated": "{:04d}-{:02d}-{:02d}".format(*one.updated),
        "music_id": one.music_id,
        "maintainer": one.maintainer,
        "midi_url": f"{url}/ftp/{one.midi}",
        "page_url": f"{url}/cgibin/piece-info.cgi?id={one.number}",
    }


def sound(number: int, part: int = 0) -> bytes:
    """A MIDI file of a few notes, another one for each piece and part."""
    rng = random.Random(f"{number}/{part}")
    notes = b"".join(
        bytes((0, 0x90, pitch, 80, 0x60, 0x80, pitch, 0)) for pitch in (rng.randrange(48, 84) for _ in range(8))
    )
    track = notes + b"\x00\xff\x2f\x00"
    return b"MThd\x00\x00\x00\x06\x00\x00\x00\x01\x00\x60MTrk" + len(track).to_bytes(4, "big") + track


class Mutopia(FaultyServer):
    """The site. ``changed`` is what of its markup is not as it was: ``rows``, ``next``, ``piece`` or ``licence``."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        super().__init__()
        self.pieces = {one.number: one for one in pieces}
        self.coming: list[Piece] = []  # appear one by one while somebody pages
        self.going: list[int] = []  # are taken away one by one
        self.lost: set[int] = set()  # pieces whose page answers 404
        self.without: set[str] = set()  # places of MIDI files that answer 404
        self.robots: Reply = Reply(200, ROBOTS.encode(), "text/plain")
        self.changed = ""
        self.endless = False  # the listing never ends
        self.moved = ""  # where the page of a piece redirects to

    def asked(self, what: str) -> list[str]:
        """Addresses that were asked for, of those that hold ``what``."""
        found = [f"{path}?{'&'.join(f'{k}={v}' for k, v in params.items())}" for path, params in self.requests]
        return [address for address in found if what in address]

    def answer(self, path: str, params: dict[str, str]) -> Reply:
        if path == "/robots.txt":
            return self.robots
        if path == "/cgibin/make-table.cgi":
            return _html(self._listing(params))
        if path == "/cgibin/piece-info.cgi":
            number = int(params["id"])
            if self.moved:
                return Reply(302, b"", "text/html", {"Location": f"{self.moved}/cgibin/piece-info.cgi?id={number}"})
            if number in self.lost:
                return Reply(404, b"<html>gone</html>", "text/html")
            one = self.pieces.get(number)
            return _html(self._piece(one) if one else _missing(number))
        if path.startswith("/ftp/"):
            one = next((one for one in self.pieces.values() if path == f"/ftp/{one.midi}"), None)
            if one is None or one.midi in self.without:
                return Reply(404, b"", "text/html")
            return _midi(one)
        if path == "/calendar":  # a trap for those who follow every link
            return _html(f'<a href="/calendar?day={int(params.get("day", 0)) + 1}">tomorrow</a>')
        return Reply(404, b"", "text/html")

    def _listing(self, params: dict[str, str]) -> str:
        start = int(params.get("startat") or 0)
        if start and self.coming:
            late = self.coming.pop(0)
            self.pieces[late.number] = late
        if start and self.going:
            self.pieces.pop(self.going.pop(0), None)
        every = sorted(self.pieces.values(), key=lambda one: one.place)
        if not start and self.shifts(len(every) > 10, bool(self.coming or self.going)):
            self.coming.append(self.pieces.pop(every.pop(0).number))
        if self.endless:
            every = [piece(number, composer="BachJS") for number in range(3000, 3000 + start + 20)]
        page, eof = [], True
        matched = 0
        for position, one in enumerate(every):
            if params.get("Composer") and one.composer != params["Composer"]:
                continue
            matched += 1
            if matched > start:
                page.append(one)
            if matched >= start + 10:
                eof = position + 1 == len(every)
                break
        tables = "".join(f"<tr><td>\n{self._row(one)}</tr></td>\n" for one in page)
        if self.changed == "rows":
            tables = tables.replace("result-table", "results")
        body = f'<table class="outer-table">\n{tables}</table>\n'
        body += '<div class="text-right benchmark">\n<small>Search time: 0 wallclock secs</small>\n</div>\n'
        if not page:
            body += '<div class="alert alert-info" role="alert">\n  Sorry, no matches were found for your search '
            body += "criteria.\n</div>\n"
        if not eof and self.changed != "next":
            more = f"&searchingfor=&Composer={params.get('Composer', '')}&Instrument=&Style=&preview="
            body += f'<a href="make-table.cgi?startat={min(start + 10, matched)}{more}">Next 10</a>\n'
        return _frame("Music Listing - without preview images", body + '<a href="/calendar?day=1">today</a>')

    def _row(self, one: Piece) -> str:
        composer = COMPOSERS[one.composer]
        by = composer if one.composer == "Traditional" else f"by {composer}"
        base, licence = f"{self.url}/ftp/{one.place}/{one.name}", LICENCES[one.licence][0]
        zipped = ' class="zipped"' if one.files > 1 else ""
        midi = ".mid files (zipped)" if one.files > 1 else ".mid file"
        return (
            f'<table class="table-bordered result-table">\n<tr><td>{escape(one.title)}</td>\n<td>{by}</td>\n'
            f"<td>{one.opus or '&nbsp;'}</td>\n<td>{one.lyricist or '&nbsp;'}</td>\n</tr><tr>\n"
            f"<td>for {one.instruments}</td>\n<td>{one.composed or '&nbsp;'}</td>\n<td>{one.style}</td>\n<td></td>\n"
            f"</tr><tr>\n<td>{escape(one.edition) or '&nbsp;'}</td>\n"
            f'<td><a href="../legal.html#{licence}">{one.licence}</a></td>\n'
            f'<td><a href="piece-info.cgi?id={one.number}">More Information</a></td>\n'
            f"<td>{'{:04d}/{:02d}/{:02d}'.format(*one.updated)}</td>\n</tr><tr>\n"
            f'<td>Download: <a href="{base}.ly">.ly file</a></td>\n'
            f'<td{zipped}><a href="{self.url}/ftp/{one.midi}">{midi}</a></td>\n'
            f'<td><a href="{base}-preview.png">Preview image</a></td>\n'
            f'<td><a href="{self.url}/ftp/{one.place}/">Appropriate FTP area</a></td>\n</tr>\n</table>\n'
        )

    def _piece(self, one: Piece) -> str:
        composer = COMPOSERS[one.composer]
        by = f"({composer})" if one.composer == "Traditional" else f"by {composer}"
        anchor, address = LICENCES[one.licence]
        licence = (
            f'<a href="../legal.html#{anchor}">{one.licence}</a>\n &nbsp;&nbsp;&nbsp;<a href="{address}">'
            '<img src="../images/cc.primary.nrr.gif" alt="CC" width="88" height="31" /></a>'
        )
        opus = {
            (True, True): f"<b>Opus:</b> {one.opus}, <b>Meter:</b> {one.metre}",
            (True, False): f"<b>Opus:</b> {one.opus}",
            (False, True): f"<b>Meter:</b> {one.metre}",
            (False, False): "<b>Opus:</b> <i>Not known</i>",
        }[bool(one.opus), bool(one.metre)]
        words = "" if not one.lyricist else f"<tr><td><b>Lyricist(s):</b> {one.lyricist}</td>\n<td>&nbsp;</td></tr>\n"
        year, month, day = one.updated
        base = f"{self.url}/ftp/{one.place}/{one.name}"
        right = f"<b>Copyright:</b> {licence}" if self.changed != "licence" else f"<b>Licence</b>: {licence}"
        body = (
            f"        <h4>{by}</h4>\n<br>\n"
            f'<div class="preview-image"><p><img src="{base}-preview.png" alt="Music preview" /></p>\n</div>\n'
            '<table class="table table-bordered result-table">'
            f"<tr><td><b>Instrument(s):</b> {one.instruments}</td>\n<td><b>Style:</b> {one.style}</td></tr>\n{words}"
            f"<tr><td>{opus}</td>\n<td><b>Date of composition:</b> {one.composed or '<i>Not known</i>'}</td></tr>\n"
            f"<tr><td><b>Source:</b> {escape(one.edition) or '<i>Not known</i>'}</td>\n<td>{right}</td></tr>\n"
            f"<tr><td><b>Last updated:</b> {year:04d}/{MONTHS[month - 1]}/{day:02d}. "
            f'<a href="{base}.log">View change history</a></td>\n'
            f"<td><b>Music ID Number:</b> {one.music_id}</td></tr>\n"
            '<tr><td><b>Typeset using:</b> <a href="http://www.lilypond.org">LilyPond</a>, version 2.18.2</td>\n'
            "<td>&nbsp;</td></tr>\n</table>\n\n"
            '<table class="table table-bordered result-table">\n<tr><td colspan="2"><b>Download:</b></td></tr>\n<tr>\n'
            f'<td><a href="{base}.ly">LilyPond file</a></td>\n<td><a href="{self.url}/ftp/{one.midi}">'
            f"{'MIDI files (zipped)' if one.files > 1 else 'MIDI file'}</a></td>\n</tr>\n</table>\n\n"
        )
        if one.remarks:
            body += f'<div class="well well-sm more-info">\n<p>{one.remarks}</p>\n</div><br><br>\n\n'
        body += f'<table class="table table-bordered maintainer"><tr>\n<td><b>Maintainer:</b> {one.maintainer}</td>\n'
        body += "<td>a (at) example.org</td>\n</tr>\n</table>\n\n"
        if self.changed == "piece":
            body = body.replace("table", "section")
        return _frame(escape(one.title), body)


def _missing(number: int) -> str:
    return _frame(
        f"Piece (ID={number}) not found",
        '<div class="alert alert-danger" role="alert">The piece you have requested information on does not seem to '
        "exist. If you followed a link, please inform the person whose link you followed.</div>",
    )


def _frame(heading: str, body: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n  <meta charset="utf-8">\n'
        f"  <title>{heading}</title>\n</head>\n<body>\n"
        '  <nav class="navbar"><a class="navbar-brand" href="../index.html">Home</a></nav>\n'
        f'  <div class="container">\n      <div class="col-sm-12">\n        <h2>{heading}</h2>\n{body}</div>\n'
        "  </div>\n"
        '  <footer class="footer"><p class="text-center"><u>Disclaimer:</u></p></footer>\n</body>\n</html>\n'
    )


def _html(text: str) -> Reply:
    return Reply(200, text.encode(), "text/html")


def _midi(one: Piece) -> Reply:
    if one.files == 1:
        return Reply(200, sound(one.number), "audio/midi")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in range(one.files):
            entry = zipfile.ZipInfo(f"{one.name}-{part + 1}.mid", (2020, 1, 1, 0, 0, 0))
            archive.writestr(entry, sound(one.number, part))
    return Reply(200, packed.getvalue(), "application/zip")
