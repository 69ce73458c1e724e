"""Text as people publish it: read line by line, and cleaned without knowing its language.

Cleaning has two steps that are kept apart: :func:`clean` repairs what no reader sees (compositions, invisible
characters, odd spaces) and keeps every letter and mark; :func:`normalise` goes on to a form that only comparisons use,
in which sentences that differ in case, width, quotes, dashes or outer punctuation are the same.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from storage.errors import Problem

_INVISIBLE = dict.fromkeys(
    [0x00AD, 0x200B, 0x2060, 0xFEFF, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
)  # soft hyphen, zero-width space, word joiner, BOM, direction marks; joiners that spell (ZWJ, ZWNJ) stay
_SPACES = re.compile(r"\s+")
_QUOTES = str.maketrans(dict.fromkeys("«»„“”‟‹›″〝〞＂", '"') | dict.fromkeys("‘’‚‛′`´", "'"))
_DASHES = str.maketrans(dict.fromkeys("‐‑‒–—―−", "-"))


def lines(body: bytes, name: str) -> list[str]:
    """The lines of a text in UTF-8, whether or not the last one is ended. Raises Problem that names the line."""
    try:
        text = body.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = body[: error.start].count(b"\n") + 1
        raise Problem(f"{name}, line {line}, is no UTF-8", "Convert the file first, with iconv for example") from error
    return text.removesuffix("\n").split("\n") if text else []


def read_lines(path: Path) -> list[str]:
    """:func:`lines` of a file. Raises Problem for one that cannot be read."""
    try:
        return lines(path.read_bytes(), str(path))
    except OSError as error:
        raise Problem(f"cannot read {path}: {error.strerror}", "Name a text file that exists") from error


def clean(text: str) -> str:
    """Unicode NFC, one kind of space between words, no control or invisible characters, no space at the ends."""
    text = unicodedata.normalize("NFC", text).translate(_INVISIBLE)
    text = "".join(" " if unicodedata.category(char) in ("Cc", "Zs", "Zl", "Zp") else char for char in text)
    return _SPACES.sub(" ", text).strip()


def normalise(text: str) -> str:
    """A key for comparing sentences in any script: NFKC, case folded, plain quotes and dashes, no outer punctuation.

    Empty for text without a letter or digit.
    """
    text = unicodedata.normalize("NFKC", clean(text).translate(_QUOTES).translate(_DASHES)).casefold()
    text = unicodedata.normalize("NFKC", text)  # folding can leave a decomposed letter, as it does in Turkish
    start, end = 0, len(text)
    while start < end and not _spells(text[start]):
        start += 1
    while end > start and not _spells(text[end - 1]):
        end -= 1
    return _SPACES.sub(" ", text[start:end])


def _spells(char: str) -> bool:
    return unicodedata.category(char)[0] in "LNM"
