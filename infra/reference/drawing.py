"""Boxes in columns and lines between them, as an SVG: the diagrams of the dictionary.

The column of a box is given; within the columns the boxes are ordered so that their neighbours are near (the
barycentre heuristic of Sugiyama, Tagawa and Toda, 1981). The same boxes give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH_OF_A_SIGN = 6.7  # of the font below, in units of the picture
LINE, HEAD, BETWEEN, MARGIN = 17, 24, 72, 16
PASSES = 8
STYLE = """
text { font: 11px ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace; fill: #222 }
.head, .title { font-weight: bold } .note { fill: #666 } .title { fill: #555 }
.box { fill: #fff; stroke: #7a7a74 } .bar { fill: #e3e9f2 } .far .bar { fill: #eee } .far text { fill: #777 }
.mart .bar { fill: #e2f0d9 } .source .bar { fill: #f5e6d3 } .exposure .bar { fill: #f3dfe6 }
path { fill: none; stroke: #5f7ba6; stroke-width: 1.2; opacity: 0.75 }
@media (prefers-color-scheme: dark) {
text { fill: #e6e6e6 } .note { fill: #a8a8a8 } .title { fill: #cfcfcf } .box { fill: #1d1f23; stroke: #80858f }
.bar { fill: #2c3a52 } .far .bar { fill: #34363b } .far text { fill: #a0a0a0 } .mart .bar { fill: #2c4424 }
.source .bar { fill: #4a3a22 } .exposure .bar { fill: #4c2c3a } path { stroke: #8fb0e0 } .paper { fill: #14161a }
}
""".strip()


@dataclass(frozen=True)
class Box:
    """A box: its title, the rows below it as (text, note), the column it stands in, and a class of the style."""

    name: str
    column: int
    rows: tuple[tuple[str, str], ...] = ()
    kind: str = ""

    @property
    def width(self) -> float:
        longest = max([len(self.name), *(len(f"{text}  {note}") for text, note in self.rows)])
        return longest * WIDTH_OF_A_SIGN + 18

    @property
    def height(self) -> float:
        return HEAD + LINE * len(self.rows) + (5 if self.rows else 0)

    @property
    def gap(self) -> int:
        """The space below it."""
        return 22 if self.rows else 10


@dataclass(frozen=True)
class Line:
    """From a row of a box (its title, where there is no such row) to the title of another, in a column to the left."""

    start: str
    end: str
    row: str = ""


def draw(title: str, boxes: Sequence[Box], lines: Sequence[Line], heads: Sequence[str] = ()) -> str:
    """The picture, with ``heads`` above the columns."""
    columns = _ordered(boxes, lines)
    top = MARGIN + (26 if heads else 0)
    heights = [sum(box.height + box.gap for box in column) for column in columns]
    places: dict[str, tuple[float, float, Box]] = {}
    x, parts = float(MARGIN), []
    for at, column in enumerate(columns):
        wide = max(box.width for box in column)
        y = top + (max(heights) - heights[at]) / 2
        for box in column:
            places[box.name] = (x, y, box)
            y += box.height + box.gap
        if at < len(heads):
            parts.append(f'<text class="title" x="{x:.0f}" y="{MARGIN + 10}">{escape(heads[at])}</text>')
        x += wide + BETWEEN
    wide, high = x - BETWEEN + MARGIN, top + max(heights) + MARGIN
    parts += [_path(line, places) for line in lines]
    parts += [_box(*places[box.name]) for box in boxes]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:.0f} {high:.0f}" width="{wide:.0f}" '
        f'height="{high:.0f}" role="img">\n<title>{escape(title)}</title>\n<style>{STYLE}</style>\n'
        '<rect class="paper" width="100%" height="100%" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _ordered(boxes: Sequence[Box], lines: Sequence[Line]) -> list[list[Box]]:
    """The columns, each in an order that keeps lines short."""
    count = 1 + max(box.column for box in boxes)
    columns = [sorted((box for box in boxes if box.column == at), key=lambda box: box.name) for at in range(count)]
    near: dict[str, list[str]] = {box.name: [] for box in boxes}
    for line in lines:
        near[line.start].append(line.end)
        near[line.end].append(line.start)
    for turn in range(PASSES):
        for at in range(count) if turn % 2 else reversed(range(count)):
            place = {box.name: (n + 0.5) / len(column) for column in columns for n, box in enumerate(column)}

            def middle(box: Box, place: dict[str, float] = place) -> float:
                neighbours = near[box.name]
                return sum(place[name] for name in neighbours) / len(neighbours) if neighbours else place[box.name]

            columns[at].sort(key=middle)
    return columns


def _path(line: Line, places: dict[str, tuple[float, float, Box]]) -> str:
    x1, y1, start = places[line.start]
    x2, y2, end = places[line.end]
    row = next((n for n, (text, _) in enumerate(start.rows) if text == line.row), None)
    y1 += HEAD / 2 if row is None else HEAD + LINE * row + 10
    x2, y2 = x2 + end.width, y2 + HEAD / 2
    half = (x1 + x2) / 2
    return f'<path d="M{x1:.0f} {y1:.0f}C{half:.0f} {y1:.0f} {half:.0f} {y2:.0f} {x2:.0f} {y2:.0f}"/>'


def _box(x: float, y: float, box: Box) -> str:
    lines = [
        f'<g class="{box.kind}" transform="translate({x:.0f} {y:.0f})">',
        f'<rect class="box" width="{box.width:.0f}" height="{box.height:.0f}" rx="3"/>',
        f'<rect class="bar" x="1" y="1" width="{box.width - 2:.0f}" height="{HEAD - 2}" rx="2"/>',
        f'<text class="head" x="9" y="16">{escape(box.name)}</text>',
    ]
    for n, (text, note) in enumerate(box.rows):
        y_of_row = HEAD + LINE * n + 14
        lines.append(f'<text x="9" y="{y_of_row}">{escape(text)}</text>')
        lines.append(
            f'<text class="note" x="{box.width - 9:.0f}" y="{y_of_row}" text-anchor="end">{escape(note)}</text>'
        )
    return "".join([*lines, "</g>"])
