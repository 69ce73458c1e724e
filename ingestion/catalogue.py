"""The catalogue: every source there is, one line each. The ingest DAGs, raw tables and docs are made from it.

`python -m ingestion.catalogue` prints it as a page: docs/sources.md.
"""

from __future__ import annotations

import importlib
import json

from ingestion.contract import Source
from storage.errors import Problem

SOURCES = (
    "ingestion.sources.aviary",
    "ingestion.sources.audio_folder",
    "ingestion.sources.xeno_canto",
    "ingestion.sources.gbif_sounds",
    "ingestion.sources.species_accounts",
    "ingestion.derive.clips",
    "ingestion.sources.music21_corpus",
    "ingestion.sources.piano_roll_files",
    "ingestion.sources.maestro",
    "ingestion.sources.midi_archive",
    "ingestion.sources.mutopia",
    "ingestion.derive.notes",
    "ingestion.sources.gettext_catalogues",
    "ingestion.sources.parallel_files",
    "ingestion.sources.tatoeba",
    "ingestion.sources.manythings",
    "ingestion.sources.sql_table",
    "ingestion.sources.field_recorder",
)


def names() -> list[str]:
    return [module.rsplit(".", 1)[1] for module in SOURCES]


def sources() -> list[Source]:
    return [importlib.import_module(module).SOURCE for module in SOURCES]


def source(name: str) -> Source:
    """The source of that name. Raises Problem that lists the names there are."""
    module = next((module for module in SOURCES if module.rsplit(".", 1)[1] == name), None)
    if module is None:
        raise Problem(f"there is no source {name}", f"There are: {', '.join(names())}")
    found: Source = importlib.import_module(module).SOURCE
    return found


def page() -> str:
    """The catalogue as a page of Markdown."""
    parts = [_HEAD]
    for one in sources():
        when = f"when {' or '.join(one.after)} changes" if one.after else f"`{one.cadence}` (cron, UTC)"
        facts = {"Domain": one.domain, "Licence": one.licence, "Runs": when, "Goes on from": one.cursor}
        facts |= {"Volume": one.volume, "From": one.url}
        parts += [f"## {one.name}", f"**{one.title}.** {one.description}"]
        parts.append("\n".join(f"* {name}: {value}" for name, value in facts.items() if value))
        lines = ["| table | what | key | store | mode |", "|---|---|---|---|---|"]
        for resource in one.resources:
            if resource.columns is None:  # the others are this machine's own
                cells = (f"`raw.{one.table(resource)}`", resource.description, ", ".join(resource.key))
                lines.append(f"| {' | '.join((*cells, resource.store, resource.mode))} |")
        parts += ["\n".join(lines)] if len(lines) > 2 else []
        if one.config:
            lines = ["| option | default | what it means |", "|---|---|---|"]
            lines += [f"| `{name}` | `{json.dumps(value)}` | {text} |" for name, (value, text) in one.config.items()]
            parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


_HEAD = """# Sources

Every source of the catalogue, as the code describes it. This page is generated:
`python -m ingestion.catalogue > docs/sources.md`.

* **Store:** `rows` go to PostgreSQL; `documents` to MongoDB, and from there to PostgreSQL as JSON; `objects` are files,
  which stay in landing, with a row about each.
* **Mode:** in `append`, records never change; in `merge`, the latest version of a key counts; in `replace`, each load
  is the whole, and a key that is not in it is deleted. Raw keeps every version in every mode.
* **Options** are set in `.lyrebird/lyrebird.toml`, in a table `[sources.<name>]`."""

if __name__ == "__main__":
    print(page(), end="")
