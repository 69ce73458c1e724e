"""Benchmarks: what is measured, and beside which peer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Benchmark:
    """One comparison. ``ours`` and ``peer`` each do ``amount`` units of the same work; ``check`` compares results.

    They may give the seconds that count; else all that they take counts. What comes ``before`` does not.
    """

    name: str
    unit: str  # of the rate: rows/s, files/s
    amount: float
    ours: Callable[[], float | None]
    peer: Callable[[], float | None]
    peer_name: str
    bound: float  # ours over peer, at least
    check: Callable[[], None]
    versions: dict[str, str] = field(default_factory=dict)
    before_ours: Callable[[], None] = lambda: None
    before_peer: Callable[[], None] = lambda: None
