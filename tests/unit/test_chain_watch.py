"""Following the chain: what is told of it, when it is over, and what is said when something failed."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from infra import chain
from storage.errors import Problem

T = "2026-01-01T00:0{}:00+00:00"


class Scripted:
    """Airflow's answers, one look after another; the last one stays."""

    base = "http://airflow"

    def __init__(self, looks: list[list[tuple[str, str, list[str]]]]) -> None:
        self.looks, self.cleared = looks, list[Any]()

    def _now(self) -> list[dict[str, Any]]:
        self.working = {dag: tasks for dag, _, tasks in self.looks[0]}
        return [
            {"dag_id": dag, "dag_run_id": "r", "state": state, "start_date": T.format(1), "end_date": T.format(2)}
            for dag, state, _ in self.looks[0]
        ]

    def runs(self, _since: object) -> list[dict[str, Any]]:
        found = self._now()
        if len(self.looks) > 1:
            self.looks.pop(0)
        return found

    def active(self) -> list[dict[str, Any]]:
        return []

    def tasks(self, run: dict[str, Any]) -> list[dict[str, Any]]:
        state = "failed" if run["state"] == "failed" else "running"
        names = self.working[run["dag_id"]]
        return [{"task_id": name, "map_index": -1, "state": state, "try_number": 2} for name in names]

    def call(self, method: str, path: str, **asked: Any) -> dict[str, Any]:
        if method == "POST":
            self.cleared.append((path, asked["json"]))
            return {}
        if path.endswith("dagRuns"):
            dag = path.split("/")[1]
            state = "failed" if dag in ("ingest_clips", "transform_text") else "success"
            return {"dag_runs": [{"state": state, "dag_run_id": "r"}]}
        assert path == "dags/transform_text/dagRuns/r/taskInstances/audit/logs/2"
        lines = [
            {"event": "noise", "logger": "task"},
            {"event": "transform_text.audit failed: why", "logger": "lyrebird"},
        ]
        return {"content": lines}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that each look turns on by some seconds, and no warehouse to count in."""
    now = iter(range(0, 10_000, 4))
    monkeypatch.setattr(chain.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(chain.time, "monotonic", lambda: float(next(now)))
    monkeypatch.setattr(chain, "counts", lambda dag: f"counted {dag}")
    monkeypatch.setattr(chain, "progress", lambda dag: "")


def test_each_change_is_a_line_and_nothing_is_told_twice() -> None:
    api = Scripted(
        [
            [("ingest_a", "queued", [])],
            [("ingest_a", "running", ["ingest"])],
            [("ingest_a", "running", [])],  # between two tasks
            [("ingest_a", "running", ["audit"])],
            [("ingest_a", "running", ["audit"])],
            [("ingest_a", "success", [])],
        ]
    )
    said: list[str] = []
    chain.Watch(api, None, chain.Log(said.append, 0.0)).to_the_end()  # type: ignore[arg-type]
    told = [re.sub(r"^ *\d+:\d\d  |  +", " ", line).strip() for line in said]
    assert told == [
        "ingest_a queued",
        "ingest_a running ingest",
        "ingest_a running audit",
        "ingest_a success in 60 s counted ingest_a",
    ]


def test_a_run_that_begins_late_is_waited_for() -> None:
    api = Scripted([[("ingest_a", "success", [])], [("ingest_a", "success", []), ("train_b", "running", ["train"])]])
    api.looks += [api.looks[-1]] * 20 + [[("ingest_a", "success", []), ("train_b", "success", [])]]
    said: list[str] = []
    chain.Watch(api, None, chain.Log(said.append, 0.0)).to_the_end()  # type: ignore[arg-type]
    assert "train_b" in said[-1]
    assert "success" in said[-1]


def test_what_failed_is_told_in_its_own_words() -> None:
    api = Scripted([[("ingest_a", "success", []), ("transform_text", "failed", ["audit"])]])
    with pytest.raises(Problem, match=r"transform_text\.audit failed: why.*http://airflow/dags/transform_text/runs/r"):
        chain.Watch(api, None, chain.Log(lambda line: None, 0.0)).to_the_end()  # type: ignore[arg-type]


def test_a_run_that_an_interruption_left_is_tried_once_more() -> None:
    failed = [("ingest_a", "success", []), ("transform_text", "failed", ["audit"])]
    mended = [("ingest_a", "success", []), ("transform_text", "success", [])]
    api = Scripted([failed, [("transform_text", "running", ["audit"])], mended])
    chain.Watch(api, None, chain.Log(lambda line: None, 0.0), {"transform_text r"}).to_the_end()  # type: ignore[arg-type]
    assert [path for path, _ in api.cleared] == ["dags/transform_text/clearTaskInstances"]

    api = Scripted([failed])  # and fails again
    with pytest.raises(Problem, match=r"transform_text\.audit failed"):
        chain.Watch(api, None, chain.Log(lambda line: None, 0.0), {"transform_text r"}).to_the_end()  # type: ignore[arg-type]
    assert len(api.cleared) == 1


def test_a_screen_shows_one_row_for_each_run() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    api = Scripted([[("ingest_a", "running", ["ingest"])], [("ingest_a", "success", [])]])
    chain.Watch(api, None, chain.Screen(console, 0.0)).to_the_end()  # type: ignore[arg-type]
    last = out.getvalue().rsplit("at work", 1)[1]
    assert "1 of 1 runs so far" in last
    assert last.count("ingest_a") == 2  # the row, and what it counted


def test_a_screen_shows_what_a_run_says_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "counts", lambda dag: "[/x] [live] :bird: \x1b]0;mine\x07")
    out = io.StringIO()
    api = Scripted([[("ingest_a", "success", [])]])
    chain.Watch(api, None, chain.Screen(Console(file=out, force_terminal=True, width=120), 0.0)).to_the_end()  # type: ignore[arg-type]
    assert "[/x] [live] :bird: ␛]0;mine␇" in out.getvalue()


def test_what_an_earlier_run_left_is_cleared_and_a_rejected_load_fetched_again() -> None:
    api = Scripted([[]])
    chain._mend(api, ["ingest_clips", "train_birds", "transform_text"], lambda line: None)  # type: ignore[arg-type]
    (ingest, what), (transform, how) = api.cleared
    assert ingest == "dags/ingest_clips/clearTaskInstances"
    assert (what["task_ids"], what["include_downstream"], what["only_failed"]) == (["ingest"], True, False)
    assert transform == "dags/transform_text/clearTaskInstances"
    assert how["only_failed"]
