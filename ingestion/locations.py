"""Where files lie: a folder, a web server's directory, an S3 prefix, FTP, SFTP or HDFS, behind the same few verbs.

A location is a root and nothing above it: names are relative, with ``/`` between folders, and a name, a link on a web
page or a symbolic link that leads out of the root is refused. Hidden files (a part that begins with a dot) are not
listed: they are the litter of file managers and version control. A name with ``..`` in it, which others can give an
object and a server can make up, is listed like any other: who asks for that file is told why it cannot be had.

Web servers are asked through :mod:`ingestion.web` and nothing else, so its rates, bounds and resumed downloads hold
here too. What FTP and SFTP servers say is bounded in bytes and time as well, and checked. HDFS is there because fsspec
has it, and is untested: it needs a cluster.
"""

from __future__ import annotations

import atexit
import ftplib
import functools
import hashlib
import json
import os
import re
import shutil
import socket
import ssl
import stat
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

import tenacity

from ingestion.contract import STORAGE
from ingestion.journal import digest
from storage.errors import Problem, Unusable

if TYPE_CHECKING:
    from storage.settings import Settings

_MOST_ENTRIES = 1_000_000  # a server that makes up names must come to an end
_MOST_LISTED = 256 << 20  # bytes of a listing
_TIMEOUT_S = 30.0
_PATIENCE_S = 300.0  # for a listing, or the first byte of a file; ``_seconds`` gives large files more
_SLOWEST = 4 << 20  # bytes a second of large files
_LARGEST = 64 << 30  # bytes of one file
_SMALL = 64 << 20  # bytes of one that is read in memory
_PIECE = 1 << 15  # bytes that are asked for at once over SFTP, what every server gives
_PIECES = 16  # of them under way
_AT_ONCE = 8  # files of a web server's directory that are asked about side by side
_TRIES = 4

T = TypeVar("T")


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
    """Files under ``url``: a folder or file, by path, ``file``, ``http(s)``, ``s3``, ``ftp(s)``, ``sftp`` or ``hdfs``.

    ``storage`` says more of it (``contract.STORAGE``). Without it S3 is the platform's own object store (the
    ``LYREBIRD_S3_*`` settings); what it leaves out of another one is as AWS clients find it. A web server may have a
    private address, as somebody has named it here; where it redirects may not, unless ``allowed_hosts`` has that host.
    Raises Problem, in every method, when the location cannot be reached or is not there; Unusable when the fault is
    that of the one file.
    """

    def __init__(
        self, url: str | Path, settings: Settings | None = None, storage: Mapping[str, str] | None = None
    ) -> None:
        self._given = str(url).strip()
        self.url = re.sub(r"//[^/@]*@", "//", self._given)  # for people: without a user's password
        with self._told():
            self._root = _root(self._given, self.url, settings, storage or {})

    @property
    def name(self) -> str:
        """The last part of the location's path: a folder's name; "" where there is none."""
        return self._root.name

    def list(self, pattern: str = "**/*") -> list[Entry]:
        """Files whose names match the pattern, by name. ``*`` stays within a folder, ``**/`` is any depth."""
        wanted = _matcher(pattern)
        with self._told():
            found = [entry for entry in self._root.walk("/" in pattern or "**" in pattern) if wanted(entry.name)]
        for entry in found:
            try:
                entry.name.encode()
            except UnicodeEncodeError:  # a folder made elsewhere, in another encoding
                shown = entry.name.encode("utf-8", "replace").decode()
                raise Problem(f"the name of {shown} in {self.url} is no valid UTF-8", "Rename that file") from None
        return sorted(found, key=lambda entry: entry.name)

    def entry(self, name: str) -> Entry:
        """What there is to know of one file, without a listing."""
        with self._told(name):
            return self._root.entry(_safe(name, self.url))

    def has(self, name: str) -> bool:
        """Whether there is a file of this name. Raises Problem when the location cannot be asked."""
        with self._told(name):
            try:
                self._root.entry(_safe(name, self.url))
            except FileNotFoundError:
                return False
        return True

    def changed(self, pattern: str, seen: Mapping[str, str], keep: Callable[[str], bool]) -> Iterator[Changed]:
        """Files that match the pattern, pass ``keep`` and are new or changed since ``seen`` (file -> mark).

        A file right at the root is named with the root's own name before it, so that ``multi30k/`` and the folder
        above it give the same names. A copy is removed when the next file is asked for. Raises Problem when there is
        no such file at all.
        """
        marks, found = dict(seen), False
        for entry in self.list(pattern):
            name = entry.name if "/" in entry.name or not self.name else f"{self.name}/{entry.name}"
            if not keep(name):
                continue
            found = True
            if entry.etag and marks.get(name) == entry.etag:
                continue
            with self.copy(entry.name) as path:
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

    def read(self, name: str, most: int = _SMALL) -> bytes:
        """A file's bytes, ``most`` of them at most; Unusable when it has more, whatever was said of its size."""
        with self._told(name), self._root.open(_safe(name, self.url), most) as stream:
            data = stream.read(most + 1)
        if len(data) > most:
            raise _too_large(f"{name} at {self.url}", most)
        return data

    def read_each(self, names: Iterable[str], most: int = _SMALL) -> Iterator[tuple[str, bytes | Problem]]:
        """The bytes of many small files, in order; in place of what cannot be read, the reason."""

        def read(name: str) -> tuple[str, bytes | Problem]:
            try:
                return name, self.read(name, most)
            except Problem as problem:
                return name, problem

        return self._root.each(names, read)

    def fetch(self, name: str, sha256: str = "") -> Path:
        """A copy of the file, in a temporary folder that is removed when the process ends, if not before.

        Raises Unusable when its SHA-256 was announced and is another one.
        """
        folder = Path(tempfile.mkdtemp(dir=_scratch()))
        path = folder / PurePosixPath(name).name
        try:
            with self._told(name):
                self._root.fetch(_safe(name, self.url), path)
                if sha256 and digest(path)[0] != sha256.strip().lower():
                    raise Unusable(f"{name} at {self.url} is damaged: its SHA-256 is not {sha256}", "Run it again")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return path

    @contextmanager
    def copy(self, name: str, sha256: str = "") -> Iterator[Path]:
        """A copy of the file for as long as the block runs; see :meth:`fetch`."""
        path = self.fetch(name, sha256)
        try:
            yield path
        finally:
            shutil.rmtree(path.parent, ignore_errors=True)

    @contextmanager
    def _told(self, name: str = "") -> Iterator[None]:
        """Turn what the protocols raise into one sentence with the location's address."""
        where = f"{name} at {self.url}" if name else self.url
        try:
            yield
        except FileNotFoundError:
            raise Unusable(f"there is no {where}", "Correct the location, or put the files there") from None
        except PermissionError:
            raise Unusable(f"may not read {where}", "Grant read access, or give other credentials") from None
        except Exception as error:
            if isinstance(error, Problem) or not _is_trouble(error):
                raise
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            reason = reason.replace(self._given, self.url).removesuffix(".")
            raise Problem(f"cannot read {where}: {reason}", "Check the address and that the server answers") from error


class _Root:
    """One way of reaching files. Errors are those of the protocol; names are safe already."""

    name: str

    def walk(self, deep: bool) -> Iterator[Entry]:
        """All files that are not hidden; unless ``deep`` it may leave out what lies in folders.

        FileNotFoundError when the root itself is not there.
        """
        raise NotImplementedError

    def entry(self, name: str) -> Entry:
        raise NotImplementedError

    def fetch(self, name: str, path: Path, most: int = _LARGEST) -> None:
        """Write the file to ``path``. Unusable when it has more than ``most`` bytes."""
        with self.open(name) as source, path.open("wb") as file:
            copy = _Copy(file, name, most)
            while data := source.read(1 << 20):
                copy.write(data)

    def open(self, name: str, most: int = _LARGEST) -> BinaryIO:
        """The file as a stream; where a protocol has none to be trusted, of a copy that is gone when it is closed.

        Where a copy is made, it is of ``most`` bytes at most.
        """
        folder = Path(tempfile.mkdtemp(dir=_scratch()))
        try:
            path = folder / "file"
            self.fetch(name, path, most)
            return path.open("rb")
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def each(self, names: Iterable[str], get: Callable[[str], T]) -> Iterator[T]:
        """``get`` of every name in order, side by side where the protocol gains by it."""
        return map(get, names)


class _Folder(_Root):
    def __init__(self, path: Path) -> None:
        self._path = path.expanduser().absolute()
        self.name = self._path.name

    def walk(self, deep: bool) -> Iterator[Entry]:
        if self._path.is_file():
            yield self._entry(self._path, self._path.name)
            return
        if not self._path.is_dir():
            raise FileNotFoundError(self._path)
        os.listdir(self._path)  # noqa: PTH208 - os.walk passes over a folder it may not read; this raises
        for folder, below, files in os.walk(self._path):
            below[:] = [name for name in below if deep and not name.startswith(".")]
            for file in files:
                path = Path(folder) / file
                if not file.startswith(".") and (path.is_file() or not path.exists()):  # no pipe, no device
                    yield self._entry(path, path.relative_to(self._path).as_posix())

    def entry(self, name: str) -> Entry:
        path = self._target(name)
        if not path.is_file():
            raise FileNotFoundError(path)
        return self._entry(path, name)

    def open(self, name: str, most: int = _LARGEST) -> BinaryIO:  # noqa: ARG002 - it is no copy
        path = self._target(name)
        if path.exists() and not path.is_file():
            raise Unusable(f"{name} in {self._path} is no ordinary file", "Leave it out of that folder")
        return path.open("rb")

    def _target(self, name: str) -> Path:
        if self._path.is_file() and name == self._path.name:
            return self._path
        path = self._path / name
        target = path.resolve()
        if not target.is_relative_to(self._path.resolve()):
            raise Unusable(
                f"{name} in {self._path} is a link to {target}, outside of that folder",
                "Copy the file in, or name the folder it lies in as the location",
            )
        return target

    @staticmethod
    def _entry(path: Path, name: str) -> Entry:
        try:
            facts = path.stat()
        except FileNotFoundError:  # a link to nothing: open will say so
            return Entry(name, None, None)
        return Entry(name, facts.st_size, f"{facts.st_mtime_ns}-{facts.st_size}")


class _Web(_Root):
    """A web server's directory pages; an address that gives something else than a page of links is a single file."""

    def __init__(self, url: str, settings: Settings | None, storage: Mapping[str, Any]) -> None:
        from ingestion import wire
        from ingestion.web import Web
        from storage.settings import Settings

        parts = urlsplit(url.split("#", 1)[0])
        if storage.get("username"):
            user = ":".join(quote(str(storage[name]), safe="") for name in ("username", "password") if name in storage)
            parts = parts._replace(netloc=f"{user}@{parts.netloc.rpartition('@')[2]}")
        self._url = urlunsplit(parts)
        self.name = unquote(PurePosixPath(parts.path).name)
        allowed = [wire.host(self._url), *storage.get("allowed_hosts", [])]
        self._web = Web(settings or Settings(), rate=str(storage.get("rate", "")), allowed=allowed)
        self._base = self._url.rstrip("/") + "/"

    @functools.cached_property
    def _is_directory(self) -> bool:
        return self._url.endswith("/") or self._page(self._url) is not None

    def walk(self, deep: bool) -> Iterator[Entry]:
        if not self._is_directory:
            yield self._entry(self._url, self.name)
            return
        yield from self._web.each(self._files_below(deep), self._linked, _AT_ONCE)

    def _linked(self, link: str) -> Entry:
        name = unquote(link.removeprefix(self._base))
        # an address with .. in it is another one by the time it is asked for
        return self._entry(link, name) if is_safe(name) else Entry(name, None, None)

    def _files_below(self, deep: bool) -> Iterator[str]:
        seen, waiting = {self._base}, [self._base]
        while waiting:
            folder = waiting.pop()
            for link in self._links(folder):
                if link in seen:
                    continue
                seen.add(link)
                _count(len(seen), self._url)
                if not link.endswith("/"):
                    yield link
                elif deep and is_safe(unquote(link.removeprefix(self._base)).rstrip("/")):
                    waiting.append(link)

    def _links(self, folder: str) -> list[str]:
        """Addresses on a page that lie below the page, without what sorts its table or leads up or out."""
        page = _Links()
        page.feed((self._page(folder) or b"").decode("utf-8", "replace"))
        links = set()
        for given in page.found:
            try:
                link = urljoin(folder, given).split("#", 1)[0]
            except ValueError:  # such as http://[
                continue
            name = unquote(link.removeprefix(folder))
            if not link.startswith(folder) or "?" in link or not name:
                continue
            if not _is_hidden(name):
                links.add(link)
        return sorted(links)

    def _page(self, url: str) -> bytes | None:
        """A page of links; None for what is none."""
        try:
            with _missing():
                answer = self._web.get(url, types=("text/html", "application/xhtml+xml"))
        except Problem as problem:
            if " gave " in problem.what and ", not application/xhtml+xml or text/html" in problem.what:
                return None
            raise
        return answer.body if answer else b""

    def entry(self, name: str) -> Entry:
        return self._entry(self._address(name), name)

    def fetch(self, name: str, path: Path, most: int = _LARGEST) -> None:
        with _missing():
            self._web.download(self._address(name), path, most=most, seconds=min(_seconds(most), 3_600))

    def each(self, names: Iterable[str], get: Callable[[str], T]) -> Iterator[T]:
        return self._web.each(names, get, _AT_ONCE)

    def _address(self, name: str) -> str:
        if self._is_directory:
            return self._base + quote(name)
        if name != self.name:
            raise FileNotFoundError(name)
        return self._url

    def _entry(self, url: str, name: str) -> Entry:
        try:
            with _missing():
                facts = self._web.head(url)
        except Problem as problem:
            if " answered 405" in problem.what or " answered 501" in problem.what:  # it knows no HEAD
                return Entry(name, None, None)
            raise
        size = facts.size if facts.size >= 0 else None
        return Entry(name, size, f"{facts.mark}-{size}" if facts.mark else None)


class _Links(HTMLParser):
    """What the links of a page lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]


@contextmanager
def _missing() -> Iterator[None]:
    """What a web server says of a file that is not there, or not for us, as the errors of every other protocol."""
    try:
        yield
    except Problem as problem:
        if " answered 404" in problem.what or " answered 410" in problem.what:
            raise FileNotFoundError(problem.what) from None
        if " answered 401" in problem.what or " answered 403" in problem.what:
            raise PermissionError(problem.what) from None
        raise


class _Remote(_Root):
    """A folder of a server. What fails in passing is tried again over a new connection.

    ``connect`` gives a client, which is fsspec's here, and is called anew for every connection.
    """

    def __init__(self, url: str, shown: str, connect: Callable[[], Any]) -> None:
        self._path = "/" + unquote(urlsplit(url).path).strip("/")
        self.name = PurePosixPath(self._path).name
        self._shown, self._connect, self._client = shown, connect, connect()

    def walk(self, deep: bool) -> Iterator[Entry]:
        facts = self._tried(lambda: self._info(self._path))
        if facts["type"] == "file":
            yield self._entry(facts, self.name)
            return
        base, seen, waiting = self._path.rstrip("/") + "/", 0, [self._path]
        while waiting:
            folder = waiting.pop()
            for one in self._tried(functools.partial(self._list, folder)):
                name = str(one["name"]).removeprefix(base)
                seen += 1
                _count(seen, self._shown)
                if not name or _is_hidden(name):
                    continue
                if not is_safe(name):
                    yield self._entry(one, name)
                elif one["type"] == "link":
                    yield from self._linked(base + name, name)
                elif one["type"] != "directory":
                    yield self._entry(one, name)
                elif deep:
                    waiting.append(base + name)

    def _linked(self, path: str, name: str) -> Iterator[Entry]:
        """The file that a link leads to. Links to folders are not followed: they may lead round in circles."""
        with suppress(FileNotFoundError):
            facts = self._tried(lambda: self._info(path))
            if facts["type"] == "file":
                yield self._entry(facts, name)

    def _list(self, folder: str) -> list[dict[str, Any]]:
        """What is in a folder: name (a path), type (directory, file, link), size, and mtime where it is told."""
        self._client.invalidate_cache()
        return list(self._client.ls(folder, detail=True))

    def _info(self, path: str) -> dict[str, Any]:
        """The same facts of one file or folder."""
        facts: dict[str, Any] = self._client.info(path)
        return facts

    def entry(self, name: str) -> Entry:
        facts = self._tried(lambda: self._info(self._address(name)))
        if facts["type"] == "directory":
            raise FileNotFoundError(name)
        return self._entry(facts, name)

    def fetch(self, name: str, path: Path, most: int = _LARGEST) -> None:
        address = self._address(name)

        def whole() -> None:
            with self._client.open(address, "rb") as source, path.open("wb") as file:
                copy = _Copy(file, name, most)
                while data := source.read(1 << 20):
                    copy.write(data)

        self._tried(whole, _seconds(most), name)

    def _address(self, name: str) -> str:
        base = self._path.rstrip("/")
        return base if self._is_file and name == self.name else f"{base}/{name}"

    @functools.cached_property
    def _is_file(self) -> bool:
        return bool(self._tried(lambda: self._info(self._path))["type"] == "file")

    def _tried(self, call: Callable[[], T], seconds: float = 0, what: str = "its listing") -> T:
        """``call``, again while the world is at fault, each time so many seconds (``_PATIENCE_S`` when 0) and no more.

        Raises Unusable when it takes longer, and for answers that make no sense.
        """
        from ingestion.wire import Alarm

        limit, what = seconds or _PATIENCE_S, " ".join(what.split())

        def once() -> T:
            try:
                with Alarm(limit, self._cut) as alarm:
                    try:
                        return call()
                    except Exception:
                        if not alarm.rang:
                            raise
                raise Unusable(f"{self._shown} takes longer than {limit:,.0f} seconds for {what}", "Run it again later")
            except Problem:
                self._renew()  # what was left in the middle would answer the next question
                raise
            except _NONSENSE as error:
                self._renew()
                said = f"{type(error).__name__}: {error!s:.100}"
                raise Unusable(
                    f"{self._shown} gives {what} in a way that makes no sense: {said}",
                    "Look at the names and the listing with another client",
                ) from None

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_may_pass),
            stop=tenacity.stop_after_attempt(_TRIES),
            wait=tenacity.wait_exponential_jitter(multiplier=0.2, max=10, jitter=0.2),
            before_sleep=lambda _: self._renew(),
            reraise=True,
        )
        found: T = retrying(once)
        return found

    def _cut(self) -> None:
        """End the connection, from another thread."""

    def _renew(self) -> None:
        with suppress(Exception):  # the call that follows says what is wrong
            self._client = self._connect()

    @staticmethod
    def _entry(facts: Mapping[str, Any], name: str) -> Entry:
        size = facts.get("size")
        changed = facts.get("mtime") or facts.get("modify")
        mark = changed.isoformat() if isinstance(changed, datetime) else changed
        return Entry(name, size, f"{mark}-{size}" if mark else None)


class _Ftp(_Remote):
    """An FTP server; ``connect`` gives an ``ftplib.FTP`` (:func:`_ftp`). Files go on where they were cut, if they have
    not changed since.
    """

    def _list(self, folder: str) -> list[dict[str, Any]]:
        try:
            found = map(_mlsd, self._lines(f"MLSD {folder}"))
        except ftplib.error_perm:  # it knows no MLSD, which is of RFC 3659
            found = map(_ls, self._lines(f"LIST {folder}"))
        base = folder.rstrip("/")
        return [one | {"name": f"{base}/{one['name'].lstrip('/')}"} for one in found if one]

    def _lines(self, command: str) -> list[str]:
        lines, size = list[str](), 0

        def take(line: str) -> None:
            nonlocal size
            size += len(line)
            _count(len(lines), self._shown, size)
            lines.append(line)

        self._client.retrlines(command, take)
        return lines

    def _info(self, path: str) -> dict[str, Any]:
        if path == "/":
            return {"name": "/", "type": "directory"}
        parent = str(PurePosixPath(path).parent)
        for one in self._list(parent):
            if one["name"] == path:
                return one
        raise FileNotFoundError(path)

    def entry(self, name: str) -> Entry:
        path = self._address(name)
        return self._entry(self._tried(lambda: self._facts(path), what=name), name)

    def _facts(self, path: str) -> dict[str, Any]:
        size = self._size(path)
        if size is None:
            listed = self._info(path)
            if listed["type"] == "directory":
                raise FileNotFoundError(path)
            return listed
        facts: dict[str, Any] = {"size": size}
        with suppress(ftplib.error_perm):  # not every server tells the time
            facts["modify"] = self._client.voidcmd(f"MDTM {path}").split()[-1]
        return facts

    def _size(self, path: str) -> int | None:
        """The file's size; None of a server that does not know the question, which is of RFC 3659."""
        self._client.voidcmd("TYPE I")
        try:
            size: int | None = self._client.size(path)
        except ftplib.error_perm as error:
            if str(error)[:3] not in ("500", "502"):
                raise
            return None
        return size

    def _tried(self, call: Callable[[], T], seconds: float = 0, what: str = "its listing") -> T:
        try:
            return super()._tried(call, seconds, what)
        except ftplib.error_perm as error:
            said = str(error)
            if said.startswith("550"):  # RFC 959: the file is not there, or not for this user
                raise FileNotFoundError(said) from None
            raise PermissionError(said) if said.startswith("53") else error from None

    def _cut(self) -> None:
        self._client.cut()

    def fetch(self, name: str, path: Path, most: int = _LARGEST) -> None:
        address = self._address(name)
        with path.open("wb") as file:
            copy, begun = _Copy(file, name, most), dict[str, Any]()

            def rest() -> None:
                now = self._facts(address)
                if copy.size and now != begun:
                    copy.restart()  # the rest of another version would not fit
                begun.update(now)
                self._client.retrbinary(f"RETR {address}", copy.write, 1 << 16, rest=copy.size or None)
                told = self._size(address)
                size = now["size"] if told is None else told  # the listing knows it too
                if size != copy.size:
                    raise EOFError(f"gave {copy.size:,} of {size:,} bytes")

            self._tried(rest, _seconds(most), name)


def _mlsd(line: str) -> dict[str, Any] | None:
    """A line of MLSD (RFC 3659, 7.2); None for the folder itself and the one above. KeyError and ValueError."""
    given, _, name = line.rstrip("\r\n").partition(" ")
    facts = dict(one.lower().split("=", 1) for one in given.split(";") if "=" in one)
    if facts["type"] in ("cdir", "pdir") or name in (".", ".."):
        return None
    kind = {"dir": "directory", "file": "file"}.get(facts["type"], "link" if "link" in facts["type"] else "file")
    size = _natural(facts["size"]) if kind == "file" else 0
    return {"name": name, "type": kind, "size": size, "modify": facts.get("modify")}


def _ls(line: str) -> dict[str, Any] | None:
    """A line of LIST as ``ls -l`` writes it; None for others, such as those that the name of a file makes."""
    parts = line.split(maxsplit=8)
    if len(parts) < 9 or not re.fullmatch(r"[0-9]{1,18}", parts[4]) or parts[8] in (".", ".."):
        return None
    name = parts[8].split(" -> ", 1)[0] if parts[0][0] == "l" else parts[8]
    kind = "directory" if parts[0][0] == "d" else "file"
    return {"name": name, "type": kind, "size": int(parts[4]), "modify": " ".join(parts[5:8])}


def _natural(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise ValueError(f"a size of {text[:40]!r}")
    return int(text)


class _FtpClient(ftplib.FTP):
    """A client whose answers have an end, and which another thread can cut off."""

    data: socket.socket | None = None
    _lines = 0

    def ntransfercmd(self, cmd: str, rest: int | str | None = None) -> tuple[socket.socket, int | None]:
        self.data, size = super().ntransfercmd(cmd, rest)
        return self.data, size

    def getresp(self) -> str:
        self._lines = 0
        return super().getresp()

    def getline(self) -> str:
        self._lines += 1
        if self._lines > 1_000:
            raise ftplib.error_proto("an answer of more than 1,000 lines")  # noqa: S321 - an error
        return super().getline()

    def cut(self) -> None:
        for one in (self.data, self.sock):
            with suppress(OSError):
                if one is not None:
                    one.shutdown(socket.SHUT_RDWR)


class _FtpTlsClient(_FtpClient, ftplib.FTP_TLS):
    """Over TLS, to a server whose certificate is good: ftplib alone would take any."""

    def __init__(self, **options: Any) -> None:
        super().__init__(context=ssl.create_default_context(), **options)


def _ftp(url: str, shown: str, storage: Mapping[str, Any]) -> _Root:
    from ingestion.wire import Alarm

    parts = urlsplit(url)
    tls = bool(storage.get("tls", parts.scheme.lower() == "ftps"))
    username, password = _who(parts, storage)

    def connect() -> _FtpClient:
        client = (_FtpTlsClient if tls else _FtpClient)(timeout=_TIMEOUT_S, encoding="utf-8")
        with Alarm(_PATIENCE_S, client.cut):
            client.connect(parts.hostname or "", parts.port or 21)
            client.login(username or "", password or "")
            if isinstance(client, ftplib.FTP_TLS):
                client.prot_p()
        return client

    return _Ftp(url, shown, connect)


class _Sftp(_Remote):
    """An SFTP server. fsspec connects; its way to list and to fetch has as many things in memory as the server says."""

    def _list(self, folder: str) -> list[dict[str, Any]]:
        found, size = list[dict[str, Any]](), 0
        for one in self._client.ftp.listdir_iter(folder):
            size += len(one.filename) + len(one.longname or "")
            _count(len(found), self._shown, size)
            found.append(self._facts(f"{folder.rstrip('/')}/{one.filename}", one))
        return found

    def _info(self, path: str) -> dict[str, Any]:
        return self._facts(path, self._client.ftp.stat(path))

    @staticmethod
    def _facts(path: str, one: Any) -> dict[str, Any]:
        mode = one.st_mode or 0
        kind = "directory" if stat.S_ISDIR(mode) else "link" if stat.S_ISLNK(mode) else "file"
        changed = datetime.fromtimestamp(one.st_mtime, UTC) if one.st_mtime is not None else None
        return {"name": path, "type": kind, "size": one.st_size, "mtime": changed}

    def _cut(self) -> None:
        self._client.client.close()

    def fetch(self, name: str, path: Path, most: int = _LARGEST) -> None:
        address = self._address(name)

        def whole() -> None:
            with self._client.ftp.open(address, "rb") as source, path.open("wb") as file:
                copy, size = _Copy(file, name, most), int(source.stat().st_size)
                if size > most:
                    raise _too_large(name, most)
                while copy.size < size:
                    end = min(copy.size + _PIECES * _PIECE, size)
                    asked = [(start, min(_PIECE, end - start)) for start in range(copy.size, end, _PIECE)]
                    for (_, length), piece in zip(asked, source.readv(asked), strict=True):
                        copy.write(piece)
                        if len(piece) != length:  # paramiko would wait for the rest for ever
                            raise EOFError(f"gave {copy.size:,} of {size:,} bytes")

        self._tried(whole, _seconds(most), name)


def _sftp(url: str, shown: str, storage: Mapping[str, Any]) -> _Root:
    try:
        import paramiko  # type: ignore[import-untyped]
        from fsspec.implementations.sftp import SFTPFileSystem
    except ImportError as error:
        raise Problem(f"reading {shown} needs the package paramiko", "pip install paramiko") from error

    class Known(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]  # the library has no types
        """Takes a server whose key somebody has put into the file of known hosts, and no other."""

        def missing_host_key(self, _: Any, hostname: str, key: Any) -> None:
            file = Path(str(storage.get("known_hosts") or "~/.ssh/known_hosts")).expanduser()
            try:
                known = paramiko.HostKeys(str(file) if file.is_file() else None)
            except Exception as error:  # paramiko lets through whatever a broken line makes it raise
                raise Problem(f"{file} is no file of known hosts: {error}", "Make it anew with ssh-keyscan") from None
            if not known.check(hostname, key):
                raise Problem(
                    f"{hostname} shows a key that is not in {file}: {key.get_name()} {key.get_base64()}",
                    "If that is its key, add it with ssh-keyscan, or name another file as `known_hosts` in `storage`",
                )

    parts = urlsplit(url)
    username, password = _who(parts, storage)
    options = {
        "port": parts.port or 22,
        "username": username,
        "password": password,
        "pkey": _private_key(storage["key_filename"], password) if storage.get("key_filename") else None,
        **dict.fromkeys(("timeout", "banner_timeout", "auth_timeout", "channel_timeout"), _TIMEOUT_S),
        **({"allow_agent": False, "look_for_keys": False} if password else {}),
    }

    def connect() -> Any:
        files = SFTPFileSystem(parts.hostname or "", host_key_policy=Known(), skip_instance_cache=True, **options)
        files.ftp.get_channel().settimeout(_TIMEOUT_S)
        return files

    return _Sftp(url, shown, connect)


def _private_key(file: str, passphrase: str | None) -> Any:
    """The key in a file. Raises Problem that says what is wrong with it."""
    import paramiko

    path = Path(file).expanduser()
    try:
        return paramiko.PKey.from_path(path, passphrase.encode() if passphrase else None)
    except Exception as error:  # whatever a library makes of a file that is none
        reason = (
            "it is not there"
            if isinstance(error, FileNotFoundError)
            else str(error).split(". ")[0] or type(error).__name__
        )
        raise Problem(
            f"{path} cannot be taken as a private key: {reason}",
            "Correct `key_filename` in `storage`; a key with a passphrase needs it as `password`",
        ) from None


def _hdfs(url: str, shown: str, storage: Mapping[str, Any]) -> _Root:
    from fsspec.implementations.arrow import HadoopFileSystem

    parts = urlsplit(url)
    user = storage.get("username") or parts.username
    return _Remote(
        url, shown, lambda: HadoopFileSystem(host=parts.hostname or "default", port=parts.port or 0, user=user)
    )


def _who(parts: Any, storage: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """User and password, of `storage` or else of the address."""
    given = [storage.get("username") or unquote(parts.username or ""), storage.get("password", parts.password)]
    return given[0] or None, unquote(str(given[1])) if given[1] is not None else None


class _Bucket(_Root):
    """An S3 prefix, through pyarrow's client in fsspec's wrapper."""

    def __init__(self, url: str, settings: Settings | None, storage: Mapping[str, str]) -> None:
        from fsspec.implementations.arrow import ArrowFSWrapper
        from pyarrow.fs import S3FileSystem

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

    def walk(self, deep: bool) -> Iterator[Entry]:
        from pyarrow.fs import FileSelector, FileType

        root = self._client.get_file_info(self._prefix)
        if root.type == FileType.File:
            yield Entry(self.name, root.size, self._etag(root))
            return
        if root.type == FileType.NotFound:
            raise FileNotFoundError(self._prefix)
        # pyarrow's listing tells sizes and times; fsspec's wrapper asks for them one by one
        for facts in self._client.get_file_info(FileSelector(self._prefix, recursive=deep)):
            name = facts.path.removeprefix(f"{self._prefix}/")
            if facts.type == FileType.File and not _is_hidden(name):
                yield Entry(name, facts.size, self._etag(facts))

    def entry(self, name: str) -> Entry:
        from pyarrow.fs import FileType

        facts = self._client.get_file_info(self._path(name))
        if facts.type != FileType.File:
            raise FileNotFoundError(name)
        return Entry(name, facts.size, self._etag(facts))

    def open(self, name: str, most: int = _LARGEST) -> BinaryIO:  # noqa: ARG002 - it is no copy
        return cast(BinaryIO, self._files.open(self._path(name), "rb"))

    def _path(self, name: str) -> str:
        return self._prefix if name == self.name and self._is_file else f"{self._prefix}/{name}"

    @functools.cached_property
    def _is_file(self) -> bool:
        from pyarrow.fs import FileType

        return bool(self._client.get_file_info(self._prefix).type == FileType.File)

    @staticmethod
    def _etag(facts: Any) -> str:
        return f"{facts.mtime_ns}-{facts.size}"


def fingerprint(entries: Sequence[Entry], *more: object) -> str:
    """One text for a whole listing, and for what else matters: the same listing gives the same text."""
    listing = [[entry.name, entry.size, entry.etag] for entry in entries]
    return hashlib.sha256(json.dumps([listing, more], default=str).encode()).hexdigest()[:32]


_SAME = {"https": "http", "ftps": "ftp", "ssh": "sftp"}


def _root(url: str, shown: str, settings: Settings | None, storage: Mapping[str, Any]) -> _Root:
    if not url:
        raise Problem("the location is empty", "Name a folder, an http(s):// address or s3://bucket/prefix")
    scheme = url.split("://", 1)[0].lower() if "://" in url else ""
    scheme = _SAME.get(scheme, scheme)
    if scheme not in STORAGE:
        known = ", ".join(f"{name}://" for name in sorted({*STORAGE, *_SAME}) if name)
        raise Problem(f"cannot read {shown}: {scheme}:// is not known", f"Use a folder, or one of {known}")
    if unknown := storage.keys() - STORAGE[scheme]:
        there = ", ".join(STORAGE[scheme]) or "none"
        kind = scheme.upper() or "a folder"
        raise Problem(f"{kind} has no option {min(unknown)} in `storage`", f"There are: {there}")
    if scheme in ("", "file"):
        return _Folder(Path(unquote(urlsplit(url).path) if scheme else url))
    if scheme == "s3":
        return _Bucket(url, settings, storage)
    if scheme == "http":
        return _Web(url, settings, storage)
    return {"ftp": _ftp, "sftp": _sftp, "hdfs": _hdfs}[scheme](url, shown, storage)


def _count(number: int, url: str, size: int = 0) -> None:
    """Raises Problem past what a location may list: so many files, and so many bytes of listing."""
    if number > _MOST_ENTRIES or size > _MOST_LISTED:
        shown = re.sub(r"//[^/@]*@", "//", url)
        raise Problem(f"{shown} lists more than {_MOST_ENTRIES:,} files", "Name a folder below it")


def _seconds(most: int) -> float:
    """What a file of so many bytes may take."""
    return _PATIENCE_S + most / _SLOWEST


def _too_large(what: str, most: int) -> Unusable:
    return Unusable(f"{what} has more than {most:,} bytes, which are allowed", "Look at that file; leave it out")


class _Copy:
    """A file as it is written, up to ``most`` bytes: then Unusable."""

    def __init__(self, file: BinaryIO, name: str, most: int) -> None:
        self._file, self._name, self._most, self.size = file, name, most, 0

    def write(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > self._most:
            raise _too_large(self._name, self._most)
        self._file.write(data)

    def restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self.size = 0


def is_safe(name: str) -> bool:
    """Whether a name is one below the root, whatever reads it: others name objects, and make up listings."""
    return "\\" not in name and "\x00" not in name and not {"", ".", ".."} & set(name.split("/"))


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def _safe(name: str, url: str) -> str:
    """The name, if it stays below the root."""
    if not is_safe(name):
        raise Unusable(
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
    return isinstance(error, (OSError, EOFError, ftplib.Error)) or type(error).__module__.startswith("paramiko.")


# What libraries make of answers that keep to no protocol.
_NONSENSE = (ValueError, LookupError, TypeError, OverflowError, struct.error)


def _may_pass(error: BaseException) -> bool:
    """Whether it is worth asking again in this run."""
    lasting = (FileNotFoundError, PermissionError, ftplib.error_perm, ftplib.error_proto)
    if not isinstance(error, Exception) or isinstance(error, lasting):
        return False
    return _is_trouble(error) and type(error).__name__ not in ("AuthenticationException", "BadHostKeyException")


@functools.cache
def _scratch() -> str:
    folder = tempfile.mkdtemp(prefix="lyrebird-fetch-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
