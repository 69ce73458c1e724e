"""A small aviary with its clips, whose withdrawal is killed and tried again, and the comparison of what is left.

The withdrawal runs in a process of its own, which kills itself where it is told to.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
from support import PROCESSES

from infra import withdrawing
from ingestion import catalogue, journal, pipeline
from storage import warehouse
from storage.documents import Documents
from storage.gates import audit
from storage.gates.audit import Verdict
from storage.objects import Objects
from storage.settings import Settings, options_file

RECORDINGS = 8
AVIARY, CLIPS = catalogue.source("aviary"), catalogue.source("clips")
REQUEST: tuple[list[str], list[str]] = (["SIM00002"], ["rec=Sim Aldous"])  # a recording, and all of somebody's
# What a withdrawal tells it has reached, in this order.
STAGES = (
    "tombstones", "remains", "rewritten", "journal", "pages", "documents", "files", "marked", "sealed", "rows",
)  # fmt: skip


def fill(settings: Settings) -> None:
    """The aviary and its clips, loaded and published, in two loads of each resource."""
    pipeline.make_tables([AVIARY, CLIPS], settings)
    for recordings in (RECORDINGS // 2, RECORDINGS):
        options_file().write_text(f"[sources.aviary]\nrecordings = {recordings}\n")
        for source in (AVIARY, CLIPS):
            ingest(source, settings)


def build_on(settings: Settings) -> None:
    """What models have of the clips: splits, a frozen version, predictions."""
    objects, sink = Objects(settings), io.BytesIO()
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute("select _key from raw.clips order by 1")
        clips = [key for (key,) in sql.fetchall()]
        pq.write_table(pa.table({"clip_id": clips}), sink)
        manifest = {
            "version": "v1", "name": "birds-aviary", "mart": "mart_birds_training_clips", "loads": {"aviary": 3},
            "schema": [{"name": "clip_id", "type": "string"}], "splits": {"train": {}}, "licences": {},
            "simulated": True, "shards": [{"file": "train-00000.parquet", "split": "train"}],
        }  # fmt: skip
        objects.put("datasets", "birds-aviary/v1/manifest.json", json.dumps(manifest).encode())
        objects.put("datasets", "birds-aviary/v1/train-00000.parquet", sink.getvalue())
        sql.execute(
            "insert into ml.dataset (version, name, mart, rows, uri, manifest) values "
            "('v1', 'birds-aviary', 'mart_birds_training_clips', %s, 's3://datasets/birds-aviary/v1', %s)",
            (len(clips), json.dumps(manifest)),
        )
        for clip in clips:
            sql.execute("insert into ml.prediction values ('birds-aviary', 1, 'v1', %s, '{}', 0.5)", (clip,))
        for who in ("Sim Aldous", "Sim Corin"):
            sql.execute(
                "insert into ml.split_group values ('birds', %s, 'train', 'published')",
                (f"aviary/recordist/{who.replace(' ', '').lower()}",),
            )


def ingest(source: Any, settings: Settings) -> None:
    """Load and judge, without the statistics of audits, which take seconds and have tests of their own."""
    with mock.patch.object(audit, "run", lambda *arguments, **options: Verdict(True, "none", "")):
        pipeline.ingest(source, settings, say=lambda text: None)
        pipeline.judge(source, settings, say=lambda text: None)


def forget(settings: Settings, reached: Callable[[str], None] = lambda stage: None) -> dict[str, Any]:
    keys, where = REQUEST
    return withdrawing.forget(
        AVIARY, keys, where, [], settings, dry_run=False, say=lambda text: None, reached=reached
    )  # fmt: skip


def _until(settings: Settings, stage: str, time: int) -> None:
    """Forget, and die when a stage is reached for the n-th time."""
    seen: Counter[str] = Counter()

    def reached(now: str) -> None:
        seen[now] += 1
        if seen[stage] == time and now == stage:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        forget(settings, reached)
    except BaseException:
        traceback.print_exc()
        sys.exit(3)


def killed(settings: Settings, stage: str = "", time: int = 1, after_s: float | None = None) -> int | None:
    """Forget in a process that dies at the n-th time of a stage, or is killed after so many seconds. Its exit code."""
    process = PROCESSES.Process(target=_until, args=(settings, stage, time))
    process.start()
    process.join(120 if after_s is None else after_s)
    if process.is_alive() and process.pid:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode


def left(settings: Settings) -> dict[str, list[str]]:
    """Everything that is in the stores afterwards, but for times."""
    objects = Objects(settings)
    version = "_load, _position, _page, _key, _hash, _deleted"
    queries = {
        "recordings": f"select {version}, doc from raw.aviary_recordings",
        "audio": f"select {version}, sha256 from raw.aviary_audio",
        "clips": f"select {version}, clip_object, audio_key from raw.clips",
        # one that was killed may have announced itself more than once
        "load": "select distinct source, case when lane <> 'forget' then load end, resource, lane, slice, state, rows, "
        "versions, forgotten from ops.load",
        "cursor": "select source, resource, lane, cursor, case when lane <> 'forget' then load end from ops.cursor",
        "landing": "select source, load, position, resource, key, sha256, name, bytes, meta from ops.landing",
        "dataset": "select version, jsonb_path_query_array(withdrawn, '$.*.rows') from ml.dataset",
        "prediction": "select model, key from ml.prediction",
        "splits": "select group_key from ml.split_group",
        "withdrawn": "select mart, key_sha256 from ml.withdrawn",
    }
    found: dict[str, list[str]] = {}
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        for table, query in queries.items():
            sql.execute(query)
            found[table] = [json.dumps(row, default=str, sort_keys=True) for row in sql.fetchall()]
    versions = Documents(settings).database["aviary_recordings"].find({})
    found["documents"] = [json.dumps(one, default=str, sort_keys=True) for one in versions]
    found["derived"] = list(objects.list("derived"))
    found["objects"] = [key for key in objects.list("landing") if "/_journal/" not in key]
    found["journal"] = [
        f"{source.name} {load} {page.position} {page.name} {page.key} {page.erased}"
        for source in (AVIARY, CLIPS)
        for load in journal.segments(objects, source.name)
        for page in journal.read_segment(objects, source.name, load)[1]
    ]
    return {table: sorted(rows) for table, rows in found.items()}


def differences(one: dict[str, list[str]], other: dict[str, list[str]]) -> dict[str, Any]:
    """Where two states differ: what only the one has, and what only the other has."""
    return {
        table: (sorted(set(rows) - set(other[table]))[:3], sorted(set(other[table]) - set(rows))[:3])
        for table, rows in one.items()
        if rows != other[table]
    }
