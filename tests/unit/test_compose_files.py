"""docker-compose.yml, the Dockerfile and what they name: read as compose would read them, for no engine is at hand."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.compose import secrets
from infra.docker.requirements import requirements
from storage.roles import QUIET

ROOT = Path(__file__).resolve().parent.parent.parent
SECRETS = "infra/compose/secrets/"
ONCE = {"minio-init", "airflow-init"}  # they end by themselves; others wait for that


def read(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


COMPOSE: dict[str, Any] = read("docker-compose.yml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
GPU: dict[str, Any] = read("infra/compose/gpu.yml")["services"]
OURS = {name for name, service in SERVICES.items() if "build" in service}
MADE = secrets.files({name: secrets.new_password(name) for name in secrets.PASSWORDS}, secrets.endpoints({}))


def parts(service: dict[str, Any]) -> list[str]:
    """The words of a service's command, a shell's script taken apart."""
    words = [*service.get("entrypoint", []), *service.get("command", [])]
    return [part for word in words for part in (shlex.split(word) if " " in word else [word])]


def given(service: dict[str, Any]) -> dict[str, str]:
    """The secrets of a service: name -> the path in the container."""
    found = {}
    for secret in service.get("secrets", []):
        source = secret if isinstance(secret, str) else secret["source"]
        target = source if isinstance(secret, str) else secret.get("target", source)
        found[source] = target if target.startswith("/") else f"/run/secrets/{target}"
    return found


def binds(service: dict[str, Any]) -> list[tuple[str, str]]:
    """Folders and files of this machine that a service sees: source, target."""
    found = []
    for volume in service.get("volumes", []):
        source, target = (
            (volume["source"], volume["target"]) if isinstance(volume, dict) else tuple(volume.split(":")[:2])
        )
        if source.startswith("."):
            found.append((source.removeprefix("./"), target))
    return found


def roles(service: dict[str, Any]) -> set[str]:
    return {name.removeprefix("role_") for name in given(service) if name.startswith("role_")}


def stages() -> dict[str, str]:
    """Stages of the Dockerfile and what each builds on."""
    text = (ROOT / "infra/docker/Dockerfile").read_text()
    return {name: base for base, name in re.findall(r"^FROM (\S+) AS (\S+)$", text, re.MULTILINE)}


def stage(name: str) -> str:
    """The lines of one stage."""
    text = (ROOT / "infra/docker/Dockerfile").read_text().replace("\\\n", " ")
    return next(part for part in re.split(r"^(?=FROM )", text, flags=re.MULTILINE) if f" AS {name}\n" in part)


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_an_image_that_exists_or_is_built_and_a_pinned_version(name: str) -> None:
    service = SERVICES[name]
    image, _, tag = service["image"].rpartition(":")
    assert image and re.search(r"\d+\.\d+\.\d+|^\d+\.\d+-|RELEASE\.\d{4}", tag), service["image"]
    if "build" in service:
        assert (ROOT / service["build"]["dockerfile"]).is_file()
        assert service["build"]["target"] in stages()
    if name in OURS:
        assert service["command"], "an image of ours does nothing by itself"


def test_the_gpu_file_changes_a_service_that_exists_and_builds_a_stage_that_exists() -> None:
    assert set(GPU) == {"worker-gpu"}
    assert GPU["worker-gpu"]["build"]["target"] in stages()
    assert GPU["worker-gpu"]["image"] != SERVICES["worker-gpu"]["image"]
    (device,) = GPU["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_that_stays_has_a_health_check_and_comes_back(name: str) -> None:
    service = SERVICES[name]
    if name in ONCE:
        assert service["restart"] == "no"
        assert "healthcheck" not in service
    else:
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
        assert service["healthcheck"]["retries"] > 0
        assert service["stop_grace_period"]
    assert service["logging"]["options"]["max-size"]


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_waits_for_exists_and_can_become_true(name: str) -> None:
    for other, wait in SERVICES[name].get("depends_on", {}).items():
        assert other in SERVICES
        assert wait["condition"] == ("service_completed_successfully" if other in ONCE else "service_healthy")
    seen: set[str] = set()
    todo = list(SERVICES[name].get("depends_on", {}))
    while todo:
        other = todo.pop()
        assert other != name, "it waits for itself"
        if other not in seen:
            seen.add(other)
            todo += SERVICES[other].get("depends_on", {})


@pytest.mark.parametrize("name", SERVICES)
def test_files_that_a_service_reads_exist_or_are_made(name: str) -> None:
    service = SERVICES[name]
    for file in service.get("env_file", []):
        assert MADE[file.removeprefix(SECRETS)][1] == 0o600
    for source in given(service):
        _, mode = MADE[COMPOSE["secrets"][source]["file"].removeprefix(SECRETS)]
        assert mode == 0o644, f"{source}: the container's user could not read it"
    for source, _ in binds(service):
        if source.startswith(SECRETS):
            assert any(made.startswith(source.removeprefix(SECRETS)) for made in MADE)
        else:
            assert (ROOT / source).exists(), source
    for config in service.get("configs", []):
        file = re.sub(r"\$\{\w+:-(.*)\}", r"\1", COMPOSE["configs"][config["source"]]["file"])
        assert (ROOT / file).is_file()
    named = [volume.split(":")[0] for volume in service.get("volumes", []) if isinstance(volume, str)]
    assert {volume for volume in named if not volume.startswith(".")} <= set(COMPOSE["volumes"])


def test_every_volume_and_secret_that_is_declared_is_used() -> None:
    text = [str(volume) for service in SERVICES.values() for volume in service.get("volumes", [])]
    assert {volume.split(":")[0] for volume in text if not volume.startswith((".", "{"))} == set(COMPOSE["volumes"])
    assert {source for service in SERVICES.values() for source in given(service)} == set(COMPOSE["secrets"])


@pytest.mark.parametrize("name", SERVICES)
def test_scripts_and_files_in_commands_are_where_the_container_has_them(name: str) -> None:
    service = SERVICES[name]
    targets = [*given(service).values(), *(config["target"] for config in service.get("configs", []))]
    for word in [*parts(service), *service.get("healthcheck", {}).get("test", []), *environment(service).values()]:
        if word.startswith("infra/"):
            assert (ROOT / word).is_file(), word
        if word.startswith(("/run/secrets/", "/etc/lyrebird/")):
            inside = [
                (ROOT / source / word.removeprefix(f"{target}/")) for source, target in binds(service) if target in word
            ]
            exact = [ROOT / source for source, target in binds(service) if target == word]
            assert word in targets or any(path.is_file() for path in inside + exact), word


def environment(service: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in service.get("environment", {}).items()}


@pytest.mark.parametrize("name", sorted(OURS))
def test_nothing_of_ours_phones_home(name: str) -> None:
    assert environment(SERVICES[name]).items() >= QUIET.items()
    image = dict(re.findall(r"([A-Z_0-9]+)=(\S+)", stage("base")))
    assert image.items() >= QUIET.items()


def test_the_other_servers_do_not_either() -> None:
    assert environment(SERVICES["minio"])["MINIO_UPDATE"] == "off"
    assert environment(SERVICES["minio"])["MINIO_CALLHOME_ENABLE"] == "off"
    assert {config["target"] for config in SERVICES["mongodb"]["configs"]} == {"/etc/mongosh.conf"}
    assert read("infra/compose/mongosh.conf")["mongosh"]["enableTelemetry"] is False


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_loopback_only(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\$\{LYREBIRD_PORT_[A-Z_]+:-\d+\}:\d+", port), port
    assert "network_mode" not in SERVICES[name]
    assert not SERVICES[name].get("privileged")


def test_published_ports_differ() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len({re.findall(r":-(\d+)\}", port)[0] for port in ports}) == len(ports)


SECRET_NAME = re.compile(r"password|secret|token|fernet|access_key|(?<!_options)_key$|connection|conn$", re.IGNORECASE)


@pytest.mark.parametrize("name", SERVICES)
def test_no_secret_stands_in_the_file(name: str) -> None:
    for variable, value in environment(SERVICES[name]).items():
        if SECRET_NAME.search(variable):
            assert value.startswith(("/run/", "/state/")), variable  # the path of a file that holds it
    for word in parts(SERVICES[name]):
        assert not re.search(r"--?(pass|password|secret|token)\b|requirepass", word), word


def test_no_generated_secret_stands_in_a_tracked_file_and_git_and_images_leave_them_out() -> None:
    for path in [ROOT / "docker-compose.yml", *(ROOT / "infra").rglob("*")]:
        if path.is_file() and SECRETS not in path.as_posix() and path.suffix != ".pyc":
            assert not re.search(r"://[\w-]+:[\w-]{16,}@", path.read_text(encoding="utf-8")), path
    assert SECRETS in (ROOT / ".gitignore").read_text().split()
    assert SECRETS.rstrip("/") in (ROOT / ".dockerignore").read_text().split()


def test_each_worker_holds_its_roles_and_nobody_else_the_administrators() -> None:
    held = {name: roles(service) for name, service in SERVICES.items() if roles(service)}
    assert held == {
        "airflow-init": {"admin", "loader", "trainer"},
        "worker": {"loader", "transformer", "trainer"},
        "worker-gpu": {"trainer"},
    }
    for service in (SERVICES[name] for name in held):
        for source, target in given(service).items():
            if source.startswith("role_"):
                assert target == f"/run/lyrebird/secrets/{source.removeprefix('role_')}.env"
    assert "LYREBIRD_SECRETS=/run/lyrebird/secrets" in stage("platform")


def test_workers_do_not_know_airflows_database_and_its_services_do() -> None:
    for name in ("worker", "worker-gpu"):
        assert SERVICES[name]["env_file"] == [f"{SECRETS}worker.env"]
    assert "SQL_ALCHEMY" not in MADE["worker.env"][0]
    assert "JWT" not in MADE["worker.env"][0]
    for name in SERVICES:
        if name.startswith("airflow-"):
            assert SERVICES[name]["env_file"] == [f"{SECRETS}airflow.env"]
    names = [line.partition("=")[0] for line in MADE["airflow.env"][0].splitlines()]
    assert not set(names) & set(environment(SERVICES["airflow-scheduler"])), "compose's environment would win"


def test_every_task_reaches_a_worker_and_its_log_the_ui() -> None:
    asked = {"default"}
    for file in (ROOT / "dags").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "queue" and isinstance(node.value, ast.Constant):
                asked.add(node.value.value)
    workers = {
        name: service for name, service in SERVICES.items() if parts(service)[:3] == ["airflow", "celery", "worker"]
    }
    served = {name: parts(service)[parts(service).index("--queues") + 1] for name, service in workers.items()}
    assert asked == {queue for queues in served.values() for queue in queues.split(",")}
    assert served["worker-gpu"] == "gpu"
    logging = [name for name in SERVICES if name in workers or name.startswith("airflow-")]
    for name in logging:
        assert "logs:/logs" in SERVICES[name]["volumes"], name
        assert environment(SERVICES[name])["AIRFLOW__LOGGING__BASE_LOG_FOLDER"] == "/logs"
        assert environment(SERVICES[name])["AIRFLOW__CORE__EXECUTOR"] == "CeleryExecutor"
    assert "/logs" in stage("base")


def test_pools_that_tasks_ask_for_are_made() -> None:
    script = (ROOT / "infra/compose/init.sh").read_text()
    for file in (ROOT / "dags").glob("*.py"):
        for pool in re.findall(r'pool="(\w+)"', file.read_text()):
            assert f"airflow pools set {pool} " in script


@pytest.mark.parametrize("script", ["init.sh", "minio-init.sh"])
def test_shell_scripts_parse_and_stop_at_the_first_error(script: str) -> None:
    path = ROOT / "infra/compose" / script
    subprocess.run(["sh", "-n", str(path)], check=True)
    assert "set -eu" in path.read_text()


def test_images_run_as_an_ordinary_user_and_build_on_each_other_in_order() -> None:
    order = list(stages())
    assert set(order) == {"base", "train", "platform", "gpu"}
    for name, base in stages().items():
        if base in stages():
            assert order.index(base) < order.index(name)
        else:
            assert re.fullmatch(r"python:3\.1[123]\.\d+-\S+", base)
    for name in ("train", "platform"):
        assert re.findall(r"^USER (\S+)", stage(name), re.MULTILINE) == ["50000"]
    assert "USER" not in stage("gpu")  # platform's
    assert not re.search(r"https?://|index-url\s+[^\"$]", (ROOT / "infra/docker/Dockerfile").read_text())
    for name in ("train", "platform"):  # a change of code installs nothing anew
        assert stage(name).index("pip install ${TORCH_INDEX") < stage(name).index("COPY")


def test_everything_that_the_images_copy_is_there_and_not_left_out() -> None:
    ignored = {line for line in (ROOT / ".dockerignore").read_text().split() if not line.startswith(("*", "."))}
    for name in stages():
        for line in re.findall(r"^COPY (.+)$", stage(name), re.MULTILINE):
            for source in line.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert source not in ignored
    mounted = [source for service in SERVICES.values() for source, _ in binds(service)]
    assert mounted, "otherwise this test looks at nothing"


def test_requirements_of_the_images_are_pinned_and_the_two_lists_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins: dict[str, str] = {}
    for file in ("constraints.txt", "infra/docker/constraints.txt"):
        for line in (ROOT / file).read_text().splitlines():
            if line and not line.startswith("#"):
                name, _, version = line.partition("==")
                name = re.sub(r"[-_.]+", "-", name).lower()
                assert pins.setdefault(name, version) == version, f"{name} is pinned twice"
    for name in ("train", "platform"):
        (groups,) = re.findall(r"requirements\.py ([\w ]+) >", stage(name))
        for requirement in requirements(project, groups.split()):
            bare = re.sub(r"[-_.]+", "-", re.split(r"[<>=\[]", requirement)[0]).lower()
            assert bare in pins, f"{requirement} is not pinned"
    assert pins["celery"].startswith("5.6."), "the provider 3.26 cannot be imported with Celery 5.7"


def test_the_extra_train_brings_nothing_of_the_platform() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    train = set(requirements(project, ["train"]))
    assert train == set(project["optional-dependencies"]["train"])
    assert train < set(requirements(project, ["predict"]))
    assert not any(line.startswith("lyrebird") for line in requirements(project, ["platform", "predict", "demo"]))


# In the image there is only the extra `train`; here everything is installed, so the rest is hidden.
ALONE = """
import sys
class Hide:
    names = {names!r}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hide())
sys.path[:] = [path for path in sys.path if path not in {checkout!r}]
sys.path.insert(0, {folder!r})
import ml.birds.train, ml.music.train, ml.translation.train
assert ml.__file__.startswith({folder!r}), ml.__file__
"""


def test_the_stage_train_holds_every_file_that_training_imports(tmp_path: Path) -> None:
    for line in re.findall(r"^COPY (.+)$", stage("train"), re.MULTILINE):
        *sources, target = line.split()
        for source in sources:
            found = ROOT / source
            files = list(found.rglob("*.py")) if found.is_dir() else [found]
            for path in files:
                inside = path.relative_to(found) if found.is_dir() else Path(path.name)
                place = tmp_path / target / inside
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(path.read_bytes())
    hidden = {"airflow", "sqlalchemy", "psycopg2", "pymongo", "redis", "boto3", "botocore", "mlflow", "pydantic"}
    hidden |= {"pydantic_settings", "dbt", "great_expectations", "alembic", "typer", "rich", "scrapy", "dotenv"}
    code = ALONE.format(names=hidden, folder=str(tmp_path), checkout=["", str(ROOT)])
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
