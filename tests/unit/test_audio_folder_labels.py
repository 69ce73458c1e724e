"""Tables of labels as people keep them: untidy ones are read, broken ones are told from what can be mended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from upstreams.landed_bytes import LandedBytes

from ingestion.contract import Bad, BadPage, Context, Page
from ingestion.rows import check
from ingestion.sources import audio_folder
from storage.errors import Problem
from storage.settings import Settings


def fetch(location: Any, cursor: dict[str, Any] | None = None, label_set: str = "") -> list[Page]:
    config = {"location": str(location), "label_set": label_set}
    labels = audio_folder.LABELS
    context = Context(config, cursor or {}, labels, None, Settings(), lambda text: None)
    return list(labels.fetch(context))  # type: ignore[arg-type]


def parse(body: bytes, base: str = "clips") -> list[Any]:
    return list(audio_folder.LABELS.parse(LandedBytes(body, "clips.csv", base=base, label_set="birds")))


def folder(tmp_path: Path, table: bytes, *files: str) -> Path:
    root = tmp_path / "birds"
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    root.mkdir(exist_ok=True)
    (root / "clips.csv").write_bytes(table)
    return root


TABLE = b"file,scientific_name,english_name\na.wav,Tyto alba,Barn Owl\nnone.wav,,\n"


def test_no_location_means_no_pages() -> None:
    assert fetch("") == []
    context = Context({"location": "", "label_set": ""}, {}, audio_folder.AUDIO, None, Settings(), lambda text: None)
    assert list(audio_folder.AUDIO.fetch(context)) == []


def test_files_are_named_from_the_root_and_the_set_after_its_folder(tmp_path: Path) -> None:
    root = folder(tmp_path, TABLE, "clips/a.wav")
    (page,) = fetch(root)
    assert dict(page.meta) == {"base": "clips", "label_set": "birds"}
    assert fetch(tmp_path)[0].meta == {"base": "birds/clips", "label_set": "birds"}
    assert fetch(root, label_set="owls")[0].meta["label_set"] == "owls"
    flat = folder(tmp_path / "flat", TABLE, "a.wav")
    assert fetch(flat)[0].meta["base"] == "."
    assert parse(TABLE, ".")[0]["file"] == "a.wav"


def test_labels_are_fetched_again_only_when_something_changed(tmp_path: Path) -> None:
    root = folder(tmp_path, TABLE, "clips/a.wav")
    cursor = fetch(root)[-1].cursor
    assert fetch(root, cursor) == []
    assert len(fetch(root, cursor, label_set="owls")) == 1
    (root / "clips.csv").write_bytes(TABLE + b"b.wav,Corvus frugilegus,Rook\n")
    assert len(fetch(root, cursor)) == 1


def test_rows_become_records_and_no_species_is_null() -> None:
    owl, none = parse(TABLE)
    assert owl == {
        **{"file": "clips/a.wav", "scientific_name": "Tyto alba", "english_name": "Barn Owl", "label_set": "birds"},
        **{"recordist": None, "split": None, "licence": None},
    }
    assert none["scientific_name"] is None
    assert check(audio_folder.LABELS, owl) == check(audio_folder.LABELS, none) == ""


@pytest.mark.parametrize(
    "body",
    [
        b"\xef\xbb\xbf" + TABLE,
        TABLE.replace(b"\n", b"\r\n"),
        TABLE.replace(b",", b";"),
        TABLE.replace(b",", b"\t"),
        TABLE.replace(b"file,scientific_name", b" File ,SCIENTIFIC_NAME "),
        TABLE.replace(b"a.wav", b"clips/a.wav"),
        TABLE.replace(b"a.wav", b'"clips\\a.wav"'),
        TABLE.replace(b"Tyto alba", b"  Tyto   alba "),
        TABLE.replace(b"none.wav,,", b"none.wav"),
        TABLE + b"\n\na.wav,Tyto alba,Barn Owl\n",
    ],
)
def test_untidy_tables_say_the_same(body: bytes) -> None:
    assert parse(body) == parse(TABLE)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b",Tyto alba,Barn Owl", "no file"),
        (b"../../etc/passwd,Tyto alba,", "leads out"),
        (b"/etc/passwd,Tyto alba,", "leads out"),
        (b"a.wav,Strix aluco,Tawny Owl", "has a label already"),
        (b"b.wav,Tyto alba,Barn Owl,extra", "more cells"),
    ],
)
def test_a_broken_line_is_bad_and_the_others_stay(line: bytes, reason: str) -> None:
    records = parse(TABLE + line + b"\n" + b"z.wav,Corvus frugilegus,Rook\n")
    (bad,) = [record for record in records if isinstance(record, Bad)]
    assert reason in bad.reason
    assert [record["file"] for record in records if record is not bad] == [
        *("clips/a.wav", "clips/none.wav", "clips/z.wav"),
    ]


def test_a_split_is_one_of_three() -> None:
    head = b"file,scientific_name,split,licence,recordist\n"
    good, bad = parse(head + b"a.wav,X y,valid,CC0,Ann\nb.wav,X y,validation,CC0,Ann\n")
    assert (good["split"], good["licence"], good["recordist"]) == ("valid", "CC0", "Ann")
    assert isinstance(bad, Bad) and "validation" in bad.reason


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"file,species\na.wav,Tyto alba\n", "no column scientific_name"),
        (b"name\na.wav\n", "no column file and no column scientific_name"),
        (b"", "its first line has: nothing"),
        ("file,scientific_name\na.wav,Zaunkönig".encode("latin-1"), "not UTF-8 (byte 33 is 0xf6)"),
    ],
)
def test_what_is_no_table_of_labels_is_said(tmp_path: Path, body: bytes, said: str) -> None:
    with pytest.raises(BadPage) as parsed:
        parse(body)
    assert said in str(parsed.value)
    with pytest.raises(Problem) as fetched:
        fetch(folder(tmp_path, body, "clips/a.wav"))
    assert said in str(fetched.value) and "clips.csv" in str(fetched.value)


def test_a_folder_without_audio_is_said(tmp_path: Path) -> None:
    root = folder(tmp_path, TABLE)
    context = Context(
        {"location": str(root), "label_set": ""}, {}, audio_folder.AUDIO, None, Settings(), lambda text: None
    )
    with pytest.raises(Problem, match="there is no audio at"):
        list(audio_folder.AUDIO.fetch(context))


def test_the_real_table_is_read(data: Path) -> None:
    (page,) = fetch(data / "birds")
    records = parse(page.body, page.meta["base"])  # type: ignore[arg-type]
    assert len(records) == 63 and not any(isinstance(record, Bad) for record in records)
    assert len({record["scientific_name"] for record in records}) == 9
    assert all((data / "birds" / record["file"]).is_file() for record in records)
