"""An installation of its own for tests that run the `lyrebird` command as a person does, and what it leaves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2

from infra.embedded import stack as embedded

COMMAND = [sys.executable, "-m", "infra.cli"]
# What may differ between two runs: when something happened, and keys made of that.
VOLATILE = {"timestamp with time zone", "interval"}
MADE_OF_TIME = {"version_id"}


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder for installations, which PostgreSQL's own user may pass through."""
    folder = Path(tempfile.mkdtemp(prefix="lyre-"))  # short: a socket's path may have 100 characters
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def lyrebird(home: Path, *words: str) -> subprocess.Popen[bytes]:
    """A command of the installation at `home`, in a group of its own, its output beside the state."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LYREBIRD_")}
    with (home.parent / f"{home.name}.out").open("ab") as out:
        return subprocess.Popen(
            [*COMMAND, *words], stdout=out, stderr=out, start_new_session=True,
            env=environment | {"LYREBIRD_HOME": str(home)},
        )  # fmt: skip


@contextmanager
def installation(folder: Path, name: str, options: str = "") -> Iterator[Path]:
    """A state folder with these options; its stack is stopped in the end."""
    home = folder / name
    home.mkdir(mode=0o755)
    (home / "lyrebird.toml").write_text(options)
    try:
        yield home
    finally:
        embedded.down(home)


def finish(home: Path) -> str:
    """Run the whole chain, which must end well; what it printed."""
    child = lyrebird(home, "run")
    code = child.wait(timeout=1800)
    output = (home.parent / f"{home.name}.out").read_text()
    assert code == 0, output[-3000:]
    return output


def query(home: Path, statement: str) -> list[tuple[Any, ...]]:
    with closing(admin(home)) as db, db, db.cursor() as sql:
        sql.execute(statement)
        return sql.fetchall()


def admin(home: Path) -> psycopg2.extensions.connection:
    lines = (home / "secrets" / "admin.env").read_text().splitlines()
    said = dict(line.removeprefix("LYREBIRD_POSTGRES_").split("=", 1) for line in lines if "_POSTGRES_" in line)
    return psycopg2.connect(
        host=said["HOST"], port=said["PORT"], user=said["USER"], password=said["PASSWORD"], dbname="lyrebird"
    )


def outcome(home: Path) -> dict[str, Any]:
    """Checksums of every published table of the domains, the newest version of each dataset, the champions' scores."""
    found: dict[str, Any] = {}
    with closing(admin(home)) as db, db, db.cursor() as sql:
        sql.execute(
            "select unnest(marts) from (select distinct on (domain) * from ops.publication where domain <> 'platform' "
            "order by domain, version desc) as newest"
        )
        for (mart,) in sorted(sql.fetchall()):
            sql.execute(
                "select string_agg(quote_ident(column_name), ', ' order by column_name) "
                "from information_schema.columns "
                "where table_schema = 'marts' and table_name = %s and not data_type = any(%s) "
                "and not column_name = any(%s)",
                (mart, list(VOLATILE), list(MADE_OF_TIME)),
            )
            (columns,) = sql.fetchone() or ("",)
            sql.execute(
                f"select count(*), md5(coalesce(string_agg(md5(row({columns})::text), '' "
                f"order by md5(row({columns})::text)), '')) from marts.{mart}"
            )
            found[mart] = sql.fetchone()
        sql.execute("select distinct on (name) name, version, rows from ml.dataset order by name, created_at desc")
        found["datasets"] = sql.fetchall()
        sql.execute(
            "select distinct on (model, metric) model, metric, dataset_version, round(value::numeric, 9) from ml.score "
            "where split = 'valid' order by model, metric, model_version desc"
        )
        found["scores"] = sql.fetchall()
    return found
