"""The source contract: what a source is, small enough to read in a minute.

A source names its resources. A resource *fetches* pages from a cursor (impure: it talks to the world) and *parses*
each landed page into records (pure: the same bytes and facts give the same records, so a replay gives the same
tables). Retries, landing, journal, quarantine, transactions and the ledger belong to the pipeline.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import pyarrow as pa
from psycopg2.extensions import connection

from storage import warehouse
from storage.objects import Objects
from storage.settings import Settings

if TYPE_CHECKING:
    from ingestion.locations import Location
    from ingestion.web import Web

Cursor = dict[str, Any]
Record = dict[str, Any]


@dataclass(frozen=True)
class Page:
    """One thing as received from the source, on its way to landing.

    ``name`` is what the source calls it (a path, URL or query); ``cursor`` says where to go on after this page.
    ``body`` is None when ``ref`` names an object that has landed already (how ``derive/`` works), and ``fetched_at``
    says when, where it is the page itself that is read again.
    ``meta`` holds small JSON facts that parse needs; it is kept in the journal beside the address of the body.
    """

    name: str
    body: bytes | Path | None
    cursor: Cursor
    content_type: str = "application/octet-stream"
    meta: Mapping[str, Any] = field(default_factory=dict)
    ref: str | None = None
    fetched_at: datetime | None = None


@dataclass(frozen=True)
class Gone:
    """The source no longer has this key: its row becomes a deletion."""

    key: tuple[Any, ...]
    cursor: Cursor


@dataclass(frozen=True)
class Blob:
    """A field value that is a file: it goes to the bucket ``derived`` by its hash, and the row holds its key."""

    data: bytes
    content_type: str
    suffix: str = ""


@dataclass(frozen=True)
class Bad:
    """A record that breaks its contract: parse yields it, and it goes to quarantine with the reason."""

    payload: object
    reason: str
    counted: bool = True  # towards the share past which the load is rejected; not what tells of a thing that never came


class BadPage(Exception):
    """Parse raises it when a whole page cannot be read: the page goes to quarantine, the load goes on."""


@dataclass(frozen=True)
class Landed:
    """A landed page, as parse sees it: what the journal says of it, and its bytes."""

    objects: Objects = field(repr=False)
    position: int
    name: str
    key: str  # address: bucket/key
    sha256: str
    size: int  # bytes
    content_type: str
    fetched_at: datetime
    meta: Mapping[str, Any]
    gone: tuple[Any, ...] | None = None  # the key that the source no longer has, where the entry says only that
    erased: str | None = None  # address of the page that a withdrawal took records out of; `key` is what remains
    kept: Mapping[str, Path] = field(default_factory=dict, repr=False)  # address -> copy that is still at hand

    @classmethod
    def of(cls, objects: Objects, position: int, entry: Mapping[str, Any], kept: Mapping[str, Path]) -> Landed:
        """From an entry of the journal, where what does not apply is absent."""
        return cls(
            objects=objects,
            position=position,
            name=entry.get("name", ""),
            key=entry.get("key", ""),
            sha256=entry.get("sha256", ""),
            size=entry.get("bytes", 0),
            content_type=entry.get("content_type", ""),
            fetched_at=datetime.fromisoformat(entry["fetched_at"]),
            meta=entry.get("meta") or {},
            gone=tuple(entry["gone"]) if "gone" in entry else None,
            erased=entry.get("erased"),
            kept=kept,
        )

    def read(self) -> bytes:
        return self.kept[self.key].read_bytes() if self.key in self.kept else self.objects.get(*self.address)

    def open(self) -> BinaryIO:
        return self.kept[self.key].open("rb") if self.key in self.kept else self.objects.open(*self.address)

    @contextmanager
    def path(self) -> Iterator[Path]:
        """The bytes in a temporary file, for libraries that want one; not to be written to."""
        if self.key in self.kept:
            yield self.kept[self.key]
            return
        with tempfile.TemporaryDirectory(prefix="lyrebird-") as folder:
            path = Path(folder) / "page"
            self.objects.download(*self.address, path)
            yield path

    @property
    def address(self) -> tuple[str, str]:
        bucket, key = self.key.split("/", 1)
        return bucket, key


@dataclass(frozen=True)
class Context:
    """What fetch may use: the source's options, the cursor to go on from, and the stores.

    ``say`` tells a person what to know; ``progress`` how far it is, which is passed on every so often.
    """

    config: Mapping[str, Any]
    cursor: Cursor
    resource: Resource
    interval: tuple[datetime, datetime] | None
    settings: Settings
    say: Callable[[str], None]
    progress: Callable[[str], None] = lambda text: None

    def warehouse(self) -> connection:
        return warehouse.connect(self.settings, application="fetch")

    def objects(self) -> Objects:
        return Objects(self.settings)

    def web(self) -> Web:
        """Servers of others, asked at the source's ``rate``; ``allowed_hosts`` may have private addresses."""
        from ingestion.web import Web

        given = self.config.get("allowed_hosts", [])
        return Web(self.settings, rate=self.config.get("rate", ""), allowed=given, say=self.progress)

    def location(self) -> Location | None:
        """The place that the options `location` and `storage` name; None where none is."""
        from ingestion.locations import Location

        url = str(self.config["location"] or "").strip()
        return Location(url, self.settings, self.config.get("storage")) if url else None


@dataclass(frozen=True)
class Resource:
    """One table's worth of a source.

    ``schema``: the fields of a record; ``nullable=False`` means required, metadata ``description`` documents it.
    ``mode``: ``append`` (records never change), ``merge`` (the latest version of a key counts), ``replace`` (each load
    is the whole: keys that are not in it are deleted). Raw keeps every distinct version whatever the mode.
    ``parse`` gives records one by one, or, where there are many of plain types, whole batches in the schema.
    ``columns``: for tables whose fields are known only when they are fetched: the schema, out of a cursor. It lies with
    the cursor in the journal, so that a replay needs no source. ``schema`` is then empty.
    Records of a source's resources that have the same key speak of the same thing: a withdrawal takes them together.
    ``settled`` is called when a load has been committed and judged, with the cursor that it came to and whether it was
    accepted: a queue is told only then that its messages arrived. It may be called again, or not at all after a crash:
    the next fetch has to tell what its cursor says.
    """

    name: str
    schema: pa.Schema
    key: tuple[str, ...]
    fetch: Callable[[Context], Iterable[Page | Gone]]
    parse: Callable[[Landed], Iterator[Record | Bad | pa.RecordBatch]]
    store: Literal["rows", "documents", "objects"] = "rows"
    mode: Literal["append", "merge", "replace"] = "merge"
    partition: Literal["date", "shard"] | None = None
    description: str = ""
    columns: Callable[[Cursor], pa.Schema] | None = None
    settled: Callable[[Context, bool], None] | None = None

    def known(self, cursor: Cursor) -> Resource:
        """The resource with the schema that holds at this cursor."""
        return replace(self, schema=self.columns(cursor)) if self.columns else self


# Where files may lie, and what the option `storage` may say of such a place. HDFS is untested: no server is at hand.
STORAGE: dict[str, tuple[str, ...]] = {
    "": (),
    "file": (),
    "http": ("username", "password", "rate", "allowed_hosts"),
    "s3": ("endpoint", "access_key", "secret_key", "region"),
    "ftp": ("username", "password", "tls"),
    "sftp": ("username", "password", "key_filename", "known_hosts"),
    "hdfs": ("username",),
}

# Options of every source that reads files from a location.
LOCATION: dict[str, tuple[Any, str]] = {
    "location": (
        "",
        "folder, or an address: http(s)://, s3://bucket/prefix, ftp(s)://, sftp://, hdfs:// (the last is untested); "
        "empty: nothing is read",
    ),
    "storage": (
        {},
        "how to get in there; " + "; ".join(f"{name}: {', '.join(of)}" for name, of in STORAGE.items() if of),
    ),
}


@dataclass(frozen=True)
class Source:
    """Where data comes from, whose it is, how often to look, and which resources it has.

    ``awaited`` is for streams: what a trigger (:class:`ingestion.arrivals.Arrivals`) waits for instead of the clock, as
    its arguments; None while the source is off.
    """

    name: str
    title: str
    domain: Literal["birds", "music", "text"]
    description: str
    licence: str
    cadence: str  # cron expression of the live schedule; "" = scheduled by the assets of ``after``
    resources: tuple[Resource, ...]
    config: Mapping[str, tuple[Any, str]] = field(default_factory=dict)  # option -> (default, what it means)
    after: tuple[str, ...] = ()  # sources whose published loads this one derives from
    simulated: bool = False
    url: str = ""
    awaited: Callable[[], dict[str, Any] | None] | None = None
    cursor: str = ""  # what the cursor says, in words
    volume: str = ""  # how much there is, roughly
    quarantine_share: float = 0.05  # of a load's records; past it the load is rejected. An option of every source

    def table(self, resource: Resource) -> str:
        """Name of the resource's table in schema ``raw`` and of its collection in the document store."""
        return self.name if resource.name == self.name else f"{self.name}_{resource.name}"


def describe(name: str, kind: pa.DataType, description: str, *, required: bool = False) -> pa.Field:
    """A field of a resource's schema, with its description."""
    return pa.field(name, kind, nullable=not required, metadata={"description": description})
