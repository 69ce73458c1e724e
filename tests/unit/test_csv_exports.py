"""Formulas in exports: a table calculator obeys a cell that begins like one. Nothing here writes CSV, and that is kept.

Records are of strangers, and so are their names and titles. Whoever adds an export has to do what ADVICE says, test it
with such cells, and then may change this test.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("ingestion", "storage", "ml", "infra", "dags")
ADVICE = (
    "this writes CSV: put an apostrophe before each cell that begins with = + - @, a tab or a carriage return, or a "
    "table calculator takes the cell for a formula and runs it"
)
METHODS = {"to_csv", "write_csv", "CSVWriter", "DictWriter"}
COPY = re.compile(r"\bcopy\b[^;]*\bto\b[^;]*\bcsv\b", re.IGNORECASE)


def writers(code: str) -> Iterator[tuple[int, str]]:
    """Lines of a Python file that write CSV, by its own module, by a data frame, or in SQL."""
    tree = ast.parse(code)
    modules = {
        name.asname or name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for name in node.names
        if name.name == "csv"
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            own = node.attr == "writer" and isinstance(node.value, ast.Name) and node.value.id in modules
            if own or node.attr in METHODS:
                yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (
                (node.lineno, name.name)
                for name in node.names
                if name.name in METHODS or (node.module, name.name) == ("csv", "writer")
            )
        elif isinstance(node, ast.Constant | ast.JoinedStr):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)
            if COPY.search(text):
                yield node.lineno, "copy … to … csv"


PLANTED = [
    ("import csv\ncsv.writer(file).writerows(rows)", "writer"),
    ("import csv as table\ntable.DictWriter(file, names)", "DictWriter"),
    ("from csv import writer as put\nput(file)", "writer"),
    ("frame.to_csv(path)", "to_csv"),
    ("import pyarrow.csv\npyarrow.csv.write_csv(table, path)", "write_csv"),
    ("from pyarrow.csv import write_csv", "write_csv"),
    ('sql.copy_expert("COPY (select 1) TO STDOUT WITH (FORMAT csv)", file)', "copy … to … csv"),
    ('sql.copy_expert(f"""copy {table}\n to stdout (format csv)""", file)', "copy … to … csv"),
]


@pytest.mark.parametrize(("code", "what"), PLANTED, ids=[what for _, what in PLANTED])
def test_a_writer_of_csv_is_seen(code: str, what: str) -> None:
    assert what in {found for _, found in writers(code)}


def test_what_only_reads_csv_is_let_be() -> None:
    code = (
        'import csv\nfor row in csv.DictReader(file): sheet.writer(row)\nsql.run("copy raw.t from stdin (format csv)")'
    )
    assert list(writers(code)) == []


def test_nothing_writes_csv() -> None:
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(files) > 100
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}: {ADVICE}"
        for path in files
        for line, what in writers(path.read_text())
    ]
    found += [
        f"{path.relative_to(ROOT)}: {ADVICE}"
        for path in sorted((ROOT / "dbt_project").rglob("*.sql"))
        if COPY.search(path.read_text())
    ]
    assert found == []
