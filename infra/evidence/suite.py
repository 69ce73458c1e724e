"""Keep what a run of the tests came to, as a page, out of the JUnit files that pytest writes, one for each part of it:

    python -m infra.evidence.suite .pytest_cache/long.xml docs/results/long.md

How many there were and how long they took, by file; and one by one those that took long, were skipped or failed.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from defusedxml import ElementTree

from infra.evidence.record import anonymous
from storage.settings import checkout

SLOW = 10.0  # seconds from which on a test is shown by itself
OUTCOMES = {"failure": "failed", "error": "failed", "skipped": "skipped"}


@dataclass(frozen=True)
class Test:
    """One test: the file it is in, its name with its parameters, what became of it, seconds, and why."""

    file: str
    name: str
    outcome: str
    seconds: float
    reason: str = ""
    facts: tuple[str, ...] = ()  # what it has recorded (pytest's record_property)


def read(*files: Path) -> tuple[str, list[Test]]:
    """When the run began (ISO 8601), and its tests. Raises OSError and ParseError for what is no such file."""
    suites = [suite for file in files for suite in ElementTree.parse(file).getroot().iter("testsuite")]
    began = min(suite.get("timestamp", "") for suite in suites)
    return began, [_test(case) for suite in suites for case in suite.iter("testcase")]


def _test(case: ElementTree.Element) -> Test:
    told = next((one for one in case if one.tag in OUTCOMES), None)
    reason = (told.get("message") or "").splitlines() if told is not None else []
    return Test(
        case.get("classname", "").replace(".", "/") + ".py",
        case.get("name", ""),
        OUTCOMES[told.tag] if told is not None else "passed",
        float(case.get("time", 0)),
        anonymous(reason[0])[:200] if reason else "",
        tuple(fact.get("value", "") for fact in case.iter("property")),
    )


def page(title: str, began: str, tests: list[Test]) -> str:
    """The page, in Markdown."""
    facts = [
        f"Began {began[:19]}",
        f"commit {commit()}",
        f"{os.cpu_count()} cores, Python {platform.python_version()}",
    ]
    if seed := os.environ.get("LYREBIRD_SEED"):
        facts.append(f"LYREBIRD_SEED={seed}")
    files = {one.file: [test for test in tests if test.file == one.file] for one in tests}
    counted = [(name, *_counts(of_file)) for name, of_file in sorted(files.items())]
    apart = sorted((one for one in tests if one.outcome != "passed" or one.seconds >= SLOW), key=_by_weight)
    shown = [(one.file, one.name, one.outcome, f"{one.seconds:.1f}", one.reason) for one in apart]
    head = ("passed", "skipped", "failed", "seconds")
    parts = [
        f"# {title}",
        f"Written by `python -m infra.evidence.suite`. {'; '.join(facts)}.",
        _table(("file", *head), [*counted, ("all", *_counts(tests))]),
        f"## Failed, skipped, or longer than {SLOW:.0f} seconds",
        _table(("file", "test", "outcome", "seconds", "why"), shown),
        *(f"## {one.name}\n\n```\n{anonymous(fact)}\n```" for one in tests for fact in one.facts),
    ]
    return "\n\n".join(parts) + "\n"


def _by_weight(test: Test) -> tuple[int, float]:
    return ("failed", "skipped", "passed").index(test.outcome), -test.seconds


def _counts(tests: list[Test]) -> tuple[int | str, ...]:
    outcomes = [one.outcome for one in tests]
    counts = (outcomes.count(outcome) for outcome in ("passed", "skipped", "failed"))
    return (*counts, f"{sum(one.seconds for one in tests):.1f}")


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    cells = [head, ("---",) * len(head), *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def commit() -> str:
    """The commit that was tested, with a + where the files differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=checkout(), capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")


if __name__ == "__main__":
    *parts, target = map(Path, sys.argv[1:])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page("All tests, the long ones among them", *read(*parts)), encoding="utf-8")
