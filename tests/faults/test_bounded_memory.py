"""Ten times the rows take no more memory: peak resident set of the loader's process, as the kernel counts it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from support import Stack

from storage import roles, warehouse
from storage.objects import Objects

PROGRAM = Path(__file__).with_name("table_world.py")


def peak_mb(name: str, rows: int, page: int, time: int) -> float:
    """Load so many rows, the second ``time`` with a tenth of them changed; the most memory that the process had."""
    argv = [sys.executable, str(PROGRAM), name, *map(str, (rows, page, time))]
    path = str(Path(__file__).resolve().parent.parent.parent)  # this checkout, wherever the package is installed from
    done = subprocess.run(
        argv, env=roles.environment("loader", {"PYTHONPATH": path}), check=True, capture_output=True, text=True
    )
    told = json.loads(done.stdout)
    assert told["rows"] == (rows if time == 1 else rows // 10)
    return float(told["peak_mb"])


def drop(stack: Stack, name: str) -> None:
    """Give the disk its room back."""
    with closing(warehouse.connect(stack.settings("loader"))) as db, db, db.cursor() as sql:
        sql.execute(f"drop table raw.{name}")
    objects = Objects(stack.settings("loader"))
    for key in list(objects.list("landing", f"{name}/")):
        objects.delete("landing", key)


@pytest.mark.parametrize(("rows", "page"), [(100_000, 5_000), pytest.param(1_000_000, 10_000, marks=pytest.mark.long)])
def test_ten_times_the_rows_take_at_most_a_tenth_more_memory(
    stack: Stack, rows: int, page: int, record_property: Callable[[str, object], None]
) -> None:
    names = {f"few_{rows}": rows, f"many_{rows}": 10 * rows}
    peaks = {(name, time): peak_mb(name, number, page, time) for time in (1, 2) for name, number in names.items()}
    for name in names:
        drop(stack, name)
    for time, what in ((1, "loaded"), (2, "loaded again, a tenth changed")):
        few, many = (peaks[name, time] for name in names)
        record_property(
            what, f"{rows:,} rows {what}: {few:.0f} MB; {10 * rows:,} rows: {many:.0f} MB; {many / few:.3f} of it"
        )
        assert many <= 1.1 * few, (what, few, many)
