"""Bootstrap intervals for pooled error rates and for the paired difference of two systems.

Percentile bootstrap over utterances, as Bisani and Ney (ICASSP 2004, "Bootstrap estimates for confidence intervals in
ASR performance evaluation") propose, with the utterances of each group resampled within the group. A group is what was
recorded together: a device, or a device in one run (``seed0/dev3``) where several runs are pooled: a statement about further
sentences of these people. Everything is a function of the data as a set and of ``seed``: the order of utterances is nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fl.core.errors import MetricError
from fl.core.rng import derive_generator

Floats = NDArray[np.float64]
SAMPLES = 2000  # bootstrap resamples of each interval
TAIL = (1 - 0.95) / 2  # of a 95 % interval, on each side
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
    excludes_zero: bool  # whether the interval of the difference lies on one side of zero


def rate_interval(
    errors: ArrayLike, reference: ArrayLike, groups: Sequence[str], *, seed: int, samples: int = SAMPLES
) -> Interval:
    """The pooled rate and its percentile interval.

    ``errors``, ``reference`` and ``groups`` are ``(utterances,)``: errors, reference tokens and group of each. Raises
    :class:`MetricError` for lengths that differ, counts that are negative or not finite, or no samples.
    """
    columns = _columns([errors, reference], groups)
    totals = _resampled_totals(columns, groups, seed, samples)
    total_errors, total_reference = columns.sum(axis=0)
    rate = _ratio(total_errors, total_reference)
    return Interval(rate, *_bounds(totals[:, 0], totals[:, 1]), int(total_errors), int(total_reference))


def paired_difference(
    errors_a: ArrayLike,
    errors_b: ArrayLike,
    reference: ArrayLike,
    groups: Sequence[str],
    *,
    seed: int,
    samples: int = SAMPLES,
) -> PairedDifference:
    """Absolute and relative difference of the pooled rates of systems a and b, each resample drawn once for both.

    Arguments and errors as for :func:`rate_interval`.
    """
    columns = _columns([errors_a, errors_b, reference], groups)
    a, b, tokens = _resampled_totals(columns, groups, seed, samples).T
    total_a, total_b, total_reference = columns.sum(axis=0)
    difference, relative = _ratio(total_a - total_b, total_reference), _ratio(total_a - total_b, total_b)
    # Where b makes no error at all, there is nothing to be relative to.
    relative_bounds = (None, None) if relative is None else _bounds(a - b, b)
    low, high = _bounds(a - b, tokens)
    decided = low is not None and high is not None and (low > 0 or high < 0)
    return PairedDifference(difference, low, high, relative, *relative_bounds, excludes_zero=decided)


def macro_rate(errors: ArrayLike, reference: ArrayLike, groups: Sequence[str] | None = None) -> float | None:
    """Mean of the rates of the utterances, or with ``groups`` mean of the pooled rates of the groups.

    Not the pooled rate: each utterance (or group) weighs the same whatever its length. Those without reference tokens
    are left out; ``None`` if all are.
    """
    names = [str(index) for index in range(np.size(errors))] if groups is None else groups
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


def _resampled_totals(columns: Floats, groups: Sequence[str], seed: int, samples: int) -> Floats:
    """Column sums of each bootstrap resample, ``(samples, columns)``."""
    if samples < 1:
        raise MetricError(f"samples must be at least 1, got {samples}")
    generator = derive_generator(seed, "bootstrap", "stratified")
    totals = np.zeros((samples, columns.shape[1]))
    for rows in _rows_by_group(groups):
        member = columns[rows]
        # In canonical order, so that a permutation of the utterances draws the same resamples.
        totals += _draw_sums(member[np.lexsort(member.T)], samples, generator)
    return totals


def _draw_sums(member: Floats, draws: int, generator: np.random.Generator) -> Floats:
    """Sums over ``draws`` resamples of a group's utterances with replacement, ``(draws, columns)``.

    Drawing indices and summing equals weighting by multinomial counts, and is several times faster for large groups.
    """
    size = len(member)
    step = max(1, _CELLS_PER_CHUNK // size)
    drawn = [min(step, draws - start) for start in range(0, draws, step)]
    return np.concatenate([member[generator.integers(size, size=(count, size))].sum(axis=1) for count in drawn])


def _ratio(numerator: float, denominator: float) -> float | None:
    return float(numerator / denominator) if denominator > 0 else None


def _bounds(numerators: Floats, denominators: Floats) -> tuple[float | None, float | None]:
    """The interval of the ratios of resamples: 0/0 is left out, x/0 is infinite (and beyond every finite one)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = numerators / denominators
    ratios = ratios[~np.isnan(ratios)]
    if not len(ratios):
        return None, None
    # The inverse of the empirical distribution: always one of the values, so infinite ones do no harm.
    low, high = np.quantile(ratios, [TAIL, 1 - TAIL], method="inverted_cdf")
    return float(low) if np.isfinite(low) else None, float(high) if np.isfinite(high) else None
