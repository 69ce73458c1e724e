"""Fixtures that several modules of the fault suite share; one that needs others of its own names them alike."""

from __future__ import annotations

from typing import Any

import loading_world as world
import pytest
from support import Stack

from storage.settings import Settings


@pytest.fixture(scope="module")
def settings(stack: Stack) -> Settings:
    return stack.settings("loader")


@pytest.fixture(scope="module")
def calm(settings: Settings) -> dict[str, list[Any]]:
    """What two generations of the source come to, loaded with nothing in the way."""
    for generation in (1, 2):
        world.load("calm", generation, settings)
    return world.tables("calm", settings)
