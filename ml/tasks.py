"""What is trained: a task is a name, the rows of a training mart that belong to it, and how much it takes at least.

The name is that of the frozen versions, of the registered model and of the folders in the object store. Birds have one
rule more: every label set found in the mart is the task ``birds-<label set>``, so a folder of recordings with labels
becomes a task without a line of code.
"""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import dataclass
from typing import Literal, get_args

from psycopg2.extensions import connection

from storage import warehouse
from storage.errors import Problem
from storage.settings import Settings

Family = Literal["birds", "music", "translation"]
FAMILIES: tuple[Family, ...] = get_args(Family)

MARTS: dict[Family, str] = {
    "birds": "mart_birds_training_clips",
    "music": "mart_music_training_pieces",
    "translation": "mart_translation_training_pairs",
}


@dataclass(frozen=True)
class Task:
    """``where`` is SQL over the mart's columns; ``min_train_rows`` is what training makes sense from."""

    name: str
    family: Family
    mart: str
    where: str
    min_train_rows: int
    preset: str = "smoke"


_LABEL_SET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,60}\Z")


def _birds(label_set: str) -> Task:
    return Task(f"birds-{label_set}", "birds", MARTS["birds"], f"label_set = '{label_set}'", 20)


TASKS = (
    _birds("aviary"),
    Task(
        "music-chorales",
        "music",
        MARTS["music"],
        "grid = 'quarter' and (corpus = 'bach-chorales' or source = 'piano_roll_files')",
        50,
    ),
    Task("translation-en-ru", "translation", MARTS["translation"], "target_language = 'rus'", 1_000),
    # The German of gettext catalogues is messages of programs, too few and too odd: this task waits for parallel text.
    Task(
        "translation-en-de",
        "translation",
        MARTS["translation"],
        "target_language = 'deu' and corpus in (select name from marts.dim_corpus where source = 'parallel_files')",
        1_000,
    ),
)


def task(name: str) -> Task:
    """The task of this name. Raises Problem with the names there are."""
    for one in TASKS:
        if one.name == name:
            return one
    family, _, label_set = name.partition("-")
    if family == "birds" and _LABEL_SET.match(label_set):
        return _birds(label_set)
    names = ", ".join(one.name for one in TASKS)
    raise Problem(f"there is no task {name!r}", f"The tasks are {names}, and birds-<label set> for labels of your own")


def tasks_of(family: str, settings: Settings | None = None) -> list[Task]:
    """A family's tasks; for birds, with ``settings``, also those of the label sets in the mart."""
    if family not in FAMILIES:
        raise Problem(f"there is no family of models {family!r}", f"The families are {', '.join(FAMILIES)}")
    found = [one for one in TASKS if one.family == family]
    if family == "birds" and settings is not None:
        with closing(warehouse.connect(settings)) as db, db:
            names = {one.name for one in found}
            found += [one for one in map(_birds, _label_sets(db)) if one.name not in names]
    return found


def trainable(family: str, settings: Settings) -> list[Task]:
    """The family's tasks whose published mart holds enough training rows, and rows to judge a model on."""
    found = []
    for one in tasks_of(family, settings):
        with closing(warehouse.connect(settings)) as db, db:
            rows = _rows_by_split(db, one)
        if rows.get("train", 0) >= one.min_train_rows and rows.get("valid", 0) > 0:
            found.append(one)
    return found


def _label_sets(db: connection) -> list[str]:
    if not _published(db, MARTS["birds"]):
        return []
    with db.cursor() as sql:
        sql.execute(f"select distinct label_set from marts.{MARTS['birds']} order by 1")
        return [name for (name,) in sql.fetchall() if name and _LABEL_SET.match(name)]


def _rows_by_split(db: connection, one: Task) -> dict[str, int]:
    needed = [one.mart, *re.findall(r"\bmarts\.(\w+)", one.where)]
    if not all(_published(db, mart) for mart in needed):
        return {}
    with db.cursor() as sql:
        sql.execute(f"select split, count(*) from marts.{one.mart} where {one.where} group by split")
        return dict(sql.fetchall())


def _published(db: connection, mart: str) -> bool:
    with db.cursor() as sql:
        sql.execute("select to_regclass(%s) is not null", (f"marts.{mart}",))
        return bool(warehouse.first(sql)[0])
