"""What matters in a random search: how each setting that was drawn goes together with the error rate.

Rank correlation over the draws, because rates have no reason to follow a setting linearly, and the value that shuffled draws
reach in one case of twenty, because with few draws a large correlation is easily chance. Words have no order: for them the
difference between the best and the worst value's mean stands in its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from fl.core.rng import derive_generator
from sim.report.charts import Axis
from sim.study.rows import StudyResult, StudyRow

SHUFFLES = 2000
FEWEST = 4  # draws, below which nothing is said
PANEL, HEIGHT, ACROSS = 230, 150, 3
COLOURS = ("#0b6e99", "#c2410c", "#15803d", "#7e22ce")
INK = "#6b7280"
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Influence:
    """One setting and one arm: ``correlation`` of ranks (positive: larger values, more errors), None for words."""

    setting: str
    arm: str
    correlation: float | None
    spread: float | None  # words: worst mean rate less best mean rate
    chance: float  # what one in twenty shufflings of the draws reaches, of either
    draws: int


def drawn(result: StudyResult, arm: str) -> list[StudyRow]:
    """The rows of one arm that a search drew: those with settings of their own and a result."""
    return [row for row in result.rows if row.arm == arm and row.settings and not row.failed]


def influences(result: StudyResult) -> list[Influence]:
    """Every setting that varies among the draws, the strongest first within an arm. Nothing for fewer than four draws."""
    found: list[Influence] = []
    for arm in dict.fromkeys(row.arm for row in result.rows):
        rows = drawn(result, arm)
        names = [name for name in rows[0].settings if len({row.settings.get(name) for row in rows}) > 1] if rows else []
        if len(rows) >= FEWEST:
            each = [_influence(name, arm, rows) for name in names]
            found += sorted(each, key=lambda one: -abs(one.correlation or one.spread or 0) / max(one.chance, 1e-9))
    return found


def _influence(name: str, arm: str, rows: list[StudyRow]) -> Influence:
    rates = np.array([row.rates[row.metric]["rate"] for row in rows])
    values = [row.settings[name] for row in rows]
    generator = derive_generator(0, "influence", name, arm)
    shuffled = [generator.permutation(rates) for _ in range(SHUFFLES)]
    if isinstance(values[0], str):
        spreads = [_spread(values, one) for one in (rates, *shuffled)]
        return Influence(name, arm, None, spreads[0], float(np.quantile(spreads[1:], 0.95)), len(rows))
    numbers = np.array(values, np.float64)
    ranks = [rank_correlation(numbers, one) for one in (rates, *shuffled)]
    return Influence(name, arm, ranks[0], None, float(np.quantile(np.abs(ranks[1:]), 0.95)), len(rows))


def rank_correlation(first: Floats, second: Floats) -> float:
    """Spearman's, with mean ranks for ties; 0 where one side is constant."""
    a, b = (rankdata(values) - (len(values) + 1) / 2 for values in (first, second))
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm else 0.0


def _spread(words: list[str], rates: Floats) -> float:
    means = [rates[[word == each for each in words]].mean() for word in set(words)]
    return float(max(means) - min(means))


def influence_table(result: StudyResult) -> str:
    """The influences as Markdown; empty where there are none. Bold is what fewer than one in twenty shufflings reach."""
    found = influences(result)
    if not found:
        return ""
    lines = [
        "| setting | arm | influence | one in twenty shufflings reaches | draws |",
        "| --- | --- | --- | --- | --- |",
    ]
    for one in found:
        strength = abs(one.correlation if one.correlation is not None else one.spread or 0.0)
        text = (
            f"{one.correlation:+.2f}" if one.correlation is not None else f"{100 * strength:.1f} points between words"
        )
        chance = f"{one.chance:.2f}" if one.correlation is not None else f"{100 * one.chance:.1f} points"
        shown = f"**{text}**" if strength > one.chance else text
        lines.append(f"| `{one.setting}` | {one.arm} | {shown} | {chance} | {one.draws} |")
    note = "Influence: rank correlation with the error rate, positive where larger values make more errors."
    return "\n".join([*lines, "", note]) + "\n"


def influence_svg(result: StudyResult) -> str:
    """A panel for each setting: its values across (their order, where they are words), the error rate upwards."""
    arms = list(dict.fromkeys(one.arm for one in influences(result)))
    names = list(dict.fromkeys(one.setting for one in influences(result)))
    rows = {arm: drawn(result, arm) for arm in arms}
    axis = Axis.to(max((row.rates[row.metric]["rate"] for each in rows.values() for row in each), default=0.01))
    width, height = PANEL * ACROSS, HEIGHT * -(-len(names) // ACROSS) + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" font-family="sans-serif" font-size="11">',
        f"<title>{escape(result.question)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *(
            f'<text x="{8 + 160 * i}" y="16" fill="{COLOURS[i % len(COLOURS)]}">● {escape(arm)}</text>'
            for i, arm in enumerate(arms)
        ),
    ]
    for place, name in enumerate(names):
        left, top = PANEL * (place % ACROSS), 24 + HEIGHT * (place // ACROSS)
        parts += _panel(name, rows, axis, left, top)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(name: str, rows: dict[str, list[StudyRow]], axis: Axis, left: int, top: int) -> list[str]:
    values = [row.settings[name] for each in rows.values() for row in each]
    order = sorted(set(values))
    logarithmic = not isinstance(order[0], str) and order[0] > 0 and order[-1] / order[0] > 10

    def across(value: object) -> float:
        if isinstance(value, str):
            share = order.index(value) / max(1, len(order) - 1)
        else:
            low, high, at = (np.log(v) if logarithmic else float(v) for v in (order[0], order[-1], value))  # type: ignore[arg-type]
            share = float((at - low) / (high - low)) if high > low else 0.5
        return round(left + 46 + (PANEL - 66) * share, 1)

    bottom, room = top + HEIGHT - 40, HEIGHT - 60
    parts = [
        f'<text x="{left + PANEL // 2}" y="{bottom + 30}" text-anchor="middle" fill="#111827">{escape(name)}</text>'
    ]
    for tick in (0.0, axis.top):
        y = round(bottom - room * axis.share(tick) / 100, 1)
        parts.append(
            f'<line x1="{left + 40}" y1="{y}" x2="{left + PANEL - 14}" y2="{y}" stroke="{INK}" stroke-width="0.5"/>'
        )
        parts.append(f'<text x="{left + 34}" y="{y + 4}" text-anchor="end" fill="{INK}">{100 * tick:g} %</text>')
    for value, anchor in ((order[0], "start"), (order[-1], "end")):
        text = value if isinstance(value, str) else f"{value:g}"
        x = across(value) + (-6 if anchor == "start" else 6)
        parts.append(f'<text x="{x}" y="{bottom + 15}" text-anchor="{anchor}" fill="{INK}">{escape(text)}</text>')
    for i, each in enumerate(rows.values()):
        for row in each:
            y = round(bottom - room * axis.share(row.rates[row.metric]["rate"]) / 100, 1)
            parts.append(
                f'<circle cx="{across(row.settings[name])}" cy="{y}" r="3.5" fill="{COLOURS[i % len(COLOURS)]}" opacity="0.75"/>'
            )
    return parts
