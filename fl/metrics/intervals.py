"""Bootstrap intervals for pooled error rates and for the paired difference of two systems.

Percentile bootstrap over utterances, as Bisani and Ney (ICASSP 2004, "Bootstrap estimates for confidence intervals in
ASR performance evaluation") propose, with the utterances of each group resampled within the group. A group is what was
recorded together: a device, or a device in one run (``seed0/dev3``) where several runs are pooled. ``cluster`` resamples
the groups first and then the utterances of each drawn group, for a statement about further people instead of further
sentences of these. Everything is a function of the data as a set and of ``seed``: the order of utterances is nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fl.core.errors import MetricError
from fl.core.rng import derive_generator

Floats = NDArray[np.float64]
_CELLS_PER_CHUNK = 1_000_000  # resampled utterances held at a time, 8 bytes a column


@dataclass(frozen=True)
class Interval:
    """A pooled rate, ``errors / reference``, and its interval. All three are ``None`` without reference tokens."""

    rate: float | None
    low: float | None
    high: float | None
    errors: int
    reference: int


@dataclass(frozen=True)
class PairedDifference:
    """Rate of system a minus rate of system b over the same utterances: negative where a is better.

    ``difference``, ``low``, ``high`` are absolute (0.01 is one point); the relative ones are divided by the rate of b
    (-0.3 is 30 % fewer errors), ``None`` where b makes no error, in the data or in too many resamples for a bound.
    """

    difference: float | None
    low: float | None
    high: float | None
    relative: float | None
    relative_low: float | None
    relative_high: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval of the difference lies on one side of zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def rate_interval(
    errors: ArrayLike,
    reference: ArrayLike,
    groups: Sequence[str],
    *,
    seed: int,
    samples: int = 2000,
    confidence: float = 0.95,
    cluster: bool = False,
) -> Interval:
    """The pooled rate and its percentile interval.

    ``errors``, ``reference`` and ``groups`` are ``(utterances,)``: errors, reference tokens and group of each. Raises
    :class:`MetricError` for lengths that differ, counts that are negative or not finite, or settings out of range.
    """
    columns = _columns([errors, reference], groups)
    totals = _resampled_totals(columns, groups, seed, samples, cluster)
    rate = _ratio(*columns.sum(axis=0))
    low, high = _quantiles(_ratios(totals[:, 0], totals[:, 1]), confidence)
    return Interval(rate, low, high, int(columns[:, 0].sum()), int(columns[:, 1].sum()))


def paired_difference(
    errors_a: ArrayLike,
    errors_b: ArrayLike,
    reference: ArrayLike,
    groups: Sequence[str],
    *,
    seed: int,
    samples: int = 2000,
    confidence: float = 0.95,
    cluster: bool = False,
) -> PairedDifference:
    """Absolute and relative difference of the pooled rates of systems a and b, each resample drawn once for both.

    Arguments and errors as for :func:`rate_interval`.
    """
    columns = _columns([errors_a, errors_b, reference], groups)
    totals = _resampled_totals(columns, groups, seed, samples, cluster)
    total_a, total_b, total_reference = columns.sum(axis=0)
    low, high = _quantiles(_ratios(totals[:, 0] - totals[:, 1], totals[:, 2]), confidence)
    relative_low, relative_high = _quantiles(_ratios(totals[:, 0] - totals[:, 1], totals[:, 1]), confidence)
    difference, relative = _ratio(total_a - total_b, total_reference), _ratio(total_a - total_b, total_b)
    if relative is None:  # b makes no error at all: nothing to be relative to
        relative_low = relative_high = None
    return PairedDifference(difference, low, high, relative, relative_low, relative_high)


def macro_rate(errors: ArrayLike, reference: ArrayLike, groups: Sequence[str] | None = None) -> float | None:
    """Mean of the rates of the utterances, or with ``groups`` mean of the pooled rates of the groups.

    Not the pooled rate: each utterance (or group) weighs the same whatever its length. Those without reference tokens
    are left out; ``None`` if all are.
    """
    size = np.asarray(errors, dtype=np.float64).size
    names = [str(index) for index in range(size)] if groups is None else groups
    columns = _columns([errors, reference], names)
    totals = [columns[rows].sum(axis=0) for rows in _rows_by_group(names)]
    rates = [total[0] / total[1] for total in totals if total[1] > 0]
    return float(np.mean(rates)) if rates else None


def _columns(arrays: Sequence[ArrayLike], groups: Sequence[str]) -> Floats:
    vectors = [np.asarray(array, dtype=np.float64) for array in arrays]
    shapes = [vector.shape for vector in vectors]
    if any(shape != (len(groups),) for shape in shapes):
        raise MetricError(f"errors, reference and groups need one entry per utterance, got {shapes} and {len(groups)}")
    columns = np.stack(vectors, axis=1)
    if not np.isfinite(columns).all() or (columns < 0).any():
        raise MetricError("errors and reference must be finite and not negative: give counts, not rates or differences")
    return columns


def _rows_by_group(groups: Sequence[str]) -> list[NDArray[np.intp]]:
    if not groups:
        return []
    _, codes = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)


def _resampled_totals(columns: Floats, groups: Sequence[str], seed: int, samples: int, cluster: bool) -> Floats:
    """Column sums of each bootstrap resample, ``(samples, columns)``."""
    if samples < 1:
        raise MetricError(f"samples must be at least 1, got {samples}")
    generator = derive_generator(seed, "bootstrap", "cluster" if cluster else "stratified")
    # In canonical order, so that a permutation of the utterances draws the same resamples.
    members = [columns[rows][np.lexsort(columns[rows].T)] for rows in _rows_by_group(groups)]
    if cluster and members:
        drawn = generator.integers(len(members), size=(samples, len(members)))
    else:
        drawn = np.broadcast_to(np.arange(len(members)), (samples, len(members)))
    totals = np.zeros((samples, columns.shape[1]))
    for index, member in enumerate(members):
        owners = np.nonzero(drawn == index)[0]  # the resample each draw of this group belongs to
        np.add.at(totals, owners, _draw_sums(member, len(owners), generator))
    return totals


def _draw_sums(member: Floats, draws: int, generator: np.random.Generator) -> Floats:
    """Sums over ``draws`` resamples of a group's utterances with replacement, ``(draws, columns)``.

    Drawing indices and summing equals weighting by multinomial counts, and is several times faster for large groups.
    """
    size = len(member)
    step = max(1, _CELLS_PER_CHUNK // size)
    chunks = [
        member[generator.integers(size, size=(min(step, draws - start), size))].sum(axis=1)
        for start in range(0, draws, step)
    ]
    return np.concatenate(chunks) if chunks else np.zeros((0, member.shape[1]))


def _ratio(numerator: float, denominator: float) -> float | None:
    return float(numerator / denominator) if denominator > 0 else None


def _ratios(numerators: Floats, denominators: Floats) -> Floats:
    """Ratios of resamples: 0/0 of nothing but zeros is left out, x/0 is infinite (and beyond every finite one)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = numerators / denominators
    return ratios[~np.isnan(ratios)]


def _quantiles(values: Floats, confidence: float) -> tuple[float | None, float | None]:
    if not 0 < confidence < 1:
        raise MetricError(f"confidence must lie between 0 and 1, got {confidence}")
    if not len(values):
        return None, None
    tail = (1 - confidence) / 2
    # The inverse of the empirical distribution: always one of the values, so infinite ones do no harm.
    bounds = np.quantile(values, [tail, 1 - tail], method="inverted_cdf")
    low, high = (float(bound) if math.isfinite(bound) else None for bound in bounds)
    return low, high
