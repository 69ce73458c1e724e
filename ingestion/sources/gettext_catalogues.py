"""Translations that installed packages carry: gettext catalogues (.mo), one page a file.

The texts are kept as they are; markup and placeholders are SQL's business.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath

import pyarrow as pa

from ingestion.contract import Bad, BadPage, Context, Landed, Page, Record, Resource, Source, describe
from storage.errors import Problem

MAX_BYTES = 16 << 20
MAX_MESSAGES = 200_000
MAX_TEXT = 100_000  # bytes of one message
_MAGIC = 0x950412DE


def fetch(context: Context) -> Iterator[Page]:
    """All catalogues of the chosen packages and languages, when any has changed. Cursor: a digest of all of them."""
    packages = _names(context.config["packages"])
    languages = _names(context.config["languages"])
    catalogues = [catalogue for package in packages for catalogue in _catalogues(package, languages)]
    if not catalogues:
        raise Problem(f"none of the packages {', '.join(packages)} with catalogues is installed", "make install")
    digest = hashlib.sha256()
    for one in catalogues:
        digest.update(f"{one.path} {one.version} {hashlib.sha256(one.file.read_bytes()).hexdigest()}\n".encode())
    cursor = {"digest": digest.hexdigest()[:16]}
    if context.cursor.get("digest") == cursor["digest"]:
        return
    for one in catalogues:
        yield Page(one.path, one.file.read_bytes(), cursor, "application/x-gettext-translation", one.meta)


def parse(landed: Landed) -> Iterator[Record | Bad]:
    """A record for each plural form of each message. Raises BadPage for a file that is no intact catalogue."""
    if landed.size > MAX_BYTES:
        raise BadPage(f"{landed.size:,} bytes are more than {MAX_BYTES:,}")
    entries = list(_entries(landed.read()))
    charset = _charset(entries)
    for original, translation in entries:
        if not original:
            continue  # the header
        try:
            source, target = original.decode(charset), translation.decode(charset)
        except UnicodeDecodeError as error:
            yield Bad(f"{original!r} -> {translation!r}", f"no valid {charset}: {error.reason} at byte {error.start}")
            continue
        context, found, message = source.partition("\x04")
        singular, _, plural = (message if found else source).partition("\x00")
        for form, text in enumerate(target.split("\x00")):
            yield dict(landed.meta) | {
                "context": context if found else "",
                "source_text": plural if form and plural else singular,
                "target_text": text,
                "form": form,
                "path": landed.name,
            }


@dataclass(frozen=True)
class _Catalogue:
    package: str
    version: str
    licence: str
    language: str
    path: str  # below site-packages
    file: Path

    @property
    def meta(self) -> dict[str, str]:
        """What a record holds beside the message itself."""
        return {
            "package": self.package,
            "package_version": self.version,
            "language": self.language,
            "licence": self.licence,
        }


def _catalogues(package: str, languages: list[str]) -> Iterator[_Catalogue]:
    """The package's ``<folder>/<language>/LC_MESSAGES/*.mo``, in a stable order; none when not installed."""
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return
    paths = {str(path): path for path in distribution.files or ()}
    for name in sorted(paths):
        path = PurePosixPath(name)
        if path.suffix != ".mo" or len(path.parts) < 3 or path.parts[-2] != "LC_MESSAGES":
            continue
        file = Path(str(distribution.locate_file(paths[name])))
        if path.parts[-3] in languages and file.is_file():
            licence = _licence(distribution.metadata)
            yield _Catalogue(package, distribution.version, licence, path.parts[-3], path.as_posix(), file)


def _licence(metadata: importlib.metadata.PackageMetadata) -> str:
    """What the package says of its terms: an SPDX expression where it has one."""
    for field in ("License-Expression", "License"):
        text = str(metadata[field] or "").strip() if field in metadata else ""
        if text and "\n" not in text:
            return text
    names = [name for name in metadata.get_all("Classifier") or [] if name.startswith("License ::")]
    return names[0].rsplit(" :: ", 1)[-1] if names else "not stated"


def _entries(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(original, translation) of a .mo file; the layout is in GNU gettext's manual, "The Format of GNU MO Files"."""
    if len(data) < 28:
        raise BadPage("no gettext catalogue: the file is empty or shorter than its header")
    order = next((order for order in "<>" if struct.unpack_from(f"{order}I", data)[0] == _MAGIC), None)
    if order is None:
        raise BadPage("no gettext catalogue: the magic number is missing")
    revision, count, originals, translations = struct.unpack_from(f"{order}4I", data, 4)
    if revision >> 16 > 1:
        raise BadPage(f"a gettext catalogue of the unknown revision {revision >> 16}")
    if count > MAX_MESSAGES or max(originals, translations) + 8 * count > len(data):
        raise BadPage("a gettext catalogue that was cut short: its tables reach past its end")
    for index in range(count):
        pair = []
        for table in (originals, translations):
            length, offset = struct.unpack_from(f"{order}2I", data, table + 8 * index)
            if length > MAX_TEXT or offset + length > len(data):
                raise BadPage(f"a gettext catalogue that was cut short: message {index} reaches past its end")
            pair.append(data[offset : offset + length])
        yield pair[0], pair[1]


def _charset(entries: list[tuple[bytes, bytes]]) -> str:
    """The charset that the catalogue's header names; UTF-8 where it names none that there is."""
    header = next((translation for original, translation in entries if not original), b"")
    charset = HeaderParser().parsestr(header.decode("ascii", "replace")).get_content_charset("utf-8")
    try:
        "".encode(charset)
    except LookupError:
        return "utf-8"
    return charset


def _names(option: object) -> list[str]:
    names = option.split(",") if isinstance(option, str) else [str(name) for name in option]  # type: ignore[attr-defined]
    return [name.strip() for name in names if name.strip()]


SOURCE = Source(
    name="gettext_catalogues",
    title="gettext catalogues of installed packages",
    domain="text",
    description="User interface texts in English and other languages, as translators of free software wrote them.",
    licence="that of each package",
    cadence="30 4 * * 1",
    cursor="digest of the installed catalogues",
    volume="some tens of thousands of messages",
    config={
        "packages": ("django,wagtail,sphinx,babel,pycountry", "packages to look in, separated by commas"),
        "languages": ("ru,de,fr,es", "languages, as the packages' folders name them, separated by commas"),
    },
    resources=(
        Resource(
            name="messages",
            mode="replace",
            key=("path", "context", "source_text", "form"),
            fetch=fetch,
            parse=parse,
            description="One plural form of a message and its translation.",
            schema=pa.schema(
                [
                    describe("package", pa.string(), "package that carries the catalogue", required=True),
                    describe("package_version", pa.string(), "its version", required=True),
                    describe("language", pa.string(), "language of the translation, ISO 639-1", required=True),
                    describe(
                        "context", pa.string(), "what tells apart messages of one text; mostly empty", required=True
                    ),
                    describe(
                        "source_text", pa.string(), "English text; the plural one for forms past 0", required=True
                    ),
                    describe("target_text", pa.string(), "translation", required=True),
                    describe(
                        "form", pa.int64(), "plural form of the target language; 0 without plurals", required=True
                    ),
                    describe("path", pa.string(), "catalogue's path below site-packages", required=True),
                    describe("licence", pa.string(), "the package's licence", required=True),
                ]
            ),
        ),
    ),
)
