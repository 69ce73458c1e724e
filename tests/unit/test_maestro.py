"""MAESTRO's table and zip: each file with what the table says of it, and whatever does not fit together named."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from upstreams import maestro as double
from upstreams.landed_bytes import LandedBytes

from ingestion import rows
from ingestion.contract import Bad, Context, Page
from ingestion.sources import maestro
from storage.errors import Problem
from storage.settings import Settings

GOLDEN = Path(__file__).parent / "golden" / "maestro.csv"
(SCORES,) = maestro.SOURCE.resources


@pytest.fixture
def made() -> double.Maestro:
    return double.Maestro(double.made(30))


def lay(made: double.Maestro, folder: Path) -> None:
    """The release as files."""
    (folder / f"{double.RELEASE}-midi.zip").write_bytes(made.bundle())
    for kind in ("csv", "json"):
        path = folder / f"{double.RELEASE}.{kind}"
        path.unlink(missing_ok=True)
        if kind in made.beside:
            path.write_bytes(made.table(kind))


def fetched(location: Path, cursor: dict[str, Any] | None = None, sha256: str = "") -> list[Page]:
    config = {"location": str(location), "storage": {}, "version": "v3.0.0", "sha256": sha256}
    return list(SCORES.fetch(Context(config, cursor or {}, SCORES, None, Settings(), lambda text: None)))  # type: ignore[arg-type]


def records(pages: list[Page]) -> dict[str, dict[str, Any]]:
    found = [one for page in pages for one in parsed(page) if isinstance(one, dict)]
    assert [rows.check(SCORES, one) for one in found] == [""] * len(found)
    return {one["path"]: one for one in found}


def parsed(page: Page) -> list[Any]:
    assert isinstance(page.body, bytes)
    return list(SCORES.parse(LandedBytes(page.body, page.name, page.content_type, **page.meta)))


@pytest.mark.parametrize(
    ("beside", "within"), [(("csv", "json"), ("csv",)), (("json",), ()), ((), ("csv", "json")), ((), ("json",))]
)
def test_every_file_comes_with_its_line_whichever_table_there_is(
    made: double.Maestro, tmp_path: Path, beside: tuple[str, ...], within: tuple[str, ...]
) -> None:
    made.beside, made.within = beside, within
    lay(made, tmp_path)
    pages = fetched(tmp_path)
    found = records(pages)
    wanted = made.rows()
    assert {path: {name: one[name] for name in wanted[path]} for path, one in found.items()} == wanted
    assert {one["split"] for one in found.values()} == {"train", "valid", "test"}
    assert {page.name: page.body for page in pages} == {
        one.line["midi_filename"]: one.body for one in made.performances
    }
    assert fetched(tmp_path, pages[-1].cursor) == []
    if within:  # the zip alone is a location too
        assert records(fetched(tmp_path / f"{double.RELEASE}-midi.zip")) == found


def test_what_does_not_fit_together_is_named_and_the_rest_comes(made: double.Maestro, tmp_path: Path) -> None:
    lost, odd = (made.performances[number].line for number in (3, 4))
    made.absent = {lost["midi_filename"]}
    made.more = {"2004/stray.midi": double.tune(99), "../../evil.midi": b"x"}
    odd["split"], odd["year"] = "practice", "MMIV"
    lay(made, tmp_path)
    pages = fetched(tmp_path)
    bad = {one.payload["path"]: one.reason for page in pages for one in parsed(page) if isinstance(one, Bad)}
    assert {name.rsplit("/", 1)[1]: reason.split(":")[0] for name, reason in bad.items()} == {
        lost["midi_filename"].split("/")[1]: "the table names it, and the zip does not hold it",
        "stray.midi": "the table of the release does not name it",
        "evil.midi": "its name leads out of the archive",
        odd["midi_filename"].split("/")[1]: "its line in the table makes no sense",
    }
    assert len(records(pages)) == len(made.performances) - 2


def test_a_zip_that_is_not_the_one_announced_is_refused(made: double.Maestro, tmp_path: Path) -> None:
    lay(made, tmp_path)
    good = hashlib.sha256((tmp_path / f"{double.RELEASE}-midi.zip").read_bytes()).hexdigest()
    assert len(fetched(tmp_path, sha256=good.upper())) == len(fetched(tmp_path))
    with pytest.raises(Problem, match="is damaged: its SHA-256 is not 00"):
        fetched(tmp_path, sha256="00" * 32)


def test_a_line_as_published() -> None:
    (line,) = maestro.table({"maestro-v3.0.0.csv": GOLDEN.read_bytes()}, "maestro-v3.0.0")
    (record,) = SCORES.parse(LandedBytes(b"MThd", line["midi_filename"], line=line))
    assert isinstance(record, dict)
    assert (record["composer"], record["title"], record["split"]) == ("Alban Berg", "Sonata Op. 1", "train")
    assert (record["year"], record["duration_s"]) == (2018, 698.661160312)


@pytest.mark.parametrize(
    ("name", "body", "reason"),
    [
        ("csv", b"composer,title\nBach,Aria\n", "is no table of MAESTRO"),
        ("csv", b"\xff\xfe", "is no table of MAESTRO"),
        ("csv", b"", "there is no table"),
        ("json", b"[" * 100_000, "is no table of MAESTRO"),
        ("json", b'{"canonical_composer": {"0": "Bach"}}', "is no table of MAESTRO"),
        ("json", b"17", "is no table of MAESTRO"),
        ("txt", b"", "there is no table"),
    ],
)
def test_a_table_that_is_not_as_it_was_is_loud(name: str, body: bytes, reason: str) -> None:
    with pytest.raises(Problem, match=reason):
        maestro.table({f"maestro-v3.0.0.{name}": body}, "maestro-v3.0.0")


def test_an_older_table_is_a_list_of_lines() -> None:
    line = double.made(1)[0].line
    (found,) = maestro.table({"maestro-v1.0.0.json": json.dumps([line]).encode()}, "maestro-v1.0.0")
    assert found == {name: str(value) for name, value in line.items()}
