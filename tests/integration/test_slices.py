"""Slices of a source: backfills beside the live lane, gaps, failed slices alone, records in quarantine once more."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from support import Stack

from ingestion import journal, pipeline
from ingestion.contract import Bad, BadPage, Context, Landed, Page, Resource, Source, describe
from storage import warehouse
from storage.errors import Problem
from storage.gates import loads as gate
from storage.gates.audit import Verdict
from storage.objects import Objects

SCHEMA = pa.schema([describe("id", pa.string(), "Identity.", required=True), describe("value", pa.int64(), "Number.")])
DAY = timedelta(days=1)
START = datetime(2026, 1, 1, tzinfo=UTC)


class Diary:
    """A source with a page for each day, which can be asked for some days.

    ``closed`` days fail, ``asked`` counts; ``meanwhile`` is called, once, when a fetch has got a day's page.
    """

    def __init__(self, name: str) -> None:
        self.days: dict[datetime, list[dict[str, Any]]] = {}
        self.closed: set[datetime] = set()
        self.asked: list[datetime] = []
        self.meanwhile: dict[datetime, Callable[[], object]] = {}
        self.strict = True
        entries = Resource("entries", SCHEMA, ("id",), self.fetch, self.parse, partition="date")
        notes = Resource("notes", SCHEMA, ("id",), lambda context: iter(()), self.parse)
        self.source = Source(name, name, "text", "", "none", "@daily", (entries, notes))

    def fetch(self, context: Context) -> Iterator[Page]:
        start, end = context.interval or (datetime.fromisoformat(context.cursor.get("next", START.isoformat())), None)
        for day in sorted(self.days):
            if day < start or (end and day >= end):
                continue
            self.asked.append(day)
            if day in self.closed:
                raise Problem(f"{day:%Y-%m-%d} is closed", "Come back later")
            body = json.dumps(self.days[day]).encode()
            yield Page(f"{day:%Y-%m-%d}", body, {"next": (day + DAY).isoformat()})
            self.meanwhile.pop(day, lambda: None)()

    def parse(self, page: Landed) -> Iterator[dict[str, Any] | Bad]:
        for record in json.loads(page.read()):
            if record.get("value") == "seven":
                if self.strict:
                    yield Bad(record, "its value is no number")
                    continue
                record["value"] = 7
            if record.get("value") == "eight":
                yield Bad(record, "its value is no number either")
                continue
            if record.get("value") == "torn":
                raise BadPage("torn")
            yield record


def query(stack: Stack, statement: str) -> list[tuple[Any, ...]]:
    with closing(warehouse.connect(stack.settings("loader"))) as db, db, db.cursor() as sql:
        sql.execute(statement)
        return sql.fetchall()


def current(stack: Stack, name: str) -> dict[str, int]:
    return dict(
        query(
            stack,
            f"select _key, value from (select distinct on (r._key) r.* from raw.{name}_entries as r "
            f"join ops.load as l on l.source = '{name}' and l.load = r._load and l.state = 'published' "
            "order by r._key, r._load desc, r._position desc) as c where not _deleted order by 1",
        )
    )


def run(stack: Stack, diary: Diary, since: int = -1, until: int = -1) -> pipeline.Report:
    settings = stack.settings("loader")
    edges = [START + number * DAY if number >= 0 else None for number in (since, until)]
    wanted: list[pipeline.Slice] = [(None, one) for one in pipeline.slices(diary.source, edges[0], edges[1])]
    try:
        return pipeline.ingest_slices(diary.source, settings, wanted, say=lambda text: None)
    finally:
        pipeline.judge(diary.source, settings, say=lambda text: None)


def test_a_backfill_runs_twice_without_doubling_and_leaves_the_live_cursor(stack: Stack) -> None:
    diary = Diary("diary")
    diary.days = {START + n * DAY: [{"id": f"{n}", "value": n}] for n in range(10)}
    run(stack, diary)
    live = query(stack, "select cursor, load from ops.cursor where source = 'diary' and lane = 'live'")
    diary.days[START + 3 * DAY] = [{"id": "3", "value": 33}, {"id": "3b", "value": 3}]  # what came late
    for _ in range(2):
        diary.asked.clear()
        run(stack, diary, 2, 5)
        assert diary.asked == [START + n * DAY for n in (2, 3, 4)]
        assert current(stack, "diary") == {str(n): n for n in range(10)} | {"3": 33, "3b": 3}
        counted = query(stack, "select count(*), count(distinct (_key, _hash)) from raw.diary_entries")
        assert counted == [(12, 12)]
    assert query(stack, "select cursor, load from ops.cursor where source = 'diary' and lane = 'live'") == live
    slices = query(stack, "select slice, state from ops.ledger where source = 'diary' and lane = 'backfill' order by 1")
    assert slices == [(f"2026-01-0{day}T00:00:00+00:00/2026-01-0{day + 1}T00:00:00+00:00", "done") for day in (3, 4, 5)]


def test_failed_slices_are_asked_for_again_alone_and_gaps_are_seen(stack: Stack) -> None:
    diary = Diary("holes")
    diary.days = {START + n * DAY: [{"id": f"{n}", "value": n}] for n in range(8)}
    diary.closed = {START + 1 * DAY, START + 2 * DAY, START + 5 * DAY}
    with pytest.raises(Problem, match=r"^3 of 8 slices of holes failed; the first: 2026-01-02 is closed\. .*--failed"):
        run(stack, diary, 0, 8)
    assert sorted(current(stack, "holes")) == ["0", "3", "4", "6", "7"]  # one that fails does not stop the others
    settings = stack.settings("loader")
    days = [(START + a * DAY, START + b * DAY) for a, b in ((1, 3), (5, 6))]
    assert pipeline.gaps(settings, "holes") == [("holes", "entries", *edges) for edges in days]
    diary.closed = {START + 5 * DAY}
    diary.asked.clear()
    with pytest.raises(Problem, match="1 of 3 slices"):
        pipeline.ingest_slices(
            diary.source, settings, pipeline.unfinished(diary.source, settings), say=lambda text: None
        )
    assert diary.asked == [START + n * DAY for n in (1, 2, 5)]
    assert pipeline.gaps(settings, "holes") == [("holes", "entries", *days[1])]
    diary.closed = set()
    diary.asked.clear()
    pipeline.ingest_slices(diary.source, settings, pipeline.unfinished(diary.source, settings), say=lambda text: None)
    pipeline.judge(diary.source, settings, say=lambda text: None)
    assert diary.asked == [START + 5 * DAY]
    assert current(stack, "holes") == {str(n): n for n in range(8)}
    assert pipeline.gaps(settings, "holes") == []
    assert pipeline.unfinished(diary.source, settings) == []
    attempts = query(
        stack, "select attempts from ops.ledger where source = 'holes' and resource = 'entries' order by slice"
    )
    assert [count for (count,) in attempts] == [1, 2, 2, 1, 1, 3, 1, 1]


def test_a_rejected_slice_is_a_gap_until_it_is_asked_for_again(stack: Stack) -> None:
    diary = Diary("refused")
    diary.days = {START + n * DAY: [{"id": f"{n}.{i}", "value": n} for i in range(20)] for n in range(3)}
    whole = {record["id"]: record["value"] for day in diary.days.values() for record in day}
    diary.days[START + DAY][:5] = [{"id": f"1.{i}", "value": "seven"} for i in range(5)]
    run(stack, diary, 0, 3)  # what follows is published, and hides nothing
    settings = stack.settings("loader")
    day = (START + DAY, START + 2 * DAY)
    assert [load for load, _ in pipeline.rejected(diary.source, settings)] == [2]
    assert pipeline.gaps(settings, "refused") == [("refused", "entries", *day)]
    assert pipeline.unfinished(diary.source, settings) == [(["entries"], day)]
    diary.days[START + DAY][:5] = [{"id": f"1.{i}", "value": 1} for i in range(5)]
    diary.asked.clear()
    pipeline.ingest_slices(diary.source, settings, pipeline.unfinished(diary.source, settings), say=lambda text: None)
    pipeline.judge(diary.source, settings, say=lambda text: None)
    assert diary.asked == [day[0]]
    assert (pipeline.rejected(diary.source, settings), pipeline.gaps(settings, "refused")) == ([], [])
    assert current(stack, "refused") == whole


def test_a_slice_is_done_when_its_load_is_accepted_by_a_person(stack: Stack) -> None:
    diary = Diary("pardoned")
    diary.days = {START: [{"id": f"{i}", "value": "seven" if i < 5 else i} for i in range(20)]}
    run(stack, diary, 0, 1)
    settings = stack.settings("loader")
    assert len(pipeline.unfinished(diary.source, settings)) == 1
    pipeline.accept(diary.source, 1, settings, say=lambda text: None)
    assert (pipeline.unfinished(diary.source, settings), pipeline.gaps(settings, "pardoned")) == ([], [])
    assert len(current(stack, "pardoned")) == 15


def test_a_row_that_a_rejected_load_had_before_is_not_lost(stack: Stack) -> None:
    """A backfill comes first with a row, beside much that is bad; the live load that has the row too is good."""
    diary = Diary("first")
    diary.days = {START: [{"id": "a", "value": 1}], START + DAY: [{"id": "b", "value": 2}]}
    settings = stack.settings("loader")

    def backfill() -> None:
        good = dict(diary.days)
        diary.days[START] = [{"id": "a", "value": 1}, {"id": "c", "value": "seven"}]
        pipeline.ingest(diary.source, settings, interval=(START, START + DAY), say=lambda text: None)
        diary.days = good

    diary.meanwhile = {START + DAY: backfill}
    run(stack, diary)
    states = query(stack, "select load, lane, state from ops.load where source = 'first' order by load")
    assert states == [(1, "backfill", "rejected"), (2, "live", "published")]
    assert current(stack, "first") == {"a": 1, "b": 2}
    before = query(stack, "select _load, _position, _key, _hash from raw.first_entries order by 1, 2")
    pipeline.replay(diary.source, settings, say=lambda text: None)
    assert query(stack, "select _load, _position, _key, _hash from raw.first_entries order by 1, 2") == before


def test_a_page_that_was_fetched_before_another_lanes_hides_nothing_of_it(stack: Stack) -> None:
    """The backfill begins first and is sealed last; what it reads after the live fetch is newer all the same."""
    diary = Diary("crossing")
    diary.days = {START: [{"id": "a", "value": 1}, {"id": "z", "value": 0}], START + DAY: [{"id": "b", "value": 1}]}
    settings = stack.settings("loader")
    run(stack, diary)
    diary.days[START] = [{"id": "a", "value": 2}, {"id": "c", "value": 2}]

    def live() -> None:
        diary.days |= {START + 2 * DAY: [{"id": "a", "value": 3}, {"id": "b", "value": 3}]}
        pipeline.ingest(diary.source, settings, say=lambda text: None)
        diary.days |= {START + DAY: [{"id": "b", "value": 4}, {"id": "d", "value": 4}]}

    diary.meanwhile = {START: live}
    pipeline.ingest(diary.source, settings, interval=(START, START + 2 * DAY), say=lambda text: None)
    pipeline.judge(diary.source, settings, say=lambda text: None)
    lanes = query(stack, "select lane, versions from ops.load where source = 'crossing' order by load")
    assert lanes == [("live", 3), ("live", 2), ("backfill", 3)]
    assert current(stack, "crossing") == {"a": 3, "b": 4, "c": 2, "d": 4, "z": 0}
    before = query(stack, "select _load, _position, _key, _hash, _again from raw.crossing_entries order by 1, 2")
    pipeline.replay(diary.source, settings, say=lambda text: None)
    after = query(stack, "select _load, _position, _key, _hash, _again from raw.crossing_entries order by 1, 2")
    assert after == before


def test_a_replay_waits_for_a_fetch_that_is_under_way(stack: Stack) -> None:
    """Otherwise the fetch would find no cursor, and ask for everything once more."""
    diary = Diary("patient")
    diary.days = {START + n * DAY: [{"id": f"{n}", "value": n}] for n in range(3)}
    run(stack, diary)
    diary.days[START + 3 * DAY] = [{"id": "3", "value": 3}]
    settings = stack.settings("loader")
    under_way, go_on = threading.Event(), threading.Event()

    def pause() -> None:
        under_way.set()
        assert go_on.wait(60)

    diary.meanwhile = {START + 3 * DAY: pause}
    with ThreadPoolExecutor() as pool:
        fetch = pool.submit(pipeline.ingest, diary.source, settings, say=lambda text: None)
        assert under_way.wait(60)
        replay = pool.submit(pipeline.replay, diary.source, settings, say=lambda text: None)
        with pytest.raises(TimeoutError):
            replay.result(1)
        go_on.set()
        fetch.result(60)
        assert replay.result(60) == [1, 2]
    pipeline.judge(diary.source, settings, say=lambda text: None)
    assert current(stack, "patient") == {str(n): n for n in range(4)}


class Twice(Objects):
    """A client whose first answer is lost on its way: it asks again, and is told that the object is there already."""

    def put(self, bucket: str, key: str, body: Any, *rest: Any, **how: Any) -> bool:
        super().put(bucket, key, body, *rest, **how)
        if hasattr(body, "seek"):
            body.seek(0)
        return super().put(bucket, key, body, *rest, **how)


def test_a_segment_whose_sealing_got_no_answer_is_sealed_once(stack: Stack) -> None:
    objects = Objects(stack.settings("loader"))
    for client, number in ((Twice(stack.settings("loader")), 1), (objects, 2), (Twice(stack.settings("loader")), 3)):
        segment = journal.Segment(client, "answered", "entries")
        segment.add(Page("page", b"[]", {"next": 1}))
        assert segment.seal(lane="live", slice="all", interval=None, run_id="") == number
    assert journal.segments(objects, "answered") == [1, 2, 3]


def test_days_that_nobody_asked_for_are_a_gap(stack: Stack) -> None:
    diary = Diary("apart")
    diary.days = {START + n * DAY: [{"id": f"{n}", "value": n}] for n in range(10)}
    run(stack, diary, 0, 2)
    run(stack, diary, 6, 7)
    found = pipeline.gaps(stack.settings("loader"), "apart")
    assert found == [("apart", "entries", START + 2 * DAY, START + 6 * DAY)]


@pytest.mark.parametrize(
    ("since", "until", "said"),
    [
        (START, None, "--since and --until are the two ends of an interval"),
        (None, START, "--since and --until are the two ends of an interval"),
        (START, START, "nothing lies between 2026-01-01 00:00 and 2026-01-01 00:00"),
        (START + DAY, START, "nothing lies between"),
    ],
)
def test_intervals_that_are_none_are_refused(since: datetime | None, until: datetime | None, said: str) -> None:
    with pytest.raises(Problem, match=said):
        pipeline.slices(Diary("any").source, since, until)


def test_times_without_a_zone_are_utc_and_the_last_slice_ends_where_asked() -> None:
    found = pipeline.slices(Diary("any").source, datetime(2026, 1, 1), datetime(2026, 1, 3, 12), days=1)
    assert found == [(START, START + DAY), (START + DAY, START + 2 * DAY), (START + 2 * DAY, START + 2.5 * DAY)]


def quarantined(stack: Stack, name: str) -> list[tuple[Any, ...]]:
    return query(
        stack, f"select load, reason, replayed_at is not null from ops.quarantine where source = '{name}' order by id"
    )


def test_records_in_quarantine_are_read_again_and_never_hide_what_is_newer(stack: Stack) -> None:
    diary = Diary("mended")
    diary.days = {START: [{"id": f"{n:03}", "value": n} for n in range(100)]}
    diary.days[START][3] = {"id": "003", "value": "seven"}
    diary.days[START][4] = {"id": "004", "value": "seven"}
    run(stack, diary)
    assert quarantined(stack, "mended") == [(1, "its value is no number", False)] * 2
    diary.days[START + DAY] = [
        {"id": "004", "value": 4},
        {"id": "005", "value": 55},
    ]  # 004 has come since, and is newer
    run(stack, diary)
    diary.strict = False
    settings = stack.settings("loader")
    assert pipeline.replay_quarantine(diary.source, settings, say=lambda text: None) == [3]
    expected = {f"{n:03}": n for n in range(100)} | {"003": 7, "004": 4, "005": 55}
    assert current(stack, "mended") == expected
    assert quarantined(stack, "mended") == [(1, "its value is no number", True)] * 2
    assert query(stack, "select rows, versions, lane, slice from ops.load where source = 'mended' and load = 3") == [
        (100, 1, "replay", "1")
    ]
    assert pipeline.replay_quarantine(diary.source, settings, say=lambda text: None) == []  # nothing is left to replay
    before = query(stack, "select _load, _position, _key, _hash, value from raw.mended_entries order by 1, 2")
    diary.strict = True  # a replay from landing parses with today's parser: as if it had always been this one
    diary.strict = False
    pipeline.replay(diary.source, settings, say=lambda text: None)
    assert current(stack, "mended") == expected
    assert len(query(stack, "select from raw.mended_entries")) >= len(before)


def test_what_is_still_bad_stays_in_quarantine(stack: Stack) -> None:
    diary = Diary("still")
    diary.days = {START: [{"id": f"{n:03}", "value": n} for n in range(100)]}
    diary.days[START][3] = {"id": "003", "value": "seven"}
    run(stack, diary)
    settings = stack.settings("loader")
    for load in (2, 3):  # again and again: each reading of the page is of the load it came with
        assert pipeline.replay_quarantine(diary.source, settings, say=lambda text: None) == [load]
        assert [row for row in quarantined(stack, "still") if not row[2]] == [(load, "its value is no number", False)]
        slices = query(stack, f"select slice from ops.load where source = 'still' and load = {load}")
        assert slices == [("1",)]
    assert len(current(stack, "still")) == 99
    assert pipeline.rejected(diary.source, settings) == []


def test_records_are_mended_though_others_of_their_load_are_not(stack: Stack) -> None:
    """The pages read again may hold nothing but trouble: that is why they are read again."""
    diary = Diary("partly")
    diary.days = {START + n * DAY: [{"id": f"{n}.{i}", "value": i} for i in range(100)] for n in range(6)}
    diary.days[START][0] = {"id": "0.0", "value": "seven"}
    diary.days[START + DAY][:20] = [{"id": f"1.{i}", "value": "eight"} for i in range(20)]
    run(stack, diary)
    diary.strict = False
    settings = stack.settings("loader")
    assert pipeline.replay_quarantine(diary.source, settings, say=lambda text: None) == [2]
    assert query(stack, "select state, quarantined from ops.load where source = 'partly' and load = 2") == [
        ("published", 20)
    ]
    assert current(stack, "partly")["0.0"] == 7
    assert [row for row in quarantined(stack, "partly") if not row[2]] == [
        (2, "its value is no number either", False)
    ] * 20


def test_records_stay_in_quarantine_when_what_is_read_again_is_rejected(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    diary = Diary("again")
    diary.days = {START: [{"id": f"{i}", "value": "seven" if i == 0 else i} for i in range(100)]}
    run(stack, diary)
    diary.strict = False
    settings = stack.settings("loader")
    with monkeypatch.context() as patch:
        patch.setattr(gate, "audit", lambda *_, **__: Verdict(False, "critical", "not today"))
        pipeline.replay_quarantine(diary.source, settings, say=lambda text: None)
    assert "0" not in current(stack, "again")
    assert quarantined(stack, "again") == [(1, "its value is no number", False)]
    assert pipeline.replay_quarantine(diary.source, settings, say=lambda text: None) == [3]
    assert current(stack, "again")["0"] == 7
    assert quarantined(stack, "again") == [(1, "its value is no number", True)]
    pipeline.replay(diary.source, settings, say=lambda text: None)
    assert current(stack, "again")["0"] == 7


def test_a_transform_refuses_while_a_replay_is_half_done(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    from storage import transform

    diary = Diary("halfway")
    diary.days = {START: [{"id": "a", "value": 1}]}
    run(stack, diary)
    settings = stack.settings("loader")

    def stumble(*given: Any) -> None:
        raise Problem("the power went", "")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_load_sealed", stumble)
        with pytest.raises(Problem, match="the power went"):
            pipeline.replay(diary.source, settings, say=lambda text: None)
    with pytest.raises(Problem, match=r"the replay of halfway was not finished\. Run `lyrebird replay halfway`"):
        transform.build("text", "core", stack.settings("transformer"))
    pipeline.replay(diary.source, settings, say=lambda text: None)
    assert query(stack, "select from ops.ledger where lane = 'rebuild' and state <> 'done'") == []
    assert current(stack, "halfway") == {"a": 1}
