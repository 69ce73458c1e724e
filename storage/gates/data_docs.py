"""Great Expectations' pages as we publish them: without what they would load from elsewhere, with an index of ours.

The pages as rendered ask half a dozen content networks for scripts and styles, and one picture carries an identifier of
the installation. All of that is taken out; what the tables say is plain HTML and stays.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

_FOREIGN = re.compile(
    r"""<script\b[^>]*\bsrc=["'](?:https?:)?//[^>]*>\s*</script>   # scripts of others
      | <link\b[^>]*\bhref=["'](?:https?:)?//[^>]*>                 # styles of others
      | <source\b[^>]*\bsrcset=["'](?:https?:)?//[^>]*>
    | <img\b[^>]*\bsrc=["'](?:https?:)?//[^>]*>                   # pictures of others, the counting one among them
      | <script\b(?![^>]*\bsrc=)[^>]*>.*?</script>                  # inline scripts, which need the above
      | <a\b[^>]*\bhref=["']https?://[^>]*>.*?</a>                  # links to the makers
      | <footer\b.*?</footer>""",
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --good: #1a7f37; --bad: #c62828; --warn: #b26a00 }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem 2rem; max-width: 75rem }
h1, h2, h3, h4, h5 { line-height: 1.25; margin: 1.2em 0 .4em }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1rem }
th, td { border: 1px solid var(--line); padding: .3rem .6rem; text-align: left; vertical-align: top }
th { background: var(--soft) } ul { padding-left: 1.2rem } a { color: inherit }
code, pre { font-family: ui-monospace, monospace } td .list-unstyled { margin: 0 }
.badge { border: 1px solid var(--line); border-radius: .5em; padding: 0 .4em; font-size: .85em }
.alert { border-left: .3rem solid var(--line); padding: .4rem .8rem; background: var(--soft) }
.none, .info { color: var(--good) } .warning { color: var(--warn) } .critical { color: var(--bad) }
.fa-check-circle::before { content: "✔ "; color: var(--good) }
.fa-times::before, .fa-exclamation-triangle::before { content: "✘ "; color: var(--bad) }
.modal, button, .navbar-toggler, #navigation, .navigation-pane, .filter-control { display: none }
"""


def local(page: str) -> str:
    """A page of Great Expectations that loads nothing from anywhere."""
    page = _FOREIGN.sub("", page)
    return page.replace("</head>", f"<style>{STYLE}</style></head>", 1)


def index(audits: Sequence[tuple[datetime, str, str, str, int, list[dict[str, Any]], str]]) -> str:
    """The front page: audits newest first, as (at, subject, domain, severity, expectations, failed, page).

    A page is named by its key in the bucket; links are relative, so that they hold when the server moves.
    """
    rows = []
    for at, subject, domain, severity, expectations, failed, page in audits:
        said = "; ".join(str(item["what"]) for item in failed[:3]) or "all as expected"
        name = html.escape(subject)
        link = f'<a href="{html.escape(page.split("/", 1)[1])}">{name}</a>' if "/" in page else name
        rows.append(
            f"<tr><td>{at:%Y-%m-%d %H:%M:%S}</td><td>{link}</td><td>{html.escape(domain)}</td>"
            f'<td class="{severity}">{"passed" if severity == "none" else severity}</td>'
            f"<td>{expectations - len(failed)} of {expectations}</td><td>{html.escape(said)}</td></tr>"
        )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Data Docs: audits</title>'
        f"<style>{STYLE}</style></head><body><h1>Data Docs</h1>"
        "<p>Every load before it is published and every mart before readers see it, judged as data, newest first. "
        "What is critical stops; a warning shows.</p>"
        "<table><thead><tr><th>When (UTC)</th><th>Subject</th><th>Domain</th><th>Verdict</th><th>Passed</th>"
        f"<th>What was seen</th></tr></thead><tbody>{''.join(rows)}</tbody></table></body></html>"
    )
