"""Tombstones: what a withdrawal keeps from coming back, without saying what it was.

A tombstone is an object of landing, ``<source>/_forgotten/<resource>/<field>/<sha256>``, where the hash is of a key or
of a field's value as text. So it survives the loss of every database, says nothing to who does not know the name
already, and one listing reads them all. The loader drops records that match one, whatever offers them again.

What remains of a page that records were taken out of lies at ``<source>/_erased/<hash>``, where the hash is of what the
journal said of the page.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Self
from urllib.parse import quote, unquote

from ingestion import rows
from ingestion.contract import Landed, Resource, Source
from ingestion.journal import BUCKET
from storage.objects import Objects

KEY = "_key"  # in place of a field's name: no field begins so


@dataclass(frozen=True, order=True)
class Tombstone:
    """Records of a resource whose key (field :data:`KEY`), or whose field, has this SHA-256 as text."""

    resource: str
    field: str
    sha256: str


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def text_of(value: Any) -> str:
    """A field's value as text, as PostgreSQL shows it in a column or in JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def erased_key(source: str, page: Landed) -> str:
    """Where what remains of a page lies in landing, if records were taken out of it."""
    said = json.dumps([page.key, page.name, dict(page.meta)], ensure_ascii=False, sort_keys=True)
    return f"{source}/_erased/{digest(said)}"


def read(objects: Objects, source: str) -> set[Tombstone]:
    """All tombstones of a source."""
    found = (key.split("/") for key in objects.list(BUCKET, f"{source}/_forgotten/"))
    return {Tombstone(resource, unquote(field), sha256) for _, _, resource, field, sha256 in found}


def write(objects: Objects, source: str, tombstones: Iterable[Tombstone]) -> None:
    """Write those that are not there yet."""
    for one in sorted(set(tombstones) - read(objects, source)):
        body = asdict(one) | {"at": datetime.now(UTC).isoformat()}
        key = f"{source}/_forgotten/{one.resource}/{quote(one.field, safe='')}/{one.sha256}"
        objects.put(BUCKET, key, json.dumps(body).encode(), "application/json")


def siblings(source: Source, resource: Resource, key: str, values: Mapping[str, Any]) -> set[Tombstone]:
    """Tombstones of a record and of what the source's other resources say of it.

    That is what has the same key (a recording and its audio), or names the record by its key field (the scores of a
    piece). Tables of a database have nothing to do with each other, even where their keys are the same numbers.
    ``values``: the record's key fields.
    """
    found = {Tombstone(resource.name, KEY, digest(key))}
    if resource.columns is None:
        for other in source.resources:
            found.add(Tombstone(other.name, KEY, digest(key)))
            if len(values) == 1 and other.name != resource.name:
                [(name, value)] = values.items()
                if name in other.schema.names and value is not None:
                    found.add(Tombstone(other.name, name, digest(text_of(value))))
    return found


@dataclass(frozen=True)
class Withdrawn:
    """What must not be loaded of one resource; empty, and false, for nearly all.

    ``erased`` are addresses of what remains of pages; ``everything`` is for what was derived from an object that went.
    """

    keys: frozenset[str] = frozenset()
    fields: Mapping[str, frozenset[str]] = field(default_factory=dict)
    erased: frozenset[str] = frozenset()
    everything: bool = False

    @classmethod
    def of(cls, resource: str, tombstones: Iterable[Tombstone]) -> Self:
        by_field: dict[str, set[str]] = {}
        for one in tombstones:
            if one.resource == resource:
                by_field.setdefault(one.field, set()).add(one.sha256)
        keys = by_field.pop(KEY, set())
        return cls(frozenset(keys), {name: frozenset(hashes) for name, hashes in by_field.items()})

    @classmethod
    def read(cls, objects: Objects, source: str, resource: str) -> Self:
        """As the tombstones of landing say."""
        tombstones = read(objects, source)
        if not tombstones:
            return cls()
        erased = frozenset(objects.list(BUCKET, f"{source}/_erased/"))
        return replace(cls.of(resource, tombstones), erased=erased)

    def __bool__(self) -> bool:
        return bool(self.keys or self.fields or self.everything)

    def has_key(self, key: str) -> bool:
        return self.everything or digest(key) in self.keys

    def by_field(self, record: Mapping[str, Any]) -> bool:
        """Whether a field of the record has a withdrawn value."""
        values = ((record.get(name), hashes) for name, hashes in self.fields.items())
        return any(value is not None and digest(text_of(value)) in hashes for value, hashes in values)

    def has(self, resource: Resource, record: object) -> bool:
        """Whether a record, good or bad, is withdrawn."""
        if not self or not isinstance(record, Mapping):
            return self.everything
        return self.has_key(rows.key_text(tuple(map(record.get, resource.key)))) or self.by_field(record)

    def remains(self, source: str, page: Landed) -> str | None:
        """The address of what remains of a page that was erased, or of one that was and is named once more.

        Empty for what is not even a page any more; None where the page is whole.
        """
        if page.erased is not None:
            return page.key
        key = erased_key(source, page) if self.erased and page.gone is None else ""
        gone = key in self.erased and not page.objects.exists(*page.address)
        return f"{BUCKET}/{key}" if gone else None
