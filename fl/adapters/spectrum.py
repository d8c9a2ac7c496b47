"""The largest singular values of a matrix with their vectors, by the cheapest way that is exact."""

from __future__ import annotations

import numpy as np
from scipy.sparse.linalg import svds

DENSE_SVD = 64  # a side of a matrix up to which the whole decomposition costs nothing
SPARE = 8  # directions beside the wanted ones: they take up what lies close behind
PASSES = 8  # of the iteration; a matrix whose values fall off too slowly for them goes to Lanczos' method
TOLERANCE = 1e-10  # of the largest value

Triplets = tuple[np.ndarray, np.ndarray, np.ndarray]


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
