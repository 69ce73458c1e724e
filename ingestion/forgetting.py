"""Withdrawal: take records out of every store, so that neither a replay nor their source brings them back.

    tombstones -> remains -> journal -> pages -> documents -> files -> marked -> sealed -> rows -> loaded

Pages are erased: what remains of one is kept beside it, the journal leads there, and a replay gives the same rows
without those that went. The tombstones come first and the rows of raw last, and each step can be repeated: whatever is
killed, the same command run again does the rest.
"""

from __future__ import annotations

import html
import json
import re
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import bson
import pyarrow as pa
from psycopg2.extensions import cursor

from ingestion import journal, pipeline, rows, tombstones
from ingestion.contract import Resource, Source
from ingestion.journal import BUCKET
from ingestion.loading import PAYLOAD, Batch, Stores
from ingestion.tombstones import KEY, Tombstone, Withdrawn
from ingestion.traces import (
    LANE,
    Entry,
    Found,
    derived,
    entries,
    find,
    from_json,
    is_text,
    key_fields,
    marked_keys,
    parsing,
    read_through,
    withdrawn_of,
)
from ingestion.web import clear_downloads
from storage import warehouse
from storage.errors import Problem
from storage.objects import Objects
from storage.settings import Settings, home

Say = Callable[[str], None]
TYPE = "application/vnd.apache.arrow.stream"
MUCH = 0.1  # of a table's keys: without them, what audits have learnt of its size says nothing any more


def forget(
    source: Source,
    settings: Settings,
    keys: Sequence[str] = (),
    where: Sequence[tuple[str, str]] = (),
    resources: Collection[str] | None = None,
    *,
    again: bool = False,
    dry_run: bool = False,
    before_rows: Callable[[Found], None] = lambda found: None,
    say: Say = print,
    reached: Say = lambda stage: None,
) -> Found:
    """Withdraw the records with these keys, and those with these values of fields, from a source for good.

    With ``again`` goes what has come since of all that was withdrawn before. With a record goes what other resources of
    the source say of it, what was derived from it, and all its versions. Fetches and loads of the source that are under
    way are waited for, and others wait. ``before_rows`` is called when everything else is gone and the rows are about
    to be. With ``dry_run`` nothing goes. Raises Problem, and has changed nothing, where a key or value is not there and
    never was.
    """
    if source.after:
        raise Problem(
            f"{source.name} is derived from {', '.join(source.after)}", "Forget it there, and it goes from here too"
        )
    involved = [source, *derived(source)]
    with pipeline.exclusively(involved, settings) as stores:
        for one in involved:
            pipeline.load_pending(one, stores, settings, say)
        known = _known(source, stores)
        unknown = set(resources or ()) - {resource.name for resource in known}
        if unknown:
            names = ", ".join(resource.name for resource in known)
            raise Problem(f"{source.name} has no resource {sorted(unknown)[0]}", f"It has: {names}")
        asked = [resource for resource in known if not resources or resource.name in resources]
        request = json.dumps([sorted(keys), sorted(where), sorted(resources or ())])
        wanted = _wanted(source, asked, keys, where, stores)
        if again:
            wanted |= tombstones.read(stores.objects, source.name)
            request += json.dumps(sorted(map(str, wanted)))
        found = Found(source.name, tombstones.digest(request)[:16], wanted, [value for _, value in where])
        say(f"{source.name}: looking through its pages")
        find(source, known, found, stores)
        if not dry_run:
            _erase(source, known, found, stores, reached)
            _clear_unsealed(source, stores)
            before_rows(found)
            reached("marked")
            _seal(involved, found, stores)
            _clear_data_docs(found, stores)
            reached("sealed")
            _delete_rows(source, known, found, stores)
            reached("rows")
            for one in involved:
                pipeline.load_pending(one, stores, settings, say)
        return found


def sweep(source: Source, settings: Settings, say: Say = print) -> None:
    """Erase the pages on which withdrawn records came once more; their rows have been kept out already.

    Raises Problem when one of them led to records that readers have: models may have been trained on these, and to say
    so takes more than a loader's rights.
    """
    with pipeline.exclusively([source, *derived(source)], settings) as stores:
        known, marks = _known(source, stores), tombstones.read(stores.objects, source.name)
        with stores.warehouse as db, db.cursor() as sql:
            sql.execute("select load from ops.load where source = %s and forgotten > 0", (source.name,))
            loads = {load for (load,) in sql.fetchall()}
        found = Found(source.name, "", marks)
        find(source, known, found, stores, loads)
        if any(marked_keys(source, known, found.tombstones, stores).values()):
            raise Problem(
                f"records of {source.name} that are loaded turn out to be of somebody who was withdrawn",
                f"`lyrebird forget {source.name} --again` withdraws them too",
            )
        _erase(source, known, found, stores, lambda stage: None)
        _delete_rows(source, known, found, stores)
        say(f"{source.name}: {len(found.pages):,} pages held what was withdrawn before, and are erased")


def _known(source: Source, stores: Stores) -> list[Resource]:
    """The source's resources with their fields as of the last load; those that have none yet are left out."""
    cursors = {resource.name: _cursor(source, resource, stores) for resource in source.resources}
    return [
        resource.known(cursors[resource.name] or {})
        for resource in source.resources
        if cursors[resource.name] is not None or not resource.columns
    ]


def _cursor(source: Source, resource: Resource, stores: Stores) -> dict[str, Any] | None:
    with stores.warehouse as db, db.cursor() as sql:
        sql.execute(
            "select cursor from ops.load where source = %s and resource = %s and lane <> %s order by load desc limit 1",
            (source.name, resource.name, LANE),
        )
        row = sql.fetchone()
        return row[0] if row else None


# ---------------------------------------------------------------- what is asked for


def _wanted(
    source: Source, asked: list[Resource], keys: Sequence[str], where: Sequence[tuple[str, str]], stores: Stores
) -> set[Tombstone]:
    """The tombstones of a request, each of which stands for something that is there, or that was withdrawn before."""
    before, wanted = tombstones.read(stores.objects, source.name), set[Tombstone]()
    for key in keys:
        texts = [(one, key if is_text(one) or key.startswith("[") else f"[{key}]") for one in asked]
        there = [(one, text) for one, text in texts if _is_there(source, one, KEY, text, before, stores)]
        if not there:
            raise Problem(f"{source.name} has no record {key!r}", "Give a key as `_key` in its raw tables shows it")
        if len(there) > 1 and any(resource.columns for resource, _ in there):
            names = ", ".join(resource.name for resource, _ in there)
            raise Problem(f"{key!r} is a key of {names}", "Say which table is meant, with --resource")
        for resource, text in there:
            wanted |= tombstones.siblings(source, resource, text, key_fields(resource, text))
    for name, value in where:
        having = [one for one in asked if name in one.schema.names or one.store == "documents"]
        marks = {
            Tombstone(one.name, name, tombstones.digest(value))
            for one in having
            if _is_there(source, one, name, value, before, stores)
        }
        if not marks:
            fields = ", ".join(sorted({field for resource in asked for field in resource.schema.names}))
            raise Problem(f"{source.name} has no record whose {name} is {value!r}", f"Its fields: {fields}")
        wanted |= marks
    return wanted


def _is_there(
    source: Source, resource: Resource, field: str, text: str, before: set[Tombstone], stores: Stores
) -> bool:
    """Whether a record has this key or value: in raw or in quarantine, or before it was withdrawn."""
    mark = Tombstone(resource.name, field, tombstones.digest(text))
    if mark in before or any(marked_keys(source, [resource], [mark], stores).values()):
        return True
    withdrawn = Withdrawn.of(resource.name, [mark])
    with stores.warehouse as db, db.cursor() as sql:
        sql.execute(
            "select payload from ops.quarantine where source = %s and resource = %s", (source.name, resource.name)
        )
        return any(withdrawn.has(resource, from_json(payload)) for (payload,) in sql)


# ---------------------------------------------------------------- pages, documents, files


def _erase(source: Source, known: list[Resource], found: Found, stores: Stores, reached: Say) -> None:
    """Everything but the rows, from the tombstones on."""
    objects = stores.objects
    tombstones.write(objects, source.name, found.tombstones)
    reached("tombstones")
    changes: dict[tuple[str, int], dict[int, dict[str, Any]]] = {}
    withdrawn = withdrawn_of(source, found.tombstones, objects)
    for entry in found.pages:
        guard = Withdrawn(everything=True) if entry.whole else withdrawn.get(entry.resource.name, Withdrawn())
        changes.setdefault((entry.source.name, entry.load), {})[entry.page.position] = keep(entry, guard, objects)
    reached("remains")
    for (name, load), by_position in changes.items():
        journal.rewrite(objects, name, load, by_position)
        reached("rewritten")
    _index_again([source, *derived(source)], found, stores)
    reached("journal")
    for address in sorted(found.originals):
        objects.delete(*address.split("/", 1))
    reached("pages")
    for resource in known:
        if resource.store == "documents":
            table = source.table(resource)
            stores.documents().database[table].delete_many({"key": {"$in": found.keys[table]}})
    reached("documents")
    for key in sorted(found.files):
        objects.delete("derived", key)
    reached("files")


def _clear_unsealed(source: Source, stores: Stores) -> None:
    """Delete what has landed and is in no segment, and copies of answers: nobody has looked at what is in them.

    A fetch that was killed left it, or a crawl that is under way, which begins anew. Who needs a page asks again.
    """
    db = stores.warehouse
    with db, db.cursor() as sql:
        sql.execute("select crawl from ops.crawl where source = %s", (source.name,))
        crawls = [crawl for (crawl,) in sql.fetchall()]
    for crawl in crawls:  # its crawler may live a moment longer than whoever started it, and land one more page
        with warehouse.advisory_lock(db, f"crawl:{crawl}"), db, db.cursor() as sql:
            for table in ("frontier", "crawl"):
                sql.execute(f"delete from ops.{table} where crawl = %s", (crawl,))
    named = set[str]()
    for load in journal.segments(stores.objects, source.name):
        for page in journal.read_segment(stores.objects, source.name, load)[1]:
            named |= {page.key, *(value for value in page.meta.values() if isinstance(value, str))}
    for key in list(stores.objects.list(BUCKET, f"{source.name}/")):
        if not key.startswith(f"{source.name}/_") and f"{BUCKET}/{key}" not in named:
            stores.objects.delete(BUCKET, key)
    for path in (home() / "cache" / "pages").glob("*"):  # the folder stays: crawls of other sources write there
        path.unlink(missing_ok=True)
    clear_downloads()


def keep(entry: Entry, withdrawn: Withdrawn, objects: Objects) -> dict[str, Any]:
    """Write what remains of a page, as lines of raw in Arrow's stream format; gives its new entry for the journal.

    Columns: ``_position`` on the page, ``_key``, and the data as it travels to raw; of documents, in place of the data,
    ``_hash`` and the document as BSON. The schema's metadata has the number of positions of the page.
    """
    page, resource = entry.page, entry.resource
    if not page.key:
        return {"erased": "", "key": ""}
    positions = read_through(entry, withdrawn).position
    data = pa.schema([("_hash", pa.binary()), ("_document", pa.binary())])
    if resource.store != "documents":
        data = rows.wire(resource)
    schema = pa.schema(
        [("_position", pa.int64()), ("_key", pa.string()), *data], metadata={"positions": str(positions)}
    )
    key = page.address[1] if page.erased else tombstones.erased_key(entry.source.name, page)
    with tempfile.TemporaryDirectory(prefix="lyrebird-") as folder:
        path = Path(folder) / "remains"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            for batch in parsing(entry, withdrawn).batches(iter([page])):
                writer.write_batch(_lines(batch, schema))
        objects.put(BUCKET, key, path, TYPE)
        sha256, size = journal.digest(path)
    told = {"sha256": sha256, "bytes": size, "content_type": TYPE}
    return {"erased": entry.address, "key": f"{BUCKET}/{key}", **told}


def _lines(batch: Batch, schema: pa.Schema) -> pa.RecordBatch:
    columns: dict[str, Any] = {"_position": batch.positions, "_key": batch.keys, "_hash": batch.hashes}
    columns |= dict(zip(batch.data.schema.names, batch.data.columns, strict=True))
    columns["_document"] = [bson.encode(one[0]) for one in batch.documents if one]
    arrays = [
        columns[one.name] if isinstance(columns[one.name], pa.Array) else pa.array(columns[one.name], one.type)
        for one in schema
    ]
    return pa.record_batch(arrays, schema=schema)


def _index_again(involved: list[Source], found: Found, stores: Stores) -> None:
    """Let the index of the journal, and documents that stay, say of erased pages what the journal says now."""
    places = {(one.source.name, one.load, one.page.position) for one in (*found.pages, *found.erased)}
    for source in involved:
        for entry in entries(source, stores.objects):
            page = entry.page
            if page.erased is None or (source.name, entry.load, page.position) not in places:
                continue
            with stores.warehouse as db, db.cursor() as sql:
                _index(sql, entry)
            if entry.resource.store == "documents" and page.key:
                versions = stores.documents().database[source.table(entry.resource)]
                versions.update_many({"landing": page.erased}, {"$set": {"landing": page.key}})


def _index(sql: cursor, entry: Entry) -> None:
    page = entry.page
    sql.execute(
        "delete from ops.landing where source = %s and load = %s and position = %s returning fetched_at",
        (entry.source.name, entry.load, page.position),
    )
    if sql.rowcount and page.key:
        sql.execute(
            "insert into ops.landing (source, load, position, resource, key, sha256, name, bytes, content_type, "
            "fetched_at) values (%s, %s, %s, %s, %s, %s, '', %s, %s, %s)",
            (
                *(entry.source.name, entry.load, page.position, entry.resource.name, page.key, page.sha256),
                *(page.size, page.content_type, page.fetched_at),
            ),
        )


# ---------------------------------------------------------------- rows


def _seal(involved: list[Source], found: Found, stores: Stores) -> None:
    """A load without records for each table that loses some: what follows a source sees that it has changed.

    A withdrawal that was killed after this seals once more: marts may have been built in between, of rows still there.
    """
    for source in involved:
        for resource in source.resources:
            if not found.keys.get(source.table(resource)):
                continue
            segment = journal.Segment(stores.objects, source.name, resource.name)
            segment.cursor = (_cursor(source, resource, stores) if resource.columns else None) or {}
            segment.seal(lane=LANE, slice=found.withdrawal, interval=None, run_id="withdrawal")


def _delete_rows(source: Source, known: list[Resource], found: Found, stores: Stores) -> None:
    """Rows, what quarantine says of them, and what audits have noted of them, in one transaction."""
    mentions, much = _mentions(found), list[str]()
    with stores.warehouse as db, db.cursor() as sql:
        for table, keys in found.keys.items():
            if keys:
                counted = "count(distinct _key), count(distinct _key) filter (where _key = any(%s))"
                sql.execute(f'select {counted} from raw."{table}"', (keys,))
                there, going = warehouse.first(sql)
                if going > MUCH * there:
                    much.append(f"load.{table}")
                sql.execute(f'delete from raw."{table}" where _key = any(%s)', (keys,))
        sql.execute("delete from ops.quarantine where id = any(%s)", (_quarantined(sql, source, known, found),))
        sql.execute("update ops.load set forgotten = 0 where source = %s and forgotten > 0", (source.name,))
        sql.execute("select id, failed, statistics from ops.audit where domain = %s", (source.domain,))
        for audit, *parts in sql.fetchall() if mentions else ():
            without = [_without(part, mentions) for part in parts]
            if without != parts:
                values = (*map(json.dumps, without), audit)
                sql.execute("update ops.audit set failed = %s, statistics = %s where id = %s", values)
        if much:
            sql.execute(
                "update ops.audit set statistics = statistics || '{\"rows\": 0}' where id in ("
                "select max(id) from ops.audit where success and (subject = any(%s) or (kind = 'mart' and domain = %s))"
                " group by subject)",
                (much, source.domain),
            )


def _quarantined(sql: cursor, source: Source, known: list[Resource], found: Found) -> list[int]:
    """What quarantine holds of the erased pages and is withdrawn, or may be: of these records, their numbers there.

    Other people's bad records stay, though their page is gone. What was derived goes with what it was made from. Where
    a payload does not say by its key whose it is, the words in it have to.
    """
    resources = {resource.name: resource for resource in known}
    withdrawn = {name: Withdrawn.of(name, found.tombstones) for name in resources}
    mentions, words = _mentions(found), _words(found)
    for resource in known:
        for key in found.keys.get(source.table(resource), ()):
            if len(resource.key) == 1:
                words |= set(map(tombstones.text_of, key_fields(resource, key).values()))
    names_any = _pattern(words)  # numbers too: on such a page they may well be keys
    unsaid = {one.sha256 for one in found.tombstones if one.field != KEY} - set(map(tombstones.digest, words))

    def stays(name: str, payload: str, reason: str) -> bool:
        resource, record, text = resources.get(name), from_json(payload), f"{payload}\n{reason}"
        if resource is None or (record is None and len(payload) >= PAYLOAD):
            return False  # it was cut off: what says whose it is may be in the rest
        if isinstance(record, Mapping) and record.keys() >= set(resource.key):
            theirs = withdrawn[name].has(resource, record) or bool(mentions and mentions.search(text))
            return not theirs and _is_plain(resource, withdrawn[name])
        return not unsaid and not (names_any and names_any.search(text))

    sql.execute(
        "select id, source, resource, payload, reason from ops.quarantine where landing = any(%s)",
        (sorted(found.addresses),),
    )
    return [number for number, of, *said in sql.fetchall() if of != source.name or not stays(*said)]


def _is_plain(resource: Resource, withdrawn: Withdrawn) -> bool:
    """Whether JSON shows what tells records apart as tombstones have it; quarantine shows a date as Python does."""
    names = {*resource.key, *withdrawn.fields} & set(resource.schema.names)
    kinds = [resource.schema.field(name).type for name in names]
    return all(pa.types.is_string(one) or pa.types.is_integer(one) or pa.types.is_boolean(one) for one in kinds)


def _mentions(found: Found) -> re.Pattern[str] | None:
    """What finds the keys and values in a text, as words of their own. Mere numbers may stand for anything."""
    return _pattern({word for word in _words(found) if not re.fullmatch(r"[\[\]\d.,\s-]*", word)})


def _words(found: Found) -> set[str]:
    return {*found.values, *(key for keys in found.keys.values() for key in keys)}


def _pattern(words: set[str]) -> re.Pattern[str] | None:
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, sorted(words)))})(?!\w)") if words else None


def _without(value: Any, mentions: re.Pattern[str] | None) -> Any:
    """JSON without what is mentioned: what is filed under it goes, and other texts say only that something went."""
    if mentions is None:
        return value
    if isinstance(value, Mapping):
        return {name: _without(one, mentions) for name, one in value.items() if not mentions.search(name)}
    if isinstance(value, list):
        return [_without(one, mentions) for one in value]
    return "withdrawn" if isinstance(value, str) and mentions.search(value) else value


def _clear_data_docs(found: Found, stores: Stores) -> None:
    """Remove the pages of audits that mention what is withdrawn: published ones, and those on this machine."""
    mentions = _mentions(found)
    if mentions is None:
        return
    for key in list(stores.objects.list("docs", "audits/")):
        if mentions.search(html.unescape(stores.objects.get("docs", key).decode("utf-8", "replace"))):
            stores.objects.delete("docs", key)
            with stores.warehouse as db, db.cursor() as sql:
                sql.execute("update ops.audit set docs_url = null where docs_url = %s", (key,))
    for path in (home() / "gx").rglob("*"):
        if path.suffix in (".html", ".json") and mentions.search(html.unescape(path.read_text(errors="replace"))):
            path.unlink()
