"""Low-rank pairs of many devices as linear algebra: means of products, stacking, and what a mean loses.

Pure functions of :class:`fl.adapters.pairs.LowRankPair`, the update ``b @ a`` of one layer, ``a`` (rank, d_in) and ``b`` (d_out, rank);
devices may have different ranks. The scale alpha / rank is not applied: where devices differ in it, give ``b`` multiplied by
it. Weights are shares that sum to 1 (:func:`shares`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fl.adapters.pairs import LowRankPair, resized
from fl.aggregation import products
from fl.aggregation.blocks import weighted_sum

EXACT_RANK = 512  # above this sum of ranks products are formed in float32 block by block, the gap in SKETCH directions
SKETCH = 32  # directions; the norm of a layer's gap is then right within about 1 / sqrt(2 * SKETCH) = 13 %


def shares(weights: Sequence[float]) -> np.ndarray:
    """Weights that sum to 1, (devices,) float64."""
    values = np.asarray(weights, np.float64)
    values = values / values.max()  # so that a sum of huge ones stays finite
    return np.asarray(values / values.sum())


def many(pairs: Sequence[LowRankPair]) -> bool:
    """Whether the ranks sum up to so much that products are streamed; pairs of different ranks never are."""
    return sum(pair.rank for pair in pairs) > EXACT_RANK and len({pair.rank for pair in pairs}) == 1


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


def means(pairs: Sequence[LowRankPair], weights: np.ndarray) -> tuple[np.ndarray, LowRankPair]:
    """The weighted mean of the products (d_out, d_in) and :func:`mean_factors`, float64.

    In one pass over the devices; of many pairs in float32 (:mod:`fl.aggregation.products`).
    """
    if many(pairs):
        product, a, b = products.means(pairs, weights)
        return product, LowRankPair(a, b)
    return stacked(pairs, weights).product(), mean_factors(pairs, weights)


def mean_and_residual(pairs: Sequence[LowRankPair], weights: np.ndarray) -> tuple[LowRankPair, np.ndarray]:
    """:func:`mean_factors`, and mean(b a) - mean(b) mean(a), (d_out, d_in), what they lose (FedEx-LoRA, arXiv 2410.09432).

    Computed as mean((b - mean(b)) (a - mean(a))), which loses no digits when devices are close to each other; as the plain
    difference where the ranks sum up to much.
    """
    if many(pairs):
        product, mean = means(pairs, weights)
        return mean, product - mean.product()
    mean = mean_factors(pairs, weights)
    return mean, stacked([LowRankPair(pair.a - mean.a, pair.b - mean.b) for pair in pairs], weights).product()


def product_gap(pairs: Sequence[LowRankPair], weights: np.ndarray) -> tuple[float, float]:
    """Squared norms of what the mean of factors loses and of the mean product; the root of their ratio is the relative loss.

    Where the ranks sum up to much both are estimated from the same :data:`SKETCH` directions.
    """
    if many(pairs):
        return products.sketched_gap(pairs, weights, SKETCH)
    mean, lost = mean_and_residual(pairs, weights)
    return _square(lost), _square(lost + mean.product())


def _square(values: np.ndarray) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def product_norms(pairs: Sequence[LowRankPair]) -> np.ndarray:
    """The Frobenius norm of each product, (devices,), from the rank x rank Gram matrices; of many pairs in float32."""
    if many(pairs):
        return products.norms(pairs)
    wide = [LowRankPair(pair.a.astype(np.float64), pair.b.astype(np.float64)) for pair in pairs]
    squares = [((pair.b.T @ pair.b) * (pair.a @ pair.a.T)).sum() for pair in wide]
    return np.sqrt(np.maximum(squares, 0.0))


def heterogeneous_mean(pairs: Sequence[LowRankPair], rank: int, fallback: np.ndarray) -> LowRankPair:
    """HetLoRA's mean of factors at ``rank``: zero-padded, weighted by the norm of each device's product (arXiv 2401.06432).

    Directions that few devices have are not diluted by devices whose update is small. ``fallback`` are the weights where no
    device has moved from zero.
    """
    norms = product_norms(pairs)
    weights = shares(list(norms)) if norms.any() else fallback
    return mean_factors([resized(pair, rank) for pair in pairs], weights)
