"""Low-rank pairs of many devices as linear algebra: means of products, stacking, and what a mean loses.

Pure functions of :class:`fl.adapters.pairs.LowRankPair`, the update ``b @ a`` of one layer, ``a`` (rank, d_in) and ``b`` (d_out, rank).
Devices' pairs are given as ``moves``, what each added to the pair ``start`` that all began with. The scale alpha / rank is not applied:
where devices differ in it, give ``b`` multiplied by it. Weights are shares that sum to 1 (:func:`shares`).

Sums over many devices (:func:`many`) are streamed, a block of devices at a time, whatever their number. A product over a block is
one float32 matrix product, blocks are added in float64: with u = 2^-24 and k devices in a block an element of a result is off by at
most (k rank + 2) u times the sum of the absolute terms it is made of.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fl.adapters.pairs import LowRankPair
from fl.aggregation.updates import places, side_by_side, weighted_sum

EXACT_RANK = 512  # above this sum of ranks products are formed in float32 block by block, the gap in SKETCH directions
SKETCH = 32  # directions; the norm of a layer's gap is then right within about 1 / sqrt(2 * SKETCH) = 13 %
INNER = 512  # devices times rank of a block: long enough for the speed of a matrix product, short enough for the cache


def shares(weights: Sequence[float]) -> np.ndarray:
    """Weights that sum to 1, (devices,) float64."""
    values = np.asarray(weights, np.float64)
    values = values / values.max()  # so that a sum of huge ones stays finite
    return np.asarray(values / values.sum())


def many(pairs: Sequence[LowRankPair]) -> bool:
    """Whether the ranks sum up to so much that products are streamed; pairs of different ranks never are."""
    return sum(pair.rank for pair in pairs) > EXACT_RANK and len({pair.rank for pair in pairs}) == 1


def plus(start: LowRankPair, move: LowRankPair) -> LowRankPair:
    """The pair after a move, in the wider type of the two; what does not fit becomes infinite."""
    with np.errstate(over="ignore"):
        return LowRankPair(start.a + move.a, start.b + move.b)


def stacked(pairs: Sequence[LowRankPair], weights: np.ndarray) -> LowRankPair:
    """The weighted mean of the products as one pair, whose rank is the sum of all (FLoRA, arXiv 2409.05976), float64.

    ``a`` carries the weights. Exact, also for different ranks.
    """
    a = np.concatenate([pair.a for pair in pairs], dtype=np.float64)
    a *= np.repeat(weights, [pair.rank for pair in pairs])[:, None]
    return LowRankPair(a, np.concatenate([pair.b for pair in pairs], axis=1, dtype=np.float64))


def mean_factors(pairs: Sequence[LowRankPair], weights: np.ndarray) -> LowRankPair:
    """The weighted mean of each factor, float64; devices must have one rank."""
    return LowRankPair(*(weighted_sum([pair[i] for pair in pairs], weights) for i in (0, 1)))


def mean_and_residual(moves: Sequence[LowRankPair], weights: np.ndarray) -> tuple[LowRankPair, np.ndarray]:
    """:func:`mean_factors`, and mean(b a) - mean(b) mean(a), (d_out, d_in), what they lose (FedEx-LoRA, arXiv 2410.09432), float64.

    A residual is the same whatever all began with, so moves do: with less rounding than the pairs that they lead to. Computed as
    mean((b - mean(b)) (a - mean(a))), which loses no digits when devices are close to each other; as the plain difference where
    the ranks sum up to much.
    """
    if many(moves):
        return _streamed_residual(moves, weights)
    mean = mean_factors(moves, weights)
    return mean, stacked([LowRankPair(move.a - mean.a, move.b - mean.b) for move in moves], weights).product()


def product_gap(moves: Sequence[LowRankPair], weights: np.ndarray, start: LowRankPair) -> tuple[float, float]:
    """Squared norms of what the mean of factors loses and of the mean product; the root of their ratio is the relative loss.

    Where the ranks sum up to much both are estimated from the same :data:`SKETCH` directions.
    """
    if many(moves):
        return _sketched_gap(moves, weights, start)
    mean, lost = mean_and_residual(moves, weights)
    return _square(lost), _square(lost + plus(start, mean).product())


def _square(values: np.ndarray) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def product_norms(moves: Sequence[LowRankPair], start: LowRankPair) -> np.ndarray:
    """The Frobenius norm of each device's product, (devices,) float64, as tr(b^T b a a^T); of many pairs in float32.

    Devices must have one rank.
    """
    dtype = np.float32 if many(moves) else np.float64
    found = []
    for place in _places(moves):
        a, b = (side_by_side([move[i] for move in moves[place]], dtype) for i in (0, 1))
        a += start.a
        b += start.b
        grams = (b.transpose(0, 2, 1) @ b) * (a @ a.transpose(0, 2, 1))
        squares = grams.sum(axis=(1, 2), dtype=np.float64)
        found.append(np.sqrt(np.maximum(squares, 0.0)))
    return np.concatenate(found)


def _places(pairs: Sequence[LowRankPair]) -> Iterator[slice]:
    """The devices in their order, as many as sum up to :data:`INNER`."""
    return places(len(pairs), INNER // max(1, pairs[0].rank))


class _Block(NamedTuple):
    """Some devices' factors in float32; ``a`` carries the weights."""

    rows: np.ndarray  # all a below each other, (devices * rank, d_in)
    columns: np.ndarray  # all b beside each other, (d_out, devices * rank)
    mean: LowRankPair  # their part of the mean of factors


def _blocks(pairs: Sequence[LowRankPair], weights: np.ndarray) -> Iterator[_Block]:
    for place in _places(pairs):
        a, b = (side_by_side([pair[i] for pair in pairs[place]], np.float32) for i in (0, 1))
        parts = weights[place].astype(np.float32)
        a *= parts[:, None, None]
        mean = LowRankPair(a.sum(axis=0), (parts @ b.reshape(len(b), -1)).reshape(b.shape[1:]))
        pieces = b.view(f"V{b.itemsize * b.shape[2]}")[..., 0]  # a row of one b is copied as one piece
        yield _Block(a.reshape(-1, a.shape[2]), pieces.T.copy().view(np.float32), mean)


def _streamed_residual(moves: Sequence[LowRankPair], weights: np.ndarray) -> tuple[LowRankPair, np.ndarray]:
    mean = LowRankPair(*(np.zeros(factor.shape) for factor in moves[0]))
    product = np.zeros((len(mean.b), mean.a.shape[1]))
    for block in _blocks(moves, weights):
        product += block.columns @ block.rows
        mean = plus(mean, block.mean)
    return mean, product - mean.product()


def _sketched_gap(moves: Sequence[LowRankPair], weights: np.ndarray, start: LowRankPair) -> tuple[float, float]:
    """Squared norms of mean(b a) - mean(b) mean(a) and of mean(b a), from :data:`SKETCH` random sums of their rows.

    With signs of equal chance the squared norm of the sums is an unbiased estimate of the matrix's, with a relative standard error of at
    most sqrt(2 / SKETCH) (Achlioptas 2003). Both matrices are seen through the same sums, drawn from a fixed seed: a diagnostic of the
    same replies must be deterministic.
    """
    signs = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), (SKETCH, len(start.b))) / np.sqrt(SKETCH)
    signs = signs.astype(np.float32)
    seen = np.zeros((SKETCH, start.a.shape[1]))
    mean = LowRankPair(*(np.zeros(factor.shape) for factor in moves[0]))
    for block in _blocks(moves, weights):
        seen += (signs @ block.columns) @ block.rows
        mean = plus(mean, block.mean)
    lost = seen - (signs @ mean.b) @ mean.a
    after = plus(start, mean)
    return _square(lost), _square(lost + (signs @ after.b) @ after.a)
