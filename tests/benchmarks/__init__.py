"""Benchmarks: what is measured, and beside which peer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Benchmark:
    """One comparison. ``ours`` and ``peer`` each do ``amount`` units of the same work; ``check`` compares results."""

    name: str
    unit: str  # of the rate: rows/s, files/s
    amount: float
    ours: Callable[[], None]
    peer: Callable[[], None]
    peer_name: str
    bound: float  # ours over peer, at least
    check: Callable[[], None]
    versions: dict[str, str] = field(default_factory=dict)
