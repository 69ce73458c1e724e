"""What is learnt from accepted profiles: which numbers have to be where, and how much they may move."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg2 import sql as quoted

from storage.gates.profile import Column
from storage.gates.ranges import Bound, bounds, divergence, with_drift

COLUMNS = {name: Column(name, kind, quoted.Identifier(name)) for name, kind in (("title", "text"), ("day", "date"))}


def profile(rows: int = 400, **changes: Any) -> dict[str, Any]:
    """A table of texts, of three kinds, and of days; ``changes`` as ``title__filled=0.5``."""
    measure = {"mean": 20.0, "spread": 4.0, "low": 8.0, "high": 40.0, "edges": [], "below": []}
    title = {"filled": 0.9, "distinct": 0.01, "values": 3, "digits": 0.0, "capitals": 0.1, "bytes": 1.0, "strange": 0.0}
    title |= {"shares": {"a": 0.5, "b": 0.3, "c": 0.2}, "measure": measure}
    day = {"filled": 1.0, "distinct": 0.5, "values": 200}
    day |= {"measure": measure | {"mean": 19_900.0, "spread": 60.0, "low": 19_800.0, "high": 20_000.0}}
    columns: dict[str, dict[str, Any]] = {"title": title, "day": day}
    for name, value in changes.items():
        column, number = name.split("__")
        if number in ("mean", "spread", "high"):
            columns[column]["measure"] = columns[column]["measure"] | {number: value}
        else:
            columns[column] = columns[column] | {number: value}
    return {"rows": rows, "columns": columns}


def broken(history: list[dict[str, Any]], now: dict[str, Any], mode: str = "merge") -> dict[str, str]:
    return {bound.number: bound.severity for bound in bounds(history, now, COLUMNS, mode) if not bound.holds()}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"rows": 200}, {"rows": "critical"}),
        ({"title__filled": 0.8}, {"title: filled": "warning"}),
        ({"title__filled": 0.2}, {"title: filled": "warning", "title: filled at least": "critical"}),
        ({"title__mean": 23.0}, {"title: mean": "warning"}),
        ({"title__spread": 0.0}, {"title: spread": "warning"}),
        ({"title__shares": {"a": 0.48, "b": 0.3, "c": 0.2, "d": 0.02}}, {"title: new values": "warning"}),
        ({"title__shares": {"a": 0.2, "b": 0.1, "c": 0.7}}, {"title: categories": "warning"}),
        ({"title__bytes": 1.3}, {"title: bytes": "warning"}),
        ({"title__strange": 0.1}, {"title: strange characters": "warning"}),
        ({"day__mean": 19_960.0, "day__spread": 200.0, "day__high": 20_100.0}, {}),  # time goes on
        ({"day__mean": 19_860.0}, {"day: mean": "warning"}),
        ({"day__values": 1}, {"day: values": "warning"}),
        ({"day__high": 19_950.0}, {"day: newest": "warning"}),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_as_it_was_is_told(changes: dict[str, Any], expected: dict[str, str]) -> None:
    assert broken([profile()], profile(**changes)) == expected


def test_without_a_history_only_rows_are_asked_for() -> None:
    assert [bound.number for bound in bounds([], profile(), COLUMNS, "merge")] == ["rows"]
    assert [bound.number for bound in bounds([profile(30)], profile(30), COLUMNS, "merge")] == ["rows"]
    assert broken([], profile(0)) == {"rows": "critical"}


def test_few_rows_are_judged_once_enough_of_them_were_accepted() -> None:
    few = [profile(30) for _ in range(5)]
    assert broken(few, profile(30, title__filled=0.5)).keys() == {"title: filled", "title: filled at least"}
    assert broken(few, profile(30)) == {}


def test_what_has_moved_before_may_move_again() -> None:
    moving = [profile(title__mean=20.0 + 5 * (number % 2)) for number in range(6)]
    assert broken(moving, profile(title__mean=25.0)) == {}
    assert broken(moving, profile(title__mean=60.0)) == {"title: mean": "warning"}
    growing = [profile(400 + 100 * number) for number in range(6, 0, -1)]
    assert broken(growing, profile(1_100)) == {}
    assert broken(growing, profile(2_500)) == {"rows beside what is usual": "warning"}


def test_rows_of_a_load_are_beside_what_loads_have_and_no_state() -> None:
    assert broken([profile(400)], profile(120), "append") == {}
    steady = [profile(400) for _ in range(6)]
    assert broken(steady, profile(200), "append") == {"rows beside what is usual": "warning"}
    assert broken(steady, profile(0), "append") == {"rows": "critical"}


def test_a_value_that_was_there_once_is_not_new() -> None:
    rare = profile(title__shares={"a": 0.5, "b": 0.3, "c": 0.15, "d": 0.05})
    assert "title: new values" not in broken([profile(), rare], rare)


def test_how_new_values_usually_are_is_learnt() -> None:
    history: list[dict[str, Any]] = []
    for number in range(6):
        history.insert(0, with_drift(history, profile(title__shares={"a": 0.9, f"other {number}": 0.1})))
    assert "title: new values" not in broken(history, profile(title__shares={"a": 0.9, "another": 0.1}))
    assert "title: new values" in broken(history, profile(title__shares={"a": 0.7, "another": 0.3}))


def test_divergence_is_none_for_the_same_and_finite_for_what_was_never_there() -> None:
    assert divergence([0.5, 0.5], [0.5, 0.5]) == 0
    little, much, all_of_it = ([0.5, 0.5], [0.4, 0.6]), ([0.5, 0.5], [0.0, 1.0]), ([1.0, 0.0], [0.0, 1.0])
    assert 0 < divergence(*little) < divergence(*much) < divergence(*all_of_it) < 10


def test_a_range_has_one_end_or_two() -> None:
    assert Bound("n", 1.0, None, 1.0, "warning", "").holds()
    assert not Bound("n", 1.1, None, 1.0, "warning", "").holds()
    assert not Bound("n", 0.9, 1.0, None, "warning", "").holds()
