"""xeno-canto and GBIF on real stores, through doubles that misbehave: the same tables as from ones that do not."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from upstreams import gbif, hostile_server
from upstreams import xeno_canto as xc
from upstreams.faulty_server import Reply

from infra import transforming
from ingestion import catalogue, paging, pipeline
from ingestion.contract import Source
from ingestion.derive import clips
from ingestion.sources import gbif_sounds, xeno_canto
from storage import warehouse
from storage.documents import Documents
from storage.errors import Problem
from storage.objects import Objects
from storage.settings import options_file

if TYPE_CHECKING:
    from support import Stack
    from upstreams.faulty_server import FaultyServer

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
CATALOGUE = SHARED / "xeno_canto" / "recordings.csv"
RECORDINGS = SHARED / "birds" / "recordings"
ENTRIES = ["made", *(["real"] if CATALOGUE.exists() else [])]
QUIET = {"say": lambda text: None}
FILE = len(xc.sound(1))  # bytes of a made recording


class Killed(BaseException):
    """Somebody ends the process."""


@pytest.fixture(autouse=True)
def empty(stack: Stack) -> Iterator[None]:
    yield
    stack.reset()


def query(stack: Stack, text: str) -> list[tuple[Any, ...]]:
    with closing(warehouse.connect(stack.settings("loader"))) as db, db, db.cursor() as sql:
        sql.execute(text)
        return sql.fetchall()


def configure(server: FaultyServer, **given: Any) -> None:
    """Let the source read from the double."""
    if isinstance(server, xc.XenoCanto):
        name, own = "xeno_canto", {"url": f"{server.url}/api/3", "key": xc.KEY, "per_page": 50}
    else:
        name, own = "gbif_sounds", {"url": f"{server.url}/v1", "per_page": 50}
    values = own | {"rate": "1000/second", "allowed_hosts": [server.host]} | given
    options_file().write_text("\n".join([f"[sources.{name}]", *(f"{k} = {json.dumps(v)}" for k, v in values.items())]))


def cycle(stack: Stack, source: Source, **given: Any) -> dict[str, list[str]]:
    """Ingest and judge; the states of the loads, by resource."""
    settings = stack.settings("loader")
    report = pipeline.ingest(source, settings, **QUIET, **given)
    states = pipeline.judge(source, settings, **QUIET)
    found: dict[str, list[str]] = {}
    for load, (state, _) in states.items():
        found.setdefault(report.loads[load]["resource"] if load in report.loads else "?", []).append(state)
    return found


def current(stack: Stack, table: str, what: str = "doc") -> dict[str, Any]:
    """Key -> the current version in published loads."""
    source = "clips" if table == "clips" else table.rsplit("_", 1)[0]
    return dict(
        query(
            stack,
            f"select _key, {what} from (select distinct on (r._key) r.* from raw.{table} as r join ops.load as l "
            f"on l.source = '{source}' and l.load = r._load and l.state = 'published' "
            "order by r._key, r._load desc, r._position desc) as c where not _deleted",
        )
    )


def versions(stack: Stack, table: str) -> dict[str, int]:
    """Key -> how many versions raw has."""
    return dict(query(stack, f"select _key, count(*) from raw.{table} group by _key"))


def documents(stack: Stack, collection: str) -> dict[str, Any]:
    found = Documents(stack.settings("loader")).database[collection].find()
    return {one["key"]: one["doc"] for one in found}


def entries(kind: str, count: int = 300) -> list[dict[str, Any]]:
    every = xc.made(count) if kind == "made" else sorted(xc.real(CATALOGUE), key=lambda one: one["id"])
    return every[:: max(len(every) // count, 1)][:count]


@pytest.fixture(params=ENTRIES)
def catalogued(request: pytest.FixtureRequest) -> Iterator[xc.XenoCanto]:
    """A catalogue of 300 entries, the real one's where that is at hand."""
    with xc.XenoCanto(entries(request.param)).serving() as server:
        assert isinstance(server, xc.XenoCanto)
        yield server


@pytest.fixture
def small() -> Iterator[xc.XenoCanto]:
    """A catalogue of 120 made entries that answers without faults until a test asks for some."""
    with xc.XenoCanto(xc.made(120)).serving() as server:
        assert isinstance(server, xc.XenoCanto)
        server.faulty = False
        yield server


@pytest.fixture
def occurrences() -> Iterator[gbif.Gbif]:
    with gbif.Gbif(gbif.made(300)).serving() as server:
        assert isinstance(server, gbif.Gbif)
        yield server


def test_a_misbehaving_catalogue_gives_the_same_tables_as_a_quiet_one(
    stack: Stack, catalogued: xc.XenoCanto, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(catalogued)
    only = {"resources": ["recordings"]}
    catalogued.faulty = False
    assert cycle(stack, xeno_canto.SOURCE, **only) == {"recordings": ["published"]}
    quiet = current(stack, "xeno_canto_recordings")
    assert quiet == {number: catalogued._addressed(one) for number, one in catalogued.entries.items()}
    assert documents(stack, "xeno_canto_recordings") == quiet

    stack.reset()
    configure(catalogued)
    catalogued.faulty, catalogued.every = True, 2
    catalogued.wait(4)  # are uploaded while the list is read: every page shifts
    passing = [xc.entry(number, "Avisus fugax") for number in (999_991, 999_993)]  # are taken away meanwhile
    catalogued.entries |= {one["id"]: one for one in passing}
    catalogued.withdrawn = [one["id"] for one in passing]
    assert cycle(stack, xeno_canto.SOURCE, **only) == {"recordings": ["published"]}
    assert {"429", "503", "cut"} <= set(catalogued.met)
    shown = current(stack, "xeno_canto_recordings")
    gone = {one["id"] for one in passing}
    assert {number: one for number, one in shown.items() if number not in gone} == quiet
    counted = versions(stack, "xeno_canto_recordings")
    assert {counted[number] for number in quiet} == {1}
    later = paging.today() + timedelta(days=40)
    monkeypatch.setattr(paging, "today", lambda: later)
    cycle(stack, xeno_canto.SOURCE, **only)  # what went after its page had been read goes with the next whole list
    assert current(stack, "xeno_canto_recordings") == quiet
    assert versions(stack, "xeno_canto_recordings") == counted | dict.fromkeys(shown.keys() & gone, 2)


def test_a_second_run_finds_nothing_new_and_lands_nothing(stack: Stack, catalogued: xc.XenoCanto) -> None:
    configure(catalogued, most_bytes=0)
    assert cycle(stack, xeno_canto.SOURCE) == {"recordings": ["published"]}
    asked = len(catalogued.requests)
    objects = Objects(stack.settings("loader"))
    landed = set(objects.list("landing"))
    assert cycle(stack, xeno_canto.SOURCE) == {}
    assert set(objects.list("landing")) == landed
    before = current(stack, "xeno_canto_recordings")
    pipeline.replay(xeno_canto.SOURCE, stack.settings("loader"), **QUIET)
    assert current(stack, "xeno_canto_recordings") == before
    assert {params["query"] for _, params in catalogued.requests[asked:]} == {
        f"grp:birds since:{paging.today() - timedelta(days=3)}"
    }


@pytest.mark.parametrize("stage", ["fetched", "before seal", "sealed", "copied", "before commit", "committed"])
def test_killed_anywhere_and_run_again_gives_the_same_tables(stack: Stack, small: xc.XenoCanto, stage: str) -> None:
    small.faulty = True
    configure(small, most_bytes=0)
    reached: list[str] = []

    def kill(now: str) -> None:
        reached.append(now)
        if now == stage and (stage != "fetched" or reached.count("fetched") == 2):
            raise Killed

    with pytest.raises(Killed):
        pipeline.ingest(xeno_canto.SOURCE, stack.settings("loader"), **QUIET, reached=kill)
    cycle(stack, xeno_canto.SOURCE)
    expected = {number: small._addressed(one) for number, one in small.entries.items()}
    assert current(stack, "xeno_canto_recordings") == expected == documents(stack, "xeno_canto_recordings")
    assert set(versions(stack, "xeno_canto_recordings").values()) == {1}
    assert cycle(stack, xeno_canto.SOURCE) == {}


def test_uploads_edits_and_deletions_over_the_days(
    stack: Stack, small: xc.XenoCanto, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(small, most_bytes=0, lag_days=3, full_every_days=30)
    days = iter([date(2024, 5, 10), date(2024, 5, 11), date(2024, 6, 10)])
    day = next(days)
    monkeypatch.setattr(paging, "today", lambda: day)
    old, changed, gone, *_ = sorted(small.entries, key=int)
    small.entries["999001"] = xc.entry(999_001, "Avisus novus", uploaded="2024-05-09")
    cycle(stack, xeno_canto.SOURCE)

    day = next(days)
    small.entries["999002"] = xc.entry(999_002, "Avisus novus", uploaded="2024-05-10")
    small.entries["999001"]["q"] = "A"
    small.entries[changed]["rmk"] = "a remark of later"
    del small.entries[gone]
    asked = len(small.requests)
    assert cycle(stack, xeno_canto.SOURCE) == {"recordings": ["published"]}
    assert {params["query"] for _, params in small.requests[asked:]} == {"grp:birds since:2024-05-07"}
    counted = versions(stack, "xeno_canto_recordings")
    assert (counted["999001"], counted["999002"], counted[changed]) == (2, 1, 1)
    shown = current(stack, "xeno_canto_recordings")
    assert shown["999001"]["q"] == "A" and gone in shown  # has no date to ask for: the whole list will tell

    day = next(days)
    asked = len(small.requests)
    assert cycle(stack, xeno_canto.SOURCE) == {"recordings": ["published"]}
    assert {params["query"] for _, params in small.requests[asked:]} == {"grp:birds"}
    assert current(stack, "xeno_canto_recordings") == {
        number: small._addressed(one) for number, one in small.entries.items()
    }
    counted = versions(stack, "xeno_canto_recordings")
    assert (counted[changed], counted[gone], counted[old]) == (2, 2, 1)
    assert cycle(stack, xeno_canto.SOURCE) == {}


def test_deletions_that_shift_the_pages_hide_nothing_and_delete_nothing_else(
    stack: Stack, small: xc.XenoCanto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the first of a list goes, what was first on the next page is on the page that has been read."""
    configure(small, most_bytes=0)
    small.faulty = True
    newest = sorted(small.entries, key=int)[-2:]
    for day, goes in ((date(2024, 5, 10), newest[1]), (date(2024, 7, 10), newest[0])):
        monkeypatch.setattr(paging, "today", lambda day=day: day)
        small.withdrawn = [goes]
        asked = len(small.requests)
        cycle(stack, xeno_canto.SOURCE)
        assert goes not in small.entries  # after its page had been read: the next whole list will tell
        assert current(stack, "xeno_canto_recordings").keys() == small.entries.keys() | {goes}
        assert len([params for _, params in small.requests[asked:] if params.get("page") == "2"]) >= 2
    checked = {params["query"] for _, params in small.requests[asked:]} - {"grp:birds"}
    assert checked == {f"grp:birds nr:{newest[1]}"}  # the list moved, so it was asked for itself
    monkeypatch.setattr(paging, "today", lambda: date(2024, 9, 10))
    cycle(stack, xeno_canto.SOURCE)
    assert current(stack, "xeno_canto_recordings").keys() == small.entries.keys()


def test_another_query_is_another_list(stack: Stack, small: xc.XenoCanto) -> None:
    configure(small, most_bytes=0)
    cycle(stack, xeno_canto.SOURCE)
    configure(small, most_bytes=0, quality=">E")
    assert cycle(stack, xeno_canto.SOURCE) == {"recordings": ["published"]}
    shown = current(stack, "xeno_canto_recordings")
    assert 60 < len(shown) < 120 and {one["q"] for one in shown.values()} == {"A", "B", "C", "D"}
    configure(small, most_bytes=0, country="New Zealand")
    assert cycle(stack, xeno_canto.SOURCE) == {"recordings": ["rejected"]}  # more than half would go: a person decides
    assert current(stack, "xeno_canto_recordings") == shown
    configure(small, most_bytes=0, country="Atlantis")
    with pytest.raises(Problem, match="no recording for the query 'grp:birds cnt:Atlantis'"):
        cycle(stack, xeno_canto.SOURCE)
    assert current(stack, "xeno_canto_recordings") == shown


FILTERS: tuple[dict[str, str], ...] = (
    {"species": "Avisus minor"},
    {"species": "Avisus minor", "country": "Peru", "quality": ">D"},
    {"country": "New Zealand", "quality": "A"},
)


@pytest.mark.parametrize("given", FILTERS, ids=lambda given: " ".join(given.values()))
def test_a_query_by_species_country_and_quality_brings_those_and_no_other(
    stack: Stack, small: xc.XenoCanto, given: dict[str, str]
) -> None:
    small.entries = {one["id"]: one for one in xc.made(600)}
    small.faulty = True
    configure(small, most_bytes=0, **given)
    cycle(stack, xeno_canto.SOURCE)
    qualities = {"A": "A", ">D": "ABC"}.get(given.get("quality", ""), "ABCDE no score")
    wanted = {
        number
        for number, one in small.entries.items()
        if given.get("species", one["gen"]) in (one["gen"], f"{one['gen']} {one['sp']}")
        and one["cnt"] == given.get("country", one["cnt"])
        and one["q"] in qualities
    }
    assert 3 < len(wanted) < 100
    assert current(stack, "xeno_canto_recordings").keys() == wanted
    assert documents(stack, "xeno_canto_recordings").keys() == wanted


def test_a_backfill_brings_its_interval_and_nothing_else_twice_the_same(stack: Stack, catalogued: xc.XenoCanto) -> None:
    configure(catalogued, most_bytes=0)
    uploads = sorted(one["uploaded"] for one in catalogued.entries.values())
    first, last = uploads[100], uploads[200]
    interval = (datetime.fromisoformat(first).replace(tzinfo=UTC), datetime.fromisoformat(last).replace(tzinfo=UTC))
    within = {number for number, one in catalogued.entries.items() if first <= one["uploaded"] < last}
    assert cycle(stack, xeno_canto.SOURCE, interval=interval) == {"recordings": ["published"]}
    shown = current(stack, "xeno_canto_recordings")
    assert shown.keys() == within
    assert all(f"since:{first}" in params["query"] for path, params in catalogued.requests if path.startswith("/api"))
    history = query(stack, "select _key, _hash, _load, _position from raw.xeno_canto_recordings order by 1")
    assert cycle(stack, xeno_canto.SOURCE, interval=interval) == {}
    assert query(stack, "select _key, _hash, _load, _position from raw.xeno_canto_recordings order by 1") == history
    assert query(stack, "select count(*) from ops.cursor where source = 'xeno_canto' and lane = 'live'") == [(0,)]
    cycle(stack, xeno_canto.SOURCE)  # the live reading is the first: it takes nothing of the backfill for granted
    assert len(current(stack, "xeno_canto_recordings")) == 300
    assert set(versions(stack, "xeno_canto_recordings").values()) == {1}


def test_a_changed_interface_is_loud(stack: Stack, small: xc.XenoCanto) -> None:
    configure(small, most_bytes=0)
    small.shape = "items"
    assert cycle(stack, xeno_canto.SOURCE) == {"recordings": ["rejected"]}
    (reason,) = query(stack, "select reason from ops.quarantine where source = 'xeno_canto'")
    assert reason == ("no list of recordings: the API is not as it was",)
    assert current(stack, "xeno_canto_recordings") == {}
    small.shape = "recordings"
    assert cycle(stack, xeno_canto.SOURCE) == {"recordings": ["published"]}
    assert len(current(stack, "xeno_canto_recordings")) == 120


def test_an_interface_that_changes_in_the_middle_of_a_list_is_loud_too(
    stack: Stack, small: xc.XenoCanto, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(small, most_bytes=0)
    answer = small.answer

    def change(path: str, params: dict[str, str]) -> Any:
        small.shape = "recordings" if params["page"] < "3" else "items"
        return answer(path, params)

    with monkeypatch.context() as patch:
        patch.setattr(small, "answer", change)
        assert cycle(stack, xeno_canto.SOURCE) == {"recordings": ["published"]}  # 100 records, and a page that is none
        assert len(current(stack, "xeno_canto_recordings")) == 100
        assert cycle(stack, xeno_canto.SOURCE) == {"recordings": ["rejected"]}  # nothing but that page
    small.shape = "recordings"
    assert cycle(stack, xeno_canto.SOURCE) == {"recordings": ["published"]}
    assert len(current(stack, "xeno_canto_recordings")) == 120
    assert set(versions(stack, "xeno_canto_recordings").values()) == {1}


def test_records_that_break_the_contract_go_to_quarantine_and_the_others_load(
    stack: Stack, small: xc.XenoCanto
) -> None:
    configure(small, most_bytes=0)
    deep: Any = "x"
    for _ in range(150):
        deep = [deep]
    numbers = sorted(small.entries)
    del small.entries[numbers[0]]["rec"]
    small.entries[numbers[1]]["rmk"] = "\x00"
    small.entries[numbers[2]]["rmk"] = "\ud800"
    small.entries[numbers[3]]["sono"] = deep
    small.entries[numbers[4]]["smp"] = 2**70
    assert cycle(stack, xeno_canto.SOURCE) == {"recordings": ["published"]}
    reasons = {reason for (reason,) in query(stack, "select reason from ops.quarantine")}
    assert reasons == {
        "rec is missing",
        "contains the character NUL",
        "contains half of a UTF-16 pair",
        "is nested deeper than 100 levels",
        f"smp is no text: {2**70}",
    }
    assert current(stack, "xeno_canto_recordings").keys() == set(numbers[5:])
    configure(small, most_bytes=0, full_every_days=0)
    cycle(stack, xeno_canto.SOURCE)  # the page has landed before: what is bad on it is known
    assert len(query(stack, "select reason from ops.quarantine")) <= 2 * 5


def test_without_a_key_the_run_fails_with_one_sentence(stack: Stack, small: xc.XenoCanto) -> None:
    configure(small, key="")
    with pytest.raises(Problem, match="xeno_canto has no key"):
        cycle(stack, xeno_canto.SOURCE)
    (line,) = query(stack, "select resource, error from ops.ledger where source = 'xeno_canto' and state = 'failed'")
    assert line[0] == "recordings" and "https://xeno-canto.org/account" in line[1]
    configure(small, key="not-the-key")
    with pytest.raises(Problem, match="xeno-canto refuses the key"):
        cycle(stack, xeno_canto.SOURCE)
    assert "not-the-key" not in str(query(stack, "select error from ops.ledger where source = 'xeno_canto'"))
    configure(small, most_bytes=0)
    cycle(stack, xeno_canto.SOURCE)
    assert xc.KEY not in str(query(stack, "select name, meta from ops.landing"))


def test_audio_is_fetched_by_licence_and_so_many_bytes_a_run(stack: Stack, small: xc.XenoCanto) -> None:
    small.faulty, small.every = True, 12
    configure(small, licences=["BY-SA"], at_once=2)
    wanted = {number for number, one in small.entries.items() if "/by-sa/" in one["lic"]}
    assert cycle(stack, xeno_canto.SOURCE) == {"recordings": ["published"]}  # no metadata was published yet
    assert cycle(stack, xeno_canto.SOURCE) == {"audio": ["published"]}
    files = current(stack, "xeno_canto_audio", "to_jsonb(c)")
    assert files.keys() == wanted != set()
    assert {one["licence"] for one in files.values()} == {"//creativecommons.org/licenses/by-sa/4.0/"}
    assert cycle(stack, xeno_canto.SOURCE) == {}

    counts = [len(files)]
    while counts[-1] < 120:
        configure(small, most_bytes=20 * FILE, at_once=2)
        assert cycle(stack, xeno_canto.SOURCE) == {"audio": ["published"]}
        counts.append(len(current(stack, "xeno_canto_audio", "sha256")))
    steps = [after - before for before, after in itertools.pairwise(counts)]
    assert len(steps) > 2 and all(20 <= step <= 20 + 2 * 2 for step in steps[:-1])
    assert cycle(stack, xeno_canto.SOURCE) == {}
    for number, sha256 in current(stack, "xeno_canto_audio", "sha256").items():
        body = Objects(stack.settings("loader")).get("landing", f"xeno_canto/audio/{sha256[:2]}/{sha256}")
        assert body == xc.sound(int(number))
    asked = [path for path, _ in small.requests if path.endswith("/download")]
    assert len(asked) <= 120 + len(small.met)  # each once, and once more after a fault


def test_audio_that_cannot_be_had_changed_audio_and_withdrawn_audio(
    stack: Stack, small: xc.XenoCanto, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(small)
    monkeypatch.setattr(paging, "today", lambda: date(2024, 5, 10))
    numbers = sorted(small.entries, key=int)
    small.absent = set(numbers[:2])
    cycle(stack, xeno_canto.SOURCE)
    assert cycle(stack, xeno_canto.SOURCE) == {"audio": ["published"]}
    files = current(stack, "xeno_canto_audio", "sha256")
    assert files.keys() == set(numbers[2:])
    reasons = query(stack, "select payload, reason from ops.quarantine where resource = 'audio'")
    assert len(reasons) == 2 and all("answered 404" in reason for _, reason in reasons)
    asked = len(small.requests)
    assert cycle(stack, xeno_canto.SOURCE) == {}
    assert not [path for path, _ in small.requests[asked:] if path.endswith("/download")]  # not before a week is over

    monkeypatch.setattr(paging, "today", lambda: date(2024, 7, 10))  # the whole list is due, and so are the two
    small.absent = set()
    renamed, gone = numbers[5], numbers[6]
    small.entries[renamed]["file-name"] = "a-better-cut.wav"
    del small.entries[gone]
    cycle(stack, xeno_canto.SOURCE)
    cycle(stack, xeno_canto.SOURCE)
    names = current(stack, "xeno_canto_audio", "file_name")
    assert names.keys() == set(numbers) - {gone}
    assert names[renamed] == "a-better-cut.wav"
    assert versions(stack, "xeno_canto_audio")[renamed] == 2


def test_a_server_that_goes_away_keeps_what_had_come(
    stack: Stack, small: xc.XenoCanto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingestion.web.FAILURES", 100)  # we do not wait until it is asked again
    configure(small, at_once=1)
    cycle(stack, xeno_canto.SOURCE)
    answer, given = small.answer, itertools.count()

    def tire(path: str, params: dict[str, str]) -> Any:
        if path.endswith("/download") and next(given) >= 10:
            return Reply(503, b"", "text/plain", {"Retry-After": "4000"})
        return answer(path, params)

    with monkeypatch.context() as patch:
        patch.setattr(small, "answer", tire)
        assert cycle(stack, xeno_canto.SOURCE) == {"audio": ["published"]}
        assert len(current(stack, "xeno_canto_audio", "sha256")) == 10
        with pytest.raises(Problem, match="asks to wait 4,000 seconds"):
            cycle(stack, xeno_canto.SOURCE)
    assert cycle(stack, xeno_canto.SOURCE) == {"audio": ["published"]}
    assert len(current(stack, "xeno_canto_audio", "sha256")) == 120
    assert query(stack, "select * from ops.quarantine") == []


HOSTILE_FILES: dict[str, str] = {
    "our own network": "http://169.254.169.254/latest/meta-data",
    "our files": "file:///etc/passwd",
    "no address": "http://[/x",
    "led to our network": "{url}/led",
    "always busy": "{url}/busy",
    "too slow": "{url}/slow",
    "never whole": "{url}/cut",
    "a page": "{url}/page",
}


@pytest.mark.parametrize("fault", HOSTILE_FILES)
def test_one_hostile_file_keeps_no_other_from_coming(
    stack: Stack, small: xc.XenoCanto, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """It is the newest, so it is asked for first; it is noted in quarantine, and not asked for again for a week."""
    for number in [*small.entries][3:]:
        del small.entries[number]
    monkeypatch.setattr("ingestion.web.TRIES", 2)
    monkeypatch.setattr(xeno_canto, "SECONDS", 1.0)
    with hostile_server.serve() as server:
        server.on("/led", hostile_server.answer(status=302, Location="http://10.0.0.1/x"))
        server.on("/busy", hostile_server.answer(status=503))
        server.on("/slow", hostile_server.trickle(hostile_server.head(Content_Type="audio/mpeg"), b"x", 0.1))
        server.on("/cut", hostile_server.pieces(hostile_server.head(Content_Type="audio/mpeg", Content_Length=9), b"x"))
        server.on("/page", hostile_server.answer(b"<html>no longer here</html>", Content_Type="text/html"))
        other = min(small.entries, key=int)
        newest = max(small.entries, key=int)
        server.on("/good", hostile_server.answer(xc.sound(int(other)), Content_Type="audio/x-wav"))
        small.entries[newest]["file"] = HOSTILE_FILES[fault].format(url=server.url)
        small.entries[other]["file"] = f"{server.url}/good"  # the server is there
        configure(small, allowed_hosts=[small.host, server.host])
        cycle(stack, xeno_canto.SOURCE)
        assert cycle(stack, xeno_canto.SOURCE) == {"audio": ["published"]}
        assert current(stack, "xeno_canto_audio", "sha256").keys() == small.entries.keys() - {newest}
        ((payload, reason),) = query(stack, "select payload, reason from ops.quarantine where resource = 'audio'")
        assert newest in payload and ("gave text/html" in reason) == (fault == "a page")
        asked = len(server.asked)
        assert cycle(stack, xeno_canto.SOURCE) == {}
        assert len(server.asked) == asked


def test_recordings_become_clips_core_tables_and_a_label_set_of_their_own(stack: Stack) -> None:
    """Untidy entries break nothing; real recordings are decoded where they are at hand."""
    files = xc.recordings(RECORDINGS) if RECORDINGS.exists() else {}
    one_species = [xc.entry(int(number), "Zonotrichia capensis", lat="95.0", lon="NaN") for number in files]
    some = [*entries(ENTRIES[-1], 20), *one_species]
    odd = [
        xc.entry(910_001, "Mystery mystery", length="99999999999:00"),
        xc.entry(910_002, "Tyto alba", time="25:61", date="2012-02-31", also=["", "Tyto alba", "mystery"], lat=None),
        xc.entry(910_003, "Tyto alba guttata", length="1:02:03", q="no score", lic="", type="song?, , CALL"),
    ]
    with xc.XenoCanto([*some, *odd], files).serving() as server:
        configure(server)
        for _ in range(2):
            cycle(stack, xeno_canto.SOURCE)
        assert cycle(stack, clips.SOURCE) == {"clips": ["published"]}
        entries_there = dict(server.entries)  # type: ignore[attr-defined]
    cut = current(stack, "clips", "recording_key")
    assert set(cut.values()) == entries_there.keys()
    assert all(key.startswith("xeno_canto:") for key in cut)

    pipeline.make_tables([one for one in catalogue.sources() if one.domain == "birds"], stack.settings("loader"))
    for step in ("core", "splits", "marts"):
        transforming.run("birds", step, stack.settings("transformer"), retry=False, say=lambda text: None)
    core = query_as(stack, "select recording_key, is_labelled, subspecies, length_s, licence_code from core.recording")
    rows = {key: rest for key, *rest in core}
    assert rows.keys() == entries_there.keys()
    assert rows["910001"] == [False, None, None, "CC-BY-NC-ND"]
    assert rows["910003"][:3] == [True, "guttata", 3723.0] and rows["910003"][3] == "unknown"
    people = query_as(stack, "select count(*) from core.recordist where source = 'xeno_canto'")
    assert people == [(len({one["rec"] for one in entries_there.values()}),)]
    clipped = query_as(stack, "select count(*), count(distinct recording_id) from core.clip")
    assert clipped == [(len(cut), len(entries_there))]
    marts = "marts_next_birds.mart_birds_training_clips"
    trained = query_as(stack, f"select label_set, count(distinct recording_id) from {marts} group by 1")
    assert trained == [("xeno_canto", len(entries_there) - 1)]  # nobody knows what sings on one of them
    assert query_as(stack, f"select count(*) from {marts} where split is null or is_simulated") == [(0,)]


def query_as(stack: Stack, text: str) -> list[tuple[Any, ...]]:
    with closing(warehouse.connect(stack.settings("transformer"))) as db, db, db.cursor() as sql:
        sql.execute(text)
        return sql.fetchall()


def test_gbif_misbehaving_and_split_gives_the_same_tables_as_quiet_and_whole(
    stack: Stack, occurrences: gbif.Gbif
) -> None:
    configure(occurrences)
    occurrences.faulty = False
    assert cycle(stack, gbif_sounds.SOURCE) == {"occurrences": ["published"]}
    quiet = current(stack, "gbif_sounds_occurrences")
    assert quiet == {f"[{key}]": one for key, one in occurrences.occurrences.items()}
    assert documents(stack, "gbif_sounds_occurrences") == quiet

    stack.reset()
    configure(occurrences, deepest=120)
    occurrences.faulty, occurrences.deepest = True, 120
    late = sorted(occurrences.occurrences)[:3]
    occurrences.waiting = [occurrences.occurrences.pop(key) for key in late]
    passing = [gbif.occurrence(key, year=2020, month=1) for key in (5, 6)]
    occurrences.occurrences |= {one["key"]: one for one in passing}
    occurrences.withdrawn = [5, 6]
    assert cycle(stack, gbif_sounds.SOURCE) == {"occurrences": ["published"]}
    assert {"429", "503", "cut"} <= set(occurrences.met)
    assert any("year" in params for _, params in occurrences.requests)
    shown = current(stack, "gbif_sounds_occurrences")
    missed = quiet.keys() - shown.keys()  # added to a part that had been read: the lag brings it
    assert missed <= {f"[{key}]" for key in late} and shown == {key: quiet[key] for key in quiet.keys() - missed}
    assert {versions(stack, "gbif_sounds_occurrences")[key] for key in shown} == {1}
    assert cycle(stack, gbif_sounds.SOURCE) == {}


def test_gbif_incremental_deletions_and_intervals(
    stack: Stack, occurrences: gbif.Gbif, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(occurrences, lag_days=2, full_every_days=90)
    monkeypatch.setattr(paging, "today", lambda: date(2020, 12, 31))
    interval = (datetime(2020, 12, 5, tzinfo=UTC), datetime(2020, 12, 8, tzinfo=UTC))
    assert cycle(stack, gbif_sounds.SOURCE, interval=interval) == {"occurrences": ["published"]}
    before = current(stack, "gbif_sounds_occurrences")
    assert {one["lastInterpreted"][:10] for one in before.values()} == {"2020-12-05", "2020-12-06", "2020-12-07"}
    assert cycle(stack, gbif_sounds.SOURCE, interval=interval) == {}
    assert current(stack, "gbif_sounds_occurrences") == before

    cycle(stack, gbif_sounds.SOURCE)
    assert len(current(stack, "gbif_sounds_occurrences")) == 300
    changed, gone, *_ = sorted(occurrences.occurrences)
    occurrences.occurrences[changed] |= {"locality": "Macquarie", "lastInterpreted": "2021-01-02T00:00:00.000+00:00"}
    del occurrences.occurrences[gone]
    monkeypatch.setattr(paging, "today", lambda: date(2021, 1, 3))
    asked = len(occurrences.requests)
    assert cycle(stack, gbif_sounds.SOURCE) == {"occurrences": ["published"]}
    assert {params["lastInterpreted"] for _, params in occurrences.requests[asked:]} == {"2020-12-29,*"}
    shown = current(stack, "gbif_sounds_occurrences")
    assert shown[f"[{changed}]"]["locality"] == "Macquarie" and f"[{gone}]" in shown
    monkeypatch.setattr(paging, "today", lambda: date(2021, 5, 1))
    cycle(stack, gbif_sounds.SOURCE)
    assert current(stack, "gbif_sounds_occurrences").keys() == {f"[{key}]" for key in occurrences.occurrences}
    assert cycle(stack, gbif_sounds.SOURCE) == {}


def test_gbif_records_that_no_query_shows_are_not_taken_for_gone(
    stack: Stack, occurrences: gbif.Gbif, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They came when few were asked for; the whole list is larger than the parts that it can be read in."""
    monkeypatch.setattr(paging, "today", lambda: date(2020, 12, 31))
    same = {"datasetKey": "d", "countryCode": "DE", "month": 5, "license": "CC0", "decimalLatitude": 1.0}
    occurrences.faulty = False
    occurrences.occurrences = {
        key: gbif.occurrence(key, **same, year=None if key % 10 == 0 else 2000 + key % 4)
        for key in range(1, 201)
        if key % 13
    }
    configure(occurrences, full_every_days=90)
    cycle(stack, gbif_sounds.SOURCE)
    before = current(stack, "gbif_sounds_occurrences")
    assert len(before) == len(occurrences.occurrences)
    monkeypatch.setattr(paging, "today", lambda: date(2021, 5, 1))
    occurrences.deepest = 60
    configure(occurrences, full_every_days=90, deepest=60)
    gone = [key for key in occurrences.occurrences if key % 10][:2]
    for key in gone:
        del occurrences.occurrences[key]
    cycle(stack, gbif_sounds.SOURCE)
    shown = current(stack, "gbif_sounds_occurrences")
    assert before.keys() - shown.keys() == {f"[{key}]" for key in gone}  # each that was missing was asked for
    monkeypatch.setattr(paging, "MOST_CHECKED", 3)
    monkeypatch.setattr(paging, "today", lambda: date(2021, 9, 1))
    for key in [key for key in occurrences.occurrences if key % 10][:2]:
        del occurrences.occurrences[key]
    cycle(stack, gbif_sounds.SOURCE)
    assert current(stack, "gbif_sounds_occurrences") == shown  # too many to ask for: none is gone
    (cursor,) = query(stack, "select cursor ->> 'full' from ops.cursor where source = 'gbif_sounds'")
    assert cursor == ("2021-09-01",)


def test_a_server_that_fails_in_the_middle_of_a_list_is_asked_for_the_rest(
    stack: Stack, small: xc.XenoCanto, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(small, most_bytes=0)
    answer = small.answer
    asked: list[str] = []

    def fail(path: str, params: dict[str, str]) -> Any:
        asked.append(params["page"])
        return Reply(404, b"", "text/html") if params["page"] == "3" else answer(path, params)

    with monkeypatch.context() as patch:
        patch.setattr(small, "answer", fail)
        assert cycle(stack, xeno_canto.SOURCE) == {"recordings": ["published"]}
        assert len(current(stack, "xeno_canto_recordings")) == 100
        with pytest.raises(Problem, match="answered 404"):  # nothing new has come
            cycle(stack, xeno_canto.SOURCE)
    assert asked == ["1", "2", "3", "3"]
    assert cycle(stack, xeno_canto.SOURCE) == {"recordings": ["published"]}
    assert len(current(stack, "xeno_canto_recordings")) == 120
    assert set(versions(stack, "xeno_canto_recordings").values()) == {1}


def test_gbif_changed_interface_is_loud(stack: Stack, occurrences: gbif.Gbif) -> None:
    configure(occurrences)
    occurrences.shape = "occurrences"
    with pytest.raises(Problem, match="gave no list of results"):
        cycle(stack, gbif_sounds.SOURCE)
    assert query(stack, "select state from ops.ledger where source = 'gbif_sounds'") == [("failed",)]
