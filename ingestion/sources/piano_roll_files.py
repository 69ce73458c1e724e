"""Music published as frames: JSON files {split: [piece: [step: [MIDI pitches]]]}, as the JSB chorales are.

The grid is told from the file's name (``quarter`` or ``16th``). A file adds or changes pieces; a piece that a shorter
new version of its file no longer has is deleted, a file that is gone leaves its pieces as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from ingestion.contract import LOCATION, Bad, BadPage, Context, Gone, Landed, Page, Record, Resource, Source, describe
from storage.media import frames

MAX_BYTES = 64 << 20
SPLITS = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "test": "test",
}


def fetch(context: Context) -> Iterator[Page | Gone]:
    """Files that are new or changed. Cursor: {"files": {name: etag, or hash where there is none}}."""
    location = context.location()
    if location is None:
        return
    for file in location.changed("**/*.json", context.cursor.get("files", {}), lambda name: True):
        if file.again and file.path.stat().st_size <= MAX_BYTES:
            yield from _dropped(context, file.name, file.path.read_bytes(), file.cursor)
        yield Page(file.name, file.path, file.cursor, "application/json")


def parse(landed: Landed) -> Iterator[Record | Bad]:
    grid = next((grid for grid in frames.GRIDS if grid in PurePosixPath(landed.name).name), None)
    if grid is None:
        raise BadPage(f"the file's name does not say its grid: it should hold one of {', '.join(frames.GRIDS)}")
    if landed.size > MAX_BYTES:
        raise BadPage(f"{landed.size:,} bytes are more than {MAX_BYTES:,}")
    for name, number, piece in _pieces(_document(landed.read())):
        split = SPLITS.get(name.lower())
        reason = _wrong(piece) if split else f"{name!r} is no split: {', '.join(SPLITS)}"
        if split is None or reason:
            yield Bad({"split": name, "number": number, "piece": piece}, reason)
            continue
        steps = [sorted({int(pitch) for pitch in frame}) for frame in piece]
        yield {
            "piece_id": _piece_id(landed.name, name, number),
            "file": landed.name,
            "split": split,
            "number": number,
            "grid": grid,
            "frames": steps,
            "fingerprint": frames.fingerprint(steps, grid),
        }


def _document(body: bytes) -> dict[str, list[Any]]:
    """Raises BadPage for what is no JSON object of lists."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadPage(f"no valid JSON: {error}") from error
    if not isinstance(document, dict) or not all(isinstance(pieces, list) for pieces in document.values()):
        raise BadPage("no object of lists of pieces, a list for each split")
    return document


def _pieces(document: dict[str, list[Any]]) -> Iterator[tuple[str, int, Any]]:
    for name, pieces in document.items():
        for number, piece in enumerate(pieces):
            yield name, number, piece


def _wrong(piece: Any) -> str:
    """What keeps a piece from being one; "" when nothing does."""
    if not isinstance(piece, list) or not piece:
        return "a piece is a list of steps, at least one"
    if len(piece) > frames.MAX_STEPS:
        return f"{len(piece):,} steps are more than {frames.MAX_STEPS:,}"
    for index, frame in enumerate(piece):
        if not isinstance(frame, list):
            return f"step {index} is no list of pitches"
        for pitch in frame:
            # Some pieces of the published 16th grid hold 67.0 for 67.
            if isinstance(pitch, bool) or not isinstance(pitch, (int, float)) or pitch not in range(128):
                return f"step {index} holds {str(pitch)[:20]!r}, which is no MIDI pitch"
    return ""


def _piece_id(file: str, split: str, number: int) -> str:
    return f"{PurePosixPath(file).stem}/{split}/{number}"


def _dropped(context: Context, file: str, body: bytes, cursor: dict[str, Any]) -> Iterator[Gone]:
    """Deletions of the pieces that the file had and has no more. A file that cannot be read deletes nothing."""
    try:
        now = {_piece_id(file, name, number) for name, number, _ in _pieces(_document(body))}
    except BadPage:
        return
    with closing(context.warehouse()) as db, db, db.cursor() as sql:
        sql.execute("select distinct piece_id from raw.piano_roll_files_pieces where file = %s order by 1", (file,))
        before = [piece_id for (piece_id,) in sql.fetchall()]
    for piece_id in before:
        if piece_id not in now:
            yield Gone((piece_id,), cursor)


SOURCE = Source(
    name="piano_roll_files",
    title="Piano roll files",
    domain="music",
    description="Pieces published as the pitches that sound at each step of a grid, in the splits of their papers.",
    licence="as the files' publisher says; the JSB chorales are a research data set of music in the public domain",
    cadence="15 4 * * *",
    cursor="mark of each file",
    volume="as many pieces as there are; 382 chorales in the published set",
    url="https://github.com/czhuang/JSB-Chorales-dataset",
    config=LOCATION,
    resources=(
        Resource(
            name="pieces",
            mode="merge",
            key=("piece_id",),
            fetch=fetch,
            parse=parse,
            description="A piece as frames.",
            schema=pa.schema(
                [
                    describe("piece_id", pa.string(), "file/split/number", required=True),
                    describe("file", pa.string(), "name of the file at its location", required=True),
                    describe("split", pa.string(), "published split: train, valid or test", required=True),
                    describe("number", pa.int64(), "place in its split, from 0", required=True),
                    describe("grid", pa.string(), "length of a step: quarter or 16th", required=True),
                    describe(
                        "frames",
                        pa.list_(pa.list_(pa.int16())),
                        "MIDI pitches that sound at each step, ascending; a rest is empty",
                        required=True,
                    ),
                    describe("fingerprint", pa.string(), "the same for the same tune in any key", required=True),
                ]
            ),
        ),
    ),
)
