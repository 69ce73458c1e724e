"""Whose fault it is that things cannot be had: their own, or that of their server."""

from __future__ import annotations

import pytest

from ingestion.trouble import ENOUGH, Trouble
from storage.errors import Problem, Unusable

BUSY = Problem("x answered 503", "Run it again later")


def played(events: str) -> tuple[list[str], int, bool]:
    """What is at fault itself, what waits, and whether the server is left alone: . came, ! is unusable, x failed."""
    trouble = Trouble[str]()
    away = False
    for number, event in enumerate(events):
        if event == ".":
            trouble.came("a")
        else:
            trouble.failed(str(number), Unusable("too large") if event == "!" else BUSY, "a")
        away = away or trouble.away("a")
    waiting = trouble.rest()
    return [thing for thing, _ in trouble.own], len(waiting), away


@pytest.mark.parametrize(
    ("events", "own", "waiting", "away"),
    [
        ("....", [], 0, False),
        ("x...", ["0"], 0, False),
        ("...x", ["3"], 0, False),
        ("x", [], 1, False),
        ("!", ["0"], 0, False),
        ("xx.x.", ["0", "1", "3"], 0, False),
        ("..xxxx", [], 4, True),
        ("x.!xxxx", ["0", "2"], 4, True),
        ("!!!!!!.", ["0", "1", "2", "3", "4", "5"], 0, False),
    ],
)
def test_what_others_come_besides_is_at_fault_itself(events: str, own: list[str], waiting: int, away: bool) -> None:
    assert played(events) == (own, waiting, away)


def test_one_server_s_trouble_is_not_another_s() -> None:
    trouble = Trouble[str]()
    for number in range(ENOUGH):
        trouble.failed(str(number), BUSY, "away")
    trouble.came("here")
    assert trouble.away("away") and not trouble.away("here")
    assert len(trouble.rest()) == ENOUGH and trouble.own == []
