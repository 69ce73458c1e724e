"""A landed page whose bytes are at hand: parse is pure, so it needs no object store to be tried."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from ingestion.contract import Landed

# What any source's fetch may have noted of a page.
META: dict[str, Any] = {
    **{"source": "s", "corpus": "c", "composer": None, "licence": "l", "recording_key": "r", "audio_sha256": "0"},
    **{"language": "deu", "languages": ["eng", "deu"], "sentences": "landing/s/0", "cc0": "landing/s/0"},
    **{"species": "Turdus merula", "piece": "1", "title": "t", "updated": "2024-05-01", "url": "u"},
}


class LandedBytes(Landed):
    """A page as parse sees it, out of memory."""

    def __init__(self, body: bytes, name: str = "page", content_type: str = "", **meta: Any) -> None:
        digest = hashlib.sha256(body).hexdigest()
        super().__init__(
            objects=None,  # type: ignore[arg-type]
            position=0,
            name=name,
            key=f"landing/test/{digest}",
            sha256=digest,
            size=len(body),
            content_type=content_type,
            fetched_at=datetime(2024, 5, 1, tzinfo=UTC),
            meta=meta,
        )
        object.__setattr__(self, "body", body)

    def read(self) -> bytes:
        return self.body  # type: ignore[attr-defined,no-any-return]

    def open(self) -> BinaryIO:
        return io.BytesIO(self.read())

    @contextmanager
    def path(self) -> Iterator[Path]:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "page"
            path.write_bytes(self.read())
            yield path
