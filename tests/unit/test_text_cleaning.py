"""Cleaning keeps what people read, and normalising compares what they mean, in any script."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, seed
from hypothesis import strategies as st

from storage.media.text import clean, normalise

TEXTS = st.text(st.characters(codec="utf-8"), max_size=60)


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [
        ("  Zwei\u00a0Männer \t stehen\n", "Zwei Männer stehen"),
        ("cafe\u0301", "café"),
        ("\ufeffSil\u00adben\u200btrennung", "Silbentrennung"),
        ("a\x00b\x07c", "a b c"),
        ("Ёж — «колючий»…", "Ёж — «колючий»…"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("", ""),
    ],
)
def test_clean(given_text: str, expected: str) -> None:
    assert clean(given_text) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("«Привет!»", "привет"),
        ("Don’t  stop.", "don't stop"),
        ("ＡＢＣ　１２", "abc 12"),
        ("Straße", "STRASSE"),
        ("Nord–Süd", "nord-süd"),
        ("¿Qué?", "qué"),
    ],
)
def test_normalise_makes_equals(one: str, other: str) -> None:
    assert normalise(one) == normalise(other) != ""


def test_normalise_keeps_what_differs() -> None:
    assert len({normalise(text) for text in ("ёлка", "елка", "don't", "dont", "résumé", "resume")}) == 6
    assert normalise("… — !") == ""


@seed(7)
@given(TEXTS)
def test_both_are_done_after_one_time(text: str) -> None:
    assert clean(clean(text)) == clean(text)
    assert unicodedata.is_normalized("NFC", clean(text))
    assert normalise(normalise(text)) == normalise(text)
