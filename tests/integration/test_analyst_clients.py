"""What an analyst types to reach the marts: psql, and the addresses for other clients."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg2
import pytest
from transform_world import World

from storage import transform
from storage.gates import publish

ROOT = Path(__file__).resolve().parents[2]
COUNT = "select count(*) from fct_recordings"


@pytest.fixture
def published(world: World) -> World:
    publish.publish("birds", world.settings("transformer"), say=print)
    return world


def typed(world: World, line: str, stdin: str = "") -> str:
    """What a line of shell prints, typed where the commands of the environment are available."""
    paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["/bin/sh", "-c", line],
        env=os.environ | world.variables("analyst") | {"PATH": paths},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_a_query_psql_opens_as_the_analyst_on_the_marts(published: World) -> None:
    script = f"\\pset format unaligned\n\\pset tuples_only on\nselect current_user;\n{COUNT};\n\\dv marts.*\n"
    shown = typed(published, "lyrebird sql", script).splitlines()
    assert shown[1:3] == ["analyst", "28"]
    assert [line.split("|")[1] for line in shown if line.startswith("marts|")] == transform.marts("birds")
    assert re.search(r"\b28\b", typed(published, f"lyrebird sql {shlex.quote(COUNT)}"))


def test_the_line_of_the_guide_lets_sqlalchemy_in(published: World) -> None:
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    line = re.search(r"^python -c .*lyrebird sql --url sqlalchemy.*$", guide, re.MULTILINE)
    assert line
    assert typed(published, line[0]) == "28"


def test_the_address_for_jdbc_leads_to_the_same_place(published: World) -> None:
    address = typed(published, "lyrebird sql --url jdbc")
    kind, _, rest = address.partition(":")
    assert kind == "jdbc"
    parts = urlsplit(rest)
    given = {name: values[0] for name, values in parse_qs(parts.query).items()}
    assert given.keys() == {"user", "password", "currentSchema"}
    with psycopg2.connect(
        host=parts.hostname, port=parts.port, dbname=parts.path[1:], user=given["user"], password=given["password"],
        options=f"-csearch_path={given['currentSchema']}",
    ) as db, db.cursor() as sql:  # fmt: skip
        sql.execute(f"select current_user::text, ({COUNT})")
        assert sql.fetchone() == ("analyst", 28)
