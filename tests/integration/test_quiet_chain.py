"""Nothing phones home: ingest, audit, dbt build and a call of the MLflow client run with every address they try noted.

A hook in each Python process (through PYTHONPATH, so that dbt and other children have it too) notes connections and
look-ups of names, and refuses what is not loopback before it happens: these tests send nothing anywhere, the planted
calls least of all. Where strace may be used, it notes what libraries written in C connect to as well.
"""

from __future__ import annotations

import ipaddress
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import Stack

from ingestion import catalogue, pipeline
from storage import roles, warehouse
from storage.objects import Objects
from storage.settings import Role

WATCH = r"""
import ipaddress, json, os, sys

log = os.open(os.environ["WATCHED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

def watch(event, args):
    if event in ("socket.connect", "socket.sendto"):
        address = args[1]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        address = args[0]
    else:
        return
    host = address[0] if isinstance(address, tuple) else address
    host = host.decode("utf-8", "replace") if isinstance(host, bytes) else host
    note(event, host)
    if not stays_here(host):
        raise PermissionError("the test lets nothing leave this machine: " + host)

def stays_here(host):
    if not isinstance(host, str) or host in ("", "localhost") or host.startswith(("/", "\x00")):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

def note(event, host):
    os.write(log, (json.dumps([event, host, sys.orig_argv[:4]]) + "\n").encode())

note("start", "")
sys.addaudithook(watch)
"""
STRACE = ("strace", "-f", "-qq", "--seccomp-bpf", "-e", "trace=connect,sendto", "-s", "64")
TRACED = re.compile(r'(?:inet_addr\(|inet_pton\(AF_INET6, )"([^"]+)"')


def stays_here(host: str | None) -> bool:
    """Whether an address or name is this machine's loopback, or a socket in a file."""
    if host is None or host in ("", "localhost") or host.startswith(("/", "\x00")):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass
class Watched:
    """Commands run under watch, and what they tried."""

    folder: Path
    strace: bool

    def run(self, role: Role, *argv: str) -> subprocess.CompletedProcess[str]:
        extra = {"PYTHONPATH": str(self.folder), "WATCHED": str(self.folder / "log")}
        traced = (*STRACE, "-o", str(self.folder / "strace"), "-A") if self.strace else ()
        return subprocess.run(
            [*traced, sys.executable, *argv], env=roles.environment(role, extra), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip

    def tried(self) -> list[tuple[str, str | None, str]]:
        """How, where to, and by which program."""
        log = self.folder / "log"
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        found = [(event, host, " ".join(argv)) for event, host, argv in lines]
        if self.strace:
            text = (self.folder / "strace").read_text(errors="replace")
            found += [("strace", host, line) for line in text.splitlines() for host in TRACED.findall(line)]
        return found

    def abroad(self) -> list[tuple[str, str | None, str]]:
        return [one for one in self.tried() if not stays_here(one[1])]


def may_trace(folder: Path) -> bool:
    if shutil.which("strace") is None:
        return False
    argv = [*STRACE, "-o", str(folder / "trial"), "true"]
    return subprocess.run(argv, check=False, capture_output=True, timeout=30).returncode == 0


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    return Watched(tmp_path, may_trace(tmp_path))


@pytest.fixture
def sources(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A little parallel text to load; the stores are afterwards as they were."""
    folder = tmp_path / "data" / "multi30k"
    folder.mkdir(parents=True)
    for language, words in (("en", "A dog runs over field number"), ("de", "Ein Hund läuft über Feld Nummer")):
        for part in ("train", "val"):
            (folder / f"{part}.{language}").write_text("".join(f"{words} {part} {n}.\n" for n in range(40)), "utf-8")
    options = tmp_path / "lyrebird.toml"
    options.write_text(f"[sources.parallel_files]\nlocation = {json.dumps(str(tmp_path / 'data'))}\n")
    monkeypatch.setenv("LYREBIRD_OPTIONS", str(options))
    settings = stack.settings("loader")
    tidy(stack)
    pipeline.make_tables(catalogue.sources(), settings)
    yield
    tidy(stack)


def tidy(stack: Stack) -> None:
    """Take away what dbt has built here and what was loaded."""
    with closing(warehouse.connect(stack.settings("transformer"))) as db, db, db.cursor() as sql:
        sql.execute(
            "select format('drop %s if exists %I.%I cascade', case c.relkind when 'v' then 'view' else 'table' end, "
            "n.nspname, c.relname) from pg_class as c join pg_namespace as n on n.oid = c.relnamespace "
            "where n.nspname in ('staging', 'core') and c.relkind in ('v', 'r')"
        )
        for (statement,) in sql.fetchall():
            sql.execute(statement)
    with closing(warehouse.connect(stack.settings("admin"))) as db, db, db.cursor() as sql:
        sql.execute("drop table if exists raw.parallel_files_lines")
        for table in ("load", "cursor", "landing", "quarantine", "ledger"):
            sql.execute(f"delete from ops.{table} where source = 'parallel_files'")
        sql.execute("delete from ops.audit where subject = 'load.parallel_files_lines'")
    objects = Objects(stack.settings("loader"))
    for key in list(objects.list("landing", "parallel_files/")):
        objects.delete("landing", key)


def test_a_chain_tries_no_address_but_loopback(stack: Stack, sources: None, watched: Watched) -> None:
    steps: list[tuple[Role, list[str]]] = [
        ("loader", ["ingest", "parallel_files", "--json"]),
        ("loader", ["audit", "parallel_files", "--json"]),
        ("transformer", ["transform", "text", "--step", "core", "--json"]),
    ]
    for role, words in steps:
        done = watched.run(role, "-m", "infra.cli", *words)
        assert done.returncode == 0, done.stderr[-2000:]
        assert watched.abroad() == []
    # the registry's client: it has no such model, or, where no test has started MLflow yet, no registry
    done = watched.run("trainer", "-m", "infra.cli", "translate", "hello", "--model", "translation-xx-yy@champion")
    assert done.returncode == 1, done.stderr
    assert "MLflow at http://127.0.0.1:" in done.stderr or "there is no model" in done.stderr
    assert watched.abroad() == []
    tried = watched.tried()
    assert any(how == "start" and "/dbt " in words for how, _, words in tried)  # the watch reached the grandchild
    assert {host for how, host, _ in tried if how != "start"} >= {"127.0.0.1"}


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import socket; s = socket.socket(); s.settimeout(0.2); s.connect(('192.0.2.1', 9))", "192.0.2.1"),
        ("import socket; socket.getaddrinfo('telemetry.example.invalid', 443)", "telemetry.example.invalid"),
        ("import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.2', 9))", "192.0.2.2"),
        (
            "import subprocess, sys; "
            "subprocess.run([sys.executable, '-c', 'import socket; socket.gethostbyname(\"grandchild.invalid\")'])",
            "grandchild.invalid",
        ),
    ],
    ids=["connection", "name", "datagram", "grandchild"],
)
def test_the_watch_sees_one_call_home(stack: Stack, watched: Watched, code: str, said: str) -> None:
    """The test of the test above."""
    done = watched.run("loader", "-c", code)
    assert said in {host for _, host, _ in watched.abroad()}
    assert f"PermissionError: the test lets nothing leave this machine: {said}" in done.stderr
    assert {how for how, _, _ in watched.abroad()}.isdisjoint({"strace"})  # it was refused before it happened


def test_the_watch_reads_what_strace_writes() -> None:
    """A line as strace writes it for a library in C; no such call is made here, for nothing could refuse it."""
    line = '17 connect(3, {sa_family=AF_INET, sin_port=htons(443), sin_addr=inet_addr("192.0.2.3")}, 16) = -1'
    assert TRACED.findall(line) == ["192.0.2.3"]
    assert not stays_here("192.0.2.3")
    assert stays_here("127.0.0.1")
