"""Records of raw made once more: do the bytes that landed still give them?

Asked of the source itself, whichever it is: its parse reads the page of each record again, which the journal names.
Parse is pure, so what differs is either the bytes, or the code that reads them, or what raw holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import pyarrow as pa

from ingestion import catalogue, forgetting, rows
from ingestion.contract import Bad, BadPage, Blob, Landed, Record, Resource, Source
from ingestion.journal import BUCKET, digest
from ingestion.loading import blob_key
from storage.errors import Problem
from storage.objects import Objects
from storage.settings import Settings

Traced = Mapping[str, Any]  # as ml.lineage describes a record


def differences(records: Sequence[Traced], settings: Settings) -> list[str]:
    """Why landing does not give these records again, a sentence for each reason; none when it does.

    A record is {"source", "table", "load", "key", "hash", "row", "landing": {"position", "key", "name", "sha256",
    "bytes", "content_type", "fetched_at", "meta"}}: a version of raw and the page that it came from.
    """
    objects, found = Objects(settings), list[str]()

    def page_of(record: Traced) -> tuple[str, int, int]:
        return record["table"], record["load"], record["landing"].get("position", -1)

    for _, of_page in groupby(sorted(records, key=page_of), page_of):
        found += _reread(list(of_page), objects)
    return found


def _reread(records: list[Traced], objects: Objects) -> list[str]:
    """The same for the records of one page, which is read once."""
    landing, source = records[0]["landing"], catalogue.source(records[0]["source"])
    resource = next((one for one in source.resources if source.table(one) == records[0]["table"]), None)
    if resource is None or landing["key"] is None:
        return [f"nobody knows any more how raw.{records[0]['table']} was read"]
    page = Landed.of(objects, landing["position"], landing, {})
    beside = (one for one in page.meta.values() if isinstance(one, str) and one.startswith(f"{BUCKET}/"))
    # a page may be read together with another that its meta names; the names of landed objects end with their hash
    hashes = {page.key: page.sha256} | {one: one.rsplit("/", 1)[1] for one in beside}
    for address, sha256 in hashes.items():
        with replace(page, key=address).path() as path:
            if digest(path)[0] != sha256:
                return [f"{address} has not the bytes that landed"]
    waiting, wrong = {record["key"]: record for record in records}, dict[str, str]()
    if page.content_type == forgetting.TYPE and "/_erased/" in page.key:  # a withdrawal has taken other records out
        left = set(_remains(page))
        return [f"{page.key} does not hold {key}" for key, one in waiting.items() if (key, one["hash"]) not in left]
    try:
        for key, again in _records(resource, page):
            if key not in waiting:
                continue
            wrong[key] = _compare(source, resource, again, waiting[key], objects)
            if not wrong[key]:
                del waiting[key]
            if not waiting:
                break
    except BadPage as error:
        return [f"{page.name} cannot be read any more: {error}"]
    table = source.table(resource)
    return [f"{page.name} {wrong.get(key, 'gives nothing')} for {key} of raw.{table}" for key in waiting]


def _remains(page: Landed) -> Iterator[tuple[str, str]]:
    """Keys and hashes of what a withdrawal has left of a page (:func:`ingestion.forgetting.keep`)."""
    with page.path() as path, pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as lines:
        for batch in lines:
            data = batch.select([name for name in batch.schema.names if not name.startswith("_")])
            hashes = batch["_hash"] if "_hash" in batch.schema.names else rows.hashes(data)
            yield from zip(batch["_key"].to_pylist(), (one.hex() for one in hashes.to_pylist()), strict=True)


def _records(resource: Resource, page: Landed) -> Iterator[tuple[str, Record]]:
    """What parse gives, with the keys that raw has."""
    for item in resource.parse(page):
        if isinstance(item, Bad):
            continue
        for record in item.to_pylist() if isinstance(item, pa.RecordBatch) else [item]:
            yield rows.key_text(tuple(map(record.get, resource.key))), record


def _compare(source: Source, resource: Resource, again: Record, record: Traced, objects: Objects) -> str:
    """What is different about a record that was made again; "" when nothing is."""
    for name, value in again.items():
        if isinstance(value, Blob):
            again[name] = blob_key(source, value)
            try:
                stored = objects.get("derived", again[name])
            except Problem:
                return f"gives a {name} that is not stored"
            if stored != value.data:
                return f"gives another {name} than is stored"
    shown: dict[str, Any] = {"doc": again}
    if resource.store != "documents":
        shown = {name: again.get(name) for name in resource.schema.names}
    same = rows.hash_of(resource, again) == record["hash"] and _plain(shown) == _plain(record["row"])
    return "" if same else "gives something else"


def _plain(row: Mapping[str, Any]) -> Any:
    """A row as JSON holds it."""
    return json.loads(json.dumps(row, default=lambda value: value.isoformat()))
