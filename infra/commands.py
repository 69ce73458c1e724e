"""The words of `lyrebird`: one for each thing a person or a task does.

Each command takes on the role it needs and no other. Heavy libraries are imported by the command that needs them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

import typer

from infra import sentences
from storage import roles
from storage.errors import Problem
from storage.settings import Role, Settings, for_role, home

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A data platform whose consumers are models: birds, music and translation, from the source to the prediction.",
)
dataset = typer.Typer(no_args_is_help=True, help="Frozen dataset versions: what models are trained on.")
model = typer.Typer(no_args_is_help=True, help="Trained models: list, import a run, promote.")
quarantine = typer.Typer(no_args_is_help=True, help="Records that broke their contract, and why.")
marts = typer.Typer(no_args_is_help=True, help="The published marts: go back to the version before.")
warehouse = typer.Typer(no_args_is_help=True, help="What no transform does: build core anew.")
evaluate = typer.Typer(no_args_is_help=True, help="Score a model on files of yours.")
lineage = typer.Typer(no_args_is_help=True, help="Where an example or a prediction comes from, down to the source.")
for name, group in (
    ("dataset", dataset),
    ("model", model),
    ("quarantine", quarantine),
    ("marts", marts),
    ("warehouse", warehouse),
    ("evaluate", evaluate),
    ("lineage", lineage),
):
    app.add_typer(group, name=name)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; the rest goes to stderr.")]
Source = Annotated[str, typer.Argument(help="A source of the catalogue (docs/sources.md).")]
Domain = Annotated[str, typer.Argument(help="birds, music, text or platform.")]
Task = Annotated[str, typer.Argument(help="A task as `lyrebird tasks` lists them, e.g. translation-en-de.")]
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A registered model, e.g. birds-aviary.")]
Key = Annotated[str, typer.Argument(help="Key of a row: its clip_id, piece_id or pair_id.")]
P = ParamSpec("P")
R = TypeVar("R")


def say(text: str) -> None:
    print(sentences.visible(text), file=sys.stderr, flush=True)


def show(value: Any, as_json: bool, text: Callable[[Any], str] | None = None) -> None:
    """Print a result: as one line of JSON for scripts, or as text for people."""
    if as_json:
        plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        print(sentences.document(plain))
    elif text:
        print(sentences.visible(text(value)))


def as_role(role: Role) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """The command runs with the credentials of this role."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def command(*args: P.args, **kwargs: P.kwargs) -> R:
            roles.assume(role)
            return function(*args, **kwargs)

        return command

    return decorate


# ---------------------------------------------------------------- the stack


@app.command()
def up() -> None:
    """Start the embedded stack (and migrate the warehouse). Safe to repeat; it finishes what was interrupted."""
    from infra.embedded import stack
    from ingestion import catalogue, pipeline

    stack.up(home(), progress=say)
    pipeline.make_tables(catalogue.sources(), for_role("loader"))


@app.command()
def down() -> None:
    """Stop the embedded stack. Nothing is lost."""
    from infra.embedded import stack

    stack.down(home(), progress=say)


@app.command()
def status(as_json: Json = False) -> None:
    """How each server of the stack is doing."""
    from infra.embedded import stack

    services = stack.status(home())
    show([asdict(s) for s in services], as_json)
    if not as_json:
        rows = []
        for one in services:
            state = one.state if one.healthy or one.state != "running" else "running, not healthy"
            address = one.url or (f"127.0.0.1:{one.port}" if one.port else "")
            if one.pid:
                used = (f"{one.memory_mb:,.0f} MB", f"{one.cpu_seconds:,.0f} s", f"{one.uptime_s / 60:,.0f} min")
            else:
                used = ("", "", "")
            rows.append((one.name, state, address, *used))
        _print_table(("service", "state", "address", "memory", "cpu", "up for"), rows)
        print(f"State and logs: {home()}. Web pages: user lyrebird; `lyrebird password` prints the password")
    if any(one.state == "failed" for one in services):
        raise typer.Exit(1)


@app.command()
def password() -> None:
    """Print the password of the web pages (user lyrebird)."""
    from infra.embedded import stack

    print(stack.credentials(home())[1])


@app.command()
def env(role: Annotated[Role, typer.Option(help="Whose credentials.")] = "transformer") -> None:
    """Print the environment of a role as shell exports: eval "$(lyrebird env)" lets dbt, airflow and psql work."""
    import shlex

    from infra.embedded import stack
    from infra.embedded.programs import postgres_program
    from storage import transform
    from storage.settings import environment_of

    values = environment_of(role)
    settings = for_role(role)
    values |= {
        "LYREBIRD_HOME": str(home()),
        "PGHOST": settings.postgres_host,
        "PGPORT": str(settings.postgres_port),
        "PGDATABASE": settings.postgres_database,
        "PGUSER": settings.postgres_user,
        "PGPASSWORD": settings.postgres_password.get_secret_value(),
    }
    if (transform.published_state() / "manifest.json").exists():  # dbt by hand reads what it does not build
        values |= {"DBT_DEFER": "true", "DBT_DEFER_STATE": str(transform.published_state())}
    values |= roles.QUIET | stack.airflow_environment(home())
    for name, value in values.items():
        print(f"export {name}={shlex.quote(value)}")
    programs = (Path(sys.executable).parent, postgres_program("psql").parent)
    print(f'export PATH={":".join(shlex.quote(str(folder)) for folder in programs)}:"$PATH"')


@app.command()
def run(
    data: Annotated[
        Path | None, typer.Option(help="Folder of real data (birds/, multi30k/, jsb_chorales/; any may be missing).")
    ] = None,
) -> None:
    """Start the stack and run the whole chain through Airflow, with live progress; then say what came out."""
    from infra import chain

    if data is not None:
        chain.configure(data, say)
    up()
    chain.run(say)


@app.command()
@as_role("analyst")
def sql(
    query: Annotated[str, typer.Argument(help="A statement; without one, psql opens.")] = "",
    url: Annotated[
        Literal["sqlalchemy", "jdbc"] | None, typer.Option(help="Print the address for another client instead.")
    ] = None,
) -> None:
    """Query the published marts as the analyst, with psql."""
    from infra.embedded.programs import postgres_program
    from storage.warehouse import client_url

    if url:
        print(client_url(url, Settings()))
        return
    settings = Settings()
    variables = {
        "PGHOST": settings.postgres_host,
        "PGPORT": str(settings.postgres_port),
        "PGDATABASE": settings.postgres_database,
        "PGUSER": settings.postgres_user,
        "PGPASSWORD": settings.postgres_password.get_secret_value(),
        "PGOPTIONS": "-c search_path=marts",
    }
    psql = str(postgres_program("psql"))
    os.execve(psql, [psql, *(["-c", query] if query else [])], os.environ | variables)  # noqa: S606 - psql takes over


# ---------------------------------------------------------------- ingestion


@app.command()
@as_role("loader")
def ingest(
    source: Source,
    resource: Annotated[list[str] | None, typer.Option(help="Only this resource; may be repeated.")] = None,
    run_id: Annotated[str, typer.Option(help="Name of the run, for the records.")] = "by hand",
    since: Annotated[datetime | None, typer.Option(help="Start of an interval, for dated resources.")] = None,
    until: Annotated[datetime | None, typer.Option(help="End of the interval, not in it.")] = None,
    days: Annotated[int, typer.Option(help="Days of a slice that the interval is cut into.", min=1)] = 1,
    failed: Annotated[bool, typer.Option("--failed", help="Only slices that failed, each for its interval.")] = False,
    as_json: Json = False,
) -> None:
    """Fetch what is new of a source into landing and load it; `lyrebird audit` lets readers see it.

    With --since and --until a backfill: each slice of the interval is asked for, and the live cursor stays where it is.
    """
    from ingestion import catalogue, pipeline

    found = catalogue.source(source)
    if failed and (since or until):
        raise Problem("--failed knows its intervals from the ledger", "Leave out --since and --until")
    wanted: list[pipeline.Slice] = [(resource, interval) for interval in pipeline.slices(found, since, until, days)]
    if failed:
        wanted = [
            one for one in pipeline.unfinished(found, Settings()) if not resource or set(one[0] or ()) & {*resource}
        ]
    show(pipeline.ingest_slices(found, Settings(), wanted, run_id=run_id, say=say), as_json)


@app.command()
@as_role("loader")
def audit(
    source: Source,
    accept: Annotated[int, typer.Option(help="publish this load although it was rejected: you have looked")] = 0,
    as_json: Json = False,
) -> None:
    """Judge the loads of a source that wait for it. Exit 1 as long as the newest load of a resource is rejected."""
    from ingestion import catalogue, pipeline

    found = catalogue.source(source)
    if accept:
        pipeline.accept(found, accept, Settings(), say)
    states = pipeline.judge(found, Settings(), say)
    for load, reason in pipeline.rejected(found, Settings()):
        raise Problem(
            f"load {load} of {source} was rejected: {reason}",
            "Readers keep what they had. Mend the source and ingest again; "
            f"if it is as it should be, `lyrebird audit {source} --accept {load}`",
        )
    show({"judged": len(states), "number": pipeline.latest(found, Settings())}, as_json)


@app.command()
@as_role("loader")
def replay(source: Source, as_json: Json = False) -> None:
    """Drop what the warehouse and the document store hold of a source and load it all again from landing.

    Nothing is asked of the source. Transforms of its domain wait until the replay is at its end.
    """
    from ingestion import catalogue, pipeline

    show({"loads": pipeline.replay(catalogue.source(source), Settings(), say)}, as_json)


@app.command()
@as_role("loader")
def project(source: Source, as_json: Json = False) -> None:
    """Make the documents that the warehouse shows of a source again from the document store."""
    from ingestion import catalogue, pipeline

    show({"documents": pipeline.project(catalogue.source(source), Settings(), say)}, as_json)


@app.command()
@as_role("admin")
def forget(
    source: Source,
    key: Annotated[list[str] | None, typer.Option(help="Key of a record, as raw shows it; may be repeated.")] = None,
    where: Annotated[
        list[str] | None, typer.Option(metavar="FIELD=VALUE", help="All records of a contributor, e.g. rec='A. Bird'.")
    ] = None,
    resource: Annotated[list[str] | None, typer.Option(help="Only records of this resource; may be repeated.")] = None,
    again: Annotated[bool, typer.Option("--again", help="What has come since of all that was withdrawn.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and leave it.")] = False,
    as_json: Json = False,
) -> None:
    """Withdraw records from every store for good: pages, documents, rows, clips. No replay brings them back.

    Dataset versions that hold them are marked, and models trained on these are listed. This cannot be undone.
    """
    from infra import withdrawing
    from ingestion import catalogue

    found = withdrawing.forget(
        *(catalogue.source(source), key or [], where or [], resource or [], Settings()),
        again=again,
        dry_run=dry_run,
        say=say,
    )
    show(found, as_json, sentences.forgotten)


@app.command()
@as_role("loader")
def ledger(
    source: Annotated[str, typer.Argument(help="Only this source.")] = "",
    gaps: Annotated[bool, typer.Option("--gaps", help="Intervals that no finished slice covers.")] = False,
    as_json: Json = False,
) -> None:
    """What was asked for and what became of it, newest first; or what lies between and was never finished."""
    if gaps:
        from ingestion import pipeline

        names = ("source", "resource", "since", "until")
        _show_rows(names, pipeline.gaps(Settings(), source), as_json)
        return
    _table(
        "select source, resource, slice, state, attempts, load, updated_at::timestamp(0), coalesce(error, '') as error "
        "from ops.ledger where %s in ('', source) order by updated_at desc",
        (source,),
        as_json,
    )


@quarantine.command("list")
@as_role("loader")
def quarantine_list(
    source: Annotated[str, typer.Argument(help="Only this source.")] = "",
    all_: Annotated[bool, typer.Option("--all", help="Those too that a replay has read again.")] = False,
    as_json: Json = False,
) -> None:
    """Records in quarantine by source, resource and reason; without those whose pages were replayed."""
    _table(
        "select source, resource, load, count(*) as records, reason, min(id) as first_id, "
        "max(replayed_at)::timestamp(0) as replayed_at from ops.quarantine "
        "where %s in ('', source) and (%s or replayed_at is null) "
        "group by 1, 2, 3, 5, replayed_at is null order by 1, 2, 3, 6",
        (source, all_),
        as_json,
    )


@quarantine.command("show")
@as_role("loader")
def quarantine_show(record: Annotated[int, typer.Argument(metavar="ID")], as_json: Json = False) -> None:
    """One record in quarantine, whole: payload, reason, and where it lies in landing."""
    _table("select * from ops.quarantine where id = %s", (record,), as_json)


@quarantine.command("replay")
@as_role("loader")
def quarantine_replay(
    source: Source,
    record: Annotated[list[int] | None, typer.Option("--id", help="Only this record; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Read the pages of records in quarantine again, after their contract or their parser was mended."""
    from ingestion import catalogue, pipeline

    show({"loads": pipeline.replay_quarantine(catalogue.source(source), Settings(), record, say)}, as_json)


def _table(statement: str, values: tuple[Any, ...], as_json: bool) -> None:
    from contextlib import closing

    from storage.warehouse import connect

    with closing(connect(Settings())) as db, db, db.cursor() as cursor:
        cursor.execute(statement, values)
        _show_rows([column.name for column in cursor.description or ()], cursor.fetchall(), as_json)


def _show_rows(names: Sequence[str], rows: Sequence[Sequence[Any]], as_json: bool) -> None:
    if as_json:
        show([dict(zip(names, row, strict=True)) for row in rows], True)
    elif rows:
        _print_table(names, rows)
    else:
        print("none")


def _print_table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print values as they are, not as markup: as wide as the terminal, or wide enough for a file or a pipe."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*names, box=None)
    for row in rows:
        table.add_row(*(Text("" if value is None else sentences.visible(str(value), but="")) for value in row))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


# ---------------------------------------------------------------- warehouse


@app.command()
@as_role("transformer")
def transform(
    domain: Domain,
    step: Annotated[str, typer.Option(help="core, splits, marts, audit or publish; all of them without it.")] = "",
    retry: Annotated[bool, typer.Option(help="Run only what failed in the last build of this step.")] = False,
    run_id: Annotated[str, typer.Option(help="Name of the run, which dbt's artifacts are kept under.")] = "by-hand",
    as_json: Json = False,
) -> None:
    """Build a domain: core, split assignment, candidate marts; audit them; publish them."""
    from infra import transforming

    show(transforming.run(domain, step, Settings(), retry=retry, run_id=run_id, say=say), as_json)


@marts.command("rollback")
@as_role("transformer")
def marts_rollback(domain: Domain, as_json: Json = False) -> None:
    """Show readers the marts before the present ones again. The next transform publishes what it builds."""
    from storage import transform
    from storage.gates import publish

    show({"published": publish.rollback(transform.known(domain), Settings(), say)}, as_json)


@warehouse.command("rebuild")
@as_role("transformer")
def warehouse_rebuild(as_json: Json = False) -> None:
    """Drop the tables of core and build them anew: what a changed constraint asks for. Published marts stay."""
    from storage import transform

    built = transform.rebuild_core(Settings(), say)
    show({layer["domain"]: layer["counts"] for layer in built}, as_json)


@app.command()
@as_role("transformer")
def docs(as_json: Json = False) -> None:
    """Make the dbt docs and put them beside the Data Docs and the reports."""
    from infra import transforming

    show({"url": transforming.docs(Settings(), say)}, as_json, lambda made: made["url"])


# ---------------------------------------------------------------- models


@dataset.command("freeze")
@as_role("trainer")
def dataset_freeze(
    task: Annotated[str, typer.Argument(help="A task (`lyrebird tasks`), or a training mart for all of its rows.")],
    where: Annotated[str, typer.Option(help="Only the rows that this SQL over the mart's columns is true for.")] = "",
    as_json: Json = False,
) -> None:
    """Freeze the rows of a task's mart into a version. The same rows twice give the same version."""
    from ml.datasets import freeze

    show(freeze.freeze(task, Settings(), where, say=say), as_json, lambda f: f"{f.version} ({f.rows:,} rows) {f.uri}")


@dataset.command("list")
@as_role("trainer")
def dataset_list(as_json: Json = False) -> None:
    """The frozen versions, newest first; `withdrawn` counts rows of theirs that were withdrawn since."""
    _table(
        "select version, name, mart, rows, (select sum((one.value ->> 'rows')::int) from jsonb_each(withdrawn) as one) "
        "as withdrawn, created_at::timestamp(0), uri from ml.dataset order by created_at desc",
        (),
        as_json,
    )


@dataset.command("show")
@as_role("trainer")
def dataset_show(version: str) -> None:
    """A version's manifest: schema, splits, statistics, licences."""
    from ml.datasets import freeze

    print(sentences.document(freeze.show(version, Settings()), indent=2))


@dataset.command("restore")
@as_role("admin")
def dataset_restore(as_json: Json = False) -> None:
    """Record the versions in the object store, and the splits that they hold, again after the warehouse was lost."""
    from ml.datasets import restore

    done = restore.restore(Settings())
    show(done, as_json, lambda done: f"{done.versions} versions and the splits of {done.groups:,} groups are back")


@dataset.command("verify")
@as_role("trainer")
def dataset_verify(version: str, as_json: Json = False) -> None:
    """Read a version back and compare every shard with its manifest."""
    from ml.datasets import freeze

    show(freeze.verify(version, Settings()), as_json, sentences.verified)


@dataset.command("diff")
@as_role("trainer")
def dataset_diff(
    first: Annotated[str, typer.Argument(help="A version, or a name for its newest.")],
    second: Annotated[str, typer.Argument(help="The other one.")],
    as_json: Json = False,
) -> None:
    """What differs between two versions: rows that only one has, rows that changed, rows in another split."""
    from ml.datasets import versions

    show(versions.diff(first, second, Settings()), as_json, sentences.compared)


@dataset.command("prune")
@as_role("trainer")
def dataset_prune(
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; without it they are only named.")] = False,
    as_json: Json = False,
) -> None:
    """Remove versions that no model, score, prediction or run needs; the newest of each name stay."""
    from ml.datasets import versions

    show(versions.prune(Settings(), really=yes, say=say), as_json, sentences.pruned)


Dataset = Annotated[str, typer.Option("--dataset", help="A frozen version; the task's newest without it.")]
Preset = Annotated[str, typer.Option(help="smoke, cpu or gpu; the task's own without it.")]


@app.command()
@as_role("trainer")
def train(
    task: Task,
    version: Dataset = "",
    preset: Preset = "",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, as `python -m ml.birds.train -h`.")
    ] = None,
    withdrawn: Annotated[
        bool, typer.Option("--withdrawn", help="Even on a version that holds rows which were withdrawn since.")
    ] = False,
    parent: Annotated[str, typer.Option(help="The MLflow run of a sweep that this training belongs to.")] = "",
    as_json: Json = False,
) -> None:
    """Train a task's model on a frozen version and file the run in MLflow. A finished run is not run again."""
    from infra import training

    done = training.train(task, version, preset, settings or [], Settings(), say, withdrawn=withdrawn, parent=parent)
    show(done, as_json, sentences.trained)


@app.command()
@as_role("trainer")
def sweep(
    task: Task,
    version: Dataset = "",
    preset: Preset = "",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, or key=a,b,c for a setting that is tried out.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only list the trainings, as the DAG `sweep` runs them.")
    ] = False,
    finish: Annotated[str, typer.Option(help="Close a sweep whose trainings are done, by its MLflow run.")] = "",
    as_json: Json = False,
) -> None:
    """Train every combination of settings, filed as runs below one; the best on valid comes first."""
    from infra import training
    from ml import registry

    if not finish:
        planned = training.sweep(task, version, preset, settings or [], Settings())
        if plan:
            show(planned, as_json, lambda all_: "\n".join(one["settings"] for one in all_))
            return
        finish = planned[0]["parent"]
        for one in planned:
            say(f"{task}: {one['settings']}")
            training.train(
                task, one["version"], one["preset"], [one["settings"]], Settings(), say, parent=one["parent"]
            )
    ranked = [asdict(child) for child in registry.end_sweep(task, finish, Settings())]
    show({"name": task, "version": ranked[0]["version"], "runs": ranked}, as_json, sentences.swept)


@app.command()
@as_role("trainer")
def tasks(
    family: Annotated[str, typer.Argument(help="birds, music or translation.")] = "", as_json: Json = False
) -> None:
    """The tasks whose mart holds enough to train on."""
    from ml import tasks as known

    found = [task for one in ([family] if family else known.FAMILIES) for task in known.trainable(one, Settings())]
    show([asdict(task) for task in found], as_json, lambda all_: "\n".join(task["name"] for task in all_) or "none yet")


@model.command("import")
@as_role("trainer")
def model_import(
    run_folder: Annotated[Path, typer.Argument(help="What training wrote, e.g. runs/birds-aviary/…")],
    as_json: Json = False,
) -> None:
    """File a run folder in MLflow: parameters, curves, scores, report, and a new version of its model."""
    from ml import registry

    show(registry.import_run(run_folder, Settings()), as_json, sentences.imported)


@model.command("promote")
@as_role("trainer")
def model_promote(
    name: ModelName,
    version: Annotated[int, typer.Argument(help="The challenger.")],
    as_json: Json = False,
) -> None:
    """Compare a version with the champion on the same valid rows; the better one is champion."""
    from ml import registry

    show(registry.promote(name, version, Settings()), as_json, sentences.promoted)


@model.command("rollback")
@as_role("trainer")
def model_rollback(name: ModelName, as_json: Json = False) -> None:
    """Make the champion before this one champion again."""
    from ml import registry

    show(registry.rollback(name, Settings()), as_json, sentences.promoted)


@model.command("list")
@as_role("trainer")
def model_list(as_json: Json = False) -> None:
    """Models, versions, and what they scored."""
    _table(
        "select s.model, s.model_version as version, s.dataset_version as dataset, s.split, s.metric, "
        "round(s.value::numeric, 4) as value, round(s.baseline::numeric, 4) as baseline, "
        "coalesce((select p.promoted from ml.promotion as p where (p.model, p.model_version) = "
        "(s.model, s.model_version) order by p.id desc limit 1), false) as promoted "
        "from ml.score as s order by 1, 2, 4, 5",
        (),
        as_json,
    )


@app.command()
@as_role("trainer")
def predict(task: Task, as_json: Json = False) -> None:
    """Predict with the champion of a task for the rows that have no prediction of it yet."""
    from ml import predict as batch

    show(batch.predict(task, Settings(), say=say), as_json, sentences.predicted)


@app.command()
@as_role("trainer")
def prediction(name: ModelName, key: Key) -> None:
    """The latest prediction of a model for a key: from the cache, or from the warehouse when the cache forgot."""
    from ml import predict as batch

    print(sentences.document(batch.get(name, key, Settings())))


Model = Annotated[str, typer.Option("--model", help="NAME, NAME@3 or NAME@champion.")]


@app.command()
@as_role("trainer")
def identify(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH…", help="Audio files (WAV, FLAC, OGG, MP3).")],
    name: Model = "",
    as_json: Json = False,
) -> None:
    """Name the birds in recordings: one answer a file, with the seconds at which each was heard."""
    from infra import using

    failed = using.identify(paths, name, Settings(), as_json, say)
    if failed:
        raise typer.Exit(1)


@app.command()
@as_role("trainer")
def compose(
    out: Annotated[Path, typer.Option("--output", "-o", help="The MIDI file to write.")] = Path("tune.mid"),
    start: Annotated[Path | None, typer.Option("--from", help="A MIDI file to go on from.")] = None,
    frames: Annotated[int, typer.Option(help="Length in steps of the model's grid (quarter notes).")] = 64,
    temperature: Annotated[float, typer.Option(help="Lower is safer, higher is wilder.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed writes the same tune.")] = 1,
    name: Model = "",
    as_json: Json = False,
) -> None:
    """Write a tune as a MIDI file, from nothing or going on from a tune of yours."""
    from infra import using

    show(
        using.compose(out, start, frames, temperature, seed, name, Settings()),
        as_json,
        lambda made: f"{made['file']}: {made['frames']} {made['grid']} notes long\n({made['origin']})",
    )


@app.command()
@as_role("trainer")
def translate(
    text: Annotated[list[str] | None, typer.Argument(help="Sentences; or --input.")] = None,
    source: Annotated[str, typer.Option("--from", help="Language of the source, as en or eng.")] = "en",
    target: Annotated[str, typer.Option("--to", help="Language to translate to.")] = "ru",
    source_file: Annotated[
        Path | None, typer.Option("--input", help="Text file, a sentence a line; - for stdin.")
    ] = None,
    target_file: Annotated[Path | None, typer.Option("--output", help="Where to write; stdout without it.")] = None,
    beam: Annotated[int, typer.Option(help="Width of the beam search; 1 is greedy.")] = 5,
    best: Annotated[
        int, typer.Option(help="Translations of each line: `line ||| translation ||| score`, best first.")
    ] = 1,
    fast: Annotated[
        bool, typer.Option("--fast", help="Decode through CTranslate2: the same translations, sooner on a CPU.")
    ] = False,
    attention: Annotated[
        Path | None, typer.Option(help="Draw the attention of the first sentence as a PNG, with the numbers as JSON.")
    ] = None,
    name: Model = "",
    as_json: Json = False,
) -> None:
    """Translate sentences: a line out for each line in."""
    from infra import using

    using.translate(
        text or [],
        source,
        target,
        source_file,
        target_file,
        beam,
        best,
        fast,
        attention,
        name,
        Settings(),
        as_json,
        say,
    )


@evaluate.command("birds")
@as_role("trainer")
def evaluate_birds(
    folder: Annotated[Path, typer.Option(help="Folder of audio files.")],
    labels: Annotated[Path, typer.Option(help="CSV with the columns file and scientific_name.")],
    name: Model = "",
    as_json: Json = False,
) -> None:
    """Score a birds model on a folder of audio files and a CSV of labels (file, scientific_name)."""
    from infra import using

    show(using.evaluate_birds(folder, labels, name, Settings()), as_json, sentences.birds)


@evaluate.command("music")
@as_role("trainer")
def evaluate_music(
    pieces: Annotated[Path, typer.Option(help="JSON of frames, as piano_roll_files reads it.")],
    name: Model = "",
    as_json: Json = False,
) -> None:
    """Negative log-likelihood per frame (nats) of pieces in a JSON file; refuses pieces the model was trained on."""
    from infra import using

    show(using.evaluate_music(pieces, name, Settings()), as_json, sentences.music)


@evaluate.command("translation")
@as_role("trainer")
def evaluate_translation(
    source: Annotated[Path, typer.Option(help="Text file, a sentence a line.")],
    reference: Annotated[Path, typer.Option(help="Its translation, line by line.")],
    from_: Annotated[str, typer.Option("--from", help="Language of the source, as en or eng.")] = "en",
    to: Annotated[str, typer.Option("--to", help="Language of the reference.")] = "ru",
    name: Model = "",
    as_json: Json = False,
) -> None:
    """Translate a file and score it against a reference: chrF and BLEU with intervals and signatures."""
    from infra import using

    show(using.evaluate_translation(source, reference, from_, to, name, Settings()), as_json, sentences.translation)


Recompute = Annotated[
    bool, typer.Option("--recompute", help="Make the example again from the bytes that landed; say if it is the same.")
]


@lineage.command("prediction")
@as_role("admin")
def lineage_prediction(name: ModelName, key: Key, recompute: Recompute = False, as_json: Json = False) -> None:
    """From a prediction to the model, the dataset version, the row, the load, the object and the source."""
    from ml import lineage as trace

    _show_tree(trace.prediction(name, key, Settings()), recompute, as_json)


@lineage.command("example")
@as_role("admin")
def lineage_example(
    family: Annotated[str, typer.Argument(help="birds, music or translation.")],
    key: Key,
    recompute: Recompute = False,
    as_json: Json = False,
) -> None:
    """From a training example to the row, the load, the object and the source."""
    from ml import lineage as trace

    _show_tree(trace.example(family, key, Settings()), recompute, as_json)


@lineage.command("object")
@as_role("admin")
def lineage_object(
    what: Annotated[str, typer.Argument(metavar="OBJECT", help="Its address in landing, or its SHA-256.")],
    as_json: Json = False,
) -> None:
    """The other way: from an object in landing to the records, examples, dataset versions and models made of it."""
    from ml import descendants

    print(sentences.document(descendants.of(what, Settings()), indent=None if as_json else 2))


def _show_tree(tree: dict[str, Any], recompute: bool, as_json: bool) -> None:
    differences: list[str] = []
    if recompute:
        from ingestion import rereading
        from ml import lineage as trace

        differences = trace.recompute(tree, Settings(), rereading.differences)
        tree["recomputed"] = not differences
    print(sentences.document(tree, indent=None if as_json else 2))
    if differences:
        reason = "; ".join(differences)
        raise Problem(f"the bytes that landed do not give this example again: {reason}", "They or their reader changed")
