"""Robust aggregation: a bounded share of hostile devices cannot move the result far.

Every device counts once: a number of examples is what a device says of itself, and a hostile one would say a large number.
With n devices of which f are hostile:

| name | result | holds while | cost |
| --- | --- | --- | --- |
| ``median`` (arXiv 1803.01498) | coordinate-wise median | f < n / 2 | n log n |
| ``trimmed-mean`` (arXiv 1803.01498) | mean of each coordinate without its largest and smallest ``trim-share`` | f <= share n | n log n |
| ``krum`` (arXiv 1703.02757) | the update with the closest n - f - 2 neighbours | n >= 2 f + 3 | n^2 |
| ``multi-krum`` (same) | mean of the n - f updates that Krum ranks first | n >= 2 f + 3 | n^2 |
| ``bulyan`` (arXiv 1802.07927) | trimmed mean around the median of n - 2 f updates chosen by Krum | n >= 4 f + 3 | n^2 |
| ``norm-bound`` (arXiv 1911.07963) | mean of updates, each shortened to a bound | always; limits, does not exclude | n |
| ``geometric-median`` (arXiv 1912.13445) | the point with the smallest sum of distances | f < n / 2 | n per pass |

``norm-bound`` streams over devices. The coordinate-wise ones hold one tensor of all devices, ``geometric-median`` all of them once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from flwr.app import Array, ArrayRecord

from fl.aggregation.blocks import over_cores
from fl.core.errors import AggregationError, ConfigError
from strategies.averaging import average
from strategies.base import SharedFedAvg
from strategies.columns import Updates, by_coordinate
from strategies.replies import DeviceReply

Replies = Sequence[DeviceReply]
Tensors = Mapping[str, np.ndarray]
SMOOTHING = 1e-6  # of the geometric median, relative to the median distance: no division by a distance of zero
PASSES = 32
TINY = float(np.finfo(np.float32).tiny)
TOLERANCE = 1e-4  # of the median norm: the geometric median is found when a pass moves it by less


def mean_of(replies: Replies, weights: Sequence[float] | None = None) -> ArrayRecord:
    """The mean, each device once unless given ``weights``."""
    values = [1.0] * len(replies) if weights is None else weights
    return average(replies, {reply.device_id: w for reply, w in zip(replies, values, strict=True)})


def median_rows(ordered: np.ndarray) -> np.ndarray:
    """The median of each row of (n, devices) whose rows are in ascending order; the mean of the middle two if even."""
    count = ordered.shape[1]
    middle = ordered[:, (count - 1) // 2 : count // 2 + 1]
    return np.asarray(middle.mean(axis=1, dtype=np.float64))


def trimmed_rows(ordered: np.ndarray, cut: int) -> np.ndarray:
    """The mean of each ordered row without its ``cut`` smallest and largest values."""
    return np.asarray(ordered[:, cut : ordered.shape[1] - cut].mean(axis=1))  # float32, but summed by halves


def central_rows(ordered: np.ndarray, keep: int) -> np.ndarray:
    """The mean of the ``keep`` values of each ordered row that are closest to its median; of two equal choices the lower.

    The closest to a point lie side by side in an ordered row: one window of it.
    """
    starts = ordered.shape[1] - keep + 1
    middle = median_rows(ordered)[:, None]
    reach = np.maximum(middle - ordered[:, :starts], ordered[:, keep - 1 :] - middle)
    first = reach.argmin(axis=1)
    rows = np.take_along_axis(ordered, first[:, None] + np.arange(keep), axis=1)
    return np.asarray(rows.mean(axis=1, dtype=np.float64))


def hostile_count(share: float, devices: int) -> int:
    """How many of ``devices`` a share of them is, at most."""
    return int(share * devices + 1e-9)


def too_few(name: str, devices: int, hostile: int, factor: int) -> str:
    """Why ``devices`` < ``factor`` f + 3 cannot withstand f ``hostile`` ones; empty where they can, or there are none."""
    if not hostile or devices >= factor * hostile + 3:
        return ""
    return (
        f"{name} needs at least {factor * hostile + 3} devices in a round to withstand {hostile}, and there are {devices}: "
        "lower hostile-share, or let more devices take part"
    )


def squared_distances(replies: Replies, before: Tensors) -> np.ndarray:
    """(devices, devices) float64: squared Euclidean distances of the devices' tensors, all of them as one vector."""
    updates = Updates.of(replies, before, keep=False)
    total = np.zeros((len(replies), len(replies)))
    for matrix in updates.matrices(np.float64):
        gram = matrix @ matrix.T
        norms = np.diagonal(gram)
        total += norms[:, None] + norms[None, :] - 2 * gram
    np.fill_diagonal(total, 0.0)
    return np.maximum(total, 0.0)


def krum_scores(distances: np.ndarray, hostile: int) -> np.ndarray:
    """The sum of squared distances to the n - f - 2 closest others, (n,); to the closest one if that is none."""
    count = len(distances)
    if count == 1:
        return np.zeros(1)
    neighbours = min(count - 1, max(1, count - hostile - 2))
    ordered = np.sort(distances, axis=1)[:, 1 : neighbours + 1]  # the first is the distance to itself
    return np.asarray(ordered.sum(axis=1))


def krum_order(distances: np.ndarray, hostile: int) -> list[int]:
    """Devices by Krum's score, the best first; equal ones in their own order."""
    return [int(i) for i in np.argsort(krum_scores(distances, hostile), kind="stable")]


def bulyan_choice(distances: np.ndarray, hostile: int) -> list[int]:
    """The n - 2 f devices that Krum chooses one after the other, each time among those that are left."""
    left = list(range(len(distances)))
    chosen: list[int] = []
    while len(chosen) < len(distances) - 2 * hostile:
        best = krum_order(distances[np.ix_(left, left)], hostile)[0]
        chosen.append(left.pop(best))
    return sorted(chosen)


def norm_bounded(replies: Replies, before: Tensors, bound: float) -> ArrayRecord:
    """``before`` plus the mean of the updates, those longer than ``bound`` scaled down to it; 0 takes the median of the norms."""
    norms = Updates.of(replies, before, keep=False).norms
    bound = bound or float(np.median(norms))
    factors = np.minimum(1.0, bound / np.maximum(norms, TINY))
    if not factors.any():  # a median of zero: most have not moved
        return ArrayRecord({name: Array(values.astype(np.float32)) for name, values in before.items()})
    mean = mean_of(replies, list(factors))
    share = float(factors.mean())
    new = {n: x + share * np.subtract(mean[n].numpy(), x, dtype=np.float64) for n, x in before.items()}
    return ArrayRecord({name: Array(values.astype(np.float32)) for name, values in new.items()})


def geometric_median(replies: Replies, before: Tensors) -> dict[str, np.ndarray]:
    """The point with the smallest sum of distances, by the smoothed Weiszfeld algorithm; float64 tensors by name.

    Each pass weighs a device by the inverse of its distance to the point before; at most :data:`PASSES` passes. The first
    weighs by the norms, so that far updates start small, but nothing counts as closer than half of the devices: a pass that
    starts exactly at a device's update (one that is zero, say) would never leave it.
    """
    updates = Updates.of(replies, before, keep=True)
    factors = np.maximum(updates.factors, TINY)  # rows are shorter by it than what they stand for
    squares = np.square(updates.norms)
    reach = np.where(updates.factors > 0, updates.norms, 0.0)  # how far a device's weight moves the point
    weights = _inverse(np.maximum(updates.norms, np.median(updates.norms)))
    for _ in range(PASSES):
        rows = (weights / factors).astype(np.float32)
        seen = over_cores(lambda matrix, rows=rows: _seen(matrix, rows), updates.matrices(np.float32))  # type: ignore[misc]
        cross, length = np.sum([c for c, _ in seen], axis=0) / factors, sum(square for _, square in seen)
        new = _inverse(np.sqrt(np.maximum(squares - 2 * cross + length, 0.0)))
        moved, weights = float(np.abs(new - weights) @ reach), new
        if moved <= TOLERANCE * float(np.median(reach)):
            break
    rows = (weights / factors).astype(np.float32)
    points = over_cores(lambda matrix: rows @ matrix, updates.matrices(np.float32))
    return {
        n: x + point.reshape(x.shape).astype(np.float64) for (n, x), point in zip(before.items(), points, strict=True)
    }


def _seen(matrix: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, float]:
    """The product of each device's row with the weighted sum of all rows, (devices,) float64, and that sum's squared norm."""
    point = rows @ matrix
    return (matrix @ point).astype(np.float64), float(np.square(point, dtype=np.float64).sum())


def _inverse(distances: np.ndarray) -> np.ndarray:
    """Weights by inverse distance that sum to 1; what is closer than the smoothing counts as that far."""
    finite = distances[np.isfinite(distances)]
    floor = SMOOTHING * (float(np.median(distances)) or float(finite.max(initial=0.0)) or 1.0)
    inverse = 1.0 / np.maximum(distances, floor)
    return np.asarray(inverse / inverse.sum())


@dataclass
class RobustRule(SharedFedAvg):
    """A rule on single devices' updates, each of which counts once."""

    single_devices: ClassVar[bool] = True

    def before(self, replies: Replies) -> Tensors:
        """The shared tensors of the round's start."""
        return {name: self._incoming[name].numpy() for name in replies[0].shared or {}}


@dataclass
class CoordinateMedian(RobustRule):
    """The median of every coordinate."""

    def aggregate(self, replies: tuple[DeviceReply, ...]) -> ArrayRecord:
        """See :func:`median_rows`."""
        return by_coordinate(replies, median_rows)


@dataclass
class TrimmedMean(RobustRule):
    """The mean of every coordinate without the largest and the smallest ``trim_share`` of its values."""

    trim_share: float = 0.2

    def aggregate(self, replies: tuple[DeviceReply, ...]) -> ArrayRecord:
        """See :func:`trimmed_rows`; at least one value stays."""
        cut = min(hostile_count(self.trim_share, len(replies)), (len(replies) - 1) // 2)
        return by_coordinate(replies, lambda ordered: trimmed_rows(ordered, cut))


@dataclass
class MultiKrum(RobustRule):
    """The mean of the n - f updates with the best Krum scores."""

    hostile_share: float = 0.2
    factor: ClassVar[int] = 2

    def require_fit(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """As many devices must take part in a round as the share of hostile ones asks for."""
        devices = self.round_size
        if reason := too_few(type(self).__name__, devices, hostile_count(self.hostile_share, devices), self.factor):
            raise ConfigError(reason)

    def aggregate(self, replies: tuple[DeviceReply, ...]) -> ArrayRecord:
        """Raises :class:`AggregationError` where too few devices answered for the share of hostile ones."""
        hostile = hostile_count(self.hostile_share, len(replies))
        if reason := too_few(type(self).__name__, len(replies), hostile, self.factor):
            raise AggregationError(reason)
        return self.choose(replies, squared_distances(replies, self.before(replies)), hostile)

    def choose(self, replies: tuple[DeviceReply, ...], distances: np.ndarray, hostile: int) -> ArrayRecord:
        """The aggregate, given who is how far from whom."""
        chosen = sorted(krum_order(distances, hostile)[: len(replies) - hostile])
        return mean_of([replies[i] for i in chosen])


@dataclass
class Krum(MultiKrum):
    """The update with the best Krum score, and no other."""

    def choose(self, replies: tuple[DeviceReply, ...], distances: np.ndarray, hostile: int) -> ArrayRecord:
        """The first in Krum's order."""
        return mean_of([replies[krum_order(distances, hostile)[0]]])


@dataclass
class Bulyan(MultiKrum):
    """Of the n - 2 f updates that Krum chooses, the mean of the n - 4 f values of a coordinate that are closest to its median."""

    factor: ClassVar[int] = 4

    def choose(self, replies: tuple[DeviceReply, ...], distances: np.ndarray, hostile: int) -> ArrayRecord:
        """Two stages: devices, then coordinates."""
        chosen = [replies[i] for i in bulyan_choice(distances, hostile)]
        return by_coordinate(chosen, lambda ordered: central_rows(ordered, len(chosen) - 2 * hostile))


@dataclass
class NormBound(RobustRule):
    """The mean of updates of bounded length."""

    norm_bound: float = 0.0

    def aggregate(self, replies: tuple[DeviceReply, ...]) -> ArrayRecord:
        """See :func:`norm_bounded`."""
        return norm_bounded(replies, self.before(replies), self.norm_bound)


@dataclass
class GeometricMedian(RobustRule):
    """The point with the smallest sum of distances to the devices' updates."""

    def aggregate(self, replies: tuple[DeviceReply, ...]) -> ArrayRecord:
        """See :func:`geometric_median`."""
        point = geometric_median(replies, self.before(replies))
        return ArrayRecord({name: Array(values.astype(np.float32)) for name, values in point.items()})
