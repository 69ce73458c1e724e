"""gettext catalogues: contexts, plural forms, charsets, and files that are not what they say."""

from __future__ import annotations

import importlib.metadata
import io
import random
import struct
from collections import Counter
from typing import Any

import pytest
from upstreams.landed_bytes import LandedBytes

from ingestion import rows
from ingestion.contract import Bad, BadPage, Context, Page
from ingestion.sources import gettext_catalogues
from storage.errors import Problem
from storage.settings import Settings

MESSAGES = gettext_catalogues.SOURCE.resources[0]
META = {"package": "p", "package_version": "1.0", "language": "ru", "licence": "BSD-3-Clause"}
HEADER = "Content-Type: text/plain; charset={}\nPlural-Forms: nplurals=3; plural=n%3;\n"


def catalogue(messages: dict[str, str], charset: str = "utf-8", order: str = "<") -> bytes:
    """A .mo file as GNU gettext lays it out."""
    pairs = [
        (k.encode(charset), v.encode(charset)) for k, v in sorted(({"": HEADER.format(charset)} | messages).items())
    ]
    start = 28 + 16 * len(pairs)
    tables: tuple[list[int], list[int]] = ([], [])
    body = b""
    for side in (0, 1):
        for pair in pairs:
            tables[side].extend((len(pair[side]), start + len(body)))
            body += pair[side] + b"\x00"
    head = (0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 0)
    return struct.pack(f"{order}{7 + 4 * len(pairs)}I", *head, *tables[0], *tables[1]) + body


def parse(body: bytes) -> list[Any]:
    return list(MESSAGES.parse(LandedBytes(body, "p/locale/ru/LC_MESSAGES/django.mo", **META)))


def fetch(cursor: dict[str, Any] | None = None, **options: Any) -> list[Page]:
    config = {name: default for name, (default, _) in gettext_catalogues.SOURCE.config.items()} | options
    return list(gettext_catalogues.fetch(Context(config, cursor or {}, MESSAGES, None, Settings(), lambda text: None)))


@pytest.mark.parametrize("charset", ["utf-8", "koi8-r"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_messages_contexts_and_plural_forms(charset: str, order: str) -> None:
    body = catalogue(
        {
            "<b>Save</b> %s": "<b>Сохранить</b> %s",
            "month\x04May": "Май",
            "%d file\x00%d files": "%d файл\x00%d файла\x00%d файлов",
        },
        charset,
        order,
    )
    found = parse(body)
    assert [rows.check(MESSAGES, record) for record in found] == [""] * 5
    assert [(r["context"], r["source_text"], r["target_text"], r["form"]) for r in found] == [
        ("", "%d file", "%d файл", 0),
        ("", "%d files", "%d файла", 1),
        ("", "%d files", "%d файлов", 2),
        ("", "<b>Save</b> %s", "<b>Сохранить</b> %s", 0),
        ("month", "May", "Май", 0),
    ]
    assert {(r["package"], r["language"], r["licence"]) for r in found} == {("p", "ru", "BSD-3-Clause")}


def test_what_babel_writes_is_read() -> None:
    from babel.messages import Catalog
    from babel.messages.mofile import write_mo

    written = Catalog(locale="ru")
    written.add("Home", "Домой", context="page")
    written.add(("day", "days"), ("день", "дня", "дней"))
    file = io.BytesIO()
    write_mo(file, written)
    assert sorted((r["context"], r["source_text"], r["target_text"]) for r in parse(file.getvalue())) == [
        *(("", "day", "день"), ("", "days", "дней"), ("", "days", "дня")),
        ("page", "Home", "Домой"),
    ]


def test_a_message_in_another_charset_is_bad_alone() -> None:
    body = catalogue({"a": "ааа", "b": "ббб"}).replace("ааа".encode(), b"\xff" * 6)
    bad, good = parse(body)
    assert isinstance(bad, Bad)
    assert "utf-8" in bad.reason
    assert good["target_text"] == "ббб"


WHOLE = catalogue({"one": "один", "two": "два"})


@pytest.mark.parametrize(
    "body", [b"", WHOLE[:20], WHOLE[:60], WHOLE[:-9], b"msgid" * 20, b"\xde\x12\x04\x95" + b"\xff" * 40]
)
def test_a_damaged_catalogue_is_a_bad_page(body: bytes) -> None:
    with pytest.raises(BadPage):
        parse(body)


def test_damaged_bytes_never_end_in_anything_else() -> None:
    chance = random.Random(8)
    for _ in range(2_000):
        damaged = bytearray(WHOLE)
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            parse(bytes(damaged))
        except BadPage:
            continue


def test_the_installed_packages_have_what_the_demo_needs() -> None:
    pages = fetch()
    counts: Counter[str] = Counter()
    for page in pages:
        assert isinstance(page.body, bytes)
        for record in MESSAGES.parse(LandedBytes(page.body, page.name, page.content_type, **page.meta)):
            assert isinstance(record, dict)
            assert rows.check(MESSAGES, record) == ""
            counts[record["language"]] += 1
    assert set(counts) == {"ru", "de", "fr", "es"}
    assert min(counts.values()) > 5_000
    assert {page.meta["licence"] for page in pages if page.meta["package"] == "django"} == {"BSD-3-Clause"}
    assert {page.meta["package_version"] for page in pages if page.meta["package"] == "django"} == {
        importlib.metadata.version("django")
    }
    assert fetch(pages[0].cursor) == []
    assert fetch(pages[0].cursor, languages="ru") != []


def test_packages_that_are_not_there_are_one_sentence() -> None:
    with pytest.raises(Problem, match=r"no-such-package.*make install"):
        fetch(packages="no-such-package")
