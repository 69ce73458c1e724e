"""A proxy in a person's shell is for the world outside: servers on this machine are asked without it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from infra.chain import Airflow
from ml import registry
from storage import roles
from storage.errors import Problem
from storage.objects import Objects
from storage.settings import Settings, from_variables, on_this_machine

CLOSED = "http://127.0.0.1:9"


class Answer(BaseHTTPRequestHandler):
    """Says yes to whatever is asked, with a token in it; to a wrong password no."""

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(403 if b"wrong" in body else 200)
        self.send_header("Content-Type", "application/json")
        said = json.dumps({"access_token": "token", "dags": [{"dag_id": "there"}]}).encode()
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(said)

    do_POST = do_HEAD = do_GET  # noqa: N815 - the names that the server looks for

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(autouse=True)
def proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell in which everything goes through a proxy that does not answer."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, CLOSED)
        monkeypatch.setenv(name.upper(), CLOSED)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def settings(server: str, password: str = "right") -> Settings:  # noqa: S107 - of no server
    values = {
        "AIRFLOW_URL": server, "AIRFLOW_USER": "lyrebird", "AIRFLOW_PASSWORD": password,
        "MLFLOW_URL": server, "MLFLOW_USER": "lyrebird", "MLFLOW_PASSWORD": password,
        "S3_ENDPOINT": server, "S3_ACCESS_KEY": "key", "S3_SECRET_KEY": password,
    }  # fmt: skip
    return from_variables({f"LYREBIRD_{name}": value for name, value in values.items()})


def test_airflow_is_asked_without_it(server: str) -> None:
    assert Airflow(settings(server)).call("GET", "dags")["dags"] == [{"dag_id": "there"}]


def test_the_object_store_is_asked_without_it(server: str) -> None:
    assert Objects(settings(server)).exists("landing", "there")


def test_mlflow_is_asked_without_it_and_the_environment_is_as_before(server: str) -> None:
    before = dict(os.environ)
    assert registry.champion("birds-aviary", settings(server)) is None
    assert dict(os.environ) == before


def test_a_server_elsewhere_is_asked_as_the_environment_says() -> None:
    assert not on_this_machine("https://objects.example.org:9000")
    assert Objects(settings("https://objects.example.org")).client.meta.config.proxies is None
    with pytest.raises(Problem, match=r"Airflow does not let us in: .*[Pp]roxy"):
        Airflow(settings("http://airflow.example.org"))


@pytest.mark.parametrize(
    ("named", "hosts"),
    [("", "127.0.0.1,localhost"), (".corp", "127.0.0.1,localhost,.corp"), ("*", "*")],
)
def test_where_no_proxy_leads_already_stays(monkeypatch: pytest.MonkeyPatch, named: str, hosts: str) -> None:
    monkeypatch.setenv("NO_PROXY", named)
    assert roles.past_proxies() == {"no_proxy": hosts, "NO_PROXY": hosts}


@pytest.mark.parametrize("url", ["", CLOSED])
def test_an_airflow_that_gives_no_token_is_one_sentence(server: str, url: str) -> None:
    with pytest.raises(Problem, match=r"Airflow does not let us in: .*`lyrebird status` shows how it is") as raised:
        Airflow(settings(url or server, "wrong"))
    assert "wrong" not in str(raised.value)
