"""Archives of strangers (zip, tar, tar.gz, tar.bz2, tar.xz), read as a stream: nothing is ever unpacked to the disk.

Nothing that an archive says about itself is trusted: bytes are counted as they are unpacked, names are checked, and
what is no ordinary file is refused. A member that cannot be taken is named with the reason and the rest goes on; an
archive that lies (overlapping members, more than it may unpack to, damage, a missing end) is a Problem as a whole.
Archives within archives are ordinary files here.
"""

from __future__ import annotations

import bz2
import io
import lzma
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from ingestion.locations import _matcher as matcher
from storage.errors import Problem

MB = 1 << 20
CHUNK = 1 << 16
FLOOR = 16 * MB  # what any archive may unpack to, however small it is
LONGEST_NAME = 1_000  # bytes
LARGEST_HEADER = 1 << 16  # bytes of a long name or of extended attributes in a tar archive
ENTRY = 128  # bytes of an entry in a zip archive's directory, with its name, on average
XZ_MEMORY = 256 * MB
MOST_TINY = 1_000  # compressed streams of less than a block in one file
BLOCK = tarfile.BLOCKSIZE
_LOCAL_HEADER, _DIRECTORY_ENTRY = 30, b"PK\x01\x02"  # bytes before a name in a zip archive, and how an entry begins


@dataclass(frozen=True)
class Member:
    """An ordinary file of an archive. ``name`` is relative, with ``/`` between folders and no ``..``."""

    name: str
    size: int  # bytes
    _open: Callable[[], io.RawIOBase] = field(repr=False)

    def open(self) -> BinaryIO:
        """The content as a stream; once, and before the next member is asked for.

        Reading raises Problem when the content is damaged, cut short, or not as long as announced.
        """
        return cast(BinaryIO, io.BufferedReader(self._open(), CHUNK))


@dataclass(frozen=True)
class Refused:
    """A member that is not taken, and why. ``name`` is fit to be shown, not to be used."""

    name: str
    reason: str


def members(
    path: Path,
    *,
    pattern: str = "**/*",
    name: str = "",
    most: int = 16_384 * MB,
    most_each: int = 1_024 * MB,
    most_members: int = 500_000,
    ratio: int = 200,
) -> Iterator[Member | Refused]:
    """The members of an archive that match the pattern, in its order; folders are passed over.

    ``most`` bytes may be unpacked, and no more than ``ratio`` times the archive's size; ``most_each`` are the bytes of
    one member. ``name`` is what to call the archive in messages. Raises Problem for an archive that is none, or lies.
    """
    with path.open("rb") as file:
        size, magic = path.stat().st_size, file.read(6)
        file.seek(0)
        limits = _Limits(name or path.name, min(most, max(ratio * size, FLOOR)), most_each, most_members, ratio)
        taken = _Taken(pattern)
        with _told(limits):
            if magic.startswith(b"PK"):
                yield from _zip(path, limits, taken)
                return
            make = next((make for start, make in _UNPACKERS.items() if magic.startswith(start)), None)
            stream = cast(BinaryIO, io.BufferedReader(_Unpacked(file, make), CHUNK)) if make else file
            yield from _tar(_Counted(stream, limits), limits, taken)


@dataclass(frozen=True)
class _Limits:
    archive: str  # its name, for people
    unpacked: int
    each: int
    members: int
    ratio: int

    def exceeded(self, what: str) -> Problem:
        return Problem(
            f"{self.archive} {what}", "It may be a bomb; if it is not, split it, or unpack it and read the folder"
        )

    def too_much(self) -> Problem:
        return self.exceeded(f"unpacks to more than {self.unpacked / MB:,.0f} MB")

    def too_many(self) -> Problem:
        return self.exceeded(f"has more than {self.members:,} members")

    def lies(self, how: str) -> Problem:
        said = (how.splitlines() or [""])[0][:200]
        return Problem(f"{self.archive} is damaged, cut short or hostile: {said}", "Fetch it again, or leave it out")


@contextmanager
def _told(limits: _Limits) -> Iterator[None]:
    """What libraries say of a damaged archive, as one sentence."""
    try:
        yield
    except (zipfile.BadZipFile, NotImplementedError, zlib.error, lzma.LZMAError, struct.error) as error:
        raise limits.lies(str(error)) from None
    except (OSError, EOFError, ValueError) as error:  # such as bytes that are no text, or a place before the start
        raise limits.lies(str(error) or type(error).__name__) from None


class _Taken:
    """Which members are wanted, and which names have been seen."""

    def __init__(self, pattern: str) -> None:
        self._wanted, self._seen = matcher(pattern), set[int]()

    def member(
        self, given: str, reason: str, size: int, opened: Callable[[], io.RawIOBase]
    ) -> Iterator[Member | Refused]:
        """The member, its refusal, or nothing when it is not wanted."""
        name = "/".join(part for part in given.split("/") if part not in ("", "."))
        unsafe = _unsafe(given) or ("" if name else "it has no name")
        if not unsafe and not self._wanted(name):
            return
        reason = unsafe or reason or ("there is one of that name already" if hash(name) in self._seen else "")
        if reason:
            yield Refused(given[:200].encode("utf-8", "backslashreplace").decode(), reason)
            return
        self._seen.add(hash(name))
        yield Member(name, size, opened)


def _unsafe(name: str) -> str:
    """Why a name must not be used; "" when it may."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "its name is no valid UTF-8"
    if size > LONGEST_NAME:
        return f"its name has {size:,} bytes"
    if re.search(r"[\x00-\x1f\x7f]", name):
        return "its name has control characters in it"
    if "\\" in name:
        return "its name has backslashes in it"
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "its name is absolute"
    return "its name leads out of the archive" if ".." in name.split("/") else ""


# --- zip ---


def _zip(path: Path, limits: _Limits, taken: _Taken) -> Iterator[Member | Refused]:
    left = [limits.unpacked]
    with _Directory(path, limits) as file, zipfile.ZipFile(file) as archive:
        file.read_in = True
        _refuse_overlaps(archive, limits)
        for entry in archive.infolist():
            if not entry.orig_filename.endswith("/"):  # ZipInfo.is_dir wants a name of some length
                opened = partial(_Zipped, archive, entry, left, limits)
                yield from taken.member(entry.orig_filename, _zip_reason(entry, limits), entry.file_size, opened)


class _Directory(io.FileIO):
    """A zip archive's file that does not let zipfile make objects of a directory of any size."""

    read_in = False

    def __init__(self, path: Path, limits: _Limits) -> None:
        super().__init__(path)
        self._limits = limits

    def read(self, size: int | None = -1, /) -> bytes:
        if self.read_in:
            return super().read(size) or b""
        if (size or 0) > max(self._limits.members * ENTRY, MB):
            raise self._limits.too_many()
        data = super().read(size) or b""
        if data.count(_DIRECTORY_ENTRY) > self._limits.members:
            raise self._limits.too_many()
        return data


def _refuse_overlaps(archive: zipfile.ZipFile, limits: _Limits) -> None:
    """Members that share their bytes make the worst bombs (Fifield 2019, "A better zip bomb")."""
    end = 0
    for entry in sorted(archive.infolist(), key=lambda entry: entry.header_offset):
        if entry.header_offset < end:
            raise limits.lies("its members overlap")
        end = entry.header_offset + _LOCAL_HEADER + len(entry.orig_filename) + entry.compress_size
    if end > archive.start_dir:
        raise limits.lies("its members overlap its directory")


def _zip_reason(entry: zipfile.ZipInfo, limits: _Limits) -> str:
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        return "it is a link" if kind == stat.S_IFLNK else "it is no ordinary file"
    if entry.flag_bits & 0x2041:
        return "it is encrypted"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # zipfile unpacks others without bounds
        return f"it is compressed by method {entry.compress_type}, which is not read here"
    if entry.file_size > max(FLOOR, limits.ratio * entry.compress_size):
        return f"it unpacks to more than {limits.ratio} times its size"
    return _size_reason(entry.file_size, limits)


def _size_reason(size: int, limits: _Limits) -> str:
    return f"it has {size:,} bytes, more than {limits.each:,}" if size > limits.each else ""


class _Zipped(io.RawIOBase):
    """The content of a zip archive's member, counted."""

    def __init__(self, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, left: list[int], limits: _Limits) -> None:
        self._limits, self._left, self._due = limits, left, entry.file_size
        with _told(limits):
            self._file: Any = archive.open(entry)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        with _told(self._limits):
            data = self._file.read1(len(buffer))
        self._left[0] -= len(data)
        self._due -= len(data)
        if self._left[0] < 0:
            raise self._limits.too_much()
        if not data and self._due:
            raise self._limits.lies(f"{self._file.name} is shorter than it says")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


# --- tar ---


def _tar(stream: _Counted, limits: _Limits, taken: _Taken) -> Iterator[Member | Refused]:
    """Headers are parsed one by one: what tarfile does on top of that reads as much as they ask for, and recurses."""
    more: dict[str, str] = {}  # what extensions said of the next member
    for count in range(limits.members + 1):
        block = stream.read(BLOCK)
        if block == bytes(BLOCK):
            break
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            if count == 0:
                raise Problem(f"{limits.archive} is no zip or tar archive", "Look at what its address gives") from None
            raise limits.lies(str(error)) from None
        if info.size < 0:
            raise limits.lies("a member of negative size")
        if info.type in _EXTENSIONS:
            more |= _extension(info, stream, limits)
            continue
        if info.type == tarfile.GNUTYPE_SPARSE:
            last = block[482:483]
            while last.strip(b"\0"):
                last = stream.exactly(BLOCK)[504:505]
        has_data = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
        start, size = stream.position, int(more.get("size", info.size)) if has_data else 0
        name, reason = more.get("path", info.name), _tar_reason(info, size, more, limits)
        if not info.isdir():
            yield from taken.member(name, reason, size, partial(_Stored, stream, start, size))
        stream.pass_to(start + -(-size // BLOCK) * BLOCK)
        more = {}
    else:
        raise limits.too_many()
    while stream.read(CHUNK):  # to the end, where checksums are
        pass


_EXTENSIONS = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)


def _extension(info: tarfile.TarInfo, stream: _Counted, limits: _Limits) -> dict[str, str]:
    """What a header of a header says of the next member: its ``path``, its ``size``, whether it is ``sparse``."""
    if info.size > LARGEST_HEADER:
        raise limits.lies(f"a header of {info.size:,} bytes")
    data = stream.exactly(-(-info.size // BLOCK) * BLOCK)[: info.size]
    if info.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    said: dict[str, str] = {}
    at = 0
    while info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE) and data[at:].strip(b"\0"):
        found = re.compile(rb"([0-9]{1,5}) ([^=\n]{1,255})=").match(data, at)  # the record's length, and its name
        end = at + int(found[1]) if found else 0
        if not found or end > len(data) or data[end - 1 : end] != b"\n" or end <= found.end():
            raise limits.lies("a header that makes no sense")
        key, value = found[2].decode("latin-1"), data[found.end() : end - 1]
        if key == "size" and not re.fullmatch(rb"[0-9]{1,18}", value):
            raise limits.lies("a member of no size")
        if key in ("path", "size"):
            said[key] = value.decode("utf-8", "surrogateescape")
        elif key.startswith("GNU.sparse."):
            said["sparse"] = key
        at = end
    return said


def _tar_reason(info: tarfile.TarInfo, size: int, more: dict[str, str], limits: _Limits) -> str:
    if info.issym() or info.islnk():
        return "it is a link"
    if info.type == tarfile.GNUTYPE_SPARSE or "sparse" in more:
        return "it has holes, which are not read here"
    return _size_reason(size, limits) if info.type in tarfile.REGULAR_TYPES else "it is no ordinary file"


class _Counted:
    """An unpacked tar archive, read forwards and counted."""

    def __init__(self, file: BinaryIO, limits: _Limits) -> None:
        self._file, self._limits, self.position = file, limits, 0

    def read(self, size: int) -> bytes:
        with _told(self._limits):
            data = self._file.read(size)
        self.position += len(data)
        if self.position > self._limits.unpacked:
            raise self._limits.too_much()
        return data

    def exactly(self, size: int) -> bytes:
        data = self.read(size)
        if len(data) < size:
            raise self._limits.lies("it ends too soon")
        return data

    def pass_to(self, position: int) -> None:
        while self.position < position:
            self.exactly(min(CHUNK, position - self.position))


class _Stored(io.RawIOBase):
    """The content of a tar archive's member."""

    def __init__(self, stream: _Counted, start: int, size: int) -> None:
        if stream.position != start:
            raise ValueError("a member of a tar archive is read once, and before the next one is asked for")
        self._stream, self._left = stream, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self._stream.exactly(min(len(buffer), self._left))
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)


class _Gunzip:
    """zlib's decompressor with the face of those of bz2 and lzma. GzipFile reads a long header byte by byte."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)


def _unxz() -> Any:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)


_UNPACKERS: dict[bytes, Callable[[], Any]] = {b"\x1f\x8b": _Gunzip, b"BZh": bz2.BZ2Decompressor, b"\xfd7zXZ\0": _unxz}


class _Unpacked(io.RawIOBase):
    """A compressed file, unpacked as far as it is read; several streams one after another are one.

    Streams that hold next to nothing cost time that is counted nowhere else: OSError when there are very many of them.
    """

    def __init__(self, file: BinaryIO, make: Callable[[], Any]) -> None:
        self._file, self._make, self._unpack = file, make, make()
        self._tiny, self._held = 0, 0  # streams that held less than a block, and bytes of the one that is read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = b""
        while not data:
            given = b""
            if self._unpack.eof:
                given = (self._unpack.unused_data or self._file.read(CHUNK)).lstrip(b"\0")  # tapes are padded
                if not given:
                    return 0
                self._tiny += self._held < BLOCK
                if self._tiny > MOST_TINY:
                    raise OSError(f"more than {MOST_TINY:,} streams of next to nothing")
                self._unpack, self._held = self._make(), 0
            elif self._unpack.needs_input:
                given = self._file.read(CHUNK)
                if not given:
                    raise EOFError("it ends too soon")
            data = self._unpack.decompress(given, len(buffer))
            self._held += len(data)
        buffer[: len(data)] = data
        return len(data)
