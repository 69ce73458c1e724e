"""What is trained: a task is a name, the rows of a training mart that belong to it, and how much it takes at least.

The name is that of the frozen versions, of the registered model and of the folders in the object store. Birds have one
rule more: every label set found in the mart is the task ``birds-<label set>``, so a folder of recordings with labels
becomes a task without a line of code; and so does a language that English was translated to,
``translation-en-<language>``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Literal, get_args

from psycopg2.extensions import connection

from storage import languages, warehouse
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


def _translation(code: str) -> Task:
    """From English to a language. The messages of programs are too odd to learn from where there is anything else."""
    where = f"target_language = '{languages.long(code)}'"
    if code != "ru":
        where += " and corpus in (select name from marts.dim_corpus where source != 'gettext_catalogues')"
    return Task(f"translation-en-{languages.short(code)}", "translation", MARTS["translation"], where, 1_000)


TASKS = (
    _birds("aviary"),
    Task(
        "music-chorales",
        "music",
        MARTS["music"],
        "grid = 'quarter' and (corpus = 'bach-chorales' or source = 'piano_roll_files')",
        50,
    ),
    _translation("ru"),
    _translation("de"),
)


# Families with a task for each value of a column of their mart.
OPEN: dict[str, tuple[str, str, Callable[[str], Task]]] = {
    "birds": (MARTS["birds"], "label_set", _birds),
    "translation": (MARTS["translation"], "target_language", _translation),
}


def task(name: str) -> Task:
    """The task of this name. Raises Problem with the names there are."""
    for one in TASKS:
        if one.name == name:
            return one
    family, _, label_set = name.partition("-")
    if family == "birds" and _LABEL_SET.match(label_set):
        return _birds(label_set)
    source, _, target = label_set.partition("-")
    if (family, source) == ("translation", "en") and languages.known(target) and languages.long(target) != "eng":
        return _translation(languages.short(target))
    names = ", ".join(one.name for one in TASKS)
    raise Problem(
        f"there is no task {name!r}",
        f"The tasks are {names}, birds-<label set> for labels of your own, and translation-en-<language>",
    )


def tasks_of(family: str, settings: Settings | None = None) -> list[Task]:
    """A family's tasks; with ``settings`` also those of the label sets and languages that are in the marts."""
    if family not in FAMILIES:
        raise Problem(f"there is no family of models {family!r}", f"The families are {', '.join(FAMILIES)}")
    found = [one for one in TASKS if one.family == family]
    if family in OPEN and settings is not None:
        mart, column, make = OPEN[family]
        with closing(warehouse.connect(settings)) as db, db:
            names = {one.name for one in found}
            found += [one for one in map(make, _found(db, mart, column)) if one.name not in names]
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


def _found(db: connection, mart: str, column: str) -> list[str]:
    """What a mart has enough rows of to be looked at: label sets, languages."""
    if not _published(db, mart):
        return []
    with db.cursor() as sql:
        sql.execute(f"select {column} from marts.{mart} group by 1 having count(*) >= 20 order by 1")
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
