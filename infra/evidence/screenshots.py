"""Pictures of the running stack's pages: ``python -m infra.evidence.screenshots [FOLDER]``.

Chromium runs headless (Debian's package ``chromium``, or what CHROMIUM names) and is driven through its DevTools
protocol, so that it can log in: a token as a cookie for Airflow, a header for the pages with basic authentication.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from websockets.sync.client import ClientConnection, connect

from infra.chain import Airflow
from infra.embedded.home import random_free
from storage.errors import Problem
from storage.settings import Settings, checkout, for_role

WIDTH, HEIGHT = 1400, 900


class Browser:
    """One tab of a headless Chromium."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._number = socket, 0
        self.asked: set[str] = set()  # hosts that pages wanted something from

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("method") == "Network.requestWillBeSent":
                self.asked.add(urlsplit(answer["params"]["request"]["url"]).hostname or "")
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise Problem(f"Chromium refused {method}: {answer['error']['message']}")
                found: dict[str, Any] = answer["result"]
                return found

    def picture(self, url: str, path: Path, *, whole: bool, seconds: float) -> None:
        """Open a page, let it settle, and keep what it shows (the whole page, or the first screen)."""
        self.call("Page.navigate", url="about:blank")  # an address that differs after its # opens no page anew
        self.call("Page.navigate", url=url)
        time.sleep(seconds)
        # what is shown to newcomers hides the page
        self.call(
            "Runtime.evaluate", expression="document.querySelectorAll('[aria-label=Close]').forEach(e => e.click())"
        )
        time.sleep(0.5)
        shot = self.call("Page.captureScreenshot", format="jpeg", quality=85, captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless Chromium with an empty profile. Raises Problem where there is none."""
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not program:
        raise Problem("there is no Chromium here", "Install it (Debian: apt install chromium), or set CHROMIUM")
    port = random_free(avoid=())
    quiet = ("quic", "background-networking", "component-update", "sync", "gpu", "default-apps", "extensions")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        child = subprocess.Popen(
            [
                *(program, "--headless", "--no-sandbox", "--no-first-run", "--hide-scrollbars"),
                *(f"--disable-{feature}" for feature in quiet),
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # nothing leaves this machine
                *(f"--user-data-dir={profile}", f"--remote-debugging-port={port}", "--remote-allow-origins=*"),
                *(f"--window-size={WIDTH},{HEIGHT}", "about:blank"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            with connect(_tab(port), max_size=None) as socket:
                yield Browser(socket)
        finally:
            child.terminate()
            child.wait(10)


def _tab(port: int, seconds: int = 30) -> str:
    """Address of the browser's only tab, once it is there."""
    end = time.monotonic() + seconds
    while True:
        try:
            tabs = requests.get(f"http://127.0.0.1:{port}/json", timeout=5).json()
            page = next(tab for tab in tabs if tab["type"] == "page")
            return str(page["webSocketDebuggerUrl"])
        except (requests.RequestException, StopIteration):
            if time.monotonic() > end:
                raise
            time.sleep(0.3)


def pages(settings: Settings) -> dict[str, tuple[str, bool, float]]:
    """Name of the picture -> (URL, whole page, seconds to settle)."""
    from storage.objects import Objects

    objects = Objects(settings)
    base = settings.pages_url
    found = {
        "airflow-dags": (f"{settings.airflow_url}/dags", False, 8.0),
        "airflow-grid-birds": (f"{settings.airflow_url}/dags/train_birds", False, 8.0),
        "airflow-grid-text": (f"{settings.airflow_url}/dags/transform_text", False, 8.0),
        "mlflow": (f"{settings.mlflow_url}/#/models", False, 8.0),
        "data-docs": (f"{base}/audits/index.html", False, 4.0),
        "dbt-docs": (f"{base}/dbt/index.html#!/overview", False, 6.0),
        "dbt-graph": (
            f"{base}/dbt/index.html#!/overview?g_v=1&g_i=%2Bmart_translation_training_pairs",
            False,
            8.0,
        ),
    }
    reports = sorted(key for key in objects.list("docs", "reports/") if key.endswith(".html"))
    for family in ("birds", "music", "translation"):
        page = next((key for key in reversed(reports) if key.startswith(f"reports/{family}-")), None)
        if page:
            found[f"report-{family}"] = (f"{base}/{page}", True, 3.0)
    return found


def main(folder: Path) -> None:
    """Take all pictures."""
    settings = for_role("admin")
    airflow = Airflow(settings)
    token = str(airflow.session.headers["Authorization"]).removeprefix("Bearer ")
    login = f"{settings.airflow_user}:{settings.airflow_password.get_secret_value()}".encode()
    basic = {"Authorization": f"Basic {base64.b64encode(login).decode()}"}
    folder.mkdir(parents=True, exist_ok=True)
    with browser() as tab:
        tab.call("Network.enable")
        tab.call("Network.setCookie", name="_token", value=token, url=settings.airflow_url)
        for name, (url, whole, seconds) in pages(settings).items():
            headers = {} if url.startswith(settings.airflow_url) else basic
            tab.call("Network.setExtraHTTPHeaders", headers=headers)
            tab.picture(url, folder / f"{name}.jpg", whole=whole, seconds=seconds)
            print(folder / f"{name}.jpg")
        print("The pages asked these hosts:", ", ".join(sorted(filter(None, tab.asked))))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else checkout() / "docs" / "evidence")
