"""The `lyrebird` command without a stack: quick help, and one sentence for each mistake a person can make."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra import cli, using
from ml import lineage

HEAVY = {"torch", "airflow", "mlflow", "dbt", "great_expectations", "music21", "pandas", "pyarrow", "boto3", "scrapy"}
ROLES = ("admin", "loader", "transformer", "trainer", "analyst")

# Asks every command for its help, and says how much each said and what had been imported by then.
HELP = """
import json, sys
import typer
from typer.testing import CliRunner
from infra.commands import app

def paths(command, path=()):
    yield list(path)
    for name, inner in getattr(command, "commands", {}).items():
        yield from paths(inner, (*path, name))

found = {}
for path in paths(typer.main.get_command(app)):
    answer = CliRunner().invoke(app, [*path, "--help"])
    found[" ".join(path)] = [answer.exit_code, answer.output]
print(json.dumps({"help": found, "modules": sorted({name.split(".")[0] for name in sys.modules})}))
"""


# Does what the console script does; Ctrl-C comes when the module named first is looked for.
INTERRUPTED = """
import os, signal, sys
module = sys.argv.pop(1)

class Finger:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finger())
from infra.cli import main
main()
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state folder whose roles have credentials for servers that do not run."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("LYREBIRD_")]:
        del os.environ[name]
    os.environ["LYREBIRD_HOME"] = str(tmp_path / "state")
    secrets = tmp_path / "state" / "secrets"
    secrets.mkdir(parents=True)
    for role in ROLES:
        values = {
            "ROLE": role, "POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": "1", "POSTGRES_USER": role,
            "POSTGRES_PASSWORD": "geheim", "S3_ENDPOINT": "http://127.0.0.1:1", "S3_ACCESS_KEY": role,
            "S3_SECRET_KEY": "geheim", "CACHE_URL": f"redis://{role}:geheim@127.0.0.1:1/0",
            "MONGO_URL": f"mongodb://{role}:geheim@127.0.0.1:1/",
        }  # fmt: skip
        (secrets / f"{role}.env").write_text("".join(f"LYREBIRD_{name}={value}\n" for name, value in values.items()))
    yield tmp_path / "state"
    os.environ.clear()
    os.environ.update(before)


class Outcome:
    def __init__(self, code: Any, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def lyrebird(home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Run the command's own entry point; anything but an exit is a stack trace that a person would have seen."""

    def run(*words: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["lyrebird", *words])
        capfd.readouterr()
        try:
            cli.main()
            code: Any = 0
        except SystemExit as exit:
            code = exit.code or 0
        return Outcome(code, *capfd.readouterr())

    return run


def one_sentence(outcome: Outcome) -> str:
    assert outcome.code == 1, (outcome.code, outcome.err)
    lines = outcome.err.strip().splitlines()
    assert lines[-1].startswith("lyrebird: "), outcome.err
    assert sum(line.startswith("lyrebird: ") for line in lines) == 1, outcome.err
    assert "Traceback" not in outcome.err
    assert "geheim" not in outcome.err + outcome.out
    assert not outcome.out
    return lines[-1].removeprefix("lyrebird: ")


def test_every_command_has_help_and_none_imports_what_it_does_not_need() -> None:
    child = subprocess.run([sys.executable, "-c", HELP], check=False, capture_output=True, text=True, timeout=60)
    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout)
    assert len(found["help"]) > 35
    for command, (code, said) in found["help"].items():
        assert code == 0, command
        assert len(said.split("Usage:")[1].splitlines()) > 3, command
        for word in command.split()[:-1]:
            assert word in said
    assert HEAVY.isdisjoint(found["modules"]), HEAVY.intersection(found["modules"])


@pytest.mark.parametrize(
    "words", [["--help"], ["ingest", "--help"], ["train", "--help"], ["evaluate", "music", "--help"]]
)
def test_help_comes_at_once(words: list[str]) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "infra.cli", *words], check=True, capture_output=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # processor time: what a person waits for on a machine with nothing else to do
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


@pytest.mark.parametrize(
    "module", ["infra.commands", "typer", "pydantic_settings", "storage.roles", "rich", "infra.embedded.stack"]
)
def test_ctrl_c_is_one_line_whatever_is_being_imported(tmp_path: Path, module: str) -> None:
    child = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, module, "status"],
        check=False, capture_output=True, text=True, timeout=60, env=os.environ | {"LYREBIRD_HOME": str(tmp_path)},
    )  # fmt: skip
    assert child.stderr == "lyrebird: interrupted; run the same command again to go on\n"
    assert child.returncode == 130
    assert child.stdout == ""


MISTAKES = [
    (["ingest", "nosuch"], "there is no source nosuch. There are: aviary, "),
    (["audit", "nosuch"], "there is no source nosuch"),
    (["replay", "nosuch"], "there is no source nosuch"),
    (["ingest", "aviary", "--resource", "nope"], "aviary has no resource nope. It has: recordings, audio"),
    (["transform", "fish"], "there is no domain fish. The domains: birds, music, text, platform"),
    (["transform", "birds", "--step", "fly"], "there is no step fly. The steps: core, splits, marts, audit, publish"),
    (["train", "nosuch"], "there is no task 'nosuch'. The tasks are "),
    (["dataset", "freeze", "nosuch"], "there is no task 'nosuch'"),
    (["predict", "nosuch"], "there is no task 'nosuch'"),
    (["tasks", "fish"], "there is no family of models 'fish'. The families are birds, music, translation"),
    (["lineage", "example", "fish", "1"], "there is no task 'fish'"),
    (["model", "import", "/no/such/run"], "/no/such/run holds no finished run"),
    (["translate"], "there is nothing to translate, or too much. Give sentences, or --input FILE"),
    (["translate", "Hello", "--input", "file"], "there is nothing to translate, or too much"),
    (
        ["translate", "Hello", "--output", "/no/f"],
        "cannot write /no/f: No such file or directory. Name another file with",
    ),
    (["translate", "Hello", "--attention", "/no/x.png"], "cannot write /no/x.png: No such file or directory. Name"),
    (["translate", "Hello", "--output", "/"], "cannot write /: Is a directory"),
    (["compose", "--output", "/no/tune.mid"], "cannot write /no/tune.mid: No such file or directory"),
    (
        ["translate", "Hello", "--to", "zz"],
        "there is no language with the code 'zz'. Give one of ISO 639, such as en or eng",
    ),
    (
        ["translate", "Hello", "--from", "de", "--to", "fr"],
        "there is no model from de to fr. Models translate from English, --from en",
    ),
    (["evaluate", "translation", "--source", "/no/s", "--reference", "/no/r"], "cannot read /no/s: No such file"),
    (["ingest", "aviary", "--since", "2026-01-01"], "--since and --until are the two ends of an interval. Give both"),
    (["ingest", "aviary", "--until", "2026-01-01"], "--since and --until are the two ends of an interval. Give both"),
    (["marts", "rollback", "fish"], "there is no domain fish. The domains: birds, music, text, platform"),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_a_mistake_is_one_sentence_that_names_the_right_ones(lyrebird: Any, words: list[str], said: str) -> None:
    assert one_sentence(lyrebird(*words)).startswith(said)


WITHOUT_SERVERS = [
    ["ingest", "aviary"], ["audit", "aviary"], ["replay", "aviary"], ["ledger"], ["quarantine", "list"],
    ["quarantine", "show", "1"], ["transform", "birds"], ["transform", "birds", "--step", "core"], ["docs"],
    ["dataset", "list"], ["dataset", "show", "x"], ["dataset", "verify", "x"], ["train", "birds-aviary"],
    ["marts", "rollback", "birds"], ["warehouse", "rebuild"],
    ["tasks"], ["model", "list"], ["prediction", "a", "b"], ["identify", "a.wav"],
    ["lineage", "example", "birds", "a"], ["lineage", "example", "birds", "a", "--recompute"],
    ["evaluate", "birds", "--folder", "a", "--labels", "b"],
]  # fmt: skip


@pytest.mark.parametrize("words", WITHOUT_SERVERS, ids=" ".join)
def test_servers_that_do_not_run_are_named(lyrebird: Any, words: list[str]) -> None:
    said = one_sentence(lyrebird(*words))
    assert "127.0.0.1:1 does not answer" in said
    assert "lyrebird status" in said


@pytest.mark.parametrize(
    "words",
    [
        ["ingest", "aviary"], ["transform", "birds"], ["train", "birds-aviary"], ["sql", "select 1"], ["env"],
        ["identify", "a.wav"], ["lineage", "prediction", "a", "b"], ["tasks", "--json"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_before_the_first_up_it_says_how_to_start(lyrebird: Any, home: Path, words: list[str]) -> None:
    for file in (home / "secrets").iterdir():
        file.unlink()
    said = one_sentence(lyrebird(*words))
    assert said.startswith("no credentials for the role ")
    assert said.endswith("Start the stack with `make up`")


def test_before_the_first_up_there_is_no_password_and_none_is_made(lyrebird: Any, home: Path) -> None:
    shutil.rmtree(home)
    assert one_sentence(lyrebird("password")) == (
        f"there are no passwords in {home / 'secrets'} yet. Start the stack with `make up`"
    )
    assert not home.exists()
    (home / "secrets").mkdir(parents=True)
    assert "Start the stack" in one_sentence(lyrebird("password"))
    assert list((home / "secrets").iterdir()) == []


def test_files_to_score_are_read_before_a_model_is_fetched(lyrebird: Any, tmp_path: Path) -> None:
    files = {"two": b"one\ntwo", "three": b"eins\nzwei\ndrei\n", "latin": "eins\ngrün\n".encode("latin-1")}
    for name, body in files.items():
        (tmp_path / name).write_bytes(body)

    def said(source: str, reference: str) -> str:
        words = ["--source", str(tmp_path / source), "--reference", str(tmp_path / reference)]
        return one_sentence(lyrebird("evaluate", "translation", *words))

    assert said("two", "latin").startswith(f"{tmp_path / 'latin'}, line 2, is no UTF-8. Convert the file first")
    assert said("two", "three").startswith(f"{tmp_path / 'two'} has 2 lines and {tmp_path / 'three'} has 3. Give two")
    assert said("two", "two").startswith("no LYREBIRD_MLFLOW_URL")  # the files are good: now a model is wanted


def test_looking_whether_a_file_can_be_written_leaves_it_as_it_is(lyrebird: Any, tmp_path: Path) -> None:
    kept, new = tmp_path / "kept.txt", tmp_path / "new.png"
    kept.write_text("mine")
    one_sentence(lyrebird("translate", "Hello", "--output", str(kept), "--attention", str(new)))
    assert kept.read_text() == "mine"
    assert not new.exists()


@pytest.mark.parametrize("reasons", [[], ["page 3 gives something else", "page 4 gives nothing"]])
def test_an_example_that_landing_does_not_give_again_is_an_error(
    lyrebird: Any, monkeypatch: pytest.MonkeyPatch, reasons: list[str]
) -> None:
    monkeypatch.setattr(lineage, "example", lambda family, key, settings: {"key": key})
    monkeypatch.setattr(lineage, "recompute", lambda tree, settings, differences: reasons)
    outcome = lyrebird("lineage", "example", "birds", "a", "--recompute", "--json")
    assert json.loads(outcome.out) == {"key": "a", "recomputed": not reasons}
    told = f"do not give this example again: {'; '.join(reasons)}. "
    assert (outcome.code, told in outcome.err) == (1 if reasons else 0, bool(reasons))


def test_languages_are_named_by_either_code() -> None:
    names = {using.model_of_pair(source, target) for source in ("en", "eng") for target in ("es", "spa")}
    assert names == {"translation-en-es"}
    assert using.model_of_pair("eng", "cmn") == "translation-en-zh"  # Mandarin counts as Chinese
    assert using.model_of_pair("en", "tlh") == "translation-en-tlh"


@pytest.mark.parametrize(
    "words",
    [
        ["--nope"], ["nosuch"], ["ingest"], ["ingest", "aviary", "--nope"], ["ingest", "aviary", "more"],
        ["quarantine", "show", "abc"], ["ingest", "aviary", "--since", "yesterday"], ["identify"],
        ["model", "promote", "birds-aviary", "one"], ["evaluate", "music"], ["dataset", "burn"],
        ["compose", "--frames", "many"], ["env", "--role", "nobody"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage_exits_with_2_and_no_stack_trace(lyrebird: Any, words: list[str]) -> None:
    outcome = lyrebird(*words)
    assert outcome.code == 2, outcome.err
    assert "Error" in outcome.err
    assert "Traceback" not in outcome.err
    assert not outcome.out


@pytest.mark.parametrize(
    "group", [[], ["dataset"], ["model"], ["quarantine"], ["warehouse"], ["evaluate"], ["lineage"]], ids=str
)
def test_a_word_alone_shows_what_can_follow(lyrebird: Any, group: list[str]) -> None:
    outcome = lyrebird(*group)
    assert outcome.code == 2
    assert "--help" in outcome.out + outcome.err


def test_status_of_nothing_is_one_document(lyrebird: Any) -> None:
    outcome = lyrebird("status", "--json")
    assert outcome.code == 0
    services = json.loads(outcome.out)
    assert {service["state"] for service in services} == {"stopped"}
    assert outcome.out.count("\n") == 1


def test_a_broken_options_file_is_named_with_its_line(lyrebird: Any, home: Path) -> None:
    from storage.settings import options

    (home / "lyrebird.toml").write_text("[sources.aviary]\nrecordings = many\n")
    with pytest.raises(Exception, match=r"lyrebird\.toml is no TOML: .*line 2"):
        options()
    (home / "lyrebird.toml").write_bytes(b"[sources.aviary]\nplace = '\xff'\n")
    with pytest.raises(Exception, match=r"lyrebird\.toml is no TOML"):
        options()


def test_a_command_takes_on_its_role_and_no_other(lyrebird: Any, home: Path) -> None:
    os.environ |= {"LYREBIRD_ROLE": "admin", "LYREBIRD_MLFLOW_PASSWORD": "left over", "LYREBIRD_POSTGRES_USER": "admin"}
    lyrebird("ledger")
    ours = {name: value for name, value in os.environ.items() if name.startswith("LYREBIRD_")}
    assert ours["LYREBIRD_ROLE"] == ours["LYREBIRD_POSTGRES_USER"] == "loader"
    assert "LYREBIRD_MLFLOW_PASSWORD" not in ours
