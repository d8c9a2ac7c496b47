"""Where the marks of a chart lie: x in per cent of its width, y in pixels. Templates draw them (``charts.html``)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

ROW = 17  # pixels between labels that must not overlap
MAX_LABEL = 18  # characters
CHARACTER = 7.4  # pixels, a generous mean at the size that labels have
TICKS = 4
Points = Sequence[tuple[float, float]]


class Slope(NamedTuple):
    """The rates of one device: before, after, and a third one that is only a dot."""

    before: float
    after: float
    dot: float | None = None


@dataclass(frozen=True)
class Axis:
    """A linear axis from 0 to ``top`` with round ticks."""

    top: float
    ticks: tuple[float, ...]

    @classmethod
    def to(cls, highest: float) -> "Axis":
        """The axis with about :data:`TICKS` round steps that holds ``highest``."""
        rough = max(highest, 1e-3) / TICKS
        magnitude = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * 0.999)
        count = math.ceil(highest / step - 1e-9) or 1
        return cls(step * count, tuple(step * index for index in range(count + 1)))

    @property
    def digits(self) -> int:
        """How many decimals the ticks need in per cent."""
        return 0 if all(abs(100 * tick - round(100 * tick)) < 1e-6 for tick in self.ticks) else 1

    def share(self, value: float) -> float:
        """Where ``value`` lies, in percent of the axis; beyond its end is its end."""
        return 100 * min(max(value / self.top, 0.0), 1.0)

    def y(self, value: float, height: float) -> float:
        """Where ``value`` lies from above, on an axis that goes up."""
        return height * (1 - self.share(value) / 100)


def percent(value: float | None, digits: int = 1) -> str:
    """A rate as people read it, with a narrow no-break space: ``17.2 %``; an en dash where there is none."""
    return "–" if value is None else f"{100 * value:.{digits}f}\u202f%"


def shorten(label: str, limit: int = MAX_LABEL) -> str:
    """The label, its end cut off with an ellipsis where it is longer than ``limit``."""
    return label if len(label) <= limit else label[: limit - 1] + "…"


def gutter(labels: Iterable[str], fixed: int) -> int:
    """Pixels to keep free right of a chart: ``fixed`` and the longest of the (shortened) labels."""
    return fixed + math.ceil(CHARACTER * max((len(shorten(label)) for label in labels), default=0))


def shared_axis(rates: Iterable[tuple[str, float | None]]) -> Axis:
    """An axis for all arms; an untrained base that is far off does not squeeze the others into a corner."""
    known = [(arm, rate) for arm, rate in rates if rate is not None]
    trained = max((rate for arm, rate in known if arm != "zero-shot"), default=0.0)
    highest = max((rate for _, rate in known), default=0.0)
    return Axis.to(min(highest, 2 * trained) if trained > 0 else highest)


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The positions moved apart to at least ``gap``, in the same order, inside ``low..high`` as far as they fit."""
    gap = min(gap, (high - low) / max(len(positions) - 1, 1))
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    placed: list[float] = []
    for index in order:
        placed.append(max(positions[index], placed[-1] + gap if placed else low))
    limit = high
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], limit)
        limit = placed[i] - gap
    return [placed[order.index(index)] for index in range(len(positions))]


def line_view(
    curves: Mapping[str, Points], ticks: Sequence[tuple[float, str]] | None = None, height: int = 300
) -> dict[str, Any]:
    """A chart of named curves, each of (x, rate) in the order of x. ``ticks`` are (x, label), by default whole numbers."""
    points = [point for curve in curves.values() for point in curve]
    axis = Axis.to(max(rate for _, rate in points))
    first, last = min(x for x, _ in points), max(x for x, _ in points)

    def across(x: float) -> float:
        return 100 * (x - first) / (last - first) if last > first else 50.0

    places = [[(across(x), axis.y(rate, height)) for x, rate in curve] for curve in curves.values()]
    ends = spread([place[-1][1] for place in places], ROW, 4, height - 2)
    if ticks is None:
        whole = range(round(first), round(last) + 1)
        ticks = [(float(x), str(x)) for x in whole[:: max(1, math.ceil((len(whole) - 1) / 8))]]
    return {
        "height": height,
        "axis": axis,
        "ticks": [(across(x), name) for x, name in ticks],
        "curves": [
            {"label": label, "places": place, "label_y": end}
            for label, place, end in zip(curves, places, ends, strict=True)
        ],
        "description": "; ".join(f"{label} ends at {percent(curve[-1][1])}" for label, curve in curves.items()),
    }


def slope_view(slopes: Mapping[str, Slope], names: tuple[str, str, str]) -> dict[str, Any]:
    """A chart of devices by name; ``names`` are those of the column of dots and of the rates before and after."""
    height = max(280, min(520, 12 + 19 * len(slopes)))
    has_dots = any(slope.dot is not None for slope in slopes.values())
    x1 = 34.0 if has_dots else 0.0
    axis = Axis.to(max(rate for slope in slopes.values() for rate in slope if rate is not None))
    ends = spread([axis.y(slope.after, height) for slope in slopes.values()], 16, 2, height - 2)
    worse = [label for label, slope in slopes.items() if slope.after > slope.before]
    text = f"{len(slopes) - len(worse)} of {len(slopes)} do not get worse from {names[1]} to {names[2]}"
    return {
        "height": height,
        "axis": axis,
        "x1": x1,
        "columns": list(zip((0.0, x1, 100.0), names, strict=True))[0 if has_dots else 1 :],
        "slopes": [
            {
                "label": label,
                "slope": slope,
                "worse": label in worse,
                "before": axis.y(slope.before, height),
                "after": axis.y(slope.after, height),
                "dot": None if slope.dot is None else axis.y(slope.dot, height),
                "label_y": end,
            }
            for (label, slope), end in zip(slopes.items(), ends, strict=True)
        ],
        "description": text + (f"; worse: {', '.join(worse)}" if worse else ""),
    }
