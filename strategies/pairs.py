"""Low-rank pairs of many devices as linear algebra: means of products, stacking, truncation, padding, and what a mean loses.

Pure functions. A pair is the update ``b @ a`` of one layer, ``a`` (rank, d_in) and ``b`` (d_out, rank); devices may have different
ranks. The scale alpha / rank is not applied: where devices differ in it, give ``b`` multiplied by it. Weights are shares that
sum to 1 (:func:`shares`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fl.adapters.split import tensor_kind
from fl.errors import AggregationError
from strategies import products
from strategies.blocks import weighted_sum
from strategies.spectrum import leading

EXACT_RANK = (
    512  # above this sum of ranks products are taken in float32 block by block, and the gap in SKETCH directions
)
SKETCH = 32  # directions; the norm of a layer's gap is then right within about 1 / sqrt(2 * SKETCH) = 13 %
ILL_CONDITIONED = 1e4


class Pair(NamedTuple):
    """The factors of one layer: the update is ``b @ a``."""

    a: np.ndarray
    b: np.ndarray

    @property
    def rank(self) -> int:
        """Rows of ``a`` and columns of ``b``."""
        return int(self.a.shape[0])

    def product(self) -> np.ndarray:
        """``b @ a`` (d_out, d_in) float64."""
        return np.asarray(self.b.astype(np.float64) @ self.a.astype(np.float64))


def pair_names(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[str, str]]:
    """The tensor names of ``a`` and ``b`` by layer, in the order of layers; a layer of which only one is there is left out."""
    kinds: dict[str, dict[str, str]] = {}
    for name in sorted(shapes):
        kinds.setdefault(name.rpartition(".")[0], {})[tensor_kind(name)] = name
    found = {layer: (names["A"], names["B"]) for layer, names in kinds.items() if {"A", "B"} <= names.keys()}
    return {layer: pair for layer, pair in found.items() if _fit(*(shapes[name] for name in pair))}


def _fit(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return len(a) == len(b) == 2 and b[1] == a[0]


def shares(weights: Sequence[float]) -> np.ndarray:
    """Weights that sum to 1, (devices,) float64."""
    values = np.asarray(weights, np.float64)
    values = values / values.max()  # so that a sum of huge ones stays finite
    return np.asarray(values / values.sum())


def many(pairs: Sequence[Pair]) -> bool:
    """Whether the ranks sum up to so much that products are streamed; pairs of different ranks never are."""
    return sum(pair.rank for pair in pairs) > EXACT_RANK and len({pair.rank for pair in pairs}) == 1


def stacked(pairs: Sequence[Pair], weights: np.ndarray) -> Pair:
    """The weighted mean of the products as one pair, whose rank is the sum of all (FLoRA, arXiv 2409.05976), float64.

    ``a`` carries the weights. Exact, also for different ranks.
    """
    a = np.concatenate([pair.a for pair in pairs], dtype=np.float64)
    a *= np.repeat(weights, [pair.rank for pair in pairs])[:, None]
    return Pair(a, np.concatenate([pair.b for pair in pairs], axis=1, dtype=np.float64))


def mean_product(pairs: Sequence[Pair], weights: np.ndarray) -> np.ndarray:
    """The weighted mean of the products, (d_out, d_in) float64."""
    return products.means(pairs, weights)[0] if many(pairs) else stacked(pairs, weights).product()


def mean_factors(pairs: Sequence[Pair], weights: np.ndarray) -> Pair:
    """The weighted mean of each factor, float64; devices must have one rank."""
    return Pair(*(weighted_sum([pair[i] for pair in pairs], weights) for i in (0, 1)))


def means(pairs: Sequence[Pair], weights: np.ndarray) -> tuple[np.ndarray, Pair]:
    """:func:`mean_product` and :func:`mean_factors` in one look; of many pairs in float32 (:mod:`strategies.products`)."""
    if many(pairs):
        product, a, b = products.means(pairs, weights)
        return product, Pair(a, b)
    return stacked(pairs, weights).product(), mean_factors(pairs, weights)


def mean_and_residual(pairs: Sequence[Pair], weights: np.ndarray) -> tuple[Pair, np.ndarray]:
    """:func:`mean_factors`, and mean(b a) - mean(b) mean(a), (d_out, d_in), what they lose (FedEx-LoRA, arXiv 2410.09432).

    Computed as mean((b - mean(b)) (a - mean(a))), which loses no digits when devices are close to each other; as the plain
    difference where the ranks sum up to much.
    """
    if many(pairs):
        product, mean = means(pairs, weights)
        return mean, product - mean.product()
    mean = mean_factors(pairs, weights)
    return mean, stacked([Pair(pair.a - mean.a, pair.b - mean.b) for pair in pairs], weights).product()


def residual(pairs: Sequence[Pair], weights: np.ndarray) -> np.ndarray:
    """The second of :func:`mean_and_residual`."""
    return mean_and_residual(pairs, weights)[1]


def product_gap(pairs: Sequence[Pair], weights: np.ndarray) -> tuple[float, float]:
    """Squared norms of :func:`residual` and of the mean product: their ratio's root says what averaging factors loses.

    Where the ranks sum up to much both are estimated from the same :data:`SKETCH` directions.
    """
    if many(pairs):
        return products.sketched_gap(pairs, weights, SKETCH)
    mean, lost = mean_and_residual(pairs, weights)
    return _square(lost), _square(lost + mean.product())


def _square(values: np.ndarray) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def truncated(pair: Pair, rank: int) -> Pair:
    """The best approximation of ``pair`` of at most ``rank`` (Eckart & Young 1936): ``a`` has orthonormal rows, ``b`` the values.

    Where ``pair`` itself has a smaller rank the result has that one. Raises :class:`AggregationError` for a product that is not
    finite.
    """
    if pair.rank >= min(pair.b.shape[0], pair.a.shape[1]):
        return best_of(pair.product(), rank)
    left, small_b = np.linalg.qr(pair.b.astype(np.float64))
    right, small_a = np.linalg.qr(pair.a.T.astype(np.float64))
    small = best_of(small_b @ small_a.T, rank)  # of the small square between two orthonormal bases
    return Pair(small.a @ right.T, left @ small.b)


def best_of(product: np.ndarray, rank: int) -> Pair:
    """:func:`truncated` of a product (d_out, d_in) itself."""
    if not np.isfinite(product).all():
        raise AggregationError(
            "a product of the devices' factors is not finite: their updates are too large; lower the learning rates, or "
            "choose a robust strategy"
        )
    u, values, vt = leading(product, rank)
    return Pair(vt, u * values)


def aligned(pair: Pair, reference: np.ndarray) -> Pair:
    """The same product in the basis that comes closest to ``reference`` (rank, d_in), e.g. the mean of the devices' ``a``.

    A decomposition may turn and swap the rank's coordinates in any way, but private gates act on them, and so does a
    server optimizer from round to round. ``pair.a`` must have orthonormal rows. If ``reference`` lies in their span, ``a``
    becomes ``reference`` itself; if it spans less, ``a`` is only turned towards it (orthogonal Procrustes).
    """
    turn = reference @ pair.a.T
    if np.linalg.cond(turn) < ILL_CONDITIONED:
        return Pair(turn @ pair.a, np.linalg.solve(turn.T, pair.b.T).T)
    u, _, vt = np.linalg.svd(turn)
    turn = u @ vt
    return Pair(turn @ pair.a, pair.b @ turn.T)


def resized(pair: Pair, rank: int) -> Pair:
    """``pair`` at another rank: filled up with zeros, or cut to its first directions (HetLoRA, arXiv 2401.06432).

    Filling up changes nothing of the product. Cutting keeps the most only if the directions are in order of their weight.
    """
    a, b = pair.a[:rank], pair.b[:, :rank]
    missing = rank - a.shape[0]
    return Pair(np.pad(a, ((0, missing), (0, 0))), np.pad(b, ((0, 0), (0, missing)))) if missing else Pair(a, b)


def product_norms(pairs: Sequence[Pair]) -> np.ndarray:
    """The Frobenius norm of each product, (devices,), from the rank x rank Gram matrices; of many pairs in float32."""
    if many(pairs):
        return products.norms(pairs)
    wide = [Pair(pair.a.astype(np.float64), pair.b.astype(np.float64)) for pair in pairs]
    squares = [((pair.b.T @ pair.b) * (pair.a @ pair.a.T)).sum() for pair in wide]
    return np.sqrt(np.maximum(squares, 0.0))


def heterogeneous_mean(pairs: Sequence[Pair], rank: int, fallback: np.ndarray) -> Pair:
    """HetLoRA's mean of factors at ``rank``: zero-padded, weighted by the norm of each device's product (arXiv 2401.06432).

    Directions that few devices have are not diluted by devices whose update is small. ``fallback`` are the weights where no
    device has moved from zero.
    """
    norms = product_norms(pairs)
    weights = shares(list(norms)) if norms.any() else fallback
    return mean_factors([resized(pair, rank) for pair in pairs], weights)
