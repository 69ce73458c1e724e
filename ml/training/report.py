"""What a person reads about a run: `report.html`, one page with its pictures inside, and `card.md`, the model card."""

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml.training.files import read_json, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --page: #ffffff; --line: #c9d1d9; --note: #fff3c4;
        --quiet: #57606a; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --page: #0d1117; --line: #3d444d; --note: #4a3b00; --quiet: #9198a1; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 60rem;
       margin: 0 auto; padding: 1rem; }
table { border-collapse: collapse; margin: 0.5rem 0 1rem; display: block; overflow-x: auto; }
caption { text-align: left; color: var(--quiet); }
th, td { border: 1px solid var(--line); padding: 0.25rem 0.6rem; text-align: left; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; height: auto; background: #ffffff; border: 1px solid var(--line); border-radius: 4px; }
figure { margin: 0.5rem 0 1rem; } figcaption { color: var(--quiet); }
.banner { background: var(--note); border: 1px solid var(--line); padding: 0.5rem 1rem; font-weight: 600; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid var(--line); padding: 0.5rem; }
"""
SIMULATED = "Simulated data: these scores say nothing about real recordings."


def write(run: Path, title: str, sections: Sequence[tuple[str, str]]) -> None:
    """Write `report.html`: scores, loss curve, the family's sections (heading, HTML), then data and settings.

    Reads what the run folder holds of model.json, config.json, scores.json and events.jsonl.
    """
    model = _optional(run / "model.json")
    dataset = model.get("dataset", {})
    parts = [f"<h1>{html.escape(title)}</h1>"]
    if dataset.get("simulated"):
        parts.append(f'<p class="banner" role="note">{SIMULATED}</p>')
    if (run / "scores.json").exists():
        parts.append(_section("Scores", scores_table(read_json(run / "scores.json"))))
    if (run / "events.jsonl").exists():
        parts.append(_section("Training", loss_curve(run)))
    parts.extend(_section(heading, body) for heading, body in sections)
    parts.append(_section("Data", table(["", ""], [[k, _plain(v)] for k, v in dataset.items()])))
    settings = json.dumps(_optional(run / "config.json"), indent=1)
    parts.append(_section("Settings", f"<pre>{html.escape(settings)}</pre>"))
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )
    write_text(run / "report.html", page)


def figure(fig: "Figure", alt: str, caption: str = "") -> str:
    """A matplotlib figure as HTML with the PNG inside; `alt` says in words what it shows. Closes the figure."""
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=110, bbox_inches="tight", facecolor="white", metadata={"Software": None})
    plt.close(fig)
    image = base64.b64encode(buffer.getvalue()).decode()
    words = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img src="data:image/png;base64,{image}" alt="{html.escape(alt, quote=True)}">{words}</figure>'


def axes(width: float = 8.0, height: float = 3.0) -> tuple["Figure", Any]:
    """An empty figure with one pair of axes, size in inches, drawn without a display."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(width, height))
    return fig, ax


def table(header: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> str:
    """An HTML table; numbers are right-aligned, text is escaped. An empty header row is left out."""
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in header)
    lines = []
    for row in rows:
        cells = (
            f'<td class="number">{_number(cell)}</td>'
            if isinstance(cell, int | float) and not isinstance(cell, bool)
            else f"<td>{html.escape(str(cell))}</td>"
            for cell in row
        )
        lines.append("<tr>" + "".join(cells) + "</tr>")
    told = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    top = f"<thead><tr>{head}</tr></thead>" if any(header) else ""
    return f"<table>{told}{top}<tbody>{''.join(lines)}</tbody></table>"


def scores_table(scores: dict[str, Any]) -> str:
    """scores.json as a table: each metric with its interval, beside its baseline on the same rows."""
    rows = []
    for metric in scores["metrics"]:
        base = metric["baseline"]
        better = "higher" if metric["direction"] == "more" else "lower"
        name, baseline = f"{metric['name']} ({better} is better)", f"{_with_interval(base)} {base['name']}"
        rows.append([name, _with_interval(metric), baseline, metric["rows"]])
    caption = f"Split {scores['split']} of version {scores['dataset']}; in brackets the 95 % bootstrap interval"
    return table(["Metric", "Model", "Baseline", "Rows"], rows, caption)


def loss_curve(run: Path) -> str:
    """The losses in `events.jsonl` over the steps, as a figure."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    train = [(e["step"], e["loss"]) for e in events if e["event"] == "train"]
    valid = [(e["step"], e["valid_loss"]) for e in events if e["event"] == "valid"]
    fig, ax = axes()
    if train:
        ax.plot(*zip(*train, strict=True), label="train", color="#0969da", linewidth=1)
    if valid:
        ax.plot(*zip(*valid, strict=True), label="valid", color="#bc4c00", marker="o", markersize=3, linewidth=1.5)
    ax.set_xlabel("step")
    ax.set_ylabel("loss")
    ax.grid(alpha=0.3)
    if train or valid:
        ax.legend()
    end = next((e for e in reversed(events) if e["event"] == "end"), None)
    caption = f"{end['step']} steps in {end['seconds']:.0f} s; weights of step {end['best_step']}" if end else ""
    if end and "units" in end:
        rate = end["units"] / max(1e-9, end["seconds"])
        caption += f"; {rate:,.0f} units a second on {end['device']}, {end['peak_mb']:,} MB of memory at most"
    lowest = f"; the lowest on the valid split is {min(loss for _, loss in valid):.3f}" if valid else ""
    return figure(fig, f"Loss over {max((s for s, _ in train + valid), default=0)} steps{lowest}", caption)


def card(run: Path, title: str, use: str, limits: Sequence[str]) -> None:
    """Write `card.md` (after Mitchell et al. 2019): use, data and licences, scores, limits, how to repeat it."""
    model, scores = _optional(run / "model.json"), _optional(run / "scores.json")
    dataset, config = model.get("dataset", {}), _optional(run / "config.json")
    lines = [f"# {title}", ""]
    if dataset.get("simulated"):
        lines += [f"**{SIMULATED}**", ""]
    lines += [use, "", "## Data", f"- Version `{dataset.get('version', '?')}` of `{dataset.get('name', '?')}`"]
    licences = dataset.get("licences", {})
    lines += [f"- {licence or 'no licence stated'}: {rows} rows" for licence, rows in licences.items()]
    lines += ["", "## Scores", "| metric | model | baseline | rows |", "|---|---|---|---|"]
    for metric in scores.get("metrics", []):
        base = metric["baseline"]
        cells = [metric["name"], _with_interval(metric), f"{_with_interval(base)} {base['name']}", str(metric["rows"])]
        lines.append(f"| {' | '.join(cells)} |")
    split = scores.get("split", "?")
    lines += ["", f"On the split `{split}`; in brackets the 95 % bootstrap interval.", "", "## Limits"]
    lines += [f"- {limit}" for limit in limits]
    train = config.get("train", {})
    repeat = f"Preset `{train.get('preset')}`, seed {train.get('seed')}, code `{model.get('code', '?')}`; "
    repeat += "all settings are in `config.json`."
    if train.get("minutes"):
        repeat += " The run was limited by time, so it cannot be repeated to the same bits."
    lines += ["", "## Repeat", repeat, ""]
    write_text(run / "card.md", "\n".join(lines))


def _section(heading: str, body: str) -> str:
    return f"<section><h2>{html.escape(heading)}</h2>\n{body}</section>"


def _with_interval(score: dict[str, Any]) -> str:
    return f"{_number(score['value'])} [{_number(score['low'])}, {_number(score['high'])}]"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k or 'none stated'}: {v}" for k, v in value.items())
    return str(value)


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
