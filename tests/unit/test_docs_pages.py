"""What the pages tell a reader to type, open or look at is there: commands, options, files, links, settings."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import typer
import yaml

from infra import commands
from ingestion import catalogue
from ml import tasks
from ml.training import config

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in (ROOT, *(ROOT / "docs" / name for name in ("", "decisions", "dictionary", "analytics")))
    for path in folder.glob("*.md")
)
FOLDERS = ("dags", "dbt_project", "docs", "infra", "ingestion", "ml", "storage", "tests")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
COMMANDS: Any = typer.main.get_command(commands.app)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(read(page)) if kind == language]


def prose(page: str) -> str:
    return FENCE.sub("", read(page))


def words_of(script: str) -> Iterator[list[str]]:
    """The simple commands of a few lines of shell, as words; those inside $(…) too."""
    for line in script.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        command: list[str] = []
        for word in lexer:
            inner = re.fullmatch(r"\$\((.*)\)", word)
            if inner:
                yield from words_of(inner[1])
            elif set(word) <= set(";&|"):
                yield command
                command = []
            else:
                command.append(word)
        yield command


def typed(page: str) -> list[list[str]]:
    """Every command in the page's blocks of shell."""
    whole = [body.replace("\\\n", " ") for body in blocks(page, "sh")]
    found = [words for body in whole for words in words_of(body) if words]
    return [[words[0].removeprefix(".venv/bin/"), *words[1:]] for words in found]


def mentioned(text: str) -> list[list[str]]:
    """Every command in a running text: what stands between backticks and begins with a program's name."""
    spans = re.findall(r"(?<!`)`((?:lyrebird|make|python -m) [^`]+)`", text)
    return [words for span in spans for words in words_of(" ".join(span.split())) if words]


def named(words: list[str]) -> tuple[Any, list[str]]:
    """The command of `lyrebird` that the words name, and its arguments. Fails where there is none."""
    command, rest = COMMANDS, list(words)
    while hasattr(command, "commands") and rest:
        name = rest.pop(0)
        assert name in command.commands, f"lyrebird {' '.join(words)}: there is no {name}"
        command = command.commands[name]
    return command, rest


def check_python(words: list[str]) -> None:
    """`python -m MODULE FLAGS`: the module is there, and a training script takes the flags."""
    if words[:1] != ["-m"] or words[1] == "pytest":
        return
    assert importlib.util.find_spec(words[1]), words
    family = re.fullmatch(r"ml\.(\w+)\.train", words[1])
    if family and len(words) > 2 and "--help" not in words:
        module = importlib.import_module(words[1])
        config.parse("", module.PRESETS, words[2:])


def check_settings(words: list[str]) -> None:
    """`lyrebird train TASK --set KEY=VALUE`: the task is there, and has these settings."""
    module = importlib.import_module(f"ml.{tasks.task(words[0]).family}.train")
    given = [value for flag, value in pairwise(words) if flag == "--set"]
    config.override_both(*module.PRESETS["smoke"], given)


OTHERS = ("Clear task", "certificate verify failed", "Authentication failed", "gave text/html, not")  # say these


def test_messages_that_the_runbook_explains_are_those_that_are_said() -> None:
    """What stands between asterisks there, but for what a message has in place of the dots."""
    texts = []
    for folder in ("infra", "ingestion", "ml", "storage"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    texts.append("".join(one.value if isinstance(one, ast.Constant) else "…" for one in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    said = " ".join(" ".join(texts).split()).lower()
    shown = re.findall(r"(?<![\w*])\*(?!\*|\s)([^*]+?)\*(?![\w*])", prose("docs/runbook.md"))
    parts = [part.strip(" .,:;") for one in shown for part in " ".join(one.split()).split("…")]
    assert len(parts) > 60
    assert [part for part in parts if part.lower() not in said and part not in OTHERS] == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_to_type_are_accepted(page: str) -> None:
    for program, *words in typed(page):
        if program == "make":
            assert words[0] in TARGETS or words[0].startswith("reproduce-"), f"make {words[0]}"
        elif program == "lyrebird":
            command, rest = named(words)
            given = ["1" if word == "VERSION" and command.name == "promote" else word for word in rest]
            command.make_context(words[0], given)  # parses, and raises what a person would be told
            if words[0] == "train":
                check_settings(rest)
        elif program in ("python", "python3"):
            check_python([word for word in words if not word.startswith(">")])


def texts(source: Path) -> Iterator[str]:
    """Every text in a file of Python; what is filled in stands as …"""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def check_mentioned(program: str, words: list[str]) -> None:
    if program == "make":
        assert words[0] in TARGETS or words[0].startswith("reproduce-"), f"make {words[0]}"
    elif program == "lyrebird":
        command, rest = named(words)
        known = {flag for option in command.params for flag in option.opts}
        assert {word for word in rest if word.startswith("--")} <= known, words
    else:
        assert importlib.util.find_spec(words[1]), words


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_are_mentioned_exist(page: str) -> None:
    for program, *words in mentioned(prose(page)):
        check_mentioned(program, words)


def test_commands_that_programs_tell_people_to_run_exist() -> None:
    sources = [
        path for package in ("dags", "infra", "ingestion", "ml", "storage") for path in (ROOT / package).rglob("*.py")
    ]
    told = [words for source in sources for text in texts(source) for words in mentioned(text)]
    spoken = [words for words in told if words[0] != "python" and words[1] != "…"]
    assert len(spoken) > 40
    for program, *words in spoken:
        check_mentioned(program, words)


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    spans = re.findall(r"`([\w./*-]+)`", prose(page))
    for name in spans:
        made = "checklist" in name or name.startswith("infra/compose/secrets/")  # by the reader, by a command
        if name.split("/")[0] in FOLDERS and "/" in name and not made:
            assert list(ROOT.glob(name.rstrip("/"))), f"there is no {name}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http:", "https:")):
            continue
        path, _, anchor = target.partition("#")
        there = (ROOT / page).parent / path if path else ROOT / page
        assert there.exists(), f"there is no {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}, target


@pytest.mark.parametrize("page", PAGES)
def test_marts_that_are_queried_exist(page: str) -> None:
    marts = {path.stem: path.parent / "_models.yml" for path in (ROOT / "dbt_project/models/marts").glob("*/*.sql")}
    for program, *words in typed(page):
        if program == "lyrebird" and words[0] == "sql" and len(words) > 1 and not words[1].startswith("--"):
            query = words[1]
            mart = re.search(r"\bfrom (\w+)", query)
            assert mart and mart[1] in marts, query
            models = yaml.safe_load(marts[mart[1]].read_text())["models"]
            columns = {c["name"] for m in models if m["name"] == mart[1] for c in m["columns"]}
            text = re.sub(r"'[^']*'", "", query[: mart.start()]) + query[mart.end() :]
            names = set(re.findall(r"[a-z_]+", re.sub(r"'[^']*'", "", text)))
            spoken = {"select", "where", "group", "order", "by", "desc", "limit", "count", "as", "and"}
            aliases = set(re.findall(r"\bas (\w+)", text))
            assert names - spoken - aliases <= columns, f"{mart[1]} has no {names - spoken - aliases - columns}"


@pytest.mark.parametrize("page", PAGES)
def test_options_files_hold_options_that_there_are(page: str) -> None:
    for body in blocks(page, "toml"):
        given = tomllib.loads(body)
        assert given.keys() <= {"sources", "train"}
        assert given.get("train", {}).keys() <= {"preset", "set"}
        for name, values in given.get("sources", {}).items():
            assert values.keys() <= catalogue.source(name).config.keys(), name


@pytest.mark.parametrize("page", [*PAGES, "docs/architecture.svg", ".pre-commit-config.yaml"])
def test_pages_hold_no_address_of_a_machine_or_a_registry(page: str) -> None:
    found = re.findall(r"/work/\S*|/root/\S*|/home/\S*|pypi\.org|pythonhosted\.org|index-url", read(page))
    assert not found


def test_the_readme_says_the_same_in_russian() -> None:
    english, russian = read("README.md"), read("README.ru.md")
    levels = [re.findall(r"^(#+) ", FENCE.sub("", text), re.MULTILINE) for text in (english, russian)]
    assert levels[0] == levels[1]
    assert FENCE.findall(english) == FENCE.findall(russian)  # code is code in any language
    links = [set(re.findall(r"\]\(([^)\s]+)\)", text)) - {"README.md", "README.ru.md"} for text in (english, russian)]
    assert links[0] == links[1]
    shapes = [
        re.findall(r"^(?:\* |\| |\d\. |\*\*\d)", FENCE.sub("", text), re.MULTILINE) for text in (english, russian)
    ]
    assert shapes[0] == shapes[1]  # as many points, rows and steps
    assert len(re.findall("[а-яё]", FENCE.sub("", russian))) > 4000


def test_the_gpu_node_is_told_to_install_what_training_needs() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    line = next(words for words in typed("README.md") if words[:2] == ["pip", "install"])
    assert line[2 : line.index("-c")] == project["train"]


def lessons() -> list[tuple[str, str]]:
    parts = re.split(r"^## (\d+)\. .*$", read("docs/course.md"), flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def test_the_course_has_twenty_lessons_with_file_command_and_state() -> None:
    assert [number for number, _ in lessons()] == [str(number) for number in range(1, 21)]
    for number, body in lessons():
        assert "**Where:** " in body and "**So far:** " in body, number
        assert len(FENCE.findall(body)) == 1, number
        where = body.split("**Where:**")[1].split("```")[0]
        files = re.findall(r"`([\w./-]+)`", where)
        assert any((ROOT / name).exists() for name in files), number


SHOWN = [words[2] for words in typed("docs/course.md") if words[0] == "python" and words[1] == "-c"]


@pytest.mark.parametrize("code", SHOWN)
def test_what_the_course_shows_runs(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(code, {})  # noqa: S102 - the page's own line
    assert capsys.readouterr().out.strip()


def test_the_course_shows_enough_without_servers() -> None:
    assert len(SHOWN) >= 8


def test_the_picture_can_be_read() -> None:
    tree = ElementTree.fromstring(read("docs/architecture.svg"))  # noqa: S314 - our own file
    space = "{http://www.w3.org/2000/svg}"
    words = " ".join("".join(text.itertext()) for text in tree.iter(f"{space}text"))
    stages = "Airflow Sources Landing MongoDB PostgreSQL Audit dbt Marts Training Registry Prediction"
    assert [stage for stage in stages.split() if stage not in words] == []
    assert tree.find(f"{space}title") is not None
    assert "prefers-color-scheme: dark" in read("docs/architecture.svg")
    assert "](docs/architecture.svg)" in read("README.md")


def test_commit_hooks_call_tools_of_the_environment_and_download_nothing() -> None:
    repos = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    for hook in repos[0]["hooks"]:
        tool = hook["entry"].split()[0]
        assert tool.startswith(".venv/bin/"), hook["id"]
        assert (Path(sys.executable).parent / Path(tool).name).exists(), hook["id"]
        assert hook["language"] in ("unsupported", "system"), hook["id"]


def test_the_licence_is_whole_and_the_one_that_the_package_names() -> None:
    text = read("LICENSE")
    assert tomllib.loads(read("pyproject.toml"))["project"]["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
    assert "Copyright Lyrebird contributors" in text and "[yyyy]" not in text
