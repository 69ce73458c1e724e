"""The scrapers on real stores, through doubles that misbehave: the same tables as what the site has.

A crawl is a process of its own here too. What becomes of one that is killed: ``tests/faults/test_frontier.py``.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import statistics
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from upstreams import hostile_server
from upstreams import mutopia as site
from upstreams import species_accounts as wiki
from upstreams.faulty_server import FaultyServer, Reply
from upstreams.mutopia import Mutopia
from upstreams.species_accounts import Encyclopedia

from infra import transforming
from ingestion import catalogue, pipeline
from ingestion.contract import Source
from ingestion.derive import notes
from ingestion.sources import mutopia, species_accounts
from ingestion.web import TRIES
from storage import warehouse
from storage.documents import Documents
from storage.errors import Problem
from storage.gates import audit
from storage.gates.audit import Verdict
from storage.objects import Objects
from storage.settings import Role, options_file

if TYPE_CHECKING:
    from support import Stack

BIRDS = ("Turdus merula", "Parus major", "Strix aluco", "Erithacus rubecula", "Luscinia megarhynchos")
ONLY = {"resources": ["pieces"]}
SCORES = "mutopia_scores"


@pytest.fixture(autouse=True)
def empty(stack: Stack) -> Iterator[None]:
    yield
    stack.reset()


@pytest.fixture(autouse=True)
def plain_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads are judged by what is in quarantine: the statistics take seconds, and have tests of their own."""
    monkeypatch.setattr(audit, "run", lambda *arguments, **options: Verdict(True, "none", ""))


@pytest.fixture
def music() -> Iterator[Mutopia]:
    with Mutopia(site.made(34)).serving() as server:
        assert isinstance(server, Mutopia)
        server.faulty = False
        yield server


@pytest.fixture
def birds() -> Iterator[Encyclopedia]:
    with Encyclopedia(map(wiki.article, BIRDS)).serving() as server:
        assert isinstance(server, Encyclopedia)
        server.faulty = False
        yield server


def configure(server: FaultyServer, **given: Any) -> None:
    """Let the source read from the double."""
    name, url = ("mutopia", server.url) if isinstance(server, Mutopia) else ("species_accounts", f"{server.url}/wiki")
    values = {"url": url, "rate": "", "allowed_hosts": [server.host], "rest_hours": 0} | given
    lines = [f"[sources.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    options_file().write_text("\n".join(lines) + "\n")


def query(stack: Stack, text: str, role: Role = "loader") -> list[tuple[Any, ...]]:
    with closing(warehouse.connect(stack.settings(role))) as db, db, db.cursor() as sql:
        sql.execute(text)
        return sql.fetchall()


def cycle(stack: Stack, source: Source, **given: Any) -> dict[str, list[str]]:
    """Ingest and judge; the states of the loads, by resource."""
    settings = stack.settings("loader")
    report = pipeline.ingest(source, settings, say=print, **given)
    states = pipeline.judge(source, settings, say=print)
    found: dict[str, list[str]] = {}
    for load, (state, _) in states.items():
        found.setdefault(report.loads[load]["resource"], []).append(state)
    return found


def current(stack: Stack, table: str) -> dict[str, dict[str, Any]]:
    """Key -> the current version in published loads."""
    source = table if table == species_accounts.NAME else table.rsplit("_", 1)[0]
    found = query(
        stack,
        f"select _key, to_jsonb(c) from (select distinct on (r._key) r.* from raw.{table} as r join ops.load as l "
        f"on l.source = '{source}' and l.load = r._load and l.state = 'published' "
        "order by r._key, r._load desc, r._position desc) as c where not _deleted",
    )
    return {key: row.get("doc", row) for key, row in found}


def same_pieces(stack: Stack, server: Mutopia) -> None:
    """Every piece of the site, row by row."""
    shown = current(stack, "mutopia_pieces")
    wanted = {f"[{number}]": site.expected(one, server.url) for number, one in server.pieces.items()}
    assert {key: {name: row[name] for name in wanted[key]} for key, row in shown.items() if key in wanted} == wanted
    assert shown.keys() == wanted.keys()


def same_midi(stack: Stack, server: Mutopia) -> None:
    """Every MIDI file of the site, byte by byte."""
    shown = {key: (row["piece_id"], row["sha256"], row["bytes"]) for key, row in current(stack, SCORES).items()}
    wanted = {}
    for one in server.pieces.values():
        for part in range(one.files):
            path = f"{one.midi}/{one.name}-{part + 1}.mid" if one.files > 1 else one.midi
            body = site.sound(one.number, part)
            wanted[path] = (one.number, hashlib.sha256(body).hexdigest(), len(body))
    assert shown == wanted
    objects = Objects(stack.settings("loader"))
    assert all(objects.exists("landing", f"mutopia/scores/{sha[:2]}/{sha}") for _, sha, _ in wanted.values())


@pytest.mark.parametrize("count", [22, pytest.param(34, marks=pytest.mark.long)])
def test_a_misbehaving_site_gives_what_it_has(stack: Stack, music: Mutopia, count: int) -> None:
    """Errors, cut pages, and a listing that shifts while it is read: two pieces come, two go."""
    music.pieces = dict([*music.pieces.items()][:count])
    music.faulty = True
    ordered = sorted(music.pieces.values(), key=lambda one: one.place)
    music.coming = [site.piece(number) for number in (2501, 2502)]
    music.going = [ordered[0].number, ordered[3].number]
    stayed = music.pieces.keys() - set(music.going)
    configure(music)
    assert cycle(stack, mutopia.SOURCE) == {"pieces": ["published"], "scores": ["published"]}
    assert {"429", "503", "cut"} <= set(music.met)
    assert music.coming == music.going == []
    assert {f"[{number}]" for number in stayed} <= current(stack, "mutopia_pieces").keys()  # none was missed
    cycle(stack, mutopia.SOURCE)  # what went after it was listed, and what came before where we were
    same_pieces(stack, music)
    same_midi(stack, music)


def test_a_listing_that_loses_pieces_while_it_is_read_is_read_again_from_before(stack: Stack, music: Mutopia) -> None:
    ordered = sorted(music.pieces.values(), key=lambda one: one.place)
    music.going = [one.number for one in ordered[:3]]
    stayed = music.pieces.keys() - set(music.going)
    configure(music)
    cycle(stack, mutopia.SOURCE, **ONLY)
    assert music.going == []
    starts = [int(params["startat"]) for path, params in music.requests if "make-table" in path]
    assert starts != sorted(starts)  # it went back
    assert {f"[{number}]" for number in stayed} <= current(stack, "mutopia_pieces").keys()
    assert len(music.asked("piece-info")) == len(set(music.asked("piece-info")))


def test_a_second_run_asks_for_the_listing_only_and_finds_nothing_new(stack: Stack, music: Mutopia) -> None:
    configure(music)
    cycle(stack, mutopia.SOURCE)
    same_pieces(stack, music)
    same_midi(stack, music)
    music.requests.clear()
    assert cycle(stack, mutopia.SOURCE) == {}
    assert len(music.asked("make-table")) == 4
    assert music.asked("piece-info") == music.asked("/ftp/") == music.asked("calendar") == []
    assert query(stack, "select count(*) from ops.frontier") == query(stack, "select count(*) from ops.crawl") == [(0,)]


def test_a_replay_asks_nobody_and_gives_the_same_tables(stack: Stack, music: Mutopia) -> None:
    configure(music)
    cycle(stack, mutopia.SOURCE)
    music.requests.clear()
    settings = stack.settings("loader")
    assert pipeline.replay(mutopia.SOURCE, settings, say=print) == [1, 2]
    same_pieces(stack, music)
    same_midi(stack, music)
    assert music.requests == []
    assert cycle(stack, mutopia.SOURCE) == {}


def test_changes_come_as_versions_and_a_licence_that_moved_on_is_one(stack: Stack, music: Mutopia) -> None:
    configure(music)
    cycle(stack, mutopia.SOURCE)
    numbers = sorted(music.pieces)
    edited, went = music.pieces[numbers[3]], numbers[5]
    licence = next(name for name in sorted(site.LICENCES) if name != edited.licence)
    music.pieces[edited.number] = replace(edited, licence=licence, updated=(2024, 1, 31), files=2)
    del music.pieces[went]
    music.pieces[2600] = site.piece(2600)
    music.requests.clear()
    assert cycle(stack, mutopia.SOURCE) == {"pieces": ["published"], "scores": ["published"]}
    same_pieces(stack, music)
    same_midi(stack, music)
    assert len(music.asked("piece-info")) == 3  # the edited one, the new one, and: is it really gone?
    history = query(
        stack, f"select licence from raw.mutopia_pieces where piece_id = {edited.number} order by _load, _position"
    )
    assert history == [(edited.licence,), (licence,)]


def test_an_edition_whose_music_is_not_to_be_had_leaves_the_one_before(stack: Stack, music: Mutopia) -> None:
    configure(music)
    cycle(stack, mutopia.SOURCE)
    before, answer = current(stack, SCORES), music.answer
    edited = music.pieces[min(music.pieces)]
    music.pieces[edited.number] = replace(edited, updated=(2024, 1, 31))

    def torn(path: str, params: dict[str, str]) -> Reply:
        return Reply(404, b"", "text/html") if path.endswith((".mid", ".zip")) else answer(path, params)

    music.answer = torn  # type: ignore[method-assign]
    with suppress(Problem):
        cycle(stack, mutopia.SOURCE)
    assert current(stack, SCORES) == before
    assert any("answered 404" in reason for (reason,) in query(stack, "select reason from ops.quarantine"))


@pytest.mark.parametrize(
    ("changed", "says"),
    [("rows", "make-table.cgi?startat=0&Composer=&Instrument=&Style= has not"), ("next", "has no link Next")],
)
def test_a_listing_whose_markup_changed_fails_the_crawl(stack: Stack, music: Mutopia, changed: str, says: str) -> None:
    configure(music)
    music.changed = changed
    with pytest.raises(Problem) as raised:
        cycle(stack, mutopia.SOURCE)
    assert says in raised.value.what
    assert "markup" in raised.value.remedy
    assert query(stack, "select count(*) from ops.load") == [(0,)]
    music.changed = ""  # it was a bad day of theirs
    assert cycle(stack, mutopia.SOURCE, **ONLY) == {"pieces": ["published"]}
    same_pieces(stack, music)


@pytest.mark.parametrize(
    ("changed", "says"), [("piece", "has not a heading, a table with"), ("licence", "licence is missing")]
)
def test_pages_of_pieces_whose_markup_changed_are_a_rejected_load(
    stack: Stack, music: Mutopia, changed: str, says: str
) -> None:
    configure(music)
    cycle(stack, mutopia.SOURCE, **ONLY)
    before = current(stack, "mutopia_pieces")
    music.changed = changed
    for number in sorted(music.pieces)[:4]:
        music.pieces[number] = replace(music.pieces[number], updated=(2024, 2, 2))
    assert cycle(stack, mutopia.SOURCE, **ONLY) == {"pieces": ["rejected"]}
    assert current(stack, "mutopia_pieces") == before
    assert [says in reason for (reason,) in query(stack, "select reason from ops.quarantine")] == [True] * 4
    music.changed = ""
    assert cycle(stack, mutopia.SOURCE, **ONLY) == {"pieces": ["published"]}
    same_pieces(stack, music)


def test_a_piece_that_cannot_be_had_is_in_quarantine_and_the_others_are_here(stack: Stack, music: Mutopia) -> None:
    lost, without = sorted(music.pieces)[7], sorted(music.pieces)[8]
    music.lost, music.without = {lost}, {music.pieces[without].midi}
    configure(music)
    assert cycle(stack, mutopia.SOURCE) == {"pieces": ["published"], "scores": ["published"]}
    assert query(stack, "select resource, reason from ops.quarantine order by 1") == [
        ("pieces", "answered 404"),
        ("scores", "answered 404"),
    ]
    assert len(current(stack, "mutopia_pieces")) == 33
    music.requests.clear()
    assert cycle(stack, mutopia.SOURCE) == {}  # nothing new: it is in quarantine already
    assert music.asked("/ftp/") == []  # for a week


def test_robots_txt_is_obeyed(stack: Stack, music: Mutopia) -> None:
    configure(music)
    music.robots = Reply(200, b"User-agent: lyrebird\nDisallow: /cgibin/make-table.cgi\n", "text/plain")
    with pytest.raises(Problem, match=r"is forbidden by robots\.txt"):
        cycle(stack, mutopia.SOURCE, **ONLY)
    assert music.asked("cgibin") == []
    music.robots = Reply(200, b"User-agent: *\nDisallow: /ftp/\n", "text/plain")
    cycle(stack, mutopia.SOURCE, **ONLY)
    same_pieces(stack, music)
    assert cycle(stack, mutopia.SOURCE, resources=["scores"]) == {"scores": ["rejected"]}
    assert music.asked("/ftp/") == []
    assert query(stack, "select distinct reason from ops.quarantine") == [("is forbidden by robots.txt",)]


def test_a_robots_txt_that_cannot_be_had_forbids_everything_until_it_can(stack: Stack, music: Mutopia) -> None:
    configure(music)
    allowed, music.robots = music.robots, Reply(500, b"", "text/html")
    with pytest.raises(Problem, match=r"has a robots\.txt that cannot be had"):
        cycle(stack, mutopia.SOURCE, **ONLY)
    assert music.asked("cgibin") == []
    music.robots = Reply(404, b"Disallow: /", "text/html")  # there is none
    cycle(stack, mutopia.SOURCE, **ONLY)
    same_pieces(stack, music)
    assert allowed.status == 200


def test_a_listing_without_end_is_cut_off_and_links_into_a_trap_are_not_followed(stack: Stack, music: Mutopia) -> None:
    configure(music, most_pages=60)
    music.endless = True
    with pytest.raises(Problem) as raised:
        cycle(stack, mutopia.SOURCE)
    assert "lead to more than 60 others" in raised.value.what
    assert len(music.requests) < 70
    assert music.asked("calendar") == []


def test_private_addresses_are_refused_by_name_by_number_and_behind_a_redirect(stack: Stack, music: Mutopia) -> None:
    port = music.url.rsplit(":", 1)[1]
    for url in (f"http://localhost:{port}", music.url):
        configure(music, url=url, allowed_hosts=[])
        with pytest.raises(Problem) as raised:
            cycle(stack, mutopia.SOURCE, **ONLY)
        assert "robots.txt" in raised.value.what or "private address" in raised.value.what
    assert music.requests == []
    with Mutopia([]).serving() as inside:
        configure(music)
        music.moved = inside.url
        assert cycle(stack, mutopia.SOURCE, **ONLY) == {"pieces": ["rejected"]}
        assert inside.requests == []
    (reason,) = {reason for (reason,) in query(stack, "select reason from ops.quarantine")}
    assert "private address" in reason


def test_endless_files_and_bombs_are_cut_off_and_the_rest_is_here(stack: Stack, music: Mutopia) -> None:
    big, packed = (music.pieces[number] for number in sorted(music.pieces)[:2])
    answer = music.answer
    with hostile_server.serve() as hostile:
        hostile.on("/big", hostile_server.endless(hostile_server.head(Content_Type="audio/midi")))
        hostile.on("/bomb", hostile_server.answer(hostile_server.bomb(200), Content_Encoding="gzip"))
        led = {f"/ftp/{big.midi}": f"{hostile.url}/big", f"/ftp/{packed.midi}": f"{hostile.url}/bomb"}

        def lead(path: str, params: dict[str, str]) -> Reply:
            return Reply(302, b"", "text/html", {"Location": led[path]}) if path in led else answer(path, params)

        music.answer = lead  # type: ignore[method-assign]
        configure(music, allowed_hosts=[music.host, hostile.host])
        assert cycle(stack, mutopia.SOURCE)["pieces"] == ["published"]
    reasons = query(stack, "select payload::jsonb ->> 'piece_id', reason from ops.quarantine order by id")
    assert [int(number) for number, _ in reasons] == [big.number, packed.number]
    assert "more bytes than are allowed" in reasons[0][1]
    paths = {path for (path,) in query(stack, f"select path from raw.{SCORES}")}
    assert len(paths) == sum(one.files for one in music.pieces.values()) - big.files - packed.files


def packed(body: bytes) -> bytes:
    return gzip.compress(body, mtime=0)


HOSTILE_PAGES: dict[str, hostile_server.Deed] = {
    "busy": hostile_server.answer(status=503),
    "gzip cut off": hostile_server.answer(packed(bytes(range(256)) * 99)[:-20], Content_Encoding="gzip"),
    "gzip cut to nothing": hostile_server.answer(b"", Content_Encoding="gzip"),
    "gzip damaged": hostile_server.answer(packed(b"x" * 999)[:-8] + bytes(8), Content_Encoding="gzip"),
    "no gzip": hostile_server.answer(b"<html>", Content_Encoding="gzip"),
    "shorter than it says": hostile_server.answer(b"<html>", Content_Length=99),
    "slow": hostile_server.trickle(hostile_server.head(Content_Type="text/html"), b"x", 0.1),
}


@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=[pytest.mark.long] if fault == "slow" else []) for fault in HOSTILE_PAGES]
)
def test_one_hostile_page_keeps_no_other_from_coming(stack: Stack, fault: str) -> None:
    """It is asked for first, never taken for whole, and left to the next crawl, where it is not one of many."""
    books = Encyclopedia(map(wiki.article, BIRDS))
    first, *others = sorted(BIRDS)
    with hostile_server.serve() as server:
        books.url = server.url
        for species in BIRDS:
            path = f"/wiki/{species.replace(' ', '_')}"
            page = hostile_server.answer(
                packed(books.answer(path, {}).body), Content_Encoding="gzip", Content_Type="text/html"
            )
            server.on(path, page if species in others else HOSTILE_PAGES[fault])
        values = {"url": f"{server.url}/wiki", "species": BIRDS, "rest_hours": 0, "allowed_hosts": [server.host]}
        lines = ["[sources.species_accounts]", *(f"{name} = {json.dumps(value)}" for name, value in values.items())]
        options_file().write_text("\n".join(lines) + "\n")
        assert cycle(stack, species_accounts.SOURCE) == {"species_accounts": ["published"]}
        assert current(stack, "species_accounts") == {
            species: wiki.expected(books.articles[species], server.url) for species in others
        }
        asked = [one for one in server.asked if one.path.endswith(first.replace(" ", "_"))]
        assert len(asked) == TRIES
        assert {one.headers["accept-encoding"] for one in asked} == {"gzip"}
        path = f"/wiki/{first.replace(' ', '_')}"
        server.on(path, hostile_server.answer(books.answer(path, {}).body, Content_Type="text/html"))
        cycle(stack, species_accounts.SOURCE)  # what was damaged was not kept in the cache
        assert current(stack, "species_accounts").keys() == set(BIRDS)


def test_a_piece_that_is_never_to_be_had_is_in_quarantine_and_the_others_are_here(stack: Stack, music: Mutopia) -> None:
    lost = min(music.pieces)
    answer = music.answer

    def busy(path: str, params: dict[str, str]) -> Reply:
        return Reply(503, b"", "text/html") if params.get("id") == str(lost) else answer(path, params)

    music.answer = busy  # type: ignore[method-assign]
    configure(music)
    assert cycle(stack, mutopia.SOURCE, **ONLY) == {"pieces": ["published"]}
    assert query(stack, "select reason from ops.quarantine") == [("answered 503",)]
    assert current(stack, "mutopia_pieces").keys() == {f"[{number}]" for number in music.pieces if number != lost}


def test_a_redirect_that_goes_round_ends(stack: Stack, music: Mutopia) -> None:
    configure(music)
    music.moved = music.url
    assert cycle(stack, mutopia.SOURCE, **ONLY) == {"pieces": ["rejected"]}
    assert len(music.asked("piece-info")) <= 6 * 34


def test_two_crawls_at_once_keep_the_rate_of_one(
    stack: Stack, music: Mutopia, birds: Encyclopedia, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ask the same host, from processes of their own."""
    import time

    times: list[float] = []
    answer = music.answer

    def timed(path: str, params: dict[str, str]) -> Reply:
        times.append(time.monotonic())
        if path.startswith("/wiki/"):
            return birds.answer(path, params)
        return answer(path, params)

    monkeypatch.setattr(music, "answer", timed)
    host = f'allowed_hosts = ["{music.host}"]\nrate = "8/second"\nrest_hours = 0\n'
    options_file().write_text(
        f'[sources.mutopia]\nurl = "{music.url}"\n{host}'
        f'[sources.species_accounts]\nurl = "{music.url}/wiki"\nspecies = {json.dumps(list(BIRDS))}\n{host}'
    )
    settings = stack.settings("loader")
    crawls = [
        threading.Thread(target=pipeline.ingest, args=(source, settings), kwargs={"say": lambda text: None})
        for source in (mutopia.SOURCE, species_accounts.SOURCE)
    ]
    for one in crawls:
        one.start()
    for one in crawls:
        one.join()
    assert len(times) > 60
    assert max(sum(0 <= other - at < 0.9 for other in times) for at in times) <= 8 + 1


def test_a_slow_site_is_asked_more_slowly(stack: Stack, music: Mutopia) -> None:
    """As slowly as it answers (AutoThrottle), though the rate is free and two requests might be under way."""
    music.pieces = dict([*music.pieces.items()][:12])
    music.latency = 0.4
    configure(music)
    assert cycle(stack, mutopia.SOURCE, **ONLY) == {"pieces": ["published"]}
    gaps = [later - before for before, later in itertools.pairwise(music.arrived[-9:])]
    assert statistics.median(gaps) > 0.3


def test_articles_become_documents_with_licence_and_attribution(stack: Stack, birds: Encyclopedia) -> None:
    birds.faulty, birds.every = True, 1
    configure(birds, species=[*BIRDS, "Anser fictus"])
    assert cycle(stack, species_accounts.SOURCE) == {"species_accounts": ["published"]}
    assert {"429", "503", "cut"} <= set(birds.met)
    wanted = {species: wiki.expected(one, birds.url) for species, one in birds.articles.items()}
    assert current(stack, "species_accounts") == wanted
    found = Documents(stack.settings("loader")).database["species_accounts"].find()
    assert {one["key"]: one["doc"] for one in found} == wanted
    assert cycle(stack, species_accounts.SOURCE) == {}


def test_an_article_that_changed_is_a_version_and_one_that_is_gone_is_gone(stack: Stack, birds: Encyclopedia) -> None:
    configure(birds, species=list(BIRDS))
    cycle(stack, species_accounts.SOURCE)
    birds.noise = True  # other bytes, and the same article
    assert cycle(stack, species_accounts.SOURCE) == {}
    birds.articles[BIRDS[1]] = replace(birds.articles[BIRDS[1]], revision=5, lead="Rewritten.")
    del birds.articles[BIRDS[2]]
    assert cycle(stack, species_accounts.SOURCE) == {"species_accounts": ["published"]}
    assert current(stack, "species_accounts") == {
        species: wiki.expected(one, birds.url) for species, one in birds.articles.items()
    }
    assert query(stack, "select count(*) from raw.species_accounts") == [(7,)]


def test_pages_that_have_not_changed_are_not_sent_again(stack: Stack) -> None:
    with hostile_server.serve() as server:
        books = Encyclopedia([wiki.article(BIRDS[0])])
        books.url = server.url
        server.on("/wiki/Turdus_merula", hostile_server.File(books.answer("/wiki/Turdus_merula", {}).body))
        values = {"url": f"{server.url}/wiki", "species": [BIRDS[0]], "rest_hours": 0, "allowed_hosts": [server.host]}
        lines = ["[sources.species_accounts]", *(f"{name} = {json.dumps(value)}" for name, value in values.items())]
        options_file().write_text("\n".join(lines) + "\n")
        assert cycle(stack, species_accounts.SOURCE) == {"species_accounts": ["published"]}
        assert cycle(stack, species_accounts.SOURCE) == {}
        first, second = (one for one in server.asked if one.path == "/wiki/Turdus_merula")
    assert "if-none-match" not in first.headers
    assert second.headers["if-none-match"] == '"v1"'
    assert current(stack, "species_accounts") == {BIRDS[0]: wiki.expected(books.articles[BIRDS[0]], server.url)}


def test_an_address_with_no_article_at_all_is_loud(stack: Stack, birds: Encyclopedia) -> None:
    configure(birds, species=list(BIRDS))
    assert cycle(stack, species_accounts.SOURCE) == {"species_accounts": ["published"]}
    birds.articles.clear()  # the site has moved
    for _ in range(2):
        with pytest.raises(Problem, match=r"has an article about none of 5 species.*Correct the option `url`"):
            cycle(stack, species_accounts.SOURCE)
    assert current(stack, "species_accounts").keys() == set(BIRDS)


@pytest.mark.parametrize(("changed", "says"), [("box", "has not a taxonomy box"), ("licence", "licence is missing")])
def test_articles_whose_markup_changed_are_a_rejected_load(
    stack: Stack, birds: Encyclopedia, changed: str, says: str
) -> None:
    configure(birds, species=list(BIRDS))
    birds.changed = changed
    assert cycle(stack, species_accounts.SOURCE) == {"species_accounts": ["rejected"]}
    assert all(says in reason for (reason,) in query(stack, "select reason from ops.quarantine"))
    birds.changed = ""
    assert cycle(stack, species_accounts.SOURCE) == {"species_accounts": ["published"]}


def test_species_are_those_of_the_recordings_that_are_here(stack: Stack, birds: Encyclopedia) -> None:
    query(
        stack,
        """
        create table raw.xeno_canto_recordings (_load bigint, doc jsonb);
        insert into raw.xeno_canto_recordings values
            (1, '{"gen": "Turdus", "sp": "merula"}'), (1, '{"gen": "Mystery", "sp": "mystery"}'),
            (1, '{"gen": "Larus", "sp": "sp."}'), (2, '{"gen": "Parus", "sp": "major"}');
        insert into ops.load (source, load, resource, state, pages, rows, versions, quarantined, bytes, fetched_at)
        values ('xeno_canto', 1, 'recordings', 'published', 1, 1, 1, 0, 1, now()),
               ('xeno_canto', 2, 'recordings', 'rejected', 1, 1, 1, 0, 1, now());
        select 1
        """,
    )
    configure(birds)
    cycle(stack, species_accounts.SOURCE)
    assert sorted(birds.asked("/wiki/")) == ["/wiki/Mystery_mystery", "/wiki/Turdus_merula"]
    assert current(stack, "species_accounts").keys() == {"Turdus merula"}


@pytest.mark.parametrize("source", [mutopia.SOURCE, species_accounts.SOURCE], ids=lambda source: source.name)
def test_without_an_address_nobody_is_asked(stack: Stack, source: Source) -> None:
    options_file().unlink(missing_ok=True)
    assert cycle(stack, source) == {}
    assert query(stack, "select count(*) from ops.crawl") == [(0,)]


def test_no_other_crawl_is_begun_for_a_while(stack: Stack, music: Mutopia) -> None:
    configure(music, rest_hours=12)
    cycle(stack, mutopia.SOURCE, **ONLY)
    music.requests.clear()
    assert cycle(stack, mutopia.SOURCE, **ONLY) == {}
    assert music.requests == []
    configure(music, rest_hours=12, composer="BachJS")  # another question
    cycle(stack, mutopia.SOURCE, **ONLY)
    assert music.asked("Composer=BachJS")
    same_pieces(stack, music)  # what was not asked about is not gone


@pytest.mark.long  # that pieces reach the marts is seen in test_lineage_sources too
def test_what_was_scraped_reaches_the_models(stack: Stack, music: Mutopia, birds: Encyclopedia) -> None:
    """MIDI becomes pieces of the training mart, with its licences; articles are rows to read."""
    configure(birds, species=list(BIRDS))
    cycle(stack, species_accounts.SOURCE)
    configure(music)
    cycle(stack, mutopia.SOURCE)
    assert cycle(stack, notes.SOURCE) == {"pieces": ["published"], "notes": ["published"]}
    pipeline.make_tables(catalogue.sources(), stack.settings("loader"))
    for domain, steps in (("music", ("core", "splits", "marts")), ("birds", ("core",))):
        for step in steps:
            transforming.run(domain, step, stack.settings("transformer"), retry=False, say=lambda text: None)
    mart = "marts_next_music.mart_music_training_pieces"
    shown = query(stack, f"select piece_id, licence, title from {mart} where source = 'mutopia'", "transformer")
    files = current(stack, SCORES)
    excluded = query(stack, "select key from marts_next_music.fct_music_training_exclusions", "transformer")
    assert {key for key, *_ in shown} | {key for (key,) in excluded} == {f"mutopia/{path}" for path in files}
    assert {licence for _, licence, _ in shown} == {"public-domain", "CC-BY-SA", "CC-BY"}
    assert {title for _, _, title in shown} <= {row["title"] for row in files.values()}
    found = query(
        stack,
        "select scientific_name, family, licence, attribution from staging.stg_species_accounts__accounts order by 1",
        "transformer",
    )
    wanted = [wiki.expected(birds.articles[name], birds.url) for name in sorted(BIRDS)]
    assert found == [
        (one["species"], birds.articles[one["species"]].family, one["licence"], one["attribution"]) for one in wanted
    ]
    pieces = query(stack, "select count(*), count(licence_url) from staging.stg_mutopia__pieces", "transformer")
    assert pieces == [(len(music.pieces), len(music.pieces))]
