"""What infra/compose/secrets.py makes: complete, private, the same again, and each role no more than its own."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from infra.access import BUCKET_RIGHTS, BUCKETS
from infra.compose import secrets
from infra.compose.health import status
from infra.embedded.home import Home
from infra.embedded.programs import role_variables
from storage.settings import ROLES, Settings, from_variables

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compose") / "secrets"
    before = os.umask(0o077)  # the mode must not depend on whoever runs it
    try:
        secrets.generate(path, {})
    finally:
        os.umask(before)
    return path


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def variables(folder: Path, name: str) -> dict[str, str]:
    lines = (folder / name).read_text().splitlines()
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


def test_it_is_the_same_again_and_another_installation_differs(folder: Path, tmp_path: Path) -> None:
    before = contents(folder)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    secrets.generate(folder, {})
    assert contents(folder) == before
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times
    secrets.generate(tmp_path / "other", {})
    other = json.loads((tmp_path / "other/passwords.json").read_text())
    ours = json.loads(before["passwords.json"])
    assert not set(ours.values()) & set(other.values())
    assert len(set(ours.values())) == len(ours)


def test_a_file_that_is_lost_comes_back_and_a_new_password_leaves_the_others(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    secrets.generate(copy, {})
    before = contents(copy)
    (copy / "roles/loader.env").unlink()
    secrets.generate(copy, {})
    assert contents(copy) == before
    known = json.loads(before["passwords.json"])
    (copy / "passwords.json").write_text(json.dumps({name: known[name] for name in known if name != "ui"}))
    secrets.generate(copy, {})
    after = json.loads((copy / "passwords.json").read_text())
    assert after["ui"] != known["ui"]
    assert {name: after[name] for name in known if name != "ui"} == {n: v for n, v in known.items() if n != "ui"}


def test_the_folder_is_the_lock_and_what_containers_read_is_readable_inside(folder: Path) -> None:
    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    assert mode(folder) == 0o700
    for path in folder.rglob("*"):
        if path.is_dir():
            assert mode(path) == 0o755
        elif (path.suffix == ".env" and path.parent == folder) or path.name == "passwords.json":
            assert mode(path) == 0o600, path
        else:
            assert mode(path) == 0o644, path


@pytest.mark.parametrize("role", ROLES)
def test_a_roles_file_holds_settings_and_the_same_stores_as_the_embedded_stack(
    role: str, folder: Path, tmp_path: Path
) -> None:
    found = variables(folder, f"roles/{role}.env")
    fields = {f"LYREBIRD_{name.upper()}" for name in Settings.model_fields}
    assert set(found) <= fields
    home = Home.at(tmp_path / "state")
    home.make()
    ports = dict.fromkeys(("postgres", "documents", "cache", "stream", "objects", "mlflow", "airflow", "pages"), 1)
    embedded = role_variables(ports, home.passwords())[role]
    assert set(found) == set(embedded)
    assert from_variables(found).role == role
    assert "127.0.0.1" not in " ".join(value for name, value in found.items() if name != "LYREBIRD_PAGES_URL")


def test_addresses_are_services_of_the_compose_file(folder: Path) -> None:
    import yaml

    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    texts = [text for name, text in contents(folder).items() if name.endswith((".env", ".ini"))]
    hosts = {host for text in texts for host in re.findall(r"(?:@|http://)([a-z][\w-]*):\d+", text)}
    assert hosts <= set(services)
    assert {"postgres", "mongodb", "cache", "stream", "minio", "mlflow", "broker"} <= hosts


def test_the_port_of_the_pages_is_the_one_that_compose_publishes(tmp_path: Path) -> None:
    secrets.generate(tmp_path / "s", {"LYREBIRD_PORT_PAGES": "9999"})
    assert variables(tmp_path / "s", "roles/loader.env")["LYREBIRD_PAGES_URL"] == "http://127.0.0.1:9999"


def test_servers_that_can_do_with_digests_get_no_password(folder: Path) -> None:
    known = json.loads((folder / "passwords.json").read_text())
    told = [folder / "postgres_init.sql", *(folder / "redis").iterdir()]
    for path in told:
        assert not [name for name, value in known.items() if value in path.read_text()], path


def test_a_digest_proves_its_password_and_no_other() -> None:
    digest = secrets.scram("pencil")
    kind, rounds_salt, keys = digest.split("$")
    rounds, salt = rounds_salt.split(":")
    stored, server = (base64.b64decode(key) for key in keys.split(":"))

    def proves(password: str) -> bool:
        salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(salt), int(rounds))
        client = hmac.digest(salted, b"Client Key", "sha256")
        return (hashlib.sha256(client).digest(), hmac.digest(salted, b"Server Key", "sha256")) == (stored, server)

    assert kind == "SCRAM-SHA-256"
    assert proves("pencil")
    assert not proves("pencils")


@pytest.mark.parametrize("user", BUCKET_RIGHTS)
def test_a_policy_allows_what_the_rights_say_and_no_more(user: str, folder: Path) -> None:
    def allowed(action: str, resource: str) -> bool:
        for statement in policy["Statement"]:
            patterns = [re.escape(one).replace(r"\*", ".*") for one in statement["Resource"]]
            if action in statement["Action"] and any(re.fullmatch(one, resource) for one in patterns):
                return True
        return False

    policy = json.loads((folder / f"minio/{user}.json").read_text())
    assert (folder / f"minio/{user}.password").read_text().strip()
    for bucket in BUCKETS:
        has = bucket in BUCKET_RIGHTS[user]
        assert allowed("s3:ListBucket", f"arn:aws:s3:::{bucket}") == has
        assert allowed("s3:GetObject", f"arn:aws:s3:::{bucket}/a/b") == has
        assert allowed("s3:PutObject", f"arn:aws:s3:::{bucket}/a/b") == BUCKET_RIGHTS[user].get(bucket, False)
        assert allowed("s3:DeleteObject", f"arn:aws:s3:::{bucket}/a/b") == BUCKET_RIGHTS[user].get(bucket, False)


def test_airflows_keys_are_what_airflow_takes(folder: Path) -> None:
    found = variables(folder, "airflow.env")
    assert len(base64.urlsafe_b64decode(found["AIRFLOW__CORE__FERNET_KEY"])) == 32
    assert found["AIRFLOW__API__SECRET_KEY"] != found["AIRFLOW__API_AUTH__JWT_SECRET"]
    assert found["AIRFLOW__CELERY__BROKER_URL"].startswith("redis://airflow:")
    # workers hold this one: it is not Airflow's own
    assert found["AIRFLOW__CELERY__RESULT_BACKEND"].endswith("@postgres:5432/celery")
    assert found["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].endswith("@postgres:5432/airflow")
    users = json.loads((folder / "airflow_users.json").read_text())
    assert users == {"lyrebird": variables(folder, "ui.env")["LYREBIRD_UI_PASSWORD"]}


def test_it_runs_as_a_script_with_the_standard_library_alone(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for name in ("infra/__init__.py", "infra/access.py", "infra/compose/__init__.py", "infra/compose/secrets.py"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_bytes((ROOT / name).read_bytes())
    # -S: no installed packages; it is called from another folder, as people do
    argv = [sys.executable, "-S", str(checkout / "infra/compose/secrets.py")]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = contents(checkout / "infra/compose/secrets")
    assert "ui.env" in done.stdout
    assert not [value for value in json.loads(made["passwords.json"]).values() if value in done.stdout]


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for name in ("infra/__init__.py", "infra/access.py", "infra/compose/__init__.py", "infra/compose/secrets.py"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_bytes((ROOT / name).read_bytes())
    (checkout / "infra/compose/secrets").write_text("a file where the folder should be")
    argv = [sys.executable, str(checkout / "infra/compose/secrets.py")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("lyrebird: cannot write")
    assert "Traceback" not in done.stderr


def test_a_health_check_tells_an_answer_from_silence() -> None:
    assert status("http://127.0.0.1:1/") == 0
