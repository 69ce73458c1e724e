"""What tests share besides fixtures: a handle on the embedded stack of the session."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from infra.embedded import stack as embedded
from infra.embedded.home import random_free
from storage.settings import Role, Settings, for_role

STORES = ("postgres", "cache", "stream", "documents", "objects")


@dataclass
class Stack:
    """The embedded stack of this test session; servers start when a test first needs them."""

    home: Path
    started: set[str] = field(default_factory=set)

    def need(self, *services: str) -> None:
        """Start these (and what they need) unless they run."""
        if not self.started.issuperset(services):
            embedded.up(self.home, only=self.started | set(services), progress=print)
            self.started |= set(services)

    def settings(self, role: Role) -> Settings:
        return for_role(role)


@contextmanager
def temporary_stack() -> Iterator[Stack]:
    """The stores, empty and migrated, in a temporary folder on free ports; ended afterwards."""
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
