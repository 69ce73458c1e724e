"""What runs came to, in a table: `python -m ml.training.results --out docs/results/gpu-translation RUN…`

Reads the run folders of any family and writes OUT.json and OUT.md. Nothing of the data's text is in them.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml.training.config import command
from ml.training.files import read_json, write_json, write_text
from storage.errors import Problem


def summary(run: Path) -> dict[str, Any]:
    """A finished run: what was trained on what and how long, how fast, in how much memory, and its scores."""
    try:
        about, config, scores = (read_json(run / f"{name}.json") for name in ("model", "config", "scores"))
        events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
        end = next(event for event in reversed(events) if event["event"] == "end")
    except (OSError, StopIteration, ValueError) as error:
        raise Problem(f"{run} holds no finished run", "Name the folder of a run that has ended") from error
    rates = [event["units_per_second"] for event in events if event["event"] == "train"]
    return {
        "run": run.name, "family": about["family"], "preset": config["train"]["preset"],
        "dataset": about["dataset"]["version"], "name": about["dataset"]["name"], "code": about["code"],
        "parameters": about.get("parameters"), "seed": config["train"]["seed"], "device": end["device"],
        "processes": end["processes"], "threads": end["threads"], "precision": end["precision"],
        "compiled": config["train"]["compile"], "steps": end["step"], "best_step": end["best_step"],
        "units": end["units"], "units_per_second": round(statistics.median(rates), 1),
        "minutes": round(end["seconds"] / 60, 2), "peak_memory_mb": end["peak_mb"], "valid_loss": end["best"],
        "split": scores["split"], "model": config["model"], "train": config["train"],
        "scores": [
            {key: metric[key] for key in ("name", "value", "low", "high", "signature") if key in metric}
            for metric in scores["metrics"]
        ],
        "curve": [
            {"minutes": round(event["seconds"] / 60, 2), "step": event["step"], "valid_loss": event["valid_loss"]}
            for event in events if event["event"] == "valid"
        ],
    }  # fmt: skip


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The same as a page: a line for each run."""
    lines = [
        "# Training runs", "",
        "Made from the run folders by `python -m ml.training.results`. A unit is what the family counts: clips, frames "
        "or target pieces; its rate is the median over the run's reports. In brackets the 95 % bootstrap interval.", "",
        "| run | data | device | precision | parameters | steps | minutes | units/s | peak MB | valid loss | scores |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        scores = "; ".join(f"{s['name']} {s['value']:.2f} [{s['low']:.2f}, {s['high']:.2f}]" for s in row["scores"])
        device = row["device"] + (f", {row['threads']} threads" if row["device"] == "cpu" else "")
        device += f", {row['processes']} processes" if row["processes"] > 1 else ""
        precision = row["precision"] + (", compiled" if row["compiled"] else "")
        cells = [
            row["run"], f"{row['name']} `{row['dataset']}`", device, precision, f"{row['parameters'] or 0:,}",
            str(row["steps"]), f"{row['minutes']:.1f}", f"{row['units_per_second']:,.0f}", f"{row['peak_memory_mb']:,}",
            f"{row['valid_loss']:.4f}", f"{scores} on {row['split']}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, type=Path, metavar="OUT", help="writes OUT.json and OUT.md")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    given = parser.parse_args(argv)
    rows = [summary(run) for run in given.runs]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(given.out.with_suffix(".json"), rows)
    write_text(given.out.with_suffix(".md"), page(rows))


if __name__ == "__main__":
    command(main)
