"""What PostgreSQL itself says of core and marts: tables, columns, keys, descriptions.

A mart is a view over a table of a versioned schema (storage.gates.publish); its keys and not-null columns are those of
that table. Anybody who can connect may read the catalog, so the analyst will do.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from functools import partial

from psycopg2.extensions import connection

from storage import transform, warehouse
from storage.settings import Settings

# `vanished` is where the merges note what the sweeps are to delete: no data of anybody
TABLES = """
select described.oid, spaces.nspname, described.relname, held.oid, coalesce(obj_description(described.oid), '')
from pg_class as described
join pg_namespace as spaces on described.relnamespace = spaces.oid
join pg_class as held on held.oid = case
    when described.relkind <> 'v' then described.oid
    else (
        select max(depends.refobjid) from pg_rewrite as rules join pg_depend as depends
            on depends.classid = 'pg_rewrite'::regclass and depends.objid = rules.oid
            and depends.refclassid = 'pg_class'::regclass and depends.refobjid <> described.oid
        where rules.ev_class = described.oid
    )
end
where not described.relispartition
    and (spaces.nspname, described.relkind) in (('core', 'r'), ('core', 'p'), ('marts', 'v'))
    and (spaces.nspname, described.relname) <> ('core', 'vanished')
order by 2, 3
"""
COLUMNS = """
select shown.attname, format_type(shown.atttypid, shown.atttypmod), held.attnotnull,
    coalesce(col_description(shown.attrelid, shown.attnum), '')
from pg_attribute as shown
join pg_attribute as held on held.attrelid = %(held)s and held.attname = shown.attname
where shown.attrelid = %(shown)s and shown.attnum > 0 and not shown.attisdropped
order by shown.attnum
"""
KEYS = """
select contype, array(
        select attname::text from unnest(conkey) with ordinality as place (attnum, at)
        join pg_attribute using (attnum) where attrelid = conrelid order by at
    ),
    coalesce((select relname from pg_class where oid = confrelid), ''), pg_get_constraintdef(oid)
from pg_constraint where conrelid = %(held)s and contype in ('p', 'u', 'f', 'c') and conparentid = 0
order by array_position(array['p', 'u', 'f', 'c'], contype::text), 2, 4
"""


@dataclass(frozen=True)
class Column:
    """A column: its PostgreSQL type, whether it may be null, and what it holds."""

    name: str
    type: str
    required: bool
    description: str


@dataclass(frozen=True)
class Key:
    """A constraint: ``p`` primary, ``u`` unique, ``f`` foreign, ``c`` check; ``parent`` is the table it refers to."""

    kind: str
    columns: tuple[str, ...]
    parent: str
    text: str


@dataclass(frozen=True)
class Table:
    """A table of core, or a mart as readers see it."""

    schema: str
    name: str
    domain: str
    description: str
    columns: tuple[Column, ...]
    keys: tuple[Key, ...]

    def kinds(self, column: str) -> str:
        """The kinds of key that a column is part of, such as ``pf``."""
        return "".join(kind for kind in "puf" if any(column in key.columns for key in self.keys if key.kind == kind))

    def parents(self) -> list[tuple[tuple[str, ...], str]]:
        """The tables it refers to, each with the columns that do."""
        return [(key.columns, key.parent) for key in self.keys if key.kind == "f"]


def read(settings: Settings) -> list[Table]:
    """All tables of core and all published marts, by schema and name."""
    with closing(warehouse.connect(settings, application="lyrebird docs")) as db:
        rows = partial(_rows, db)
        return [
            Table(
                schema,
                name,
                domain(schema, name),
                description,
                tuple(Column(*column) for column in rows(COLUMNS, {"shown": shown, "held": held})),
                tuple(
                    Key(kind, tuple(columns), parent, text)
                    for kind, columns, parent, text in rows(KEYS, {"held": held})
                ),
            )
            for shown, schema, name, held, description in rows(TABLES, {})
        ]


def _rows(db: connection, statement: str, values: dict[str, int]) -> list[tuple]:
    with db, db.cursor() as sql:
        sql.execute(statement, values)
        return sql.fetchall()


def domain(layer: str, name: str) -> str:
    """The domain of a model: the folder that its file is in. Empty for a table that is none of ours."""
    found = next((transform.project() / "models" / layer).glob(f"*/{name}.sql"), None)
    return found.parent.name if found else ""
