"""Ingestion: rows appended through the whole pipeline, beside a bare COPY of the same bytes."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pyarrow as pa
from support import Stack

from benchmarks import Benchmark
from ingestion import pipeline, rows
from ingestion.contract import Context, Landed, Page, Resource, Source, describe
from storage import warehouse

COLUMNS = 10
BOUND = 0.6


def benchmarks(stack: Stack, scale: float) -> Iterator[Benchmark]:
    """Append 100,000 rows of 10 columns."""
    count = int(100_000 * scale)
    draw = random.Random(1)
    records = [
        {"id": f"{number:09}"} | {f"c{column}": draw.randrange(10**6) for column in range(1, COLUMNS)}
        for number in range(count)
    ]
    body = "".join(json.dumps(record) + "\n" for record in records).encode()
    text = "".join(rows.copy_line(list(record.values())) for record in records)
    rounds = iter(range(1000))
    settings = stack.settings("loader")
    made: list[str] = []

    def ours() -> None:
        source = _source(f"bench_{next(rounds)}", body)
        made.append(source.name)
        pipeline.ingest(source, settings, say=lambda text: None)

    def peer() -> None:
        with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
            sql.execute("drop table if exists raw.bench_copy")
            columns = ", ".join(f"c{column} bigint" for column in range(1, COLUMNS))
            sql.execute(f"create table raw.bench_copy (id text primary key, {columns})")
            sql.copy_expert("copy raw.bench_copy from stdin", io.StringIO(text))

    def check() -> None:
        names = ", ".join(["id", *(f"c{column}" for column in range(1, COLUMNS))])
        with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
            only_ours = f"(select {names} from raw.{made[-1]}) except (select {names} from raw.bench_copy)"
            sql.execute(f"select count(*) from ({only_ours}) as d")
            if warehouse.first(sql)[0]:
                raise AssertionError("ours and the peer hold different rows")

    yield Benchmark("append rows", "rows/s", count, ours, peer, "COPY", BOUND, check)


def _source(name: str, body: bytes) -> Source:
    def fetch(context: Context) -> Iterator[Page]:
        yield Page("rows", body, {"done": True})

    def parse(page: Landed) -> Iterator[dict[str, Any]]:
        yield from map(json.loads, page.read().splitlines())

    fields = [describe("id", pa.string(), "Key.", required=True)]
    fields += [describe(f"c{column}", pa.int64(), "A number.") for column in range(1, COLUMNS)]
    resource = Resource(name, pa.schema(fields), ("id",), fetch, parse, mode="append")
    return Source(name, name, "text", "", "none", "@daily", (resource,))
