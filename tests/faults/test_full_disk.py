"""A temporary disk without room: one sentence, nothing half done, and the next run finishes."""

from __future__ import annotations

import errno
import multiprocessing
import os
from typing import Any

import loading_world as world
import pytest
from support import Stack

from storage.settings import Settings

PAGE = 4096  # bytes: less than that no disk has


@pytest.fixture(scope="module")
def settings(stack: Stack) -> Settings:
    return stack.settings("loader")


@pytest.fixture(scope="module")
def calm(settings: Settings) -> dict[str, list[Any]]:
    for generation in (1, 2):
        world.load("calm", generation, settings)
    return world.tables("calm", settings)


def _may_mount(talk: Any) -> None:
    try:
        with world.small_disk(PAGE):
            talk.send("")
    except OSError as error:
        talk.send(error.strerror)


def test_the_disk_is_really_full(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the tests below rely on, in a process of its own, as it changes what is mounted."""
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_fills, args=(theirs,))
    child.start()
    assert ours.recv() == errno.ENOSPC
    child.join()


def _fills(talk: Any) -> None:
    import tempfile

    try:
        with world.small_disk(PAGE), tempfile.TemporaryFile() as file:
            file.write(os.urandom(2 * PAGE))
            file.flush()
    except OSError as error:
        talk.send(error.errno)
    else:
        talk.send(0)
