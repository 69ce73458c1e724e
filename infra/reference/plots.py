"""Plots of answers, as small SVG files: lines over a quantity, bars, or ranges (low, middle, high) one below another.

A plot is described by the columns it takes: ``kind``; ``x`` and its ``x_label`` with the unit; for lines ``y``,
``y_label`` and ``by`` (a line each); for bars and ranges ``label`` (columns that name a row); for ranges ``low`` and
``high``; and ``logarithmic``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

MOST = 20  # bars or ranges
LINES = 8  # of the longest ones
COLOURS = ("#3465a4", "#cc7000", "#4e9a06", "#a40000", "#75507b", "#8f5902", "#06989a", "#555753")
SETTINGS: Any = {
    "svg.fonttype": "none",  # text stays text: small files that can be searched
    "svg.hashsalt": "lyrebird",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e4e4e0",
}
NOTES = {"all": "simulated data", "some": "partly simulated data"}


def draw(plot: dict[str, Any], rows: Sequence[dict[str, Any]], simulated: str, path: Path) -> None:
    """Draw the rows into an SVG file, with a note when ``simulated`` is ``all`` or ``some``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with pyplot.rc_context(SETTINGS):
        # room at the edges: another font may be wider than the one measured
        figure, axes = pyplot.subplots(layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.1))
        {"lines": _lines, "bars": _bars, "ranges": _ranges}[plot["kind"]](figure, axes, plot, rows)
        axes.set_xlabel(plot["x_label"])
        if note := NOTES.get(simulated):
            axes.set_title(note, loc="right", fontsize=9, color="#a40000")
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


def _lines(figure: Any, axes: Any, plot: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    series: dict[str, list[tuple[Any, float]]] = {}
    for row in rows:
        series.setdefault(str(row[plot["by"]]), []).append((row[plot["x"]], float(row[plot["y"]])))
    longest = sorted(series, key=lambda name: (-len(series[name]), name))[:LINES]
    for colour, name in zip(COLOURS, longest, strict=False):
        axes.plot(*zip(*series[name], strict=True), marker="o", markersize=3.5, color=colour, label=name)
    axes.set_ylabel(plot["y_label"])
    axes.set_ylim(0, 1.04 * axes.get_ylim()[1])
    axes.legend(frameon=False, fontsize=9, loc="best")
    figure.set_size_inches(7.6, 4.2)


def _bars(figure: Any, axes: Any, plot: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    shown = [row for row in rows if row[plot["x"]] is not None][:MOST]
    axes.barh(range(len(shown)), [float(row[plot["x"]]) for row in shown], color=COLOURS[0], height=0.7)
    if plot.get("logarithmic"):
        axes.set_xscale("log")
    _name_rows(figure, axes, plot, shown)


def _ranges(figure: Any, axes: Any, plot: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    shown = list(rows)[:MOST]
    for at, row in enumerate(shown):
        axes.plot([row[plot["low"]], row[plot["high"]]], [at, at], color=COLOURS[0], linewidth=5, alpha=0.4)
    axes.plot([row[plot["x"]] for row in shown], range(len(shown)), "o", color=COLOURS[0])
    _name_rows(figure, axes, plot, shown)


def _name_rows(figure: Any, axes: Any, plot: dict[str, Any], shown: Sequence[dict[str, Any]]) -> None:
    names = [", ".join(str(row[column]) for column in plot["label"]) for row in shown]
    axes.set_yticks(range(len(shown)), [name if len(name) <= 44 else f"{name[:43]}…" for name in names], fontsize=9)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(False, axis="y")
    figure.set_size_inches(7.6, 1.2 + 0.27 * max(len(shown), 3))
