"""Reading a frozen version: what is in it comes out, and what is wrong with it is named."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ml.datasets.read import Version
from storage.errors import Problem


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A version with two train shards, one valid shard and an empty test split."""
    shards = []
    for name, rows in (("train-00000", [1, 2, 3]), ("train-00001", [4, 5]), ("valid-00000", [6])):
        path = tmp_path / f"{name}.parquet"
        table = pa.table({"key": pa.array([str(row) for row in rows]), "value": pa.array(rows, pa.int64())})
        pq.write_table(table, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        shards.append({"file": path.name, "split": name[:5], "rows": len(rows), "sha256": digest})
    manifest: dict[str, Any] = {
        "version": "0123456789abcdef", "name": "numbers", "shards": shards, "licences": {"CC0": 6}, "simulated": False,
        "schema": [{"name": "key", "type": "string"}, {"name": "value", "type": "int64"}],
        "splits": {"train": {"rows": 5}, "valid": {"rows": 1}, "test": {"rows": 0}},
    }  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def test_the_rows_of_a_split_come_in_shard_order(folder: Path) -> None:
    version = Version(folder)
    assert version.table("train").to_pydict() == {"key": list("12345"), "value": [1, 2, 3, 4, 5]}
    assert version.table("train", ["value"]).column_names == ["value"]
    assert version.id == "0123456789abcdef"
    assert Version(f"file://{folder}/").table("valid").num_rows == 1
    assert version.describe()["rows"] == {"train": 5, "valid": 1, "test": 0}


@pytest.fixture
def large(tmp_path: Path) -> Version:
    """A split of three shards with row groups of different sizes, 0 to 99."""
    shards, first = [], 0
    for number, sizes in enumerate(([10, 20, 5], [30], [25, 10])):
        path = tmp_path / f"train-{number:05d}.parquet"
        schema = pa.schema([("key", pa.string()), ("value", pa.int64())])
        with pq.ParquetWriter(path, schema) as writer:
            for size in sizes:
                rows = range(first, first + size)
                writer.write_table(pa.table({"key": [f"{row:02d}" for row in rows], "value": list(rows)}, schema))
                first += size
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        shards.append({"file": path.name, "split": "train", "rows": sum(sizes), "sha256": digest})
    manifest: dict[str, Any] = {
        "version": "fedcba9876543210", "name": "numbers", "shards": shards, "licences": {}, "simulated": False,
        "schema": [{"name": "key", "type": "string"}, {"name": "value", "type": "int64"}],
        "splits": {"train": {"rows": 100}},
    }  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return Version(tmp_path)


def streamed(version: Version, **options: Any) -> list[int]:
    return [row for batch in version.stream("train", ["value"], **options) for row in batch["value"].to_pylist()]


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_readers_share_the_rows_and_each_goes_on_from_any_row(large: Version, parts: int) -> None:
    assert streamed(large) == list(range(100))
    shares = [streamed(large, part=part, parts=parts) for part in range(parts)]
    assert sorted(row for share in shares for row in share) == list(range(100))
    for part, share in enumerate(shares):
        for start in range(len(share) + 1):
            assert streamed(large, part=part, parts=parts, start=start) == share[start:]


def test_a_stream_names_what_is_wrong(large: Version, tmp_path: Path) -> None:
    with pytest.raises(Problem, match="no column other"):
        next(large.stream("train", ["other"]))
    (tmp_path / "train-00001.parquet").unlink()
    with pytest.raises(Problem, match=r"train-00001.parquet.*missing"):
        list(Version(tmp_path).stream("train"))


def test_a_changed_byte_is_found_and_the_shard_named(folder: Path) -> None:
    shard = folder / "train-00001.parquet"
    body = bytearray(shard.read_bytes())
    body[len(body) // 2] ^= 1
    shard.write_bytes(bytes(body))
    assert Version(folder).table("valid").num_rows == 1
    with pytest.raises(Problem, match=r"train-00001.parquet.*damaged"):
        Version(folder).table("train")


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "train-00000.parquet").unlink()
    with pytest.raises(Problem, match=r"train-00000.parquet.*missing"):
        Version(folder).table("train")


def test_a_version_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="no frozen version"):
        Version(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["{", "[]", '{"version": "1"}'])
def test_a_torn_manifest(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(Problem, match="manifest"):
        Version(folder)


def test_an_unknown_split_an_empty_one_and_a_column_of_another_mart(folder: Path) -> None:
    version = Version(folder)
    with pytest.raises(Problem, match=r"no split 'dev'.*train, valid, test"):
        version.table("dev")
    with pytest.raises(Problem, match=r"'test'.*no rows"):
        version.table("test")
    with pytest.raises(Problem, match=r"no column pcm.*key, value"):
        version.table("train", ["key", "pcm"])


def test_an_object_store_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LYREBIRD_S3_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("LYREBIRD_S3_ACCESS_KEY", "key")
    monkeypatch.setenv("LYREBIRD_S3_SECRET_KEY", "secret")
    with pytest.raises(Problem, match=r"http://127.0.0.1:1 did not give s3://datasets/numbers"):
        Version("s3://datasets/numbers/0123", cache=tmp_path)


def test_without_the_address_of_an_object_store_none_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LYREBIRD_S3_ENDPOINT", raising=False)
    with pytest.raises(Problem, match=r"s3://datasets/numbers/0123.*LYREBIRD_S3_ENDPOINT does not say which"):
        Version("s3://datasets/numbers/0123", cache=tmp_path)
