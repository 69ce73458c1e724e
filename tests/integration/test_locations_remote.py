"""FTP and SFTP locations against real servers: the same files as in the folder, whatever is lost on the way."""

from __future__ import annotations

import logging
import os
import time
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import quote

import paramiko
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from upstreams import ftp_server, sftp_server

from ingestion import locations
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


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1, signed by itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ftp")]), datetime.now(UTC)
    here = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(1))
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path = tmp_path / "certificate.pem"
    path.write_bytes(
        made.add_extension(here, critical=False).sign(key, hashes.SHA256()).public_bytes(pem)
        + key.private_bytes(pem, form, serialization.NoEncryption())
    )
    return path


def test_ftp_over_tls_is_for_servers_with_a_good_certificate(
    root: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = {"username": ftp_server.USER, "password": SECRET}
    with ftp_server.serve(root, certificate=str(certificate)) as ftp:
        with pytest.raises(Problem, match="certificate verify failed"):
            Location(f"ftps://{ftp.host}:{ftp.port}/", storage=who)
        assert not any(said.startswith(("USER", "PASS")) for said in ftp.commands)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        location = Location(f"ftps://{ftp.host}:{ftp.port}/", storage=who)
        assert {entry.name for entry in location.list()} == FILES.keys()
        assert location.read("clips/a b.wav") == FILES["clips/a b.wav"]
        assert location.fetch("clips/deep/er/c.mp3").read_bytes() == FILES["clips/deep/er/c.mp3"]


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


@pytest.mark.parametrize("old", [False, True])
def test_a_transfer_that_is_cut_goes_on_where_it_stopped(root: Path, old: bool) -> None:
    with ftp_server.serve(root, old=old) as server:
        location = Location(
            f"ftp://{server.host}:{server.port}/", storage={"username": ftp_server.USER, "password": SECRET}
        )
        assert {entry.name: location.read(entry.name) for entry in location.list()} == FILES
        large = len(FILES["clips/deep/er/c.mp3"])
        assert f"REST {large // 2}" in server.commands
        assert {Path(name).name for name in server.cut} == {Path(name).name for name in FILES}


def test_an_sftp_transfer_that_is_cut_comes_whole_over_a_new_connection(root: Path) -> None:
    with sftp_server.serve(root) as server:
        location = sftp_location(server, root)
        assert {entry.name: location.read(entry.name) for entry in location.list()} == FILES
        assert {name.removeprefix("/") for name in server.cut} == FILES.keys() - {"empty.wav"}


def test_a_transfer_that_is_cut_begins_anew_when_the_file_has_changed(root: Path) -> None:
    """To another of the same size."""
    name, body = "clips/deep/er/c.mp3", FILES["clips/deep/er/c.mp3"][::-1]

    def change(path: Path) -> None:
        path.write_bytes(body)
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime + 60))

    with ftp_server.serve(root) as server:
        location = ftp_location(server)
        location.read("labels.csv")  # the first one loses the connection, too, before anything has come
        server.at_cut = change
        assert location.read(name) == body != FILES[name]


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


def test_a_key_opens_a_server_and_another_key_does_not(root: Path, tmp_path: Path) -> None:
    mine, other = paramiko.ECDSAKey.generate(), paramiko.ECDSAKey.generate()
    for name, key in (("mine", mine), ("other", other)):
        key.write_private_key_file(str(tmp_path / name))
    with sftp_server.serve(root) as server:
        server.key = mine.get_base64()
        (tmp_path / "known").write_text(server.known)
        who = {"username": sftp_server.USER, "known_hosts": str(tmp_path / "known")}
        url = f"sftp://{server.host}:{server.port}/"
        location = Location(url, storage=who | {"key_filename": str(tmp_path / "mine")})
        assert {entry.name for entry in location.list()} == FILES.keys()
        (tmp_path / "text").write_text("no key")
        for file, said in (
            ("other", "Authentication failed"),
            ("nowhere", "it is not there"),
            ("text", "private key: "),
        ):
            with pytest.raises(Problem, match=said):
                Location(url, storage=who | {"key_filename": str(tmp_path / file)}).list()


def test_a_server_that_has_gone_is_said_in_one_sentence(root: Path) -> None:
    with ftp_server.serve(root) as server:
        url = f"ftp://{server.host}:{server.port}/"
        location = Location(url, storage={"username": ftp_server.USER, "password": SECRET})
        assert len(location.list()) == len(FILES)
    for ask in (location.list, lambda: Location(url).list()):
        with pytest.raises(Problem, match=r"cannot read .*ftp://127") as caught:
            ask()
        assert "\n" not in str(caught.value)


# --- hostile servers


def ftp_location(server: ftp_server.Ftp) -> Location:
    return Location(f"ftp://{server.host}:{server.port}/", storage={"username": ftp_server.USER, "password": SECRET})


def sftp_location(server: sftp_server.Sftp, root: Path) -> Location:
    known = root.parent / "known_hosts"
    known.write_text(server.known)
    who = {"username": sftp_server.USER, "password": sftp_server.PASSWORD, "known_hosts": str(known)}
    return Location(f"sftp://{server.host}:{server.port}/", storage=who)


def refused(call: Callable[[], object], said: str, seconds: float = 5) -> None:
    """One sentence, in time, and in little memory."""
    began = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(Problem, match=said) as caught:
            call()
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < seconds
    assert "\n" not in str(caught.value)


def test_an_ftp_file_without_end_is_cut_off_and_the_next_one_comes(root: Path) -> None:
    with ftp_server.serve(root) as server:
        location = ftp_location(server)
        location.list()
        server.endless = bytes(1 << 16)
        refused(lambda: location.read("clips/a b.wav", 1 << 20), "more than 1,048,576 bytes")
        server.endless = b""
        assert location.read("clips/a b.wav") == b"one"


def test_an_ftp_file_that_trickles_is_given_up_and_the_next_one_comes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ftp_server.serve(root) as server:
        location = ftp_location(server)
        location.list()
        server.endless, server.pause = b"x", 0.05
        with monkeypatch.context() as patch:
            patch.setattr(locations, "_PATIENCE_S", 0.5)
            refused(lambda: location.read("clips/a b.wav", 1 << 20), "takes longer than")
        server.endless = b""
        assert location.read("clips/a b.wav") == b"one"


LISTINGS: dict[str, tuple[bytes, str]] = {
    "no type": (b"size=3;modify=20240101000000; a.wav\r\n", "makes no sense"),
    "no size": (b"type=file;modify=20240101000000; a.wav\r\n", "makes no sense"),
    "a bad size": (b"type=file;size=many; a.wav\r\n", "makes no sense"),
    "a huge size": (b"type=file;size=" + b"9" * 5_000 + b"; a.wav\r\n", "makes no sense"),
    "no text": (b"type=file;size=3; \xff\xfe.wav\r\n", "makes no sense"),
    "a line without end": (b"type=file;size=3; " + b"a" * 20_000 + b"\r\n", "cannot read"),
}


@pytest.mark.parametrize("kind", LISTINGS)
def test_an_ftp_listing_that_makes_no_sense_is_one_sentence(root: Path, kind: str) -> None:
    listing, said = LISTINGS[kind]
    with ftp_server.serve(root) as server:
        location = ftp_location(server)
        server.listing = listing
        refused(location.list, said, 15)


def test_an_ftp_listing_without_end_is_cut_off(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locations, "_MOST_ENTRIES", 10_000)
    with ftp_server.serve(root) as server:
        location = ftp_location(server)
        server.endless = b"type=file;size=3; a.wav\r\n" * 1_000
        refused(location.list, "lists more than 10,000 files")


def test_lines_that_a_file_s_name_makes_in_an_old_listing_are_passed_over(root: Path) -> None:
    line = b"-rw-r--r-- 1 me us %s Jan 1 2024 %s\r\n"
    with ftp_server.serve(root, old=True) as server:
        location = ftp_location(server)
        server.listing = line % (b"3", b"a.wav") + line % (b"x", b"b.wav") + b"-\r\n" + line % (b"4", b"../c.wav")
        assert [(one.name, one.size) for one in location.list()] == [("../c.wav", 4), ("a.wav", 3)]
        with pytest.raises(Problem, match=r"'\.\./c\.wav' is not a name below"):
            location.read("../c.wav")


@pytest.mark.parametrize(
    ("command", "answer", "said"),
    [
        ("SIZE", "213 many", "makes no sense"),
        ("SIZE", "213 " + "9" * 5_000, "makes no sense"),
        ("MDTM", "213", "^$"),
        ("TYPE", "200-\r\n" + "x\r\n" * 2_000 + "200 ok", "more than 1,000 lines"),
    ],
)
def test_ftp_answers_that_make_no_sense_are_one_sentence(root: Path, command: str, answer: str, said: str) -> None:
    with ftp_server.serve(root) as server:
        location = ftp_location(server)
        location.list()
        server.said = {command: answer}
        if said == "^$":  # an odd time is another mark, and no trouble
            assert location.entry("clips/a b.wav").size == 3
        else:
            refused(lambda: location.entry("clips/a b.wav"), said)


def test_an_ftp_name_that_is_two_commands_is_not_sent(root: Path) -> None:
    with ftp_server.serve(root) as server:
        location = ftp_location(server)
        location.list()
        refused(lambda: location.read("a.wav\r\nDELE labels.csv"), "makes no sense")
        assert not [line for line in server.commands if "DELE" in line]
        assert location.read("labels.csv") == FILES["labels.csv"]


@pytest.mark.parametrize("size", [2**60, 10**9])
def test_an_sftp_size_that_lies_takes_no_memory(root: Path, size: int) -> None:
    with sftp_server.serve(root) as server:
        location = sftp_location(server, root)
        server.size = size
        said = "more than 1,048,576 bytes"
        refused(lambda: location.read("clips/a b.wav", 1 << 20), said)
        refused(lambda: location.fetch("clips/a b.wav"), "has more than|cannot read|gave", 30)
        server.size = None
        assert location.read("clips/a b.wav") == b"one"


def test_an_sftp_file_that_trickles_is_given_up_and_the_next_one_comes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sftp_server.serve(root) as server:
        location = sftp_location(server, root)
        location.list()
        server.pause = 1.0
        with monkeypatch.context() as patch:
            patch.setattr(locations, "_PATIENCE_S", 0.5)
            refused(lambda: location.read("clips/deep/er/c.mp3", 4 << 20), "takes longer than", 40)
        server.pause = 0
        assert location.read("clips/deep/er/c.mp3") == FILES["clips/deep/er/c.mp3"]


def test_an_sftp_listing_without_end_is_cut_off(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locations, "_MOST_ENTRIES", 1_000)
    with sftp_server.serve(root) as server:
        location = sftp_location(server, root)
        server.listing = 2_000
        refused(location.list, "lists more than 1,000 files", 20)
