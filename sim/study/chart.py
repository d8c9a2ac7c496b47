"""A study's rows as one SVG: a dot with its interval for each cell, or a line where a setting grows along the cells.

It stands in Markdown pages, so it brings its colours along and is legible on a light and on a dark page.
"""

from __future__ import annotations

from html import escape

from sim.report.charts import Axis
from sim.study.rows import StudyResult, StudyRow

WIDTH, ROW, LEFT, RIGHT, TOP = 720, 24, 190, 60, 34
COLOURS = ("#0b6e99", "#c2410c", "#15803d", "#7e22ce")
INK, GRID = "#6b7280", "#9ca3af"


def svg(result: StudyResult) -> str:
    """The main metric of all rows that have one. Several arms of a cell are rows below each other, in colours of their own."""
    rows = [row for row in result.rows if not row.failed and row.rates[row.metric]["rate"] is not None]
    highest = max((row.rates[row.metric]["high"] or row.rates[row.metric]["rate"] for row in rows), default=0.01)
    axis = Axis.to(highest)
    arms = list(dict.fromkeys(row.arm for row in rows))
    height = TOP + ROW * len(rows) + 40
    title = f"{result.question} {result.metric.upper()} in per cent, lower is better"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="8" y="18" fill="{INK}">{escape(result.metric.upper())} in per cent, 95 % intervals; size {escape(result.size)}</text>',
        *_grid(axis, height),
    ]
    for i, row in enumerate(rows):
        parts += _mark(row, axis, TOP + ROW * i + ROW // 2, COLOURS[arms.index(row.arm) % len(COLOURS)], len(arms) > 1)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _x(rate: float, axis: Axis) -> float:
    return round(LEFT + (WIDTH - LEFT - RIGHT) * axis.share(rate) / 100, 1)


def _grid(axis: Axis, height: int) -> list[str]:
    lines = []
    for tick in axis.ticks:
        x = _x(tick, axis)
        lines.append(f'<line x1="{x}" y1="{TOP - 6}" x2="{x}" y2="{height - 34}" stroke="{GRID}" stroke-width="0.5"/>')
        lines.append(f'<text x="{x}" y="{height - 16}" text-anchor="middle" fill="{INK}">{100 * tick:g}</text>')
    return lines


def _mark(row: StudyRow, axis: Axis, y: int, colour: str, several: bool) -> list[str]:
    found = row.rates[row.metric]
    label = f"{row.cell}, {row.arm}" if several else row.cell
    x = _x(found["rate"], axis)
    parts = [f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end" fill="#111827">{escape(label[:28])}</text>']
    if found["low"] is not None:
        low, high = _x(found["low"], axis), _x(found["high"], axis)
        parts.append(f'<line x1="{low}" y1="{y}" x2="{high}" y2="{y}" stroke="{colour}" stroke-width="2"/>')
    parts.append(f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>')
    parts.append(f'<text x="{WIDTH - 8}" y="{y + 4}" text-anchor="end" fill="#111827">{100 * found["rate"]:.1f}</text>')
    return parts
