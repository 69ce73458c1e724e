"""Tasks: their names, the rule for label sets, and refusals."""

from __future__ import annotations

import pytest

from ml import tasks
from ml.datasets.freeze import LAYOUTS
from storage.errors import Problem


def test_every_family_has_a_task_and_every_task_a_layout() -> None:
    assert {one.family for one in tasks.TASKS} == set(tasks.FAMILIES)
    for one in tasks.TASKS:
        assert one.mart in LAYOUTS
        assert tasks.task(one.name) == one
        assert one in tasks.tasks_of(one.family)


def test_a_label_set_is_a_task() -> None:
    garden = tasks.task("birds-garden_2024")
    assert (garden.family, garden.where) == ("birds", "label_set = 'garden_2024'")


@pytest.mark.parametrize("name", ["", "birds", "birds-", "birds-a'b", "birds-../x", "birds-a b", "opera", "music-jazz"])
def test_other_names_are_refused_with_the_right_ones(name: str) -> None:
    with pytest.raises(Problem, match="birds-aviary, music-chorales, translation-en-ru"):
        tasks.task(name)


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(Problem, match="birds, music, translation"):
        tasks.tasks_of("opera")
