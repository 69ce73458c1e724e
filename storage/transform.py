"""Run dbt for one domain and one layer, as a task of Airflow or by hand.

A domain (birds, music, text, platform) is built in two layers: ``core`` (its seeds, the staging views of current
versions, the shape its sources share, and the normalized tables, merged in place) and ``marts`` (into
``marts_next_<domain>``, which is dropped first; ``storage.gates.publish`` shows them to readers). Between them,
:func:`assign_splits` records the split of leakage groups that are new.

Two builds of one domain wait for each other. Different domains run side by side: they share only the licences, which
are built by whoever finds them out of date, under a lock of their own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from psycopg2 import sql as pg
from psycopg2.extensions import connection

from storage import constraints, near_duplicates, warehouse
from storage.errors import Problem
from storage.roles import QUIET
from storage.settings import Settings, checkout, home

DOMAINS = ("birds", "music", "text", "platform")
LAYERS = ("core", "marts")
BY_HAND = "by-hand"  # the run of who names none
KEPT_RUNS = 10  # of each domain, with dbt's artifacts
TOLD = "told.json"  # beside them: what became of every node of the run, over all its tries
FAILED = ("error", "fail", "runtime error", "partial success")
UNDONE = (*FAILED, "skipped")
Say = Callable[[str], None]

# Which part of the project a layer is. Tags come from the folders (dbt_project.yml): each model has one domain.
SELECTORS = {
    "core": ("tag:{0},tag:staging", "tag:{0},tag:intermediate", "tag:{0},resource_type:seed", "tag:{0},tag:core"),
    "marts": ("tag:{0},tag:marts",),
}
SHARED = "tag:shared"
WITHOUT_CORE = ("platform",)  # its marts read the platform's own tables, which are normalized already

# A group takes the split on record of the first of its cluster that was seen. Else a published split wins; where a
# source publishes a cluster in several, the training side is recorded, so that no row that the source meant for
# training has to leave. Other clusters get 80/10/10 by a hash: the same cluster, the same split.
ASSIGN = """
with seen as (
    select distinct domain, group_key, cluster_key from {view}
),
recorded as (
    select distinct on (seen.cluster_key) seen.cluster_key, known.split, known.origin
    from seen join ml.split_group as known using (domain, group_key)
    order by seen.cluster_key, known.recorded_at, known.group_key
),
published as (
    select
        cluster_key,
        case
            when bool_or(published_split = 'train') then 'train'
            when bool_or(published_split = 'valid') then 'valid'
            when bool_or(published_split = 'test') then 'test'
        end as split,
        ('x' || substr(md5('lyrebird/' || domain || '/' || cluster_key), 1, 8))::bit(32)::bigint % 100 as bucket
    from {view}
    group by domain, cluster_key
)
insert into ml.split_group (domain, group_key, split, origin)
select
    seen.domain,
    seen.group_key,
    coalesce(
        recorded.split,
        published.split,
        case when bucket < 80 then 'train' when bucket < 90 then 'valid' else 'test' end
    ),
    coalesce(recorded.origin, case when published.split is null then 'assigned' else 'published' end)
from seen join published using (cluster_key) left join recorded using (cluster_key)
on conflict (domain, group_key) do nothing
returning split, origin
"""


def project() -> Path:
    """The folder of the dbt project."""
    return checkout() / "dbt_project"


def marts(domain: str) -> list[str]:
    """Names of the marts that belong to a domain, sorted."""
    return sorted(path.stem for path in (project() / "models" / "marts" / known(domain)).glob("*.sql"))


def next_schema(domain: str) -> str:
    """The schema that dbt builds a domain's marts into, before they are audited and published."""
    return f"marts_next_{known(domain)}"


def target_path(domain: str, layer: str, run: str = BY_HAND) -> Path:
    """The folder of dbt's artifacts for a run, its domain and layer: manifest, run results, logs."""
    return home() / "dbt" / domain / re.sub(r"[^\w.-]+", "-", run)[:150] / layer


def published_state() -> Path:
    """The folder with the manifest of what readers see: what ``dbt --defer`` and ``state:modified`` compare with."""
    return home() / "dbt" / "published"


def keep_state(domain: str, run: str = BY_HAND) -> None:
    """Note the project as this run built the marts of a domain from it, with the names that readers know.

    Does nothing where they were built on another machine: people who defer do so where the transforms run.
    """
    built = target_path(domain, "marts", run) / "manifest.json"
    if not built.exists():
        return
    manifest = json.loads(built.read_text())
    for node in manifest["nodes"].values():
        if node["schema"] in map(next_schema, DOMAINS):
            node["relation_name"] = node["relation_name"].replace(f'"{node["schema"]}"', '"marts"')
            node["schema"] = "marts"
    published_state().mkdir(parents=True, exist_ok=True)
    draft = published_state() / f"manifest.{os.getpid()}"
    draft.write_text(json.dumps(manifest))
    draft.rename(published_state() / "manifest.json")


def build(
    domain: str, layer: str, settings: Settings, run: str = BY_HAND, retry: bool = False, say: Say | None = None
) -> dict[str, Any]:
    """``dbt build`` of a domain's layer in a process of its own, for a run of this name. With ``retry``, only what
    failed or was skipped the last time in the same run is built again (everything, if nothing did).

    Returns ``{"domain", "layer", "invocation_id", "seconds", "counts": {status: nodes}, "nodes": [{"name", "type",
    "status", "seconds", "message"}]}``. Raises Problem with dbt's own words and the failed nodes' names.
    """
    if layer not in LAYERS:
        raise Problem(f"there is no layer {layer}", f"There are: {', '.join(LAYERS)}")
    with _alone(settings, [domain]) as db:
        return _build(db, domain, layer, settings, run, retry, say or _to_stderr)


def assign_splits(domain: str, settings: Settings) -> dict[str, int]:
    """Record the split of each leakage group that has none yet; recorded ones never change.

    Returns how many new groups got each split, such as ``{"train": 80, "valid": 11}``.
    """
    if known(domain) in WITHOUT_CORE:
        return {}
    if domain == "text":
        near_duplicates.cluster(settings)
    view = pg.Identifier("staging", f"int_{domain}_groups")
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute(pg.SQL(ASSIGN).format(view=view))
        return dict(Counter(split for split, _origin in sql.fetchall()))


def rebuild_core(settings: Settings, say: Say | None = None) -> list[dict[str, Any]]:
    """Drop every table of core and build the core of all domains anew, while no other build runs.

    The only way to apply a changed constraint, and never needed for changed data. Published marts stay as they are.
    """
    domains = [domain for domain in DOMAINS if domain not in WITHOUT_CORE]
    built = []
    with _alone(settings, domains) as db:
        with db, db.cursor() as sql:
            sql.execute("select tablename from pg_tables where schemaname = 'core' order by tablename")
            tables = [pg.Identifier("core", name) for (name,) in sql.fetchall()]
            if tables:
                sql.execute(pg.SQL("drop table {}").format(pg.SQL(", ").join(tables)))
        for domain in domains:
            built.append(_build(db, domain, "core", settings, BY_HAND, False, say or _to_stderr))
    return built


def results(domain: str, run: str = BY_HAND) -> list[dict[str, Any]]:
    """What became of each model and seed in a run, in both layers, and of each test that did not pass.

    Each is ``{"model", "layer", "status", "seconds", "message"}``. Empty where another machine has built them.
    """
    return [
        {"model": node["name"], "layer": layer} | {name: node[name] for name in ("status", "seconds", "message")}
        for layer in LAYERS
        for node in _told(target_path(known(domain), layer, run)).values()
        if node["type"] in ("model", "seed") or node["status"] in FAILED
    ]


def docs(settings: Settings, say: Say | None = None) -> Path:
    """dbt's documentation of the whole project as one page. Returns the folder that holds it, as ``index.html``.

    Raises Problem with dbt's own words.
    """
    target = home() / "dbt" / "docs"
    argv = ["docs", "generate", "--static", "--target", "published"]
    with closing(warehouse.connect(settings, application="lyrebird docs")) as db:
        lines, code = _dbt(db, target, argv, settings, say or _to_stderr)
    page = target / "static_index.html"
    if code or not page.exists():
        raise Problem("dbt could not make its documentation:\n" + "\n".join(lines[-15:]), f"The log is in {target}")
    folder = target / "site"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(page, folder / "index.html")
    return folder


def known(domain: str) -> str:
    """The domain, if there is one of that name. Raises Problem that lists the domains there are."""
    if domain not in DOMAINS:
        raise Problem(f"there is no domain {domain}", f"The domains: {', '.join(DOMAINS)}")
    return domain


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def _alone(settings: Settings, domains: Sequence[str]) -> Iterator[connection]:
    """A connection that holds the locks of these domains.

    Raises Problem while raw data of one of them is half there: core would take what is missing for deleted.
    """
    with closing(warehouse.connect(settings, application="lyrebird transform")) as db, ExitStack() as locks:
        for domain in domains:
            locks.enter_context(warehouse.advisory_lock(db, f"transform.{known(domain)}"))
        with db, db.cursor() as sql:
            sql.execute(
                "select source from ops.ledger where lane = 'rebuild' and slice = any(%s) and state <> 'done'",
                (list(domains),),
            )
            unfinished = sql.fetchone()
        if unfinished:
            raise Problem(f"the replay of {unfinished[0]} was not finished", f"Run `lyrebird replay {unfinished[0]}`")
        yield db


def _build(
    db: connection, domain: str, layer: str, settings: Settings, run: str, retry: bool, say: Say
) -> dict[str, Any]:
    target = target_path(domain, layer, run)
    target.mkdir(parents=True, exist_ok=True)
    _forget_old_runs(target.parent)
    before = _results(target)
    retry = retry and any(node["status"] in UNDONE for node in before["nodes"].values())
    if layer == "marts":
        retry = retry and _exists(db, next_schema(domain))
        if not retry:
            with db, db.cursor() as sql:
                sql.execute(pg.SQL("drop schema if exists {} cascade").format(pg.Identifier(next_schema(domain))))
    selectors = [one.format(domain) for one in SELECTORS[layer]]
    if domain in WITHOUT_CORE and layer == "core":
        selectors = selectors[:1]
    with ExitStack() as held:
        state = _state_of_shared() if layer == "core" and domain not in WITHOUT_CORE else ""
        if state and _noted(db) != state:
            held.enter_context(warehouse.advisory_lock(db, "transform.shared"))
        build_shared = bool(state) and _noted(db) != state
        if retry:
            argv = ["retry", "--state", str(target)]
        else:
            # unit tests judge the SQL, not the data: they belong to the project's tests, not to each run
            argv = ["build", "--exclude-resource-type", "unit_test", "exposure", "--select", *selectors]
            argv += [SHARED] if build_shared else []
        lines, code = _dbt(db, target, [*argv, "--target", "platform"], settings, say)
        after = _results(target)
        if after["invocation_id"] == before["invocation_id"]:
            words = "\n".join(lines[-15:]) or f"exit code {code}"
            raise Problem(f"dbt could not build the {layer} of {domain}:\n{words}", f"The log is in {target}")
        nodes = (_told(target) if retry else {}) | after["nodes"]
        (target / TOLD).write_text(json.dumps(nodes))
        bad = [node for node in nodes.values() if node["status"] in FAILED]
        if bad or code:
            told = "\n".join(f"  {node['name']} ({node['status']}): {node['message']}" for node in bad) or lines[-1]
            raise Problem(
                f"dbt failed in the {layer} of {domain}:\n{told}",
                f"Mend it and run `lyrebird transform {domain}` again; the log is {target / 'dbt.log'}",
            )
        lacking = constraints.missing(db, json.loads((target / "manifest.json").read_text())) if layer == "core" else []
        if lacking:
            raise Problem(
                f"the contracts of core state what PostgreSQL does not hold: {'; '.join(lacking)}",
                "Constraints come with the table: run `lyrebird warehouse rebuild`; readers keep the marts they have",
            )
        if build_shared and nodes.get("model.lyrebird.licence", {}).get("status") == "success":
            _note(db, state)
    if layer == "marts":
        _stamp(db, domain, str(after["invocation_id"]))
    return {
        "domain": domain,
        "layer": layer,
        "invocation_id": after["invocation_id"],
        "seconds": after["seconds"],
        "counts": dict(Counter(node["status"] for node in nodes.values())),
        "nodes": list(nodes.values()),
    }


def _forget_old_runs(run: Path) -> None:
    """Remove the artifacts of all but the last runs of a domain; this one is its latest."""
    os.utime(run)
    runs = sorted(run.parent.iterdir(), key=lambda path: path.stat().st_mtime)
    for old in runs[:-KEPT_RUNS]:
        shutil.rmtree(old, ignore_errors=True)


def _dbt(db: connection, target: Path, argv: Sequence[str], settings: Settings, say: Say) -> tuple[list[str], int]:
    """Run dbt with its artifacts in ``target``; its lines go to ``say`` as they come. Returns them and the exit code.

    Raises Problem when dbt is not installed beside this Python.
    """
    program = Path(sys.executable).parent / "dbt"
    if not program.exists():
        raise Problem(f"{program} is missing", "Run `make install` again")
    target.mkdir(parents=True, exist_ok=True)
    if not (target / "partial_parse.msgpack").exists():
        # what a sibling has parsed need not be parsed again; dbt itself checks that it still holds
        found = (home() / "dbt").rglob("partial_parse.msgpack")
        parsed = sorted(found, key=lambda path: path.stat().st_mtime)
        if parsed:
            shutil.copyfile(parsed[-1], target / "partial_parse.msgpack")
    folders = ["--project-dir", project(), "--profiles-dir", project(), "--target-path", target, "--log-path", target]
    variables = {
        "LYREBIRD_POSTGRES_HOST": settings.postgres_host,
        "LYREBIRD_POSTGRES_PORT": str(settings.postgres_port),
        "LYREBIRD_POSTGRES_DATABASE": settings.postgres_database,
        "LYREBIRD_POSTGRES_USER": settings.postgres_user,
        "LYREBIRD_POSTGRES_PASSWORD": settings.postgres_password.get_secret_value(),
        "LYREBIRD_DBT_APPLICATION": "lyrebird transform",
        "DBT_DEFER": "false",  # a person's shell may defer, a transform never does
    }
    lines: list[str] = []
    # dbt inherits the socket of the connection that holds the locks: if we are killed, they last as long as dbt does
    with subprocess.Popen(
        [str(part) for part in (program, "--no-use-colors", *argv, *folders)],
        env={**os.environ, **QUIET, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        pass_fds=(db.fileno(),),
    ) as child:
        try:
            for line in child.stdout or ():
                lines.append(line.rstrip("\n"))
                say(lines[-1])
        except BaseException:
            child.terminate()
            raise
    return [line for line in lines if line.strip()], child.returncode


def _state_of_shared() -> str:
    """A hash of what the shared tables are made of: seeds and code, never data."""
    files = sorted([*(project() / "seeds" / "shared").iterdir(), *(project() / "models" / "core" / "shared").iterdir()])
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _noted(db: connection) -> str:
    """The state that the shared tables were last built from, noted on core.vanished; empty when never."""
    with db, db.cursor() as sql:
        sql.execute(
            "select obj_description(to_regclass('core.vanished')) where to_regclass('core.licence') is not null"
        )
        row = sql.fetchone()
    return str(row[0] or "") if row else ""


def _note(db: connection, state: str) -> None:
    with db, db.cursor() as sql:
        sql.execute("comment on table core.vanished is %s", (state,))


def _results(target: Path) -> dict[str, Any]:
    """What dbt's last run in this folder came to: ``{"invocation_id", "seconds", "nodes": {unique id: {…}}}``."""
    path = target / "run_results.json"
    if not path.exists():
        return {"invocation_id": None, "seconds": 0.0, "nodes": {}}
    found = json.loads(path.read_text())
    nodes = {
        result["unique_id"]: {
            "name": result["unique_id"].split(".")[2],
            "type": result["unique_id"].split(".")[0],
            "status": result["status"],
            "seconds": round(result["execution_time"], 3),
            "message": " ".join(str(result["message"] or "").split()),
        }
        for result in found["results"]
        if not result["unique_id"].startswith("operation.")  # the project's hooks
    }
    return {
        "invocation_id": found["metadata"]["invocation_id"],
        "seconds": round(found["elapsed_time"], 2),
        "nodes": nodes,
    }


def _told(target: Path) -> dict[str, Any]:
    """What became of every node in this folder's run, over all its tries."""
    path = target / TOLD
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _exists(db: connection, schema: str) -> bool:
    with db, db.cursor() as sql:
        sql.execute("select 1 from pg_namespace where nspname = %s", (schema,))
        return sql.fetchone() is not None


def _stamp(db: connection, domain: str, invocation: str) -> None:
    """Note on the schema which tables this build left: publishing trusts no others."""
    schema = next_schema(domain)
    with db, db.cursor() as sql:
        sql.execute(
            "select relname, pg_class.oid from pg_class join pg_namespace on relnamespace = pg_namespace.oid"
            " where nspname = %s and relkind = 'r' order by relname",
            (schema,),
        )
        stamp = json.dumps({"invocation_id": invocation, "tables": {name: int(oid) for name, oid in sql.fetchall()}})
        sql.execute(pg.SQL("comment on schema {} is %s").format(pg.Identifier(schema)), (stamp,))
