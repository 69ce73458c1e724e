"""FTP and SFTP locations against real servers: the same files as in the folder, whatever is lost on the way."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from upstreams import ftp_server, sftp_server

from ingestion.locations import Location
from storage.errors import Problem

FILES = {
    "labels.csv": b"file,scientific_name\n",
    "clips/a b.wav": b"one",
    "clips/grün#2%.wav": b"zwei",
    "clips/deep/er/c.mp3": bytes(range(256)) * 8_000,
    "empty.wav": b"",
}
HIDDEN = (".DS_Store", "clips/._a b.wav", ".git/config")
SECRET = ftp_server.PASSWORD


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "served" / "birds"
    for name, body in FILES.items() | {(name, b"x") for name in HIDDEN}:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    (tmp_path / "served" / "secret.txt").write_text("not for you")
    return folder


@pytest.fixture(params=["ftp", "sftp", "ftp, password in the address", "ftp, old"])
def place(request: pytest.FixtureRequest, root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Address of the folder above, with a slash at its end, and the option `storage`."""
    if request.param == "sftp":
        with sftp_server.serve(root.parent) as sftp:
            known = root.parent.parent / "known_hosts"
            known.write_text(sftp.known)
            who = {"username": sftp_server.USER, "password": sftp_server.PASSWORD, "known_hosts": str(known)}
            yield f"sftp://{sftp.host}:{sftp.port}/", who
        return
    with ftp_server.serve(root.parent, old=request.param == "ftp, old") as ftp:
        if request.param in ("ftp", "ftp, old"):
            yield f"ftp://{ftp.host}:{ftp.port}/", {"username": ftp_server.USER, "password": SECRET}
        else:
            yield f"ftp://{ftp_server.USER}:{quote(SECRET, safe='')}@{ftp.host}:{ftp.port}/", {}


def test_lists_reads_and_fetches_every_file(place: tuple[str, dict[str, Any]]) -> None:
    url, storage = place
    location = Location(url + "birds", storage=storage)
    entries = location.list()
    assert {entry.name: entry.size for entry in entries} == {name: len(body) for name, body in FILES.items()}
    assert all(entry.etag for entry in entries) and location.name == "birds"
    for name, body in FILES.items():
        with location.open(name) as stream:
            assert stream.read() == body
        assert location.fetch(name).read_bytes() == body
        assert location.entry(name).size == len(body)
    assert dict(location.read_each(FILES)) == FILES
    assert location.list() == entries
    assert [entry.name for entry in location.list("*.csv")] == ["labels.csv"]
    assert location.has("clips/a b.wav") and not location.has("clips/none.wav") and not location.has("clips")


def test_a_changed_file_gets_another_etag(place: tuple[str, dict[str, Any]], root: Path) -> None:
    url, storage = place
    location = Location(url + "birds/", storage=storage)
    before = {entry.name: entry.etag for entry in location.list()}
    single = location.entry("clips/a b.wav").etag
    (root / "clips" / "a b.wav").write_bytes(b"other")
    after = {entry.name: entry.etag for entry in location.list()}
    assert [name for name in before if before[name] != after[name]] == ["clips/a b.wav"]
    assert location.entry("clips/a b.wav").etag != single


def test_a_single_file_is_a_location_of_one(place: tuple[str, dict[str, Any]]) -> None:
    url, storage = place
    location = Location(url + "birds/labels.csv", storage=storage)
    assert [entry.name for entry in location.list()] == ["labels.csv"]
    assert location.read("labels.csv") == FILES["labels.csv"]


@pytest.mark.parametrize("name", ["../secret.txt", "clips/../../secret.txt", "/secret.txt", "clips//a", "a\x00"])
def test_nothing_outside_of_the_root_is_opened(place: tuple[str, dict[str, Any]], name: str) -> None:
    url, storage = place
    location = Location(url + "birds", storage=storage)
    for reach in (location.open, location.fetch, location.entry):
        with pytest.raises(Problem, match="is not a name below"):
            reach(name)


def test_what_is_not_there_is_said_in_one_sentence(place: tuple[str, dict[str, Any]]) -> None:
    url, storage = place
    with pytest.raises(Problem, match=r"there is no .*nowhere"):
        Location(url + "nowhere", storage=storage).list()
    with pytest.raises(Problem, match=r"there is no clips/none\.wav"):
        Location(url + "birds", storage=storage).read("clips/none.wav")


def test_passwords_are_shown_nowhere(
    place: tuple[str, dict[str, Any]], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    url, storage = place
    said = []
    location = Location(url + "birds", storage=storage)
    for name in ("nowhere", "clips"):
        with pytest.raises(Problem) as caught:
            location.read(name)
        said.append(str(caught.value))
    wrong = url.replace(quote(SECRET, safe=""), "wr0ng") if "@" in url else url
    with pytest.raises(Problem) as caught:
        Location(wrong + "birds", storage=storage | ({"password": "wr0ng"} if storage else {})).list()
    said += [str(caught.value), location.url, *capfd.readouterr()]
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith("pyftpdlib")]
    for text in (*said, *ours):
        assert not any(secret in text for secret in (SECRET, quote(SECRET, safe=""), "wr0ng")), text


def test_a_transfer_that_is_cut_goes_on_where_it_stopped(root: Path) -> None:
    with ftp_server.serve(root, faulty=True) as server:
        location = Location(
            f"ftp://{server.host}:{server.port}/", storage={"username": ftp_server.USER, "password": SECRET}
        )
        assert {entry.name: location.read(entry.name) for entry in location.list()} == FILES
        large = len(FILES["clips/deep/er/c.mp3"])
        assert f"REST {large // 2}" in server.commands
        assert {Path(name).name for name in server.cut} == {Path(name).name for name in FILES}


def test_a_server_with_an_unknown_key_is_refused(root: Path, tmp_path: Path) -> None:
    with sftp_server.serve(root) as server, sftp_server.serve(root) as other:
        elsewhere = other.known.replace(f":{other.port} ", f":{server.port} ")
        broken = server.known.replace("AAAA", "AAAB", 1)
        cases = (
            ("", "shows a key"),
            (other.known, "shows a key"),
            (elsewhere, "shows a key"),
            (broken, "is no file of"),
        )
        for number, (text, said) in enumerate(cases):
            known = tmp_path / f"known_{number}"
            known.write_text(text)
            storage = {"username": sftp_server.USER, "password": SECRET, "known_hosts": str(known)}
            with pytest.raises(Problem, match=said):
                Location(f"sftp://{server.host}:{server.port}/", storage=storage).list()


def test_a_server_that_has_gone_is_said_in_one_sentence(root: Path) -> None:
    with ftp_server.serve(root) as server:
        url = f"ftp://{server.host}:{server.port}/"
        location = Location(url, storage={"username": ftp_server.USER, "password": SECRET})
        assert len(location.list()) == len(FILES)
    for ask in (location.list, lambda: Location(url).list()):
        with pytest.raises(Problem, match=r"cannot read .*ftp://127") as caught:
            ask()
        assert "\n" not in str(caught.value)
