#!/bin/sh
# Make .venv and install the pinned dependencies. Safe to interrupt and to run again: it goes on where it stopped.
set -eu
cd "$(dirname "$0")/.."

say() { printf '%s\n' "$*" >&2; }
fail() { say "lyrebird: $*"; exit 1; }
suits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; }

python=${PYTHON:-}
if [ -z "$python" ]; then
    for candidate in python3.11 python3.12 python3.13 python3; do
        if suits "$candidate"; then
            python=$candidate
            break
        fi
    done
fi
[ -n "$python" ] || fail "no Python 3.11, 3.12 or 3.13 found. Install one, or name it: make install PYTHON=/path/to/python"
command -v "$python" >/dev/null || fail "there is no program $python. Name a Python that there is: make install PYTHON=/path/to/python"
suits "$python" ||
    fail "$python is $("$python" --version 2>&1 || true). Python 3.11, 3.12 or 3.13 is needed: make install PYTHON=/path/to/python"
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$python cannot make virtual environments. On Debian and Ubuntu: sudo apt install python3-venv"

enough() { # GB of the environment, what to do where there is too little
    free_mb=$(df -Pm . | awk 'NR == 2 {print $4}')
    [ "$free_mb" -ge $(($1 * 1000 + 2000)) ] ||
        fail "only $free_mb MB are free in $(pwd). The environment needs $1 GB and the data 2 GB more${2:-}"
}
enough 3

if [ -x .venv/bin/python ] && ! { suits .venv/bin/python && .venv/bin/python -m pip --version >/dev/null 2>&1; }; then
    say "The environment in .venv is broken or of another Python; making it anew."
    rm -rf .venv
fi
[ -x .venv/bin/python ] || "$python" -m venv .venv ||
    fail "no environment could be made in $(pwd)/.venv. Mend what is said above and run the same command again"
size="about 0.9 GB to download, 2.5 GB on disk"
# Which build of torch pip takes is up to its index, so it is asked: on Linux, PyPI has the one that brings CUDA along.
if [ "$(uname -s)" = Linux ] && .venv/bin/python -m pip install --dry-run --no-deps --quiet --retries 0 --report - \
    torch -c constraints.txt 2>/dev/null | grep -q nvidia-; then
    size="about 3.5 GB to download, 7 GB on disk, most of it for the CUDA build of torch"
    enough 8 ", because pip's index gives the CUDA build of torch. An index with the CPU build (PIP_EXTRA_INDEX_URL) saves 5 GB"
fi
say "Installing $(grep -c == constraints.txt) pinned packages into .venv: $size, 3 to 5 minutes on a fast line."
say "After that nothing is downloaded any more."
.venv/bin/python -m pip install --quiet --progress-bar off --disable-pip-version-check \
    -e '.[train,predict,demo,dev]' -c constraints.txt ||
    fail "the installation stopped. Is the network up? Run the same command again: what is there already is kept"
touch .venv/.installed
say "Installed."
