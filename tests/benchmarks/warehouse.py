"""The warehouse at the size of a large collection.

5 M notes, 2 M sentences and 200,000 recordings are generated into the tables of three sources, in the shape of real
ones: the k-th species, recordist or word is k times as rare as the first (Zipf), a sentence has about twelve words (as
in Multi30k), every sixth English one occurs twice, and of the values that people write by hand (dates, times, heights,
sound types) as many cannot be read as in xeno-canto. The same seed gives the same tables.

Builds are measured in model times, as dbt tells them: the sum over models, whatever ran side by side. They take
minutes, so each is done once. Beside the full one, psql runs the very statements that dbt ran, on the same empty
schemas.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import date, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from psycopg2 import sql as pg
from support import Stack

from benchmarks import Benchmark
from infra.embedded.programs import postgres_program
from infra.reference import analyses
from ingestion import catalogue, pipeline
from ml.datasets import freeze
from storage import transform, warehouse
from storage.gates import publish
from storage.settings import Settings

DOMAINS = ("birds", "music", "text")
BIG = ("fct_recordings", "fct_pieces", "fct_sentence_pairs")
SECONDS = 2.0  # that an analysis may take
PIECE = 200  # notes
META = "_load, _position, _page, _key, _hash, _deleted, _again"
LETTERS = "aeioulmnrst"
WRITTEN = {  # as people write them, the usual ones first; about as many that cannot be read as in the real catalogue
    "type": ["song", "call", "alarm call", "canto", "call, song", "flight call, male", "begging call", "?", "call?"],
    "time": ["07:00", "08:00", "?", "06:30", "7h15", "18:20", "xx:xx", "9 am", "05:45", "16:10"],
    "alt": ["100", "1200", "350 m", "1,050 m", "20-40", "?", "-2", "2400m"],
    "q": ["A", "B", "C", "D", "no score", "E"],
    "cnt": ["Brazil", "Colombia", "Ecuador", "Peru", "Spain", "Poland", "Kenya", "India"],
    "lic": ["by-nc-sa", "by-nc-nd", "by-sa", "by"],
}
# Tables that need no drawing, from the first to the last number: SQL makes them where they stand.
NUMBERED = {
    ("xeno_canto", "audio"): """
        select %(load)s, n, 0, n::text, md5('a' || n)::uuid, false, false,
            n::text, n || '.mp3', md5('x' || n) || md5('y' || n), 400000, 'audio/mpeg'
        from generate_series(%(first)s, %(last)s) as n""",
    ("notes", "pieces"): """
        select %(load)s, n, 0, 'maestro/' || n, md5('p' || n)::uuid, false, false,
            'maestro/' || n, 'maestro', n || '.midi', 'maestro', 'Piece ' || n, 'Composer ' || n %% 60,
            (array['4/4', '3/4', '2/4', '6/8'])[1 + n %% 4], 96.0, 4, 100.0, md5('f' || n), 'CC BY-NC-SA 4.0',
            (select jsonb_agg(jsonb_build_array(60 + beat %% 12, 64 + (beat + n) %% 9))
             from generate_series(1, 100) as beat)
        from generate_series(%(first)s, %(last)s) as n""",
    ("notes", "notes"): """
        select %(load)s, n * %(piece)s + note, 0, format('["maestro/%%s", %%s]', n, note), md5(n || 'n' || note)::uuid,
            false, false, 'maestro/' || n, note, note %% 4, 'Piano', note * 0.5, 0.25 * (1 + note %% 3),
            48 + (hashint8(n * 1000 + note) & 15) + (hashint8(n * 1000 - note) & 15), 30 + (hashint8(n + note) & 63)
        from generate_series(%(first)s, %(last)s) as n cross join generate_series(0, %(piece)s - 1) as note""",
    ("tatoeba", "links"): """
        select %(load)s, n, 0, format('[%%s, %%s]', 2 * n, 2 * n + 1), md5('l' || n)::uuid, false, false,
            2 * n, 2 * n + 1, 'eng', 'deu'
        from generate_series(%(first)s, %(last)s) as n""",
}
COLUMNS = {
    ("xeno_canto", "recordings"): "doc",
    ("xeno_canto", "audio"): "recording_id, file_name, sha256, bytes, content_type",
    ("notes", "pieces"): "piece_id, source, path, corpus, title, composer, time_signature, tempo_bpm, parts, quarters, "
    "fingerprint, licence, frames_quarter",
    ("notes", "notes"): "piece_id, note, part, instrument, onset_quarters, duration_quarters, pitch, velocity",
    ("tatoeba", "sentences"): "sentence_id, language, text, contributor, licence",
    ("tatoeba", "links"): "sentence_id, translation_id, language, translation_language",
}


def benchmarks(stack: Stack, scale: float) -> Iterator[Benchmark]:
    sizes = {"xeno_canto": int(200_000 * scale), "notes": int(25_000 * scale), "tatoeba": int(1_000_000 * scale)}
    pipeline.make_tables(catalogue.sources(), stack.settings("loader"))
    fill(stack, {source: (1, size) for source, size in sizes.items()})
    with tempfile.TemporaryDirectory(prefix="lyrebird-bench-") as folder:
        yield from builds(stack, sizes, Path(folder))
    yield snapshot(stack)


# ---------------------------------------------------------------- tables


def fill(stack: Stack, numbers: dict[str, tuple[int, int]]) -> None:
    """One more published load of each resource, with the things of these numbers: recordings, pieces, linked pairs."""
    with closing(warehouse.connect(stack.settings("admin"))) as db, db, db.cursor() as sql:
        for (source, resource), columns in COLUMNS.items():
            first, last = numbers[source]
            sql.execute("select coalesce(max(load), 0) + 1 from ops.load where source = %s", (source,))
            load = warehouse.first(sql)[0]
            table = f"raw.{source}" if source == resource else f"raw.{source}_{resource}"
            into = f"{table} ({META}, {columns})"
            if (source, resource) in NUMBERED:
                values = {"load": load, "first": first, "last": last, "piece": PIECE}
                sql.execute(f"insert into {into} {NUMBERED[source, resource]}", values)
            else:
                draw = recordings if source == "xeno_canto" else sentences
                for lines in draw(load, first, last):
                    sql.copy_expert(f"copy {into} from stdin", io.StringIO(lines))
            sql.execute(f"analyze {table}")
            sql.execute(
                "insert into ops.load (source, load, resource, state, pages, rows, versions, quarantined, bytes, "
                "fetched_at) values (%s, %s, %s, 'published', 1, 1, 1, 0, 1, '2026-01-05 06:00:00+00')",
                (source, load, resource),
            )
            sql.execute(
                "insert into ops.landing (source, load, position, resource, key, sha256, name, bytes, content_type, "
                "fetched_at) values (%s, %s, 0, %s, %s, '', '', 0, '', '2026-01-05 06:00:00+00')",
                (source, load, resource, f"{source}/{resource}/{load}"),
            )


def words(number: int) -> list[str]:
    """As many made-up words, the first of them the shortest."""
    found = []
    for index in range(number):
        letters, rest = [], index + len(LETTERS)
        while rest:
            letters.append(LETTERS[rest % len(LETTERS)])
            rest //= len(LETTERS)
        found.append("".join(letters))
    return found


def zipf(draw: np.random.Generator, most: int, length: int) -> Any:
    """Ranks from 0 to most - 1; the k-th is k times as rare as the first."""
    return np.exp(draw.random(length) * np.log(most + 1)).astype(int) - 1


def recordings(load: int, first: int, last: int, at_once: int = 20_000) -> Iterator[str]:
    names = words(5_000)
    for start in range(first, last + 1, at_once):
        draw = np.random.default_rng(start)
        numbers = range(start, min(start + at_once, last + 1))
        ranks = {name: zipf(draw, most, len(numbers)) for name, most in (("species", 2_000), ("rec", 4_000))}
        ranks |= {name: zipf(draw, len(texts), len(numbers)) for name, texts in WRITTEN.items()}
        days, places, lengths = (draw.integers(0, most, len(numbers)) for most in (7_000, 9_000, 300))
        lines = []
        for index, number in enumerate(numbers):
            species = ranks["species"][index]
            said = {name: WRITTEN[name][ranks[name][index]] for name in WRITTEN}
            day = date(2005, 1, 1) + timedelta(days=int(days[index]))
            document = said | {
                "id": str(number),
                "gen": names[100 + species // 3].title(),
                "sp": f"{names[900 + species]}us",
                "en": f"{names[900 + species].title()} Bird",
                "rec": f"{names[ranks['rec'][index]].title()} {names[ranks['rec'][index] // 7].title()}",
                "loc": f"Reserve {names[places[index] // 3]}",
                "lat": f"{places[index] / 100 - 45:.2f}",
                "lon": f"{places[index] / 50 - 90:.2f}",
                "length": f"{lengths[index] // 60}:{lengths[index] % 60:02d}",
                "date": "0000-00-00" if number % 200 == 0 else day.isoformat(),
                "lic": f"//creativecommons.org/licenses/{said['lic']}/4.0/",
                "also": [f"{names[100 + species // 3].title()} {names[901 + species]}us"] if number % 4 == 0 else [],
            }
            lines.append(f"{load}\t{number}\t0\t{number}\t{_uuid(number)}\tf\tf\t{json.dumps(document)}\n")
        yield "".join(lines)


def sentences(load: int, first: int, last: int, at_once: int = 50_000) -> Iterator[str]:
    vocabulary = np.array(words(20_000))
    for start in range(first, last + 1, at_once):
        lines = []
        for language, side, ending in (("eng", 0, ""), ("deu", 1, "en")):
            draw = np.random.default_rng([start, side])
            numbers = range(start, min(start + at_once, last + 1))
            sizes = np.maximum(3, draw.normal(11.9, 3.8, len(numbers)).round().astype(int))
            drawn = vocabulary[zipf(draw, len(vocabulary), int(sizes.sum()))]
            givers = zipf(draw, 3_000, len(numbers))
            end, text = 0, ""
            for index, number in enumerate(numbers):
                begin, end = end, end + int(sizes[index])
                if side or number % 6 or not text:
                    text = " ".join(f"{word}{ending}" for word in drawn[begin:end]).capitalize() + "."
                key = 2 * number + side
                lines.append(
                    f"{load}\t{key}\t0\t{key}\t{_uuid(key)}\tf\tf\t{key}\t{language}\t{text}\t"
                    f"{vocabulary[givers[index]]}\tCC BY 2.0 FR\n"
                )
        yield "".join(lines)


def _uuid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


# ---------------------------------------------------------------- builds


def builds(stack: Stack, sizes: dict[str, int], folder: Path) -> Iterator[Benchmark]:
    """The full build beside psql, the build of one per cent more beside the full one, and the analyses."""
    settings = stack.settings("transformer")
    full = build(settings, "full")
    marts = counts(settings)
    size = sum(marts.values())
    used = {name: version(name) for name in ("dbt-core", "dbt-postgres")}
    statements = [(seconds, text) for _, seconds, text in full]
    ours = sum(seconds for seconds, _ in statements)
    spent: dict[str, float] = {}

    def bare() -> float:
        if "psql" not in spent:
            empty(settings)
            spent["psql"] = psql(settings, [text for _, text in statements], folder)
        return spent["psql"]

    def same() -> None:
        if counts(settings) != marts:
            raise RuntimeError("psql left other tables than dbt")

    yield Benchmark(
        *(
            "a full build of three domains, in model times",
            "rows of marts/s",
            size,
            lambda: ours,
            bare,
            "psql",
            1 / 1.3,
        ),
        *(same, used),
    )
    fill(stack, {source: (size + 1, size + max(1, size // 100)) for source, size in sizes.items()})
    more = sum(seconds for _, seconds, _ in build(settings, "more"))

    def grown() -> None:
        if not all(count > marts[name] for name, count in counts(settings).items() if name in BIG):
            raise RuntimeError("the new rows are not in the marts")

    yield Benchmark(
        *("a build of 1 % more, in model times", "builds/s", 1, lambda: more, lambda: ours, "the full build", 10.0),
        *(grown, used),
    )
    for layer in transform.LAYERS:
        transform.build("platform", layer, settings, "more", say=lambda line: None)
    for domain in (*DOMAINS, "platform"):
        publish.publish(domain, settings)  # without the audit, which is not measured here
    environment = os.environ | variables(stack.settings("analyst"))
    for question in analyses.questions(environment):
        rows: dict[str, int] = {}

        def ask(question: analyses.Question = question, rows: dict[str, int] = rows) -> None:
            rows[question.name] = len(analyses.ask(question, stack.settings("analyst")).rows)

        def answered(rows: dict[str, int] = rows) -> None:
            if not rows:
                raise RuntimeError("it was not asked")

        yield Benchmark(
            *(f"analysis {question.name}", "answers/s", 1, ask, lambda: SECONDS, f"{SECONDS:.0f} s", 1.0, answered),
            *(used,),
        )


def build(settings: Settings, run: str) -> list[tuple[str, float, str]]:
    """Core, splits and candidate marts of the three domains: name, seconds and statements of each model, in order.

    Splits are recorded without looking for near duplicates: that is no model.
    """
    found: list[tuple[str, float, str]] = []
    for domain in DOMAINS:
        for layer in transform.LAYERS:
            if layer == "marts":
                with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
                    sql.execute(pg.SQL(transform.ASSIGN).format(view=pg.Identifier("staging", f"int_{domain}_groups")))
            transform.build(domain, layer, settings, run, say=lambda line: None)
            target = transform.target_path(domain, layer, run)
            results = json.loads((target / "run_results.json").read_text())["results"]
            for one in sorted(results, key=lambda one: str(one["timing"][0]["started_at"] if one["timing"] else "")):
                kind, _, name = one["unique_id"].split(".")[:3]
                if kind == "model" and not name.startswith("sweep_"):
                    (path,) = (target / "run").rglob(f"{name}.sql")
                    found.append((name, one["execution_time"], path.read_text()))
    return found


def empty(settings: Settings) -> None:
    """Drop what models made; seeds and the platform's own tables stay."""
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        for domain in DOMAINS:
            schema = pg.Identifier(transform.next_schema(domain))
            sql.execute(pg.SQL("drop schema if exists {} cascade; create schema {}").format(schema, schema))
        sql.execute(
            "select n.nspname, c.relname, c.relkind from pg_class as c join pg_namespace as n on n.oid = relnamespace "
            "where relkind in ('r', 'v') and (n.nspname = 'core' and relname <> 'vanished' "
            "or n.nspname = 'staging' and (relname like 'stg\\_%' or relname like 'int\\_%'))"
        )
        for schema, name, kind in sql.fetchall():
            what = pg.SQL("view" if kind == "v" else "table")
            sql.execute(pg.SQL("drop {} if exists {} cascade").format(what, pg.Identifier(schema, name)))


def psql(settings: Settings, statements: list[str], folder: Path) -> float:
    """Seconds that psql needs for the statements, in the order and the names that dbt gave them in the end."""
    script = folder / "build.sql"
    script.write_text("\n;\n".join(text.replace("__dbt_tmp", "") for text in statements))
    command = [str(postgres_program("psql")), "--no-psqlrc", "--quiet", "-v", "ON_ERROR_STOP=1", "-f", str(script)]
    begin = time.perf_counter()
    done = subprocess.run(command, env=os.environ | variables(settings), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2_000:])
    return time.perf_counter() - begin


def variables(settings: Settings) -> dict[str, str]:
    """What libpq, and dbt, read of a role's settings."""
    told = {
        "HOST": settings.postgres_host,
        "PORT": str(settings.postgres_port),
        "DATABASE": settings.postgres_database,
        "USER": settings.postgres_user,
        "PASSWORD": settings.postgres_password.get_secret_value(),
    }
    return {f"PG{name}": text for name, text in told.items()} | {f"LYREBIRD_POSTGRES_{n}": t for n, t in told.items()}


def counts(settings: Settings) -> dict[str, int]:
    """Rows of each candidate mart."""
    found = {}
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        for domain in DOMAINS:
            for mart in transform.marts(domain):
                sql.execute(
                    pg.SQL("select count(*) from {}").format(pg.Identifier(transform.next_schema(domain), mart))
                )
                found[mart] = int(warehouse.first(sql)[0])
    return found


# ---------------------------------------------------------------- snapshot


def snapshot(stack: Stack) -> Benchmark:
    """Rows as a freeze reads them, one by one through a cursor, beside COPY of the same query into nothing."""
    settings = stack.settings("trainer")
    mart = freeze.MARTS["translation"]
    layout = freeze.LAYOUTS[mart]
    query = f"select {', '.join(layout.columns)} from marts.{mart} order by {layout.key}"
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute(f"select count(*) from marts.{mart}")
        rows = int(warehouse.first(sql)[0])
    read: dict[str, int] = {}

    def ours() -> None:
        with closing(warehouse.connect(settings)) as db, db:
            read["ours"] = sum(1 for _ in freeze._stream(db, layout, mart, ""))

    class Lines(io.RawIOBase):
        number = 0

        def write(self, data: Any) -> int:
            self.number += bytes(data).count(b"\n")
            return len(data)

    def copy() -> None:
        lines = Lines()
        with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
            sql.copy_expert(f"copy ({query}) to stdout", lines)
        read["copy"] = lines.number

    def same() -> None:
        if not read["ours"] == read["copy"] == rows:
            raise RuntimeError(f"not all rows were read: {read} of {rows}")

    used = {"psycopg2": version("psycopg2-binary")}
    return Benchmark(*("rows into a snapshot", "rows/s", rows, ours, copy, "COPY … TO STDOUT", 0.5, same, used))
