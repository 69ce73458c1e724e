"""Where withdrawn records have left traces: in the journal and on its pages, in raw, documents and derived files.

Each page of the source is read again, as a load would read it: raw need not know all pages that held a record, and what
is asked for may be known by a value that only the page has.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pyarrow as pa
from psycopg2.extensions import cursor

from ingestion import catalogue, journal, rows, tombstones
from ingestion.contract import Landed, Resource, Source
from ingestion.journal import BUCKET
from ingestion.loading import Parsing, Stores
from ingestion.tombstones import KEY, Tombstone, Withdrawn
from storage import warehouse
from storage.objects import Objects

Keys = dict[str, list[str]]  # raw table -> keys of the rows that go
LANE = "forget"
# An expression in SQL -> the SHA-256 that a tombstone has of it.
SHA256 = "encode(sha256(convert_to({}, 'UTF8')), 'hex')"
FILE = r"^[a-z][a-z0-9_]*/[0-9a-f]{2}/[0-9a-f]{64}"  # a key in the bucket `derived`, after the source's name


@dataclass(frozen=True)
class Entry:
    """An entry of the journal; ``whole`` when all of it goes, since the object that it was made from does."""

    source: Source
    resource: Resource
    load: int
    page: Landed
    whole: bool = False

    @property
    def address(self) -> str:
        """Where the page lay before anything was taken out of it; empty for a deletion."""
        return self.page.key if self.page.erased is None else self.page.erased


@dataclass
class Found:
    """What a withdrawal takes away."""

    source: str
    withdrawal: str  # the same request has the same name
    tombstones: set[Tombstone] = field(repr=False)
    values: list[str] = field(default_factory=list, repr=False)  # of fields, as they were given
    keys: Keys = field(default_factory=dict)
    pages: list[Entry] = field(default_factory=list, repr=False)  # with something in them that has to go
    erased: list[Entry] = field(default_factory=list, repr=False)  # before, by this withdrawal or others
    originals: set[str] = field(default_factory=set)  # addresses in landing that nothing needs any more
    files: set[str] = field(default_factory=set)  # keys in the bucket `derived`

    @property
    def addresses(self) -> set[str]:
        """Pages in landing, as they were, that something is or was taken out of."""
        return {entry.address for entry in (*self.pages, *self.erased)} - {""}

    @property
    def summary(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "withdrawal": self.withdrawal,
            "records": {table: keys for table, keys in self.keys.items() if keys},
            "pages": len(self.pages),
            "objects": len(self.originals & {entry.address for entry in self.pages}),
            "files": len(self.files),
        }


def find(
    source: Source,
    known: list[Resource],
    found: Found,
    stores: Stores,
    loads: Collection[int] | None = None,
) -> None:
    """Add to ``found`` all that has to go by its tombstones: on the pages of these loads, or of all; in the stores."""
    marks = 0
    while len(found.tombstones) > marks:  # a page may lead to more that has to go
        while len(found.tombstones) > marks:
            marks = len(found.tombstones)
            found.keys = marked_keys(source, known, found.tombstones, stores)
            for resource in known:
                for key in found.keys[source.table(resource)]:
                    found.tombstones |= tombstones.siblings(source, resource, key, key_fields(resource, key))
        others, beside = _look_through(source, found, stores.objects, loads)
    going = found.addresses
    for entry in beside:
        if going & set(_texts(entry.page)):
            found.pages.append(entry)
        else:
            others.add(entry.page.key)
    going = found.addresses
    found.originals = going - others
    for one in derived(source):
        _find_derived(one, found, going, stores)
    found.files = _files(found, stores)


def derived(source: Source) -> list[Source]:
    """The sources that are made from this one."""
    return [one for one in catalogue.sources() if source.name in one.after]


def _look_through(
    source: Source, found: Found, objects: Objects, loads: Collection[int] | None
) -> tuple[set[str], list[Entry]]:
    """Read the source's pages for what is withdrawn. Gives the addresses of the others, and apart from them those that
    are read together with further pages, which their meta names.
    """
    found.pages, found.erased = [], []
    others, beside, passed = set[str](), list[Entry](), dict[str, set[str]]()
    withdrawn = withdrawn_of(source, found.tombstones, objects)
    for entry in entries(source, objects):
        page, guard = entry.page, withdrawn[entry.resource.name]
        if page.erased is not None:
            found.erased.append(entry)
        if guard and (loads is None or entry.load in loads):
            read = read_through(entry, guard)
            found.tombstones |= read.led_to
            found.files |= read.blobs
            if read.counts.forgotten:
                passed.setdefault(source.table(entry.resource), set()).update(read.passed)
                found.pages.append(entry)
                continue
        if page.erased is None and any(text.startswith(f"{BUCKET}/") for text in _texts(page)):
            beside.append(entry)
        else:
            others.add(page.key)
    found.keys |= {table: sorted(keys.union(found.keys.get(table, ()))) for table, keys in passed.items()}
    return others, beside


def withdrawn_of(source: Source, marks: Iterable[Tombstone], objects: Objects) -> dict[str, Withdrawn]:
    """What is withdrawn of each resource, by its name."""
    erased, marks = frozenset(objects.list(BUCKET, f"{source.name}/_erased/")), set(marks)
    return {one.name: replace(Withdrawn.of(one.name, marks), erased=erased) for one in source.resources}


def entries(source: Source, objects: Objects) -> Iterator[Entry]:
    """All entries of the source's journal, of the resources that there still are."""
    by_name = {resource.name: resource for resource in source.resources}
    for load in journal.segments(objects, source.name):
        header, pages = journal.read_segment(objects, source.name, load)
        if header.resource in by_name:
            resource = by_name[header.resource].known(header.cursor)
            for page in pages:
                yield Entry(source, resource, load, page)


class _Nowhere:
    """Takes what a load would write, and keeps none of it."""

    def put(self, *_what: object) -> None:
        return None

    execute = put


def parsing(entry: Entry, withdrawn: Withdrawn) -> Parsing:
    """What reads an entry as a load would, and writes nothing."""
    nowhere = cast(Any, _Nowhere())
    return Parsing(entry.source, entry.resource, entry.load, nowhere, nowhere, withdrawn)


def read_through(entry: Entry, withdrawn: Withdrawn) -> Parsing:
    """What reading an entry to its end came to."""
    read = parsing(entry, withdrawn)
    for _ in read.batches(iter([entry.page])):
        pass
    return read


def _texts(page: Landed) -> list[str]:
    return [page.name, *(value for value in page.meta.values() if isinstance(value, str))]


def _find_derived(source: Source, found: Found, going: set[str], stores: Stores) -> None:
    """What was derived from objects that go; where others have the same object, what was derived for this record."""
    keys = {one.sha256 for one in found.tombstones if one.field == KEY}
    came_from: dict[str, list[Entry]] = {source.table(resource): [] for resource in source.resources}
    taken_back = list[Entry]()
    for entry in entries(source, stores.objects):
        page, mine = entry.page, came_from[source.table(entry.resource)]
        if page.gone is not None:
            taken_back.append(entry)
        elif page.erased is not None:
            found.erased.append(entry)
            mine.append(entry)
        elif page.key in found.originals or (
            page.key in going and keys & {tombstones.digest(text) for text in _texts(page)}
        ):
            found.pages.append(replace(entry, whole=True))
            found.files |= read_through(entry, Withdrawn(everything=True)).blobs
            mine.append(entry)
    for table, of_table in came_from.items():
        found.keys[table] = _keys_from(table, [(entry.load, entry.page.position) for entry in of_table], stores)
    went = {table: set(keys) for table, keys in found.keys.items()}
    for entry in taken_back:
        if rows.key_text(entry.page.gone or ()) in went[source.table(entry.resource)]:
            found.pages.append(entry)


# ---------------------------------------------------------------- in the stores


def marked_keys(source: Source, known: list[Resource], marks: Iterable[Tombstone], stores: Stores) -> Keys:
    """Keys in raw and in the document store that tombstones speak of, by table."""
    found: Keys = {}
    for resource in known:
        table, withdrawn = source.table(resource), Withdrawn.of(resource.name, marks)
        keys = set[str]()
        if withdrawn:
            keys |= _marked_rows(resource, table, withdrawn, stores)
            if resource.store == "documents":
                shown = {"key": 1} | {f"doc.{name}": 1 for name in withdrawn.fields}
                versions = stores.documents().database[table].find({}, shown)
                keys |= {
                    one["key"]
                    for one in versions
                    if withdrawn.has_key(one["key"]) or withdrawn.by_field(one.get("doc", {}))
                }
        found[table] = sorted(keys)
    return found


def _marked_rows(resource: Resource, table: str, withdrawn: Withdrawn, stores: Stores) -> set[str]:
    tests, values = [f"{SHA256.format('_key')} = any(%s)"], [list(withdrawn.keys)]
    for name, hashes in withdrawn.fields.items():
        literal, column = (name.replace("%", "%%").replace(quote, 2 * quote) for quote in ("'", '"'))
        shown = f"doc ->> '{literal}'" if resource.store == "documents" else f'"{column}"::text'
        tests.append(f"{SHA256.format(shown)} = any(%s)")
        values.append(list(hashes))
    with stores.warehouse as db, db.cursor() as sql:
        if not exists(sql, table):
            return set()
        sql.execute(f'select distinct _key from raw."{table}" where {" or ".join(tests)}', values)
        return {key for (key,) in sql.fetchall()}


def exists(sql: cursor, table: str) -> bool:
    """Whether raw has the table."""
    sql.execute("select to_regclass(%s) is not null", (f'raw."{table}"',))
    return bool(warehouse.first(sql)[0])


def key_fields(resource: Resource, key: str) -> dict[str, Any]:
    """The fields of a key, out of its text in raw."""
    values = [key] if is_text(resource) else from_json(key)
    fits = isinstance(values, list) and len(values) == len(resource.key)
    return dict(zip(resource.key, values, strict=True)) if fits else {}


def is_text(resource: Resource) -> bool:
    """Whether the resource's key is one text, and so itself in raw."""
    name, *more = resource.key
    known = name in resource.schema.names
    return not more and (not known or pa.types.is_string(resource.schema.field(name).type))


def from_json(text: str) -> Any:
    """What a text says as JSON; None where it is none."""
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None


def _keys_from(table: str, places: list[tuple[int, int]], stores: Stores) -> list[str]:
    """Keys of the rows of raw that came from these places of the journal: (load, position)."""
    with stores.warehouse as db, db.cursor() as sql:
        if not places or not exists(sql, table):
            return []
        sql.execute(
            f'select distinct _key from raw."{table}" as r '
            "join unnest(%s::bigint[], %s::bigint[]) as p (load, page) on r._load = p.load and r._page = p.page "
            "order by 1",
            tuple(map(list, zip(*places, strict=True))),
        )
        return [key for (key,) in sql.fetchall()]


def _files(found: Found, stores: Stores) -> set[str]:
    """Files that the rows that go name, and no other row."""
    named, needed = set(found.files), set[str]()
    with stores.warehouse as db, db.cursor() as sql:
        for table, keys in found.keys.items():
            if keys and exists(sql, table):
                sql.execute(
                    f'select distinct e.value from raw."{table}" as r, jsonb_each_text(to_jsonb(r)) as e '
                    "where r._key = any(%s) and e.value ~ %s",
                    (keys, FILE),
                )
                named |= {value for (value,) in sql.fetchall()}
        for table, keys in found.keys.items():
            mine = [file for file in named if f"{table}_".startswith(file.split("/")[0] + "_")]
            if mine and exists(sql, table):
                sql.execute(
                    f'select distinct e.value from raw."{table}" as r, jsonb_each_text(to_jsonb(r)) as e '
                    "where e.value = any(%s) and r._key <> all(%s)",
                    (mine, keys),
                )
                needed |= {value for (value,) in sql.fetchall()}
    return named - needed
