"""Landing and its journal: pages as received, immutable, and the order in which they came.

The journal is a write-ahead log. A fetch lands its pages by content hash and then seals one *segment*, an object
``<source>/_journal/<load>.jsonl`` that is written only where there is none. A load is the loading of one sealed
segment: whatever is killed, the next run first loads the segments that the warehouse has not got. The verdict of the
audit lies beside the segment. So raw can be rebuilt from the object store alone, load by load.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count, zip_longest
from pathlib import Path
from typing import IO, Any, Self

from ingestion.contract import Cursor, Gone, Landed, Page
from storage.objects import Objects

Interval = tuple[datetime, datetime]
BUCKET = "landing"
UPLOADS = 8  # the client is the limit, not the server: more threads make it no faster


@dataclass(frozen=True)
class Header:
    """First line of a segment: what was fetched, and where to go on."""

    source: str
    resource: str
    load: int
    lane: str
    slice: str
    interval: Interval | None
    run_id: str
    sealed_at: datetime
    cursor: Cursor

    @property
    def again_of(self) -> int | None:
        """The load whose pages these are, when they are read again for what went to quarantine."""
        return int(self.slice) if self.lane == "replay" else None


def segment_key(source: str, load: int) -> str:
    return f"{source}/_journal/{load:012d}.jsonl"


def verdict_key(source: str, load: int) -> str:
    return f"{source}/_journal/{load:012d}.verdict.json"


def last_segment(objects: Objects, source: str) -> int:
    """Number of the last sealed segment; 0 when there is none."""
    return max(segments(objects, source), default=0)


def segments(objects: Objects, source: str) -> list[int]:
    keys = objects.list(BUCKET, f"{source}/_journal/")
    return sorted(int(key.rsplit("/", 1)[1].removesuffix(".jsonl")) for key in keys if key.endswith(".jsonl"))


class Uploads:
    """Uploads side by side, never more than a few bodies in memory; leaving the block waits for all of them."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self._pool = ThreadPoolExecutor(UPLOADS, thread_name_prefix="upload")
        self._pending: list[Future[bool]] = []

    def put(self, bucket: str, key: str, body: bytes | Path, content_type: str) -> None:
        if isinstance(body, Path):  # a source may remove its temporary file as soon as it is asked for the next page
            self.objects.put(bucket, key, body, content_type)
            return
        if len(self._pending) >= 2 * UPLOADS:
            self._pending.pop(0).result()
        self._pending.append(self._pool.submit(self.objects.put, bucket, key, body, content_type))

    def wait(self) -> None:
        while self._pending:
            self._pending.pop(0).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)


class Copies(dict[str, Path]):
    """Copies of what lands, on this machine, by address: what is loaded next need not be fetched back.

    Only what fits is kept. Nothing depends on it: another process, or this one tomorrow, reads from landing.
    """

    def __init__(self, most: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="lyrebird-", ignore_cleanup_errors=True)
        self._left = min(most, shutil.disk_usage(self._folder.name).free // 4)  # bytes
        self._numbers = count()

    def keep(self, body: bytes | Path) -> Path | None:
        """A copy of a body; None where there is no room."""
        size = len(body) if isinstance(body, bytes) else body.stat().st_size
        if size > self._left:
            return None
        self._left -= size
        path = Path(self._folder.name) / str(next(self._numbers))
        try:
            if isinstance(body, bytes):
                path.write_bytes(body)
            else:
                shutil.copyfile(body, path)
        except OSError:  # the disk may be full: then there is no copy
            path.unlink(missing_ok=True)
            return None
        return path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._folder.cleanup()


class Segment:
    """The segment being written: pages land at once, the entries wait in a temporary file until it is sealed."""

    def __init__(self, objects: Objects, source: str, resource: str, copies: Copies | None = None) -> None:
        self.objects, self.source, self.resource, self.copies = objects, source, resource, copies
        self.pages = self.bytes = 0
        self.cursor: Cursor | None = None
        self._uploads = Uploads(objects)
        # half of a UTF-16 pair, which no UTF-8 text can hold, becomes a question mark; closed in seal and drop
        self._entries: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115

    def add(self, item: Page | Gone) -> None:
        """Land a page and note it."""
        self.pages += 1
        self.cursor = item.cursor
        entry: dict[str, Any] = {"fetched_at": datetime.now(UTC).isoformat()}
        if isinstance(item, Gone):
            entry["gone"] = list(item.key)
        else:
            if item.fetched_at is not None:
                entry["fetched_at"] = item.fetched_at.isoformat()
            entry |= {"name": item.name, "content_type": item.content_type, "meta": dict(item.meta)}
            if item.ref is not None:
                entry |= {"key": item.ref, "sha256": item.ref.rsplit("/", 1)[1].split(".")[0], "bytes": 0}
            else:
                body = item.body or b""
                copy = self.copies.keep(body) if self.copies is not None else None
                if isinstance(body, Path):
                    body = copy or body  # nobody writes to a copy while it is hashed, landed and loaded
                sha256, size = digest(body)
                key = f"{self.source}/{self.resource}/{sha256[:2]}/{sha256}"
                entry |= {"key": f"{BUCKET}/{key}", "sha256": sha256, "bytes": size}
                self.bytes += size
                self._uploads.put(BUCKET, key, body, item.content_type)
                if self.copies is not None and copy is not None:
                    self.copies[f"{BUCKET}/{key}"] = copy
        self._entries.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def seal(self, *, lane: str, slice: str, interval: Interval | None, run_id: str) -> int:
        """Write the segment under the next free number, and give it. Others may seal at the same time.

        A number may be taken by this very segment: the client asks again when an answer was lost on its way.
        """
        with self._uploads, self._entries as entries, tempfile.TemporaryFile("wb+") as body:
            self._uploads.wait()  # every page lies there before the journal speaks of it
            load = last_segment(self.objects, self.source)
            while True:
                load += 1
                header = {
                    "source": self.source,
                    "resource": self.resource,
                    "load": load,
                    "lane": lane,
                    "slice": slice,
                    "interval": [moment.isoformat() for moment in interval] if interval else None,
                    "run_id": run_id,
                    "sealed_at": datetime.now(UTC).isoformat(),
                    "cursor": self.cursor,
                }
                body.seek(0)
                body.truncate()
                body.write(json.dumps(header, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
                entries.seek(0)
                for line in entries:
                    body.write(line.encode())
                body.seek(0)
                key = segment_key(self.source, load)
                if self.objects.put(BUCKET, key, body, "application/jsonl", if_absent=True):  # type: ignore[arg-type]
                    return load
                body.seek(0)
                if self.objects.exists(BUCKET, key) and _same(body, _fetched(self.objects, key)):
                    return load

    def drop(self) -> None:
        """Forget an unsealed segment; pages that landed stay, by content, and are found again."""
        with self._uploads, self._entries:
            pass


def read_segment(
    objects: Objects, source: str, load: int, kept: Mapping[str, Path] | None = None
) -> tuple[Header, Iterator[Landed]]:
    """A sealed segment: its header, and its entries one after another.

    The whole segment is fetched to a temporary file first: a load may take hours, and no server keeps a stream open
    for somebody who reads so slowly.
    """
    lines = _fetched(objects, segment_key(source, load))
    head = json.loads(next(lines))
    interval = head["interval"]
    header = Header(
        source=head["source"],
        resource=head["resource"],
        load=head["load"],
        lane=head["lane"],
        slice=head["slice"],
        interval=(datetime.fromisoformat(interval[0]), datetime.fromisoformat(interval[1])) if interval else None,
        run_id=head["run_id"],
        sealed_at=datetime.fromisoformat(head["sealed_at"]),
        cursor=head["cursor"],
    )

    def entries() -> Iterator[Landed]:
        for position, line in enumerate(lines):
            yield Landed.of(objects, position, json.loads(line), kept or {})

    return header, entries()


def rewrite(objects: Objects, source: str, load: int, entries: Mapping[int, dict[str, Any]]) -> None:
    """Put these entries in place of those at their positions: what nothing but a withdrawal may do to the journal."""
    key = segment_key(source, load)
    with tempfile.TemporaryFile("wb+") as body:
        for position, line in enumerate(_fetched(objects, key), start=-1):  # the header comes before the first entry
            if position in entries:
                entry = entries[position] | {"fetched_at": json.loads(line)["fetched_at"]}
                line = json.dumps(entry, ensure_ascii=False) + "\n"  # noqa: PLW2901
            body.write(line.encode())
        body.seek(0)
        objects.put(BUCKET, key, body, "application/jsonl")  # type: ignore[arg-type]


def _fetched(objects: Objects, key: str) -> Iterator[str]:
    """Lines of an object in landing."""
    with tempfile.TemporaryDirectory(prefix="lyrebird-") as folder:
        path = Path(folder) / "segment"
        objects.download(BUCKET, key, path)
        with path.open(encoding="utf-8", newline="\n") as file:
            yield from file


def _same(body: IO[bytes], lines: Iterator[str]) -> bool:
    """Whether a file has these lines and no others."""
    return all(one == (other or "").encode() for one, other in zip_longest(body, lines))


def write_verdict(objects: Objects, source: str, load: int, state: str, reason: str) -> None:
    body = {"state": state, "reason": reason, "at": datetime.now(UTC).isoformat()}
    objects.put(BUCKET, verdict_key(source, load), json.dumps(body, ensure_ascii=False).encode(), "application/json")


def read_verdict(objects: Objects, source: str, load: int) -> dict[str, str] | None:
    key = verdict_key(source, load)
    return json.loads(objects.get(BUCKET, key)) if objects.exists(BUCKET, key) else None


def digest(body: bytes | Path) -> tuple[str, int]:
    """SHA-256 and size of a body, in bounded memory."""
    if isinstance(body, bytes):
        return hashlib.sha256(body).hexdigest(), len(body)
    with body.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), body.stat().st_size
