r"""A double of Tatoeba's weekly exports, on loopback.

Copied from the page "Download sentences" (https://tatoeba.org/downloads), section "Fields and structure" of each file,
as quoted in the documentation of a public reader of all of them (SaltyPatron/Laplace-Engine, read 2026-11):

* ``sentences_detailed.csv``: Sentence id, Lang, Text, Username, Date added, Date last modified; ``links.csv``: Sentence
  id, Translation id, "the reciprocal link is also present"; ``sentences_CC0.csv``: Sentence id, Lang, Text, Date last
  modified. Tab-separated, no header, each in a tar.bz2 of its name under https://downloads.tatoeba.org/exports/.
* A tab, a line break or a backslash in a field is written after a backslash, a field that is not known is ``\N``: the
  defaults of MySQL's ``SELECT … INTO OUTFILE``, by which the exports are made (tatoeba2, docs/database/scripts); so the
  zero dates of old sentences are ``0000-00-00 00:00:00``, and orphans have the user ``\N``.

The sentences are made up. Links to sentences that are deleted by now, members without a name, other languages and
sentences twice are as in the real files; ``broken`` adds lines that keep to nothing.
"""

from __future__ import annotations

import bz2
import io
import random
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from upstreams.faulty_server import FaultyServer, Reply

LANGUAGES = ("eng", "deu", "rus", "fra", "cmn", None)
WORDS = {
    "eng": "the quick brown fox jumps over a lazy dog while it rains again today",
    "deu": "der schnelle braune Fuchs springt über einen faulen Hund während es heute regnet",
    "rus": "быстрая бурая лиса прыгает через ленивую собаку пока опять идёт дождь",
    "fra": "le rapide renard brun saute par-dessus un chien paresseux pendant qu’il pleut",
    "cmn": "敏捷 的 棕色 狐狸 跳过 懒 狗",
}
MEMBERS = ("CK", "Дмитрий", "o'neill", "esperanto-fan", "a_b.c", None)
BROKEN = (
    b"4000001\teng\tOnly three fields\n",
    b"4000002\teng\tToo\tmany\tfields\there\tfor\tone\n",
    b"no number\teng\tHello.\tCK\t\\N\t\\N\n",
    b"4000003\teng\tNo UTF-8: \xff\xfe\tCK\t\\N\t\\N\n",
    b"99999999999999999999\teng\tHello.\tCK\t\\N\t\\N\n",
    b"4000004\teng\t\\N\tCK\t\\N\t\\N\n",
    b"4000005\teng\tA \\0 in it\tCK\t\\N\t\\N\n",
)


@dataclass
class Sentence:
    number: int
    language: str | None
    text: str
    member: str | None
    added: str | None
    modified: str | None
    is_free: bool


def made(count: int, seed: int = 11) -> tuple[list[Sentence], list[tuple[int, int]]]:
    """Sentences, and links in one direction."""
    rng = random.Random(seed)
    numbers = sorted(rng.sample(range(1, 50 * count), count))
    sentences = []
    for number in numbers:
        language = rng.choices(LANGUAGES, weights=(30, 20, 20, 10, 5, 1))[0]
        words = WORDS[language or "eng"].split()
        text = f"{' '.join(rng.choices(words, k=rng.randrange(2, 9))).capitalize()} {number}."
        if number % 17 == 0:
            text = text.replace(" ", rng.choice(["\t", "\n", "\\", "\\\n", "\\\\\n\t"]), 2)
        moment = (
            None if number % 13 == 0 else f"20{rng.randrange(10, 26)}-0{rng.randrange(1, 10)}-11 10:0{number % 10}:00"
        )
        old = "0000-00-00 00:00:00" if number % 7 == 0 else moment
        sentences.append(Sentence(number, language, text, rng.choice(MEMBERS), old, moment, rng.random() < 0.2))
    links = {tuple(sorted(rng.sample(numbers, 2))) for _ in range(2 * count)}
    gone = {(number, 60 * count + number) for number in rng.sample(numbers, 20)}
    return sentences, sorted(links | gone)  # type: ignore[arg-type]


def field(value: object) -> bytes:
    if value is None:
        return rb"\N"
    text = str(value).replace("\\", "\\\\").replace("\t", "\\\t").replace("\n", "\\\n")
    return text.encode()


def table(rows: Iterable[Iterable[object]]) -> bytes:
    return b"".join(b"\t".join(map(field, row)) + b"\n" for row in rows)


def archive(name: str, body: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = len(body)
        tar.addfile(entry, io.BytesIO(body))
    return bz2.compress(packed.getvalue())


class Tatoeba(FaultyServer):
    """The double: exports of what ``sentences`` and ``links`` hold when ``renew`` was called last."""

    def __init__(self, sentences: list[Sentence], links: list[tuple[int, int]]) -> None:
        super().__init__()
        self.every = 2
        self.sentences, self.links = sentences, links
        self.broken: tuple[bytes, ...] = ()
        self.exports: dict[str, bytes] = {}
        self.renew()

    def renew(self) -> None:
        """Another week's exports."""
        detailed = ((s.number, s.language, s.text, s.member, s.added, s.modified) for s in self.sentences)
        free = ((s.number, s.language, s.text, s.modified) for s in self.sentences if s.is_free)
        both = sorted([*self.links, *((target, source) for source, target in self.links)])
        lines = table(detailed).splitlines(keepends=True)
        tables = {
            "sentences_detailed": b"".join(lines) + b"".join(self.broken) + b"".join(_last(lines)),
            "sentences_CC0": table(free),
            "links": table(both),
        }
        self.exports = {f"/exports/{name}.tar.bz2": archive(f"{name}.csv", body) for name, body in tables.items()}

    def answer(self, path: str, _: dict[str, str]) -> Reply:
        if path in self.exports:
            return Reply(200, self.exports[path], "application/octet-stream")
        return Reply(404, b"<html><h1>404 Not Found</h1></html>", "text/html")

    def rows(self, languages: list[str]) -> dict[int, dict[str, Any]]:
        """The sentences of these languages as they are to arrive."""
        return {
            s.number: {
                "sentence_id": s.number,
                "language": s.language,
                "text": s.text,
                "contributor": s.member,
                "added": s.added,
                "modified": s.modified,
                "licence": "CC0 1.0" if s.is_free else "CC BY 2.0 FR",
            }
            for s in self.sentences
            if s.language in languages
        }

    def pairs(self, languages: list[str]) -> set[tuple[int, int]]:
        """The links from a language to a later one of the list."""
        place = {s.number: languages.index(s.language) for s in self.sentences if s.language in languages}
        both = [*self.links, *((target, source) for source, target in self.links)]
        return {(one, two) for one, two in both if one in place and two in place and place[one] < place[two]}


def _last(lines: list[bytes]) -> list[bytes]:
    """The last sentence once more."""
    last: list[bytes] = []
    for line in reversed(lines):
        if last and not line.endswith(b"\\\n"):
            break
        last.insert(0, line)
    return last
