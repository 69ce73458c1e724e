"""The gate of candidate marts: what is learnt from the last accepted version judges the next one."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import pytest
from support import Stack

from storage import warehouse
from storage.errors import Problem
from storage.gates import audit as gate
from storage.gates import marts
from storage.gates.ranges import Bound

Row = tuple[str, str | None, str, float]  # corpus, title, key, length
ROWS = 300


@dataclass
class Candidate:
    stack: Stack

    def audit(self, rows: list[Row]) -> gate.Verdict:
        with closing(warehouse.connect(self.stack.settings("transformer"))) as db, db, db.cursor() as sql:
            sql.execute("drop table if exists marts_next_music.mart_pieces")
            sql.execute(
                "create table marts_next_music.mart_pieces "
                "(corpus text, title text, key text, length float, id serial primary key)"
            )
            sql.executemany("insert into marts_next_music.mart_pieces values (%s, %s, %s, %s)", rows)
        return marts.audit("music", self.stack.settings("transformer"))["mart_pieces"]


def pieces(corpus: str, *, count: int = ROWS, titled: bool = True, scale: float = 1.0) -> list[Row]:
    chance = random.Random(corpus)
    return [
        (corpus, f"piece {number}" if titled else None, chance.choice("CGD"), scale * chance.gauss(100, 10))
        for number in range(count)
    ]


@pytest.fixture
def candidate(stack: Stack) -> Iterator[Candidate]:
    """A mart that was accepted once."""
    with closing(warehouse.connect(stack.settings("admin"))) as db, db, db.cursor() as sql:
        sql.execute("delete from ops.audit where subject = 'mart.mart_pieces'")
        sql.execute("create schema if not exists marts_next_music authorization transformer")
    made = Candidate(stack)
    verdict = made.audit(pieces("chorales"))
    assert (verdict.accepted, verdict.severity, verdict.failed) == (True, "none", [])
    assert verdict.docs.endswith(page_of(made))
    yield made
    with closing(warehouse.connect(stack.settings("transformer"))) as db, db, db.cursor() as sql:
        sql.execute("drop table marts_next_music.mart_pieces")


def page_of(candidate: Candidate) -> str:
    with closing(warehouse.connect(candidate.stack.settings("admin"))) as db, db, db.cursor() as sql:
        sql.execute("select docs_url from ops.audit where subject = 'mart.mart_pieces' order by id desc limit 1")
        return str(warehouse.first(sql)[0])


@pytest.mark.parametrize(
    ("rows", "severity", "said"),
    [
        (lambda: pieces("chorales"), "none", ""),
        (lambda: pieces("chorales", count=ROWS // 3), "critical", "there were 300 rows before: saw 100"),
        (list, "critical", "rows before: saw 0"),
        (lambda: pieces("chorales", titled=False), "critical", "title: was filled to 100%: saw 0"),
        (lambda: pieces("chorales", scale=3), "warning", "length: the mean was"),
        (lambda: [(*row[:2], "A", row[3]) for row in pieces("chorales")], "warning", "key: the values are shared out"),
    ],
    ids=["same", "shrunk", "empty", "emptied column", "unit changed", "one category"],
)
def test_a_candidate_is_judged_beside_the_version_accepted_last(
    candidate: Candidate, rows: Callable[[], list[Row]], severity: str, said: str
) -> None:
    verdict = candidate.audit(rows())
    assert (verdict.severity, verdict.accepted) == (severity, severity != "critical")
    assert said in verdict.reason


def test_a_new_origin_is_no_drift_of_the_others_and_hides_none(candidate: Candidate) -> None:
    rolls = pieces("o'rolls %", count=3 * ROWS, titled=False, scale=5)
    spoiled = candidate.audit(pieces("chorales", titled=False) + rolls)
    assert (spoiled.severity, spoiled.accepted) == ("critical", False)
    assert candidate.audit(pieces("chorales") + rolls).severity == "none"
    # from then on it is known
    short = candidate.audit(pieces("chorales") + rolls[:10])
    assert "there were 1,200 rows before: saw 310" in short.reason


def test_an_audit_that_could_not_be_done_is_no_verdict(candidate: Candidate, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = Bound("nosuch", "no number", 0.0, 1.0, "critical", "cannot be compared")  # type: ignore[arg-type]
    monkeypatch.setattr(marts, "bounds", lambda *_: [odd])
    with pytest.raises(Problem, match=r"the audit of mart.mart_pieces could not be done: "):
        candidate.audit(pieces("chorales"))
    with closing(warehouse.connect(candidate.stack.settings("admin"))) as db, db, db.cursor() as sql:
        sql.execute("select count(*) from ops.audit where subject = 'mart.mart_pieces'")
        assert warehouse.first(sql) == (1,)


def test_keys_of_failing_rows_are_kept_and_no_more_than_a_hundred(candidate: Candidate) -> None:
    spoiled = [
        (corpus, None if n % 2 else title, key, size) for n, (corpus, title, key, size) in enumerate(pieces("chorales"))
    ]
    verdict = candidate.audit(spoiled)
    emptied = next(one for one in verdict.failed if one["arguments"]["number"] == "title: filled at least")
    assert len(emptied["keys"]) == gate.KEPT
    assert all(spoiled[int(key) - 1][1] is None for key in emptied["keys"])
    with closing(warehouse.connect(candidate.stack.settings("admin"))) as db, db, db.cursor() as sql:
        sql.execute("select failed from ops.audit where subject = 'mart.mart_pieces' order by id desc limit 1")
        assert emptied in warehouse.first(sql)[0]
