"""All devices' values of one tensor side by side, for rules that look at coordinates or distances."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fl.aggregation.updates import Updates, blocks, over_cores, rows_of, side_by_side, tensor_names

FAR = 1e6  # times the median norm of the updates
BLOCK = 256  # coordinates that are sorted together: with 1,000 devices they stay in the cache
LINE = 16  # numbers in a cache line: rows further apart than a power of two do not push each other out of the cache


def matrix_of(updates: Updates, name: str, dtype: type[np.floating[Any]]) -> np.ndarray:
    """One tensor of all devices, (devices, numbers)."""
    return side_by_side(rows_of(updates, name), dtype).reshape(len(updates), -1)


class BoundedUpdates:
    """Each device's update, (devices, numbers) a tensor, with rows of bounded length.

    ``norms`` (devices,) are over all tensors. A row that is :data:`FAR` times longer than the median is shortened to that by
    its ``factor``: it is as far away for every purpose, and no longer drowns the digits of the others. A row whose norm is not
    finite has factor 0 and is zero. ``keep`` holds all in float32 for rules that look at them again and again.
    """

    def __init__(self, updates: Updates, *, keep: bool) -> None:
        names = tensor_names(updates)
        kept = over_cores(lambda name: matrix_of(updates, name, np.float32), names) if keep else []
        lengths = over_cores(_squared_norms, kept) if keep else over_cores(lambda n: _lengths(updates, n), names)
        self.updates = updates
        self.norms = np.sqrt(np.sum(lengths, axis=0))
        finite = np.isfinite(self.norms)
        limit = FAR * float(np.median(self.norms[finite])) if finite.any() else 0.0
        self.factors = np.minimum(1.0, limit / np.maximum(self.norms, limit)) if limit else finite * 1.0
        self._kept = [self._shortened(matrix) for matrix in kept] if keep else None  # in place

    def matrices(self, dtype: type[np.floating[Any]]) -> Iterator[np.ndarray]:
        """The updates of every tensor, one after the other; from memory where they were kept."""
        if self._kept is not None:
            yield from self._kept
            return
        for name in tensor_names(self.updates):
            yield self._shortened(matrix_of(self.updates, name, dtype))

    def _shortened(self, matrix: np.ndarray) -> np.ndarray:
        for row in np.flatnonzero(self.factors < 1):
            matrix[row] = matrix[row] * self.factors[row] if self.factors[row] else 0.0
        return matrix


def _lengths(updates: Updates, name: str) -> np.ndarray:
    """The squared norm of one tensor's update for each device, (devices,), a block at a time."""
    found = np.empty(len(updates))
    for place, block in blocks(rows_of(updates, name), np.float32):
        found[place] = _squared_norms(block)
    return found


def _squared_norms(matrix: np.ndarray) -> np.ndarray:
    """Of each row, (devices,) float64; in float32 where that can hold it."""
    with np.errstate(over="ignore"):
        found = np.matmul(matrix[:, None, :], matrix[:, :, None])[:, 0, 0].astype(np.float64)
    for row in np.flatnonzero(~np.isfinite(found)):
        found[row] = np.square(matrix[row], dtype=np.float64).sum()
    return np.asarray(found)


def by_coordinate(updates: Updates, rule: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
    """``rule`` on the values of each coordinate: it gets (coordinates, devices) with ascending rows, and returns one number a row.

    Tensors are shared out to as many threads as there are cores; which one has which changes nothing.
    """

    def one(name: str) -> np.ndarray:
        matrix = matrix_of(updates, name, np.float32)
        result = np.empty(matrix.shape[1], np.float32)
        apart = np.empty((len(matrix), BLOCK + LINE), np.float32)
        for start in range(0, matrix.shape[1], BLOCK):
            part = matrix[:, start : start + BLOCK]
            # turned from here in a third of the time, rows being no power of two apart
            apart[:, : part.shape[1]] = part
            columns = np.ascontiguousarray(apart[:, : part.shape[1]].T)
            columns.sort(axis=1)
            result[start : start + BLOCK] = rule(columns)
        return result.reshape(rows_of(updates[:1], name)[0].shape)

    names = tensor_names(updates)
    return dict(zip(names, over_cores(one, names), strict=True))
