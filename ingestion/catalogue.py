"""The catalogue: every source there is, one line each. The ingest DAGs, raw tables and docs are made from it."""

from __future__ import annotations

import importlib

from ingestion.contract import Source
from storage.errors import Problem

SOURCES = (
    "ingestion.sources.aviary",
    "ingestion.sources.audio_folder",
    "ingestion.derive.clips",
    "ingestion.sources.music21_corpus",
    "ingestion.sources.piano_roll_files",
    "ingestion.derive.notes",
    "ingestion.sources.gettext_catalogues",
    "ingestion.sources.parallel_files",
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
