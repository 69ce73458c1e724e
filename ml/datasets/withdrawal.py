"""What a withdrawal means to models: the versions that hold what was withdrawn, and the models trained on them.

A version is frozen: it is marked, not changed, and nothing is trained on it any more unless somebody insists. Freezing
again, once the marts have been built without the rows, gives a version without them; before that, a freeze refuses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from psycopg2.extensions import connection

from ml.datasets import freeze
from ml.lineage import PAIRS
from ml.tasks import MARTS
from storage import warehouse
from storage.cache import Cache
from storage.errors import Problem
from storage.objects import Objects
from storage.settings import Settings

MARKS = "withdrawn.json"
Keys = Mapping[str, Sequence[str]]  # raw table -> keys of its rows that go


@dataclass
class Affected:
    """Versions: {"version", "name", "rows"}; models trained on them: {"model", "version", "dataset"}."""

    versions: list[dict[str, Any]] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=list)
    predictions: int = 0


def affected(source: str, keys: Keys, settings: Settings) -> Affected:
    """Versions with rows made of these records of a source, models trained on them, and predictions for such rows."""
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        found = Affected()
        for mart, wanted in mart_keys(db, source, keys).items():
            sql.execute(
                "select count(*) from ml.prediction as p join ml.dataset as d on d.version = p.dataset_version "
                "where d.mart = %s and p.key = any(%s)",
                (mart, sorted(wanted)),
            )
            found.predictions += warehouse.first(sql)[0]
            sql.execute(
                "select version from ml.dataset where mart = %s and manifest -> 'loads' ? %s order by created_at",
                (mart, source),
            )
            for (version,) in sql.fetchall() if wanted else ():
                manifest = freeze.show(version, settings)
                layout = freeze.LAYOUTS[mart]
                rows = len(wanted.intersection(freeze.reader(manifest, settings).column(layout.key)))
                if rows:
                    found.versions.append({"version": version, "name": manifest["name"], "rows": rows})
        found.models = _trained_on([one["version"] for one in found.versions], db)
    return found


def mark(withdrawal: str, source: str, keys: Keys, settings: Settings) -> Affected:
    """Mark the versions that hold rows of these records; remove their predictions, and the splits of whole groups.

    To be called while raw still has the rows. Calling it again for the same withdrawal changes nothing.
    """
    found = affected(source, keys, settings)
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        for one in found.versions:
            entry = {withdrawal: {"at": datetime.now(UTC).isoformat(timespec="seconds"), "rows": one["rows"]}}
            sql.execute(
                "update ml.dataset set withdrawn = %s || coalesce(withdrawn, '{}') where version = %s "
                "returning withdrawn, uri",
                (json.dumps(entry), one["version"]),
            )
            marks, uri = warehouse.first(sql)
            key = f"{uri.removeprefix(f's3://{freeze.BUCKET}/')}/{MARKS}"  # beside the version, for restore
            Objects(settings).put(freeze.BUCKET, key, json.dumps(marks).encode(), "application/json")
        for mart, wanted in mart_keys(db, source, keys).items():
            sql.execute(
                "insert into ml.withdrawn (mart, key_sha256) "
                "select %s, encode(sha256(convert_to(key, 'UTF8')), 'hex') from unnest(%s::text[]) as key "
                "on conflict do nothing",
                (mart, sorted(wanted)),
            )
            sql.execute(
                "delete from ml.prediction as p using ml.dataset as d where d.version = p.dataset_version "
                "and d.mart = %s and p.key = any(%s) returning p.model, p.key",
                (mart, sorted(wanted)),
            )
            Cache(settings).drop([f"prediction:{model}:{key}" for model, key in sql.fetchall()])
    return found


# How the warehouse writes a name in a group's key: the macro `folded` of dbt_project/macros/sql/untidy.sql.
FOLDED = r"""regexp_replace(
    lower(normalize(regexp_replace(normalize(m.name, nfkd), '[\u0300-\u036f]', '', 'g'), nfc) collate pg_c_utf8),
    '[^[:alnum:]]+', '', 'g')"""


def drop_splits(source: str, members: Sequence[str], settings: Settings) -> None:
    """Forget the leakage groups that are named for these contributors or records: all of them is withdrawn."""
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute(
            "delete from ml.split_group where starts_with(group_key, %s) and exists ("
            "select from unnest(%s::text[]) as m (name) "
            f"cross join lateral (values (m.name), ({FOLDED})) as way (name) "
            "where way.name <> '' and right(group_key, length(way.name) + 1) = '/' || way.name)",
            (f"{source}/", list(members)),
        )


def marked(withdrawal: str, predictions: int, settings: Settings) -> Affected:
    """The versions that a withdrawal has marked, and the models trained on them."""
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute(
            "select version, name, (withdrawn -> %s ->> 'rows')::int from ml.dataset where withdrawn ? %s "
            "order by created_at",
            (withdrawal, withdrawal),
        )
        versions = [dict(zip(("version", "name", "rows"), row, strict=True)) for row in sql.fetchall()]
        return Affected(versions, _trained_on([one["version"] for one in versions], db), predictions)


def refuse(manifest: Mapping[str, Any]) -> None:
    """Raise Problem for a version that holds what was withdrawn."""
    if manifest.get("withdrawn"):
        rows = sum(one["rows"] for one in manifest["withdrawn"].values())
        raise Problem(
            f"{rows:,} rows of the dataset version {manifest['version']} are of data that was withdrawn",
            f"Freeze a new one: `lyrebird dataset freeze {manifest['name']}`; "
            "`lyrebird train --withdrawn` trains on it all the same",
        )


def _trained_on(versions: Sequence[str], db: connection) -> list[dict[str, Any]]:
    """Models whose scores are of these versions: of those that they were trained on."""
    with db.cursor() as sql:
        sql.execute(
            "select distinct model, model_version, dataset_version from ml.score where dataset_version = any(%s) "
            "and split = 'valid' order by 1, 2",
            (list(versions),),
        )
        return [dict(zip(("model", "version", "dataset"), row, strict=True)) for row in sql.fetchall()]


def mart_keys(db: connection, source: str, keys: Keys) -> dict[str, set[str]]:
    """Keys of the rows that training marts make of these records, by mart."""
    pieces = {*keys.get("notes_pieces", ()), *keys.get("piano_roll_files_pieces", ())}
    return {
        MARTS["birds"]: set(keys.get("clips", ())),
        MARTS["music"]: pieces,
        MARTS["translation"]: _pairs(db, source, keys) if source in PAIRS else set(),
    }


def _pairs(db: connection, source: str, keys: Keys) -> set[str]:
    """Keys of pairs of which a text is withdrawn: a pair is named for one record, and may be made of several."""
    table = f"{source}_{PAIRS[source]}"
    condition, values = "_key = any(%s)", [list(keys.get(table, ()))]
    if source == "parallel_files":
        condition += (
            " or (corpus, part, line) in (select corpus, part, line from raw.parallel_files_lines"
            " where _key = any(%s) and language in ('en', 'eng'))"
        )
        values *= 2
    elif source == "tatoeba":
        condition += " or array['[' || sentence_id || ']', '[' || translation_id || ']'] && %s"
        values.append(list(keys.get("tatoeba_sentences", ())))
    with db.cursor() as sql:
        sql.execute(
            f"select distinct md5(concat_ws('|', %s, _key::jsonb::text)) from raw.{table} where {condition}",
            (source, *values),
        )
        return {key for (key,) in sql.fetchall()}
