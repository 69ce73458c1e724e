"""Text that is aligned by line: a file per split and language, plain or gzip, as Multi30k is published.

``<corpus>/<part>.<language>[.gz]``: line n of one language belongs to line n of the others. Files are read one by one,
so a line without a counterpart is a row like any other, and simply makes no pair in SQL; there it can be counted. A
file adds or changes lines; lines past the end of a shorter new version are deleted, a file that is gone leaves its
lines as they are.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import pyarrow as pa

from ingestion.contract import LOCATION, Bad, BadPage, Context, Gone, Landed, Page, Record, Resource, Source, describe

MAX_LINE = 100_000  # bytes
MAX_BYTES = 8 << 30  # unpacked
_NAME = re.compile(r"(?P<part>[A-Za-z0-9][\w.-]*)\.(?P<language>[a-z]{2,3}(?:[-_][A-Za-z]{2,8})?)")


def fetch(context: Context) -> Iterator[Page | Gone]:
    """Files that are new or changed. Cursor: {"files": {name: etag, or hash where there is none}}."""
    location = context.location()
    if location is None:
        return
    for file in location.changed("**/*", context.cursor.get("files", {}), _is_text):
        if file.again:
            yield from _dropped(context, file.name, file.path, file.cursor)
        content_type = "application/gzip" if file.name.endswith(".gz") else "text/plain"
        yield Page(file.name, file.path, file.cursor, content_type)


def _is_text(name: str) -> bool:
    """Whether a file's name is that of a split in a language: other files may lie beside them."""
    try:
        return bool(_facts(name))
    except BadPage:
        return False


def parse(landed: Landed) -> Iterator[Record | Bad]:
    """A record a line. Raises BadPage, before the first record, for a file whose gzip is damaged or cut short."""
    facts = _facts(landed.name)
    with landed.path() as path:
        packed = landed.name.endswith(".gz")
        count_lines(path, packed)
        with _opened(path, packed) as file:
            for number, raw in enumerate(_lines(file), start=1):
                line = raw.rstrip(b"\r\n")
                if len(line) > MAX_LINE:
                    yield Bad(f"line {number}", f"line {number} is longer than {MAX_LINE:,} bytes")
                    continue
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    yield Bad(
                        repr(line[:200]), f"line {number} is no valid UTF-8: {error.reason} at byte {error.start}"
                    )
                    continue
                yield facts | {"line": number, "text": text}


def count_lines(path: Path, packed: bool) -> int:
    """Lines in the file, read to its end. Raises BadPage for damaged gzip."""
    total = lines = 0
    last = b"\n"
    try:
        with _opened(path, packed) as file:
            while block := file.read(1 << 20):
                total += len(block)
                lines += block.count(b"\n")
                last = block[-1:]
                if total > MAX_BYTES:
                    raise BadPage(f"unpacks to more than {MAX_BYTES:,} bytes")
    except (EOFError, OSError, zlib.error) as error:
        raise BadPage(f"the gzip file is damaged or was cut short: {error}") from error
    return lines + (last != b"\n")


def _opened(path: Path, packed: bool) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if packed else path.open("rb")


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines, each cut off just past MAX_LINE so that a file without line ends cannot fill the memory."""
    while line := file.readline(MAX_LINE + 1):
        yield line
        while len(line) > MAX_LINE and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE + 1)  # the rest of a line that is too long


def _facts(name: str) -> dict[str, Any]:
    """corpus, split, part and language out of ``<corpus>/<part>.<language>[.gz]``; BadPage where they are not in it."""
    path = PurePosixPath(name)
    match = _NAME.fullmatch(path.name.removesuffix(".gz"))
    if match is None or not path.parent.name:
        raise BadPage("the file's name is not <corpus>/<part>.<language> or <corpus>/<part>.<language>.gz")
    part = match["part"]
    splits = {"train": "train", "val": "valid", "dev": "valid", "test": "test"}
    split = next((split for start, split in splits.items() if part.lower().startswith(start)), None)
    if split is None:
        raise BadPage(f"{part!r} names no split: it should begin with train, val, dev or test")
    return {"corpus": path.parent.name, "split": split, "part": part, "language": match["language"]}


def _dropped(context: Context, name: str, path: Path, cursor: dict[str, Any]) -> Iterator[Gone]:
    """Deletions of the lines past the file's new end. A file that cannot be read deletes nothing."""
    try:
        facts, count = _facts(name), count_lines(path, name.endswith(".gz"))
    except BadPage:
        return
    with closing(context.warehouse()) as db, db, db.cursor() as sql:
        sql.execute(
            """
            select distinct line from raw.parallel_files_lines
            where corpus = %(corpus)s and part = %(part)s and language = %(language)s and line > %(count)s
            order by line
            """,
            facts | {"count": count},
        )
        past = [line for (line,) in sql.fetchall()]
    for line in past:
        yield Gone((facts["corpus"], facts["part"], facts["language"], line), cursor)


SOURCE = Source(
    name="parallel_files",
    title="Line-aligned parallel text",
    domain="text",
    description="Sentences in several languages, aligned by line, in the splits of their papers.",
    licence="as the files' publisher says; Multi30k is for research and education, non-commercial",
    cadence="45 4 * * *",
    cursor="mark of each file",
    volume="as many lines as there are",
    url="https://github.com/multi30k/dataset",
    config=LOCATION,
    resources=(
        Resource(
            name="lines",
            mode="merge",
            key=("corpus", "part", "language", "line"),
            fetch=fetch,
            parse=parse,
            description="A line of one language.",
            schema=pa.schema(
                [
                    describe("corpus", pa.string(), "name of the folder", required=True),
                    describe("split", pa.string(), "train, valid or test", required=True),
                    describe(
                        "part", pa.string(), "split as the file names it, such as test_2016_flickr", required=True
                    ),
                    describe("language", pa.string(), "language as the file names it", required=True),
                    describe("line", pa.int64(), "number of the line, from 1", required=True),
                    describe("text", pa.string(), "the line, as it is", required=True),
                ]
            ),
        ),
    ),
)
