"""MIDI of any collection: every file in every kind of archive, and what archives hold that they should not."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from upstreams.landed_bytes import LandedBytes
from upstreams.maestro import tune

from ingestion import catalogue, rows
from ingestion.contract import Bad, Context, Gone, Page
from ingestion.sources import midi_archive
from storage.errors import Problem
from storage.settings import Settings

(SCORES,) = midi_archive.SOURCE.resources
TUNES = {f"{folder}/tune {number}.{suffix}": tune(number) for number, (folder, suffix) in enumerate(
    (("a", "mid"), ("a", "MID"), ("b/ü", "midi"), ("b", "kar")))}  # fmt: skip


def zipped(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in files.items():
            archive.writestr(zipfile.ZipInfo(name), body, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def tarred(files: dict[str, bytes], mode: str = "w") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:  # type: ignore[call-overload]
        for name, body in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            archive.addfile(entry, io.BytesIO(body))
    return packed.getvalue()


KINDS: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "x.zip": zipped,
    "x.TAR": tarred,
    "x.tar.gz": lambda files: tarred(files, "w:gz"),
    "deep/x.tbz2": lambda files: tarred(files, "w:bz2"),
    "x.tar.xz": lambda files: tarred(files, "w:xz"),
}


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> dict[str, midi_archive.Terms]:
    """What raw knows, in place of a warehouse: the integration tests have one."""
    known: dict[str, midi_archive.Terms] = {}
    monkeypatch.setattr(midi_archive, "_known", lambda context: known)
    monkeypatch.setattr(midi_archive, "_paths", lambda context, files: set(files))
    return known


def fetched(location: Path, cursor: dict[str, Any] | None = None, said: list[str] | None = None) -> list[Page | Gone]:
    config = {"location": str(location), "storage": {}, "corpus": "", "licence": "CC0"}
    say = (said if said is not None else []).append
    return list(SCORES.fetch(Context(config, cursor or {}, SCORES, None, Settings(), say)))


def parsed(pages: list[Page | Gone]) -> tuple[dict[str, bytes], dict[str, str]]:
    """Path -> body of what is taken, and path -> reason of what is not."""
    good, bad = {}, {}
    for page in pages:
        assert isinstance(page, Page) and isinstance(page.body, bytes)
        (one,) = SCORES.parse(LandedBytes(page.body, page.name, page.content_type, **page.meta))
        if isinstance(one, Bad):
            bad[page.name] = one.reason
        else:
            assert rows.check(SCORES, one) == ""
            good[page.name] = page.body
    return good, bad


def lay(folder: Path, files: dict[str, bytes]) -> Path:
    for name, body in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_of_an_archive_comes_byte_for_byte(tmp_path: Path, kind: str) -> None:
    lay(tmp_path, {kind: KINDS[kind](TUNES | {"a/cover.jpg": b"x", "readme.txt": b"x"})})
    good, bad = parsed(fetched(tmp_path))
    assert good == {f"{kind}/{name}": body for name, body in TUNES.items()}
    assert bad == {}


def test_loose_files_and_archives_lie_side_by_side(tmp_path: Path) -> None:
    lay(tmp_path, TUNES | {"more.zip": zipped(TUNES), "notes.txt": b"x", ".hidden.mid": b"x"})
    pages = fetched(tmp_path)
    good, bad = parsed(pages)
    assert good == TUNES | {f"more.zip/{name}": body for name, body in TUNES.items()}
    assert bad == {}
    assert {page.cursor["listing"] for page in pages[:-1]} == {""} and pages[-1].cursor["listing"]
    assert fetched(tmp_path, pages[-1].cursor) == []
    assert fetched(tmp_path, pages[0].cursor) == pages  # it was not the last one: there is more to come


def test_only_what_is_new_is_read_again(tmp_path: Path, nothing_known: dict[str, midi_archive.Terms]) -> None:
    lay(tmp_path, TUNES)
    pages = fetched(tmp_path)
    for page in pages:
        assert isinstance(page, Page)
        terms = midi_archive.Terms(page.meta["corpus"], page.meta["licence"], page.meta["etag"])
        nothing_known[page.name] = terms
    lay(tmp_path, {"a/tune 0.mid": tune(77), "new.mid": tune(78)})
    (tmp_path / "b" / "tune 3.kar").unlink()
    found = fetched(tmp_path, pages[-1].cursor)
    assert [page.name for page in found if isinstance(page, Page)] == ["a/tune 0.mid", "new.mid"]
    assert [page.key for page in found if isinstance(page, Gone)] == [("b/tune 3.kar",)]
    assert found[-1].cursor["listing"]


def test_what_archives_should_not_hold_is_named_and_the_rest_comes(tmp_path: Path) -> None:
    links = io.BytesIO()
    with tarfile.open(fileobj=links, mode="w") as archive:
        for name, kind in (
            ("link.mid", tarfile.SYMTYPE),
            ("hard.mid", tarfile.LNKTYPE),
            ("pipe.mid", tarfile.FIFOTYPE),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            archive.addfile(entry)
        entry = tarfile.TarInfo("good.mid")
        entry.size = len(tune(1))
        archive.addfile(entry, io.BytesIO(tune(1)))
    slip = {"../../evil.mid": tune(2), "/etc/cron.d/evil.mid": tune(2), "c:\\evil.mid": tune(2), "good.mid": tune(2)}
    odd = {"not.mid": b"<html>", "empty.mid": b"", "large.mid": b"MThd" + bytes(17 << 20), "good.mid": tune(3)}
    lay(tmp_path, {"links.tar": links.getvalue(), "slip.zip": zipped(slip), "odd.zip": zipped(odd)})
    good, bad = parsed(fetched(tmp_path))
    assert good == {f"{name}/good.mid": tune(n) for n, name in ((1, "links.tar"), (2, "slip.zip"), (3, "odd.zip"))}
    assert {name.removeprefix("links.tar/"): reason for name, reason in bad.items() if "links" in name} == {
        "link.mid": "it is a link", "hard.mid": "it is a link", "pipe.mid": "it is no ordinary file"
    }  # fmt: skip
    assert sorted(reason for name, reason in bad.items() if name.startswith("slip.zip")) == [
        "its name has backslashes in it", "its name is absolute", "its name leads out of the archive"
    ]  # fmt: skip
    assert {name: reason for name, reason in bad.items() if name.startswith("odd.zip")} == {
        "odd.zip/not.mid": "it does not begin as a MIDI file does",
        "odd.zip/empty.mid": "it does not begin as a MIDI file does",
        "odd.zip/large.mid": bad["odd.zip/large.mid"],
    }
    assert "more than" in bad["odd.zip/large.mid"]


@pytest.mark.parametrize("kind", ["x.zip", "x.tar.gz"])
def test_a_damaged_archive_gives_what_lies_before_the_damage(tmp_path: Path, kind: str) -> None:
    many = {f"{number:03}.mid": tune(number, 60) for number in range(60)}
    body = KINDS[kind](many)
    at = 4 * len(body) // 5 if kind == "x.zip" else len(body) // 2
    damaged = body[:at] + bytes(40) + body[at + 40 :] if kind == "x.zip" else body[:at]
    lay(tmp_path, {kind: damaged, "y.zip": zipped(TUNES)})
    good, bad = parsed(fetched(tmp_path))
    whole = {name.removeprefix(f"{kind}/"): body for name, body in good.items() if name.startswith(kind)}
    assert whole and all(many[name] == body for name, body in whole.items())
    assert bad and all(name.startswith(kind) for name in bad)
    assert {name for name in good if name.startswith("y.zip")} == {f"y.zip/{name}" for name in TUNES}


def test_what_is_no_archive_is_named(tmp_path: Path) -> None:
    lay(tmp_path, TUNES | {"error.zip": b"<html>404</html>", "cut.tar.gz": b"\x1f\x8b\x08"})
    good, bad = parsed(fetched(tmp_path))
    assert good == TUNES and bad.keys() == {"error.zip", "cut.tar.gz"}


def test_a_place_without_midi_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="there is no MIDI at"):
        fetched(lay(tmp_path, {"readme.txt": b"x"}))


def test_without_a_location_nothing_is_read() -> None:
    for name in ("tatoeba", "manythings", "maestro", "midi_archive"):
        source = catalogue.source(name)
        config = {option: default for option, (default, _) in source.config.items()}
        for resource in source.resources:
            context = Context(config, {}, resource, None, Settings(), lambda text: None)
            assert list(resource.fetch(context)) == []
