"""What tests share besides fixtures: a handle on the embedded stack of the session."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from infra.embedded import stack as embedded
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
