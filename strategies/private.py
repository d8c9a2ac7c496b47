"""DP-FedAvg, optionally with secure aggregation: clipped updates, bounded weights, noise, a fixed divisor.

For every algorithm whose aggregate is a mean of the updates, with every server optimizer, which only sees what is released anyway.
The formulas are those of :mod:`fl.privacy.dp`; what a round costs is paid by ``charge`` before it starts.
"""

import logging
import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from fl.aggregation.updates import Tensors, Updates
from fl.algorithms.base import Round
from fl.core.rng import derive_random
from fl.privacy.dp import (
    CUT_SHORT,
    Sums,
    add_noise,
    clipped_sum,
    honest_devices,
    next_norm,
    noise_share,
    norm,
    weight_of,
)
from fl.privacy.plan import PrivacyPlan
from fl.privacy.randomness import key_from_seed
from fl.privacy.secure_sum.keys import SecureSumError
from fl.privacy.secure_sum.messages import SecureSumSetup, default_threshold
from fl.privacy.secure_sum.server import new_setup
from fl.privacy.secure_sum.vector import NOISE_STEPS, unflatten
from fl.protocol.reply import ReplySchema
from fl.protocol.wire import JOB, SECURE, WITHIN, Job, device_key, settings_record
from fl.settings.names import DISTRIBUTED_NOISE, NONE
from strategies.arm import ArmStrategy
from strategies.replies import Replies, read_replies
from strategies.secure import SecureRound

log = logging.getLogger("idiolect.server")
BOUND = "privacy:bound"  # of the server's state
CLIPPING_NORM = "clipping-norm"  # of a round's metrics


@dataclass
class Sum:
    """What a round's devices add up to: clipped, weighted updates by name, their weight, and the bits of adaptive clipping."""

    updates: Sums
    weight: float
    bits: float = 0.0


@dataclass
class PrivateMean(ArmStrategy):
    """The mean of clipped updates, as ``plan`` says. ``timeout`` are the seconds for a step of a secure sum.

    In a simulation noise and sample come from the seed, so that a run is deterministic.
    """

    plan: PrivacyPlan = field(kw_only=True)
    _sum: Sum | None = None
    _secure: SecureRound | None = None
    _participants: dict[str, str] = field(default_factory=dict)  # by device
    _told: bool = False  # that the norm is short

    def sampled(self, server_round: int) -> tuple[str, ...]:
        """Devices of this round. With noise they are drawn for each arm anew: its account then adds up over arms."""
        if self.plan.dp == NONE:
            return super().sampled(server_round)
        devices = sorted(self.job.devices)
        if self.plan.size >= len(devices):
            return tuple(devices)
        seeded = derive_random(self.config.seed, self.job.arm, server_round, "private sample")
        draw = seeded if self.roster.simulated else random.SystemRandom()
        if self.plan.poisson:
            rate = self.plan.size / self.plan.population
            return tuple(device for device in devices if draw.random() < rate)
        return tuple(sorted(draw.sample(devices, self.plan.size)))

    # Sending

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As without privacy; secure sums begin here."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self._sum, self._secure = None, None
        if self.plan.secure and self._schema.shapes and messages:
            return self._open(messages, grid)
        return messages

    def _open(self, messages: list[Message], grid: Grid) -> list[Message]:
        """Steps 1 and 2 of a secure sum, then the messages with what step 3 needs, to those who are still there."""
        edge = self.plan.edge
        jobs = {
            message.metadata.dst_node_id: Job.from_record(message.content.config_records[JOB]) for message in messages
        }
        self._participants = {d: f"node {node}" if edge else d for node, job in jobs.items() for d in job.devices}
        nodes = {self._participants[d]: node for node, job in jobs.items() for d in job.devices}
        largest = max(len(job.devices) for job in jobs.values()) if edge else 1
        (template, *_) = jobs.values()
        setup = self._setup(sorted(nodes), largest)
        self._secure = SecureRound(grid, setup, nodes, template, settings_record(self.config), self.timeout)
        inboxes = self._secure.begin()
        remaining = []
        for message in messages:
            job = jobs[message.metadata.dst_node_id]
            here = tuple(d for d in job.devices if self._participants[d] in inboxes)
            if not here:
                continue
            message.content[JOB] = replace(job, devices=here).to_record()
            for participant in {self._participants[d] for d in here}:
                message.content[device_key(SECURE, participant)] = inboxes[participant].to_record()
            remaining.append(message)
        return remaining

    def _setup(self, participants: list[str], largest: int) -> SecureSumSetup:
        """The session of a round: a grid on which the largest possible vectors fit, and enough who must stay."""
        count = len(participants)
        if count < 2:
            raise SecureSumError(
                f"{count} participant: a sum over one is that one's update; ask more devices, or use more nodes with edge sums"
            )
        plan = self.plan
        needed = max(math.ceil(plan.threshold * count), count // 2 + 1) if plan.threshold else default_threshold(count)
        share = 0.0
        if plan.dp == DISTRIBUTED_NOISE:
            colluding = math.ceil(plan.colluding * count)
            honest = honest_devices(count, plan.dropouts, colluding)
            needed, share = max(needed, honest + colluding), noise_share(plan.update_multiplier, self.bound, honest)
        size = sum(map(math.prod, self._schema.shapes.values())) + 1 + int(plan.quantile > 0)
        for bits in (32, 64):
            setup = new_setup(
                participants,
                size,
                self.bound * largest,
                threshold=min(needed, count),
                bits=bits,
                noise=share * math.sqrt(count),
            )
            if share * setup.grid.scale >= NOISE_STEPS or not share:
                break
        return setup

    # Receiving

    def read(self, replies: Iterable[Message]) -> Replies:
        """The checked replies; with secure sums counts alone, and the sum of those whose vectors arrived."""
        if self._secure is None:
            return super().read(replies)
        messages = list(replies)
        found = read_replies(messages, self._hosts, ReplySchema(exchange=self._schema.exchange), trains=True)
        asked = sorted(set(self._participants.values()) - self._secure.left_out.keys())
        summed = self._secure.take(messages, asked)
        sound = tuple(update for update in found.sound if self._participants[update.device_id] in summed)
        left_out = dict(found.left_out)
        for device_id in self._asked:
            why = self._secure.left_out.get(self._participants[device_id])
            if why is not None:
                left_out[device_id] = why
        shapes = {**self._schema.shapes, **({WITHIN: (1,)} if self.plan.quantile else {})}
        sums, weight = unflatten(self._secure.total(), shapes, self.bound)
        bits = float(sums.pop(WITHIN)[0]) / self.bound if self.plan.quantile else 0.0
        self._sum = Sum(sums, weight, bits)
        return Replies(sound, left_out, sound)

    def aggregate(self, found: Round) -> dict[str, np.ndarray]:
        """The release of a round: noise where the aggregator adds it, over the fixed number of devices; then the next norm."""
        plan, total = self.plan, self._sum or self._summed(found.updates, found.start)
        distributed = plan.dp == DISTRIBUTED_NOISE and bool(self._asked)
        sums = total.updates
        if plan.dp != NONE and not distributed:  # of an empty Poisson sample noise alone is released
            sums = add_noise(sums, plan.update_multiplier * self.bound, self._key("server noise"))
        if plan.quantile:
            noise = 0.0 if distributed else plan.update_multiplier
            key = self._key("count noise")
            self.bound = next_norm(self.bound, total.bits, plan.size, plan.quantile, noise, key)
        divisor = total.weight if plan.dp == NONE else float(plan.size)
        moving = self.aggregator.moving(tuple(sums), found.number)
        return {name: sums[name] / divisor for name in moving}

    def _summed(self, updates: Updates, start: Tensors) -> Sum:
        """The sum of single updates, clipped here, or of the nodes' sums, clipped there."""
        sums: Sums = {name: np.zeros(value.shape) for name, value in start.items()}
        if not updates:
            return Sum(sums, 0.0)
        if self._schema.edge:
            for part in updates:
                for name, value in (part.tensors or {}).items():
                    sums[name] += part.examples * value
            bits = sum(part.numbers[WITHIN] - part.numbers["devices"] / 2 for part in updates)
            return Sum(sums, sum(part.examples for part in updates), bits)
        lengths = [norm(one.tensors or {}) for one in updates]
        weights = [weight_of(one.examples, self.plan.cap) for one in updates]
        weighted = zip(weights, (one.tensors or {} for one in updates), strict=True)
        sums = clipped_sum(weighted, self.bound, self.plan.clipping)
        self._tell_of_short_norm(lengths)
        within = sum(length <= self.bound for length in lengths)
        return Sum(sums, sum(weights), within - len(lengths) / 2)

    def _tell_of_short_norm(self, lengths: list[float]) -> None:
        """Say once, in the log alone, that a fixed norm takes more than half of most updates: nothing of that is in the model."""
        short = sum(length > CUT_SHORT * self.bound for length in lengths)
        if self._told or self.plan.quantile or 2 * short <= len(lengths):
            return
        self._told = True
        log.warning(
            "update-norm = %g is short: most updates of round %d lose more than half of their length, which slows training down; "
            "raise it, or let it follow clip-quantile (this line comes from the updates and has no guarantee: keep it private)",
            self.bound,
            self._round,
        )

    def _key(self, purpose: str) -> bytes | None:
        """The noise of a simulation is deterministic; otherwise it is the operating system's."""
        return key_from_seed(self.config.seed, self.job.arm, self._round, purpose) if self.roster.simulated else None

    def diagnostics(self, found: Round) -> dict[str, float]:
        """The clipping norm of the round, where it adapts: it is released anyway."""
        return {CLIPPING_NORM: self.bound} if self.plan.quantile else {}

    def server_state(self) -> dict[str, np.ndarray]:
        """The optimizer's moments, and the clipping norm of the next round."""
        bound = {BOUND: np.array([self.bound])} if self.plan.quantile else {}
        return {**super().server_state(), **bound}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from :meth:`server_state`."""
        super().restore({name: value for name, value in state.items() if name != BOUND})
        if BOUND in state:
            self.bound = float(state[BOUND][0])
