"""Whose fault it is that a thing cannot be had: its own, or that of the server it lies on.

What is refused, too large, too slow or damaged is Unusable, and says so. All else may be trouble of the server, which
passes: the thing waits for the next run. But one that never comes must not keep those behind it from coming. So the
others are asked for all the same: when the server gives them, the fault is that of the one; when several in a row
fail, it is the server's, and it is left alone.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from storage.errors import Problem, Unusable

ENOUGH = 4  # failures in a row that are the server's
MOST = 100  # things that a run may find at fault themselves: then it ends, and the next one goes on
AGAIN_DAYS = 7  # until what was noted is tried again

T = TypeVar("T")


class Trouble(Generic[T]):
    """What could not be had in a run. ``own`` are things that are to blame themselves, and why."""

    def __init__(self) -> None:
        self.own: list[tuple[T, str]] = []
        self._open: dict[str, list[tuple[T, Problem]]] = {}  # by server, since it last gave something
        self._given: set[str] = set()  # servers

    def came(self, server: str = "") -> None:
        """The server gave something: what it did not give before is that thing's fault."""
        self._given.add(server)
        self.own += [(thing, problem.what) for thing, problem in self._open.pop(server, [])]

    def failed(self, thing: T, problem: Problem, server: str = "") -> None:
        if isinstance(problem, Unusable):
            self.own.append((thing, problem.what))
        else:
            self._open.setdefault(server, []).append((thing, problem))

    @property
    def too_many(self) -> bool:
        """Whether so much cannot be had that something else may be wrong, and it is time to stop."""
        return len(self.own) >= MOST

    def away(self, server: str = "") -> bool:
        """Whether the server is to be left alone for this run."""
        return len(self._open.get(server, ())) >= ENOUGH

    def rest(self) -> list[Problem]:
        """At the end: what is wrong with servers. What they did not give waits for the next run."""
        for server in [one for one in self._open if one in self._given and not self.away(one)]:
            self.came(server)
        return [problem for failed in self._open.values() for _, problem in failed]
