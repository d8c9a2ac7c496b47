"""MER against the number of sentences, a line for each method, as SVG."""

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from sim.study.enrol.contenders import NEUTRAL
from sim.study.enrol.rows import EnrolRow, pooled, rows_of
from sim.study.plots import STYLE, WIDTH, as_svg


def curves_svg(rows: Sequence[EnrolRow]) -> str:
    """Lines from neutral, which is every method's rate without a sentence."""
    sizes = sorted({row.sentences for row in rows})
    with matplotlib.rc_context(fname=STYLE):
        figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
        axes = figure.add_subplot()
        colours = matplotlib.colormaps["tab20"]
        for place, name in enumerate(dict.fromkeys(row.method for row in rows if row.method != NEUTRAL)):
            found = [(size, rows_of(rows, name if size else NEUTRAL, size)) for size in sizes]
            points = [(size, _percent(own)) for size, own in found if own]
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, color=colours(place % 20), label=name)
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_ylim(bottom=0)
        axes.grid(axis="y")
        axes.set_xlabel("sentences of a held-out speaker")
        axes.set_ylabel("MER in per cent, lower is better")
        figure.legend(loc="outside right upper", frameon=False)
        return as_svg(figure, "MER of held-out speakers by sentences")


def _percent(rows: Sequence[EnrolRow]) -> float:
    errors, reference = pooled(rows, "mer")
    return 100 * sum(errors) / max(1, sum(reference))
