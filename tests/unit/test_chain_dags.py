"""`lyrebird run` and its Airflow: the DAGs it takes for its own, and the options file it writes."""

from __future__ import annotations

import json
import stat
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest

from infra import chain
from storage.errors import Problem
from storage.settings import from_variables

BROKEN = {"stack_trace": "Traceback:\n  line 1\nImportError: no such thing"}


class Api(BaseHTTPRequestHandler):
    """An Airflow with the DAGs and import errors that a test gives it; remembers what it was asked."""

    dags: ClassVar[list[str]] = []
    errors: ClassVar[list[dict[str, str]]] = []
    asked: ClassVar[list[tuple[str, str, Any]]] = []

    def do_GET(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "null")
        self.asked.append((self.command, self.path.partition("?")[0].removeprefix("/api/v2/"), body))
        said = {
            "access_token": "token", "dag_runs": [], "import_errors": self.errors,
            "dags": [{"dag_id": name} for name in self.dags],
        }  # fmt: skip
        answer = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_PATCH = do_GET  # noqa: N815 - the names that the server looks for

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[chain.Airflow]:
    monkeypatch.setattr(Api, "dags", [*chain.OURS, "mine", "ingest_mine", "nightly_report"])
    monkeypatch.setattr(Api, "errors", [])
    monkeypatch.setattr(Api, "asked", [])
    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        login = {"LYREBIRD_AIRFLOW_USER": "lyrebird", "LYREBIRD_AIRFLOW_PASSWORD": "right"}
        yield chain.Airflow(from_variables({"LYREBIRD_AIRFLOW_URL": url} | login))
        server.shutdown()


def test_a_dag_of_somebody_else_is_let_be(airflow: chain.Airflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Api, "errors", [BROKEN | {"filename": "mine.py"}])
    monkeypatch.setattr(chain, "for_role", lambda role: None)
    monkeypatch.setattr(chain, "Airflow", lambda settings: airflow)
    monkeypatch.setattr(chain, "_trigger", lambda airflow, roots: None)
    monkeypatch.setattr(chain.Watch, "to_the_end", lambda watch: watch._runs())
    monkeypatch.setattr("infra.summary.tell", lambda say, seconds: None)
    chain.run(print)
    named = {path.split("/")[1] for _, path, _ in Api.asked if path.startswith("dags/")}
    assert named == {*chain.OURS, "~"}
    assert [path for method, path, _ in Api.asked if method == "PATCH"] == [f"dags/{name}" for name in chain.OURS]


def test_only_runs_of_ours_are_asked_for(airflow: chain.Airflow) -> None:
    airflow.runs(datetime(2026, 1, 1, tzinfo=UTC))
    airflow.active()
    wanted = [body["dag_ids"] for _, path, body in Api.asked if path == "dags/~/dagRuns/list"]
    assert wanted == [chain.OURS, chain.OURS]


def test_a_file_of_ours_that_does_not_import_is_named(airflow: chain.Airflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Api, "errors", [BROKEN | {"filename": "train.py"}])
    with pytest.raises(Problem, match=r"train\.py does not import: ImportError: no such thing"):
        chain._wait_for_dags(airflow, seconds=5)


def test_options_are_written_for_their_owner_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data" / "birds").mkdir(parents=True)
    kept, link = tmp_path / "elsewhere.toml", tmp_path / "state" / "lyrebird.toml"
    kept.write_text('[sources.parallel_files]\nlocation = "https://me:secret@example.org/text"\n')
    kept.chmod(0o644)
    link.parent.mkdir()
    link.symlink_to(kept)
    monkeypatch.setenv("LYREBIRD_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("LYREBIRD_OPTIONS", raising=False)
    chain.configure(tmp_path / "data", print)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert link.is_symlink()
    assert tomllib.loads(link.read_text())["sources"] == {
        "parallel_files": {"location": "https://me:secret@example.org/text"},
        "audio_folder": {"location": str(tmp_path / "data" / "birds")},
    }
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
