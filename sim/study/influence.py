"""What matters in a random search: how each setting that was drawn goes together with the error rate.

Rank correlation over the draws, because rates have no reason to follow a setting linearly, and the value that shuffled draws
reach in one case of twenty, because with few draws a large correlation is easily chance. Words have no order: for them the
difference between the best and the worst value's mean stands in its place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from fl.core.rng import derive_generator
from sim.section import markdown_table
from sim.study.rows import StudyResult, StudyRow

SHUFFLES = 2000
HEADS = ("setting", "arm", "influence", "one in twenty shufflings reaches", "draws")
FEWEST = 4  # draws, below which nothing is said
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
    rows = []
    for one in influences(result):
        if one.correlation is not None:
            strength, text, chance = abs(one.correlation), f"{one.correlation:+.2f}", f"{one.chance:.2f}"
        else:
            strength = one.spread or 0.0
            text, chance = f"{100 * strength:.1f} points between words", f"{100 * one.chance:.1f} points"
        shown = f"**{text}**" if strength > one.chance else text
        rows.append((f"`{one.setting}`", one.arm, shown, chance, str(one.draws)))
    note = "Influence: rank correlation with the error rate, positive where larger values make more errors."
    return f"{markdown_table(HEADS, rows)}\n{note}\n" if rows else ""
