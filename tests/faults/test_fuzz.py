"""A short run of the fuzzer: other inputs with each commit, and the ones that found something for ever.

What the long runs found is told in docs/fuzzing.md.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import fuzz
import pytest

from storage.errors import Problem


def start() -> int:
    """A number that changes with the commit; always the same where there is no repository."""
    command = ["git", "rev-parse", "--short=7", "HEAD"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return int(done.stdout, 16) if done.returncode == 0 else 0


def test_no_input_breaks_a_reader() -> None:
    tallies = fuzz.run(list(fuzz.KINDS), start(), inputs=100)
    assert {kind: tally.findings for kind, tally in tallies.items()} == {kind: [] for kind in fuzz.KINDS}
    for kind, tally in tallies.items():
        assert tally.refused >= 5, kind
        assert tally.taken >= 5, kind  # inputs that are refused at the first byte would try nothing


FOUND = {"score": 1_000_900}  # what long runs found, beside what has a test of its own


@pytest.mark.parametrize("kind", FOUND)
def test_what_was_found_once_is_mended(kind: str) -> None:
    assert fuzz.run([kind], FOUND[kind], inputs=1)[kind].findings == []


def test_the_same_number_is_the_same_input() -> None:
    for kind in fuzz.KINDS:
        assert fuzz.made(kind, 7) == fuzz.made(kind, 7)
        assert fuzz.made(kind, 7) != fuzz.made(kind, 8)


def misbehaves(kind: str, body: bytes) -> None:
    """A reader with every fault there is."""
    if kind == "an error":
        raise ValueError("odd")
    if kind == "a crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "a hang":
        time.sleep(9)
    if kind == "memory":
        bytearray(b"x") * (100 << 20)
    if kind == "a poor sentence":
        raise Problem("two\nlines")


FAULTS = {
    "an error": "ValueError: odd",
    "a crash": "the process ended with -11",
    "a hang": "more than 1 seconds",
    "memory": "MB",
    "a poor sentence": "a poor sentence: 'two",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_fuzzer_finds_what_is_wrong(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "SECONDS", 1.0)
    monkeypatch.setattr(fuzz, "MEGABYTES", 50)
    with fuzz.Reader(misbehaves) as reader:
        assert reader.read("nothing", b"") == "taken"
        assert FAULTS[fault] in reader.read(fault, b"")
        assert reader.read("nothing", b"") == "taken"
