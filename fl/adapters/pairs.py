"""One layer's low-rank pair as linear algebra: its product, its best approximation of a rank, its basis, its padding.

Pure functions. A pair is the update ``b @ a`` of one layer, ``a`` (rank, d_in) and ``b`` (d_out, rank). Many pairs together are
the subject of :mod:`fl.aggregation.pairs`.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fl.adapters.split import tensor_kind
from fl.core.errors import AggregationError

ILL_CONDITIONED = 1e4
DENSE_SVD = 64  # a side of a matrix up to which the whole decomposition costs nothing
SPARE = 8  # directions beside the wanted ones: they take up what lies close behind
PASSES = 8  # of the iteration; a matrix whose values fall off too slowly for them goes to Lanczos' method
TOLERANCE = 1e-10  # of the largest value

Triplets = tuple[np.ndarray, np.ndarray, np.ndarray]


class LowRankPair(NamedTuple):
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
    found: dict[str, tuple[str, str]] = {}
    for layer, names in kinds.items():
        if {"A", "B"} <= names.keys():
            a, b = shapes[names["A"]], shapes[names["B"]]
            if len(a) == len(b) == 2 and b[1] == a[0]:
                found[layer] = names["A"], names["B"]
    return found


def truncated(pair: LowRankPair, rank: int) -> LowRankPair:
    """The best approximation of ``pair`` of at most ``rank`` (Eckart & Young 1936): ``a`` has orthonormal rows, ``b`` the values.

    Where ``pair`` itself has a smaller rank the result has that one. Raises :class:`AggregationError` for a product that is not
    finite.
    """
    if pair.rank >= min(pair.b.shape[0], pair.a.shape[1]):
        return best_of(pair.product(), rank)
    left, small_b = np.linalg.qr(pair.b.astype(np.float64))
    right, small_a = np.linalg.qr(pair.a.T.astype(np.float64))
    small = best_of(small_b @ small_a.T, rank)  # of the small square between two orthonormal bases
    return LowRankPair(small.a @ right.T, left @ small.b)


def best_of(product: np.ndarray, rank: int) -> LowRankPair:
    """:func:`truncated` of a product (d_out, d_in) itself."""
    if not np.isfinite(product).all():
        raise AggregationError(
            "a product of the devices' factors is not finite: their updates are too large; lower the learning rates, or "
            "choose a robust algorithm"
        )
    u, values, vt = leading(product, rank)
    return LowRankPair(vt, u * values)


def leading(matrix: np.ndarray, rank: int) -> Triplets:
    """The ``rank`` largest singular values, descending, with u (d_out, rank) and vt (rank, d_in); float64.

    A small matrix is decomposed whole. In a larger one a random subspace is iterated (:func:`iterated`), and where that does not
    settle, Lanczos' method takes over, which does not need a gap behind the last value.
    """
    if min(matrix.shape) <= max(DENSE_SVD, 2 * rank + SPARE) or not matrix.any():
        u, values, vt = np.linalg.svd(matrix, full_matrices=False)
        return u[:, :rank], values[:rank], vt[:rank]
    found = iterated(matrix, rank)
    if found is not None:
        return found
    start = np.random.default_rng(0).standard_normal(min(matrix.shape))  # else SciPy draws one of its own each time
    from scipy.sparse.linalg import svds  # a third of what the command line would import to print its help

    u, values, vt = svds(matrix, k=rank, v0=start)
    return u[:, ::-1], values[::-1], vt[::-1]


def iterated(matrix: np.ndarray, rank: int) -> Triplets | None:
    """Subspace iteration from a random start (Halko, Martinsson & Tropp 2011, algorithm 4.4), None if it does not settle.

    What it gives are exact triplets of a matrix that differs from ``matrix`` by at most :data:`TOLERANCE` times its largest
    singular value: the left residual is zero by construction, and the right one is what is held against the tolerance.
    Each pass makes the error smaller by the square of value[rank + SPARE] / value[rank - 1].
    """
    start = np.random.default_rng(0).standard_normal((matrix.shape[1], rank + SPARE))
    seen = matrix @ start
    for _ in range(PASSES):
        left, _ = np.linalg.qr(seen)
        right, small = np.linalg.qr(matrix.T @ left)
        u, values, vt = np.linalg.svd(small.T)
        right, left = right @ vt.T, left @ u
        seen = matrix @ right
        residual = seen[:, :rank] - left[:, :rank] * values[:rank]
        if np.linalg.norm(residual) <= TOLERANCE * values[0]:
            return left[:, :rank], values[:rank], right[:, :rank].T
    return None


def aligned(pair: LowRankPair, reference: np.ndarray) -> LowRankPair:
    """The same product in the basis that comes closest to ``reference`` (rank, d_in), e.g. the mean of the devices' ``a``.

    A decomposition may turn and swap the rank's coordinates in any way, but private gates act on them, and so does a
    server optimizer from round to round. ``pair.a`` must have orthonormal rows. If ``reference`` lies in their span, ``a``
    becomes ``reference`` itself; if it spans less, ``a`` is only turned towards it (orthogonal Procrustes).
    """
    turn = reference @ pair.a.T
    if np.linalg.cond(turn) < ILL_CONDITIONED:
        return LowRankPair(turn @ pair.a, np.linalg.solve(turn.T, pair.b.T).T)
    u, _, vt = np.linalg.svd(turn)
    turn = u @ vt
    return LowRankPair(turn @ pair.a, pair.b @ turn.T)


def turned(pair: LowRankPair, reference: np.ndarray) -> LowRankPair:
    """The same product in the orthogonal basis closest to ``reference`` (rank, d_in), with rows as long as its are on average.

    ``pair.a`` must have orthonormal rows. Unlike with :func:`aligned` all directions keep one size, however little of them
    ``reference`` has: a local phase that goes on from here sees no row that is tiny beside a huge column.
    """
    u, _, vt = np.linalg.svd(reference @ pair.a.T)
    turn = u @ vt
    size = float(np.linalg.norm(reference)) / pair.rank**0.5 or 1.0
    return LowRankPair(size * (turn @ pair.a), pair.b @ turn.T / size)


def resized(pair: LowRankPair, rank: int) -> LowRankPair:
    """``pair`` at another rank: filled up with zeros, or cut to its first directions (HetLoRA, arXiv 2401.06432).

    Filling up changes nothing of the product. Cutting keeps the most only if the directions are in order of their weight.
    """
    a, b = pair.a[:rank], pair.b[:, :rank]
    missing = rank - a.shape[0]
    return (
        LowRankPair(np.pad(a, ((0, missing), (0, 0))), np.pad(b, ((0, 0), (0, missing))))
        if missing
        else LowRankPair(a, b)
    )
