"""`make bench [AREA=…]`: measure ours beside a peer in one run, and write docs/benchmarks/<area>.json.

An area is a module beside this one with ``benchmarks(stack, scale) -> Iterator[Benchmark]``. Ours and the peer
alternate; medians of 5 rounds, or of 3 where a round takes over 30 s. Sizes scale with BENCH_SCALE (1 by default).
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from support import temporary_stack

from benchmarks import Benchmark

AREAS = tuple(sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py")))
DOCS = Path(__file__).parent.parent.parent / "docs" / "benchmarks"


def measure(one: Benchmark) -> dict[str, object]:
    """Alternate ours and the peer, and compare the medians of their rates."""
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    rounds = 5
    while len(times["peer"]) < rounds:
        for name, before, run in (("ours", one.before_ours, one.ours), ("peer", one.before_peer, one.peer)):
            before()
            times[name].append(_seconds(run))
        if max(times["ours"][0], times["peer"][0]) > 30:
            rounds = 3
    one.check()
    ours, peer = (one.amount / statistics.median(times[name]) for name in ("ours", "peer"))
    ratio = ours / peer
    return {
        "name": one.name,
        "unit": one.unit,
        "ours": round(ours, 1),
        "peer": round(peer, 1),
        "peer_name": one.peer_name,
        "ratio": round(ratio, 3),
        "bound": one.bound,
        "direction": "more",
        "holds": ratio >= one.bound,
        "versions": one.versions,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": datetime.now(UTC).date().isoformat(),
    }


def _seconds(run: Callable[[], float | None]) -> float:
    begin = time.perf_counter()
    own = run()
    return time.perf_counter() - begin if own is None else own


def main(areas: list[str]) -> int:
    unknown = set(areas) - set(AREAS)
    if unknown:
        print(f"There is no area {sorted(unknown)[0]}. There are: {', '.join(AREAS)}", file=sys.stderr)
        return 2
    scale = float(os.environ.get("BENCH_SCALE", "1"))
    failed = 0
    with temporary_stack() as stack:
        for area in areas or AREAS:
            rows = []
            for one in importlib.import_module(f"benchmarks.{area}").benchmarks(stack, scale):
                row = measure(one)
                rows.append(row)
                failed += not row["holds"]
                rates = f"{row['ours']} {row['unit']}, {row['peer_name']} {row['peer']}"
                print(f"{area}: {row['name']}: {rates}; ratio {row['ratio']}, bound {row['bound']}")
            DOCS.mkdir(parents=True, exist_ok=True)
            (DOCS / f"{area}.json").write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main([area for area in sys.argv[1:] if area]))
