"""Data Docs as published: nothing is loaded from elsewhere, and what the audit says stays."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from storage.gates import data_docs

PAGE = """<html><head>
<link rel="stylesheet" href="https://cdn.example/bootstrap.css">
<script src="https://cdn.example/jquery.js"></script>
<script>$(".table").bootstrapTable({"data": "</td>"})</script>
</head><body><picture><source srcset="https://cdn.example/dark.png"></picture>
<img src="https://cdn.example/logo.png?dataContextId=1234">
<table><tr><td>Must have greater than or equal to 1 rows.</td></tr></table>
<a href="index.html">Home</a> <a href="https://makers.example">makers</a>
<footer>newsletter</footer></body></html>"""


def test_a_page_loads_nothing_and_keeps_its_tables() -> None:
    page = data_docs.local(PAGE)
    assert not re.search(r"https?://|dataContextId|<script|<footer", page)
    assert "Must have greater than or equal to 1 rows." in page
    assert '<a href="index.html">Home</a>' in page


def test_the_index_lists_audits_and_escapes_what_they_say() -> None:
    failed = [{"what": "saw <script>alert(1)</script>"}]
    page = data_docs.index(
        [
            (datetime(2026, 1, 2, 3, 4, tzinfo=UTC), "load.a_b", "text", "critical", 4, failed, "audits/x.html"),
            (datetime(2026, 1, 2, 3, 3, tzinfo=UTC), "mart.c", "text", "none", 2, [], ""),
        ]
    )
    assert "&lt;script&gt;" in page
    assert "<script>" not in page
    assert '<a href="x.html">load.a_b</a>' in page
    assert "3 of 4" in page
    assert "passed" in page
