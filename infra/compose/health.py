"""Exit 0 when a URL answers as it should: ``python infra/compose/health.py URL [STATUS]``.

For a page behind a password that is 401: the refusal shows that the server is alive, and needs no password here.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request


def status(url: str) -> int:
    """The HTTP status, or 0 when nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=8) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


if __name__ == "__main__":
    wanted = int(sys.argv[2]) if len(sys.argv) > 2 else 200
    sys.exit(status(sys.argv[1]) != wanted)
