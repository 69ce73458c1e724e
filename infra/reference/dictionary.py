"""The data dictionary: every table and column of core and marts, with diagrams of keys and of lineage.

    python -m infra.reference.dictionary [FOLDER]

Tables, types, keys and descriptions are those that PostgreSQL holds; only lineage comes from dbt's manifest, as
`lyrebird docs` has left it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from infra.reference import schema
from infra.reference.drawing import Box, Line, draw
from infra.reference.schema import Key, Table
from storage.errors import Problem
from storage.settings import checkout, for_role, home

DOMAINS = {
    "birds": "Recordings of birds: who recorded what, where and when, and the clips that models hear.",
    "music": "Pieces of music and their notes.",
    "text": "Sentences and their translations.",
    "shared": "What all domains refer to.",
    "platform": "What the platform records of itself: loads, audits, quarantine, scores, predictions.",
}
LAYERS = ("source", "staging", "intermediate", "core", "marts", "exposure")
HEADS = {"source": "sources and seeds", "exposure": "used by"}
EVERYWHERE = ("ops.load", "ops.landing")  # every staging model reads them: which loads are published, and from where
CHECKED = "CHECK "


def pages(tables: Sequence[Table], manifest: Mapping[str, Any]) -> dict[str, str]:
    """File name -> text of every page and picture of the dictionary. Raises Problem when no mart is published."""
    if not any(table.schema == "marts" for table in tables):
        raise Problem("no mart is published: there is little to describe", "Run `lyrebird run`")
    found = {"README.md": _index(tables)}
    for domain in DOMAINS:
        own = [table for table in tables if table.domain == domain]
        keys, lineage = entities(domain, tables), lineage_of(domain, manifest)
        found |= {f"{domain}-keys.svg": keys} if keys else {}
        found |= {f"{domain}-lineage.svg": lineage} if lineage else {}
        found[f"{domain}.md"] = _page(domain, own, keys=bool(keys), lineage=bool(lineage))
    return found


def _index(tables: Sequence[Table]) -> str:
    lines = [
        "# Data dictionary",
        "Every table and column of `core` and `marts`, out of the catalog of a running warehouse (`make docs`). "
        "Analysts read `marts`; `core` is what marts are built from, with keys that PostgreSQL holds. The dbt docs "
        "have the same with every model and test, to search and click through: `lyrebird docs` prints their address.",
        "| domain | marts | core | keys | lineage |\n| --- | --- | --- | --- | --- |",
    ]
    for domain in DOMAINS:
        cells = []
        for layer in ("marts", "core"):
            own = [table for table in tables if (table.domain, table.schema) == (domain, layer)]
            cells.append(", ".join(f"[{table.name}]({domain}.md#{table.schema}{table.name})" for table in own))
        keys = f"[picture]({domain}-keys.svg)" if cells[1] else ""
        lines[-1] += (
            f"\n| [{domain}]({domain}.md) | {cells[0]} | {cells[1]} | {keys} | [picture]({domain}-lineage.svg) |"
        )
    return "\n\n".join(lines) + "\n"


def _page(domain: str, tables: Sequence[Table], *, keys: bool, lineage: bool) -> str:
    parts = [f"# {domain.capitalize()}", DOMAINS[domain]]
    if lineage:
        parts += [
            "## Lineage",
            f"From the sources to what uses the marts. {' and '.join(f'`{name}`' for name in EVERYWHERE)}, which every "
            "staging model reads, are left out.",
            f"![Lineage of {domain}]({domain}-lineage.svg)",
        ]
    if keys:
        parts += [
            "## Entities of core",
            "Drawn from the foreign keys that PostgreSQL holds; a line leads from the referring column to its parent.",
            f"![Tables of {domain} in core and their keys]({domain}-keys.svg)",
        ]
    for table in sorted(tables, key=lambda table: (table.schema != "marts", table.name)):
        parts += [f"## {table.schema}.{table.name}", table.description, _columns(table)]
        checks = [key.text.removeprefix(CHECKED) for key in table.keys if key.kind == "c"]
        if checks:
            parts.append("Checked: " + "; ".join(f"`{' '.join(check.split())}`" for check in sorted(checks)) + ".")
    parts.append("[All domains](README.md)")
    return "\n\n".join(parts) + "\n"


def _columns(table: Table) -> str:
    lines = ["| column | type | null | key | what it holds |", "| --- | --- | --- | --- | --- |"]
    for column in table.columns:
        keys = "; ".join(
            _part(key, column.name) for key in table.keys if column.name in key.columns and key.kind != "c"
        )
        cells = (f"`{column.name}`", column.type, "no" if column.required else "yes", keys, column.description)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _part(key: Key, column: str) -> str:
    """A key, as one of its columns tells of it."""
    others = [name for name in key.columns if name != column]
    words = {"p": "primary", "u": "unique", "f": f"refers to {key.parent}"}[key.kind]
    return f"{words} with {', '.join(others)}" if others else words


def entities(domain: str, tables: Iterable[Table]) -> str:
    """The picture of a domain's core: tables, columns, foreign keys. Empty for a domain without tables there."""
    core = {table.name: table for table in tables if table.schema == "core"}
    own = {name for name, table in core.items() if table.domain == domain}
    if not own:
        return ""
    parents = {name: {parent for _, parent in core[name].parents()} - {name} for name in own}
    far = {parent for found in parents.values() for parent in found} - own

    def depth(name: str) -> int:
        return max((1 + depth(parent) for parent in parents.get(name, ())), default=0)

    def column(name: str) -> int:
        """As near to its children as it may stand."""
        children = [child for child in own if name in parents[child]]
        return min((column(child) for child in children), default=depth(name) + 1) - 1

    marks = {"p": "PK", "u": "U", "f": "FK", "": ""}
    boxes = [Box(name, column(name), (), "far") for name in sorted(far)]
    for name in sorted(own):
        rows = [
            (column.name, " ".join([*(marks[kind] for kind in core[name].kinds(column.name)), _short(column.type)]))
            for column in core[name].columns
        ]
        boxes.append(Box(name, column(name), tuple(rows)))
    lines = [
        Line(name, parent, columns[0])
        for name in sorted(own)
        for columns, parent in core[name].parents()
        if parent != name
    ]
    return draw(f"Tables of {domain} in core and their keys", boxes, lines)


def _short(kind: str) -> str:
    return {
        "double precision": "float8",
        "timestamp with time zone": "timestamptz",
        "time without time zone": "time",
    }.get(kind, kind)


def lineage_of(domain: str, manifest: Mapping[str, Any]) -> str:
    """The picture of a domain's models, from sources to exposures, by layer. Empty for a domain without models."""
    nodes = {key: node for key, node in manifest["nodes"].items() if _layer(node) and node["config"]["group"]}
    own = {key for key, node in nodes.items() if domain in node["tags"]}
    used = {key for key, one in manifest["exposures"].items() if {*one["depends_on"]["nodes"]} & own}
    everything = {**manifest["sources"], **nodes, **manifest["exposures"]}
    parents = {
        key: [
            parent
            for parent in everything[key]["depends_on"].get("nodes", ())  # a seed has none
            if parent in everything
            and _name(everything[parent]) not in EVERYWHERE
            # a table of core reads none: it waits for the parents of its foreign keys
            and (_layer(everything[key]), _layer(everything[parent])) != ("core", "core")
        ]
        for key in own | used
    }
    shown = own | used | {parent for found in parents.values() for parent in found}
    if not own:
        return ""
    layers = {key: _layer(everything[key]) for key in shown}

    def depth(key: str) -> int:
        """How far within its layer."""
        return max((1 + depth(one) for one in parents.get(key, ()) if layers[one] == layers[key]), default=0)

    wide = {layer: 1 + max((depth(key) for key in shown if layers[key] == layer), default=-1) for layer in LAYERS}
    first = {layer: sum(wide[before] for before in LAYERS[:at]) for at, layer in enumerate(LAYERS)}
    kinds = {"source": "source", "marts": "mart", "exposure": "exposure"}
    boxes = [
        Box(_name(everything[key]), first[layers[key]] + depth(key), (), kinds.get(layers[key], ""))
        for key in sorted(shown)
    ]
    lines = [Line(_name(everything[key]), _name(everything[one])) for key in sorted(parents) for one in parents[key]]
    heads = [HEADS.get(layer, layer) if n == 0 else "" for layer in LAYERS for n in range(wide[layer])]
    return draw(f"Lineage of {domain}", boxes, lines, heads)


def _layer(node: Mapping[str, Any]) -> str:
    """The layer of a node; empty for what is no data: tests, analyses, sweeps."""
    kind = str(node["resource_type"])
    if kind == "model":
        return "" if node["config"]["materialized"] == "sweep" else str(node["fqn"][1])
    return {"seed": "source", "source": "source", "exposure": "exposure"}.get(kind, "")


def _name(node: Mapping[str, Any]) -> str:
    if node["resource_type"] == "source":
        return f"{node['source_name']}.{node['name']}"
    return str(node["label"] if node["resource_type"] == "exposure" else node["alias"])


def write(folder: Path, found: Mapping[str, str]) -> None:
    """Write all files; what lay there of an earlier dictionary goes."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("*.md"), *folder.glob("*.svg")]:
        old.unlink()
    for name, text in found.items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    manifest = home() / "dbt" / "docs" / "manifest.json"
    if not manifest.exists():
        raise SystemExit("the dbt docs were not made yet: run `lyrebird docs`")
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else checkout() / "docs" / "dictionary"
    write(target, pages(schema.read(for_role("analyst")), json.loads(manifest.read_text())))
    print(target)
