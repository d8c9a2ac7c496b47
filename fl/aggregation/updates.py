"""One device's update as the aggregator sees it: what its tensors moved by, and what it says of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fl.metrics import Counts

Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class DeviceUpdate:
    """One device's sound answer: its update (None where it sent none), its counts by metric, and plain numbers.

    The update is the difference between the shared tensors after local training and those that the device was sent. With edge
    aggregation the mean over a node's devices takes the same form, under the name of the node.
    """

    device_id: str
    tensors: Tensors | None
    metrics: Mapping[str, Counts] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)

    @property
    def examples(self) -> float:
        """Number of training examples: the weight of this device in an average."""
        return self.numbers.get("examples", 0.0)


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
