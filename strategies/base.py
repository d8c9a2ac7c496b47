"""Shared-subset FedAvg: the average of the shared tensors, weighted by training examples (McMahan et al. 2017, eq. 1).

An ordinary Flower ``Strategy``: other people's Flower apps can import it. The private part is not merely ignored here, it is
never asked for: messages carry the shared tensors' names, and replies with any other name are left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fl.core.errors import AggregationError, ConfigError
from fl.core.rng import derive_random
from fl.protocol.wire import (
    FEDERATE,
    FINETUNE,
    JOB,
    PERSONALIZE,
    SETTINGS_RECORD,
    SHARED,
    Job,
    add_counts,
    counts_record,
)
from fl.settings.config import sample_size
from fl.settings.names import DEVICE, EDGE
from strategies.averaging import average, product_gaps
from strategies.hostile import Attacker
from strategies.node import Agreed
from strategies.optimizers import ServerOptimizer
from strategies.replies import DeviceReply, Replies, read_replies

log = logging.getLogger("idiolect.server")


@dataclass(frozen=True)
class Roster:
    """Which device lives on which node. ``examples`` is 0 for people who never train. ``simulated`` if every node says so."""

    nodes: dict[str, int]
    examples: dict[str, int]
    simulated: bool = True

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
    (0: never) the shared tensors rest: devices get them, train their private part and send nothing shared back. An
    ``optimizer`` takes what the rule gives as the direction of its own step. Updates come encoded by ``codec`` (empty: as
    tensors). ``charge`` pays for a round before it starts, and what it raises ends the run before anything was sent.
    ``attacker`` makes some of the replies hostile, for studies.

    A subclass replaces :meth:`aggregate`. ``single_devices`` says that the rule needs each device's own update, so that sums at
    the nodes are refused; :meth:`require_fit` refuses shared tensors that it cannot work with, before the first round.
    """

    single_devices: ClassVar[bool] = False
    roster: Roster
    settings: ConfigRecord
    job: Job
    seed: int = 0
    sample: float = 1.0
    aggregation: str = DEVICE
    rests_from: int = 0
    optimizer: ServerOptimizer | None = None
    codec: str = ""
    charge: Callable[[str, int], object] = lambda arm, server_round: None
    attacker: Attacker | None = None
    last: Replies = field(default_factory=lambda: Replies((), {}))
    _asked: tuple[str, ...] = ()
    _shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _incoming: ArrayRecord = field(default_factory=ArrayRecord)  # what the round starts from
    _round: int = 0

    def __post_init__(self) -> None:
        if self.single_devices and self.aggregation == EDGE:
            raise ConfigError(
                f"{type(self).__name__} needs each device's update, and aggregation = 'edge' sends sums over them: "
                "set aggregation = 'device', or choose a strategy that works on sums"
            )

    def require_fit(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise :class:`ConfigError` unless this strategy works on these shared tensors. A mean works on all."""

    def summary(self) -> None:
        """Log what this strategy does."""
        log.info("%s over %d devices, %d in a round", type(self).__name__, len(self.job.devices), self.round_size)

    @property
    def round_size(self) -> int:
        """How many devices train in a round."""
        return self._size(len(self.job.devices))

    def _size(self, population: int) -> int:
        return sample_size(self.sample, population)

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
        self._asked, self._round, self._incoming = self.sampled(server_round), server_round, arrays
        rests = bool(self.rests_from) and server_round >= self.rests_from
        phase = PERSONALIZE if rests and self.job.phase == FEDERATE else self.job.phase
        # A finetuned adapter stays on its device, and a resting shared part as it is: nothing shared is expected back.
        federated = arrays if phase == FEDERATE else ArrayRecord()
        self._shapes = {name: tuple(array.shape) for name, array in federated.items()}
        if self._shapes:
            self.require_fit(self._shapes)
            self.charge(self.job.arm, server_round)
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
                bound=self.job.bound,
                noise=self.job.noise,
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
        found = self.read(replies)
        if self.attacker is not None and self._shapes:
            found = self.attacker.corrupt(found, self.round_start, self.job.arm, server_round)
        self.last = self._without_faults(found)
        self._report(server_round)
        if not self.last.sound and self._asked:
            return None, None
        metrics = MetricRecord(
            {
                "loss": weighted_mean([(r.numbers.get("loss", 0.0), r.examples) for r in self.last.sound]),
                "devices": len(self.last.sound),
                "left-out": len(self.last.left_out),
            }
        )
        if not self._shapes:  # finetuning keeps nothing; shared tensors that rest stay as they are
            return ArrayRecord() if self.job.phase == FINETUNE else self._incoming, metrics
        metrics.update(self.diagnostics())
        return self._step(self.aggregate(self.last.parts)), metrics

    def read(self, replies: Iterable[Message]) -> Replies:
        """The checked replies of a round."""
        return read_replies(
            replies,
            self._asked,
            self._shapes,
            edge=self.aggregation == EDGE,
            agreed=Agreed(self.codec, self.round_start if self.codec and self._shapes else {}),
        )

    @property
    def round_start(self) -> dict[str, np.ndarray]:
        """The shared tensors that the round started from."""
        return {name: array.numpy() for name, array in self._incoming.items()}

    def diagnostics(self) -> dict[str, float]:
        """Numbers of a round beside its loss. Means of nodes do not tell what single products were."""
        return {} if self.aggregation == EDGE else product_gaps(self.last.parts)

    def _without_faults(self, found: Replies) -> Replies:
        """The same replies without those that this strategy cannot use."""
        faults = {reply.device_id: fault for reply in found.sound if self._shapes and (fault := self.fault(reply))}
        sound = tuple(reply for reply in found.sound if reply.device_id not in faults)
        parts = tuple(reply for reply in found.parts if reply.device_id not in faults)
        return Replies(sound, {**found.left_out, **faults}, parts) if faults else found

    def fault(self, reply: DeviceReply) -> str:
        """What makes a sound reply unusable for this strategy, or an empty text."""
        return ""

    def _step(self, wanted: ArrayRecord) -> ArrayRecord:
        """The new shared tensors: what the rule wants, or the optimizer's step towards it. Never one that is not finite."""
        if self.optimizer is not None:
            wanted = self.optimizer.step(self._incoming, wanted, self.moving(tuple(wanted)))
        odd = [name for name, array in wanted.items() if not np.isfinite(array.numpy()).all()]
        if odd:
            raise AggregationError(
                f"the aggregate of {odd[0]!r} is not finite: the devices' updates are too large for {type(self).__name__}; "
                "lower the learning rates, or choose a robust strategy"
            )
        return wanted

    def moving(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The tensors that may move in this round; an optimizer leaves the others, whatever momentum they have."""
        return names

    def server_state(self) -> dict[str, np.ndarray]:
        """What must survive beside the shared tensors for a resumed run to give the same numbers."""
        return {} if self.optimizer is None else dict(self.optimizer.state)

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from :meth:`server_state`."""
        if self.optimizer is not None:
            self.optimizer.state = dict(state)

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
