"""Words of the real command that people type when something has gone wrong, on real stores, to their good ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support import Stack, lyrebird, refused
from upstreams import gbif
from upstreams.faulty_server import Reply

from infra.sentences import CONTROL
from storage import transform, warehouse
from storage.documents import Documents
from storage.objects import Objects
from storage.settings import options_file

# Markup and emoji of rich; a title for the window, a cleared screen, and writing that runs from right to left.
HOSTILE = "[/x] [live] :bird: \x1b]0;mine\x07 \x9b2J \u202e"
VISIBLE = "[/x] [live] :bird: ␛]0;mine␇ \\u009b2J \\u202e"
TABLE = "raw.gbif_sounds_occurrences"


class Gbif(gbif.Gbif):
    """The double, with a day that it does not give."""

    without = ""

    def answer(self, path: str, params: dict[str, str]) -> Reply:
        if self.without and params.get("lastInterpreted", "").startswith(self.without):
            return Reply(404, b"not there", "text/plain")
        return super().answer(path, params)


@pytest.fixture(autouse=True)
def empty(stack: Stack) -> Iterator[None]:
    yield
    stack.reset()


@pytest.fixture
def server(stack: Stack) -> Iterator[Gbif]:
    """Occurrences of a month, at an address that the options name."""
    double = Gbif(gbif.made(200))
    double.faulty = False
    with double.serving():
        configure("gbif_sounds", url=f"{double.url}/v1", rate="1000/second", allowed_hosts=[double.host])
        yield double


def configure(source: str, **values: Any) -> None:
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    options_file().write_text("\n".join([f"[sources.{source}]", *lines]))


def told(*words: str) -> Any:
    """What a command that succeeds says with --json: one line, and nothing else on stdout."""
    code, out, err = lyrebird(*words, "--json")
    assert code == 0, err
    assert out.count("\n") == 1
    return json.loads(out)


def shown(*words: str) -> str:
    """What a command that succeeds shows to a person: nothing that a terminal obeys."""
    code, out, err = lyrebird(*words)
    assert code == 0, err
    assert not CONTROL.search((out + err).replace("\n", "")), repr(out + err)
    return out


def query(stack: Stack, text: str) -> list[tuple[Any, ...]]:
    with closing(warehouse.connect(stack.settings("admin"))) as db, db, db.cursor() as sql:
        sql.execute(text)
        return sql.fetchall() if sql.description else []


def rows(stack: Stack) -> dict[str, Any]:
    return dict(query(stack, f"select _key, doc from {TABLE}"))


def test_hostile_records_are_shown_as_they_are_and_nothing_of_them_is_obeyed(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "clips.csv").write_text(f"file,scientific_name\n../{HOSTILE},Tyto\na.wav,Tyto\n", "utf-8")
    configure("audio_folder", location=str(tmp_path))
    told("ingest", "audio_folder", "--resource", "labels")
    assert f"../{VISIBLE} leads out of the folder" in shown("quarantine", "list", "audio_folder")
    (line,) = told("quarantine", "list", "audio_folder")
    assert line["reason"] == f"../{HOSTILE} leads out of the folder"
    whole = shown("quarantine", "show", str(line["first_id"]))
    assert all(part in whole for part in ("[/x]", "[live]", ":bird:", "\\u009b2J", "\\u202e"))

    configure("audio_folder", location=f"/nowhere/{HOSTILE}")
    assert refused("ingest", "audio_folder", "--resource", "labels").startswith(f"there is no /nowhere/{VISIBLE}")
    assert VISIBLE in shown("ledger", "audio_folder")
    assert any(
        f"there is no /nowhere/{HOSTILE}." in line["error"] for line in told("ledger", "audio_folder") if line["error"]
    )


def test_records_in_quarantine_are_listed_shown_and_read_again(stack: Stack, tmp_path: Path) -> None:
    folder = tmp_path / "multi30k"
    folder.mkdir()
    for language in ("en", "de"):
        lines = [f"{language} {n}".encode() for n in range(100)]
        (folder / f"train.{language}").write_bytes(b"\n".join(lines) + b"\n")
    (folder / "train.de").write_bytes((folder / "train.de").read_bytes().replace(b"de 7\n", b"de \xff\n"))
    configure("parallel_files", location=str(tmp_path))
    told("ingest", "parallel_files")
    assert told("audit", "parallel_files")["judged"] == 1
    (first,) = told("quarantine", "list")
    assert first["source"] == "parallel_files" and first["records"] == 1 and first["replayed_at"] is None
    (record,) = told("quarantine", "show", str(first["first_id"]))
    assert "line 8 is no valid UTF-8" in record["reason"] and record["landing"].startswith("landing/")
    assert told("quarantine", "show", "123456789") == []

    assert told("quarantine", "replay", "parallel_files", "--id", "123456789") == {"loads": []}
    assert told("quarantine", "replay", "parallel_files") == {"loads": [first["load"] + 1]}
    (again,) = told("quarantine", "list", "parallel_files")
    assert (again["load"], again["records"]) == (first["load"] + 1, 1)
    every = told("quarantine", "list", "parallel_files", "--all")
    assert [(line["load"], line["replayed_at"] is None) for line in every] == [
        (first["load"], False), (again["load"], True)
    ]  # fmt: skip
    assert told("quarantine", "replay", "parallel_files", "--id", str(again["first_id"])) == {
        "loads": [again["load"] + 1]
    }
    assert refused("quarantine", "replay", "nosuch").startswith("there is no source nosuch")
    query(stack, "update ops.quarantine set replayed_at = now()")
    assert shown("quarantine", "list") == "none\n"
    assert "parallel_files" in shown("quarantine", "list", "--all")


def test_the_slices_that_failed_are_asked_for_again_and_no_others(stack: Stack, server: Gbif) -> None:
    backfill = ("ingest", "gbif_sounds", "--since", "2020-12-05", "--until", "2020-12-08")
    server.without = "2020-12-06"
    said = refused(*backfill, "--json")
    assert said.startswith("1 of 3 slices of gbif_sounds failed; the first: ")
    assert said.endswith("`lyrebird ingest gbif_sounds --failed` asks for these again, and for no others")
    (gap,) = told("ledger", "gbif_sounds", "--gaps")
    assert [gap[end][:10] for end in ("since", "until")] == ["2020-12-06", "2020-12-07"]
    assert "2020-12-06" in shown("ledger", "gbif_sounds", "--gaps")
    states = {line["slice"][:10]: line["state"] for line in told("ledger", "gbif_sounds")}
    assert states == {"2020-12-05": "done", "2020-12-06": "failed", "2020-12-07": "done"}

    said = refused("ingest", "gbif_sounds", "--failed")
    assert "404" in said
    server.without, before = "", len(server.requests)
    assert len(told("ingest", "gbif_sounds", "--failed")["loads"]) == 1
    assert {params["lastInterpreted"] for _, params in server.requests[before:]} == {"2020-12-06,2020-12-06"}
    assert told("ledger", "gbif_sounds", "--gaps") == []
    assert shown("ledger", "gbif_sounds", "--gaps") == "none\n"
    assert told("ingest", "gbif_sounds", "--failed")["loads"] == {}
    said = refused("ingest", "gbif_sounds", "--failed", "--since", "2020-12-05")
    assert said == "--failed knows its intervals from the ledger. Leave out --since and --until"


def test_documents_are_made_again_loaded_again_and_withdrawn(stack: Stack, server: Gbif) -> None:
    (load,) = told("ingest", "gbif_sounds")["loads"]
    assert told("audit", "gbif_sounds") == {"judged": 1, "number": int(load)}
    whole = rows(stack)
    assert len(whole) == 200

    query(stack, f"update {TABLE} set doc = '{{}}'")
    assert told("project", "gbif_sounds") == {"documents": 200}
    assert rows(stack) == whole
    Documents(stack.settings("loader")).database.drop_collection("gbif_sounds_occurrences")
    assert refused("project", "gbif_sounds").startswith("200 of 200 versions are not in the collection")
    assert told("replay", "gbif_sounds") == {"loads": [int(load)]}
    assert told("project", "gbif_sounds") == {"documents": 200}
    assert rows(stack) == whole
    assert refused("replay", "nosuch").startswith("there is no source nosuch")

    key = min(whole)
    would = told("forget", "gbif_sounds", "--key", key, "--dry-run")
    assert would["dry_run"] and would["records"] == {"gbif_sounds_occurrences": [key]}
    assert f"would go the records, in all their versions,\n  1 of gbif_sounds_occurrences: {key}" in shown(
        "forget", "gbif_sounds", "--key", key, "--dry-run"
    )
    assert rows(stack) == whole
    assert refused("forget", "gbif_sounds", "--key", "[1]").startswith("gbif_sounds has no record '[1]'")
    assert refused("forget", "gbif_sounds").startswith("nothing says what to forget")
    gone = told("forget", "gbif_sounds", "--key", key)
    assert gone | {"dry_run": True} == would
    left = {other: doc for other, doc in whole.items() if other != key}
    assert rows(stack) == left
    who = next(doc["recordedBy"] for doc in left.values() if "recordedBy" in doc)
    said = shown("forget", "gbif_sounds", "--where", f"recordedBy={who}")
    assert "are gone the records" in said and "Now run `lyrebird transform birds`" in said
    left = {other: doc for other, doc in left.items() if doc.get("recordedBy") != who}
    assert 0 < len(left) < 150
    assert rows(stack) == left
    told("replay", "gbif_sounds")
    assert rows(stack) == left


def test_a_source_begins_with_what_landing_holds_after_the_object_store_came_back_older_or_empty(
    stack: Stack, server: Gbif
) -> None:
    backfill = ("ingest", "gbif_sounds", "--since", "2020-12-05", "--until", "2020-12-06")
    told(*backfill)
    told("audit", "gbif_sounds")
    some = rows(stack)
    objects = Objects(stack.settings("admin"))
    backup = set(objects.list("landing"))
    told("ingest", "gbif_sounds")
    told("audit", "gbif_sounds")
    whole = rows(stack)
    assert 0 < len(some) < len(whole) == 200
    for left in (backup, set[str]()):  # what a copy of the store had, and nothing at all
        for key in set(objects.list("landing")) - left:
            objects.delete("landing", key)
        assert "of gbif_sounds, and landing has not: it is older" in refused("ingest", "gbif_sounds")
        assert told("replay", "gbif_sounds") == {"loads": [1] if left else []}
        assert rows(stack) == (some if left else {})
        told("ingest", "gbif_sounds")
        told("audit", "gbif_sounds")
        assert rows(stack) == whole


def test_the_environment_defers_as_soon_as_marts_are_published(stack: Stack) -> None:
    assert "DBT_DEFER" not in shown("env")
    transform.published_state().mkdir(parents=True)
    (transform.published_state() / "manifest.json").write_text("{}")
    lines = shown("env").splitlines()
    assert {"export DBT_DEFER=true", f"export DBT_DEFER_STATE={transform.published_state()}"} <= {*lines}
