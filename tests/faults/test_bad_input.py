"""Bad input to the real command, on real stores: one clear sentence or a line in quarantine, and the rest is loaded."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support import Stack, lyrebird, refused, start

from ingestion import catalogue
from storage import warehouse
from storage.objects import Objects

SOURCES = ("parallel_files", "piano_roll_files", "audio_folder")


def forget(stack: Stack) -> None:
    """Take away what these tests have loaded: other modules find the stores as they were."""
    objects = Objects(stack.settings("loader"))
    with closing(warehouse.connect(stack.settings("admin"))) as db, db, db.cursor() as sql:
        for source in map(catalogue.source, SOURCES):
            for resource in source.resources:
                sql.execute(f'drop table if exists raw."{source.table(resource)}" cascade')
                sql.execute("delete from ops.audit where subject = %s", (f"load.{source.table(resource)}",))
            for table in ("load", "cursor", "landing", "quarantine", "ledger"):
                sql.execute(f"delete from ops.{table} where source = %s", (source.name,))
            for key in list(objects.list("landing", f"{source.name}/")):
                objects.delete("landing", key)


@pytest.fixture
def place(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder at which every source that reads files looks."""
    options = tmp_path / "lyrebird.toml"
    folder = tmp_path / "data"
    folder.mkdir()
    options.write_text("".join(f"[sources.{source}]\nlocation = {json.dumps(str(folder))}\n" for source in SOURCES))
    monkeypatch.setenv("LYREBIRD_OPTIONS", str(options))
    forget(stack)
    yield folder
    forget(stack)


def counts(out: str) -> dict[str, dict[str, Any]]:
    """Counts of a load by resource, out of the one document on stdout."""
    assert out.count("\n") == 1
    return {load["resource"]: load for load in json.loads(out)["loads"].values()}


def query(stack: Stack, text: str) -> list[tuple[Any, ...]]:
    with closing(warehouse.connect(stack.settings("loader"))) as db, db, db.cursor() as sql:
        sql.execute(text)
        return sql.fetchall()


def text_files(place: Path, lines: int = 300) -> Path:
    folder = place / "multi30k"
    folder.mkdir(parents=True)
    for language in ("en", "de"):
        (folder / f"train.{language}").write_text("".join(f"{language} {n} äöü\n" for n in range(lines)), "utf-8")
    return folder


@pytest.mark.parametrize("source", SOURCES)
def test_an_empty_folder_and_one_that_is_not_there(stack: Stack, place: Path, source: str) -> None:
    assert str(place) in refused("ingest", source, "--json")
    place.rmdir()
    assert refused("ingest", source).startswith(f"there is no {place}")
    assert query(stack, f"select distinct state from ops.ledger where source = '{source}'") == [("failed",)]


def test_an_invalid_line_and_a_file_cut_short_are_left_out_and_the_rest_is_loaded(stack: Stack, place: Path) -> None:
    folder = text_files(place)
    (folder / "train.de").write_bytes((folder / "train.de").read_bytes().replace(b"de 7 ", b"de 7 \xff"))
    (folder / "val.en.gz").write_bytes(gzip.compress(b"a line\n" * 1000)[:-10])
    (folder / "val.de").write_bytes(b"")
    code, out, _ = lyrebird("ingest", "parallel_files", "--json")
    assert code == 0
    assert counts(out)["lines"]["rows"] == 599
    assert counts(out)["lines"]["quarantined"] == 2
    reasons = dict(query(stack, "select payload, reason from ops.quarantine where source = 'parallel_files'"))
    assert any("line 8 is no valid UTF-8" in reason for reason in reasons.values())
    assert "damaged or was cut short" in reasons["multi30k/val.en.gz"]
    code, out, err = lyrebird("quarantine", "list", "parallel_files", "--json")
    assert code == 0, err
    assert sum(line["records"] for line in json.loads(out)) == 2
    code, out, _ = lyrebird("ingest", "parallel_files", "--json")
    assert (code, json.loads(out)["loads"]) == (0, {})


def test_a_load_of_nothing_but_rubbish_is_rejected_in_one_sentence(stack: Stack, place: Path) -> None:
    (place / "jsb_chorales").mkdir()
    (place / "jsb_chorales" / "x-quarter.json").write_text('{"train": [[[60')
    code, out, _ = lyrebird("ingest", "piano_roll_files", "--json")
    assert code == 0
    assert counts(out)["pieces"] | {"bytes": 0} == {
        "resource": "pieces", "pages": 1, "rows": 0, "versions": 0, "quarantined": 1, "bytes": 0, "forgotten": 0
    }  # fmt: skip
    said = refused("audit", "piano_roll_files", "--json")
    assert "load 1 of piano_roll_files was rejected: 1 of 1 records are in quarantine" in said
    assert "lyrebird quarantine list piano_roll_files" in said


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (b"", "no column file and no column scientific_name"),
        (b"name;bird\n1;2\n", "no column file and no column scientific_name (its first line has: name, bird)"),
        (b"file,scientific_name\n\xff.wav,Tyto\n", "not UTF-8"),
    ],
)
def test_a_table_of_labels_that_is_none(stack: Stack, place: Path, table: bytes, said: str) -> None:
    (place / "clips").mkdir()
    (place / "clips.csv").write_bytes(table)
    sentence = refused("ingest", "audio_folder", "--resource", "labels")
    assert said in sentence
    assert "clips.csv" in sentence


def test_file_names_that_are_no_text(stack: Stack, place: Path) -> None:
    folder = text_files(place, 3)
    Path(os.fsdecode(bytes(folder) + b"/train.caf\xe9")).touch()
    Path(os.fsdecode(bytes(place) + b"/caf\xe9.wav")).touch()
    assert "no valid UTF-8. Rename that file" in refused("ingest", "audio_folder")


def test_mistakes_in_the_options_file(stack: Stack, place: Path) -> None:
    options = Path(os.environ["LYREBIRD_OPTIONS"])
    options.write_text("[sources.parallel_files]\nplace = '/x'\n")
    said = refused("ingest", "parallel_files")
    assert "parallel_files has no option place. Its options: location" in said
    options.write_text("[sources.parallel_files\n")
    assert "lyrebird.toml is no TOML" in refused("ingest", "parallel_files")
    for text, value in (("sources = 3\n", "3"), ("[sources]\nparallel_files = 1\n", "1")):
        options.write_text(text)
        said = refused("ingest", "parallel_files")
        assert f"what it says of parallel_files is {value}. Begin a table with the line [sources.parallel" in said


@pytest.mark.parametrize("delay", [0.8, 1.2])
def test_the_real_command_killed_and_run_again(stack: Stack, place: Path, delay: float) -> None:
    text_files(place, 4000)
    child = start("ingest", "parallel_files")
    try:
        child.communicate(timeout=delay)
    except subprocess.TimeoutExpired:
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
    code, _, err = lyrebird("ingest", "parallel_files")
    assert code == 0, err
    rows = query(stack, "select language, line, text from raw.parallel_files_lines")
    assert len(rows) == 8000
    assert set(rows) == {(language, n + 1, f"{language} {n} äöü") for language in ("en", "de") for n in range(4000)}
    assert query(stack, "select count(*), sum(rows), sum(versions) from ops.load where source = 'parallel_files'") == [
        (1, 8000, 8000)
    ]
    assert query(stack, "select state from ops.ledger where source = 'parallel_files'") == [("done",)]


def test_ctrl_c_is_one_sentence_and_the_next_run_goes_on(stack: Stack, place: Path) -> None:
    text_files(place, 20_000)
    child = start("ingest", "parallel_files")
    deadline = time.monotonic() + 60
    while not query(stack, "select 1 from ops.ledger where source = 'parallel_files' and state = 'running'"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert "Traceback" not in err
    # by the signal itself where it finds Python ending already; a shell shows 130 for that too
    assert child.returncode in (0, 130, -signal.SIGINT), err
    code, _, err = lyrebird("ingest", "parallel_files")
    assert code == 0, err
    assert query(stack, "select count(*) from raw.parallel_files_lines") == [(40_000,)]


# Records that parse may give and that no store would take as they are: each must end in quarantine, or the load would
# fail for ever, since a sealed segment is tried again and again.
POISON = [
    {"id": "surrogate", "text": "\ud800"}, {"id": "nan", "more": float("nan")}, {"id": "long" * 1000},
    {"id": "huge", "level": 10**400}, {"id": "nul", "more": {"a\x00": 1}}, {"id": "deep", "more": None},
    {"id": "names", "more": {1: 2}}, {"id": None}, {"text": "no key"}, {"id": "big", "more": [2**70]},
]  # fmt: skip


@pytest.mark.parametrize("store", ["rows", "documents"])
def test_what_no_store_would_take_ends_in_quarantine_and_not_in_a_crash(stack: Stack, store: str) -> None:
    import pyarrow as pa

    from ingestion import pipeline
    from ingestion.contract import Page, Resource, Source, describe

    deep: Any = []
    for _ in range(500):
        deep = [deep]
    records = [record | ({"more": deep} if record.get("id") == "deep" else {}) for record in POISON]
    odd = "\\.\n\t\\N 🐦 \u2028 \x7f"
    good = [
        {"id": "ключ\t\\N\n\r", "text": odd, "level": 1e-300, "more": {"$a.b": ["\\", "\1"], "": {}}},
        {"id": "", "text": "", "level": -0.0, "more": []},
    ]  # fmt: skip
    schema = pa.schema(
        [
            describe("id", pa.string(), "", required=True),
            describe("text", pa.string(), ""),
            describe("level", pa.float64(), ""),
            describe("more", pa.struct([]), ""),
        ]
    )
    name = f"poison_{store}"
    page = Page("page \udc80\x00", b"x", {"next": "\udc80\x00"}, meta={"title": "\ud83d\x00"})
    resource = Resource(
        "things", schema, ("id",), store=store,  # type: ignore[arg-type]
        fetch=lambda context: [] if context.cursor else [page],
        parse=lambda landed: (dict(record) for record in [*records, *good]),
    )  # fmt: skip
    source = Source(name, name, "text", "", "none", "@daily", (resource,))
    report = pipeline.ingest(source, stack.settings("loader"), say=lambda text: None)
    assert report.loads[1]["quarantined"] == len(records)
    assert report.loads[1]["rows"] == len(good)
    if store == "documents":
        stored = query(stack, f"select doc from raw.{name}_things order by _position")
        assert [doc for (doc,) in stored] == good
    else:
        stored = query(stack, f"select id, text, level, more from raw.{name}_things order by _position")
        assert [dict(zip(("id", "text", "level", "more"), row, strict=True)) for row in stored] == good
    # one half of a pair is a question mark from landing on, and NUL is shown by a sign of its own
    assert query(stack, f"select cursor, load from ops.cursor where source = '{name}'") == [({"next": "?␀"}, 1)]
    assert query(stack, f"select name, meta from ops.landing where source = '{name}'") == [("page ?␀", {"title": "?␀"})]
