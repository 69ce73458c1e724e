"""Read a frozen version from a folder or an S3 prefix. Imports pyarrow and the standard library only.

A version is `manifest.json` and the Parquet shards it names. Every shard's SHA-256 is compared with the manifest's
before it is used; a shard that is missing or differs is named, never skipped. What comes from S3 is kept locally.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from storage.errors import Problem

_BLOCK = 1 << 20


class Version:
    """A frozen version.

    `uri` is a folder, `file:///…` or `s3://bucket/prefix`. S3 is reached with LYREBIRD_S3_ENDPOINT,
    LYREBIRD_S3_ACCESS_KEY, LYREBIRD_S3_SECRET_KEY and LYREBIRD_S3_REGION, from the environment or from `access`.
    `cache` is where files from S3 are kept; without it `$LYREBIRD_HOME/cache/datasets`, or
    `~/.cache/lyrebird/datasets`. It holds LYREBIRD_DATASET_CACHE_GB (20) at most: what was not read for longest goes,
    and nothing of this version. Raises Problem for whatever is wrong.
    """

    def __init__(self, uri: str | Path, cache: Path | None = None, access: Mapping[str, str] | None = None) -> None:
        self._access = os.environ if access is None else access
        self.uri = str(uri).removeprefix("file://").rstrip("/")
        self._remote = self.uri.startswith("s3://")
        self._cache = cache or _default_cache()
        self._verified: set[str] = set()
        self.manifest: dict[str, Any] = self._read_manifest()
        self.id: str = self.manifest["version"]

    def table(self, split: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of a split in shard order, memory-mapped; `columns` picks some. An empty split raises Problem."""
        shards = self.shards(split)
        self._check_columns(columns or [])
        names = list(columns) if columns is not None else None
        tables = [pq.read_table(path, columns=names, memory_map=True, partitioning=None) for path in shards]
        if not tables:
            raise Problem(f"The split {split!r} of version {self.id} has no rows", "Freeze a version with more data")
        return pa.concat_tables(tables)

    def stream(
        self, split: str, columns: Sequence[str] | None = None, *, part: int = 0, parts: int = 1, start: int = 0
    ) -> Iterator[pa.RecordBatch]:
        """The rows of a split in shard order, a row group (some thousand rows) in memory at a time.

        Of `parts` readers (of ranks and workers: rank * workers + worker) each takes every `parts`-th row group, and
        together they take each row once. `start` is the rows that this part has been given before: it goes on with
        the next one, and row groups before it are not read.
        """
        names = list(columns) if columns is not None else None
        self._check_columns(columns or [])
        group, skip = -1, start
        for path in self.shards(split):
            with pq.ParquetFile(path, memory_map=True) as file:
                for number in range(file.num_row_groups):
                    group += 1
                    if group % parts != part:
                        continue
                    rows = file.metadata.row_group(number).num_rows
                    if skip >= rows:
                        skip -= rows
                        continue
                    yield from file.read_row_group(number, columns=names).slice(skip).to_batches()
                    skip = 0

    def shards(self, split: str) -> list[Path]:
        """The split's shards as local files, fetched and verified."""
        if split not in self.manifest["splits"]:
            known = ", ".join(self.manifest["splits"])
            raise Problem(f"The version {self.id} has no split {split!r}", f"Its splits are {known}")
        return [self._fetch(shard) for shard in self.manifest["shards"] if shard["split"] == split]

    def column(self, name: str) -> Iterator[Any]:
        """The values of one column, of all splits, read where they lie: no shard is fetched for it, or verified."""
        self._check_columns([name])
        for shard in self.manifest["shards"]:
            path = f"{self.uri.removeprefix('s3://')}/{shard['file']}"
            with self._s3.open_input_file(path) if self._remote else pa.OSFile(path) as file:
                yield from pq.read_table(file, columns=[name])[name].to_pylist()

    def describe(self) -> dict[str, Any]:
        """What model.json says about the data a model was trained on."""
        rows = {split: facts["rows"] for split, facts in self.manifest["splits"].items()}
        return {
            "version": self.id,
            "name": self.manifest["name"],
            "rows": rows,
            "licences": self.manifest["licences"],
            "simulated": self.manifest["simulated"],
        }

    def _read_manifest(self) -> dict[str, Any]:
        try:
            text = self._bytes("manifest.json")
        except FileNotFoundError:
            raise Problem(
                f"There is no frozen version at {self.uri}", "`lyrebird dataset list` shows the versions"
            ) from None
        try:
            manifest: dict[str, Any] = json.loads(text)
            for key in ("version", "name", "splits", "shards", "licences", "simulated", "schema"):
                manifest[key]
        except (ValueError, KeyError, TypeError) as error:
            raise Problem(f"The manifest of {self.uri} is damaged ({error!r})", "Freeze the version again") from None
        return manifest

    def _fetch(self, shard: dict[str, Any]) -> Path:
        """The shard as a local file whose hash is the manifest's."""
        name: str = shard["file"]
        if not self._remote:
            path = Path(self.uri) / name
            if not path.is_file():
                raise self._missing(name)
            if name not in self._verified and _sha256(path) != shard["sha256"]:
                raise self._damaged(name)
        else:
            path = self._cache / f"{self.manifest['name']}-{self.id}" / name
            if name not in self._verified and not (path.is_file() and _sha256(path) == shard["sha256"]):
                self._make_room(shard.get("bytes", 0), path.parent)
                self._download(shard, path)
            path.touch()  # for whoever makes room
        self._verified.add(name)
        return path

    def _make_room(self, wanted: int, own: Path) -> None:
        """Remove from the cache what was not read for longest, until so many bytes more are within its limit."""
        limit = self._access.get("LYREBIRD_DATASET_CACHE_GB") or "20"
        try:
            most = float(limit) * 1e9
        except ValueError:
            raise Problem(f"LYREBIRD_DATASET_CACHE_GB is {limit!r}", "Set it to a number of GB, such as 20") from None
        # what begins with a dot is being downloaded by somebody
        kept = [(path, path.stat()) for path in self._cache.glob("*/[!.]*") if path.is_file()]
        size = sum(stat.st_size for _, stat in kept) + wanted
        for path, stat in sorted(kept, key=lambda one: one[1].st_mtime):
            if size <= most:
                return
            if path.parent != own:
                path.unlink(missing_ok=True)
                size -= stat.st_size

    def _download(self, shard: dict[str, Any], path: Path) -> None:
        """Fetch into a temporary file beside `path` and move it there only when its hash is right."""
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            digest = hashlib.sha256()
            with os.fdopen(handle, "wb") as out, self._open(shard["file"]) as source:
                while block := source.read(_BLOCK):
                    digest.update(block)
                    out.write(block)
            if digest.hexdigest() != shard["sha256"]:
                raise self._damaged(shard["file"])
            Path(temporary).replace(path)
        except FileNotFoundError:
            raise self._missing(shard["file"]) from None
        except OSError as error:
            raise self._unreachable(error) from error
        finally:
            Path(temporary).unlink(missing_ok=True)

    def _bytes(self, name: str) -> bytes:
        if not self._remote:
            return (Path(self.uri) / name).read_bytes()
        try:
            with self._open(name) as source:
                return bytes(source.read())
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._unreachable(error) from error

    def _open(self, name: str) -> Any:
        return self._s3.open_input_stream(self.uri.removeprefix("s3://") + "/" + name)

    @cached_property
    def _s3(self) -> fs.S3FileSystem:
        endpoint = self._access.get("LYREBIRD_S3_ENDPOINT", "")
        if not endpoint:  # the client's own fallback would be to ask AWS, elsewhere
            raise Problem(
                f"{self.uri} is in an object store, and LYREBIRD_S3_ENDPOINT does not say which",
                "Set it, e.g. to http://127.0.0.1:9000, with LYREBIRD_S3_ACCESS_KEY and LYREBIRD_S3_SECRET_KEY",
            )
        scheme, _, host = endpoint.rpartition("://")
        return fs.S3FileSystem(
            access_key=self._access.get("LYREBIRD_S3_ACCESS_KEY"),
            secret_key=self._access.get("LYREBIRD_S3_SECRET_KEY"),
            region=self._access.get("LYREBIRD_S3_REGION") or "us-east-1",
            endpoint_override=host.rstrip("/") or None,
            scheme=scheme or "https",
            connect_timeout=5,
            request_timeout=30,
        )

    def _check_columns(self, columns: Sequence[str]) -> None:
        known = [column["name"] for column in self.manifest["schema"]]
        missing = [column for column in columns if column not in known]
        if missing:
            raise Problem(
                f"The version {self.id} ({self.manifest['name']}) has no column {', '.join(missing)}",
                f"Name a version of the mart this model is for; this one has {', '.join(known)}",
            )

    def _missing(self, name: str) -> Problem:
        return Problem(f"The shard {name} of {self.uri} is missing", "Freeze the version again, or restore the shard")

    def _damaged(self, name: str) -> Problem:
        return Problem(
            f"The shard {name} of {self.uri} is damaged: its SHA-256 is not the manifest's",
            "Freeze the version again, or restore the shard",
        )

    def _unreachable(self, error: OSError) -> Problem:
        endpoint = self._access.get("LYREBIRD_S3_ENDPOINT")
        return Problem(
            f"The object store at {endpoint} did not give {self.uri} ({str(error).splitlines()[0]})",
            "Check that it runs, and LYREBIRD_S3_ENDPOINT, LYREBIRD_S3_ACCESS_KEY and LYREBIRD_S3_SECRET_KEY",
        )


def _default_cache() -> Path:
    home = os.environ.get("LYREBIRD_HOME")
    return Path(home) / "cache" / "datasets" if home else Path.home() / ".cache" / "lyrebird" / "datasets"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
