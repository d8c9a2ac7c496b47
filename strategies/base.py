"""Shared-subset FedAvg: the average of the shared tensors, weighted by training examples (McMahan et al. 2017, eq. 1).

An ordinary Flower ``Strategy``: other people's Flower apps can import it. The private part is not merely ignored here, it is
never asked for: messages carry the shared tensors' names, and replies with any other name are left out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fl.config import DEVICE, EDGE
from fl.errors import AggregationError
from fl.rng import derive_random
from fl.wire import FEDERATE, JOB, PERSONALIZE, SETTINGS_RECORD, SHARED, Job, add_counts, counts_record
from strategies.replies import DeviceReply, Replies, read_replies

log = logging.getLogger("idiolect.server")


@dataclass(frozen=True)
class Roster:
    """Which device lives on which node. ``examples`` is 0 for people who never train."""

    nodes: dict[str, int]
    examples: dict[str, int]

    @cached_property
    def training(self) -> tuple[str, ...]:
        """Devices that take part in training."""
        return tuple(d for d in sorted(self.nodes) if self.examples[d] > 0)

    @cached_property
    def new_people(self) -> tuple[str, ...]:
        """Devices that only test."""
        return tuple(d for d in sorted(self.nodes) if self.examples[d] <= 0)


@dataclass
class SharedFedAvg(Strategy):
    """FedAvg of the shared tensors over named devices.

    ``roster`` places devices on nodes, ``job`` is the template of the messages (arm, phase, split), ``sample`` the share of
    the devices that train in a round, or above 1 their number, drawn from ``seed``. ``aggregation`` says what nodes return:
    each device's update, or one sum, which :meth:`aggregate` then sees as one reply of the node. From round ``rests_from`` on
    (0: never) the shared tensors rest: devices get them, train their private part and send nothing shared back.
    """

    roster: Roster
    settings: ConfigRecord
    job: Job
    seed: int = 0
    sample: float = 1.0
    aggregation: str = DEVICE
    rests_from: int = 0
    last: Replies = field(default_factory=lambda: Replies((), {}))
    _asked: tuple[str, ...] = ()
    _shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _resting: ArrayRecord = field(default_factory=ArrayRecord)

    def summary(self) -> None:
        """Log what this strategy does."""
        size = self._size(len(self.job.devices))
        log.info("%s over %d devices, %d in a round", type(self).__name__, len(self.job.devices), size)

    def _size(self, population: int) -> int:
        wanted = round(self.sample * population) if self.sample <= 1 else int(self.sample)
        return min(max(1, wanted), population)

    def sampled(self, server_round: int) -> tuple[str, ...]:
        """Devices that train in this round: a function of the seed and the round alone."""
        devices = sorted(self.job.devices)
        count = self._size(len(devices))
        if count >= len(devices):
            return tuple(devices)
        return tuple(sorted(derive_random(self.seed, server_round, "sample").sample(devices, count)))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message for each node that hosts a sampled device."""
        self._asked = self.sampled(server_round)
        rests = bool(self.rests_from) and server_round >= self.rests_from
        phase = PERSONALIZE if rests and self.job.phase == FEDERATE else self.job.phase
        # A finetuned adapter stays on its device, and a resting shared part as it is: nothing shared is expected back.
        federated = arrays if phase == FEDERATE else ArrayRecord()
        self._shapes = {name: tuple(array.shape) for name, array in federated.items()}
        self._resting = arrays if phase == PERSONALIZE else ArrayRecord()
        return self._messages(MessageType.TRAIN, server_round, arrays, self._asked, phase)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message for each node that hosts a device of the job; all of them evaluate."""
        self._asked = tuple(self.job.devices)
        return self._messages(MessageType.EVALUATE, server_round, arrays, self._asked, self.job.phase)

    def _messages(
        self, kind: str, server_round: int, arrays: ArrayRecord, devices: tuple[str, ...], phase: str
    ) -> list[Message]:
        by_node: dict[int, list[str]] = {}
        for device_id in devices:
            by_node.setdefault(self.roster.nodes[device_id], []).append(device_id)
        messages = []
        for node, hosted in sorted(by_node.items()):
            job = Job(
                arm=self.job.arm,
                round=server_round,
                devices=tuple(hosted),
                phase=phase,
                split=self.job.split,
                final=self.job.final,
                parallel=len(by_node),
            )
            content = RecordDict({JOB: job.to_record(), SETTINGS_RECORD: ConfigRecord(dict(self.settings))})
            if len(arrays):
                content[SHARED] = arrays
            messages.append(Message(content, dst_node_id=node, message_type=kind))
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The new shared tensors, or None with a warning when no reply is sound: the state before is then kept."""
        self.last = read_replies(replies, self._asked, self._shapes, edge=self.aggregation == EDGE)
        self._report(server_round)
        if not self.last.sound:
            return None, None
        metrics = MetricRecord(
            {
                "loss": weighted_mean([(r.numbers.get("loss", 0.0), r.examples) for r in self.last.sound]),
                "devices": len(self.last.sound),
                "left-out": len(self.last.left_out),
            }
        )
        if not self._shapes:
            return self._resting, metrics
        return self.aggregate(self.last.parts), metrics

    def aggregate(self, replies: tuple[DeviceReply, ...]) -> ArrayRecord:
        """The rule itself: what other strategies replace. There is at least one reply, each with all shared tensors."""
        return average(replies, {reply.device_id: reply.examples for reply in replies})

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Sums of the devices' counts; rates are formed where they are printed."""
        self.last = read_replies(replies, self._asked, None)
        self._report(server_round)
        if not self.last.sound:
            return None
        return counts_record(add_counts([r.metrics for r in self.last.sound]), {"devices": len(self.last.sound)})

    def _report(self, server_round: int) -> None:
        for device_id, reason in self.last.left_out.items():
            log.warning("round %s, arm %s: %s left out: %s", server_round, self.job.arm, device_id, reason)


def weighted_mean(pairs: list[tuple[float, float]]) -> float:
    """Mean of values with weights."""
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if total else 0.0


def average(replies: tuple[DeviceReply, ...], weights: Mapping[str, float]) -> ArrayRecord:
    """Weighted average of the devices' tensors, summed in float64 in the order of device ids so that it is reproducible."""
    total = sum(weights[reply.device_id] for reply in replies)
    if not replies or not total > 0:
        raise AggregationError("no device to average: every reply was left out or had no weight")
    sums: dict[str, np.ndarray] = {}
    for reply in replies:
        assert reply.shared is not None
        for name, array in reply.shared.items():
            term = np.multiply(array, weights[reply.device_id] / total, dtype=np.float64)
            if name in sums:
                sums[name] += term
            else:
                sums[name] = term
    return ArrayRecord({name: Array(value.astype(np.float32)) for name, value in sums.items()})
