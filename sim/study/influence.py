"""What matters in a random search: how each setting that was drawn goes together with the error rate.

Rank correlation over the draws, because rates have no reason to follow a setting linearly, and the value that shuffled draws
reach in one case of twenty, because with few draws a large correlation is easily chance. Words have no order: for them the
difference between the best and the worst value's mean stands in its place.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from fl.core.rng import derive_generator
from sim.section import markdown_table
from sim.study.rows import StudyResult, StudyRow

SHUFFLES = 2000
HEADS = ("setting", "arm", "influence", "one in twenty shufflings reaches", "draws")
FEWEST = 4  # draws, below which nothing is said
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Influence:
    """One setting and one arm. ``strength`` is the correlation of ranks (positive: larger values, more errors).

    Of ``words`` it is the worst mean rate less the best mean rate.
    """

    setting: str
    arm: str
    words: bool
    strength: float
    chance: float  # what one in twenty shufflings of the draws reaches
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
            found += sorted(each, key=lambda one: -abs(one.strength) / max(one.chance, 1e-9))
    return found


def _influence(name: str, arm: str, rows: list[StudyRow]) -> Influence:
    rates = np.array([row.rates[row.metric]["rate"] for row in rows])
    values = [row.settings[name] for row in rows]
    generator = derive_generator(0, "influence", name, arm)
    shuffled = [generator.permutation(rates) for _ in range(SHUFFLES)]
    words = isinstance(values[0], str)
    strength = partial(_spread, values) if words else partial(rank_correlation, np.array(values, np.float64))
    chance = np.quantile([abs(strength(one)) for one in shuffled], 0.95)
    return Influence(name, arm, words, strength(rates), float(chance), len(rows))


def rank_correlation(first: Floats, second: Floats) -> float:
    """Spearman's, with mean ranks for ties; 0 where one side is constant."""
    from scipy.stats import rankdata  # a second of loading, which the help of a study does without

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
        if one.words:
            text, chance = f"{100 * one.strength:.1f} points between words", f"{100 * one.chance:.1f} points"
        else:
            text, chance = f"{one.strength:+.2f}", f"{one.chance:.2f}"
        shown = f"**{text}**" if abs(one.strength) > one.chance else text
        rows.append((f"`{one.setting}`", one.arm, shown, chance, str(one.draws)))
    note = "Influence: rank correlation with the error rate, positive where larger values make more errors."
    return f"{markdown_table(HEADS, rows)}\n{note}\n" if rows else ""
