"""Record again, after the warehouse was lost, what the versions in the object store hold.

A version keeps its manifest, and which split was recorded for each leakage group of its rows. So what models were
trained on is known again, and no group that a model has learnt from comes into another split. Groups of no version get
their split from the next transform, as they did before; so do those of a version of which rows were withdrawn.
"""

from __future__ import annotations

import io
import json
from contextlib import closing
from dataclasses import dataclass

import pyarrow.parquet as pq
from psycopg2.extras import execute_values

from ml.datasets.freeze import BUCKET, LAYOUTS
from ml.datasets.withdrawal import MARKS
from storage import warehouse
from storage.objects import Objects
from storage.settings import Settings


@dataclass
class Restored:
    """How many versions and splits of groups were not on record, or not as the versions have them."""

    versions: int = 0
    groups: int = 0


def restore(settings: Settings) -> Restored:
    """Record the versions that ``ml.dataset`` has not, and the splits of their groups.

    Where a group has got another split meanwhile, the one that was recorded first holds. What was recorded stays as it
    is otherwise, so it may be run at any time, and twice.
    """
    objects, done = Objects(settings), Restored()
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        for key in list(objects.list(BUCKET)):
            if not key.endswith("/manifest.json"):
                continue
            prefix, manifest = key.rpartition("/")[0], json.loads(objects.get(BUCKET, key))
            sql.execute(
                "insert into ml.dataset (version, name, mart, where_clause, rows, uri, manifest, created_at) "
                "values (%s, %s, %s, %s, %s, %s, %s, %s) on conflict (version) do nothing",
                (
                    *(manifest["version"], manifest["name"], manifest["mart"], manifest["where"], manifest["rows"]),
                    *(f"s3://{BUCKET}/{prefix}", json.dumps(manifest, ensure_ascii=False), manifest["created_at"]),
                ),
            )
            done.versions += sql.rowcount
            if objects.exists(BUCKET, f"{prefix}/{MARKS}"):
                marks = objects.get(BUCKET, f"{prefix}/{MARKS}").decode()
                sql.execute("update ml.dataset set withdrawn = %s where version = %s", (marks, manifest["version"]))
                continue  # its groups may be named for who was withdrawn
            if "groups" not in manifest:
                continue
            groups = pq.read_table(io.BytesIO(objects.get(BUCKET, f"{prefix}/{manifest['groups']['file']}")))
            domain = LAYOUTS[manifest["mart"]].domain
            changed = execute_values(
                sql,
                """
                insert into ml.split_group (domain, group_key, split, origin, recorded_at) values %s
                on conflict (domain, group_key) do update
                set split = excluded.split, origin = excluded.origin, recorded_at = excluded.recorded_at
                where excluded.recorded_at < ml.split_group.recorded_at
                returning group_key
                """,
                [(domain, *row.values()) for row in groups.to_pylist()],
                fetch=True,
            )
            done.groups += len(changed)
    return done
