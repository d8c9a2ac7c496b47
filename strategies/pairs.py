"""Low-rank pairs of many devices as linear algebra: means of products, stacking, truncation, padding, and what a mean loses.

Pure functions. A pair is the update ``b @ a`` of one layer, ``a`` (rank, d_in) and ``b`` (d_out, rank); devices may have different
ranks. The scale alpha / rank is not applied: where devices differ in it, give ``b`` multiplied by it. Weights are shares that
sum to 1 (:func:`shares`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse.linalg import svds

from fl.adapters.split import tensor_kind
from fl.errors import AggregationError

EXACT_RANK = 512  # above this sum of ranks products are taken in float32, and the gap in SKETCH directions
SKETCH = 32  # directions; the norm of a layer's gap is then right within about 1 / sqrt(2 * SKETCH) = 13 %
DENSE_SVD = 64  # a side of a matrix up to which the whole decomposition costs nothing
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
        """``b @ a`` (d_out, d_in), in float32 where the rank is large."""
        if self.rank <= EXACT_RANK:
            return np.asarray(self.b.astype(np.float64) @ self.a.astype(np.float64))
        left, right = (torch.from_numpy(np.ascontiguousarray(x, np.float32)) for x in (self.b, self.a))
        return np.asarray((left @ right).numpy())  # torch's product has all cores here, NumPy's not always


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


def stacked(pairs: Sequence[Pair], weights: np.ndarray) -> Pair:
    """The weighted mean of the products as one pair, whose rank is the sum of all (FLoRA, arXiv 2409.05976).

    ``a`` carries the weights. Exact, also for different ranks; in float32 where they sum up to much.
    """
    dtype = np.float64 if sum(pair.rank for pair in pairs) <= EXACT_RANK else np.float32
    a = np.concatenate([pair.a for pair in pairs], dtype=dtype)
    np.multiply(a, np.repeat(weights, [pair.rank for pair in pairs])[:, None], out=a, casting="same_kind")
    return Pair(a, np.concatenate([pair.b for pair in pairs], axis=1, dtype=dtype))


def mean_product(pairs: Sequence[Pair], weights: np.ndarray) -> np.ndarray:
    """The weighted mean of the products, (d_out, d_in)."""
    return stacked(pairs, weights).product()


def mean_factors(pairs: Sequence[Pair], weights: np.ndarray, whole: Pair | None = None) -> Pair:
    """The weighted mean of each factor, float64; devices must have one rank. ``whole`` is their :func:`stacked`, if at hand.

    Where the ranks sum up to much it is taken from the stack, in float32.
    """
    rank = pairs[0].rank
    if rank * len(pairs) <= EXACT_RANK:
        a, b = (
            sum(w * np.asarray(pair[i], np.float64) for pair, w in zip(pairs, weights, strict=True)) for i in (0, 1)
        )
        return Pair(np.asarray(a), np.asarray(b))
    whole = whole or stacked(pairs, weights)
    pick = np.tile(np.eye(rank, dtype=np.float32), (len(pairs), 1))  # adds up the devices; a is weighted already
    weighted = pick * np.repeat(weights, rank).astype(np.float32)[:, None]
    return Pair((pick.T @ whole.a).astype(np.float64), (whole.b @ weighted).astype(np.float64))


def residual(pairs: Sequence[Pair], weights: np.ndarray) -> np.ndarray:
    """mean(b a) - mean(b) mean(a), (d_out, d_in): what the mean of factors loses (FedEx-LoRA, arXiv 2410.09432).

    Computed as mean((b - mean(b)) (a - mean(a))), which loses no digits when devices are close to each other; as the plain
    difference where the ranks sum up to much.
    """
    if sum(pair.rank for pair in pairs) > EXACT_RANK:
        whole = stacked(pairs, weights)
        return np.asarray(whole.product() - mean_factors(pairs, weights, whole).product())
    mean = mean_factors(pairs, weights)
    return mean_product([Pair(pair.a - mean.a, pair.b - mean.b) for pair in pairs], weights)


def product_gap(pairs: Sequence[Pair], weights: np.ndarray) -> tuple[float, float]:
    """Squared norms of :func:`residual` and of the mean product: their ratio's root says what averaging factors loses.

    Above a sum of ranks of :data:`EXACT_RANK` both are estimated from the same :data:`SKETCH` directions.
    """
    if sum(pair.rank for pair in pairs) <= EXACT_RANK:
        lost, mean = residual(pairs, weights), mean_factors(pairs, weights)
        return _square(lost), _square(lost + mean.product())
    # The same signs each time: a diagnostic must not differ between two looks at the same replies.
    signs = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), (SKETCH, pairs[0].b.shape[0]))
    rank, count = pairs[0].rank, len(pairs)
    rows = np.stack([pair.a for pair in pairs], dtype=np.float32).reshape(count * rank, -1)
    left = signs @ np.stack([pair.b for pair in pairs], dtype=np.float32)  # (devices, SKETCH, rank)
    left *= weights.astype(np.float32)[:, None, None]
    whole = (left.transpose(1, 0, 2).reshape(SKETCH, -1) @ rows).astype(np.float64)
    pick = np.repeat(weights, rank).astype(np.float32)[:, None] * np.tile(np.eye(rank, dtype=np.float32), (count, 1))
    mean = left.sum(axis=0, dtype=np.float64) @ (pick.T @ rows)
    return _square(whole - mean) / SKETCH, _square(whole) / SKETCH


def _square(values: np.ndarray) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def truncated(pair: Pair, rank: int, product: np.ndarray | None = None) -> Pair:
    """The best approximation of ``pair`` of at most ``rank`` (Eckart & Young 1936): ``a`` has orthonormal rows, ``b`` the values.

    Where ``pair`` itself has a smaller rank the result has that one. ``product`` is that of ``pair``, if at hand. Raises
    :class:`AggregationError` for a product that is not finite.
    """
    d_out, d_in = pair.b.shape[0], pair.a.shape[1]
    if pair.rank < min(d_out, d_in):  # decompose the small square between two orthonormal bases
        left, small_b = np.linalg.qr(pair.b.astype(np.float64))
        right, small_a = np.linalg.qr(pair.a.T.astype(np.float64))
        u, values, vt = _leading(_finite(small_b @ small_a.T), rank)
        return Pair(vt @ right.T, (left @ u) * values)
    product = pair.product() if product is None else product
    u, values, vt = _leading(_finite(product.astype(np.float64)), rank)
    return Pair(vt, u * values)


def _finite(product: np.ndarray) -> np.ndarray:
    if not np.isfinite(product).all():
        raise AggregationError(
            "a product of the devices' factors is not finite: their updates are too large; lower the learning rates, or "
            "choose a robust strategy"
        )
    return product


def _leading(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ``rank`` largest singular values with their vectors, descending."""
    if min(matrix.shape) <= max(DENSE_SVD, 2 * rank) or not matrix.any():
        u, values, vt = np.linalg.svd(matrix, full_matrices=False)
        return u[:, :rank], values[:rank], vt[:rank]
    start = np.random.default_rng(0).standard_normal(min(matrix.shape))  # else SciPy draws one of its own each time
    u, values, vt = svds(matrix, k=rank, v0=start)
    return u[:, ::-1], values[::-1], vt[::-1]


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
    """The Frobenius norm of each product, (devices,), from the rank x rank Gram matrices: tr(b^T b a a^T)."""
    same = len({(pair.a.shape, pair.b.shape) for pair in pairs}) == 1
    groups = [pairs] if same else [[pair] for pair in pairs]
    norms = []
    for group in groups:
        a, b = (np.stack([pair[i] for pair in group]) for i in (0, 1))
        if len(group) * group[0].rank <= EXACT_RANK:
            a, b = a.astype(np.float64), b.astype(np.float64)
        grams = (b.transpose(0, 2, 1) @ b) * (a @ a.transpose(0, 2, 1))
        norms.append(np.sqrt(np.maximum(grams.sum(axis=(1, 2), dtype=np.float64), 0.0)))
    return np.concatenate(norms)


def heterogeneous_mean(pairs: Sequence[Pair], rank: int, fallback: np.ndarray) -> Pair:
    """HetLoRA's mean of factors at ``rank``: zero-padded, weighted by the norm of each device's product (arXiv 2401.06432).

    Directions that few devices have are not diluted by devices whose update is small. ``fallback`` are the weights where no
    device has moved from zero.
    """
    norms = product_norms(pairs)
    weights = shares(list(norms)) if norms.any() else fallback
    return mean_factors([resized(pair, rank) for pair in pairs], weights)
