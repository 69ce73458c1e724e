"""Do again what `docs/results/<task>.md` tells: from the files to a model and its score on the test split.

    python -m infra.evidence.reproduce translation-en-de --data FOLDER [--preset cpu] [--set key=value]

It has an installation of its own below the state folder, goes through the same commands as a person would, and may be
interrupted: the next call goes on, training from its checkpoint. The test split is scored once, with the finished
model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from infra import chain, training
from infra.evidence.suite import commit
from ml import tasks
from ml.training import results
from ml.training.files import write_json, write_text
from storage import warehouse
from storage.errors import Problem
from storage.settings import checkout, for_role, home

# What a family's data come by: the sources that read files, and those that are derived from them.
SOURCES = {
    "birds": ("audio_folder", "clips"),
    "music": ("piano_roll_files", "notes"),
    "translation": ("parallel_files",),
}
DOMAIN = {"birds": "birds", "music": "music", "translation": "text"}


def lyrebird(*words: str) -> Any:
    """Run a command; what it prints with --json, if anything."""
    print(f"$ lyrebird {' '.join(words)}", file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "infra.cli", *words], cwd=checkout(), stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise Problem(f"`lyrebird {' '.join(words)}` ended with {done.returncode}", "Its words are above; run it again")
    lines = [line for line in done.stdout.splitlines() if line.startswith(("{", "["))]
    return json.loads(lines[-1]) if lines else None


def reproduce(name: str, data: Path, preset: str, changes: list[str], out: Path) -> dict[str, Any]:
    """Ingest, transform, freeze, train, register and score; gives what it came to, written as OUT.json and OUT.md."""
    family = tasks.task(name).family
    lyrebird("up")
    chain.configure(data, lambda line: print(line, file=sys.stderr))
    for source in SOURCES[family]:
        lyrebird("ingest", source)
        lyrebird("audit", source, "--json")
    lyrebird("transform", DOMAIN[family])
    frozen = lyrebird("dataset", "freeze", name, "--json")
    chosen = [word for change in changes for word in ("--set", change)]
    trained = lyrebird("train", name, "--dataset", frozen["version"], "--preset", preset, *chosen, "--json")
    lyrebird("model", "promote", name, str(trained["version"]), "--json")
    run = training.run_folder(name, frozen["version"], preset, changes)
    done = results.summary(run) | {"commit": commit(), "test": _test(name, trained["version"])}
    write_json(out.with_suffix(".json"), done)
    write_text(out.with_suffix(".md"), page(name, done))
    return done


def _test(name: str, version: int) -> list[dict[str, Any]]:
    """The scores on `test` that the promotion has put on record. Raises Problem where the model was not promoted."""
    with closing(warehouse.connect(for_role("trainer"))) as db, db, db.cursor() as sql:
        sql.execute(
            "select metric, value, low, high from ml.score where (model, model_version, split) = (%s, %s, 'test') "
            "order by metric desc",
            (name, version),
        )
        found = [dict(zip(("name", "value", "low", "high"), row, strict=True)) for row in sql.fetchall()]
    if not found:
        raise Problem(f"{name}@{version} did not become champion, so it has no score on test", "`lyrebird model list`")
    return found


def page(name: str, done: dict[str, Any]) -> str:
    """The same for a person."""
    signature = {one["name"]: one.get("signature", "") for one in done["scores"]}
    scores = [
        f"| {split} | {one['name']} | {one['value']:.2f} | {one['low']:.2f} to {one['high']:.2f} | "
        f"{signature.get(one['name'], '')} |"
        for split, found in ((done["split"], done["scores"]), ("test", done["test"]))
        for one in found
    ]
    curve = [f"| {one['minutes']:.1f} | {one['step']:,} | {one['valid_loss']:.4f} |" for one in done["curve"]]
    return "\n".join(
        [
            f"# {name}",
            "",
            f"Made by `make reproduce-{name} DATA=…` at commit {done['commit']}: version `{done['dataset']}`, preset "
            f"{done['preset']}, seed {done['seed']}, {done['parameters'] or 0:,} parameters, {done['device']} with "
            f"{done['threads']} threads; {done['steps']:,} steps in {done['minutes']:.1f} minutes, "
            f"{done['units_per_second']:,.0f} units a second, {done['peak_memory_mb']:,} MB at most.",
            "",
            "| split | score | value | 95 % | signature |",
            "|---|---|---|---|---|",
            *scores,
            "",
            "| minutes | steps | valid loss |",
            "|---|---|---|",
            *curve,
            "",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", help="such as translation-en-de")
    parser.add_argument("--data", type=Path, required=True, help="folder laid out as README.md shows")
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, help="docs/results/<task> without it")
    given = parser.parse_args(argv)
    os.environ["LYREBIRD_HOME"] = str(home() / "reproduce")
    suffix = "" if given.preset == "cpu" else f"-{given.preset}"
    out = given.out or checkout() / "docs" / "results" / f"{given.task}{suffix}"
    try:
        done = reproduce(given.task, given.data, given.preset, given.set, out)
    except Problem as problem:
        print(f"lyrebird: {problem}", file=sys.stderr)
        return 1
    finally:
        subprocess.run([sys.executable, "-m", "infra.cli", "down"], cwd=checkout(), check=False)
    for one in done["test"]:
        print(f"{given.task}: {one['name']} {one['value']:.2f} [{one['low']:.2f}, {one['high']:.2f}] on test")
    return 0


if __name__ == "__main__":
    sys.exit(main())
