"""Scores that the package music21 carries: the Bach chorales and folk tunes, as files, byte for byte.

music21 itself is not imported here: the files are found beside it. What is in them is read in ``derive/notes``.
The version of music21 in this environment decides what there is; the Nottingham database, for one, is down to the two
tunes that music21 10 still distributes. The larger tune books are an option away.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ingestion.contract import Bad, Context, Landed, Page, Record, Resource, Source, describe
from storage.errors import Problem
from storage.media.scores import CONTENT_TYPES


@dataclass(frozen=True)
class Collection:
    folder: str
    licence: str
    composer: str | None = None
    without: tuple[str, ...] = ()  # works in the folder that do not belong to the collection


_PERMITTED = "music in the public domain; encoding distributed with music21 by permission of its encoders"
COLLECTIONS = {
    # bwv846 is a prelude. Works that come in two encodings are taken in the first of CONTENT_TYPES.
    "bach-chorales": Collection("bach", _PERMITTED, "Johann Sebastian Bach", ("bwv846",)),
    "nottingham": Collection("nottingham-dataset", _PERMITTED),
    "ryans-mammoth": Collection("ryansMammoth", _PERMITTED),
    "oneills": Collection("oneills1850", _PERMITTED),
    "airds-airs": Collection("airdsAirs", _PERMITTED),
    "essen": Collection("essenFolksong", "legal status unclear; non-commercial distribution and use permitted"),
}


def fetch(context: Context) -> Iterator[Page]:
    """Every chosen file, when any of them has changed since the last load. Cursor: a digest of all of them."""
    chosen = list(_files(_root(), context.config["collections"], int(context.config["limit"])))
    digest = hashlib.sha256()
    for path, _, body in chosen:
        digest.update(f"{path} {hashlib.sha256(body).hexdigest()}\n".encode())
    cursor = {"digest": digest.hexdigest()[:16], "music21": importlib.metadata.version("music21")}
    if context.cursor.get("digest") == cursor["digest"]:
        return
    for path, name, body in chosen:
        collection = COLLECTIONS[name]
        meta = {"corpus": name, "licence": collection.licence, "composer": collection.composer}
        yield Page(path, body, cursor, CONTENT_TYPES[Path(path).suffix], meta)


def parse(landed: Landed) -> Iterator[Record | Bad]:
    yield {
        "path": landed.name,
        "corpus": landed.meta["corpus"],
        "format": Path(landed.name).suffix.removeprefix("."),
        "sha256": landed.sha256,
        "bytes": landed.size,
        "composer": landed.meta["composer"],
        "licence": landed.meta["licence"],
    }


def _root() -> Path:
    """The corpus folder of the installed music21. Raises Problem when there is none."""
    found = importlib.util.find_spec("music21")
    folder = Path(found.origin).parent / "corpus" if found and found.origin else None
    if folder is None or not folder.is_dir():
        raise Problem("music21, whose corpus holds the scores, is not installed", "make install")
    return folder


def _files(root: Path, wanted: Any, limit: int) -> Iterator[tuple[str, str, bytes]]:
    """(path in the corpus, collection, bytes) of the scores wanted, in a stable order."""
    names = [name.strip() for name in wanted.split(",")] if isinstance(wanted, str) else list(wanted)
    for name in filter(None, names):
        if name not in COLLECTIONS:
            raise Problem(f"music21_corpus has no collection {name!r}", f"There are: {', '.join(COLLECTIONS)}")
        collection = COLLECTIONS[name]
        works: dict[str, Path] = {}
        for suffix in CONTENT_TYPES:
            for path in (root / collection.folder).glob(f"*{suffix}"):
                works.setdefault(path.stem, path)
        chosen = sorted(path for work, path in works.items() if work not in collection.without)
        for path in chosen[: limit or None]:
            yield path.relative_to(root).as_posix(), name, path.read_bytes()


SOURCE = Source(
    name="music21_corpus",
    title="Scores of the music21 corpus",
    domain="music",
    description="Bach's chorales and folk tunes in MusicXML and ABC, as the installed package music21 carries them.",
    licence="music in the public domain; encodings by permission of their encoders, some for non-commercial use only",
    cadence="0 4 * * 1",
    cursor="digest of the files chosen, and music21's version",
    volume="about 400 chorales and tune books; up to 3,000 files",
    url="https://www.music21.org/music21docs/about/referenceCorpus.html",
    config={
        "collections": ("bach-chorales,nottingham", f"which, separated by commas: {', '.join(COLLECTIONS)}"),
        "limit": (0, "at most so many files of each collection; 0 = all"),
    },
    resources=(
        Resource(
            name="scores",
            store="objects",
            mode="replace",
            key=("path",),
            fetch=fetch,
            parse=parse,
            description="A score file of the corpus.",
            schema=pa.schema(
                [
                    describe("path", pa.string(), "path of the file in music21's corpus", required=True),
                    describe("corpus", pa.string(), "collection it belongs to", required=True),
                    describe("format", pa.string(), "mxl, xml, krn or abc", required=True),
                    describe("sha256", pa.string(), "hash of the file", required=True),
                    describe("bytes", pa.int64(), "size of the file", required=True),
                    describe("composer", pa.string(), "composer of the whole collection, where it has one"),
                    describe("licence", pa.string(), "terms of music and encoding", required=True),
                ]
            ),
        ),
    ),
)
