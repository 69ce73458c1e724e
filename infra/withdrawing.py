"""`lyrebird forget`: what ingestion takes out of the stores, and what that means to dataset versions and models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ingestion import forgetting
from ingestion.contract import Source
from ingestion.traces import Found
from ml.datasets import withdrawal
from storage.errors import Problem
from storage.settings import Settings


def forget(
    source: Source,
    keys: list[str],
    where: list[str],
    resources: list[str],
    settings: Settings,
    *,
    again: bool = False,
    dry_run: bool,
    say: Callable[[str], None],
    reached: Callable[[str], None] = lambda stage: None,
) -> dict[str, Any]:
    """Withdraw records by key, by ``FIELD=VALUE``, or ``again``. Gives what went, or would go.

    {"source", "withdrawal", "records": {table: [key, …]}, "pages", "objects", "files", "predictions",
    "versions": [{"version", "name", "rows"}], "models": [{"model", "version", "dataset"}], "dry_run", "domain"}.
    Raises Problem when nothing is named, or a key or value is not there.
    """
    values = [(field, value) for field, given, value in (one.partition("=") for one in where) if given and field]
    if len(values) < len(where) or not (keys or where or again):
        raise Problem("nothing says what to forget", "Name records with --key KEY or --where FIELD=VALUE")
    affected = withdrawal.Affected()

    def mark(found: Found) -> None:
        nonlocal affected
        affected = withdrawal.mark(found.withdrawal, source.name, found.keys, settings)
        gone = [key for table in map(source.table, source.resources) for key in found.keys.get(table, ())]
        withdrawal.drop_splits(source.name, [*found.values, *gone], settings)

    found = forgetting.forget(
        *(source, settings, keys, values, resources),
        again=again,
        dry_run=dry_run,
        before_rows=mark,
        say=say,
        reached=reached,
    )
    if dry_run:
        affected = withdrawal.affected(source.name, found.keys, settings)
    else:  # all that the withdrawal has marked, when its rows went in an earlier run that did not come to its end
        affected = withdrawal.marked(found.withdrawal, affected.predictions, settings)
    return found.summary | asdict(affected) | {"dry_run": dry_run, "domain": source.domain}
