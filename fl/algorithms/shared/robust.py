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

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fl.aggregation.columns import BoundedUpdates, by_coordinate
from fl.aggregation.mean import average
from fl.aggregation.updates import Updates, over_cores, rows_of, tensor_names
from fl.algorithms.base import About, Algorithm, Capabilities, Round
from fl.algorithms.hostile import hostile_count
from fl.core.errors import AggregationError, ConfigError
from fl.settings.fields import setting

if TYPE_CHECKING:
    from fl.settings.config import RunConfig

SMOOTHING = 1e-6  # of the geometric median, relative to the median distance: no division by a distance of zero
PASSES = 32
TINY = float(np.finfo(np.float32).tiny)
TOLERANCE = 1e-4  # of the median norm: the geometric median is found when a pass moves it by less


def mean_of(updates: Updates) -> dict[str, np.ndarray]:
    """The mean update, each device once."""
    return average(updates, [1.0] * len(updates))


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


def too_few(name: str, devices: int, hostile: int, factor: int) -> str:
    """Why ``devices`` < ``factor`` f + 3 cannot withstand f ``hostile`` ones; empty where they can, or there are none."""
    if not hostile or devices >= factor * hostile + 3:
        return ""
    return (
        f"{name} needs at least {factor * hostile + 3} devices in a round to withstand {hostile}, and there are {devices}: "
        "lower algorithm.krum.hostile-share, or let more devices take part"
    )


def squared_distances(updates: Updates) -> np.ndarray:
    """(devices, devices) float64: squared Euclidean distances of the devices' updates, all tensors as one vector."""
    total = np.zeros((len(updates), len(updates)))
    for matrix in BoundedUpdates(updates, keep=False).matrices(np.float64):
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


def geometric_median(updates: Updates) -> dict[str, np.ndarray]:
    """The point with the smallest sum of distances, by the smoothed Weiszfeld algorithm.

    Each pass weighs a device by the inverse of its distance to the point before; at most :data:`PASSES` passes. The first
    weighs by the norms, so that far updates start small, but nothing counts as closer than half of the devices: a pass that
    starts exactly at a device's update (one that is zero, say) would never leave it.
    """
    bounded = BoundedUpdates(updates, keep=True)
    factors = np.maximum(bounded.factors, TINY)  # rows are shorter by it than what they stand for
    squares = np.square(bounded.norms)
    reach = np.where(bounded.factors > 0, bounded.norms, 0.0)  # how far a device's weight moves the point
    weights = _inverse(np.maximum(bounded.norms, np.median(bounded.norms)))
    for _ in range(PASSES):
        rows = (weights / factors).astype(np.float32)
        seen = over_cores(lambda matrix, rows=rows: _seen(matrix, rows), bounded.matrices(np.float32))  # type: ignore[misc]
        cross, length = np.sum([c for c, _ in seen], axis=0) / factors, sum(square for _, square in seen)
        new = _inverse(np.sqrt(np.maximum(squares - 2 * cross + length, 0.0)))
        change, weights = float(np.abs(new - weights) @ reach), new
        if change <= TOLERANCE * float(np.median(reach)):
            break
    rows = (weights / factors).astype(np.float32)
    points = over_cores(lambda matrix: rows @ matrix, bounded.matrices(np.float32))
    return {
        name: point.reshape(rows_of(updates[:1], name)[0].shape)
        for name, point in zip(tensor_names(updates), points, strict=True)
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


class RobustAlgorithm(Algorithm):
    """A rule on single devices' updates, each of which counts once."""

    can = Capabilities(sums=False)


class CoordinateMedian(RobustAlgorithm):
    """The median of every coordinate."""

    name = "median"
    about = About("Yin et al. 2018", "1803.01498")

    def aggregate(self, found: Round) -> dict[str, np.ndarray]:
        """See :func:`median_rows`."""
        return by_coordinate(found.updates, median_rows)


class TrimmedMean(RobustAlgorithm):
    """The mean of every coordinate without the largest and the smallest ``trim_share`` of its values."""

    name = "trimmed-mean"
    about = About("Yin et al. 2018", "1803.01498")
    trim_share: float = setting(0.2, "share of the devices whose values are left out at each end", low=0.0, high=0.49)

    def aggregate(self, found: Round) -> dict[str, np.ndarray]:
        """See :func:`trimmed_rows`; at least one value stays."""
        count = len(found.updates)
        cut = min(hostile_count(self.trim_share, count), (count - 1) // 2)
        return by_coordinate(found.updates, lambda ordered: trimmed_rows(ordered, cut))


class Krum(RobustAlgorithm):
    """The update with the best Krum score, and no other."""

    name = "krum"
    about = About("Blanchard et al. 2017", "1703.02757")
    factor: ClassVar[int] = 2
    hostile_share: float = setting(
        0.2, "krum, multi-krum, bulyan: share of the devices that may be hostile, rounded up", low=0.0, high=0.49
    )

    def refused(self, config: RunConfig) -> str:
        """A rule that withstands nobody says nothing about an attack."""
        if self.hostile_share or not config.attack.attacks_updates:
            return ""
        return (
            f"algorithm.krum.hostile-share = 0 withstands no hostile device, and attack = {config.attack.name!r} makes some: "
            f"set algorithm.krum.hostile-share = {config.attack.attacker_share:g}"
        )

    def require_fit(self, shapes: Mapping[str, tuple[int, ...]], devices: int) -> None:
        """As many devices must take part in a round as the share of hostile ones asks for."""
        if reason := too_few(self.name, devices, hostile_count(self.hostile_share, devices), self.factor):
            raise ConfigError(reason)

    def aggregate(self, found: Round) -> dict[str, np.ndarray]:
        """Raises :class:`AggregationError` where too few devices answered for the share of hostile ones."""
        hostile = hostile_count(self.hostile_share, len(found.updates))
        if reason := too_few(self.name, len(found.updates), hostile, self.factor):
            raise AggregationError(reason)
        return self.choose(found.updates, squared_distances(found.updates), hostile)

    def choose(self, updates: Updates, distances: np.ndarray, hostile: int) -> dict[str, np.ndarray]:
        """The aggregate, given who is how far from whom."""
        return mean_of([updates[krum_order(distances, hostile)[0]]])


class MultiKrum(Krum):
    """The mean of the n - f updates with the best Krum scores."""

    name = "multi-krum"
    table = "krum"

    def choose(self, updates: Updates, distances: np.ndarray, hostile: int) -> dict[str, np.ndarray]:
        """All but the last in Krum's order."""
        chosen = sorted(krum_order(distances, hostile)[: len(updates) - hostile])
        return mean_of([updates[i] for i in chosen])


class Bulyan(Krum):
    """Of the n - 2 f updates that Krum chooses, the mean of the n - 4 f values of a coordinate that are closest to its median."""

    name = "bulyan"
    about = About("El Mhamdi et al. 2018", "1802.07927")
    table = "krum"
    factor = 4

    def choose(self, updates: Updates, distances: np.ndarray, hostile: int) -> dict[str, np.ndarray]:
        """Two stages: devices, then coordinates."""
        chosen = [updates[i] for i in bulyan_choice(distances, hostile)]
        return by_coordinate(chosen, lambda ordered: central_rows(ordered, len(chosen) - 2 * hostile))


class NormBound(RobustAlgorithm):
    """The mean of updates of bounded length."""

    name = "norm-bound"
    about = About("Sun et al. 2019", "1911.07963")
    bound: float = setting(0.0, "largest norm of a device's update; 0 takes the median of the round's norms", low=0.0)

    def aggregate(self, found: Round) -> dict[str, np.ndarray]:
        """The mean of the updates, those longer than the bound scaled down to it."""
        updates = found.updates
        norms = BoundedUpdates(updates, keep=False).norms
        bound = self.bound or float(np.median(norms))
        factors = np.minimum(1.0, bound / np.maximum(norms, TINY))
        if not factors.any():  # a median of zero: most have not moved
            return {name: np.zeros(rows_of(updates[:1], name)[0].shape) for name in tensor_names(updates)}
        share = float(factors.mean())
        return {name: share * values for name, values in average(updates, list(factors)).items()}


class GeometricMedian(RobustAlgorithm):
    """The point with the smallest sum of distances to the devices' updates."""

    name = "geometric-median"
    about = About("Pillutla et al. 2022", "1912.13445")

    def aggregate(self, found: Round) -> dict[str, np.ndarray]:
        """See :func:`geometric_median`."""
        return geometric_median(found.updates)
