"""How far apart repetitions of one run lie: the part of a result that is the chance in training."""

from __future__ import annotations

import statistics

from sim.section import markdown_table
from sim.study.rows import StudyResult

FEWEST = 3  # runs, below which a standard deviation says nothing


def spread_table(result: StudyResult) -> str:
    """Mean, deviation and range of each arm with at least :data:`FEWEST` runs as Markdown; empty where there is none."""
    rows = []
    for arm in dict.fromkeys(row.arm for row in result.rows):
        own = [row for row in result.rows if row.arm == arm and not row.failed]
        rates = [row.rates[row.metric]["rate"] for row in own]
        differences = [row.against_global["difference"] for row in own if row.against_global]
        if len(own) >= FEWEST:
            rows.append((arm, str(len(own)), *_spread(rates, ".1f"), *_spread(differences, "+.1f")))
    of_each = "mean", "standard deviation", "range"
    heads = ["arm", "runs", *of_each, *of_each]
    heads[2], heads[5] = f"{result.metric.upper()}, %: mean", "against global, points: mean"
    return markdown_table(heads, rows) if rows else ""


def _spread(values: list[float], form: str) -> tuple[str, str, str]:
    if len(values) < FEWEST:
        return "-", "-", "-"
    points = [100 * value for value in values]
    mean, deviation = statistics.mean(points), statistics.stdev(points)
    return f"{mean:{form}}", f"{deviation:.1f}", f"{min(points):{form}} to {max(points):{form}}"
