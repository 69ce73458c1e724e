"""A double of the downloads of https://www.manythings.org/anki/, on loopback.

Copied from lines of the real files that public repositories quote (read 2026-11; the newest of 2025): a zip
``<language>-eng.zip`` holds ``<language>.txt`` and ``_about.txt``; a line is English, tab, the other language, tab, and
``CC-BY 2.0 (France) Attribution: tatoeba.org #2877272 (CM) & #8597805 (Roujin)``. The page is a list of links to them.

Beside those lines the pairs are made up. Files of before 2019, which had no attribution, are what ``old`` gives.
"""

from __future__ import annotations

import io
import random
import zipfile
from dataclasses import dataclass
from typing import Any

from upstreams.faulty_server import FaultyServer, Reply

ABOUT = "These sentence pairs are from the Tatoeba Project, CC-BY 2.0 (France).\n"
PUBLIC = (  # as published
    ("deu", "Go.", "Geh.", 2877272, "CM", 8597805, "Roujin"),
    ("rus", "Go.", "Марш!", 2877272, "CM", 1159202, "shanghainese"),
    ("rus", "Go.", "Иди.", 2877272, "CM", 5898247, "marafon"),
    ("spa", "Hi.", "Hola.", 538123, "CM", 431975, "Leono"),
    ("spa", "Run!", "¡Corre!", 906328, "papabear", 1685404, "Elenitigormiti"),
)


@dataclass
class Pair:
    language: str
    english: str
    translation: str
    sentence: int
    contributor: str
    other: int
    translator: str

    @property
    def attribution(self) -> str:
        return (
            f"CC-BY 2.0 (France) Attribution: tatoeba.org #{self.sentence} ({self.contributor})"
            f" & #{self.other} ({self.translator})"
        )

    def row(self) -> dict[str, Any]:
        """The pair as it is to arrive."""
        return {
            "language": self.language,
            "sentence_id": self.sentence,
            "translation_id": self.other,
            "english": self.english,
            "translation": self.translation,
            "contributor": self.contributor,
            "translator": self.translator,
            "licence": "CC-BY 2.0 (France)",
            "attribution": self.attribution,
        }


def made(count: int, seed: int = 5) -> list[Pair]:
    """The public lines, and so many made up for each language."""
    rng = random.Random(seed)
    found = [Pair(*line) for line in PUBLIC]
    numbers = iter(rng.sample(range(10_000, 99_999_999), 6 * count))
    for language, words in (("deu", "Wie geht es dir heute"), ("rus", "Как твои дела сегодня"), ("spa", "Qué tal")):
        for _ in range(count):
            one, other = next(numbers), next(numbers)
            text = " ".join(rng.choices(words.split(), k=4))
            found.append(Pair(language, f"How is number {one}?", f"{text} {other}?", one, "CK", other, "q'\"w,e"))
    return found


class Manythings(FaultyServer):
    """The double: the files of ``pairs``; ``extra`` are lines that are added to every file as they are."""

    def __init__(self, pairs: list[Pair]) -> None:
        super().__init__()
        self.every = 2
        self.pairs = pairs
        self.extra: tuple[bytes, ...] = ()
        self.old = False

    def file(self, language: str) -> bytes:
        lines = [
            f"{one.english}\t{one.translation}" + ("" if self.old else f"\t{one.attribution}")
            for one in self.pairs
            if one.language == language
        ]
        text = "".join(f"{line}\n" for line in [*lines, *lines[-1:]]).encode() + b"".join(self.extra)
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, body in (("_about.txt", ABOUT.encode()), (f"{language}.txt", text)):
                archive.writestr(zipfile.ZipInfo(name), body, zipfile.ZIP_DEFLATED)
        return packed.getvalue()

    def answer(self, path: str, _: dict[str, str]) -> Reply:
        languages = sorted({one.language for one in self.pairs})
        if path == "/anki/":
            links = "".join(f'<li><a href="{name}-eng.zip">{name}</a></li>' for name in languages)
            return Reply(200, f"<html><ul>{links}</ul></html>".encode(), "text/html")
        language = path.removeprefix("/anki/").removesuffix("-eng.zip")
        if path == f"/anki/{language}-eng.zip" and language in languages:
            return Reply(200, self.file(language), "application/zip")
        return Reply(404, b"<html>not found</html>", "text/html")
