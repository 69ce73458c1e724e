"""Whether the real services are asked, too: only when a person says ``LYREBIRD_LIVE=1``."""

from __future__ import annotations

import os

LIVE = ["live"] if os.environ.get("LYREBIRD_LIVE") == "1" else []  # beside the double, in a list of parameters
