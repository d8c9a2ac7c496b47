"""How far apart repetitions of one run lie: the part of a result that is the chance in training."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from sim.study.rows import StudyResult, StudyRow

FEWEST = 3  # runs, below which a standard deviation says nothing


@dataclass(frozen=True)
class Spread:
    """Of one arm over ``runs``: the main rate of each, and its difference from ``global`` where there is one."""

    arm: str
    rates: tuple[float, ...]
    differences: tuple[float, ...]


def spreads(result: StudyResult) -> list[Spread]:
    """One for each arm with at least :data:`FEWEST` runs."""
    arms: dict[str, list[StudyRow]] = {}
    for row in result.rows:
        if not row.failed:
            arms.setdefault(row.arm, []).append(row)
    return [
        Spread(
            arm,
            tuple(row.rates[row.metric]["rate"] for row in rows),
            tuple(row.against_global["difference"] for row in rows if row.against_global),
        )
        for arm, rows in arms.items()
        if len(rows) >= FEWEST
    ]


def spread_table(result: StudyResult) -> str:
    """The spreads as Markdown; empty where there are none."""
    found = spreads(result)
    if not found:
        return ""
    of_each = "mean | standard deviation | range"
    lines = [
        f"| arm | runs | {result.metric.upper()}, %: {of_each} | against global, points: {of_each} |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in found:
        lines.append(
            f"| {one.arm} | {len(one.rates)} | {_cells(one.rates, '.1f')} | {_cells(one.differences, '+.1f')} |"
        )
    return "\n".join(lines) + "\n"


def _cells(values: tuple[float, ...], form: str) -> str:
    if len(values) < FEWEST:
        return "- | - | -"
    points = [100 * value for value in values]
    mean, deviation = statistics.mean(points), statistics.stdev(points)
    return f"{mean:{form}} | {deviation:.1f} | {min(points):{form}} to {max(points):{form}}"
