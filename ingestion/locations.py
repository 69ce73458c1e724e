"""Where files lie: a folder, a web server's directory or an S3 prefix, behind the same three verbs.

A location is a root and nothing above it: names are relative, with ``/`` between folders, and a name, a link on a web
page or a symbolic link that leads out of the root is refused. Hidden files (a part that begins with a dot) are not
listed: they are the litter of file managers and version control.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, cast
from urllib.parse import quote, unquote, urlsplit

from ingestion.journal import digest
from storage.errors import Problem

if TYPE_CHECKING:
    from storage.settings import Settings

_MOST_ENTRIES = 1_000_000  # a web server that makes up links must come to an end
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Changed:
    """A file that is new (or changed, when ``again``), as a local copy, with the cursor to go on from after it."""

    name: str
    path: Path
    cursor: dict[str, Any]
    again: bool


@dataclass(frozen=True)
class Entry:
    """A file at a location. ``etag`` is any text that changes when the file does; None where nothing tells."""

    name: str
    size: int | None
    etag: str | None


class Location:
    """Files under ``url``: a path or ``file://`` folder, ``http(s)://`` directory or file, ``s3://bucket/prefix``.

    ``storage`` says where S3 is, as ``endpoint``, ``access_key``, ``secret_key`` and ``region``; what it leaves out is
    as AWS clients find it. Without it S3 is the platform's own object store (the ``LYREBIRD_S3_*`` settings).
    Raises Problem, in every method, when the location cannot be reached or is not there.
    """

    def __init__(
        self, url: str | Path, settings: Settings | None = None, storage: Mapping[str, str] | None = None
    ) -> None:
        self._given = str(url)
        self.url = re.sub(r"//[^/@]*@", "//", self._given)  # for people: without a user's password
        self._root = _root(self._given, settings, storage or {})

    @property
    def name(self) -> str:
        """The last part of the location's path: a folder's name; "" where there is none."""
        return self._root.name

    def list(self, pattern: str = "**/*") -> list[Entry]:
        """Files whose names match the pattern, by name. ``*`` stays within a folder, ``**/`` is any depth."""
        wanted = _matcher(pattern)
        with self._told():
            found = [entry for entry in self._root.walk() if wanted(entry.name)]
        for entry in found:
            try:
                entry.name.encode()
            except UnicodeEncodeError:  # a folder made elsewhere, in another encoding
                shown = entry.name.encode("utf-8", "replace").decode()
                raise Problem(f"the name of {shown} in {self.url} is no valid UTF-8", "Rename that file") from None
        return sorted(found, key=lambda entry: entry.name)

    def changed(self, pattern: str, seen: Mapping[str, str], keep: Callable[[str], bool]) -> Iterator[Changed]:
        """Files that match the pattern, pass ``keep`` and are new or changed since ``seen`` (file -> mark).

        A file right at the root is named with the root's own name before it, so that ``multi30k/`` and the folder
        above it give the same names. Raises Problem when there is no such file at all.
        """
        marks, found = dict(seen), False
        for entry in self.list(pattern):
            name = entry.name if "/" in entry.name or not self.name else f"{self.name}/{entry.name}"
            if not keep(name):
                continue
            found = True
            if entry.etag and marks.get(name) == entry.etag:
                continue
            path = self.fetch(entry.name)
            mark = entry.etag or digest(path)[0]
            before = marks.get(name)
            if before != mark:
                marks[name] = mark
                yield Changed(name, path, {"files": dict(marks)}, before is not None)
        if not found:
            raise Problem(f"{self.url} holds none of the files that are looked for", f"They are named {pattern}")

    def open(self, name: str) -> BinaryIO:
        """A file as a stream of bytes, to be closed by the caller."""
        with self._told(name):
            return self._root.open(_safe(name, self.url))

    def read(self, name: str) -> bytes:
        """A file's bytes; for files known to be small."""
        with self._told(name), self.open(name) as stream:
            return stream.read()

    def fetch(self, name: str) -> Path:
        """A copy of the file, in a temporary folder that is removed when the process ends, if not before."""
        folder = Path(tempfile.mkdtemp(dir=_scratch()))
        path = folder / PurePosixPath(name).name
        with self._told(name), self.open(name) as source, path.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
        return path

    @contextmanager
    def _told(self, name: str = "") -> Iterator[None]:
        """Turn what the protocols raise into one sentence with the location's address."""
        where = f"{name} at {self.url}" if name else self.url
        try:
            yield
        except FileNotFoundError:
            raise Problem(f"there is no {where}", "Correct the location, or put the files there") from None
        except PermissionError:
            raise Problem(f"may not read {where}", "Grant read access, or give other credentials") from None
        except Exception as error:
            if isinstance(error, Problem) or not _is_trouble(error):
                raise
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            reason = reason.replace(self._given, self.url)
            raise Problem(f"cannot read {where}: {reason}", "Check the address and that the server answers") from error


class _Root(Protocol):
    """One way of reaching files. Errors are those of the protocol; names are safe already."""

    name: str

    def walk(self) -> Iterator[Entry]:
        """All files that are not hidden. FileNotFoundError when the root itself is not there."""

    def open(self, name: str) -> BinaryIO: ...


class _Folder:
    def __init__(self, path: Path) -> None:
        self._path = path.expanduser().absolute()
        self.name = self._path.name

    def walk(self) -> Iterator[Entry]:
        if self._path.is_file():
            yield self._entry(self._path, self._path.name)
            return
        if not self._path.is_dir():
            raise FileNotFoundError(self._path)
        os.listdir(self._path)  # noqa: PTH208 - os.walk passes over a folder it may not read; this raises
        for folder, below, files in os.walk(self._path):
            below[:] = [name for name in below if not name.startswith(".")]
            for file in files:
                path = Path(folder) / file
                if not file.startswith("."):
                    yield self._entry(path, path.relative_to(self._path).as_posix())

    def open(self, name: str) -> BinaryIO:
        if self._path.is_file() and name == self._path.name:
            return self._path.open("rb")
        path = self._path / name
        target = path.resolve()
        if not target.is_relative_to(self._path.resolve()):
            raise Problem(
                f"{name} in {self._path} is a link to {target}, outside of that folder",
                "Copy the file in, or name the folder it lies in as the location",
            )
        return target.open("rb")

    @staticmethod
    def _entry(path: Path, name: str) -> Entry:
        try:
            facts = path.stat()
        except FileNotFoundError:  # a link to nothing: open will say so
            return Entry(name, None, None)
        return Entry(name, facts.st_size, f"{facts.st_mtime_ns}-{facts.st_size}")


class _Web:
    """A web server's directory listings, through fsspec; an address that is no page of links is a single file."""

    def __init__(self, url: str) -> None:
        from aiohttp import ClientTimeout
        from fsspec.implementations.http import HTTPFileSystem

        self._url = url.split("#", 1)[0]
        self.name = unquote(PurePosixPath(urlsplit(self._url).path).name)
        timeout = ClientTimeout(total=None, sock_connect=_TIMEOUT_S, sock_read=_TIMEOUT_S)
        self._files = HTTPFileSystem(
            simple_links=False, skip_instance_cache=True, client_kwargs={"timeout": timeout}, use_listings_cache=False
        )

    @functools.cached_property
    def _is_directory(self) -> bool:
        return self._url.endswith("/") or self._files.info(self._url).get("mimetype") == "text/html"

    @property
    def _base(self) -> str:
        return self._url.rstrip("/") + "/"

    def walk(self) -> Iterator[Entry]:
        if not self._is_directory:
            yield self._entry(self._url, self.name)
            return
        seen, waiting = {self._base}, [self._base]
        while waiting:
            folder = waiting.pop()
            for link in self._links(folder):
                if link in seen:
                    continue
                seen.add(link)
                if len(seen) > _MOST_ENTRIES:
                    raise Problem(f"{self._url} lists more than {_MOST_ENTRIES:,} files", "Name a folder below it")
                if link.endswith("/"):
                    waiting.append(link)
                else:
                    yield self._entry(link, unquote(link.removeprefix(self._base)))

    def _links(self, folder: str) -> list[str]:
        """Addresses on a page that lie below the page, without what sorts its table or leads up or out."""
        links = []
        for each in self._files.ls(folder, detail=False):
            link = str(each).split("#", 1)[0].replace("/./", "/")
            name = unquote(link.removeprefix(folder))
            if not link.startswith(folder) or "?" in link or not name:
                continue
            if any(part.startswith(".") for part in name.split("/")):  # hidden, or up
                continue
            links.append(link)
        return sorted(links)

    def open(self, name: str) -> BinaryIO:
        url = self._base + quote(name) if self._is_directory else self._url
        if not self._is_directory and name != self.name:
            raise FileNotFoundError(name)
        self._files.info(url)  # opening a stream does not tell a missing file from an empty one
        return cast(BinaryIO, self._files.open(url, block_size=0))

    def _entry(self, url: str, name: str) -> Entry:
        facts = self._files.info(url)
        size = facts.get("size")
        marks = [str(facts[key]) for key in ("ETag", "Content-MD5", "Digest", "Last-Modified") if facts.get(key)]
        return Entry(name, size, f"{marks[0]}-{size}" if marks else None)


class _Bucket:
    """An S3 prefix, through pyarrow's client in fsspec's wrapper."""

    def __init__(self, url: str, settings: Settings | None, storage: Mapping[str, str]) -> None:
        from fsspec.implementations.arrow import ArrowFSWrapper
        from pyarrow.fs import S3FileSystem

        if unknown := storage.keys() - {"endpoint", "access_key", "secret_key", "region"}:
            raise Problem(f"S3 has no option {min(unknown)}", "There are endpoint, access_key, secret_key and region")
        if not storage:
            from storage.settings import Settings

            own = settings or Settings()
            own.need("s3_endpoint")
            storage = {
                "endpoint": own.s3_endpoint,
                "access_key": own.s3_access_key,
                "secret_key": own.s3_secret_key.get_secret_value(),
                "region": own.s3_region,
            }
        options: dict[str, Any] = {name: value for name, value in storage.items() if name != "endpoint"}
        if storage.get("endpoint"):
            endpoint = urlsplit(storage["endpoint"])
            options |= {"endpoint_override": endpoint.netloc, "scheme": endpoint.scheme}
        self._client = S3FileSystem(connect_timeout=_TIMEOUT_S, request_timeout=_TIMEOUT_S, **options)
        self._files = ArrowFSWrapper(self._client)
        self._prefix = url.removeprefix("s3://").strip("/")
        if not self._prefix:
            raise Problem(f"{url} names no bucket", "Write s3://bucket/prefix")
        self.name = PurePosixPath(self._prefix).name

    def walk(self) -> Iterator[Entry]:
        from pyarrow.fs import FileSelector, FileType

        root = self._client.get_file_info(self._prefix)
        if root.type == FileType.File:
            yield Entry(self.name, root.size, self._etag(root))
            return
        if root.type == FileType.NotFound:
            raise FileNotFoundError(self._prefix)
        # pyarrow's listing tells sizes and times; fsspec's wrapper asks for them one by one
        for facts in self._client.get_file_info(FileSelector(self._prefix, recursive=True)):
            name = facts.path.removeprefix(f"{self._prefix}/")
            if facts.type == FileType.File and not any(part.startswith(".") for part in name.split("/")):
                yield Entry(name, facts.size, self._etag(facts))

    def open(self, name: str) -> BinaryIO:
        from pyarrow.fs import FileType

        path = f"{self._prefix}/{name}"
        if self._client.get_file_info(self._prefix).type == FileType.File and name == self.name:
            path = self._prefix
        return cast(BinaryIO, self._files.open(path, "rb"))

    @staticmethod
    def _etag(facts: Any) -> str:
        return f"{facts.mtime_ns}-{facts.size}"


def fingerprint(entries: Sequence[Entry], *more: object) -> str:
    """One text for a whole listing, and for what else matters: the same listing gives the same text."""
    listing = [[entry.name, entry.size, entry.etag] for entry in entries]
    return hashlib.sha256(json.dumps([listing, more], default=str).encode()).hexdigest()[:32]


def _root(url: str, settings: Settings | None, storage: Mapping[str, str]) -> _Root:
    if not url.strip():
        raise Problem("the location is empty", "Name a folder, an http(s):// address or s3://bucket/prefix")
    scheme = url.split("://", 1)[0].lower() if "://" in url else ""
    if scheme in ("http", "https"):
        return _Web(url)
    if scheme == "s3":
        return _Bucket(url, settings, storage)
    if scheme == "file":
        return _Folder(Path(unquote(urlsplit(url).path)))
    if scheme:
        raise Problem(f"cannot read {url}: {scheme}:// is not known", "Use a folder, http(s):// or s3://")
    return _Folder(Path(url))


def _safe(name: str, url: str) -> str:
    """The name, if it stays below the root."""
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or "\x00" in name or any(part in ("", ".", "..") for part in parts):
        raise Problem(
            f"{name!r} is not a name below {url}", "Use a relative name with / between folders and without .."
        )
    return name


def _matcher(pattern: str) -> Any:
    """A test for names: ``*`` and ``?`` stay within a folder, ``**/`` is any number of folders."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(special.get(part, re.escape(part)) for part in parts), re.DOTALL).fullmatch


def _is_trouble(error: Exception) -> bool:
    """Whether it is the world's fault and not the program's: a network, server or file system error."""
    from aiohttp import ClientError

    return isinstance(error, (OSError, ClientError, TimeoutError))


@functools.cache
def _scratch() -> str:
    folder = tempfile.mkdtemp(prefix="lyrebird-fetch-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
