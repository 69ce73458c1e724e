"""Codes of languages, as the seed of the warehouse has them: ISO 639-3, and ISO 639-1 where there is one."""

from __future__ import annotations

import csv
from functools import cache

from storage.settings import checkout


@cache
def _codes() -> dict[str, str]:
    """Either code of a language -> its ISO 639-3 code in core and marts."""
    with (checkout() / "dbt_project" / "seeds" / "text" / "languages.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    long = {row["iso_639_3"]: row["counts_as"] or row["iso_639_3"] for row in rows}
    return long | {row["iso_639_1"]: long[row["iso_639_3"]] for row in rows if row["iso_639_1"]}


def known(code: str) -> bool:
    return code in _codes()


def long(code: str) -> str:
    """The code of three letters; a code that is not known stays as it is."""
    return _codes().get(code, code)


def short(code: str) -> str:
    """The code of two letters where there is one, else that of three."""
    return next((one for one, other in _codes().items() if len(one) == 2 and other == long(code)), long(code))
