"""Piano roll files: pieces in their published splits; what is malformed is seen and takes nothing else along."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from upstreams.landed_bytes import LandedBytes

from ingestion import rows
from ingestion.contract import Bad, BadPage, Context, Page
from ingestion.sources import piano_roll_files
from storage.errors import Problem
from storage.media import frames
from storage.settings import Settings

PIECES = piano_roll_files.SOURCE.resources[0]
NAME = "jsb_chorales/small-16th.json"


def parse(document: Any, name: str = NAME) -> list[Any]:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return list(PIECES.parse(LandedBytes(body, name)))


def fetch(location: Path | str, cursor: dict[str, Any] | None = None) -> list[Page]:
    context = Context({"location": str(location)}, cursor or {}, PIECES, None, Settings(), lambda text: None)
    pages = piano_roll_files.fetch(context)  # a page's file is there for its turn only
    return [replace(page, body=page.body.read_bytes()) for page in pages]  # type: ignore[union-attr]


def test_pieces_keep_their_split_and_number() -> None:
    found = parse({"train": [[[60, 64], []], [[60]]], "valid": [[[72.0, 48]]]})
    assert [rows.check(PIECES, piece) for piece in found] == ["", "", ""]
    assert [(piece["piece_id"], piece["split"], piece["number"], piece["frames"]) for piece in found] == [
        ("small-16th/train/0", "train", 0, [[60, 64], []]),
        ("small-16th/train/1", "train", 1, [[60]]),
        ("small-16th/valid/0", "valid", 0, [[48, 72]]),
    ]
    assert {piece["grid"] for piece in found} == {"16th"}
    assert found[0]["fingerprint"] == frames.fingerprint([[60, 64], []], "16th")


@pytest.mark.parametrize(
    ("piece", "reason"),
    [
        ([], "at least one"),
        ("tune", "list of steps"),
        ([[60], 61], "step 1 is no list"),
        ([[60, 128]], "'128'"),
        ([[60.5]], "'60.5'"),
        ([[True]], "'True'"),
        ([["60"]], "no MIDI pitch"),
        ([[None]], "no MIDI pitch"),
    ],
)
def test_a_malformed_piece_is_bad_alone(piece: Any, reason: str) -> None:
    bad, good = parse({"test": [piece, [[60]]]})
    assert isinstance(bad, Bad)
    assert reason in bad.reason
    assert good["number"] == 1


def test_an_unknown_split_is_bad() -> None:
    (bad,) = parse({"holdout": [[[60]]]})
    assert isinstance(bad, Bad)
    assert "'holdout' is no split" in bad.reason


@pytest.mark.parametrize("body", [b"", b'{"train": [[[60]', b"[1, 2]", b'{"train": 5}', b"\xff\xfe", b"[" * 100_000])
def test_malformed_json_is_a_bad_page(body: bytes) -> None:
    with pytest.raises(BadPage):
        parse(body)


def test_a_file_name_without_a_grid_is_a_bad_page() -> None:
    with pytest.raises(BadPage, match="quarter, 16th"):
        parse({"train": [[[60]]]}, "jsb_chorales/small.json")


def test_only_new_and_changed_files_are_fetched(tmp_path: Path) -> None:
    (tmp_path / "jsb_chorales").mkdir()
    file = tmp_path / "jsb_chorales" / "a-quarter.json"
    file.write_text("{}")
    (tmp_path / "jsb_chorales" / "readme.txt").write_text("not a piece")
    (page,) = fetch(tmp_path)
    assert (page.name, page.body) == ("jsb_chorales/a-quarter.json", b"{}")
    assert fetch(tmp_path, page.cursor) == []
    (tmp_path / "jsb_chorales" / "b-quarter.json").write_text("{}")
    assert [page.name for page in fetch(tmp_path, page.cursor)] == ["jsb_chorales/b-quarter.json"]


def test_no_location_is_no_page_and_a_wrong_one_a_problem(tmp_path: Path) -> None:
    assert fetch("") == []
    with pytest.raises(Problem, match="holds none of the files"):
        fetch(tmp_path)
    with pytest.raises(Problem, match="there is no"):
        fetch(tmp_path / "missing")


@pytest.mark.data
def test_the_published_chorales_are_read_whole(data: Path) -> None:
    found = [record for page in fetch(data) for record in PIECES.parse(LandedBytes(page.body, page.name))]
    assert not [record for record in found if isinstance(record, Bad)]
    counts = {(r["grid"], r["split"]) for r in found}, len(found)
    assert counts == ({("quarter", "train"), ("quarter", "valid"), ("16th", "train"), ("16th", "valid")}, 610)
