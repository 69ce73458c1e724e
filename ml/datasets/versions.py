"""Frozen versions among each other: what differs between two, and which are not needed any more."""

from __future__ import annotations

import heapq
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import zip_longest
from typing import Any

from ml import registry
from ml.datasets import freeze
from ml.datasets.freeze import BUCKET, LAYOUTS, Row, Say, quiet
from ml.training.files import read_json
from storage import warehouse
from storage.errors import Problem
from storage.objects import Objects
from storage.settings import Settings, home

SHOWN = 20  # keys of each kind that a comparison lists
KEPT = 2  # versions of each name that are kept in any case, the newest
KEPT_DAYS = 7  # a training may have begun on a version that no model names yet


# ---------------------------------------------------------------- compare


@dataclass
class Difference:
    """Rows of two versions, by key. ``keys`` lists the first few of each kind."""

    only_first: int = 0
    only_second: int = 0
    changed: int = 0
    moved: int = 0  # the same but for their split
    same: int = 0
    keys: dict[str, list[str]] = field(default_factory=dict)

    def note(self, kind: str, key: str) -> None:
        setattr(self, kind, getattr(self, kind) + 1)
        if kind != "same" and len(listed := self.keys.setdefault(kind, [])) < SHOWN:
            listed.append(key)


def diff(first: str, second: str, settings: Settings) -> dict[str, Any]:
    """What differs between two versions of one mart, row by row, in memory for a batch of each.

    Gives {"first", "second", "mart", "schema": {"only_first", "only_second": names of columns}, "splits": {split:
    [rows, rows]}, "licences": {licence: [rows, rows]}, "rows": {"only_first", "only_second", "changed", "moved",
    "same"}, "keys": {kind: some of the keys}}. Raises Problem for versions of different marts.
    """
    one, other = (freeze.show(version, settings) for version in (first, second))
    if one["mart"] != other["mart"]:
        raise Problem(
            f"{first} holds rows of {one['mart']}, {second} of {other['mart']}", "Compare two versions of one mart"
        )
    layout, found = LAYOUTS[one["mart"]], Difference()
    split = list(layout.columns).index("split")
    rows = {place: _sorted(manifest, settings) for place, manifest in ((0, one), (1, other))}
    held: list[Row | None] = [next(rows[0], None), next(rows[1], None)]
    while held[0] is not None or held[1] is not None:
        keys = [None if row is None else str(row[0]) for row in held]
        least = min(key for key in keys if key is not None)
        here = [row if key == least else None for row, key in zip(held, keys, strict=True)]
        found.note(_kind(here[0], here[1], split), least)
        held = [next(rows[place], None) if here[place] is not None else held[place] for place in (0, 1)]
    columns = [[column["name"] for column in manifest["schema"]] for manifest in (one, other)]
    return {
        "first": one["version"],
        "second": other["version"],
        "mart": one["mart"],
        "schema": {
            "only_first": [name for name in columns[0] if name not in columns[1]],
            "only_second": [name for name in columns[1] if name not in columns[0]],
        },
        "splits": {
            name: [manifest["splits"].get(name, {}).get("rows", 0) for manifest in (one, other)]
            for name in sorted(one["splits"] | other["splits"])
        },
        "licences": {
            name: [manifest["licences"].get(name, 0) for manifest in (one, other)]
            for name in sorted(one["licences"] | other["licences"])
        },
        "rows": {kind: getattr(found, kind) for kind in ("only_first", "only_second", "changed", "moved", "same")},
        "keys": found.keys,
    }


def _sorted(manifest: dict[str, Any], settings: Settings) -> Iterator[Row]:
    """All rows of a version in the order of their keys: each split is."""
    version, layout = freeze.reader(manifest, settings), LAYOUTS[manifest["mart"]]
    known = [column["name"] for column in manifest["schema"]]

    def rows(split: str) -> Iterator[Row]:
        for batch in version.stream(split, [name for name in layout.columns if name in known]):
            columns = [batch[name].to_pylist() if name in known else [None] * len(batch) for name in layout.columns]
            yield from map(list, zip(*columns, strict=True))

    return heapq.merge(*(rows(split) for split in manifest["splits"]), key=lambda row: str(row[0]))


def _kind(one: Row | None, other: Row | None, split: int) -> str:
    if one is None or other is None:
        return "only_second" if one is None else "only_first"
    unequal = [place for place, (a, b) in enumerate(zip_longest(one, other)) if a != b]
    return "same" if not unequal else "moved" if unequal == [split] else "changed"


# ---------------------------------------------------------------- prune


def prune(settings: Settings, *, really: bool, say: Say = quiet) -> dict[str, Any]:
    """Remove versions that nothing needs; only says which, unless ``really``.

    Kept are the newest of each name, those of the last days, and whatever a registered model, a score, a prediction or
    a run folder on this machine names. Gives {"removed": [{"version", "name", "rows", "bytes"}], "kept": {version:
    why}, "really"}. Killed in the middle, it goes on the next time.
    """
    needed = _needed(settings)
    removed, kept, seen = [], {}, dict[str, int]()
    for one in freeze.versions(settings):
        seen[one["name"]] = seen.get(one["name"], 0) + 1
        version = one["version"]
        if version in needed:
            kept[version] = needed[version]
        elif seen[one["name"]] <= KEPT:
            kept[version] = f"it is among the newest {KEPT} of {one['name']}"
        elif datetime.now(UTC) - one["created_at"] < timedelta(days=KEPT_DAYS):
            kept[version] = f"it was frozen in the last {KEPT_DAYS} days"
        else:
            removed.append(_removed(one, settings, really, say))
    return {"removed": removed, "kept": kept, "really": really}


def _removed(one: dict[str, Any], settings: Settings, really: bool, say: Say) -> dict[str, Any]:
    """Objects first and the row last: what is left half-way is found again by the row."""
    objects, version = Objects(settings), one["version"]
    prefix = one["uri"].removeprefix(f"s3://{BUCKET}/")
    manifest = freeze.show(version, settings)
    size = sum(shard.get("bytes", 0) for shard in manifest["shards"])
    if really:
        with closing(warehouse.connect(settings)) as db, warehouse.advisory_lock(db, f"freeze {version}"):
            for key in sorted(objects.list(BUCKET, f"{prefix}/"), key=lambda key: not key.endswith("/manifest.json")):
                objects.delete(BUCKET, key)
            with db, db.cursor() as sql:
                sql.execute("delete from ml.dataset where version = %s", (version,))
        shutil.rmtree(home() / "cache" / "datasets" / f"{one['name']}-{version}", ignore_errors=True)
        say(f"{one['name']} {version} is gone")
    return {"version": version, "name": one["name"], "rows": one["rows"], "bytes": size}


def _needed(settings: Settings) -> dict[str, str]:
    """Versions that something names, and what."""
    found: dict[str, str] = {}
    for what in ("prediction", "score"):
        with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
            sql.execute(f"select distinct on (dataset_version) dataset_version, model from ml.{what} order by 1, 2")
            found |= {version: f"{name} has {what}s on it" for version, name in sql.fetchall()}
    for path in sorted((home() / "runs").glob("*/*/config.json")):
        found[str(read_json(path)["dataset"])] = f"the run {path.parent.name} of {path.parent.parent.name} reads it"
    return found | {version: f"{model} was trained on it" for version, model in registry.datasets(settings).items()}
