"""Tatoeba, manythings.org, MAESTRO and MIDI archives on real stores, through doubles that misbehave.

With LYREBIRD_LIVE=1 the contract is also tried on the real files: half a gigabyte of them.
"""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import closing
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from upstreams import hostile_server
from upstreams import maestro as maestro_double
from upstreams import manythings as manythings_double
from upstreams import tatoeba as tatoeba_double
from upstreams.live import LIVE

from infra import transforming
from ingestion import catalogue, forgetting, locations, paging, pipeline, trouble
from ingestion.contract import Source
from ingestion.derive import notes
from ingestion.sources import maestro, manythings, midi_archive, tatoeba
from storage import warehouse
from storage.errors import Problem
from storage.objects import Objects
from storage.settings import options_file

if TYPE_CHECKING:
    from support import Stack
    from upstreams.faulty_server import FaultyServer

LANGUAGES = ["eng", "deu", "rus"]
QUIET = {"say": lambda text: None}
UPSTREAMS = ["double", *LIVE]
STAGES = ["fetched", "before seal", "sealed", "copied", "before commit", "committed"]


class Killed(BaseException):
    """Somebody ends the process."""


@pytest.fixture(autouse=True)
def empty(stack: Stack) -> Iterator[None]:
    yield
    stack.reset()


@pytest.fixture
def exports() -> Iterator[tatoeba_double.Tatoeba]:
    with tatoeba_double.Tatoeba(*tatoeba_double.made(600)).serving() as server:
        assert isinstance(server, tatoeba_double.Tatoeba)
        yield server


@pytest.fixture
def picked() -> Iterator[manythings_double.Manythings]:
    with manythings_double.Manythings(manythings_double.made(40)).serving() as server:
        assert isinstance(server, manythings_double.Manythings)
        yield server


@pytest.fixture
def release() -> Iterator[maestro_double.Maestro]:
    with maestro_double.Maestro(maestro_double.made(40)).serving() as server:
        assert isinstance(server, maestro_double.Maestro)
        yield server


def query(stack: Stack, text: str, role: Any = "loader") -> list[tuple[Any, ...]]:
    with closing(warehouse.connect(stack.settings(role))) as db, db, db.cursor() as sql:
        sql.execute(text)
        return sql.fetchall()


def configure(**options: dict[str, Any]) -> None:
    """Options of sources, as a person sets them."""
    parts = []
    for source, given in options.items():
        lines = [f"{name} = {_toml(value)}" for name, value in given.items()]
        parts.append("\n".join([f"[sources.{source}]", *lines]))
    options_file().write_text("\n\n".join(parts))


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {json.dumps(one)}" for name, one in value.items()) + "}"
    return json.dumps(value)


def at(server: FaultyServer, path: str, **more: Any) -> dict[str, Any]:
    return {"location": f"{server.url}{path}"} | more


def cycle(stack: Stack, source: Source, **given: Any) -> dict[str, list[str]]:
    """Ingest and judge; the states of the loads, by resource."""
    settings = stack.settings("loader")
    report = pipeline.ingest(source, settings, **QUIET, **given)
    found: dict[str, list[str]] = {}
    for load, (state, reason) in pipeline.judge(source, settings, **QUIET).items():
        assert state == "published" or reason
        found.setdefault(report.loads[load]["resource"] if load in report.loads else "?", []).append(state)
    return found


def current(stack: Stack, table: str) -> dict[str, dict[str, Any]]:
    """Key -> data of the current version in published loads."""
    source = next(name for name in sorted(catalogue.names(), key=len, reverse=True) if table.startswith(name))
    rows = query(
        stack,
        f"select _key, to_jsonb(c) from (select distinct on (r._key) r.* from raw.{table} as r join ops.load as l "
        f"on l.source = '{source}' and l.load = r._load and l.state = 'published' "
        "order by r._key, r._load desc, r._position desc) as c where not _deleted",
    )
    return {key: {name: one for name, one in row.items() if not name.startswith("_")} for key, row in rows}


def versions(stack: Stack, table: str) -> dict[str, int]:
    return dict(query(stack, f"select _key, count(*) from raw.{table} group by _key"))


def landed(stack: Stack) -> set[str]:
    return set(Objects(stack.settings("loader")).list("landing"))


def as_sentences(rows: dict[int, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {f"[{number}]": row for number, row in rows.items()}


def as_pairs(pairs: set[tuple[int, int]]) -> set[str]:
    return {f"[{one}, {other}]" for one, other in pairs}


# --- Tatoeba


def test_misbehaving_exports_give_the_same_tables_as_quiet_ones(stack: Stack, exports: tatoeba_double.Tatoeba) -> None:
    exports.faulty = False
    configure(tatoeba=at(exports, "/exports/", languages=LANGUAGES))
    assert cycle(stack, tatoeba.SOURCE) == {"sentences": ["published"], "links": ["published"]}
    quiet = current(stack, "tatoeba_sentences"), current(stack, "tatoeba_links")
    assert quiet[0] == as_sentences(exports.rows(LANGUAGES))
    assert quiet[1].keys() == as_pairs(exports.pairs(LANGUAGES)) != set()
    stack.reset()
    exports.faulty, exports.every = True, 1
    configure(tatoeba=at(exports, "/exports/", languages=LANGUAGES))
    cycle(stack, tatoeba.SOURCE)
    assert {"429", "503", "cut"} <= set(exports.met)
    assert (current(stack, "tatoeba_sentences"), current(stack, "tatoeba_links")) == quiet
    assert set(versions(stack, "tatoeba_sentences").values()) == {1}


def test_an_unchanged_week_does_nothing_and_a_new_one_brings_what_changed(
    stack: Stack, exports: tatoeba_double.Tatoeba
) -> None:
    configure(tatoeba=at(exports, "/exports/", languages=LANGUAGES))
    cycle(stack, tatoeba.SOURCE)
    asked, before = len(exports.requests), landed(stack)
    assert cycle(stack, tatoeba.SOURCE) == {}
    assert len(exports.requests) == asked and landed(stack) == before  # the heads of answers were enough

    spoken = [one for one in exports.sentences if one.language in LANGUAGES]
    spoken[0].text, spoken[1].member = "Another text.", "somebody"
    exports.sentences.remove(spoken[2])
    exports.links = exports.links[5:]
    exports.renew()
    cycle(stack, tatoeba.SOURCE)
    assert current(stack, "tatoeba_sentences") == as_sentences(exports.rows(LANGUAGES))
    assert current(stack, "tatoeba_links").keys() == as_pairs(exports.pairs(LANGUAGES))
    counted = versions(stack, "tatoeba_sentences")
    assert [counted[f"[{one.number}]"] for one in spoken[:4]] == [2, 2, 2, 1]

    others = ["deu", "eng", "fra"]  # another list, another order: the same files
    configure(tatoeba=at(exports, "/exports/", languages=others))
    assert cycle(stack, tatoeba.SOURCE) == {"sentences": ["published"], "links": ["published"]}
    assert current(stack, "tatoeba_sentences") == as_sentences(exports.rows(others))
    assert current(stack, "tatoeba_links").keys() == as_pairs(exports.pairs(others))
    tables = [current(stack, table) for table in ("tatoeba_sentences", "tatoeba_links")]
    pipeline.replay(tatoeba.SOURCE, stack.settings("loader"), **QUIET)
    assert [current(stack, table) for table in ("tatoeba_sentences", "tatoeba_links")] == tables


def test_links_wait_for_sentences_when_a_withdrawal_took_their_export(
    stack: Stack, exports: tatoeba_double.Tatoeba
) -> None:
    """The export of the week before is here, and would make links to sentences that are no more."""
    configure(tatoeba=at(exports, "/exports/", languages=LANGUAGES))
    cycle(stack, tatoeba.SOURCE)
    one, two, *_ = (one for one in exports.sentences if one.language in LANGUAGES)
    one.member = "withdrawn"
    exports.sentences.remove(two)
    exports.renew()
    cycle(stack, tatoeba.SOURCE)
    forgetting.forget(tatoeba.SOURCE, stack.settings("admin"), [], where=[("contributor", "withdrawn")], **QUIET)
    before = current(stack, "tatoeba_links")
    assert cycle(stack, tatoeba.SOURCE) == {}
    assert current(stack, "tatoeba_links") == before

    exports.links = exports.links[5:]
    exports.sentences.remove(next(other for other in exports.sentences if other.member == "CK"))
    exports.renew()
    assert cycle(stack, tatoeba.SOURCE) == {"sentences": ["published"], "links": ["published"]}
    assert current(stack, "tatoeba_sentences").keys() == as_sentences(exports.rows(LANGUAGES)).keys() - {
        f"[{one.number}]"
    }


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("time", [1, 2])
def test_killed_anywhere_and_run_again_gives_the_same_tables(
    stack: Stack, exports: tatoeba_double.Tatoeba, stage: str, time: int
) -> None:
    """The first time among the sentences, the second among the links (or their second page)."""
    configure(tatoeba=at(exports, "/exports/", languages=LANGUAGES))
    reached: list[str] = []

    def kill(now: str) -> None:
        reached.append(now)
        if now == stage and reached.count(stage) == time:
            raise Killed

    with pytest.raises(Killed):
        pipeline.ingest(tatoeba.SOURCE, stack.settings("loader"), **QUIET, reached=kill)
    cycle(stack, tatoeba.SOURCE)
    assert current(stack, "tatoeba_sentences") == as_sentences(exports.rows(LANGUAGES))
    assert current(stack, "tatoeba_links").keys() == as_pairs(exports.pairs(LANGUAGES))
    assert set(versions(stack, "tatoeba_sentences").values()) == {1} == set(versions(stack, "tatoeba_links").values())
    assert cycle(stack, tatoeba.SOURCE) == {}


def test_a_damaged_export_changes_nothing_and_says_so(stack: Stack, exports: tatoeba_double.Tatoeba) -> None:
    configure(tatoeba=at(exports, "/exports/", languages=LANGUAGES))
    cycle(stack, tatoeba.SOURCE)
    before = current(stack, "tatoeba_sentences")
    name = f"/exports/{tatoeba.DETAILED}"
    whole = exports.exports[name]
    exports.exports[name] = whole[: len(whole) // 2]
    with pytest.raises(Problem, match=r"sentences_detailed\.tar\.bz2 is damaged"):
        cycle(stack, tatoeba.SOURCE)
    assert current(stack, "tatoeba_sentences") == before
    exports.exports[name] = whole
    assert cycle(stack, tatoeba.SOURCE) == {}


def test_lines_that_keep_to_nothing_go_to_quarantine(stack: Stack, exports: tatoeba_double.Tatoeba) -> None:
    exports.broken = tatoeba_double.BROKEN
    exports.renew()
    configure(tatoeba=at(exports, "/exports/", languages=LANGUAGES))
    assert cycle(stack, tatoeba.SOURCE, resources=["sentences"]) == {"sentences": ["published"]}
    assert current(stack, "tatoeba_sentences") == as_sentences(exports.rows(LANGUAGES))
    assert len(query(stack, "select * from ops.quarantine")) == len(exports.broken)


# --- manythings.org


def pairs_of(server: manythings_double.Manythings, languages: list[str]) -> dict[str, dict[str, Any]]:
    return {
        json.dumps([one.language, one.sentence, one.other]): one.row()
        for one in server.pairs
        if one.language in languages
    }


def test_pairs_come_and_go_with_their_files(stack: Stack, picked: manythings_double.Manythings) -> None:
    picked.every, picked.times = 1, 3
    configure(manythings=at(picked, "/anki/", languages=["deu", "rus"]))
    assert cycle(stack, manythings.SOURCE) == {"pairs": ["published"]}
    assert {"429", "503", "cut"} <= set(picked.met)
    assert current(stack, "manythings_pairs") == pairs_of(picked, ["deu", "rus"])
    asked, before = len(picked.requests), landed(stack)
    assert cycle(stack, manythings.SOURCE) == {}
    assert len(picked.requests) == asked and landed(stack) == before

    gone = next(one for one in picked.pairs if one.language == "rus")
    picked.pairs.remove(gone)
    assert cycle(stack, manythings.SOURCE) == {"pairs": ["published"]}
    assert {path for path, _ in picked.requests[asked:]} == {"/anki/rus-eng.zip"}  # the other one is here
    assert current(stack, "manythings_pairs") == pairs_of(picked, ["deu", "rus"])
    counted = versions(stack, "manythings_pairs")
    assert {counted[key] for key in pairs_of(picked, ["deu", "rus"])} == {1}

    configure(manythings=at(picked, "/anki/", languages=["deu", "spa"]))
    cycle(stack, manythings.SOURCE)
    assert current(stack, "manythings_pairs") == pairs_of(picked, ["deu", "spa"])
    pipeline.replay(manythings.SOURCE, stack.settings("loader"), **QUIET)
    assert current(stack, "manythings_pairs") == pairs_of(picked, ["deu", "spa"])


def test_files_without_attribution_are_refused_whole(stack: Stack, picked: manythings_double.Manythings) -> None:
    picked.old = True
    configure(manythings=at(picked, "/anki/"))
    assert cycle(stack, manythings.SOURCE) == {"pairs": ["rejected"]}
    assert current(stack, "manythings_pairs") == {}


# --- MAESTRO and MIDI archives


def bundle(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, body in files.items():
            archive.writestr(zipfile.ZipInfo(name), body, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def tarball(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, body in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            archive.addfile(entry, io.BytesIO(body))
    return packed.getvalue()


def told(rows: dict[str, dict[str, Any]], names: Any) -> dict[str, dict[str, Any]]:
    return {key: {name: row[name] for name in names} for key, row in rows.items()}


def test_a_release_becomes_pieces_in_the_published_splits(stack: Stack, release: maestro_double.Maestro) -> None:
    release.every, release.times = 1, 3
    configure(maestro=at(release, "/magentadata/datasets/maestro/v3.0.0/"))
    assert cycle(stack, maestro.SOURCE) == {"scores": ["published"]}
    assert {"429", "503", "cut"} <= set(release.met)
    wanted = release.rows()
    found = current(stack, "maestro_scores")
    assert told(found, next(iter(wanted.values()))) == wanted
    for one in release.performances:
        sha256 = found[one.line["midi_filename"]]["sha256"]
        assert Objects(stack.settings("loader")).get("landing", f"maestro/scores/{sha256[:2]}/{sha256}") == one.body
    asked, before = len(release.requests), landed(stack)
    assert cycle(stack, maestro.SOURCE) == {}
    assert len(release.requests) == asked and landed(stack) == before

    assert cycle(stack, notes.SOURCE) == {"pieces": ["published"], "notes": ["published"]}
    pieces = current(stack, "notes_pieces")
    assert {key.removeprefix("maestro/"): piece["split"] for key, piece in pieces.items()} == {
        path: row["split"] for path, row in wanted.items()
    }
    assert {piece["licence"] for piece in pieces.values()} == {"CC BY-NC-SA 4.0"}
    assert {piece["composer"] for piece in pieces.values()} == set(maestro_double.COMPOSERS)
    assert len(current(stack, "notes")) == 24 * len(pieces)
    assert cycle(stack, notes.SOURCE) == {}

    changed, gone = release.performances[0], release.performances.pop()
    changed.body = maestro_double.tune(1_000, 10)
    cycle(stack, maestro.SOURCE)
    cycle(stack, notes.SOURCE)
    assert told(current(stack, "maestro_scores"), ["bytes"]) == told(release.rows(), ["bytes"])
    names = {key.removeprefix("maestro/") for key in current(stack, "notes_pieces")}
    assert names == release.rows().keys() and gone.line["midi_filename"] not in names
    assert len(current(stack, "notes")) == 24 * (len(names) - 1) + 10


@pytest.mark.parametrize("way", ["folder", "web", "s3"])
def test_midi_comes_from_anywhere_and_what_is_broken_is_named(stack: Stack, tmp_path: Path, way: str) -> None:
    tunes = {f"{number % 3}/tune {number}.mid": maestro_double.tune(number) for number in range(60)}
    broken = {"0/broken.mid": b"MThd" + bytes(40), "../slip.mid": maestro_double.tune(1)}
    files = {name: body for name, body in tunes.items() if name[0] != "2"}
    files["packed.zip"] = bundle({name: body for name, body in tunes.items() if name[0] == "2"} | broken)
    paths = {f"packed.zip/{name}" if name[0] == "2" else name for name in tunes} | {"packed.zip/0/broken.mid"}
    with placed(stack, way, tmp_path, files) as (options, change):
        configure(midi_archive=options | {"licence": "CC0"})
        assert cycle(stack, midi_archive.SOURCE) == {"scores": ["published"]}
        assert current(stack, "midi_archive_scores").keys() == paths
        reasons = query(stack, "select reason from ops.quarantine where source = 'midi_archive'")
        assert reasons == [("its name leads out of the archive",)]
        before = landed(stack)
        assert cycle(stack, midi_archive.SOURCE) == {} and landed(stack) == before

        assert cycle(stack, notes.SOURCE) == {"pieces": ["published"], "notes": ["published"]}
        assert len(current(stack, "notes_pieces")) == len(tunes)
        assert query(stack, "select distinct payload from ops.quarantine where source = 'notes'") == [
            ("packed.zip/0/broken.mid",)
        ]
        change("1/tune 1.mid", maestro_double.tune(500))
        change("0/tune 0.mid", None)
        change(
            "packed.zip",
            bundle({name: body for name, body in tunes.items() if name in ("2/tune 2.mid", "1/tune 4.mid")}),
        )
        counted = versions(stack, "midi_archive_scores")
        cycle(stack, midi_archive.SOURCE)
        now = current(stack, "midi_archive_scores").keys()
        left = {path for path in paths if not path.startswith("packed.zip")} - {"0/tune 0.mid"}
        assert now == left | {"packed.zip/2/tune 2.mid", "packed.zip/1/tune 4.mid"}
        after = versions(stack, "midi_archive_scores")
        assert {path for path in left if after[path] != counted[path]} == {"1/tune 1.mid"}
        assert cycle(stack, midi_archive.SOURCE) == {}
        cycle(stack, notes.SOURCE)
        assert {piece["path"] for piece in current(stack, "notes_pieces").values()} == now


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize("way", ["folder", "web", "s3"])
def test_an_archive_is_a_location_of_its_own(stack: Stack, tmp_path: Path, way: str, kind: str) -> None:
    """Of what lies beside it nothing is read; when it changes, what it holds does."""
    tunes = {f"{number % 3}/tune {number}.mid": maestro_double.tune(number) for number in range(12)}
    name, pack = f"my songs.{kind}", {"zip": bundle, "tar.gz": tarball}[kind]
    with placed(stack, way, tmp_path, {name: pack(tunes), "beside.mid": maestro_double.tune(99)}) as (options, change):
        where = f"{options['location'].rstrip('/')}/{name if way != 'web' else quote(name)}"
        configure(midi_archive=options | {"location": where})
        assert cycle(stack, midi_archive.SOURCE) == {"scores": ["published"]}
        found = current(stack, "midi_archive_scores")
        assert {key: one["bytes"] for key, one in found.items()} == {
            f"{name}/{path}": len(body) for path, body in tunes.items()
        }
        assert {one["corpus"] for one in found.values()} == {name}
        assert cycle(stack, midi_archive.SOURCE) == {}
        tunes["0/tune 0.mid"] = maestro_double.tune(500, 30)
        tunes.pop("1/tune 1.mid")
        change(name, pack(tunes))
        assert cycle(stack, midi_archive.SOURCE) == {"scores": ["published"]}
        assert current(stack, "midi_archive_scores").keys() == {f"{name}/{path}" for path in tunes}


def placed(stack: Stack, way: str, folder: Path, files: dict[str, bytes]) -> Any:
    """The files somewhere, as options; and a function that changes one of them, or removes it."""
    from contextlib import contextmanager

    from upstreams.file_server import serve

    root = folder / "midi"

    def change(name: str, body: bytes | None) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body) if body is not None else path.unlink()

    @contextmanager
    def on_disk() -> Iterator[Any]:
        for name, body in files.items():
            change(name, body)
        if way == "folder":
            yield {"location": str(root)}, change
            return
        with serve(folder) as url:
            yield {"location": f"{url}midi/"}, later(change)

    def later(change: Any) -> Any:
        """A web server tells times in seconds: a change within the same one is a change of size."""
        return change

    @contextmanager
    def in_bucket() -> Iterator[Any]:
        admin = stack.settings("admin")
        objects = Objects(admin)
        objects.client.create_bucket(Bucket="tunes")

        def put(name: str, body: bytes | None) -> None:
            if body is None:
                objects.delete("tunes", f"all/{name}")
            else:
                objects.put("tunes", f"all/{name}", body)

        for name, body in files.items():
            put(name, body)
        storage = {
            "endpoint": admin.s3_endpoint,
            "access_key": admin.s3_access_key,
            "secret_key": admin.s3_secret_key.get_secret_value(),
            "region": admin.s3_region,
        }
        try:
            yield {"location": "s3://tunes/all/", "storage": storage}, put
        finally:
            for key in list(objects.list("tunes")):
                objects.delete("tunes", key)
            objects.client.delete_bucket(Bucket="tunes")

    return in_bucket() if way == "s3" else on_disk()


def test_a_server_that_goes_away_keeps_what_had_come(stack: Stack, tmp_path: Path, monkeypatch: Any) -> None:
    from ingestion.locations import Location

    tunes = {f"{number:02}.mid": maestro_double.tune(number) for number in range(30)}
    with placed(stack, "folder", tmp_path, tunes) as (options, _):
        configure(midi_archive=options)
        read_each = Location.read_each

        def tire(self: Location, names: Any, most: int) -> Any:
            for number, one in enumerate(read_each(self, names, most)):
                yield one if number < 20 else (one[0], Problem("cannot read x: it has gone", "Wait"))

        with monkeypatch.context() as patch:
            patch.setattr(Location, "read_each", tire)
            assert cycle(stack, midi_archive.SOURCE) == {"scores": ["published"]}
        assert len(current(stack, "midi_archive_scores")) == 20
        assert cycle(stack, midi_archive.SOURCE) == {"scores": ["published"]}
        assert current(stack, "midi_archive_scores").keys() == tunes.keys()
        assert set(versions(stack, "midi_archive_scores").values()) == {1}


@pytest.mark.parametrize(
    ("name", "fault"),
    [(name, fault) for name in ("00.mid", "00.zip") for fault in ("slow", "led", "cut")] + [("00.mid", "endless")],
)
def test_one_hostile_file_keeps_no_other_from_coming(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, name: str, fault: str
) -> None:
    """It is the first of a few; it is noted in quarantine, and is tried again after a week."""
    monkeypatch.setattr("ingestion.web.TRIES", 2)
    monkeypatch.setattr(locations, "_seconds", lambda most: 1.0)
    monkeypatch.setattr(paging, "today", lambda: date(2024, 5, 10))
    head = partial(hostile_server.head, Content_Type="audio/midi", ETag='"1"')
    well = hostile_server.pieces(head(Content_Length=9))
    deed = {
        "endless": hostile_server.endless(head()),
        "slow": hostile_server.trickle(head(), b"x", 0.1),
        "led": hostile_server.answer(status=302, Location="http://10.0.0.1/x"),
        "cut": hostile_server.pieces(head(Content_Length=9), b"x"),
    }[fault]
    tunes = {f"{number:02}.mid": maestro_double.tune(number) for number in range(1, 4)}
    files = tunes | {"99.zip": bundle({"x.mid": maestro_double.tune(99)})}
    with hostile_server.serve() as server:
        links = "".join(f'<a href="{one}">x</a>' for one in [name, *files])
        server.on("/midi/", hostile_server.answer(links.encode(), Content_Type="text/html"))
        for one, body in files.items():
            server.on(f"/midi/{one}", hostile_server.File(body))
        server.on(f"/midi/{name}", well, deed)  # asked about, and then asked for
        configure(midi_archive={"location": f"{server.url}/midi/"})
        assert cycle(stack, midi_archive.SOURCE) == {"scores": ["published"]}
        assert current(stack, "midi_archive_scores").keys() == {*tunes, "99.zip/x.mid"}
        assert query(stack, "select payload::jsonb ->> 'path' from ops.quarantine") == [(name,)]
        server.on(f"/midi/{name}", well)
        server.asked.clear()
        assert cycle(stack, midi_archive.SOURCE) == {}
        assert [one.path for one in server.asked if one.path.endswith(name)] == [f"/midi/{name}"]  # about it only

        monkeypatch.setattr(paging, "today", lambda: date(2024, 5, 20))
        whole = maestro_double.tune(0) if name.endswith("mid") else bundle({"y.mid": maestro_double.tune(0)})
        server.on(f"/midi/{name}", well, hostile_server.File(whole, etag='"2"'))
        assert cycle(stack, midi_archive.SOURCE) == {"scores": ["published"]}
        assert len(current(stack, "midi_archive_scores")) == 5


def test_an_archive_without_midi_is_noted_and_left_alone(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "today", lambda: date(2024, 5, 10))
    (tmp_path / "texts.zip").write_bytes(bundle({"read.me": b"x"}))
    (tmp_path / "one.mid").write_bytes(maestro_double.tune(1))
    configure(midi_archive={"location": str(tmp_path)})
    assert cycle(stack, midi_archive.SOURCE) == {"scores": ["published"]}
    noted = query(stack, "select payload::jsonb ->> 'path', reason, counted from ops.quarantine")
    assert noted == [("texts.zip", "texts.zip holds no MIDI", False)]
    (tmp_path / "two.mid").write_bytes(maestro_double.tune(2))
    copied: list[str] = []
    fetch = locations.Location.fetch
    monkeypatch.setattr(locations.Location, "fetch", lambda *given: copied.append(given[1]) or fetch(*given))
    assert cycle(stack, midi_archive.SOURCE) == {"scores": ["published"]}
    assert current(stack, "midi_archive_scores").keys() == {"one.mid", "two.mid"} and not copied


def test_a_place_where_much_cannot_be_had_is_left_for_today(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trouble, "MOST", 3)
    (tmp_path / "one.mid").write_bytes(maestro_double.tune(1))
    for number in range(5):
        (tmp_path / f"{number}.zip").write_bytes(bundle({"read.me": b"x"}))
    configure(midi_archive={"location": str(tmp_path)})
    for noted in (3, 5):
        assert cycle(stack, midi_archive.SOURCE) == {"scores": ["published"]}
        assert query(stack, "select count(*) from ops.quarantine") == [(noted,)]
    assert cycle(stack, midi_archive.SOURCE) == {}


# --- to the marts


@pytest.mark.long  # that pairs and pieces reach the marts, on their terms, is seen in test_lineage_sources too
def test_pairs_and_pieces_reach_the_training_marts(
    stack: Stack,
    exports: tatoeba_double.Tatoeba,
    picked: manythings_double.Manythings,
    release: maestro_double.Maestro,
    tmp_path: Path,
) -> None:
    again = next(one for one in exports.rows(LANGUAGES).values() if one["language"] == "deu")
    english = next(one for one in exports.rows(LANGUAGES).values() if one["language"] == "eng")
    english["text"], again["text"] = " ".join(english["text"].split()), " ".join(again["text"].split())
    exports.links = sorted({*exports.links, (english["sentence_id"], again["sentence_id"])})
    exports.renew()
    picked.pairs.append(
        manythings_double.Pair(
            "deu", english["text"], again["text"], english["sentence_id"], "CK", again["sentence_id"], "Бoб"
        )
    )
    tunes = {f"{number}.mid": maestro_double.tune(2_000 + number) for number in range(20)}
    (tmp_path / "songs.zip").write_bytes(bundle(tunes))
    configure(
        tatoeba=at(exports, "/exports/", languages=LANGUAGES),
        manythings=at(picked, "/anki/", languages=["deu", "rus"]),
        maestro=at(release, "/magentadata/datasets/maestro/v3.0.0/"),
        midi_archive={"location": str(tmp_path), "corpus": "songs", "licence": "CC0"},
    )
    for source in (tatoeba, manythings, maestro, midi_archive, notes):
        assert {state for states in cycle(stack, source.SOURCE).values() for state in states} == {"published"}
    pipeline.make_tables(
        [one for one in catalogue.sources() if one.domain in ("text", "music")], stack.settings("loader")
    )
    for domain in ("text", "music"):
        for step in ("core", "splits", "marts"):
            transforming.run(domain, step, stack.settings("transformer"), retry=False, say=lambda text: None)

    mart = "marts_next_text.mart_translation_training_pairs"
    spoken = {one.number: one for one in exports.sentences}
    linked = {
        (spoken[one].language, spoken[other].language)
        for one, other in exports.pairs(LANGUAGES)
        if "eng" in (spoken[one].language, spoken[other].language)
    }
    assert linked == {("eng", "deu"), ("eng", "rus")}
    found = query(
        stack, f"select corpus, target_language, licence, count(*) from {mart} group by 1, 2, 3", "transformer"
    )
    assert {(corpus, language) for corpus, language, _, _ in found} == {
        (corpus, language) for corpus in ("tatoeba", "manythings") for language in ("deu", "rus")
    }
    assert {licence for _, _, licence, _ in found} == {"CC-BY", "CC0"}
    reasons = query(
        stack,
        "select corpora.name, e.reason, count(*) from marts_next_text.fct_text_training_exclusions as e "
        "join core.link as links on e.key = links.pair_id join core.corpus as corpora using (corpus_id) group by 1, 2",
        "transformer",
    )
    assert ("manythings", "duplicate", 1) in reasons
    people = query(
        stack,
        "select t.name, s.name from core.link as l join core.corpus as c using (corpus_id) "
        "join core.contributor as t on t.contributor_id = l.contributor_id "
        "join core.contributor as s on s.contributor_id = l.source_contributor_id where c.name = 'manythings'",
        "transformer",
    )
    assert {name for name, _ in people} == {one.translator for one in picked.pairs if one.language in ("deu", "rus")}
    named = {name for (name,) in query(stack, "select name from core.contributor", "transformer")}
    assert {one["contributor"] for one in exports.rows(["deu", "rus"]).values()} - {None} <= named

    mart = "marts_next_music.mart_music_training_pieces"
    pieces = query(stack, f"select piece_id, source, corpus, split, split_origin, licence from {mart}", "transformer")
    performed = {row[0].removeprefix("maestro/"): row for row in pieces if row[1] == "maestro"}
    wanted = release.rows()
    assert performed.keys() == wanted.keys()
    assert all(row[3:] == (wanted[path]["split"], "published", "CC-BY-NC-SA") for path, row in performed.items())
    others = [row for row in pieces if row[1] == "midi_archive"]
    assert {row[0] for row in others} == {f"midi_archive/songs.zip/{name}" for name in tunes}
    assert {(row[2], row[4], row[5]) for row in others} == {("songs", "assigned", "CC0")}


# --- the contract, on the double and on the real thing


@pytest.mark.parametrize("upstream", UPSTREAMS)
def test_tatoeba_keeps_its_contract(stack: Stack, exports: tatoeba_double.Tatoeba, upstream: str) -> None:
    own = (
        at(exports, "/exports/") if upstream == "double" else {"location": tatoeba.URL, "storage": {"rate": "1/second"}}
    )
    configure(tatoeba=own | {"languages": ["bel", "cat"] if upstream == "live" else ["fra", "cmn"]})
    assert cycle(stack, tatoeba.SOURCE) == {"sentences": ["published"], "links": ["published"]}
    (counts,) = query(
        stack,
        "select count(*), count(distinct language), count(contributor), count(distinct licence), "
        "count(*) filter (where modified ~ '^[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8}$') from raw.tatoeba_sentences",
    )
    assert counts[1] == 2 and counts[2] > counts[0] / 2 and counts[3] == 2 and counts[4] > counts[0] / 2
    assert query(stack, "select count(*) > 0 from raw.tatoeba_links") == [(True,)]
    assert query(stack, "select count(*) from ops.quarantine") == [(0,)]
    assert cycle(stack, tatoeba.SOURCE) == {}


@pytest.mark.parametrize("upstream", UPSTREAMS)
def test_manythings_keeps_its_contract(stack: Stack, picked: manythings_double.Manythings, upstream: str) -> None:
    own = (
        at(picked, "/anki/") if upstream == "double" else {"location": manythings.URL, "storage": {"rate": "1/second"}}
    )
    configure(manythings=own | {"languages": ["deu"]})
    assert cycle(stack, manythings.SOURCE) == {"pairs": ["published"]}
    assert query(stack, "select count(*) > 30 from raw.manythings_pairs") == [(True,)]
    assert cycle(stack, manythings.SOURCE) == {}


@pytest.mark.parametrize("upstream", UPSTREAMS)
def test_maestro_keeps_its_contract(stack: Stack, release: maestro_double.Maestro, upstream: str) -> None:
    own = at(release, "/magentadata/datasets/maestro/v3.0.0/") if upstream == "double" else {"location": maestro.URL}
    configure(maestro=own)
    assert cycle(stack, maestro.SOURCE) == {"scores": ["published"]}
    (counts,) = query(stack, "select count(*), count(distinct split) from raw.maestro_scores")
    assert counts == ((len(release.performances) if upstream == "double" else 1_276), 3)
    assert query(stack, "select count(*) from ops.quarantine") == [(0,)]
    assert cycle(stack, maestro.SOURCE) == {}
