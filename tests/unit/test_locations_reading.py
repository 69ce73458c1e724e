"""Locations: the same files from a folder and over HTTP, nothing from outside, one sentence when it is not there."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from upstreams import hostile_server
from upstreams.faulty_server import FaultyServer, Reply
from upstreams.file_server import serve

from ingestion.locations import Location, fingerprint
from storage.errors import Problem, Unusable

FILES = {
    "labels.csv": b"file,scientific_name\n",
    "clips/a b.wav": b"one",
    "clips/grün#2%.wav": b"zwei",
    "clips/deep/er/c.mp3": bytes(3_000_000),
    "empty.wav": b"",
}
HIDDEN = (".DS_Store", "clips/._a b.wav", ".git/config")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state folder of their own: what is downloaded lies there for a moment."""
    for name in [name for name in os.environ if name.startswith("LYREBIRD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LYREBIRD_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("ingestion.web.TRIES", 2)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "birds"
    for name, body in FILES.items() | {(name, b"x") for name in HIDDEN}:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    (tmp_path / "secret.txt").write_text("not for you")
    return folder


@pytest.fixture(params=["folder", "file url", "http", "http without slash"])
def location(request: pytest.FixtureRequest, root: Path) -> Iterator[Location]:
    if request.param.startswith("http"):
        with serve(root.parent) as url:
            yield Location(f"{url}birds" + ("" if "without" in request.param else "/"))
    else:
        yield Location(root if request.param == "folder" else root.as_uri())


def test_lists_reads_and_fetches_every_file(location: Location) -> None:
    entries = location.list()
    assert [entry.name for entry in entries] == sorted(FILES)
    assert {entry.name: entry.size for entry in entries} == {name: len(body) for name, body in FILES.items()}
    assert all(entry.etag for entry in entries)
    for name, body in FILES.items():
        with location.open(name) as stream:
            assert stream.read() == body
        copy = location.fetch(name)
        assert copy.read_bytes() == body and copy.name == name.rsplit("/", 1)[-1]
    assert location.name == "birds"
    assert location.list() == entries and fingerprint(entries) == fingerprint(location.list())


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.wav", ["empty.wav"]),
        ("**/*.wav", ["clips/a b.wav", "clips/grün#2%.wav", "empty.wav"]),
        ("clips/*", ["clips/a b.wav", "clips/grün#2%.wav"]),
        ("clips/**", ["clips/a b.wav", "clips/deep/er/c.mp3", "clips/grün#2%.wav"]),
        ("labels.???", ["labels.csv"]),
        ("nothing*", []),
    ],
)
def test_patterns(root: Path, pattern: str, expected: list[str]) -> None:
    assert [entry.name for entry in Location(root).list(pattern)] == expected


@pytest.mark.parametrize(
    "name", ["../secret.txt", "clips/../../secret.txt", "/etc/passwd", "clips//a", "", "..\\x", "a\x00"]
)
def test_nothing_outside_of_the_root_is_opened(location: Location, name: str) -> None:
    for reach in (location.open, location.fetch, location.read):
        with pytest.raises(Problem, match="is not a name below"):
            reach(name)


def test_a_link_out_of_the_folder_is_refused_and_one_within_is_followed(root: Path) -> None:
    (root / "out.wav").symlink_to(root.parent / "secret.txt")
    (root / "in.wav").symlink_to(root / "clips" / "a b.wav")
    location = Location(root)
    assert location.read("in.wav") == b"one"
    with pytest.raises(Problem, match=r"out\.wav .* is a link to .*secret\.txt"):
        location.open("out.wav")


def test_a_pipe_is_no_file(root: Path) -> None:
    os.mkfifo(root / "pipe.wav")
    (root / "link.wav").symlink_to(root / "pipe.wav")
    location = Location(root)
    assert not {"pipe.wav", "link.wav"} & {entry.name for entry in location.list()}
    for name in ("pipe.wav", "link.wav"):
        for reach in (location.open, location.fetch, location.read):
            with pytest.raises(Unusable, match=f"{name} in .* is no ordinary file"):
                reach(name)


def test_a_file_read_in_memory_has_a_limit_whatever_is_said_of_its_size(location: Location) -> None:
    assert location.read("clips/a b.wav", 3) == b"one"
    with pytest.raises(Unusable, match="bytes"):
        location.read("clips/a b.wav", 2)
    (found,) = location.read_each(["clips/a b.wav"], 2)
    assert isinstance(found[1], Unusable)


def test_a_file_larger_than_its_head_said_is_given_up_while_it_comes() -> None:
    with hostile_server.serve() as server:
        server.on("/midi/x.mid", hostile_server.endless(hostile_server.head(Content_Type="audio/midi")))
        server.on("/midi/", hostile_server.answer(b'<a href="x.mid">x</a>', Content_Type="text/html"))
        location = Location(f"{server.url}/midi/")
        began = time.monotonic()
        with pytest.raises(Unusable, match="gives more bytes than are allowed"):
            location.read("x.mid", 1 << 20)
        assert time.monotonic() - began < 5


def test_a_page_that_links_out_lists_only_what_lies_below(tmp_path: Path) -> None:
    (tmp_path / "site" / "birds").mkdir(parents=True)
    (tmp_path / "site" / "other.wav").write_bytes(b"other")
    (tmp_path / "site" / "birds" / "a.wav").write_bytes(b"a")
    links = (
        "../other.wav",
        "/other.wav",
        "?C=N;O=D",
        "a.wav",
        "a.wav#top",
        "../",
        "%2e%2e/other.wav",
        "deep/%2e%2e/b.wav",
        "%2e%2e/deep/",
        "http://example.org/x.wav",
    )
    page = "".join(f'<a href="{link}">x</a>' for link in links)
    (tmp_path / "site" / "birds" / "index.html").write_text(page)
    with serve(tmp_path / "site") as url:
        location = Location(f"{url}birds/")
        assert [entry.name for entry in location.list()] == ["../other.wav", "a.wav", "deep/../b.wav"]
        for name in ("../other.wav", "deep/../b.wav"):  # no link to elsewhere: a file of that name, as it looks
            with pytest.raises(Unusable, match="is not a name below"):
                location.read(name)


def test_a_changed_file_gets_another_etag(root: Path) -> None:
    before = {entry.name: entry.etag for entry in Location(root).list()}
    (root / "clips" / "a b.wav").write_bytes(b"other")
    after = {entry.name: entry.etag for entry in Location(root).list()}
    assert [name for name in before if before[name] != after[name]] == ["clips/a b.wav"]


def test_a_single_file_is_a_location_of_one(root: Path) -> None:
    with serve(root) as url:
        for where in (str(root / "labels.csv"), f"{url}labels.csv"):
            location = Location(where)
            assert [entry.name for entry in location.list()] == ["labels.csv"]
            assert location.read("labels.csv") == FILES["labels.csv"]
            with pytest.raises(Problem):
                location.open("other.csv")


def test_what_is_not_there_is_said_in_one_sentence(root: Path) -> None:
    with serve(root) as url:
        gone = url
        for where in (str(root / "nowhere"), f"{url}nowhere/", f"{url}nowhere.csv"):
            with pytest.raises(Problem, match=r"there is no .*nowhere"):
                Location(where).list()
        for where in (str(root), url):
            with pytest.raises(Problem, match=r"there is no clips/none\.wav"):
                Location(where).read("clips/none.wav")
    with pytest.raises(Problem, match="cannot read"):
        Location(gone).list()
    for where in ("", "gopher://example.org/x", "s3://"):
        with pytest.raises(Problem):
            Location(where)


def test_a_password_in_the_address_is_not_shown() -> None:
    location = Location("http://ann:hunter2@127.0.0.1:9/")
    with pytest.raises(Problem) as caught:
        location.list()
    assert "hunter2" not in str(caught.value) + location.url


class Site(FaultyServer):
    """A server of a few addresses, some of which lead elsewhere."""

    def __init__(self, replies: dict[str, Reply]) -> None:
        super().__init__()
        self.faulty = False
        self.replies = replies

    def answer(self, path: str, _: dict[str, str]) -> Reply:
        return self.replies.get(path, Reply(404, b"", "text/plain"))


def test_a_location_may_be_at_home_but_not_lead_to_others_there(root: Path) -> None:
    with serve(root) as other:
        page = Reply(200, b'<a href="a.mid">a</a><a href="b.mid">b</a>', "text/html")
        away = Reply(302, b"", "text/plain", {"Location": f"{other}labels.csv"})
        with Site({"/x/": page, "/x/a.mid": Reply(200, b"MThd", "audio/midi"), "/x/b.mid": away}).serving() as site:
            location = Location(f"{site.url}/x/")
            assert location.read("a.mid") == b"MThd"
            for ask in (location.list, lambda: location.read("b.mid")):
                with pytest.raises(Problem, match="leads to a private address"):
                    ask()
            allowed = Location(f"{site.url}/x/", storage={"allowed_hosts": [other.split("/")[2]]})
            assert allowed.read("b.mid") == FILES["labels.csv"]
            assert [entry.name for entry in allowed.list()] == ["a.mid", "b.mid"]


def test_a_download_that_is_cut_goes_on_where_it_stopped() -> None:
    body = bytes(range(256)) * 4_000
    with Site({"/x/a.mid": Reply(200, body, "audio/midi")}).serving() as site:
        site.faulty, site.every, site.met = True, 1, ["", ""]  # the third fault is a cut
        assert Location(f"{site.url}/x/").read("a.mid") == body
        assert site.met[2:] == ["cut"]
        assert len(site.requests) == 2


def test_a_server_without_head_tells_no_marks_and_is_read_all_the_same(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(SimpleHTTPRequestHandler, "do_HEAD")
    with serve(root) as url:
        location = Location(url)
        entries = location.list()
        assert {entry.name: (entry.size, entry.etag) for entry in entries} == dict.fromkeys(FILES, (None, None))
        assert dict(location.read_each(entry.name for entry in entries)) == FILES


def test_a_listing_without_folders_looks_into_none(root: Path) -> None:
    with serve(root) as url:
        for location in (Location(url), Location(root)):
            assert [entry.name for entry in location.list("*.csv")] == ["labels.csv"]
    pages = {"/x/": Reply(200, b'<a href="a.csv">a</a><a href="deep/">deep</a>', "text/html")}
    with Site(pages | {"/x/a.csv": Reply(200, b"a", "text/csv")}).serving() as site:
        assert len(Location(f"{site.url}/x/").list("*.csv")) == 1
        assert [path for path, _ in site.requests] == ["/x/"]


def test_one_file_is_asked_about_without_a_listing(location: Location) -> None:
    listed = {entry.name: entry for entry in location.list()}
    assert [location.entry(name) for name in sorted(FILES)] == [listed[name] for name in sorted(FILES)]
    assert location.has("clips/a b.wav") and not location.has("clips/none.wav")
    with pytest.raises(Problem, match=r"there is no clips/none\.wav"):
        location.entry("clips/none.wav")


def test_copies_do_not_stay(root: Path) -> None:
    location = Location(root)
    with location.copy("labels.csv") as path:
        assert path.read_bytes() == FILES["labels.csv"]
    assert not path.parent.exists()
    copies = []
    for changed in location.changed("**/*", {}, lambda name: True):
        assert all(not before.exists() for before in copies)
        copies.append(changed.path)
    assert len(copies) == len(FILES) and not copies[-1].exists()


@pytest.mark.parametrize(
    ("url", "storage", "reason"),
    [
        ("/tmp", {"username": "ann"}, "a folder has no option username"),
        ("http://127.0.0.1:9/", {"endpoint": "x"}, "HTTP has no option endpoint"),
        ("sftp://127.0.0.1:9/", {"tls": True}, "SFTP has no option tls"),
        ("hdfs://127.0.0.1:9/", {"password": "x"}, "HDFS has no option password"),
    ],
)
def test_an_option_that_a_protocol_does_not_have(url: str, storage: dict[str, Any], reason: str) -> None:
    with pytest.raises(Problem, match=reason):
        Location(url, storage=storage)
