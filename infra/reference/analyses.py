"""Questions to the marts (dbt_project/analyses), asked as the analyst and answered as pages:

    python -m infra.reference.analyses [FOLDER]

dbt compiles them over the published marts; each gets a page with the question, the SQL, the answer as a table, and a
plot where its properties describe one. Nothing but what an analyst may read is needed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from infra.reference import plots
from infra.sentences import visible
from storage import roles, transform, warehouse
from storage.errors import Problem
from storage.settings import Settings, checkout, for_role

SHOWN = 20  # rows of an answer; the page says how many more there are
WIDEST = 60  # characters of a cell
SIMULATED = "is_simulated"  # an answer that may hold simulated data has this column


@dataclass(frozen=True)
class Question:
    """One file of dbt_project/analyses: what is asked, as written and as compiled, and how the answer is shown."""

    name: str
    text: str
    written: str
    compiled: str
    answer: str
    plot: dict[str, Any] | None


@dataclass(frozen=True)
class Answer:
    """The rows that a question gave; decimals as floats."""

    columns: list[str]
    rows: list[tuple[Any, ...]] = field(repr=False)

    def dicts(self) -> list[dict[str, Any]]:
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    @property
    def simulated(self) -> str:
        """``all``, ``some`` or ``none`` of the rows."""
        if SIMULATED not in self.columns:
            return "none"
        marks = [bool(row[self.columns.index(SIMULATED)]) for row in self.rows]
        return "all" if all(marks) else "some" if any(marks) else "none"


def questions(environment: Mapping[str, str]) -> list[Question]:
    """All questions, by name, compiled over what readers see, with the variables of a role in ``environment``.

    Raises Problem with dbt's words when one does not compile.
    """
    dbt = Path(sys.executable).parent / "dbt"
    with tempfile.TemporaryDirectory(prefix="lyrebird-analyses-") as folder:
        done = subprocess.run(
            [
                *(dbt, "--no-use-colors", "compile", "--select", "resource_type:analysis", "--target", "published"),
                *("--no-introspect", "--no-populate-cache", "--target-path", folder, "--log-path", folder),
            ],
            cwd=transform.project(),
            env=dict(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise Problem("dbt could not compile the analyses:\n" + "\n".join(done.stdout.splitlines()[-15:]))
        manifest = json.loads((Path(folder) / "manifest.json").read_text())
        found = [node for node in manifest["nodes"].values() if node["resource_type"] == "analysis"]
        return sorted((_question(node, Path(folder)) for node in found), key=lambda question: question.name)


def _question(node: dict[str, Any], target: Path) -> Question:
    compiled = target / "compiled" / node["package_name"] / node["original_file_path"]
    meta = node["config"]["meta"]
    return Question(
        node["name"], node["description"], node["raw_code"], compiled.read_text(), meta["answer"], meta.get("plot")
    )


def ask(question: Question, settings: Settings) -> Answer:
    """What the marts answer, under the role's own limits. The statement is undone: an analysis changes nothing."""
    with closing(warehouse.connect(settings, application="lyrebird analyses")) as db, db.cursor() as sql:
        sql.execute(question.compiled)
        columns = [column.name for column in sql.description or ()]
        return Answer(columns, [tuple(_plain(value) for value in row) for row in sql.fetchall()])


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() and value.as_tuple().exponent == 0 else float(value)
    return value


def page(question: Question, answer: Answer) -> str:
    """The page of one question, in Markdown."""
    parts = [f"# {question.text}", _sentence(question, answer)]
    if question.plot and answer.rows:
        parts.append(f"![{question.text}]({question.name}.svg)")
    parts += [_table(answer), "## The query", f"```sql\n{question.written.strip()}\n```"]
    parts.append(f"[All questions](README.md) · `dbt_project/analyses/{question.name}.sql`")
    return "\n\n".join(parts) + "\n"


def _sentence(question: Question, answer: Answer) -> str:
    """The answer in words, and a word on what was simulated."""
    if not answer.rows:
        return "No rows: the marts hold nothing to answer it with."
    rows = answer.dicts()
    told = visible(question.answer.format(first=rows[0], last=rows[-1], rows=len(rows)))
    words = {
        "all": f"{told} **Simulated**: all of it comes from simulated birds.",
        "some": f"{told} **Partly simulated**: rows with `{SIMULATED}` come from simulated birds.",
    }
    return words.get(answer.simulated, told)


def _table(answer: Answer) -> str:
    rows = [[_cell(value) for value in row] for row in answer.rows[:SHOWN]]
    kinds = [{type(row[at]) for row in answer.rows} - {type(None)} for at in range(len(answer.columns))]
    lines = [answer.columns, ["---:" if kind and kind <= {int, float} else "---" for kind in kinds], *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    left = len(answer.rows) - SHOWN
    return f"{table}\n\n{left} more rows." if left > 0 else table


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    text = visible(str(value)).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;").replace("`", "'")
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 1]}…"


def index(asked: Sequence[tuple[Question, Answer]]) -> str:
    """The first page: every question with its answer in a sentence."""
    lines = [
        "# Questions to the marts",
        f"Asked as the role `analyst`, with `make analytics`, on {datetime.now(UTC):%Y-%m-%d}. The SQL is in "
        "`dbt_project/analyses/`, over published marts alone. The pages in the repository are of a fresh installation "
        "(`make run`), whose birds are simulated: numbers about them say nothing about real birds.",
    ]
    for domain in sorted({question.name.split("_")[0] for question, _ in asked}, key=transform.DOMAINS.index):
        entries = [
            f"* [{question.text}]({question.name}.md)  \n  {_sentence(question, answer)}"
            for question, answer in asked
            if question.name.startswith(f"{domain}_")
        ]
        lines += [f"## {domain.capitalize()}", "\n".join(entries)]
    return "\n\n".join(lines) + "\n"


def write(folder: Path, settings: Settings, environment: Mapping[str, str]) -> list[str]:
    """Ask everything and write the pages and plots; gives their names. What was there before of them goes."""
    asked = [(question, ask(question, settings)) for question in questions(environment)]
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("*.md"), *folder.glob("*.svg")]:
        old.unlink()
    for question, answer in asked:
        (folder / f"{question.name}.md").write_text(page(question, answer), encoding="utf-8")
        if question.plot and answer.rows:
            plots.draw(question.plot, answer.dicts(), answer.simulated, folder / f"{question.name}.svg")
    (folder / "README.md").write_text(index(asked), encoding="utf-8")
    return sorted(path.name for path in folder.iterdir())


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else checkout() / "docs" / "analytics"
    roles.assume("analyst")
    for name in write(target, for_role("analyst"), os.environ):
        print(target / name)
