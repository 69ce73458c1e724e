"""Which slices a run of an ingest DAG asks for: what is new, a backfill's interval, or the days between two dates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROBE = """
import json, sys
from datetime import datetime
from types import SimpleNamespace
sys.path.append("dags")
import ingest

answers = []
for kind, since, until in json.loads(sys.argv[1]):
    context = {
        "params": {"since": since, "until": until},
        "dag_run": SimpleNamespace(run_type=kind),
        "data_interval_start": datetime(2026, 3, 1, 5, 20), "data_interval_end": datetime(2026, 3, 2, 5, 20),
    }
    answers.append(ingest.slices.function(["ingest", "diary"], **context))
dags = {name: dag for name, dag in vars(ingest).items() if hasattr(dag, "task_dict")}
dated = {name: "slices" in dag.task_dict for name, dag in dags.items()}
mapped, timetable = dags["ingest_xeno_canto"].task_dict["ingest"], dags["ingest_xeno_canto"].timetable
side_by_side = mapped.partial_kwargs["max_active_tis_per_dag"]
print(json.dumps([answers, dated, side_by_side, timetable.expression]))
"""


def probe(cases: list[Any]) -> list[Any]:
    command = [sys.executable, "-c", PROBE, json.dumps(cases)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_runs_ask_for_their_slices() -> None:
    answers, dated, side_by_side, cron = probe(
        [
            ["scheduled", None, None],
            ["backfill", None, None],
            ["manual", "2026-02-27", "2026-03-02"],
            ["manual", "2026-02-27", "2026-02-27"],
            ["manual", "2026-02-27", None],
            ["manual", "2020-01-01", "2026-01-01"],
        ]
    )
    words = ["ingest", "diary"]
    six_years = answers.pop()
    assert len(six_years) == 439  # of five days each, and a last one of two
    assert six_years[0][2:] == ["--since", "2020-01-01", "--until", "2020-01-06"]
    assert six_years[-1][2:] == ["--since", "2025-12-30", "--until", "2026-01-01"]
    assert all(one[5] == other[3] for one, other in pairwise(six_years))
    assert answers == [
        [words],
        [[*words, "--since", "2026-03-01T05:20:00", "--until", "2026-03-02T05:20:00"]],
        [
            [*words, "--since", "2026-02-27", "--until", "2026-02-28"],
            [*words, "--since", "2026-02-28", "--until", "2026-03-01"],
            [*words, "--since", "2026-03-01", "--until", "2026-03-02"],
        ],
        [[*words, "--since", "2026-02-27", "--until", "2026-02-27"]],  # the command says what is wrong with it
        [[*words, "--since", "2026-02-27"]],
    ]
    assert {name for name, has in dated.items() if has} >= {"ingest_xeno_canto", "ingest_gbif_sounds"}
    assert not dated["ingest_aviary"]
    assert side_by_side == 2
    assert cron == "20 5 * * *"
