"""Music and text on real stores: scores become notes, and what a source takes back goes from the tables."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ingestion import catalogue, pipeline
from storage import warehouse
from storage.settings import Settings


@pytest.fixture
def settings(stack: Any) -> Settings:
    settings: Settings = stack.settings("loader")
    pipeline.make_tables([catalogue.source(name) for name in ("music21_corpus", "notes")], settings)
    return settings


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set options of sources as a person does, in lyrebird.toml."""
    file = tmp_path / "lyrebird.toml"
    monkeypatch.setenv("LYREBIRD_OPTIONS", str(file))

    def write(source: str, **values: Any) -> None:
        lines = (f"{name} = {json.dumps(value)}" for name, value in values.items())
        file.write_text("\n".join([f"[sources.{source}]", *lines]))

    return write


def ingest(name: str, settings: Settings) -> dict[str, dict[str, Any]]:
    """Counts of the loads by resource, after the audit, which must accept them."""
    source = catalogue.source(name)
    report = pipeline.ingest(source, settings, say=lambda text: None)
    verdicts = pipeline.judge(source, settings, lambda text: None)
    assert {state for state, _ in verdicts.values()} <= {"published"}, verdicts
    return {counts["resource"]: counts for counts in report.loads.values()}


def current(settings: Settings, table: str, column: str, order: str = "1") -> list[Any]:
    """Values of a column in the current version of each key."""
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute(
            f"""
            select {column} from (
                select distinct on (_key) * from raw.{table} order by _key, _load desc, _position desc
            ) as latest where not _deleted order by {order}
            """
        )
        return [value for (value,) in sql.fetchall()]


def test_scores_become_notes_and_go_with_their_scores(settings: Settings, options: Any) -> None:
    options("music21_corpus", collections="bach-chorales", limit=3)
    assert ingest("music21_corpus", settings)["scores"]["versions"] == 3
    first = ingest("notes", settings)
    assert first["pieces"]["versions"] == 3
    assert first["notes"]["versions"] == len(current(settings, "notes", "note")) > 300
    paths = current(settings, "notes_pieces", "path")
    assert ingest("notes", settings) == {}

    options("music21_corpus", collections="bach-chorales", limit=2)
    ingest("music21_corpus", settings)
    assert current(settings, "music21_corpus_scores", "path") == paths[:2]
    ingest("notes", settings)
    assert current(settings, "notes_pieces", "path") == paths[:2]
    assert set(current(settings, "notes", "piece_id")) == set(current(settings, "notes_pieces", "piece_id"))


def test_a_shorter_file_takes_its_last_lines_back(settings: Settings, options: Any, tmp_path: Path) -> None:
    folder = tmp_path / "multi30k"
    folder.mkdir()
    options("parallel_files", location=str(tmp_path))
    (folder / "train.de").write_text("".join(f"Zeile {number}\n" for number in range(40)))
    assert ingest("parallel_files", settings)["lines"]["versions"] == 40
    (folder / "train.de").write_text("".join(f"Zeile {number}\n" for number in range(38)))
    ingest("parallel_files", settings)
    assert current(settings, "parallel_files_lines", "line") == list(range(1, 39))


def test_a_smaller_piano_roll_file_takes_its_pieces_back(settings: Settings, options: Any, tmp_path: Path) -> None:
    folder = tmp_path / "jsb_chorales"
    folder.mkdir()
    options("piano_roll_files", location=str(tmp_path))
    pieces = [[[60 + number, 72]] * 4 for number in range(20)]
    (folder / "a-quarter.json").write_text(json.dumps({"train": pieces}))
    assert ingest("piano_roll_files", settings)["pieces"]["versions"] == 20
    (folder / "a-quarter.json").write_text(json.dumps({"train": pieces[:19]}))
    ingest("piano_roll_files", settings)
    assert current(settings, "piano_roll_files_pieces", "number") == list(range(19))
