"""Fixtures: the embedded stack, real and started once for the whole session, in a temporary folder on free ports."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import STORES, Stack

from infra.embedded import stack as embedded
from infra.embedded.home import random_free

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """The stores, empty and migrated."""
    home = Path(tempfile.mkdtemp(prefix="lyre-"))  # short: a socket's path may have 100 characters
    home.chmod(0o755)
    taken: set[int] = set()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("LYREBIRD_")]:
            patch.delenv(name)
        for name in ("POSTGRES", "CACHE", "STREAM", "DOCUMENTS", "OBJECTS", "MLFLOW", "AIRFLOW", "PAGES"):
            port = random_free(avoid=taken)
            taken.add(port)
            patch.setenv(f"LYREBIRD_PORT_{name}", str(port))
        patch.setenv("LYREBIRD_HOME", str(home))
        running = Stack(home)
        try:
            running.need(*STORES)
            yield running
        finally:
            embedded.down(home)
            shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data; tests that need it skip where it is not."""
    if not SHARED.is_dir():
        pytest.skip(f"the real data is not at {SHARED}")
    return SHARED
