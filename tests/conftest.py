"""Fixtures: the embedded stack, real and started once for the whole session, in a temporary folder on free ports."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import Stack, temporary_stack

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"

# A shell ignores Ctrl-C on behalf of what it starts in the background, and children inherit that: tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def session_stack() -> Iterator[Stack]:
    """The stores of this session (of this worker, when tests run side by side)."""
    with temporary_stack() as running:
        yield running


@pytest.fixture(scope="module")
def stack(session_stack: Stack) -> Stack:
    """The stores, empty and migrated, whatever the modules before have left in them."""
    session_stack.spare()
    session_stack.reset()
    return session_stack


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data; tests that need it skip where it is not."""
    if not SHARED.is_dir():
        pytest.skip(f"the real data is not at {SHARED}")
    return SHARED
