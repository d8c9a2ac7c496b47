"""Plots of a study as SVG: the error rate of each cell and, in a random search, each setting against the error rate.

The same rows give the same file to the byte: no date, no random names, and text stays text.
"""

import io
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from sim.study.influence import drawn, influences
from sim.study.rows import StudyResult

WIDTH = 7.2  # inches, as all sizes here
COLOURS = ("#0b6e99", "#c2410c", "#15803d", "#7e22ce")
STYLE = Path(__file__).with_suffix(".mplstyle")


def results_svg(result: StudyResult) -> str:
    """The main metric of each cell and arm with its interval; arms have colours of their own."""
    rows = [row for row in result.rows if not row.failed and row.rates[row.metric]["rate"] is not None]
    arms = list(dict.fromkeys(row.arm for row in rows))
    with matplotlib.rc_context(fname=STYLE):
        figure = Figure(figsize=(WIDTH, 0.8 + 0.27 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        for y, row in enumerate(rows):
            found = row.rates[row.metric]
            rate = found["rate"]
            ends = (found["low"], found["high"]) if found.get("low") is not None else (rate, rate)
            error = [[100 * abs(end - rate)] for end in ends]
            axes.errorbar(100 * rate, y, xerr=error, fmt="o", markersize=5, color=COLOURS[arms.index(row.arm) % 4])
            axes.annotate(f"{100 * rate:.1f}", (1.01, y), xycoords=("axes fraction", "data"), va="center")
        axes.set_yticks(range(len(rows)), [f"{row.cell}, {row.arm}" if len(arms) > 1 else row.cell for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.set_xlabel(f"{result.metric.upper()} in per cent with 95 % CI, lower is better; size {result.size}")
        return as_svg(figure, result.question)


def influence_svg(result: StudyResult) -> str:
    """A panel for each setting: its values across (in their order, where they are words), the error rate upwards."""
    found = influences(result)
    arms, names = (list(dict.fromkeys(each)) for each in zip(*((one.arm, one.setting) for one in found), strict=True))
    top = max(100 * row.rates[row.metric]["rate"] for arm in arms for row in drawn(result, arm))
    across = 3
    down = -(-len(names) // across)
    with matplotlib.rc_context(fname=STYLE):
        figure = Figure(figsize=(WIDTH, 0.4 + 1.6 * down), layout="constrained")
        panels = figure.subplots(down, across, sharey=True, squeeze=False).flat
        for name, panel in zip(names, panels, strict=False):
            for arm, colour in zip(arms, COLOURS, strict=False):
                rows = sorted(drawn(result, arm), key=lambda row: row.settings[name])
                values = [row.settings[name] for row in rows]
                rates = [100 * row.rates[row.metric]["rate"] for row in rows]
                panel.scatter(values, rates, s=18, color=colour, alpha=0.75, label=arm)
            if not isinstance(values[0], str) and 0 < 10 * values[0] < values[-1]:
                panel.set_xscale("log")
            elif not isinstance(values[0], str):
                panel.locator_params(axis="x", nbins=4)
            panel.set_ylim(0, 1.08 * top)
            panel.set_xlabel(name)
            panel.grid(axis="y")
        for panel in panels:
            panel.set_axis_off()
        figure.supylabel(
            f"{result.metric.upper()} in per cent", color=matplotlib.rcParams["axes.labelcolor"], fontsize=9
        )
        figure.legend(arms, loc="outside upper left", ncols=len(arms), frameon=False)
        return as_svg(figure, result.question)


def as_svg(figure: Figure, title: str) -> str:
    """A figure as text that is the same to the byte for the same rows."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Title": title, "Creator": None, "Date": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"
