"""The other way of lineage: what was built from an object in landing, as far as the models.

:mod:`ml.lineage` goes from an answer to the objects; this goes from one object, through the records of raw that came
from it, to the examples, the dataset versions that hold them, and the models trained on these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any

from psycopg2.extensions import connection

from ml.datasets import freeze, withdrawal
from storage import warehouse
from storage.errors import Problem
from storage.settings import Settings

Found = dict[str, Any]
Keys = dict[str, set[str]]  # raw table -> keys of its rows

SHOWN = 50  # keys of examples that are listed; there may be a million
# What is made of a source's records without their page being read: raw table -> which of its rows, by their keys. The
# first is looked for first: pieces are read from scores.
MADE = {
    "mutopia_scores": "%s = 'mutopia' and '[' || piece_id || ']' = any(%s)",
    "clips": "source = %s and recording_key = any(%s)",
    "notes_pieces": "source = %s and path = any(%s)",
}


def of(what: str, settings: Settings) -> Found:
    """What was built from a landed object; ``what`` is its address or its SHA-256.

    Gives {"object", "pages": [{"source", "resource", "load", "name", "fetched_at"}], "records": {raw table: how many},
    "examples": {mart: {"count", "keys"}} of the marts as they are published now, "versions": [{"version", "name",
    "rows"}], "models": [{"model", "version", "dataset"}]}. A record counts for every version of it that came from the
    object, whether it is the current one or not. Raises Problem when no published load has such an object.
    """
    with closing(warehouse.connect(settings, application="lyrebird lineage")) as db:
        db.set_session(readonly=True)
        pages = list(
            _rows(
                db,
                "select i.key as object, i.source, i.resource, i.load, i.position, i.name, i.fetched_at::text "
                "from ops.landing as i join ops.load as l using (source, load) "
                "where l.state = 'published' and %s in (i.key, i.sha256) order by 2, 4, 5",
                (what,),
            )
        )
        if not pages:
            raise Problem(
                f"no published load has the object {what!r}", "`lyrebird lineage example` shows addresses of objects"
            )
        keys: Keys = {}
        for page in pages:
            table = page["source"] if page["source"] == page["resource"] else f"{page['source']}_{page['resource']}"
            ours = f'select _key from raw."{table}" where _load = %s and _page = %s and not _deleted'
            found = _rows(db, ours, (page["load"], page.pop("position")))
            keys.setdefault(table, set()).update(row["_key"] for row in found)
        sources = sorted({page["source"] for page in pages})
        for source in sources:
            _add_what_was_made(db, source, keys)
        listed = {table: sorted(some) for table, some in keys.items()}
        examples: dict[str, set[str]] = {}
        for source in sources:
            for mart, made in withdrawal.mart_keys(db, source, listed).items():
                examples.setdefault(mart, set()).update(made)
        shown = {mart: _published(db, mart, made) for mart, made in examples.items()}
    affected = [withdrawal.affected(source, listed, settings) for source in sources]
    return {
        "object": pages[0]["object"],
        "pages": [{name: value for name, value in page.items() if name != "object"} for page in pages],
        "records": {table: len(some) for table, some in listed.items()},
        "examples": {mart: {"count": len(some), "keys": some[:SHOWN]} for mart, some in shown.items() if some},
        "versions": _once(one for found in affected for one in found.versions),
        "models": _once(one for found in affected for one in found.models),
    }


def _add_what_was_made(db: connection, source: str, keys: Keys) -> None:
    """Add the records that were made of a source's records: clips of recordings, pieces of scores."""
    for table, condition in MADE.items():
        named = [key for name, some in keys.items() if name.startswith(f"{source}_") for key in some]
        if named and next(_rows(db, "select to_regclass(%s) as there", (f"raw.{table}",)))["there"]:
            made = {
                row["_key"] for row in _rows(db, f"select _key from raw.{table} where {condition}", (source, named))
            }
            if made:
                keys.setdefault(table, set()).update(made)


def _published(db: connection, mart: str, made: set[str]) -> list[str]:
    """Which of these keys readers see in a mart."""
    key = freeze.LAYOUTS[mart].key
    if not next(_rows(db, "select to_regclass(%s) as there", (f"marts.{mart}",)))["there"]:
        return []
    found = _rows(db, f"select {key} as key from marts.{mart} where {key} = any(%s) order by 1", (list(made),))
    return [row["key"] for row in found]


def _rows(db: connection, query: str, values: tuple[Any, ...]) -> Iterator[Found]:
    with db.cursor() as sql:
        sql.execute(query, values)
        names = [column.name for column in sql.description or ()]
        yield from (dict(zip(names, row, strict=True)) for row in sql.fetchall())


def _once(found: Iterable[Found]) -> list[Found]:
    """What was found by several ways, once."""
    return list({tuple(one.items()): one for one in found}.values())
