"""What the stack costs when nothing is to be done: ``python -m infra.evidence.idle [SECONDS]``."""

from __future__ import annotations

import sys
import time

from infra.embedded import stack
from storage.settings import home


def main(seconds: float) -> None:
    """Look twice at every program of the stack and print the share of a core and the memory that it took."""
    before = {one.name: one for one in stack.status(home())}
    begin = time.monotonic()
    time.sleep(seconds)
    after = stack.status(home())
    took = time.monotonic() - begin
    total = 0.0
    for one in after:
        cores = (one.cpu_seconds - before[one.name].cpu_seconds) / took
        total += cores
        print(f"{one.name:<24}{cores:6.3f} cores {one.memory_mb:8,.0f} MB")
    print(f"{'together':<24}{total:6.3f} cores {sum(one.memory_mb for one in after):8,.0f} MB, over {took:.0f} s")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 120)
