"""infra/install.sh in trouble: one clear sentence, a non-zero exit, and a second try that goes on.

The script runs in a copy of the project's frame. A stand-in for Python, where there is one, plays `venv` and `pip`; the
test without a network uses the real ones.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Behaves like a Python of the version $FAKE_VERSION; what is odd about it is told by files in the project's folder.
STAND_IN = """#!/bin/sh
case "$*" in
    "-c import sys"*) case "$FAKE_VERSION" in 3.11|3.12|3.13) exit 0 ;; *) exit 1 ;; esac ;;
    "-c import venv"*) [ ! -e no-venv ] ;;
    --version) echo "Python $FAKE_VERSION.1" ;;
    "-m venv .venv")
        [ ! -e venv-fails ] || { echo "Error: [Errno 28] No space left on device" >&2; exit 1; }
        mkdir -p .venv/bin && cp "$0" .venv/bin/python
        [ ! -e die-in-venv ] || { rm die-in-venv; kill -9 $PPID; exit 1; }
        touch .venv/has-pip ;;
    "-m pip --version") [ -e .venv/has-pip ] ;;
    "-m pip install --dry-run"*) cat torch-of-the-index 2>/dev/null ;;
    "-m pip install"*)
        echo "$*" >> pip-calls
        [ ! -e slow-pip ] || { rm slow-pip; touch pip-began; exec sleep 30; }
        [ ! -e pip-fails ] || { echo "ERROR: No matching distribution found for supervisor==4.3.0" >&2; exit 1; } ;;
    *) echo "unexpected: $*" >&2; exit 9 ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The frame of a checkout, in a folder whose name has a space in it."""
    place = tmp_path / "a clone"
    (place / "infra").mkdir(parents=True)
    shutil.copy(ROOT / "infra" / "install.sh", place / "infra")
    shutil.copy(ROOT / "constraints.txt", place)
    (place / "pyproject.toml").write_text('[project]\nname = "tiny"\nversion = "1"\n')
    (tmp_path / "python").write_text(STAND_IN)
    (tmp_path / "python").chmod(0o755)
    return place


def environment(project: Path, version: str = "3.12", **more: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHON": str(project.parent / "python"), "FAKE_VERSION": version} | more


def install(project: Path, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code and what was said."""
    script = project / "infra" / "install.sh"
    done = subprocess.run(
        [str(script)],
        env=env or environment(project),
        cwd="/",
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stderr + done.stdout


def last_sentence(said: str) -> str:
    line = said.strip().splitlines()[-1]
    assert line.startswith("lyrebird: "), said
    return line


@pytest.mark.parametrize("version", ["2.7", "3.9", "3.10", "3.14"])
def test_a_wrong_python_is_named_with_what_to_do(project: Path, version: str) -> None:
    code, said = install(project, environment(project, version))
    assert code == 1
    assert f"is Python {version}.1. Python 3.11, 3.12 or 3.13 is needed: make install PYTHON=" in last_sentence(said)
    assert not (project / ".venv").exists()


def test_a_python_that_is_not_there(project: Path) -> None:
    code, said = install(project, environment(project) | {"PYTHON": "/no/such/python"})
    assert code == 1
    assert "there is no program /no/such/python" in last_sentence(said)


def test_no_python_at_all(project: Path) -> None:
    tools = project.parent / "tools"
    tools.mkdir()
    for name in ("sh", "dirname"):
        (tools / name).symlink_to(str(shutil.which(name)))
    code, said = install(project, {"PATH": str(tools)})
    assert code == 1
    assert "no Python 3.11, 3.12 or 3.13 found" in last_sentence(said)


def test_a_python_without_venv(project: Path) -> None:
    (project / "no-venv").touch()
    code, said = install(project)
    assert code == 1
    assert "sudo apt install python3-venv" in last_sentence(said)


def with_disk(project: Path, free_mb: int, system: str = "Linux") -> dict[str, str]:
    """An environment in which so much of the disk is free."""
    tools = project.parent / "tools"
    tools.mkdir()
    head, disk = "Filesystem 1M-blocks Used Available Capacity Mounted", f"/dev/x 9 8 {free_mb} 99% /"
    for name, lines in (("df", [head, disk]), ("uname", [system])):
        (tools / name).write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
        (tools / name).chmod(0o755)
    return environment(project) | {"PATH": f"{tools}:{os.environ['PATH']}"}


def test_too_little_disk_is_said_before_anything_is_made(project: Path) -> None:
    code, said = install(project, with_disk(project, 4321))
    assert code == 1
    assert "only 4321 MB are free in" in last_sentence(said)
    assert not (project / ".venv").exists()


CPU, CUDA = '{"requires_dist": ["filelock"]}', '{"requires_dist": ["filelock", "nvidia-cudnn-cu13==9.20; …"]}'


@pytest.mark.parametrize(
    ("torch", "system", "size"),
    [(CPU, "Linux", "0.9 GB"), (CUDA, "Linux", "3.5 GB"), (CUDA, "Darwin", "0.9 GB"), ("", "Linux", "0.9 GB")],
)
def test_the_size_is_that_of_the_torch_that_pip_would_take(project: Path, torch: str, system: str, size: str) -> None:
    (project / "torch-of-the-index").write_text(torch)
    code, said = install(project, with_disk(project, 60_000, system))
    assert code == 0, said
    assert f"about {size} to download" in said


def test_too_little_disk_for_cuda_is_said_before_it_is_downloaded(project: Path) -> None:
    (project / "torch-of-the-index").write_text(CUDA)
    code, said = install(project, with_disk(project, 8000))
    assert code == 1
    assert "only 8000 MB are free in" in last_sentence(said)
    assert "CPU build" in last_sentence(said)
    assert not (project / "pip-calls").exists()
    (project / "torch-of-the-index").write_text(CPU)
    assert install(project, environment(project) | {"PATH": f"{project.parent / 'tools'}:{os.environ['PATH']}"})[0] == 0


def test_an_environment_that_cannot_be_made(project: Path) -> None:
    (project / "venv-fails").touch()
    code, said = install(project)
    assert code == 1
    assert "no environment could be made in" in last_sentence(said)


def test_without_a_network_it_says_so_and_the_mark_of_success_is_missing(project: Path) -> None:
    env = {"PATH": os.environ["PATH"], "HOME": str(project), "PYTHON": sys.executable}
    closed = {"PIP_INDEX_URL": "http://127.0.0.1:1/simple", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull}
    code, said = install(project, env | closed)
    assert code == 1
    assert "Is the network up? Run the same command again" in last_sentence(said)
    assert "Traceback" not in said
    assert not (project / ".venv" / ".installed").exists()


def test_what_a_failed_install_left_is_used_by_the_next(project: Path) -> None:
    (project / "pip-fails").touch()
    assert install(project)[0] == 1
    (project / "pip-fails").unlink()
    (project / ".venv" / "downloaded").touch()
    code, said = install(project)
    assert code == 0, said
    assert said.strip().endswith("Installed.")
    assert (project / ".venv" / ".installed").exists()
    assert (project / ".venv" / "downloaded").exists()
    calls = (project / "pip-calls").read_text().splitlines()
    assert len(calls) == 2
    assert all("-c constraints.txt" in call and "-e .[train,predict,demo,dev]" in call for call in calls)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_install_goes_on_where_it_stopped(project: Path, number: signal.Signals) -> None:
    (project / "slow-pip").touch()
    child = subprocess.Popen(
        [str(project / "infra" / "install.sh")], env=environment(project), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while not (project / "pip-began").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(child.pid, number)
    assert child.wait(10) != 0
    assert not (project / ".venv" / ".installed").exists()
    assert install(project)[0] == 0
    assert (project / ".venv" / ".installed").exists()


def test_an_environment_that_was_killed_half_made_is_made_anew(project: Path) -> None:
    (project / "die-in-venv").touch()
    assert install(project)[0] != 0
    code, said = install(project)
    assert code == 0, said
    assert "making it anew" in said


def test_an_environment_of_another_python_is_made_anew(project: Path) -> None:
    assert install(project)[0] == 0
    (project / ".venv" / "bin" / "python").write_text(STAND_IN.replace("$FAKE_VERSION", "3.9"))
    code, said = install(project)
    assert code == 0
    assert "making it anew" in said
