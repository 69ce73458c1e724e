"""What is kept of a run of the tests: counts by file; what failed, was skipped or took long; no paths of a machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.evidence import suite
from storage.settings import checkout

XML = """<?xml version="1.0" encoding="utf-8"?>
<testsuites name="pytest tests"><testsuite name="pytest" errors="1" failures="1" skipped="1" tests="6"
 time="99.0" timestamp="2026-11-24T01:02:03.456789+00:00" hostname="secret-host">
<testcase classname="tests.unit.test_a" name="test_quick" time="0.25"><properties>
<property name="kills" value="3 of 4&#10;1 open" /></properties></testcase>
<testcase classname="tests.unit.test_a" name="test_slow[a|b]" time="12.5" />
<testcase classname="tests.unit.test_a" name="test_left_out" time="0.0"><skipped type="pytest.skip"
 message="the data is not at {folder}/data">long
text</skipped></testcase>
<testcase classname="tests.e2e.test_b" name="test_wrong" time="1.0"><failure message="assert 1 == 2&#10;more">trace
</failure></testcase>
<testcase classname="tests.e2e.test_b" name="test_broken" time="2.0"><error message="failed on setup">trace</error>
</testcase>
</testsuite></testsuites>
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    file = tmp_path / "long.xml"
    file.write_text(XML.replace("{folder}", str(checkout())))
    return file


def test_parts_of_a_run_become_one(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.xml"
    other.write_text(run.read_text().replace("2026-11-24", "2026-11-23"))
    began, tests = suite.read(run, other)
    assert began.startswith("2026-11-23")
    assert len(tests) == 2 * len(suite.read(run)[1])


def test_a_run_becomes_a_page(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LYREBIRD_SEED", "77")
    text = suite.page("The long tests", *suite.read(run))
    lines = text.splitlines()
    assert lines[0] == "# The long tests"
    assert "Began 2026-11-24T01:02:03; commit " in lines[2]
    assert lines[2].endswith("; LYREBIRD_SEED=77.")
    assert [line for line in lines if line.startswith("| tests/") or line.startswith("| all")] == [
        "| tests/e2e/test_b.py | 0 | 0 | 2 | 3.0 |",
        "| tests/unit/test_a.py | 2 | 1 | 0 | 12.8 |",
        "| all | 2 | 1 | 2 | 15.8 |",
        "| tests/e2e/test_b.py | test_broken | failed | 2.0 | failed on setup |",
        "| tests/e2e/test_b.py | test_wrong | failed | 1.0 | assert 1 == 2 |",
        "| tests/unit/test_a.py | test_left_out | skipped | 0.0 | the data is not at ./data |",
        r"| tests/unit/test_a.py | test_slow[a\|b] | passed | 12.5 |  |",
    ]
    assert text.endswith("## test_quick\n\n```\n3 of 4\n1 open\n```\n")
    assert "secret-host" not in text
    assert str(checkout()) not in text
