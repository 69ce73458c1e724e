"""Ingestion beside its peers: rows into PostgreSQL, objects into S3, MIDI into notes, documents into MongoDB.

Ours is checked, hashed, versioned and written down in journal, ledger and cursor. The peers do the bare work, with the
same durability and a primary key. Everything is made up from seeds here.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import requests
import symusic
from pymongo import InsertOne
from support import Stack
from upstreams.landed_bytes import LandedBytes

from benchmarks import Benchmark
from ingestion import journal, pipeline
from ingestion import rows as checks
from ingestion.contract import Context, Landed, Page, Resource, Source, describe
from ingestion.derive import notes
from ingestion.loading import version_id
from ingestion.locations import Location
from storage import warehouse
from storage.documents import Documents
from storage.objects import Objects
from storage.settings import Settings

PEERS = Path(__file__).parent / "peers"
ENVIRONMENTS = Path(__file__).parent.parent.parent / ".bench"
KINDS = {
    "id": ("bigint", pa.int64()),
    "name": ("text", pa.string()),
    "city": ("text", pa.string()),
    "note": ("text", pa.string()),
    "amount": ("double precision", pa.float64()),
    "latitude": ("double precision", pa.float64()),
    "count": ("bigint", pa.int64()),
    "flag": ("boolean", pa.bool_()),
    "day": ("date", pa.date32()),
    "at": ("timestamptz", pa.timestamp("us", "UTC")),
}
SCHEMA = pa.schema([describe(name, kind, name, required=name == "id") for name, (_, kind) in KINDS.items()])
COLUMNS = ", ".join(f'"{name}" {kind}' for name, (kind, _) in KINDS.items())
names = count()


def benchmarks(stack: Stack, scale: float) -> Iterator[Benchmark]:
    """All of them, the largest first."""
    settings = stack.settings("loader")
    with tempfile.TemporaryDirectory(prefix="lyrebird-bench-") as folder:
        yield from rows(settings, stack.settings("admin"), int(1_000_000 * scale), Path(folder))
        yield blobs(settings, int(2_000 * scale), 300_000, 0.8)
        yield blobs(settings, int(100_000 * scale), 2_000, 0.7)
        yield from listings(settings, int(100_000 * scale), Path(folder) / "small")
        yield manifest(settings, int(100_000 * scale))
        yield from midi_notes(settings, int(1_000 * scale))
        yield documents(settings, int(50_000 * scale))


def versions(settings: Settings, *names: str) -> dict[str, str]:
    """What was compared: packages, and the servers `postgres`, `documents` and `objects`."""
    servers = {"postgres": _postgres, "documents": _documents, "objects": _objects}
    return {name: servers[name](settings) if name in servers else metadata.version(name) for name in names}


def _postgres(settings: Settings) -> str:
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute("show server_version")
        return str(warehouse.first(sql)[0])


def _documents(settings: Settings) -> str:
    return str(Documents(settings).database.client.server_info()["version"])


def _objects(settings: Settings) -> str:
    """As the server calls itself."""
    answer = s3_client(settings).list_objects_v2(Bucket="landing", MaxKeys=1)
    return str(answer["ResponseMetadata"]["HTTPHeaders"].get("server", "it does not say"))


# ---------------------------------------------------------------- rows


def table(length: int) -> pa.Table:
    """Rows of ten columns: numbers, texts short and longer, some of them null, times."""
    draw = np.random.default_rng(1)
    words = pa.array(["lyre", "bird", "song", "wren", "robin", "thrush", "finch", "tit", "owl", "crow"])

    def word() -> pa.Array:
        return words.take(pa.array(draw.integers(0, len(words), length)))

    numbers = pa.array(draw.integers(0, 10_000, length))
    remarks = pc.binary_join_element_wise("remark, number ", numbers.cast(pa.string()), "")
    columns = [
        pa.array(np.arange(1, length + 1)),
        pc.binary_join_element_wise(word(), word(), " "),
        word(),
        pc.if_else(pc.less(numbers, 1_500), None, remarks),
        pa.array(draw.normal(size=length)),
        pa.array(np.round(draw.uniform(-90, 90, length), 5)),
        pa.array(draw.integers(0, 10**9, length)),
        pa.array(draw.integers(0, 2, length).astype(bool)),
        pa.array(draw.integers(0, 20_000, length).astype("int32")).cast(pa.date32()),
        pa.array(draw.integers(0, 2 * 10**15, length)).cast(pa.timestamp("us", "UTC")),
    ]
    return pa.table(columns, schema=SCHEMA)


def csv_source(name: str, files: list[Path], mode: str) -> Source:
    """A source of CSV files, the next one at each run."""

    def fetch(context: Context) -> Iterator[Page]:
        done = context.cursor.get("files", 0)
        if done < len(files):
            yield Page(files[done].name, files[done], {"files": done + 1}, "text/csv")

    def parse(page: Landed) -> Iterator[pa.RecordBatch]:
        types = {name: kind for name, (_, kind) in KINDS.items()}
        convert = pyarrow.csv.ConvertOptions(
            strings_can_be_null=True, quoted_strings_can_be_null=False, column_types=types
        )
        read = pyarrow.csv.ReadOptions(block_size=8 << 20)
        with page.path() as path, pyarrow.csv.open_csv(path, read_options=read, convert_options=convert) as batches:
            for batch in batches:
                yield batch.cast(SCHEMA)

    resource = Resource("rows", SCHEMA, ("id",), fetch, parse, mode=mode)  # type: ignore[arg-type]
    return Source(name, name, "text", "", "none", "@daily", (resource,))


def rows(settings: Settings, admin: Settings, length: int, folder: Path) -> Iterator[Benchmark]:
    """Append, beside several peers; then the same rows again.

    The aims are of what follows landing. The lines that have landing in them stand beside the bare work as well.
    """
    first = table(length)
    moved = np.random.default_rng(2).random(length) < 0.1
    second = first.set_column(6, SCHEMA.field("count"), pc.add(first["count"], pa.array(moved.astype("int64"))))
    files = [folder / "first.csv", folder / "second.csv"]
    for path, data in zip(files, (first, second), strict=True):
        pyarrow.csv.write_csv(data, path)
    loaded: list[str] = []

    def append() -> None:
        loaded.append(f"bench_{next(names)}")
        pipeline.ingest(csv_source(loaded[-1], files[:1], "append"), settings, say=lambda text: None)

    def append_landed() -> float:
        begun: list[float] = []
        loaded.append(f"bench_{next(names)}")
        pipeline.ingest(
            csv_source(loaded[-1], files[:1], "append"),
            settings,
            say=lambda text: None,
            reached=lambda stage: begun.append(time.perf_counter()) if stage == "sealed" else None,
        )
        return time.perf_counter() - begun[0]

    def copy() -> None:
        execute(settings, "drop table if exists raw.bare", f"create table raw.bare ({COLUMNS}, primary key (id))")
        with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql, files[0].open("rb") as file:
            sql.copy_expert("copy raw.bare from stdin (format csv, header true)", file)

    def upload_and_copy() -> None:
        s3_client(settings).upload_file(str(files[0]), "landing", f"bare_{next(names)}.csv")
        copy()

    def same() -> None:
        differing(settings, f"select {listed()} from raw.{loaded[-1]}_rows", f"select {listed()} from raw.bare")

    used = versions(settings, "postgres", "objects", "psycopg2-binary", "pyarrow", "boto3")
    for name, mine, theirs, peer_name in (
        ("append rows that have landed", append_landed, copy, "COPY"),
        ("append rows, landing them first", append, upload_and_copy, "boto3 and COPY"),
        ("append rows, landing them first", append, copy, "COPY"),
    ):
        yield Benchmark(name, "rows/s", length, mine, theirs, peer_name, 0.6, same, used)
    for form, bound in (("insert_values", 2.0), ("csv", 1.0), ("parquet", 1.0)):
        dataset = f"dlt_{form}"
        peer = partial(dlt, admin, files[0], dataset, form)
        alike = partial(
            differing,
            admin,
            f"select {listed()} from raw.{loaded[-1]}_rows",
            f'select {listed()} from "{dataset}".rows',
        )
        packages = re.findall(r"^([\w-]+)(?:\[.*\])?==(\S+)", (PEERS / "dlt.txt").read_text(), re.MULTILINE)
        both = dict(packages) | used
        yield Benchmark("append rows", "rows/s", length, append, peer, f"dlt, {form}", bound, alike, both)
        if form == "parquet":  # what both have in common: a file on this machine becomes a table with a primary key
            peer = partial(dlt_with_key, admin, files[0], dataset, form)
            name = "append rows that have landed"
            yield Benchmark(
                *(
                    name,
                    "rows/s",
                    length,
                    append_landed,
                    peer,
                    f"dlt, {form}, with a primary key",
                    bound,
                    alike,
                    both,
                )
            )

    yield from rows_again(settings, files, length, used)


def rows_again(settings: Settings, files: list[Path], length: int, used: dict[str, str]) -> Iterator[Benchmark]:
    """The same rows with a tenth of them changed, into the table that has them; ``raw.bare`` has the first ones."""
    sources: list[Source] = []

    def loaded_once() -> None:
        sources.append(csv_source(f"bench_{next(names)}", files, "merge"))
        pipeline.ingest(sources[-1], settings, say=lambda text: None)
        pipeline.judge(sources[-1], settings, say=lambda text: None)

    def change() -> None:
        pipeline.ingest(sources[-1], settings, say=lambda text: None)

    def change_landed() -> float:
        begun: list[float] = []
        pipeline.ingest(
            sources[-1],
            settings,
            say=lambda text: None,
            reached=lambda stage: begun.append(time.perf_counter()) if stage == "sealed" else None,
        )
        return time.perf_counter() - begun[0]

    def first_by_hand() -> None:
        execute(
            settings,
            "drop table if exists raw.by_hand",
            f"create table raw.by_hand (load bigint not null, {COLUMNS}, primary key (id, load))",
            f"insert into raw.by_hand select 1, {listed()} from raw.bare",
        )

    def by_hand() -> None:
        with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql, files[1].open("rb") as file:
            sql.execute(f"create temporary table new ({COLUMNS}) on commit drop")
            sql.copy_expert("copy new from stdin (format csv, header true)", file)
            sql.execute(
                f"""
                insert into raw.by_hand
                select 2, {listed("new")} from new
                left join (select distinct on (id) * from raw.by_hand order by id desc, load desc) as now using (id)
                where now.id is null or ({listed("new")}) is distinct from ({listed("now")})
                """
            )

    def same_versions() -> None:
        differing(
            settings,
            f"select _load, {listed()} from raw.{sources[-1].name}_rows",
            f"select load, {listed()} from raw.by_hand",
        )

    for name, mine in (
        ("load rows that have landed again, a tenth changed", change_landed),
        ("load rows again, a tenth changed, landing them first", change),
    ):
        yield Benchmark(
            *(name, "rows/s", length, mine, by_hand, "COPY and INSERT … SELECT by hand", 0.8, same_versions, used),
            before_ours=loaded_once,
            before_peer=first_by_hand,
        )


def dlt(settings: Settings, file: Path, dataset: str, form: str) -> float:
    """Seconds that dlt takes, in an environment of its own."""
    execute(settings, f'drop schema if exists "{dataset}" cascade')
    python = ENVIRONMENTS / "dlt" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", python.parent.parent], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", PEERS / "dlt.txt"], check=True)
    dsn = warehouse.url(settings).set(drivername="postgresql").render_as_string(hide_password=False)
    command = [python, PEERS / "dlt_rows.py", file, dataset, form]
    done = subprocess.run(command, env=os.environ | {"DSN": dsn}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return float(done.stdout.splitlines()[-1])


def dlt_with_key(settings: Settings, file: Path, dataset: str, form: str) -> float:
    """Seconds that dlt takes, and those of the primary key that it leaves out."""
    seconds = dlt(settings, file, dataset, form)
    begin = time.perf_counter()
    execute(settings, f'alter table "{dataset}".rows add primary key (id)')
    return seconds + time.perf_counter() - begin


def listed(of: str = "") -> str:
    """The columns, as SQL lists them."""
    return ", ".join(f'{of}."{name}"' if of else f'"{name}"' for name in KINDS)


def execute(settings: Settings, *statements: str) -> None:
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        for statement in statements:
            sql.execute(statement)


def differing(settings: Settings, ours: str, theirs: str) -> None:
    """Raises AssertionError where two queries give different rows."""
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute(
            f"select count(*) from (({ours}) except all ({theirs}) union all (({theirs}) except all ({ours}))) as d"
        )
        if found := warehouse.first(sql)[0]:
            raise AssertionError(f"{found:,} rows differ between ours and the peer's")


# ---------------------------------------------------------------- objects


def s3_client(settings: Settings) -> Any:
    """A client as anybody makes one."""
    return boto3.client(
        "s3",
        endpoint_url=settings.s3_endpoint,
        aws_access_key_id=settings.s3_access_key,
        aws_secret_access_key=settings.s3_secret_key.get_secret_value(),
        region_name=settings.s3_region,
    )


def blobs(settings: Settings, length: int, size: int, bound: float) -> Benchmark:
    """Files of so many bytes, out of memory, into the object store."""
    draw = np.random.default_rng(3)
    block = draw.bytes(size)
    rounds = count()
    landed: list[str] = []

    def bodies() -> Iterator[bytes]:
        mark = next(rounds)
        for number in range(length):
            yield mark.to_bytes(8, "big") + number.to_bytes(8, "big") + block[16:]

    schema = pa.schema([describe("name", pa.string(), "Name.", required=True)])

    def fetch(context: Context) -> Iterator[Page]:
        if not context.cursor:
            for number, body in enumerate(bodies()):
                yield Page(str(number), body, {"done": True})

    def parse(page: Landed) -> Iterator[dict[str, Any]]:
        yield {"name": page.name}

    def ours() -> None:
        landed.append(f"bench_{next(names)}")
        resource = Resource("files", schema, ("name",), fetch, parse, store="objects")
        source = Source(landed[-1], landed[-1], "birds", "", "none", "@daily", (resource,))
        pipeline.ingest(source, settings, say=lambda text: None)

    def peer() -> None:
        client = s3_client(settings)
        prefix = f"bare_{next(names)}"
        with ThreadPoolExecutor(8) as pool:
            waiting = [
                pool.submit(client.put_object, Bucket="landing", Key=f"{prefix}/{number}", Body=body)
                for number, body in enumerate(bodies())
            ]
            for one in waiting:
                one.result()

    def check() -> None:
        keys = list(Objects(settings).list("landing", f"{landed[-1]}/files/"))
        assert len(keys) == length
        for key in draw.choice(keys, 10).tolist():
            assert hashlib.sha256(Objects(settings).get("landing", key)).hexdigest() == key.rsplit("/", 1)[1]

    name = f"land files of {size / 1000:.0f} kB"
    used = versions(settings, "objects", "boto3", "botocore")
    return Benchmark(name, "files/s", length, ours, peer, "boto3, 8 threads", bound, check, used)


def listings(settings: Settings, length: int, folder: Path) -> Iterator[Benchmark]:
    """What many small files are there, in a folder, on S3 and on the web: names, sizes, and marks of their versions."""
    files = [f"{number % 100}/{number}.mid" for number in range(length)]
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"MThd")
    prefix, client = f"bench_{next(names)}", s3_client(settings)
    with ThreadPoolExecutor(16) as pool:
        keys = [f"{prefix}/{name}" for name in files]
        list(pool.map(lambda key: client.put_object(Bucket="landing", Key=key, Body=b"MThd"), keys))

    def in_folder() -> list[tuple[str, int]]:
        paths = sorted(folder.rglob("*.mid"), key=str)
        return [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in paths]

    def in_bucket() -> list[tuple[str, int]]:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket="landing", Prefix=f"{prefix}/")
        return [(one["Key"].removeprefix(f"{prefix}/"), one["Size"]) for page in pages for one in page["Contents"]]

    def on_web(url: str) -> list[tuple[str, int]]:
        with requests.Session() as session, ThreadPoolExecutor(8) as pool:
            session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=8))
            folders = re.findall(r'href="(\d+/)"', session.get(url).text)
            pages = {one: session.get(url + one).text for one in folders}
            below = [one + file for one, page in pages.items() for file in re.findall(r'href="(\d+\.mid)"', page)]
            heads = pool.map(lambda name: session.head(url + name), below)
            return [(name, int(head.headers["Content-Length"])) for name, head in zip(below, heads, strict=True)]

    def line(what: str, where: str | Path, theirs: Callable[[], list[tuple[str, int]]], *rest: Any) -> Benchmark:
        found: dict[str, list[tuple[str, int | None]]] = {}

        def ours() -> None:
            found["ours"] = [(entry.name, entry.size) for entry in Location(where, settings).list("**/*.mid")]

        def peer() -> None:
            found["peer"] = list(theirs())

        def check() -> None:
            assert sorted(found["ours"]) == sorted(found["peer"]) == sorted((name, 4) for name in files)

        peer_name, bound, used = rest
        return Benchmark(what, "files/s", length, ours, peer, peer_name, bound, check, used)

    python = {"python": platform.python_version()}
    yield line("list small files", folder, in_folder, "pathlib", 0.8, python)
    used = versions(settings, "objects", "pyarrow", "boto3", "botocore")
    yield line("list small files on S3", f"s3://landing/{prefix}/", in_bucket, "boto3", 0.8, used)
    with web_server(folder) as url:  # which is asked about each file, here and there
        used = python | versions(settings, "requests", "urllib3")
        yield line("list small files on the web", url, partial(on_web, url), "requests, 8 threads", 0.5, used)


@contextmanager
def web_server(folder: Path) -> Iterator[str]:
    """A web server in a process of its own; its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "http.server", "-b", "127.0.0.1", "-p", "HTTP/1.1", "-d", str(folder), str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.kill()
        server.wait()


def manifest(settings: Settings, length: int) -> Benchmark:
    """A segment of the journal with many pages, written and read back; the pages have landed before."""
    resource, objects = f"bench_{next(names)}", Objects(settings)
    pages = [(f"folder/{number}.mid", f"landing/x/{number:064x}") for number in range(length)]
    found: dict[str, list[tuple[str, str]]] = {}

    def ours() -> None:
        segment = journal.Segment(objects, resource, "files")
        for name, key in pages:
            segment.add(Page(name, None, {}, "audio/midi", {"line": 1}, ref=key))
        load = segment.seal(lane="live", slice="all", interval=None, run_id="")
        _, entries = journal.read_segment(objects, resource, load)
        found["ours"] = [(entry.name, entry.key) for entry in entries]

    def peer() -> None:
        lines = [
            json.dumps({"name": name, "key": key, "type": "audio/midi", "meta": {"line": 1}}) for name, key in pages
        ]
        objects.put("landing", f"{resource}/bare", "\n".join(lines).encode())
        read = map(json.loads, objects.get("landing", f"{resource}/bare").splitlines())
        found["peer"] = [(entry["name"], entry["key"]) for entry in read]

    def check() -> None:
        assert found["ours"] == found["peer"] == pages

    used = versions(settings, "objects", "boto3")
    return Benchmark("journal of small files", "files/s", length, ours, peer, "JSON lines at once", 0.3, check, used)


# ---------------------------------------------------------------- MIDI


def midi_notes(settings: Settings, length: int) -> Iterator[Benchmark]:
    """MIDI files of 2,000 notes into rows: read, checked, sorted, named. Peers make tuples, or no rows at all."""
    draw = np.random.default_rng(4)
    pages = []
    for number in range(length):
        score, track = symusic.Score(480), symusic.Track()
        onsets = np.cumsum(draw.integers(20, 240, 2_000)).tolist()
        for onset, pitch, velocity in zip(onsets, *draw.integers(30, 100, (2, 2_000)).tolist(), strict=True):
            track.notes.append(symusic.Note(time=onset, duration=200, pitch=pitch, velocity=velocity))
        score.tracks.append(track)
        meta = {"source": "maestro", "corpus": "maestro", "composer": None, "licence": "none"}
        pages.append(LandedBytes(score.dumps_midi(), f"{number}.mid", **meta))
    parse = next(resource.parse for resource in notes.SOURCE.resources if resource.name == "notes")
    columns = ("part", "onset_quarters", "duration_quarters", "pitch", "velocity")

    def arrays(page: LandedBytes) -> Any:
        score = symusic.Score.from_midi(page.read())
        return score.tpq, [track.notes.numpy() for track in score.tracks]

    def tuples(page: LandedBytes) -> Any:
        score = symusic.Score.from_midi(page.read())
        return [
            (part, note.time / score.tpq, note.duration / score.tpq, note.pitch, note.velocity)
            for part, track in enumerate(score.tracks)
            for note in track.notes
        ]

    def each(read: Callable[[LandedBytes], Any]) -> None:
        for page in pages:
            read(page)

    def same() -> None:
        """Every note of every file, read once more for it."""
        for page in pages:
            (batch,) = parse(page)
            assert isinstance(batch, pa.RecordBatch)
            rows = tuples(page)
            assert list(zip(*(batch[name].to_pylist() for name in columns), strict=True)) == rows
            ticks, (one,) = arrays(page)
            assert np.array_equal(one["time"] / ticks, [row[1] for row in rows])
            assert np.array_equal(one["pitch"], [row[3] for row in rows])

    used = versions(settings, "symusic", "numpy", "pyarrow")
    ours = partial(each, lambda page: list(parse(page)))
    for peer, peer_name in ((tuples, "symusic, a tuple a note"), (arrays, "symusic alone, its arrays")):
        yield Benchmark(
            *("MIDI files to rows of notes", "files/s", length, ours, partial(each, peer), peer_name, 1 / 1.5),
            *(same, used),
        )


# ---------------------------------------------------------------- documents


def documents(settings: Settings, length: int) -> Benchmark:
    """Documents like those of an API of recordings: hashed, addressed by content, stored; none is there before."""
    resource = Resource(
        "recordings",
        pa.schema([describe("id", pa.string(), "Key.", required=True)]),
        ("id",),
        fetch=lambda context: (),
        parse=lambda page: iter(()),
        store="documents",
    )
    texts = ("lat", "lng", "cnt", "loc", "rec", "en", "gen", "sp", "type", "q", "time", "date", "url", "lic", "rmk")
    found = [
        {"id": str(number), "length": number % 600, "also": ["Turdus merula", "Parus major"]}
        | {name: f"{name} of the recording {number}" for name in texts}
        for number in range(length)
    ]
    store = Documents(settings)
    made: list[str] = []

    def ours() -> None:
        made.append(f"bench_{next(names)}")
        for start in range(0, length, 10_000):
            versions = []
            for document in found[start : start + 10_000]:
                assert not checks.check(resource, document)
                key, content = document["id"], checks.hash_of(resource, document)
                address = version_id(key, content)
                versions.append({"_id": address, "key": key, "hash": content, "landing": "", "doc": document})
            store.put_versions(made[-1], versions)

    def bulk_write(size: int) -> float:
        store.database.drop_collection("bare")
        begin = time.perf_counter()
        for start in range(0, length, size):
            store.database["bare"].bulk_write(
                [InsertOne(dict(document)) for document in found[start : start + size]], ordered=False
            )
        return time.perf_counter() - begin

    best = min((1_000, 10_000), key=bulk_write)

    def same() -> None:
        ours = {one["doc"]["id"]: one["doc"] for one in store.database[made[-1]].find()}
        assert ours == {one["id"]: one for one in store.database["bare"].find({}, {"_id": 0})}

    return Benchmark(
        *("store versions of documents", "documents/s", length, ours, partial(bulk_write, best)),
        *(f"unordered bulk_write of {best:,} at once", 0.7, same, versions(settings, "documents", "pymongo")),
    )
