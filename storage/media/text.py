"""Text as people publish it, cleaned without knowing its language.

Two steps that are kept apart: :func:`clean` repairs what no reader sees (compositions, invisible characters, odd
spaces) and keeps every letter and mark; :func:`normalise` goes on to a form that only comparisons use, in which
sentences that differ in case, width, quotes, dashes or outer punctuation are the same.
"""

from __future__ import annotations

import re
import unicodedata

_INVISIBLE = dict.fromkeys(
    [0x00AD, 0x200B, 0x2060, 0xFEFF, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
)  # soft hyphen, zero-width space, word joiner, BOM, direction marks; joiners that spell (ZWJ, ZWNJ) stay
_SPACES = re.compile(r"\s+")
_QUOTES = str.maketrans(dict.fromkeys("«»„“”‟‹›″〝〞＂", '"') | dict.fromkeys("‘’‚‛′`´", "'"))
_DASHES = str.maketrans(dict.fromkeys("‐‑‒–—―−", "-"))


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
