"""The document store: any MongoDB-protocol server. One collection a resource, every distinct version of a document.

A version's ``_id`` is the hash of its key and content, so writing it twice is harmless; versions are written and read
in batches only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError, PyMongoError

from storage.errors import Problem
from storage.settings import Settings

BATCH = 1000  # documents written at once
LOOKUP = 50  # identifiers asked for at once: the embedded server's time for them grows with their square
DUPLICATE = 11000  # the error of a second document with one _id


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
        new = 0
        try:
            for start in range(0, len(versions), BATCH):
                batch = {version["_id"]: version for version in versions[start : start + BATCH]}
                new += _insert(self.database[collection], list(batch.values()))
        except PyMongoError as error:
            raise _unreachable(error) from error
        return new

    def read_versions(self, collection: str, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Versions by ``_id``. Raises Problem when one is missing: the projection is made of these and nothing else."""
        found: dict[str, dict[str, Any]] = {}
        try:
            for start in range(0, len(ids), LOOKUP):
                wanted = list(ids[start : start + LOOKUP])
                found.update({v["_id"]: v for v in self.database[collection].find({"_id": {"$in": wanted}})})
        except PyMongoError as error:
            raise _unreachable(error) from error
        missing = set(ids) - set(found)
        if missing:
            raise Problem(
                f"{len(missing)} of {len(ids)} versions are not in the collection {collection}",
                "Run `lyrebird replay SOURCE`, with the source that the collection's name begins with",
            )
        return found


def _insert(collection: Collection[dict[str, Any]], versions: Sequence[Mapping[str, Any]]) -> int:
    """Insert those versions that are not there yet: the server tells which are. Returns how many were new."""
    try:
        return len(collection.insert_many(versions, ordered=False).inserted_ids)  # type: ignore[arg-type]
    except BulkWriteError as error:
        details = error.details or {}
        refused = [one for one in details.get("writeErrors", []) if one.get("code") != DUPLICATE]
        if refused or details.get("writeConcernErrors"):
            reason = refused[0].get("errmsg") if refused else details["writeConcernErrors"][0]
            raise Problem(f"the document store refused a version for {collection.name}: {reason}") from error
        return int(details.get("nInserted", 0))


def _unreachable(error: PyMongoError) -> Problem:
    return Problem(f"the document store failed: {error}", "`lyrebird status` shows whether it is up")
