"""The web client against a server that does its worst: polite, bounded in time and bytes, and led nowhere.

Every behaviour is that of a real server on loopback; pauses between tries are noted instead of slept.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from base64 import b64encode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from upstreams.hostile_server import (
    CUT,
    Deed,
    File,
    HostileServer,
    answer,
    bomb,
    endless,
    head,
    pieces,
    serve,
    trickle,
)

from ingestion.web import FAILURES, LONGEST_WAIT_S, MB, TRIES, Answer, Web
from storage.errors import Problem, Unusable
from storage.settings import Settings

BODY = bytes(range(256)) * 400  # 100 kB


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with serve() as running:
        yield running


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("LYREBIRD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LYREBIRD_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


class Pauses(list[float]):
    """A `sleep` that notes for how long it was asked to."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


@pytest.fixture
def web(server: HostileServer, pauses: Pauses) -> Web:
    return Web(Settings(), allowed=[server.host], sleep=pauses, patience=0.2)


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(Problem) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert caught.value.remedy
    return str(caught.value)


def body(answer: Answer | None) -> bytes:
    assert answer is not None
    return answer.body


def within(seconds: float, call: Callable[[], object]) -> str:
    """The Problem of a call that comes to its end in time."""
    began = time.monotonic()
    said = refused(call)
    assert time.monotonic() - began < seconds
    return said


# --- polite ---


def test_the_server_names_the_pause_in_seconds_or_as_a_date(web: Web, server: HostileServer, pauses: Pauses) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    busy = [answer(status=429, Retry_After=7), answer(status=503, Retry_After=later)]
    url = server.on("/list", *busy, answer(b"good"))
    assert body(web.get(url)) == b"good"
    assert pauses[0] == 7
    assert 95 < pauses[1] <= 100


@pytest.mark.parametrize("asked", ["0", "-5", "soon", "²", "", "Wed, 21 Oct 2015 07:28:00 GMT", "9" * 5000])
def test_without_a_sensible_pause_it_is_ours_and_grows(
    web: Web, server: HostileServer, pauses: Pauses, asked: str
) -> None:
    url = server.on("/list", *[answer(status=503, Retry_After=asked)] * 3, answer(b"good"))
    assert body(web.get(url)) == b"good"
    assert len(pauses) == 3
    assert all(low <= pause <= low + 1 for low, pause in zip((0.5, 1, 2), pauses, strict=True))


def test_a_pause_longer_than_we_wait_is_said_and_not_slept(web: Web, server: HostileServer, pauses: Pauses) -> None:
    url = server.on("/list", answer(status=429, Retry_After=int(LONGEST_WAIT_S) + 1))
    assert "answered 429 and asks to wait 301 seconds. Run it again later" in refused(lambda: web.get(url))
    assert pauses == []
    assert len(server.asked) == 1


def test_tries_come_to_an_end(web: Web, server: HostileServer, pauses: Pauses) -> None:
    url = server.on("/list", answer(status=503))
    assert f"{url} answered 503. Run it again later" in refused(lambda: web.get(url))
    assert len(server.asked) == TRIES
    assert len(pauses) == TRIES - 1


def test_what_is_tried_again_is_told(server: HostileServer, pauses: Pauses) -> None:
    said: list[str] = []
    web = Web(Settings(), allowed=[server.host], sleep=pauses, say=said.append)
    web.get(server.on("/list", answer(status=429, Retry_After=3), pieces(CUT), answer(b"good")))
    assert said[0] == f"{server.host} answered 429: asking again in 3 s"
    assert len(said) == 2
    assert server.host in said[1]


@pytest.mark.parametrize("status", [204, 206, 300, 304, 400, 403, 404, 410, 416, 451, 501, 799])
def test_a_status_that_was_not_asked_for_is_a_problem_at_once(
    web: Web, server: HostileServer, pauses: Pauses, status: int
) -> None:
    url = server.on("/list", answer(b"" if status in (204, 304) else b"x", status=status))
    assert f"answered {status}" in refused(lambda: web.get(url))
    assert len(server.asked) == 1


def test_a_rate_holds_for_all_threads(server: HostileServer) -> None:
    web = Web(Settings(), rate="4/second", allowed=[server.host])
    url = server.on("/list", answer(b"x"))
    assert len(list(web.each(range(9), lambda item: web.get(url)))) == 9
    times = sorted(request.at for request in server.asked)
    assert all(later - earlier > 0.9 for earlier, later in zip(times, times[4:], strict=False))
    assert times[-1] - times[0] < 4


def test_a_rate_that_is_none() -> None:
    assert "'often' is no rate. Write one such as 1/second" in refused(lambda: Web(Settings(), rate="often"))


def test_a_host_that_keeps_failing_is_left_alone_and_asked_again_later(server: HostileServer, pauses: Pauses) -> None:
    web = Web(Settings(), allowed=[server.host], sleep=pauses, rest=0.5)
    url = server.on("/list", answer(status=500))
    for _ in range(FAILURES):
        assert "answered 500" in refused(lambda: web.get(url))
    asked = len(server.asked)
    assert asked == FAILURES * TRIES
    assert f"{server.host} failed 5 times in a row and is left alone" in refused(lambda: web.get(url))
    assert len(server.asked) == asked
    time.sleep(0.5)
    assert "answered 500" in refused(lambda: web.get(url))  # one more failure, and it is left alone again
    assert "left alone" in refused(lambda: web.get(url))
    time.sleep(0.5)
    server.on("/list", answer(b"good"))
    assert body(web.get(url)) == b"good"
    assert body(web.get(url)) == b"good"


def test_a_host_that_answers_is_not_left_alone_whatever_it_answers(web: Web, server: HostileServer) -> None:
    url = server.on("/list", answer(status=404))
    for _ in range(2 * FAILURES):
        assert "answered 404" in refused(lambda: web.get(url))
    with pytest.raises(ZeroDivisionError):
        for _ in range(2 * FAILURES):
            web._tried(url, lambda: 1 / 0)  # our own mistake is not the host's
    assert body(web.get(server.on("/list", answer(b"good")))) == b"good"


def test_what_has_not_changed_since_the_mark_is_nothing(web: Web, server: HostileServer) -> None:
    date = "Sat, 01 Jun 2024 10:00:00 GMT"
    for tag, sent in (('"strong"', "if-none-match"), ('W/"weak"', "if-none-match"), (date, "if-modified-since")):
        headers = {"Last_Modified": tag} if tag == date else {"ETag": tag, "Last_Modified": date}
        url = server.on("/list", answer(b"first", **headers), answer(status=304), answer(b"second", ETag='"new"'))
        first = web.get(url)
        assert first is not None
        assert first.mark == tag
        assert web.get(url, mark=first.mark) is None
        assert server.asked[-1].headers[sent] == tag
        second = web.get(url, mark=first.mark)
        assert second is not None
        assert (second.body, second.mark) == (b"second", '"new"')


@pytest.mark.parametrize("etag", ["unquoted", '"two"lines"', '"nul\x00"', '"' + "x" * 1000 + '"', "W/none"])
def test_an_etag_that_could_not_be_sent_back_is_no_mark(web: Web, server: HostileServer, etag: str) -> None:
    found = web.get(server.on("/list", answer(b"x", ETag=etag, Last_Modified="no date at all\x01")))
    assert found is not None
    assert found.mark == ""


# --- bounded ---

BROKEN: dict[str, Deed] = {
    "reset in the body": pieces(head(Content_Length=9000) + b"x" * 5000, 0.05, CUT),
    "reset in the head": pieces(b"HTTP/1.1 200 OK\r\nContent-Le", 0.05, CUT),
    "reset at once": pieces(CUT),
    "closed at once": pieces(b""),
    "closed in the head": pieces(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Le"),
    "closed after the head": pieces(head()),
    "no HTTP": pieces(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "shorter than its Content-Length": pieces(head(Content_Length=9000) + b"x" * 5000),
    "chunks without an end": pieces(head(Transfer_Encoding="chunked") + b"5\r\nhello\r\n"),
    "a chunk cut off": pieces(head(Transfer_Encoding="chunked") + b"ff\r\nhello"),
    "chunks of no size": pieces(head(Transfer_Encoding="chunked") + b"zz\r\nhello\r\n"),
    "a line that never ends": pieces(head(Transfer_Encoding="chunked") + b"1" * 200_000),
    "gzip cut off": answer(gzip.compress(BODY)[:-3000], Content_Encoding="gzip"),
    "gzip without its checksum": answer(gzip.compress(BODY)[:-8], Content_Encoding="gzip"),
    "gzip that is none": answer(BODY, Content_Encoding="gzip"),
    "gzip with a wrong checksum": answer(gzip.compress(BODY)[:-6] + b"wrong!", Content_Encoding="gzip"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_answer_is_asked_for_again_and_never_taken(web: Web, server: HostileServer, fault: str) -> None:
    url = server.on("/list", BROKEN[fault], BROKEN[fault], answer(b"good"))
    assert body(web.get(url)) == b"good"
    assert len(server.asked) == 3
    server.on("/list", BROKEN[fault])
    assert f"cannot read {url}: " in refused(lambda: web.get(url))


def test_nothing_listens_there(pauses: Pauses) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
        web = Web(Settings(), allowed=[host], sleep=pauses)
        assert "Connection refused" in refused(lambda: web.get(f"http://{host}/"))


def test_more_than_its_content_length_stays_outside(web: Web, server: HostileServer) -> None:
    """Bytes beyond the announced length are no part of this answer, nor of the next one on the connection."""
    greedy = (
        head(Content_Length=4).replace(b"close", b"keep-alive")
        + b"goodHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    )
    url = server.on("/list", pieces(greedy), answer(b"next"))
    assert body(web.get(url)) == b"good"
    assert body(web.get(url)) == b"next"


@pytest.mark.parametrize(
    "deed",
    [
        trickle(head(Content_Length=9000), b"x", 0.05),
        trickle(head(), b"x", 0.05),
        trickle(head(Transfer_Encoding="chunked"), b"1", 0.05),  # the size of a chunk, digit by digit
        trickle(head(Transfer_Encoding="chunked") + b"0\r\n", b"X-Trailer: x\r\n", 0.05),
        trickle(head(Content_Encoding="gzip") + gzip.compress(b""), gzip.compress(b""), 0.05),
        endless(head(Content_Encoding="gzip"), gzip.compress(b"") * 100),
    ],
)  # fmt: skip
def test_a_body_that_trickles_ends_when_its_time_is_over(web: Web, server: HostileServer, deed: Deed) -> None:
    url = server.on("/slow", deed)
    assert "takes longer than 1 seconds. Run it again later" in within(2, lambda: web.get(url, seconds=0.6))
    assert len(server.asked) == 1


def test_a_body_that_stops_is_given_up(web: Web, server: HostileServer) -> None:
    url = server.on("/slow", pieces(head(Content_Length=9000) + b"x", 60))
    assert "timed out" in within(TRIES * 0.2 + 2, lambda: web.get(url))


@pytest.mark.parametrize(
    "deed",
    [
        pieces(60),
        trickle(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x", 0.05),
        trickle(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.05),
        endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    ],
)
def test_a_head_that_trickles_is_given_up(web: Web, server: HostileServer, deed: Deed) -> None:
    url = server.on("/slow", deed)
    assert f"cannot read {url}: " in within(TRIES * 0.2 + 2, lambda: web.get(url))


@pytest.mark.parametrize("first", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nX: x\r\n"])
def test_a_head_without_end_is_given_up(web: Web, server: HostileServer, first: bytes) -> None:
    url = server.on("/long", endless(first, b"X: x\r\n" * 1000 if first.endswith(b"\n") else b"x" * 10_000))
    assert f"cannot read {url}: got more than" in within(3, lambda: web.get(url))


def peak(call: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


CHUNKED = b"10000\r\n" + b"x" * 65_536 + b"\r\n"


@pytest.mark.parametrize(
    "deed",
    [
        endless(head()),
        endless(head(Transfer_Encoding="chunked"), CHUNKED),
        endless(head(Content_Length=10**12)),
        answer(bomb(200), Content_Encoding="gzip"),
        endless(head(Content_Encoding="gzip"), bomb(1)),
    ],
    ids=["no end", "chunks", "a terabyte", "bomb", "bombs"],
)
def test_a_body_without_end_stops_at_the_limit(web: Web, server: HostileServer, deed: Deed) -> None:
    url = server.on("/big", deed)
    used = peak(lambda: within(5, lambda: web.get(url, most=4 * MB)))
    assert used < 10 * MB
    assert "gives more bytes than are allowed" in refused(lambda: web.get(url, most=4 * MB))
    assert len(server.asked) == 2


def test_what_fits_the_limit_exactly_is_good(web: Web, server: HostileServer) -> None:
    url = server.on("/list", answer(BODY), answer(gzip.compress(BODY), Content_Encoding="gzip"))
    assert body(web.get(url, most=len(BODY))) == BODY
    assert body(web.get(url, most=len(BODY))) == BODY
    assert "more bytes" in refused(lambda: web.get(url, most=len(BODY) - 1))


def test_gzip_of_several_members_is_one_body(web: Web, server: HostileServer) -> None:
    url = server.on("/list", answer(gzip.compress(b"one ") + gzip.compress(b"two"), Content_Encoding="x-gzip"))
    assert body(web.get(url)) == b"one two"


@pytest.mark.parametrize("coding", ["br", "gzip, gzip", "zstd", "deflate", "x" * 5000])
def test_an_encoding_that_nobody_asked_for(web: Web, server: HostileServer, coding: str) -> None:
    url = server.on("/list", answer(b"x", Content_Encoding=coding))
    said = refused(lambda: web.get(url))
    assert "gave the encoding" in said
    assert len(said) < 300


def test_another_content_type_than_wanted(web: Web, server: HostileServer) -> None:
    page = answer(b"<h1>Please log in</h1>", Content_Type="text/html; charset=utf-8")
    url = server.on("/list", page, page, answer(b"[]", Content_Type="Application/JSON"))
    assert "gave text/html, not application/json" in refused(lambda: web.get(url, types=["application/json"]))
    path = Path("nowhere")
    assert "gave text/html, not audio/mpeg" in refused(lambda: web.download(url, path, types=["audio/mpeg"]))
    assert body(web.get(url, types=["application/json"])) == b"[]"
    url = server.on("/none", answer(b"x"))
    assert "gave no content type" in refused(lambda: web.get(url, types=["application/json"]))


@pytest.mark.parametrize(
    "text", [b"<html>", b"", b"[" * 100_000, b'"\xff"', b"1" * 5000, b"[" * 10_000 + b"]" * 10_000]
)
def test_json_that_is_none_is_one_sentence(web: Web, server: HostileServer, text: bytes) -> None:
    found = web.get(server.on("/list", answer(text)))
    assert found is not None
    assert f"{server.url}/list gave no JSON" in refused(found.json)


# --- led nowhere ---


def test_redirects_are_followed_to_an_end(web: Web, server: HostileServer) -> None:
    server.on("/a", answer(status=301, Location="/b"))
    server.on("/b", answer(status=307, Location=server.url + "/c?x=%C3%A9"))
    server.on("/c", answer(b"there"))
    found = web.get(server.url + "/a", params={"q": 1})
    assert found is not None
    assert found.body == b"there"
    assert found.url == server.url + "/c?x=%C3%A9"
    assert [request.query for request in server.asked] == ["q=1", "", "x=%C3%A9"]


def test_redirects_without_end(web: Web, server: HostileServer) -> None:
    url = server.on("/a", answer(status=302, Location="/a"))
    assert f"{url} leads on and on" in refused(lambda: web.get(url))
    assert len(server.asked) == 6


@pytest.mark.parametrize(
    "size", [endless(head(302, Location="/b")), answer(bomb(100), 302, Location="/b", Content_Encoding="gzip")]
)
def test_the_body_of_a_redirect_is_not_read(web: Web, server: HostileServer, size: Deed) -> None:
    server.on("/b", answer(b"there"))
    url = server.on("/a", size)
    assert peak(lambda: web.get(url)) < MB
    assert server.asked[-1].path == "/b"


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd", "ftp://example.org/x", "gopher://127.0.0.1:6379/_FLUSHALL", "data:text/plain,x",
        "http://[::1", "http://", "http:///x", "http://a b/", "//[", "http://example.org:99999/", "http://\xff\xfe/",
        "http://xn--\u00e9/", "http://.../", "http://" + "a" * 300 + ".org/",
    ],
)  # fmt: skip
def test_a_redirect_to_what_is_no_web_address(web: Web, server: HostileServer, location: str) -> None:
    url = server.on("/a", answer(status=302, Location=location))
    assert url.removesuffix("/a") in within(5, lambda: web.get(url)) or "No connection adapters" in refused(
        lambda: web.get(url)
    )


PRIVATE = [
    "127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0", "[::1]", "[::]",
    "[::ffff:127.0.0.1]", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "192.0.0.8",
    "224.0.0.1", "255.255.255.255", "[fd00::1]", "[fe80::1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[ff02::1]",
    "x:y@127.0.0.1", "LOCALHOST",
]  # fmt: skip


@pytest.mark.parametrize("host", PRIVATE)
def test_private_addresses_are_refused_in_every_spelling(server: HostileServer, pauses: Pauses, host: str) -> None:
    web = Web(Settings(), sleep=pauses, patience=0.2)
    port = server.host.rpartition(":")[2]
    assert "`allowed_hosts`" in refused(lambda: web.get(f"http://{host}:{port}/"))
    assert "`allowed_hosts`" in refused(lambda: web.get(f"https://{host}:{port}/"))
    assert server.asked == []
    assert pauses == []


@pytest.mark.parametrize("host", PRIVATE)
def test_a_redirect_to_a_private_address_is_refused(web: Web, server: HostileServer, host: str) -> None:
    with serve() as inside:
        port = inside.host.rpartition(":")[2]
        url = server.on("/a", answer(status=302, Location=f"http://{host}:{port}/admin"))
        assert "leads to a private address" in refused(lambda: web.get(url))
        assert "leads to a private address" in refused(lambda: web.download(url, Path("nowhere")))
        assert inside.asked == []


def test_a_name_that_leads_to_a_private_address(
    server: HostileServer, pauses: Pauses, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo
    asked: list[str] = []

    def resolve(host: str, *rest: Any, **more: Any) -> Any:
        asked.append(host)
        return real("127.0.0.1" if host.endswith(".example") else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    port = server.host.rpartition(":")[2]
    server.on("/", answer(b"inside"))
    url = f"http://innocent.example:{port}/"
    assert "leads to a private address, 127.0.0.1" in refused(lambda: Web(Settings(), sleep=pauses).get(url))
    assert asked == ["innocent.example"]
    assert server.asked == []
    for allowed in ("innocent.example", "Innocent.Example", f"innocent.example:{port}"):
        assert body(Web(Settings(), allowed=[allowed], sleep=pauses).get(url)) == b"inside"
    others = Web(Settings(), allowed=["example", "innocent.example:1", "nocent.example", "127.0.0.1"], sleep=pauses)
    assert "`allowed_hosts`" in refused(lambda: others.get(url))


def test_a_source_s_headers_stay_with_its_host(server: HostileServer, pauses: Pauses) -> None:
    with serve() as other:
        web = Web(Settings(), allowed=[server.host, other.host], sleep=pauses)
        other.on("/b", answer(b"there"))
        url = server.on("/a", answer(status=302, Location="/c"))
        server.on("/c", answer(status=302, Location=other.url + "/b"))
        assert body(web.get(url, headers={"X-Api-Key": "s3cret", "Authorization": "s3cret"})) == b"there"
        assert [request.headers.get("x-api-key") for request in server.asked] == ["s3cret"] * 2
        assert not any("s3cret" in value for value in other.asked[0].headers.values())
        assert other.asked[0].headers["host"] == other.host


def test_keys_are_shown_nowhere(
    server: HostileServer, pauses: Pauses, caplog: pytest.LogCaptureFixture, state: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    caplog.set_level(logging.DEBUG)
    web = Web(Settings(), allowed=[server.host], sleep=pauses, say=said.append, patience=0.3)
    secret = {"key": "s3cret", "api_token": "s3cret"}
    deeds: list[Deed] = [
        answer(status=503), answer(status=404), answer(b"<html>", Content_Type="text/html"), BROKEN["reset at once"],
        answer(status=302, Location="http://10.0.0.1/?key=s3cret"), answer(status=302, Location="file:///?key=s3cret"),
        endless(head()), pieces(60), answer(status=302, Location="/loop?key=s3cret"), BROKEN["no HTTP"],
    ]  # fmt: skip
    server.on("/loop", answer(status=302, Location="/loop?key=s3cret"))
    for deed in deeds:
        url = server.on("/list", deed)
        with pytest.raises(Problem) as caught:
            web.get(url, params=secret, types=["application/json"], most=MB)
        said.append(str(caught.value))
        assert caught.value.__cause__ is None  # nor in the trace of what was behind it
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
    found = web.get(server.on("/list", answer(b"<html>")), params=secret)
    assert found is not None
    said += [repr(found), refused(found.json)]
    name, password = server.url.replace("//", "//bird:s3cret@"), tmp_path / "file"
    web.download(name + "/list", password)
    said.append(refused(lambda: web.get(name + "/nothing")))
    web = Web(Settings(), sleep=pauses, say=said.append)
    said.append(refused(lambda: web.get(name + "/list")))
    said += [record.getMessage() for record in caplog.records]
    said += [str(path) + path.read_text() for path in state.rglob("*") if path.is_file()]
    assert any("key=…" in text for text in said)
    assert any("GET" in record.getMessage() for record in caplog.records if record.name.startswith("urllib3"))
    assert not [text for text in said if "s3cret" in text]


# --- downloads ---


def test_a_download_goes_on_where_it_was_cut(web: Web, server: HostileServer, tmp_path: Path) -> None:
    url = server.on("/file", File(BODY, cut_after=40_000), File(BODY, cut_after=40_000), File(BODY))
    found = web.download(url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY
    assert found is not None
    assert (found.mark, found.size, found.content_type) == ('"v1"', len(BODY), "audio/mpeg")
    assert [request.headers.get("range") for request in server.asked] == [None, "bytes=40000-", "bytes=80000-"]
    assert [request.headers.get("if-range") for request in server.asked] == [None, '"v1"', '"v1"']
    assert web.download(url, tmp_path / "file", mark=found.mark) is None  # it has not changed


@pytest.mark.parametrize(
    "later",
    [
        File(BODY[::-1], etag='"v2"'),  # If-Range is not met: the whole comes
        File(BODY[::-1], etag='"v2"', if_range=False),  # a part of another file comes
        File(BODY[::-1], etag=None, ranges=False),  # the range is ignored
        File(BODY[::-1][:30_000], etag='"v2"', if_range=False),  # nothing lies there: 416
        File(BODY[::-1], short_by=1000, etag='"v1"', ranges=False),
    ],
)
def test_a_file_that_changed_meanwhile_is_fetched_anew(
    web: Web, server: HostileServer, tmp_path: Path, later: File
) -> None:
    url = server.on("/file", File(BODY, cut_after=40_000), later)
    found = web.download(url, tmp_path / "file")
    assert found is not None
    assert (tmp_path / "file").read_bytes() == later.body
    assert found.mark == (later.etag or "")


@pytest.mark.parametrize(
    "span", ["bytes 0-9/100000", "bytes 39999-40001/100000", "octets", None, "bytes 4-", "bytes */*"]
)
def test_another_range_than_asked_for_is_not_joined(
    web: Web, server: HostileServer, tmp_path: Path, span: str | None
) -> None:
    wrong = answer(b"wrong", 206, Content_Range=span, ETag='"v1"')
    url = server.on("/file", File(BODY, cut_after=40_000), wrong, File(BODY))
    web.download(url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY


def test_a_range_that_ends_too_soon_is_gone_on_from(web: Web, server: HostileServer, tmp_path: Path) -> None:
    url = server.on("/file", File(BODY, cut_after=40_000), File(BODY, short_by=1000), File(BODY))
    web.download(url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY
    assert server.asked[-1].headers["range"] == f"bytes={len(BODY) - 1000}-"


@pytest.mark.parametrize("etag", ['W/"weak"', None])
def test_without_a_strong_mark_a_download_begins_anew(
    web: Web, server: HostileServer, tmp_path: Path, etag: str | None
) -> None:
    url = server.on("/file", File(BODY, etag=etag, cut_after=40_000), File(BODY, etag=etag))
    web.download(url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY
    assert "range" not in server.asked[-1].headers


def test_a_download_is_kept_as_it_lies_on_the_server(web: Web, server: HostileServer, tmp_path: Path) -> None:
    """Archives are often given with the encoding gzip, whatever was asked for."""
    packed = gzip.compress(BODY)
    url = server.on("/file.tar.gz", answer(packed, Content_Encoding="x-gzip"))
    web.download(url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == packed
    assert server.asked[0].headers["accept-encoding"] == "identity"


def test_a_download_has_limits(web: Web, server: HostileServer, tmp_path: Path, state: Path) -> None:
    url = server.on("/file", endless(head()))
    assert "more bytes" in within(3, lambda: web.download(url, tmp_path / "file", most=MB))
    assert sum(path.stat().st_size for path in state.rglob("*.part")) <= MB
    url = server.on("/long", File(BODY, cut_after=90_000))
    assert "more bytes" in refused(lambda: web.download(url, tmp_path / "file", most=95_000))
    url = server.on("/slow", trickle(head(Content_Length=90), b"x", 0.1))
    assert "takes longer" in within(3, lambda: web.download(url, tmp_path / "file", seconds=0.5))
    assert not (tmp_path / "file").exists()


FETCH = """
import sys
from pathlib import Path
from ingestion.web import Web
from storage.settings import Settings
host, url, path = sys.argv[1:]
Web(Settings(), allowed=[host]).download(url, Path(path))
"""


def test_a_killed_download_is_gone_on_from_in_another_process(
    web: Web, server: HostileServer, tmp_path: Path, state: Path
) -> None:
    url = server.on("/file", File(BODY * 10, pause=0.02), File(BODY * 10))
    child = subprocess.Popen([sys.executable, "-c", FETCH, server.host, url, str(tmp_path / "file")])
    deadline = time.monotonic() + 60
    while not sum(path.stat().st_size for path in state.rglob("*.part")):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "file").exists()
    web.download(url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY * 10
    start = int(server.asked[-1].headers["range"].removeprefix("bytes=").rstrip("-"))
    assert 0 < start < len(BODY) * 10
    assert list(state.rglob("*.part")) == []
    assert list(state.rglob("*.mark")) == []


def test_the_same_file_asked_for_at_once_is_never_mixed(web: Web, server: HostileServer, tmp_path: Path) -> None:
    url = server.on("/file", File(BODY, pause=0.005))
    list(web.each(range(6), lambda n: web.download(url, tmp_path / str(n))))
    assert all((tmp_path / str(n)).read_bytes() == BODY for n in range(6))


def test_parts_that_nobody_came_back_for_are_removed(
    server: HostileServer, pauses: Pauses, tmp_path: Path, state: Path
) -> None:
    url = server.on("/file", File(BODY, cut_after=10_000))
    web = Web(Settings(), allowed=[server.host], sleep=pauses)
    refused(lambda: web.download(url, tmp_path / "file"))
    folder = state / "cache" / "downloads"
    assert len(list(folder.iterdir())) == 2
    for path in folder.iterdir():
        os.utime(path, (0, 0))
    move = state.rename(tmp_path / "elsewhere")
    os.environ["LYREBIRD_HOME"] = str(move)
    web.download(server.on("/file", File(b"other")), tmp_path / "file")
    assert list(move.rglob("*.part")) == []
    assert (tmp_path / "file").read_bytes() == b"other"


# --- side by side ---


def test_each_comes_in_order_side_by_side_and_in_bounded_memory(web: Web) -> None:
    begun: list[int] = []
    together = threading.Barrier(4, timeout=10)
    taken = 0

    def get(item: int) -> int:
        begun.append(item)
        if item < 4:
            together.wait()  # all four are at work at once
        time.sleep(0.002 * (item % 5))
        return item * item

    def items() -> Iterator[int]:
        for item in range(50):
            assert item - taken <= 8
            yield item

    for result in web.each(items(), get, at_once=4):
        assert result == taken * taken
        taken += 1
    assert taken == 50
    assert len(begun) == 50


def test_an_error_of_one_comes_out_in_its_place(web: Web) -> None:
    def get(item: int) -> int:
        if item == 5:
            raise Problem("the sixth is broken", "Mend it")
        return item

    done = []
    with pytest.raises(Problem, match="the sixth is broken"):
        for result in web.each(range(1000), get, at_once=2):
            done.append(result)
    assert done == [0, 1, 2, 3, 4]

    def items() -> Iterator[int]:
        yield 1
        raise OSError("the list broke off")

    with pytest.raises(OSError, match="the list broke off"):
        list(web.each(items(), get))


def test_each_stops_when_nobody_listens_any_more(web: Web) -> None:
    begun: list[int] = []

    def get(item: int) -> int:
        begun.append(item)
        return item

    results = web.each(range(10_000), get, at_once=2)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert len(begun) <= 6


def test_an_answer_over_tls_has_the_same_limits(pauses: Pauses, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(tls=True) as server:
        web = Web(Settings(), allowed=[server.host], sleep=pauses, patience=0.2)
        url = server.on("/list", answer(json.dumps([1]).encode()))
        assert "certificate verify failed" in refused(lambda: web.get(url))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", server.certificate)
        found = web.get(url)
        assert found is not None
        assert found.json() == [1]
        slow = server.on("/slow", trickle(head(), b"x", 0.05))
        assert "takes longer than" in within(2, lambda: web.get(slow, seconds=0.6))
        slow = server.on("/slow", trickle(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x", 0.05))
        assert "cannot read" in within(TRIES * 0.2 + 2, lambda: web.get(slow))


AT_FAULT: dict[str, tuple[Deed | str, type[Problem]]] = {
    "gone": (answer(status=404), Unusable),
    "forbidden": (answer(status=403), Unusable),
    "another type": (answer(b"<html>", Content_Type="text/html"), Unusable),
    "too large": (answer(BODY), Unusable),
    "endless": (endless(head()), Unusable),
    "too slow": (trickle(head(), b"x", 0.05), Unusable),
    "damaged": (answer(b"no gzip", Content_Encoding="gzip"), Unusable),
    "to our own network": (answer(status=302, Location="http://169.254.169.254/x"), Unusable),
    "to our files": (answer(status=302, Location="file:///etc/passwd"), Unusable),
    "our own network": ("http://10.0.0.1/x", Unusable),
    "our files": ("file:///etc/passwd", Unusable),
    "no address": ("http://[/x", Unusable),
    "no host": (f"http://{'a' * 70}.example/", Unusable),
    "busy": (answer(status=503), Problem),
    "broken": (answer(status=500), Problem),
    "unknown to it": (answer(status=501), Problem),
    "cut": (pieces(head(Content_Length=10), b"x", 0.02, CUT), Problem),
    "closed": ("http://127.0.0.1:9/x", Problem),
}


@pytest.mark.parametrize("fault", AT_FAULT)
def test_a_problem_says_by_its_kind_whose_fault_it_is(server: HostileServer, pauses: Pauses, fault: str) -> None:
    deed, kind = AT_FAULT[fault]
    url = deed if isinstance(deed, str) else server.on("/x", deed)
    web = Web(Settings(), allowed=[server.host, "127.0.0.1:9"], sleep=pauses, patience=0.2)
    types = ["audio/mpeg"] if fault == "another type" else []
    with pytest.raises(Problem) as caught:
        web.get(url, most=1_000, seconds=0.3, types=types)
    assert type(caught.value) is kind


def test_passwords_of_a_netrc_go_nowhere_and_those_of_the_address_to_its_host(
    server: HostileServer, pauses: Pauses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login ann password s3cret\ndefault login ann password s3cret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with serve() as other:
        web = Web(Settings(), allowed=[server.host, other.host], sleep=pauses)
        other.on("/b", answer(b"there"))
        url = server.on("/a", answer(status=302, Location=other.url + "/b"))
        assert body(web.get(url)) == b"there"
        assert body(web.get(url.replace("//", "//bob:open@"))) == b"there"
        asked = [request.headers.get("authorization") for request in (*server.asked, *other.asked)]
    assert asked == [None, "Basic " + b64encode(b"bob:open").decode(), None, None]


def test_a_proxy_of_the_environment_is_gone_through(
    server: HostileServer, pauses: Pauses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    server.on("http://lyrebird.example/x", answer(b"by the proxy"))
    web = Web(Settings(), allowed=["lyrebird.example", server.host], sleep=pauses)
    assert body(web.get("http://lyrebird.example/x")) == b"by the proxy"
