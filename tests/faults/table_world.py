"""A generated table as large as one likes, loaded in a process of its own that tells how much memory it took."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from ingestion import pipeline
from ingestion.contract import Context, Landed, Page, Resource, Source, describe
from storage.settings import for_role

SCHEMA = pa.schema(
    [
        describe("id", pa.int64(), "", required=True),
        describe("word", pa.string(), ""),
        describe("amount", pa.float64(), ""),
        describe("count", pa.int64(), ""),
    ]
)


def source(name: str, rows: int, page: int, time: int) -> Source:
    """``rows`` rows in pages of ``page``, each an Arrow stream. The second ``time`` all come again, a tenth changed."""

    def fetch(context: Context) -> Iterator[Page]:
        for start in range(0 if context.cursor.get("time") != time else rows, rows, page):
            ids = np.arange(start, min(start + page, rows))
            words = np.char.add("word ", (ids * 7919 % 100_003).astype(str))
            counts = ids % 1000 + time * (ids % 10 == 0)
            batch = pa.record_batch([ids, words.astype(object), ids / 7, counts], schema=SCHEMA)
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, SCHEMA) as writer:
                writer.write_batch(batch)
            yield Page(f"rows {start}", sink.getvalue().to_pybytes(), {"time": time})

    def parse(landed: Landed) -> Iterator[pa.RecordBatch]:
        with landed.path() as path, pa.memory_map(str(path)) as file:
            yield from pa.ipc.open_stream(file)

    table = Resource(name, SCHEMA, ("id",), fetch, parse)
    return Source(name, name, "text", "", "none", "@daily", (table,))


def peak_mb() -> float:
    """The most memory that this program had at once; what getrusage tells may be its parent's, from before the exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    made, (most, of_page, which) = sys.argv[1], map(int, sys.argv[2:])
    report = pipeline.ingest(source(made, most, of_page, which), for_role("loader"), say=lambda text: None)
    loaded = sum(load["versions"] for load in report.loads.values())
    print(json.dumps({"rows": loaded, "peak_mb": peak_mb()}))
