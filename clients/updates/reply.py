"""A node's answer for many devices at once: their numbers as columns, their tensors stacked or summed.

A record for each device would cost more than the devices' own work: 144 tensors of 1,000 devices are 144,000 small arrays to
serialize and check, and 144 large ones when stacked.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from fl.metrics import Counts
from fl.protocol.guard import LOSS
from fl.protocol.node import COARSE, FULL
from fl.protocol.reply import ReplySchema
from fl.protocol.wire import COUNTS, DEVICES, IDS, SUM, TOTALS, UPDATES, WITHIN, device_key, flat_counts

STEPS = 20  # of a coarse error rate


@dataclass(frozen=True)
class DeviceResult:
    """What one device did: its numbers, its counts by metric, and the shared tensors that it has to send: trained, or their update."""

    device_id: str
    numbers: Mapping[str, int | float]
    metrics: Mapping[str, Counts] = field(default_factory=dict)
    shared: Mapping[str, Tensor] = field(default_factory=dict)
    within: bool | None = None  # with adaptive clipping where sums are formed: whether its norm is within the bound


@dataclass(frozen=True)
class DeviceFailure:
    """A device that could not do what it was asked. The reason is for the log of its own machine."""

    device_id: str
    error: Exception


def said(result: DeviceResult, detail: str, main: str) -> DeviceResult:
    """What a device says of its errors. ``coarse``: the rate of the ``main`` metric in steps of a twentieth, as if of 20 words."""
    if detail == FULL:
        return result
    rate = result.metrics.get(main, Counts()).rate
    metrics = {main: Counts(round(STEPS * rate), reference=STEPS)} if detail == COARSE and rate is not None else {}
    return replace(result, numbers={n: v for n, v in result.numbers.items() if n != LOSS}, metrics=metrics)


class ReplyWriter:
    """Collects the results of up to ``capacity`` devices into one reply of ``schema``; tensors are copied, nothing is kept of a result.

    With ``edge`` the updates are summed in float64 with the devices' weights, in the order in which they come.
    """

    def __init__(self, capacity: int, schema: ReplySchema | None = None) -> None:
        self._capacity = capacity
        self._schema = schema or ReplySchema()
        self._edge = self._schema.edge
        self._within: int | None = None
        self._ids: list[str] = []
        self._columns: dict[str, list[int | float]] = {}
        self._tensors: dict[str, np.ndarray] = {}  # stacks with room for all devices, or sums
        self._weight = 0.0
        self._alone: dict[str, dict[str, int | float]] = {}

    def add(self, result: DeviceResult | DeviceFailure) -> None:
        """Add one device."""
        if isinstance(result, DeviceFailure):
            self._alone[result.device_id] = {"failed": 1}
            return
        numbers = flat_counts(result.metrics, result.numbers)
        if self._ids and (numbers.keys() != self._columns.keys() or result.shared.keys() != self._tensors.keys()):
            # Only an evaluation has such devices: one without examples has no counts.
            assert not result.shared, f"{result.device_id} has other numbers or tensors than the devices before it"
            self._alone[result.device_id] = numbers
            return
        weight = float(numbers.get("examples", 0))
        if self._schema.exchange is not None:
            weight = self._schema.exchange.weigh(weight)
        for name, tensor in result.shared.items():
            self._put(name, tensor.detach().cpu().numpy(), weight)
        for name, value in numbers.items():
            self._columns.setdefault(name, []).append(value)
        self._weight += weight
        if result.within is not None:
            self._within = (self._within or 0) + int(result.within)
        self._ids.append(result.device_id)

    def _put(self, name: str, values: np.ndarray, weight: float) -> None:
        if self._edge:
            total = self._tensors.setdefault(name, np.zeros(values.shape, np.float64))
            total += np.multiply(values, weight, dtype=np.float64)
            return
        if name not in self._tensors:
            self._tensors[name] = np.empty((self._capacity, *values.shape), values.dtype)
        self._tensors[name][len(self._ids)] = values

    def content(self) -> RecordDict:
        """The reply."""
        reply = RecordDict()
        if self._ids:
            reply[DEVICES] = ConfigRecord({IDS: list(self._ids)})
            reply[COUNTS] = MetricRecord({name: _column(values) for name, values in self._columns.items()})
        if self._tensors and self._edge:
            reply[SUM] = _arrays(self._tensors)
            reply[TOTALS] = MetricRecord({"weight": float(self._weight), "devices": len(self._ids)})
            if self._within is not None:
                reply.metric_records[TOTALS][WITHIN] = self._within
        elif self._tensors:
            reply[self._schema.arrays(len(self._ids))[0] or UPDATES] = _arrays(
                {name: stack[: len(self._ids)] for name, stack in self._tensors.items()}
            )
        for device_id, numbers in self._alone.items():
            reply[device_key(COUNTS, device_id)] = MetricRecord(dict(numbers))
        return reply


def _arrays(values: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(values[name]) for name in sorted(values)})


def _column(values: list[int | float]) -> list[int] | list[float]:
    """Values of one type, as a record's list must have."""
    if all(isinstance(value, int) for value in values):
        return [int(value) for value in values]
    return [float(value) for value in values]
