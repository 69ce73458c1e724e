"""Where an example or a prediction comes from: model, version, shard and row, mart, records, loads, landing, source.

An example of a frozen version is traced through the loads that were published when it was frozen (the manifest names
them), not through what the warehouse holds today. It can be recomputed from the bytes that landed.

Tracing reads every layer, raw and landing among them, which no task's role may do: it takes the role ``admin``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from datetime import date
from typing import Any

import psycopg2
import psycopg2.extras
import pyarrow.parquet as pq
from psycopg2.extensions import connection

from ml import registry
from ml.datasets import freeze
from ml.tasks import FAMILIES, MARTS, task
from storage import warehouse
from storage.documents import Documents
from storage.errors import Problem
from storage.objects import Objects
from storage.settings import Settings

Loads = Mapping[str, int] | None  # source -> the last load that counts; None: all that are published
Found = dict[str, Any]

Differences = Callable[[Sequence[Found], Settings], list[str]]  # what landing does not give again of some records

LARGE = ("pcm", "frames")
# Where pairs of texts come from: source -> the resource whose keys are those of the pairs.
PAIRS = {"gettext_catalogues": "messages", "parallel_files": "lines", "tatoeba": "links", "manythings": "pairs"}


def example(what: str, key: str, settings: Settings) -> Found:
    """Trace a row of a training mart: ``what`` is a family, a mart or a task, ``key`` the row's key.

    Gives {"family", "key", "mart": {"name", "publication", "row"}, "records": [record, …]}, the nearest record first. A
    record is a row of raw: {"source", "table", "load", "position", "key", "hash", "row", "load_state", "landing":
    {"position", "key", "name", "sha256", "bytes", "fetched_at", "meta"}, "document": … or None}. Raises Problem.
    """
    family = _family(what)
    with closing(_connected(settings)) as db:
        mart = _mart_row(db, family, key)
        if mart["row"] is None:
            raise Problem(f"{mart['name']} has no row {key!r}", "Name a key of the mart as it is published now")
        return {
            "family": family,
            "key": key,
            "mart": mart,
            "records": _records(db, family, key, mart["row"], None, settings),
        }


def prediction(model: str, key: str, settings: Settings) -> Found:
    """Trace a prediction: what :func:`example` gives, as of the dataset version, and {"prediction", "model", "dataset",
    "shard": {"file", "row", "split", "uri"}} before it. Raises Problem where there is none.
    """
    name, _, version = model.partition("@")
    with closing(_connected(settings)) as db:
        made = _prediction_row(db, name, key, int(version) if version.isdigit() else None)
        manifest = freeze.show(made["dataset_version"], settings)
        family = _family(manifest["mart"])
        shard, row = _shard_row(manifest, key, settings)
        return {
            "prediction": made,
            "model": registry.describe(name, made["model_version"], settings),
            "dataset": {
                part: manifest[part]
                for part in ("version", "name", "mart", "where", "uri", "publication", "loads", "code", "created_at")
            },
            "shard": shard,
            "family": family,
            "key": key,
            "mart": _mart_row(db, family, key),
            "records": _records(db, family, key, row, manifest["loads"], settings),
        }


def recompute(traced: Found, settings: Settings, differences: Differences) -> list[str]:
    """Why the landed bytes do not give the example again, a sentence for each reason; none when they do.

    The records come out of the bytes once more (``differences`` tells where not: only ``ingestion`` knows the sources),
    and what a model is given says what they say: the same samples, frames or texts.
    """
    found = differences(traced["records"], settings)
    return found or ([] if _agrees(traced, settings) else ["what models are given is not what its records say"])


def _family(what: str) -> str:
    if what in FAMILIES:
        return what
    for family, mart in MARTS.items():
        if what.removeprefix("marts.") == mart:
            return family
    return task(what).family


def _connected(settings: Settings) -> connection:
    db = warehouse.connect(settings, application="lyrebird lineage")
    db.set_session(readonly=True)
    return db


def _select(db: connection, query: str, values: tuple[Any, ...]) -> list[Found]:
    """Rows as JSON would hold them."""
    try:
        with db.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as sql:
            sql.execute(query, values)
            return [{name: _plain(value) for name, value in row.items()} for row in sql.fetchall()]
    except psycopg2.errors.InsufficientPrivilege as error:
        db.rollback()
        raise Problem("this role may not read every layer of the warehouse", "Trace with the role admin") from error


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, date) else value


def _exists(db: connection, table: str) -> bool:
    return bool(_select(db, "select to_regclass(%s) is not null as there", (table,))[0]["there"])


# ---------------------------------------------------------------- mart, version, prediction


def _mart_row(db: connection, family: str, key: str, whole: bool = False) -> Found:
    """The row in the mart as it is published now, ``whole`` with what is large; None where it is no longer there."""
    name = MARTS[family]  # type: ignore[index]
    layout = freeze.LAYOUTS[name]
    row = None
    if _exists(db, f"marts.{name}"):
        # the mart's own columns, beside those that versions hold: the source of a row is one of them
        found = _select(db, f"select * from marts.{name} where {layout.key} = %s", (key,))
        row = {name: value for name, value in found[0].items() if whole or name not in LARGE} if found else None
    publication = _select(
        db,
        "select version, schema, published_at, invocation_id from ops.publication where domain = %s "
        "order by version desc limit 1",
        (layout.domain,),
    )
    return {"name": f"marts.{name}", "publication": publication[0] if publication else None, "row": row}


def _prediction_row(db: connection, name: str, key: str, version: int | None) -> Found:
    """The prediction for a key: of this model version, else the latest."""
    found = _select(
        db,
        "select model, model_version, dataset_version, key, output, score, predicted_at from ml.prediction "
        "where model = %s and key = %s and (%s is null or model_version = %s) order by predicted_at desc limit 1",
        (name, key, version, version),
    )
    if not found:
        raise Problem(f"{name} has no prediction for {key!r}", f"`lyrebird predict {name}` predicts valid and test")
    return found[0]


def _shard_row(manifest: Found, key: str, settings: Settings, whole: bool = False) -> tuple[Found, Found]:
    """Where a key lies in a version, and its row, ``whole`` with what is large."""
    data = freeze.reader(manifest, settings)
    layout = freeze.LAYOUTS[manifest["mart"]]
    columns = [name for name in layout.columns if whole or name not in LARGE]
    for split in manifest["splits"]:
        for path in data.shards(split):
            keys = pq.read_table(path, columns=[layout.key], memory_map=True)[layout.key].to_pylist()
            if key in keys:
                at = keys.index(key)
                row = pq.read_table(path, columns=columns, memory_map=True).slice(at, 1).to_pylist()[0]
                return {"file": path.name, "row": at, "split": split, "uri": f"{manifest['uri']}/{path.name}"}, row
    raise Problem(f"the version {manifest['version']} has no row {key!r}", "`lyrebird dataset verify` checks it")


# ---------------------------------------------------------------- records of raw


def _records(db: connection, family: str, key: str, row: Found, loads: Loads, settings: Settings) -> list[Found]:
    """The rows of raw that an example was made of, the nearest first."""
    if family == "birds":
        found = _of_clip(db, key, loads)
    elif family == "music":
        found = _of_piece(db, key, loads)
    else:
        found = _of_pair(db, key, row["corpus"], loads)
    if not found:
        raise Problem(f"raw holds no record of {key!r}", "`lyrebird replay` loads it again from landing")
    for record in found:
        record["document"] = _document(record, settings) if "doc" in record["row"] else None
    return found


def _of_clip(db: connection, key: str, loads: Loads) -> list[Found]:
    """Clip, the audio file it was cut from, and what its source says of the recording."""
    clips = _current(db, "clips", "clips", "_key = %s", (key,), loads)
    if not clips:
        return []
    source, recording = clips[0]["row"]["source"], clips[0]["row"]["recording_key"]
    said = f"{source}_labels" if source == "audio_folder" else f"{source}_recordings"
    return [
        *clips,
        *_current(db, source, f"{source}_audio", "_key = %s", (recording,), loads),
        *_current(db, source, said, "_key = %s", (recording,), loads),
    ]


def _of_piece(db: connection, key: str, loads: Loads) -> list[Found]:
    """Piece, the score it was read from, and the page that it was found on; a piano roll is its own record."""
    rolls = _current(db, "piano_roll_files", "piano_roll_files_pieces", "_key = %s", (key,), loads)
    if rolls:
        return rolls
    found = _current(db, "notes", "notes_pieces", "_key = %s", (key,), loads)
    for piece in list(found):
        source, path = piece["row"]["source"], piece["row"]["path"]
        scores = _current(db, source, f"{source}_scores", "_key = %s", (path,), loads)
        found += scores
        for number in (score["row"]["piece_id"] for score in scores if "piece_id" in score["row"]):
            found += _current(db, source, f"{source}_pieces", "_key = %s", (f"[{number}]",), loads)
    return found


def _of_pair(db: connection, key: str, corpus: str, loads: Loads) -> list[Found]:
    """The record that makes a pair of two texts, and those that hold the texts where it only names them.

    A pair's key is the surrogate key of its source and of that record's key (``int_text_pairs`` of the dbt project
    makes it). The key does not tell the source; where the corpus has its name, that one is looked into first.
    """
    for source, resource in sorted(PAIRS.items(), key=lambda one: one[0] != corpus):
        condition = "md5(concat_ws('|', %s, _key::jsonb::text)) = %s"
        found = _current(db, source, f"{source}_{resource}", condition, (source, key), loads)
        for row in [pair["row"] for pair in found]:
            if source == "parallel_files":
                same = "corpus = %s and part = %s and line = %s and language in ('en', 'eng')"
                place = (row["corpus"], row["part"], row["line"])
                found += _current(db, source, "parallel_files_lines", same, place, loads)
            elif source == "tatoeba":
                sentences = (f"[{row['sentence_id']}]", f"[{row['translation_id']}]")
                found += _current(db, source, "tatoeba_sentences", "_key in (%s, %s)", sentences, loads)
        if found:
            return found
    return []


def _current(
    db: connection, source: str, table: str, condition: str, values: tuple[Any, ...], loads: Loads
) -> list[Found]:
    """Records of raw that match and were current: per key the latest version of published loads, up to ``loads``."""
    if not _exists(db, f"raw.{table}"):
        return []
    last = None if loads is None else loads.get(source, -1)
    rows = _select(
        db,
        f"""
        select * from (
            select distinct on (r._key) r.*
            from raw.{table} as r
            join ops.load as l on l.source = %s and l.load = r._load and l.state = 'published'
            where (%s::bigint is null or r._load <= %s::bigint)
              and r._key in (select _key from raw.{table} where {condition})
            order by r._key, r._load desc, r._position desc
        ) as latest
        where not _deleted and {condition}
        """,
        (source, last, last, *values, *values),
    )
    return [_record(db, source, table, row) for row in rows]


def _record(db: connection, source: str, table: str, row: Found) -> Found:
    load = row["_load"]
    landing = _select(
        db,
        "select position, key, name, sha256, bytes, content_type, fetched_at, meta from ops.landing "
        "where source = %s and load = %s and position = %s",
        (source, load, row["_page"]),
    )
    state = _select(
        db,
        "select state, resource, lane, slice, interval_start, interval_end, run_id, fetched_at, loaded_at, judged_at "
        "from ops.load where source = %s and load = %s",
        (source, load),
    )
    return {
        "source": source,
        "table": table,
        "load": load,
        "position": row["_position"],
        "key": row["_key"],
        "hash": row["_hash"].replace("-", ""),
        "row": {name: value for name, value in row.items() if not name.startswith("_")},
        "load_state": state[0] if state else None,
        "landing": landing[0] if landing else {"key": None},
    }


def _document(record: Found, settings: Settings) -> Found:
    """The document's version in the document store, by the address that its key and content give it."""
    version = hashlib.md5(f"{record['key']}\x1f{record['hash']}".encode(), usedforsecurity=False).hexdigest()
    found = Documents(settings).read_versions(record["table"], [version])[version]
    return {"collection": record["table"], "_id": version, "landing": found["landing"], "doc": found["doc"]}


# ---------------------------------------------------------------- once more from the bytes


def _agrees(traced: Found, settings: Settings) -> bool:
    """Whether the row that models are given, of the version or the mart, says what the records do."""
    family, said, given = traced["family"], traced["records"][0]["row"], _given(traced, settings)
    if family == "translation":
        texts = [record["row"].values() for record in traced["records"]]
        known = {_letters(text) for row in texts for text in row if isinstance(text, str)}
        return {_letters(given["source_text"]), _letters(given["target_text"])} <= known
    if family == "music":
        return bool(given["frames"] == (said["frames"] if "frames" in said else said["frames_quarter"]))
    samples = freeze.samples_of(Objects(settings), said["clip_object"], traced["key"])
    return bool(given["pcm"] == samples if "pcm" in given else given["clip_object"] == said["clip_object"])


def _given(traced: Found, settings: Settings) -> Found:
    """The whole row that models are given."""
    if "shard" in traced:
        return _shard_row(freeze.show(traced["dataset"]["version"], settings), traced["key"], settings, whole=True)[1]
    with closing(_connected(settings)) as db:
        row: Found = _mart_row(db, traced["family"], traced["key"], whole=True)["row"]
        return row


def _letters(text: str) -> str:
    """A text without what the models of dbt tidy: white space, and the & before the key that opens a menu entry."""
    return "".join(text.replace("&", "").split())
