"""What a table may look like, learnt from the profiles that were accepted before: a range for each of its numbers.

A range is about the last accepted value. How wide it is depends on three things: on what is worth telling at all (an
effect, such as half a standard deviation); on what chance does to so many rows; and, once there is a history, on how
much the number has moved from one accepted profile to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import pstdev
from typing import Any

from psycopg2 import sql as quoted

from storage.gates.profile import STRANGE, TIMES, Column, mass, measure

Profile = Mapping[str, Any]
ENOUGH = 100  # rows from which on a distribution says something by itself
HISTORY = 5  # accepted profiles from which on their own movement says what is usual
KEPT = 12  # accepted profiles that are looked at
FEW = 20  # rows up to which a change of size says nothing by itself
SHRINK, GROW = 0.6, 4.0  # a snapshot may become so much smaller or larger from one load to the next
CHANCE = 4.0  # standard errors that chance may move a number


@dataclass(frozen=True)
class Bound:
    """A range that one number of a profile has to be in; ``rows`` picks the rows that speak against it."""

    number: str  # such as "title: filled"
    value: float
    low: float | None
    high: float | None
    severity: str
    notes: str
    rows: quoted.Composable | None = None

    def holds(self) -> bool:
        return (self.low is None or self.value >= self.low) and (self.high is None or self.value <= self.high)


def bounds(history: Sequence[Profile], now: Profile, columns: Mapping[str, Column], mode: str) -> list[Bound]:
    """The ranges for a profile; ``history`` is what was accepted before, the latest first.

    ``mode``: ``append`` where the rows are those of one load, else they are a state, which grows or stays.
    """
    found = size(history, now, mode)
    if not history or not (len(history) >= HISTORY or min(history[0]["rows"], now["rows"]) >= ENOUGH):
        return found
    for name, entry in now["columns"].items():
        known = [past["columns"][name] for past in history if name in past["columns"]]
        if known and name in history[0]["columns"] and name in columns:
            past_rows = [past["rows"] for past in history if name in past["columns"]]
            found += _Learnt(name, columns[name], known, entry, past_rows[0], now["rows"]).bounds()
    return found


def size(history: Sequence[Profile], now: Profile, mode: str) -> list[Bound]:
    """How many rows there may be: never none; a state not much fewer than before; and about what is usual."""
    old = history[0]["rows"] if history else 0
    if mode == "append" or old < FEW:
        low, high, told = 1.0, None, "there are rows"
    else:
        low, high = float(int(SHRINK * old)), GROW * old if mode == "replace" else None
        told = f"there were {old:,} rows before"
    found = [Bound("rows", now["rows"], low, high, "critical", told)]
    if len(history) >= HISTORY and min(past["rows"] for past in history) > 0 and now["rows"] > 0:
        steps = [math.log(after["rows"] / before["rows"]) for after, before in pairwise(history)]
        usual = max(0.1, 4 * pstdev(steps), 1.5 * max(map(abs, steps)))
        found.append(
            Bound(
                *("rows beside what is usual", now["rows"] / old, math.exp(-usual), math.exp(usual), "warning"),
                f"from one to the next the rows changed by a factor of at most {math.exp(usual):.2f}",
            )
        )
    return found


@dataclass(frozen=True)
class _Learnt:
    """The ranges of one column."""

    name: str
    column: Column
    history: Sequence[Mapping[str, Any]]  # of this column, the latest first
    now: Mapping[str, Any]
    rows_before: int
    rows: int

    def bounds(self) -> Iterator[Bound]:
        yield from self._filled()
        yield from self._distinct()
        yield from self._texts()
        yield from self._categories()
        for kind in ("measure", "reading"):
            yield from self._measured(kind)

    def _bound(
        self,
        what: str,
        value: float,
        low: float | None,
        high: float | None,
        told: str,
        rows: str | quoted.Composable | None = None,
        severity: str = "warning",
    ) -> Bound:
        if isinstance(rows, str):
            rows = quoted.SQL(rows).format(self.column.expression)
        return Bound(f"{self.name}: {what}", value, low, high, severity, f"{self.name}: {told}", rows)

    def _usual(self, of: Callable[[Mapping[str, Any]], float | None]) -> float | None:
        """How far a number moves from one accepted profile to the next; None as long as there is too little to say."""
        values = [value for value in map(of, self.history) if value is not None]
        if len(values) < HISTORY:
            return None
        return max(4 * pstdev(values), 1.5 * max(abs(left - right) for left, right in pairwise(values)))

    def _width(self, effect: float, chance: float, of: Callable[[Mapping[str, Any]], float | None]) -> float:
        """How far a number may be from the last accepted: an effect worth telling, beyond chance and what is usual."""
        usual = self._usual(of)
        return max(effect, usual or 0.0, CHANCE * chance)

    def _filled(self) -> Iterator[Bound]:
        old = self.history[0]["filled"]
        if old == 0:
            return
        chance = math.sqrt(max(old * (1 - old), 0.01) * (1 / max(self.rows, 1) + 1 / max(self.rows_before, 1)))
        width = self._width(max(0.03, 1.5 / max(self.rows, 1)), chance, lambda past: past["filled"])
        told = f"was filled to {old:.0%}"
        yield self._bound("filled", self.now["filled"], old - width, None, told, "{0} is null")
        if old > 0.5:
            low = old - max(0.2, width)
            yield self._bound("filled at least", self.now["filled"], low, None, told, "{0} is null", "critical")

    def _distinct(self) -> Iterator[Bound]:
        least = min(past["values"] for past in self.history)
        if least > 2 and self.rows >= FEW and self.now["values"]:
            told = f"never had fewer than {least} values"
            yield self._bound("values", self.now["values"], 2, None, told)
        old = self.history[0].get("distinct")
        if self.column.kind != "text" or old is None or old < 0.5 or not self.now["values"]:
            return
        filled = max(1.0, self.rows * self.now["filled"])
        width = self._width(0.05, math.sqrt(old * (1 - old) / filled), lambda past: past.get("distinct"))
        again = (
            "{0} in (select value from (select {0} as value from audited) as q where value is not null "
            "group by value having count(*) > 1)"
        )
        yield self._bound(
            "distinct", self.now["distinct"], old - width, None, f"{old:.0%} of the values differed", again
        )

    def _texts(self) -> Iterator[Bound]:
        old = self.history[0]
        if "strange" not in old or "strange" not in self.now:
            return
        filled = max(1.0, self.rows * self.now["filled"])
        for what, effect in (("digits", 0.1), ("capitals", 0.1), ("bytes", 0.1)):
            if old.get(what) is None or self.now.get(what) is None:
                continue
            width = self._width(effect, 0.3 / math.sqrt(filled), lambda past, what=what: past.get(what))  # type: ignore[misc]
            told = f"{what} a character were {old[what]:.2f}"
            yield self._bound(what, self.now[what], old[what] - width, old[what] + width, told)
        width = self._width(0.005, 0.2 / filled, lambda past: past.get("strange"))
        yield self._bound(
            *("strange characters", self.now["strange"], None, old["strange"] + width),
            "holds signs of a wrong encoding",
            f"{{0}} ~ '{STRANGE}'",
        )

    def _categories(self) -> Iterator[Bound]:
        old, now = self.history[0].get("shares"), self.now.get("shares")
        if not old:
            return
        known = {value for past in self.history for value in past.get("shares") or {}}
        filled = max(1.0, self.rows * self.now["filled"])
        new = unknown(known, now) if now else 1.0
        usual = 1.5 * max(past.get("new", 0.0) for past in self.history)
        listed = quoted.SQL(", ").join(map(quoted.Literal, sorted(known)))
        others = quoted.SQL("{}::text not in ({})").format(self.column.expression, listed)
        yield self._bound(
            "new values", new, None, 0.01 + 3 / filled + usual, "has values that were never there", others
        )
        if now:
            values = sorted(known | now.keys())
            before, after = ([shares.get(value, 0.0) for value in values] for shares in (old, now))
            yield self._drift("categories", before, after, lambda past: past.get("drift"))

    def _measured(self, kind: str) -> Iterator[Bound]:
        old, now = self.history[0].get(kind), self.now.get(kind)
        what = "" if kind == "measure" else "as a number, "
        if kind == "reading" and old and not now and self.now["filled"]:
            yield self._bound("reads as a number or a date", 0.0, 0.5, None, "read as numbers or dates")
        if not old or not now or old["spread"] is None:
            return
        filled = max(1.0, self.rows * self.now["filled"])
        spread = old["spread"]
        dated = self.column.kind in TIMES or (kind == "reading" and 3_000 < old["mean"] < 40_000 and spread > 1)
        # where all values were the same, one may differ; and time goes on, so that it is only to go back that is told
        least = 1.0 if dated else 0.02 * abs(old["mean"])

        def moved(past: Mapping[str, Any], number: str) -> float | None:
            found: float | None = past.get(kind, {}).get(number)
            return found

        width = self._width(max(0.5 * spread, least), spread / math.sqrt(filled), lambda past: moved(past, "mean"))
        beyond = self._beyond(kind, old)
        yield self._bound(
            *(f"{what}mean", now["mean"], old["mean"] - width, None if dated else old["mean"] + width),
            f"{what}the mean was {old['mean']:.4g}",
            beyond,
        )
        if spread > 0 and not dated:
            wide = max(math.log(2.0), CHANCE / math.sqrt(2 * filled))
            spreads = [value for past in self.history if (value := moved(past, "spread"))]
            if len(spreads) >= HISTORY:
                steps = [abs(math.log(left / right)) for left, right in pairwise(spreads)]
                wide = max(math.log(2.0), 2 * max(steps))
            yield self._bound(
                *(f"{what}spread", now["spread"], spread * math.exp(-wide), spread * math.exp(wide)),
                f"{what}the standard deviation was {spread:.4g}",
                beyond,
            )
            if now.get("then") and old.get("below"):
                yield self._drift(
                    *(f"{what}distribution", mass(old["below"]), mass(now["then"])),
                    lambda past: moved(past, "drift"),
                )
        if dated:
            reach = self._width(0.05 * (old["high"] - old["low"]), 0.0, lambda past: moved(past, "high"))
            yield self._bound(
                *("newest", now["high"], old["high"] - max(reach, 1.0), None), "goes back behind what was there"
            )

    def _beyond(self, kind: str, old: Mapping[str, Any]) -> quoted.Composable | None:
        """Rows whose value lies outside of what was there."""
        if kind == "reading":
            return None
        limits = map(quoted.Literal, (old["low"], old["high"]))
        return quoted.SQL("({0} < {1} or {0} > {2})").format(measure(self.column), *limits)

    def _drift(
        self,
        what: str,
        old: Sequence[float],
        now: Sequence[float],
        of: Callable[[Mapping[str, Any]], float | None],
    ) -> Bound:
        found = divergence(old, now)
        filled = max(1.0, self.rows * self.now["filled"])
        chance = len(old) / 2 * (1 / filled + 1 / max(1.0, self.rows_before * self.history[0]["filled"]))
        drifts = [value for value in map(of, self.history) if value is not None]
        usual = 3 * max(drifts) if len(drifts) >= HISTORY - 1 else 4 * chance
        told = "the values are shared out about as before (Kullback-Leibler divergence in nats)"
        return self._bound(what, found, None, max(0.1, usual), told)


def divergence(old: Sequence[float], now: Sequence[float]) -> float:
    """Kullback-Leibler divergence of ``now`` from ``old``, in nats; a little is added to each share, so that it is
    finite.
    """
    little = 1e-3
    total = 1 + little * len(old)
    pairs = [((b + little) / total, (a + little) / total) for a, b in zip(old, now, strict=True)]
    return sum(p * math.log(p / q) for p, q in pairs)


def unknown(known: Collection[str], shares: Mapping[str, float]) -> float:
    """The share of values that are not known."""
    return sum(share for value, share in shares.items() if value not in known)


def with_drift(history: Sequence[Profile], now: dict[str, Any]) -> dict[str, Any]:
    """The profile, with what is learnt about its movement noted beside: how far each distribution is from the last
    accepted one, and the share of values that are new.
    """
    before = history[0]["columns"] if history else {}
    for name, entry in now["columns"].items():
        old = before.get(name, {})
        if old.get("shares") and entry.get("shares"):
            known = {value for past in history for value in past["columns"].get(name, {}).get("shares") or {}}
            entry["new"] = unknown(known, entry["shares"])
        if old.get("shares") and entry.get("shares"):
            values = sorted(old["shares"].keys() | entry["shares"].keys())
            entry["drift"] = divergence(*([of["shares"].get(value, 0.0) for value in values] for of in (old, entry)))
        for kind in ("measure", "reading"):
            if entry.get(kind, {}).get("then") and old.get(kind, {}).get("below"):
                entry[kind]["drift"] = divergence(mass(old[kind]["below"]), mass(entry[kind]["then"]))
    return now
