"""The document store: any MongoDB-protocol server. One collection a resource, every distinct version of a document.

A version's ``_id`` is the hash of its key and content, so writing it twice is harmless; versions are written and read
in batches only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pymongo import MongoClient, UpdateOne
from pymongo.errors import BulkWriteError, PyMongoError

from storage.errors import Problem
from storage.settings import Settings

BATCH = 1000


class Documents:
    """Versions of documents, by collection."""

    def __init__(self, settings: Settings) -> None:
        settings.need("mongo_url")
        self.client: MongoClient[dict[str, Any]] = MongoClient(
            settings.mongo_url.get_secret_value(),
            serverSelectionTimeoutMS=10_000,
            appname="lyrebird",
            tz_aware=True,
        )
        self.database = self.client[settings.mongo_database]

    def put_versions(self, collection: str, versions: Sequence[Mapping[str, Any]]) -> int:
        """Write versions ``{_id, key, doc, …}`` that are not there yet. Returns how many were new."""
        if not versions:
            return 0
        new = 0
        try:
            for start in range(0, len(versions), BATCH):
                writes = [_insert(version) for version in versions[start : start + BATCH]]
                new += self.database[collection].bulk_write(writes, ordered=False).upserted_count
        except BulkWriteError as error:
            first = (error.details or {}).get("writeErrors", [{}])[0].get("errmsg", str(error))
            raise Problem(f"the document store refused a version for {collection}: {first}") from error
        except PyMongoError as error:
            raise _unreachable(error) from error
        return new

    def read_versions(self, collection: str, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Versions by ``_id``. Raises Problem when one is missing: the projection is made of these and nothing else."""
        found: dict[str, dict[str, Any]] = {}
        try:
            for start in range(0, len(ids), BATCH):
                wanted = list(ids[start : start + BATCH])
                found.update({v["_id"]: v for v in self.database[collection].find({"_id": {"$in": wanted}})})
        except PyMongoError as error:
            raise _unreachable(error) from error
        missing = set(ids) - set(found)
        if missing:
            raise Problem(
                f"{len(missing)} of {len(ids)} versions are not in the collection {collection}",
                "Run `lyrebird replay` for this source",
            )
        return found


def _insert(version: Mapping[str, Any]) -> UpdateOne:
    fields = {name: value for name, value in version.items() if name != "_id"}
    return UpdateOne({"_id": version["_id"]}, {"$setOnInsert": fields}, upsert=True)


def _unreachable(error: PyMongoError) -> Problem:
    return Problem(f"the document store failed: {error}", "`lyrebird status` shows whether it is up")
