"""One device's update as the aggregator sees it, and many devices' rows of one tensor, a block of devices at a time.

A block fits a core's cache, and memory does not grow with the number of devices.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from math import inf
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from fl.core.machine import available_cores
from fl.metrics import Counts

CACHE_NUMBERS = 65536  # in a block: 512 KiB of float64, half of a core's second-level cache

Tensors = Mapping[str, np.ndarray]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class DeviceUpdate:
    """One device's sound answer: its update (None where it sent none), its counts by metric, and plain numbers.

    The update is the difference between the shared tensors after local training and those that the device was sent. With edge
    aggregation the mean over a node's devices takes the same form, under the name of the node. ``most`` are the examples that count,
    however many it says.
    """

    device_id: str
    tensors: Tensors | None
    metrics: Mapping[str, Counts] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    most: float = inf

    @property
    def examples(self) -> float:
        """Number of training examples that count: the weight of this device in an average."""
        return min(self.numbers.get("examples", 0.0), self.most)


Updates = Sequence[DeviceUpdate]


def tensor_names(updates: Updates) -> tuple[str, ...]:
    """The names of the shared tensors, the same for all sound updates."""
    return tuple(updates[0].tensors or {})


def rows_of(updates: Updates, name: str) -> list[np.ndarray]:
    """One tensor of every device, in the order of the updates."""
    return [update.tensors[name] for update in updates if update.tensors is not None]


def moved(start: Tensors, update: Tensors) -> dict[str, np.ndarray]:
    """``start`` plus ``update`` as float32, as messages carry it; a value that does not fit becomes infinite."""
    with np.errstate(over="ignore"):
        return {
            n: np.add(x, update[n], dtype=np.float64).astype(np.float32) if n in update else x for n, x in start.items()
        }


def over_cores(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """``function`` of every item, in as many threads as there are cores; the result does not depend on their number.

    A product takes one thread meanwhile: BLAS with threads of its own in each of ours has more of them than cores, and they spin.
    """
    with _blas().limit(limits=1, user_api="blas"), ThreadPoolExecutor(available_cores()) as pool:
        return list(pool.map(function, items))  # copying, BLAS and LAPACK hold no Python lock


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()  # looks through all loaded libraries


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
