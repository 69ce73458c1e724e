"""A temporary disk without room: one sentence, nothing half done, and the next run with more room goes on."""

from __future__ import annotations

from typing import Any

import loading_world as world
import pytest

from storage.settings import Settings

PAGE = 4096  # bytes: no disk has less


@pytest.mark.parametrize("limit", ["disk", "file"])
def test_a_full_temporary_disk_is_a_sentence_and_loses_nothing(
    calm: dict[str, list[Any]], settings: Settings, limit: str
) -> None:
    """``disk``: a real disk of some pages. ``file``: no file may become longer, as under a quota."""
    name = f"full_{limit}"
    ended: list[tuple[int | None, str]] = []  # how each run ended, and the stage that it had reached
    for generation in (1, 2):
        for pages in (1, 2, 4, 8):
            code, words = world.run(name, generation, settings, **{limit: pages * PAGE})
            assert code in (0, 1), words[-1]
            if code:
                assert "the disk is full" in words[-1] and "Free some space" in words[-1], words[-1]
            stages = [word for word in words if word in world.STAGES]
            ended.append((code, stages[-1] if stages else "began"))
        code, words = world.run(name, generation, settings)
        assert code == 0, words[-1]
    full = {stage for code, stage in ended if code}
    assert len(full) >= 2, ended  # it was full at several places on the way
    found = world.differences(calm, world.tables(name, settings))
    assert found == {}, found
