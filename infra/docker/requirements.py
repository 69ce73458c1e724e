"""Print the requirements of some groups of pyproject.toml, one a line.

    python infra/docker/requirements.py platform demo    # `platform`: what the project itself needs; others are extras

The images install these before the code is copied, so that a change of code rebuilds no environment; and `train` is
installed without the platform, which pip by itself cannot do (an extra always brings the project along).
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any


def requirements(project: dict[str, Any], groups: list[str]) -> list[str]:
    """The requirements of these groups; an extra that names other extras of ours brings theirs.

    Raises KeyError for a group that is not there.
    """
    known: dict[str, list[str]] = {"platform": project["dependencies"], **project["optional-dependencies"]}
    found: set[str] = set()
    for line in [line for group in groups for line in known[group]]:
        if line.startswith(own := f"{project['name']}["):
            found.update(requirements(project, line.removeprefix(own).rstrip("]").split(",")))
        else:
            found.add(line)
    return sorted(found)


if __name__ == "__main__":
    file = Path(__file__).resolve().parent.parent.parent / "pyproject.toml"
    print("\n".join(requirements(tomllib.loads(file.read_text(encoding="utf-8"))["project"], sys.argv[1:])))
