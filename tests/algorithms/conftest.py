"""One round of an algorithm in numbers: what each device trained goes in, the shared tensors after the round come out."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from fl.aggregation.updates import DeviceUpdate, Tensors, moved
from fl.algorithms.base import Aggregator, Round
from fl.algorithms.table import ALGORITHMS

Trained = Mapping[str, tuple[float, Tensors]]  # by device: its training examples, and its tensors after local training


def as_updates(start: Tensors, devices: Trained, numbers: Mapping[str, Any] | None = None) -> tuple[DeviceUpdate, ...]:
    """The devices' updates in the order of their ids, as replies are read; a tensor that was not sent before is its own update."""
    return tuple(
        DeviceUpdate(
            device_id,
            {name: values - start[name] if name in start else values for name, values in devices[device_id][1].items()},
            {},
            {"examples": devices[device_id][0], "steps": 2.0, **(numbers or {}).get(device_id, {})},
        )
        for device_id in sorted(devices)
    )


def make_half(algorithm: str | Aggregator, **options: Any) -> Aggregator:
    """A fresh aggregator's half of an algorithm by its name, with options by their fields."""
    if isinstance(algorithm, Aggregator):
        return algorithm
    cls = ALGORITHMS[algorithm]
    return cls(**options).aggregator()


@pytest.fixture(scope="session")
def updates_of() -> Callable[..., tuple[DeviceUpdate, ...]]:
    """See :func:`as_updates`."""
    return as_updates


@pytest.fixture(scope="session")
def half() -> Callable[..., Aggregator]:
    """See :func:`make_half`."""
    return make_half


@pytest.fixture(scope="session")
def after_round() -> Callable[..., dict[str, np.ndarray]]:
    """``after_round(algorithm, start, devices)``: the shared tensors after one round of an algorithm, by name or in a state."""

    def run(
        algorithm: str | Aggregator,
        start: Tensors,
        devices: Trained,
        *,
        number: int = 1,
        participation: float = 1.0,
        numbers: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> dict[str, np.ndarray]:
        found = Round(number, start, as_updates(start, devices, numbers), participation)
        with np.errstate(over="ignore", invalid="ignore"):
            return moved(start, make_half(algorithm, **options).aggregate(found))

    return run
