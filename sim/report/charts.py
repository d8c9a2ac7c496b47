"""Small charts as SVG that fits any width: positions are percentages, so lettering keeps its size on a telephone.

Each function takes plain numbers and words and gives back one ``<svg>`` with a title and a description for those who
cannot see it. Colour comes from CSS classes (``arm-<slug>``); shape or a label always says the same as the colour.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

ROW = 22  # pixels between labels that must not overlap
MAX_LABEL = 18  # characters
CHARACTER = 7.4  # pixels, a generous mean at the size that labels have
_TICKS = 4


@dataclass(frozen=True)
class Curve:
    """One line of :func:`line_chart`. ``slug`` is the CSS class, ``points`` are (x, rate), ordered by x."""

    label: str
    slug: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Slope:
    """One device of :func:`slope_chart`: rates before and after, and a third one that is only a dot."""

    label: str
    before: float
    after: float
    dot: float | None = None


@dataclass(frozen=True)
class Axis:
    """A linear axis from 0 to ``top`` with round ticks."""

    top: float
    ticks: tuple[float, ...]

    @classmethod
    def to(cls, highest: float, ticks: int = _TICKS) -> "Axis":
        """The axis with about ``ticks`` round steps that holds ``highest``."""
        rough = max(highest, 1e-3) / ticks
        magnitude = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * 0.999)
        count = math.ceil(highest / step - 1e-9) or 1
        return cls(step * count, tuple(step * index for index in range(count + 1)))

    def share(self, value: float) -> float:
        """Where ``value`` lies, in percent of the axis; beyond its end is its end."""
        return 100 * min(max(value / self.top, 0.0), 1.0)


def percent(value: float | None, digits: int = 1) -> str:
    """A rate as people read it, with a narrow no-break space: ``17.2 %``; an en dash where there is none."""
    return "–" if value is None else f"{100 * value:.{digits}f}\u202f%"


def shorten(label: str, limit: int = MAX_LABEL) -> str:
    """The label, its end cut off with an ellipsis where it is longer than ``limit``."""
    return label if len(label) <= limit else label[: limit - 1] + "…"


def gutter(labels: Sequence[str], fixed: int) -> int:
    """Pixels to keep free right of a chart: ``fixed`` and the longest of the (shortened) labels."""
    return fixed + math.ceil(CHARACTER * max((len(shorten(label)) for label in labels), default=0))


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The positions moved apart to at least ``gap``, in the same order, inside ``low..high`` as far as they fit."""
    if not positions:
        return []
    gap = min(gap, (high - low) / max(len(positions) - 1, 1))
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    placed = [positions[index] for index in order]
    for _ in range(2):
        for i in range(len(placed)):
            placed[i] = max(placed[i], placed[i - 1] + gap if i else low)
        overshoot = placed[-1] - high
        if overshoot <= 0:
            break
        placed[-1] = high
        for i in range(len(placed) - 2, -1, -1):
            placed[i] = min(placed[i], placed[i + 1] - gap)
    result = [0.0] * len(positions)
    for index, value in zip(order, placed, strict=True):
        result[index] = value
    return result


def interval_bar(rate: float, low: float, high: float, axis: Axis, slug: str) -> str:
    """A dot at ``rate`` on the line ``low..high``; an arrow head where that leaves the axis. For a table's cell."""
    if rate > axis.top:
        mark = '<path class="mark" d="M -9 -5 L 0 0 L -9 5 Z" transform="translate(0 12)"/>'
        body = f'{_line(86, 12, 99, 12, "whisker")}<svg x="100%" overflow="visible">{mark}</svg>'
    else:
        left, right = axis.share(low), axis.share(high)
        body = (
            f"{_line(left, 12, right, 12, 'whisker')}{_line(left, 8, left, 16, 'cap')}{_line(right, 8, right, 16, 'cap')}"
            f'<circle class="mark" cx="{axis.share(rate):.2f}%" cy="12" r="5"/>'
        )
    grid = "".join(_line(axis.share(tick), 0, axis.share(tick), 24, "grid") for tick in axis.ticks)
    label = f"{percent(rate)}, 95 % interval {percent(low)} to {percent(high)}"
    return (
        f'<svg class="interval arm-{slug}" width="100%" height="24" role="img" aria-label="{label}">{grid}{body}</svg>'
    )


def line_chart(curves: Sequence[Curve], *, title: str, x_label: str, height: int = 300) -> str:
    """Curves over a common x, each named at its right end; a curve of one point is a ring and a dotted level."""
    axis = Axis.to(max(rate for curve in curves for _, rate in curve.points))
    first = min(x for curve in curves for x, _ in curve.points)
    last = max(x for curve in curves for x, _ in curve.points)
    width = max(last - first, 1e-9)

    def at(x: float, rate: float) -> tuple[float, float]:
        return 100 * (x - first) / width if last > first else 50.0, height * (1 - axis.share(rate) / 100)

    parts = [_y_grid(axis, height), _x_ticks(first, last, height, x_label)]
    ends = spread([at(*curve.points[-1])[1] for curve in curves], ROW - 5, 4, height - 2)
    for curve, label_y in zip(curves, ends, strict=True):
        places = [at(*point) for point in curve.points]
        lines = "".join(_line(*start, *end, "curve") for start, end in pairwise(places))
        dots = "".join(f'<circle class="point" cx="{x:.2f}%" cy="{y:.1f}" r="3"/>' for x, y in places)
        if len(places) == 1:
            x, y = places[0]
            lines = _line(x, y, 100, y, "curve level")
            dots = f'<circle class="point hollow" cx="{x:.2f}%" cy="{y:.1f}" r="5"/>'
        name = _text("100%", label_y + 4, curve.label, dx=14, css="name")
        parts.append(f'<g class="arm-{curve.slug}">{lines}{dots}{name}</g>')
    text = "; ".join(f"{curve.label} ends at {percent(curve.points[-1][1])}" for curve in curves)
    return _svg("line-chart", height, title, text, "".join(parts))


def slope_chart(slopes: Sequence[Slope], *, names: tuple[str, str, str], title: str, labelled: bool = True) -> str:
    """One line a device from ``before`` to ``after``; the third rate is a diamond in a column of its own.

    ``names`` are those of the diamond's, the before and the after column. Worse after than before is a dashed line with
    a triangle. With ``labelled`` each line is named at its right end.
    """
    height = max(280, min(520, 12 + 19 * len(slopes)))
    has_dots = any(slope.dot is not None for slope in slopes)
    x0, x1, x2 = (0.0, 34.0, 100.0) if has_dots else (0.0, 0.0, 100.0)
    axis = Axis.to(max(max(slope.before, slope.after, slope.dot or 0.0) for slope in slopes))

    def y(rate: float) -> float:
        return height * (1 - axis.share(rate) / 100)

    columns = ((x0, names[0]), (x1, names[1]), (x2, names[2])) if has_dots else ((x1, names[1]), (x2, names[2]))
    parts = [_y_grid(axis, height)]
    for x, name in columns:
        parts.append(_line(x, 0, x, height, "column"))
        parts.append(_text(f"{x}%", height + 22, name, anchor="middle", css="tick column-name"))
    ends = spread([y(slope.after) for slope in slopes], 16, 2, height - 2)
    for slope, label_y in zip(slopes, ends, strict=True):
        parts.append(_slope(slope, (x0, x1, x2), y, label_y if labelled else None))
    worse = [slope.label for slope in slopes if slope.after > slope.before]
    text = f"{len(slopes) - len(worse)} of {len(slopes)} do not get worse from {names[1]} to {names[2]}"
    return _svg("slope-chart", height, title, text + (f"; worse: {', '.join(worse)}" if worse else ""), "".join(parts))


def _slope(slope: Slope, xs: tuple[float, float, float], y: Callable[[float], float], label_y: float | None) -> str:
    worse = slope.after > slope.before
    x0, x1, x2 = xs
    before, after = y(slope.before), y(slope.after)
    parts = [
        _line(x1, before, x2, after, "slope"),
        f'<circle class="point hollow arm-global" cx="{x1}%" cy="{before:.1f}" r="4"/>',
    ]
    if slope.dot is not None:
        parts.append(_mark(x0, y(slope.dot), "M 0 -5 L 5 0 L 0 5 L -5 0 Z", "point arm-local"))
    if worse:
        parts.append(_mark(x2, after, "M 0 -6 L 6 5 L -6 5 Z", "point worse-mark"))
    else:
        parts.append(f'<circle class="point arm-personalized" cx="{x2}%" cy="{after:.1f}" r="4.5"/>')
    if label_y is not None:
        parts.append(_text("100%", label_y + 4, percent(slope.after), dx=58, anchor="end", css="value"))
        parts.append(_text("100%", label_y + 4, shorten(slope.label), dx=68, css="name"))
    css = "device worse" if worse else "device"
    change = f"{slope.label}: {percent(slope.before)} to {percent(slope.after)}"
    return f'<g class="{css}"><title>{escape(change)}</title>{"".join(parts)}</g>'


def _y_grid(axis: Axis, height: int) -> str:
    parts = []
    digits = 0 if all(abs(100 * tick - round(100 * tick)) < 1e-6 for tick in axis.ticks) else 1
    for tick in axis.ticks:
        y = height * (1 - axis.share(tick) / 100)
        parts.append(_line(0, y, 100, y, "grid"))
        parts.append(_text("0%", y + 4, percent(tick, digits), dx=-10, anchor="end", css="tick"))
    return "".join(parts)


def _x_ticks(first: float, last: float, height: int, label: str) -> str:
    whole = range(round(first), round(last) + 1)
    step = max(1, math.ceil((len(whole) - 1) / 8))
    parts = [
        _text(f"{100 * (x - first) / (last - first):.2f}%", height + 20, str(x), anchor="middle", css="tick")
        for x in whole[::step]
        if last > first
    ]
    return "".join([*parts, _text("50%", height + 42, label, anchor="middle", css="tick")])


def _svg(css: str, height: int, title: str, description: str, body: str) -> str:
    label = escape(f"{title}. {description}.", quote=True)
    return f'<svg class="chart {css}" height="{height}" role="img" aria-label="{label}">{body}</svg>'


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line class="{css}" x1="{x1:.2f}%" y1="{y1:.1f}" x2="{x2:.2f}%" y2="{y2:.1f}"/>'


def _mark(x: float, y: float, path: str, css: str) -> str:
    return f'<svg x="{x:.2f}%" y="{y:.1f}" overflow="visible"><path class="{css}" d="{path}"/></svg>'


def _text(x: str, y: float, text: str, *, dx: int = 0, anchor: str = "start", css: str) -> str:
    return f'<text class="{css}" x="{x}" y="{y:.1f}" dx="{dx}" text-anchor="{anchor}">{escape(text)}</text>'
