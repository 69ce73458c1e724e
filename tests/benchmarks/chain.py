"""A domain's chain through Airflow beside a bare ``dbt build`` of the same models.

Ours is what `transform_text` does: dbt for core and for marts, splits, audit, publishing, and the overhead of a
scheduler. The peer is one process of dbt, of everything, and nothing else.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from support import Stack, until

from benchmarks import Benchmark
from infra.chain import Airflow
from ingestion import catalogue, pipeline
from storage import transform, warehouse

DAG = "transform_text"
WORDS = ["lyre", "bird", "song", "wren", "robin", "thrush", "finch", "owl", "crow", "tree", "river", "house", "garden"]
LINES = """
insert into raw.parallel_files_lines (_load, _position, _page, _key, _hash, _deleted, _again, corpus, split, part,
    language, line, text)
select 1, 2 * n + which, 0, format('["multi30k", "train", "%%s", %%s]', language, n), md5(n || language)::uuid, false,
    false, 'multi30k', 'train', 'train', language, n,
    (select string_agg((%(words)s::text[])[1 + abs(hashint8(n * 31 + place * 7 + which)) %% %(count)s], ' ')
     from generate_series(1, 4 + n %% 12) as place) || case language when 'de' then ' ' else ' then ' end || n
from generate_series(1, %(lines)s) as n cross join (values (0, 'en'), (1, 'de')) as l (which, language)
"""
LOAD = """
insert into ops.load (source, load, resource, state, pages, rows, versions, quarantined, bytes, fetched_at)
values ('parallel_files', 1, 'lines', 'published', 1, 1, 1, 0, 1, now());
insert into ops.landing (source, load, position, resource, key, sha256, name, bytes, content_type, fetched_at)
values ('parallel_files', 1, 0, 'lines', 'landing/bench', '', '', 0, '', now());
analyze raw.parallel_files_lines
"""


def benchmarks(stack: Stack, scale: float) -> Iterator[Benchmark]:
    stack.need("mlflow", "pages", "airflow")
    pairs = max(1_000, int(500_000 * scale))
    fill(stack, pairs)
    with tempfile.TemporaryDirectory(prefix="lyrebird-bench-") as folder:
        yield chain(stack, pairs, Path(folder))


def fill(stack: Stack, pairs: int) -> None:
    """Sentence pairs in the tables of a source, as one published load."""
    pipeline.make_tables(catalogue.sources(), stack.settings("loader"))
    with closing(warehouse.connect(stack.settings("admin"))) as db, db, db.cursor() as sql:
        sql.execute("set role loader")
        sql.execute(LINES, {"words": WORDS, "count": len(WORDS), "lines": pairs})
        sql.execute("reset role")
        sql.execute(LOAD)


def chain(stack: Stack, pairs: int, folder: Path) -> Benchmark:
    """From the start of a run to the end of its publishing; not the wait until a scheduler finds it."""
    api = Airflow(stack.settings("admin"))
    settings = stack.settings("transformer")
    until(lambda: DAG in {dag["dag_id"] for dag in api.call("GET", "dags", params={"limit": 200})["dags"]})
    api.call("PATCH", f"dags/{DAG}", json={"is_paused": False})

    def ours() -> float:
        run = api.call("POST", f"dags/{DAG}/dagRuns", json={"logical_date": None})
        until(lambda: api.run(DAG, run["dag_run_id"])["state"] in ("success", "failed"), seconds=3_600)
        tasks = {one["task_id"]: one for one in api.tasks(api.run(DAG, run["dag_run_id"]))}
        if tasks["publish"]["state"] != "success":
            raise RuntimeError(f"the run failed: {[name for name, one in tasks.items() if one['state'] == 'failed']}")
        begun, ended = tasks["core"]["start_date"], tasks["publish"]["end_date"]
        return (datetime.fromisoformat(ended) - datetime.fromisoformat(begun)).total_seconds()

    def bare() -> None:
        selected = [one.format("text") for layer in transform.LAYERS for one in transform.SELECTORS[layer]]
        with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
            sql.execute("drop schema if exists marts_next_text cascade")
        argv = ["build", "--exclude-resource-type", "unit_test", "exposure", "--select", *selected, transform.SHARED]
        with closing(warehouse.connect(settings)) as db:
            lines, code = transform._dbt(db, folder, [*argv, "--target", "platform"], settings, lambda line: None)
        if code:
            raise RuntimeError("\n".join(lines[-15:]))

    def same() -> None:
        with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
            for schema in ("marts", "marts_next_text"):
                sql.execute(f"select count(*) from {schema}.fct_sentence_pairs")
                if warehouse.first(sql)[0] != pairs:
                    raise RuntimeError(f"{schema} holds other rows than were made")

    bare()  # the first build of core is not what either is about
    return Benchmark(
        name=f"transform of {pairs:,} sentence pairs through Airflow, audited and published",
        unit="pairs/s",
        amount=pairs,
        ours=ours,
        peer=bare,
        peer_name="dbt build",
        bound=1 / 1.5,
        check=same,
        versions={name: version(name) for name in ("apache-airflow", "dbt-core", "dbt-postgres")},
    )
