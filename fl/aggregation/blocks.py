"""Many devices' rows of one tensor, a few devices at a time: a block fits a core's cache, and memory does not grow with devices."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

CACHE_NUMBERS = 65536  # in a block: 512 KiB of float64, half of a core's second-level cache

Item = TypeVar("Item")
Result = TypeVar("Result")


def over_cores(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """``function`` of every item, in as many threads as there are cores; the result does not depend on their number."""
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:  # copying, BLAS and LAPACK hold no Python lock
        return list(pool.map(function, items))


def side_by_side(rows: Sequence[np.ndarray], dtype: type[np.floating[Any]]) -> np.ndarray:
    """``rows`` of one shape as one new array with a leading dimension of devices."""
    if rows[0].ndim == 0:
        return np.stack(rows, dtype=dtype)
    return np.concatenate(rows, dtype=dtype).reshape(len(rows), *rows[0].shape)


def blocks(rows: Sequence[np.ndarray], dtype: type[np.floating[Any]]) -> Iterator[tuple[slice, np.ndarray]]:
    """``rows`` in blocks of :data:`CACHE_NUMBERS`: which devices, and their values (devices of the block, numbers)."""
    for place in places(len(rows), CACHE_NUMBERS // max(1, rows[0].size)):
        block = side_by_side(rows[place], dtype)
        yield place, block.reshape(len(block), -1)


def places(devices: int, count: int) -> Iterator[slice]:
    """All devices, ``count`` of them at a time, one at least."""
    for start in range(0, devices, max(1, count)):
        yield slice(start, min(start + max(1, count), devices))


def weighted_sum(rows: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """sum_i weights_i rows_i in float64, blocks in the order of ``rows``; ``weights`` (devices,) float64.

    Against adding one device after the other it differs by the order of additions within a block: at most
    devices * 2^-53 of sum_i |weights_i rows_i|.
    """
    total = np.zeros(rows[0].size)
    for place, block in blocks(rows, np.float64):
        total += weights[place] @ block
    return total.reshape(rows[0].shape)
