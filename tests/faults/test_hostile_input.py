"""Hostile input: a clear error or a line in quarantine, in bounded time and memory, and the rest of the batch loaded.

What servers do to us is in tests/unit/test_web_client.py and archives in tests/unit/test_archives.py; files that are
merely damaged are in test_broken_files.py, and records that no store takes in test_bad_input.py. CSV is only read, no
command writes any: tests/unit/test_csv_exports.py keeps it so, and says what an export would have to do.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import tomli_w
from support import Stack
from upstreams.hostile_server import Deed, HostileServer, answer, endless, head, serve, trickle
from upstreams.landed_bytes import META, LandedBytes

from ingestion import archives, catalogue, pipeline
from ingestion.contract import Bad, BadPage, Context, Landed, Page, Record, Resource, Source, describe
from ingestion.derive import clips, notes
from ingestion.sources import audio_folder, music21_corpus
from storage import warehouse
from storage.errors import Problem
from storage.media import audio, frames, midi, scores
from storage.objects import Objects
from storage.settings import options_file

DEEP = b"[" * 10_000 + b"]" * 10_000
NESTED = [  # HTML, to be taken for an article and for the page of a piece
    begin + open_ * 10_000 + b"x" + close * 10_000
    for begin, open_, close in (
        (b"<html><body>", b"<div>", b"</div>"),
        (b'<div class="mw-parser-output"><h1 id=firstHeading>x</h1>', b"<p><b>", b"</b></p>"),
        (b'<div class="mw-parser-output">', b'<table class="infobox biota"><tr><td>', b"</td></tr></table>"),
        (b"<h2>x</h2>", b'<table class="result-table"><tr><td><b>Style:</b>', b"</td></tr></table>"),
        (b"<h2>x</h2>", b"<td>", b""),
    )
]


class Upstream:
    """A source that reads /0, /1, … of a server until one is not there, and takes each as a list of records."""

    def __init__(self, name: str, server: HostileServer, **options: Any) -> None:
        self.url, self.options = server.url, options
        schema = pa.schema(
            [
                describe("id", pa.string(), "", required=True),
                describe("value", pa.int64(), ""),
                describe("more", pa.struct([]), ""),
            ]
        )
        things = Resource("things", schema, ("id",), self.fetch, self.parse)
        config = {"allowed_hosts": ([server.host], ""), "rate": ("", "")}
        self.source = Source(name, name, "text", "", "none", "@daily", (things,), config)

    def fetch(self, context: Context) -> Iterator[Page]:
        web = context.web()
        for number in range(context.cursor.get("next", 0), 100):
            try:
                found = web.get(f"{self.url}/{number}?key=s3cret", **self.options)
            except Problem as problem:
                if "answered 404" in str(problem):
                    return
                raise
            assert found is not None
            yield Page(found.url, found.body, {"next": number + 1}, found.content_type)

    @staticmethod
    def parse(page: Landed) -> Iterator[Record | Bad]:
        try:
            yield from json.loads(page.read())
        except (ValueError, RecursionError) as error:
            raise BadPage(f"no JSON: {error}") from error


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with serve() as running:
        yield running


def query(stack: Stack, text: str) -> list[tuple[Any, ...]]:
    with closing(warehouse.connect(stack.settings("loader"))) as db, db, db.cursor() as sql:
        sql.execute(text)
        return sql.fetchall()


def ingest(stack: Stack, source: Source) -> None:
    pipeline.ingest(source, stack.settings("loader"), say=lambda text: None)


def configure(**options: dict[str, Any]) -> None:
    """Options of sources, as a person sets them."""
    options_file().write_text(tomli_w.dumps({"sources": options}))


def peak_mb() -> float:
    """The most memory that this process had since its peak was last set back, as the kernel counts it."""
    (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


@contextmanager
def bounded(seconds: float, megabytes: float) -> Iterator[None]:
    """What is done takes less than that, and no more memory on top of what the process has."""
    Path("/proc/self/clear_refs").write_text("5")
    began, before = time.monotonic(), peak_mb()
    yield
    assert time.monotonic() - began < seconds
    assert peak_mb() - before < megabytes


def within(seconds: float, call: Callable[[], Any], error: type[Exception] = Problem, megabytes: float = 250) -> str:
    """The one sentence of a call that is refused in time, and in little memory."""
    with bounded(seconds, megabytes), pytest.raises(error) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    return str(caught.value)


# --- pages ---


def test_hostile_pages_go_to_quarantine_and_the_rest_of_the_batch_is_loaded(
    stack: Stack, server: HostileServer
) -> None:
    nested: Any = {}
    for _ in range(300):
        nested = {"a": nested}
    injection = "x'); drop schema raw cascade; --"
    pages: dict[str, bytes] = {
        "deep": DEEP,
        "deep objects": b'[{"id":' * 10_000 + b"1" + b"}]" * 10_000,
        "digits": b'[{"id": "digits", "value": ' + b"9" * 5000 + b"}]",
        "past 64 bits": json.dumps([{"id": "past", "value": 2**63}, {"id": "edge", "value": -(2**63)}]).encode(),
        "past in the middle": b'[{"id": "inner", "more": {"a": [18446744073709551616]}}]',
        "exponent": b'[{"id": "exponent", "more": {"a": 1e999}}]',
        "nul": b'[{"id": "nul\\u0000"}, {"id": "key", "more": {"a\\u0000b": 1}}]',
        "half a pair": b'[{"id": "\\ud800"}]',
        "no text": b'[{"id": "\xff\xfe\xc0\xaf"}]',
        "overlong": b'[{"id": "\xc0\x80"}]',
        "nested": json.dumps([{"id": "nested", "more": nested}, {"id": nested}]).encode(),
        "no records": b'[1, "x", null, [], [[]], true]',
        "sql": json.dumps([{"id": injection, "more": {injection: injection}}, {"id": "a", injection: 1}]).encode(),
        "places": json.dumps(
            [{"id": "../../landing/x", "more": {"..": "/etc/passwd"}}, {"id": "{}%s%(x)s$1\\"}]
        ).encode(),
        "cut": b'[{"id": "cut"}, {"id": ',
        "good": json.dumps([{"id": f"good {number}", "value": number} for number in range(500)]).encode(),
    }
    for number, body in enumerate(pages.values()):
        server.on(f"/{number}", answer(body, Content_Type="application/json"))
    upstream = Upstream("hostile_pages", server)
    began = time.monotonic()
    ingest(stack, upstream.source)
    assert time.monotonic() - began < 30
    stored = dict(query(stack, "select id, more from raw.hostile_pages_things where id not like 'good%'"))
    assert stored == {
        "edge": None,
        injection: {injection: injection},
        "../../landing/x": {"..": "/etc/passwd"},
        "{}%s%(x)s$1\\": None,
    }
    assert query(stack, "select count(*) from raw.hostile_pages_things where id like 'good%'") == [(500,)]
    reasons = [reason for (reason,) in query(stack, "select reason from ops.quarantine where source = 'hostile_pages'")]
    assert len(reasons) == 21
    for part in ("recursion", "64 bits", "NUL", "half of a UTF-16 pair", "codec", "levels", "no JSON", "unknown field"):
        assert any(part in reason for reason in reasons), part
    # what landed lies under hashes, and no key of ours is shown
    keys = [key for (key,) in query(stack, "select key from ops.landing where source = 'hostile_pages'")]
    assert all(key.startswith("landing/hostile_pages/things/") and ".." not in key for key in keys)
    assert not [name for (name,) in query(stack, "select name from ops.landing") if "s3cret" in name]


@pytest.mark.parametrize("store", ["rows", "documents"])
def test_records_that_bite_when_they_are_looked_at(stack: Stack, store: str) -> None:
    """Values deeper than Python's stack or longer than it writes out, from a parse that is not JSON's."""
    deep: Any = []
    for _ in range(20_000):
        deep = [deep]
    wide = ["x" * 1_000_000] * 40
    bad: list[Any] = [
        {"id": deep}, {"id": "deep", "more": deep}, {"id": 10**5000}, {"id": "long", "value": 10**5000},
        {"id": "text", "value": "9" * 10_000_000}, {"id": "keys", "more": {"k" * 100: deep}}, {deep[0] and 1: 1},
        {"id": "x", "value": deep}, {"id": "x" * 3000, "more": wide},
    ]  # fmt: skip
    schema = pa.schema(
        [
            describe("id", pa.string(), "", required=True),
            describe("value", pa.int64(), ""),
            describe("more", pa.struct([]), ""),
        ]
    )
    name = f"biting_{store}"
    things = Resource(
        "things", schema, ("id",), store=store,  # type: ignore[arg-type]
        fetch=lambda context: [] if context.cursor else [Page("page", b"x", {"next": 1})],
        parse=lambda landed: iter([*map(dict, bad), Bad(deep, "too deep"), {"id": "good"}]),
    )  # fmt: skip
    ingest(stack, Source(name, name, "text", "", "none", "@daily", (things,)))
    assert query(stack, f"select _key from raw.{name}_things") == [("good",)]
    longest = query(stack, f"select count(*), max(length(payload)) from ops.quarantine where source = '{name}'")
    assert longest[0][0] == len(bad) + 1
    assert longest[0][1] <= 4000


@pytest.mark.parametrize(
    "names",
    [("x; drop table ops.load; --", "things", "value"), ("fine", 'th"ings', "value"), ("fine", "things", 'v"al')],
)
def test_sql_in_the_names_of_tables_and_columns_is_refused(stack: Stack, names: tuple[str, str, str]) -> None:
    source, resource, column = names
    schema = pa.schema([describe("id", pa.string(), "", required=True), describe(column, pa.int64(), "")])
    things = Resource(
        resource, schema, ("id",),
        fetch=lambda context: [Page("page", b"x", {"next": 1})], parse=lambda landed: iter([{"id": "a"}])
    )  # fmt: skip
    hostile = Source(source, "t", "text", "", "none", "@daily", (things,))
    said = within(20, lambda: pipeline.make_tables([hostile], stack.settings("admin")))
    assert "is no name for a table or column" in said
    assert query(stack, "select to_regclass('ops.load') is not null") == [(True,)]


@pytest.mark.parametrize("key", ["../evil", "a/../../landing/evil", "a/..", "x/./y", "a\\..\\b"])
def test_keys_that_lead_out_of_their_place_are_refused_by_the_store(stack: Stack, key: str) -> None:
    """Keys of ours are made of hashes; should one ever not be, the store says no."""
    objects = Objects(stack.settings("loader"))
    assert "could not write derived/" in within(20, lambda: objects.put("derived", key, b"x"))
    assert not [found for bucket in ("landing", "derived") for found in objects.list(bucket) if "evil" in found]


KEYS = ("good.mid", "a/../b.mid", "../../c.mid", "x//d.mid", ".hidden.mid", "good.wav", "a/../b.wav")


def listed(prefix: str, keys: Sequence[str]) -> bytes:
    """An S3 listing: our own server takes no such keys, others do."""
    contents = "".join(
        f"<Contents><Key>{prefix}{key}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified><Size>4</Size>"
        "</Contents>"
        for key in keys
    )
    return (
        '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>theirs</Name>'
        f"<KeyCount>{len(keys)}</KeyCount><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
    ).encode()


def test_keys_of_others_that_lead_out_are_named_and_the_other_objects_loaded(
    stack: Stack, server: HostileServer
) -> None:
    found = answer(listed("all/", KEYS), Content_Type="application/xml")
    when = "Mon, 01 Jan 2024 00:00:00 GMT"
    for path in ("/theirs", "/theirs/"):
        server.on(path, found)
    for name, body in (("good.mid", b"MThd"), ("good.wav", b"RIFF")):
        server.on(f"/theirs/all/{name}", answer(body, Last_Modified=when))
    storage = {"endpoint": server.url, "access_key": "ann", "secret_key": "s3cret", "region": "us-east-1"}
    where = {"location": "s3://theirs/all/", "storage": storage}
    configure(midi_archive=where, audio_folder=where)
    for name, kind, wanted in (
        ("midi_archive", "scores", ["../../c.mid", "a/../b.mid", "x//d.mid"]),
        ("audio_folder", "audio", ["a/../b.wav"]),
    ):
        ingest(stack, catalogue.source(name))
        assert query(stack, f"select _key from raw.{name}_{kind}") == [(f"good.{wanted[0][-3:]}",)]
        noted = query(stack, f"select reason, counted from ops.quarantine where source = '{name}' order by reason")
        assert noted == [(f"{key!r} is not a name below s3://theirs/all/", False) for key in wanted]
        ingest(stack, catalogue.source(name))  # nothing new
        assert query(stack, f"select count(*) from ops.load where source = '{name}'") == [(1,)]
    assert not [one.path for one in server.asked if "b." in one.path or "c." in one.path]


# --- servers ---

FAULTS: dict[str, tuple[Deed, str]] = {
    "endless": (endless(head(Content_Type="application/json")), "more bytes than are allowed"),
    "slow": (trickle(head(Content_Type="application/json"), b" ", 0.1), "takes longer than"),
    "another type": (answer(b"<html>", Content_Type="text/html"), "gave text/html"),
    "to our own network": (answer(status=302, Location="http://169.254.169.254/latest/"), "allowed_hosts"),
    "to our files": (answer(status=302, Location="file:///etc/passwd?key=s3cret"), "No connection adapters"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_hostile_server_fails_the_run_with_a_sentence_and_the_next_run_loads_all(
    stack: Stack, server: HostileServer, fault: str
) -> None:
    deed, said = FAULTS[fault]
    name = f"hostile_{fault.replace(' ', '_')}"
    good = [answer(json.dumps([{"id": str(n)}]).encode(), Content_Type="application/json") for n in range(3)]
    upstream = Upstream(name, server, most=1 << 20, seconds=1, types=["application/json"])
    for number, deeds in enumerate(([good[0]], [deed, good[1]], [good[2]])):
        server.on(f"/{number}", *deeds)
    assert said in within(20, lambda: ingest(stack, upstream.source))
    ((state, error),) = query(stack, f"select state, error from ops.ledger where source = '{name}'")
    assert state == "failed"
    assert said in error
    assert "s3cret" not in error
    assert query(stack, f"select count(*) from ops.load where source = '{name}'") == [(0,)]
    ingest(stack, upstream.source)
    assert query(stack, f"select id from raw.{name}_things order by id") == [("0",), ("1",), ("2",)]


# --- archives ---


def zipped(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in files.items():
            archive.writestr(name, body)
    return file.getvalue()


def test_hostile_members_and_bombs_are_quarantined_and_the_other_archives_loaded(stack: Stack) -> None:
    many = {f"{number}.txt": b"good" for number in range(100)}
    pages = {
        "slip.zip": zipped(many | {"../evil.txt": b"evil", "/etc/cron.d/x.txt": b"evil", "huge.txt": bytes(50 << 20)}),
        "bomb.zip": zipped({f"{number}.txt": bytes(15 << 20) for number in range(20)}),
        "none.zip": b"PK\x03\x04 and no more",
        "last.zip": zipped({"last.txt": b"good"}),
    }

    def parse(page: Landed) -> Iterator[Record | Bad]:
        """As the sources of files do it: a member is a record; an archive that lies is a page that cannot be read."""
        found: list[Record | Bad] = []
        with page.path() as path:
            try:
                for member in archives.members(path, name=page.name):
                    if isinstance(member, archives.Refused):
                        found.append(Bad(member.name, member.reason))
                    else:
                        with member.open() as file:
                            found.append({"id": f"{page.name}/{member.name}", "value": len(file.read())})
            except Problem as problem:
                raise BadPage(problem.what) from problem
        yield from found

    schema = pa.schema([describe("id", pa.string(), "", required=True), describe("value", pa.int64(), "")])
    things = Resource(
        "things", schema, ("id",), parse=parse,
        fetch=lambda context: (Page(name, body, {"next": 1}) for name, body in pages.items() if not context.cursor),
    )  # fmt: skip
    began = time.monotonic()
    ingest(stack, Source("hostile_archives", "t", "text", "", "none", "@daily", (things,)))
    assert time.monotonic() - began < 30
    assert query(stack, "select count(*), max(value) from raw.hostile_archives_things") == [(101, 4)]
    assert query(stack, "select count(*) from raw.hostile_archives_things where id like 'last.zip/%'") == [(1,)]
    reasons = {
        row[0]: row[1]
        for row in query(stack, "select payload, reason from ops.quarantine where source = 'hostile_archives'")
    }
    assert reasons["../evil.txt"] == "its name leads out of the archive"
    assert reasons["/etc/cron.d/x.txt"] == "its name is absolute"
    assert reasons["huge.txt"] == "it unpacks to more than 200 times its size"
    assert "bomb.zip unpacks to more than" in reasons["bomb.zip"]
    assert "none.zip is damaged" in reasons["none.zip"]
    assert len(reasons) == 5


# --- every parse there is ---

PARSES = [
    pytest.param(each, id=f"{source.name}.{each.name}")
    for source in catalogue.sources()
    for each in source.resources
    if not source.simulated and each.store != "objects"  # their pages are ours; a file is a file
]


@pytest.mark.parametrize("each", PARSES)
def test_no_parse_of_the_catalogue_is_broken_by_any_bytes(each: Resource) -> None:
    bodies = [
        b"", b"\0" * 100_000, b"\xff" * 1000, DEEP, b'{"a":' * 10_000, b"9" * 10_000, b"null", b'"x"', b"[null]", b"{}",
        b'{"results": [[], null, 1, {"key": 1e999}], "count": -1, "endOfRecords": 7}',
        b'{"recordings": [[], null, 1, {"id": [[[]]]}], "numRecordings": "1e9", "numPages": null}',
        b'{"train": [[[1e999]], [[NaN]], {"a": []}]}', b"PK\x03\x04", b"<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><a>&b;</a>",
        b"\n" * 100_000, b",".join([b"a"] * 100_000), b'"' + b"a" * 300_000, b"\xde\x12\x04\x95" + b"\xff" * 24,
        *NESTED,
    ]  # fmt: skip
    began = time.monotonic()
    for body in bodies:
        for name in ("x.json", "x.xml", "x.csv", "x.mo", "x.mid", "multi30k/train.de", "jsb_chorales/x-quarter.json"):
            try:
                for record in each.parse(LandedBytes(body, name, **META)):
                    assert isinstance(record, (dict, Bad))
            except BadPage as error:
                assert str(error).strip()
    assert time.monotonic() - began < 20


# --- XML ---

SCORE = """<score-partwise><part-list><score-part id="P1"/></part-list><part id="P1"><measure>
<attributes>{attributes}</attributes>{inside}
<note><pitch><step>C</step><octave>4</octave></pitch><duration>1</duration></note></measure>{after}</part></score-partwise>"""
LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
XML = {
    "a file": "<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><a>&x;</a>",
    "an address": "<!DOCTYPE a [<!ENTITY x SYSTEM '{url}/x'>]><a>&x;</a>",
    "an outer definition": "<!DOCTYPE score-partwise SYSTEM '{url}/x.dtd'><score-partwise/>",
    "a parameter": "<!DOCTYPE a [<!ENTITY % x SYSTEM '{url}/x'> %x;]><a/>",
    "laughs": f'<!DOCTYPE a [<!ENTITY l0 "lol">{LAUGHS}]><a>&l9;</a>',
    "one long laugh": f'<!DOCTYPE a [<!ENTITY x "{"x" * 100_000}">]><a>{"&x;" * 10_000}</a>',
    "inclusion": "<a xmlns:i='http://www.w3.org/2001/XInclude'><i:include href='{url}/x' parse='text'/></a>",
    "a stylesheet": "<?xml-stylesheet href='{url}/x'?><a/>",
    "an unknown encoding": "<?xml version='1.0' encoding='utf-7'?><a/>",
    "depth": "<a>" * 200_000 + "</a>" * 200_000,
    "attributes": "<a " + " ".join(f'a{n}="x"' for n in range(100_000)) + "/>",
}

GROWING = ("laughs", "one long laugh", "depth")


@pytest.mark.parametrize("kind", XML)
def test_xml_that_reaches_out_or_grows_is_refused(server: HostileServer, kind: str) -> None:
    text = XML[kind].replace("{url}", server.url).encode()
    inside = "<container><rootfiles><rootfile full-path='a.xml'/></rootfiles></container>"
    for body, suffix in (
        (text, ".xml"), (zipped({"META-INF/container.xml": inside.encode(), "a.xml": text}), ".mxl"),
        (zipped({"META-INF/container.xml": text, "a.xml": b"<b/>"}), ".mxl"),
    ):  # fmt: skip
        said = within(10, partial(scores.read, body, suffix, "theirs"))
        assert said.startswith("cannot read the score theirs: ")
        assert "root:" not in said
    assert server.asked == []


MUSIC = {
    "an exponent": ("<divisions>1e999999999</divisions>", "", ""),
    "a long number": ("", f"<backup><duration>{'9' * 5000}</duration></backup>", ""),
    "no time at all": ("<divisions>0</divisions>", "<forward><duration>5</duration></forward>", ""),
    "time that runs back": ("<divisions>-1</divisions>", "<forward><duration>5</duration></forward>", ""),
    "a bar of nothing": ("<time><beats>-4</beats><beat-type>4</beat-type></time>", "", ""),
    "a very long rest": ("", "<forward><duration>999999999</duration></forward>", ""),
    "very many measures": ("", "", "<measure/>" * 100_000),
    "measures repeated": (
        "", "", '<measure><barline><repeat direction="backward" times="99999"/></barline></measure>' * 10_000
    ),
    "pitches far out": ("<transpose><chromatic>999999</chromatic></transpose>", "", ""),
    "rhythms without a common part": (
        "", "".join(f"<attributes><divisions>{n}</divisions></attributes><forward><duration>1</duration></forward>"
                    for n in range(900_001, 900_999, 2)), "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", MUSIC)
def test_scores_that_would_take_for_ever_are_refused(kind: str) -> None:
    attributes, inside, after = MUSIC[kind]
    body = SCORE.format(attributes=attributes, inside=inside, after=after).encode()
    assert "cannot read the score theirs: " in within(10, lambda: scores.read(body, ".xml", "theirs"))


def test_very_many_parts_and_notes_that_sound_for_ever() -> None:
    parts = "<score-partwise>" + "<part/>" * 100_000 + "<part>" + "<measure/>" * 10_000 + "</part></score-partwise>"
    assert "parts" in within(10, lambda: scores.read(parts.encode(), ".xml", "theirs"))
    note = "<note><chord/><pitch><step>C</step><octave>4</octave></pitch><duration>40000</duration></note>"
    held = SCORE.format(attributes="", inside="", after=f"<measure>{note * 100}</measure>").encode()
    assert "sound for more than" in within(10, lambda: scores.read(held, ".xml", "theirs"))
    tune = b"X:1\nK:G\n" + b"GABc d2e2|" * 10_000
    (error,) = scores.read(tune, ".abc", "theirs")
    assert "characters are more than 5,000" in str(error)
    kern = b"**kern\n" + b"4c\n" * 100_000 + b"*-\n"
    assert "lines" in within(10, lambda: scores.read(kern, ".krn", "theirs"))


def test_hostile_scores_keep_no_other_from_becoming_notes(stack: Stack, server: HostileServer) -> None:
    """They go to quarantine as pieces and as notes; nobody is asked for what they point at."""
    stack.reset()
    good = {f"good/{number:02}.xml": SCORE.format(attributes="", inside="", after="") for number in range(100)}
    bad = {f"bad/{kind}.xml": XML[kind].replace("{url}", server.url) for kind in ("a file", "an address", *GROWING)}
    bodies = {path: text.encode() for path, text in sorted((good | bad).items())}
    meta = {"corpus": "theirs", "licence": "none", "composer": None}

    def fetch(context: Context) -> Iterator[Page]:
        return (Page(path, body, {"digest": ""}, "application/xml", meta) for path, body in bodies.items())

    (scores_of,) = music21_corpus.SOURCE.resources
    with bounded(90, 250):
        for source in (replace(music21_corpus.SOURCE, resources=(replace(scores_of, fetch=fetch),)), notes.SOURCE):
            ingest(stack, source)
            states = pipeline.judge(source, stack.settings("loader"), say=lambda text: None)
            assert {state for state, _ in states.values()} == {"published"}, states
    for table in ("notes_pieces", "notes"):
        found = query(stack, f"select distinct piece_id from raw.{table} order by 1")
        assert [f"{piece}.xml" for (piece,) in found] == [*good]
    noted = query(stack, "select resource, payload from ops.quarantine where source = 'notes' order by resource")
    assert sorted(noted) == sorted((kind, path) for kind in ("notes", "pieces") for path in bad)
    assert server.asked == []


def test_what_can_be_read_can_be_made_frames_of() -> None:
    """The caps of the readers are such that no piece they let through is refused later, where nobody expects it."""
    longest = max(scores.MAX_QUARTERS, midi.MAX_QUARTERS)
    assert len(frames.to_frames([frames.Note(longest - 1, 1.0, 60)], "16th")) == frames.MAX_STEPS


# --- MIDI and audio ---


def test_midi_whose_notes_sound_for_ever() -> None:
    """A few bytes a note, each of which lasts to the end."""
    on = b"".join(b"\x00\x90" + bytes((n % 128, 64)) for n in range(30_000))
    track = on + b"\xff\xff\x7f\x80\x00\x00" + b"".join(b"\x00\x80" + bytes((n % 128, 0)) for n in range(30_000))
    body = (
        b"MThd\0\0\0\x06\0\0\0\x01\0\x60MTrk"
        + len(track + b"\0\xff\x2f\0").to_bytes(4, "big")
        + track
        + b"\0\xff\x2f\0"
    )
    assert "sound for more than 1,000,000 quarters" in within(10, lambda: midi.read(body, "theirs.mid"))


def silence(hours: float, format: str, rate_hz: int = 8000, channels: int = 1) -> bytes:
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate_hz, channels, format=format) as sound:
        second = np.zeros((rate_hz * 60, channels), np.int16)
        for _ in range(round(hours * 60)):
            sound.write(second)
    return file.getvalue()


def test_audio_that_unfolds_into_days_is_refused_by_what_it_says_and_by_what_it_is() -> None:
    body = silence(4.1, "FLAC")
    assert len(body) < 500_000
    assert "s long (at most 14400 s)" in within(5, lambda: audio.probe(body, name="theirs"))
    minute = audio.Limits(duration_s=60)
    for format in ("FLAC", "OGG"):
        short = silence(0.05, format)
        assert audio.probe(short).duration_s == pytest.approx(180, abs=1)
        for read in (audio.probe, audio.verify):
            assert "s long (at most 60 s)" in within(5, partial(read, short, name="theirs", limits=minute))
    unknown = bytearray(silence(0.5, "FLAC"))
    unknown[21] &= 0xF0
    unknown[22:26] = bytes(4)  # it does not say how long it is
    unfold = partial(audio.verify, bytes(unknown), name="theirs", limits=minute)
    assert "it goes on for more than 60 s" in within(5, unfold)
    wide = silence(0.05, "FLAC", 96_000, 8)
    few = audio.Limits(samples=96_000 * 60)
    assert "138,240,000 samples (at most 5,760,000)" in within(5, partial(audio.probe, wide, name="theirs", limits=few))


def test_audio_that_unfolds_into_days_keeps_no_other_from_becoming_clips(stack: Stack, tmp_path: Path) -> None:
    stack.reset()
    unknown = bytearray(silence(4.1, "FLAC"))
    (tmp_path / "10 says so.flac").write_bytes(unknown)
    unknown[21] &= 0xF0
    unknown[22:26] = bytes(4)
    (tmp_path / "20 does not.flac").write_bytes(unknown)
    for number in range(24):
        soundfile.write(tmp_path / f"{number:02}.flac", np.full(80_000, number / 100), 8_000)
    configure(audio_folder={"location": str(tmp_path)})
    with bounded(90, 250):
        for source in (audio_folder.SOURCE, clips.SOURCE):
            ingest(stack, source)
            states = pipeline.judge(source, stack.settings("loader"), say=lambda text: None)
            assert {state for state, _ in states.values()} == {"published"}, states
    cut = query(stack, "select recording_key, count(*) from raw.clips group by 1 order by 1")
    assert [key for key, _ in cut] == [f"{number:02}.flac" for number in range(24)]
    assert {count for _, count in cut} == {2}
    noted = dict(query(stack, "select payload, reason from ops.quarantine where source = 'clips'"))
    assert sorted(noted) == ["audio_folder: 10 says so.flac", "audio_folder: 20 does not.flac"]
    assert all("s long (at most 14400 s)" in one or "goes on for more than 14400 s" in one for one in noted.values())


DECODE = """
import resource, sys
from storage.errors import Problem
from storage.media import audio
body = sys.stdin.buffer.read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    audio.verify(body, name="theirs", limits=audio.Limits(duration_s=3 * 3600))
except Problem as problem:
    print(problem)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_long_recording_is_decoded_in_the_memory_of_a_block() -> None:
    body = silence(2, "FLAC", 16_000)
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", DECODE], input=body, capture_output=True, timeout=60, check=True)
    assert int(done.stdout) < 100_000  # kB; the samples are 460,000
    assert time.monotonic() - began < 30
