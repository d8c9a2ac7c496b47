"""The Flower ``Strategy`` of one arm: it samples devices, reads their updates, and lets the arm's algorithm aggregate them.

It speaks Idiolect's own messages (:mod:`fl.protocol.wire`) and drives any :class:`fl.algorithms.base.Aggregator`, none of which it knows
by name. The private part is not merely ignored here, it is never asked for: messages carry the shared tensors' names, and replies
with any other name are left out.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import cycle

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fl.adapters.correction import weight_corrections
from fl.adapters.directions import stored_directions
from fl.adapters.split import in_part
from fl.adapters.state import State
from fl.aggregation.directions import main_directions
from fl.aggregation.mean import product_gaps
from fl.aggregation.updates import Tensors, moved
from fl.algorithms.arms import EVERYONE, NEUTRAL, Arm
from fl.algorithms.base import Aggregator, Round
from fl.algorithms.hostile import attackers, corrupted
from fl.algorithms.personal.enrolment import EnrolledPart, fitting_part
from fl.algorithms.plan import Phase
from fl.algorithms.server_optimizers import FIRST, SECOND, ServerOptimizer
from fl.algorithms.table import with_options
from fl.core.errors import AggregationError, ConfigError
from fl.core.rng import derive_random, derive_seed
from fl.privacy.plan import PrivacyPlan
from fl.protocol.reply import Exchange, ReplySchema
from fl.protocol.wire import (
    CORRECTIONS,
    DIRECTIONS,
    JOB,
    SETTINGS_RECORD,
    SHARED,
    Job,
    add_counts,
    flat_counts,
    settings_record,
    to_arrays,
)
from fl.settings.config import RunConfig, cohort_size, sample_size
from fl.settings.names import EDGE, LOCAL_NOISE, NONE
from strategies.replies import Replies, read_replies, reason_of
from strategies.roster import Roster

log = logging.getLogger("idiolect.server")
MOMENTS = (FIRST, SECOND)  # what the names of an optimizer's state begin with
DIRECTION = "direction:"  # what those of directions do


@dataclass
class ArmStrategy(Strategy):
    """One arm over named devices.

    ``roster`` places devices on nodes, ``job`` is the template of the messages (devices, split). ``charge`` pays for a round before
    it starts, and what it raises ends the run before anything was sent. Rounds of a phase without exchange send the shared
    tensors and expect none back; every device takes part in them.
    """

    config: RunConfig
    arm: Arm
    roster: Roster
    job: Job
    plan: PrivacyPlan | None = None
    charge: Callable[[str, int], object] = lambda arm, server_round: None
    timeout: float | None = None
    aggregator: Aggregator = field(init=False)
    optimizer: ServerOptimizer | None = field(init=False, default=None)
    hostile: frozenset[str] = field(init=False, default=frozenset())  # whose updates a study attacks
    bound: float = field(init=False)  # clipping norm of a device's update in this round
    last: Replies = field(default_factory=lambda: Replies((), {}))
    directions: Tensors = field(default_factory=dict)  # as :func:`fl.adapters.directions.stored_directions` gives them
    _asked: tuple[str, ...] = ()
    _hosts: dict[str, int] = field(default_factory=dict)  # the node of each device that was asked
    _start: dict[str, np.ndarray] = field(default_factory=dict)  # the shared tensors that the round started from
    _schema: ReplySchema = field(default_factory=ReplySchema)
    _round: int = 0

    def __post_init__(self) -> None:
        attack, federates = self.config.attack, self.arm.federates
        self.aggregator, self.bound = self.arm.aggregation.aggregator(), self.config.privacy.update_norm
        table = self.config.server_optimizer
        if federates and table.name != NONE:
            self.optimizer = ServerOptimizer(table.name, table.rate, table.momentum)
        if attack.attacks_updates and federates:
            self.hostile = attackers(self.roster.training, attack.attacker_share, self.config.seed)

    def with_job(self, job: Job) -> ArmStrategy:
        """The same strategy with the same state for another job, an evaluation say."""
        other = copy(self)
        other.job = job
        return other

    def summary(self) -> None:
        """Log what this strategy does."""
        log.info("arm %s over %d devices, %d in a round", self.arm.name, len(self.job.devices), self.round_size)

    def require_fit(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise :class:`ConfigError` where the algorithm cannot work on these shared tensors, or on so few devices."""
        self.arm.aggregation.require_fit(shapes, self.round_size)

    @property
    def round_size(self) -> int:
        """How many devices train in a round."""
        return sample_size(self.config.federation.sample, len(self.job.devices))

    def sampled(self, server_round: int) -> tuple[str, ...]:
        """Devices that train in this round: a function of the seed and the round alone."""
        draw = derive_random(self.config.seed, server_round, "sample")
        return tuple(sorted(draw.sample(sorted(self.job.devices), self.round_size)))

    def limits(self) -> tuple[float, float]:
        """The clipping norm and the standard deviation of noise of a device's update; 0 where devices do neither."""
        if not Exchange.of(self.config, self.arm, Phase.FEDERATE).clips:
            return 0.0, 0.0
        if self.plan is None or self.plan.dp != LOCAL_NOISE:  # devices add no noise that is not in a sum
            return self.bound, 0.0
        return self.bound, self.plan.noise_multiplier * self.bound

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message for each node that hosts a device of the round, and for each model that its devices get."""
        phase = self.arm.schedule.phase(server_round)
        federating = phase is Phase.FEDERATE
        drawn = federating and self.arm.federates  # who sends nothing trains whatever others do
        devices = self.sampled(server_round) if drawn else tuple(sorted(self.job.devices))
        self._asked, self._round = devices, server_round
        self._start = {name: array.numpy() for name, array in arrays.items()}
        recipients = self.aggregator.recipients(devices, self._start, training=federating)
        shapes = {name: values.shape for name, values in recipients[0][1].items()} if federating and recipients else {}
        self._schema = ReplySchema(shapes, Exchange.of(self.config, self.arm, phase))
        if shapes:
            self.require_fit({name: values.shape for name, values in self._start.items()})
            self.charge(self.arm.name, server_round)
        return self._messages(MessageType.TRAIN, server_round, recipients, phase)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message for each node that hosts a device of the job; all of them evaluate."""
        self._asked = tuple(self.job.devices)
        shared = {name: array.numpy() for name, array in arrays.items()}
        held_out = self.job.arm == NEUTRAL
        recipients = self.aggregator.recipients(self._asked, shared, training=False, held_out=held_out)
        messages = self._messages(MessageType.EVALUATE, server_round, recipients, self.job.phase)
        if corrections := self.corrections():
            record = to_arrays(corrections)
            for message in messages:
                message.content[CORRECTIONS] = record
        return messages

    def corrections(self) -> State:
        """By layer (d_out, d_in), what is added to the frozen weights wherever the shared tensors decode."""
        adapter = self.config.adapter  # every adapter has its scale, whatever the rank
        return weight_corrections(self.aggregator.corrections(), adapter.alpha / adapter.rank)

    def _messages(
        self, kind: str, server_round: int, recipients: list[tuple[tuple[str, ...], Tensors]], phase: Phase
    ) -> list[Message]:
        self._hosts = self._placed([devices for devices, _ in recipients], training=kind == MessageType.TRAIN)
        norm, noise = self.limits()
        parallel = len(set(self._hosts.values()))
        asked = replace(self.job, round=server_round, phase=phase, parallel=parallel, bound=norm, noise=noise)
        settings = settings_record(self.config)
        second = self.arm.personal.second
        enrols = phase is Phase.PERSONALIZE and kind == MessageType.TRAIN and second is not None and second.afterwards
        directions = _record(self.directions) if enrols else ArrayRecord()
        messages = []
        for devices, tensors in recipients:
            shared = ArrayRecord({name: Array(tensors[name]) for name in tensors})
            by_node: dict[int, list[str]] = {}
            for device_id in devices:
                by_node.setdefault(self._hosts[device_id], []).append(device_id)
            for node, hosted in sorted(by_node.items()):
                job = replace(asked, devices=tuple(hosted))
                content = RecordDict({JOB: job.to_record(), SETTINGS_RECORD: ConfigRecord(dict(settings))})
                if len(shared):
                    content[SHARED] = shared
                if directions:
                    content[DIRECTIONS] = directions
                token = secrets.token_hex(16)  # a node that could guess the id of another's message could answer it
                messages.append(Message(content, dst_node_id=node, message_type=kind, group_id=token))
        return messages

    def _placed(self, groups: list[tuple[str, ...]], *, training: bool) -> dict[str, int]:
        """The node of each device of these groups.

        In a simulation any node may train any device. Cohorts are cut from the devices of the round and dealt out to the nodes, so
        that who is beside whom, which decides about rounding, depends on the settings and not on the number of nodes. A sum over a
        node is over the devices that live there.
        """
        size = cohort_size(self.config.train)
        if not training or not self.roster.simulated or size == 1 or self.config.federation.aggregation == EDGE:
            return {device_id: self.roster.nodes[device_id] for devices in groups for device_id in devices}
        nodes = cycle(sorted(set(self.roster.nodes.values())))
        starts = ((devices, start) for devices in groups for start in range(0, len(devices), size))
        dealt_out = zip(starts, nodes, strict=False)
        return {d: node for (devices, start), node in dealt_out for d in devices[start : start + size]}

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The new shared tensors, or None with a warning when no reply is sound: the state before is then kept."""
        self.last = self._usable(self.read(replies))
        self._report(server_round)
        if not self.last.sound and self._asked:
            return None, None
        # an owner may keep the loss
        losses = [(r.numbers["loss"], r.examples) for r in self.last.sound if "loss" in r.numbers]
        loss = {"loss": weighted_mean(losses)} if losses else {}
        metrics = MetricRecord({**loss, "devices": len(self.last.sound), "left-out": len(self.last.left_out)})
        if not self._schema.shapes:  # fine-tuning keeps nothing; frozen shared tensors stay as they are
            finetunes = self.arm.schedule.phase(server_round) is Phase.FINETUNE
            return ArrayRecord() if finetunes else _record(self._start), metrics
        found = self._found()
        if self.arm.directions and server_round == self.arm.schedule.federated_rounds:
            part = with_options(self.config, EnrolledPart).enrolment_part
            chosen = filter(in_part(fitting_part(part, found.start)), sorted(found.start))
            rows = [update.tensors for update in found.updates if update.tensors is not None]
            self.directions = stored_directions(main_directions(rows, [*chosen], self.arm.directions))
        update = self.aggregate(found)
        metrics.update(self.diagnostics(found))
        return _record(self._step(update)), metrics

    def read(self, replies: Iterable[Message]) -> Replies:
        """The checked replies of a round."""
        return read_replies(replies, self._hosts, self._schema, trains=True)

    def _found(self) -> Round:
        asked = sum(self.roster.examples[device_id] for device_id in self.job.devices)
        answered = sum(part.examples for part in self.last.parts)
        share = min(1.0, answered / asked) if asked else 1.0
        return Round(self._round, self._start, self.last.parts, share, self._steps())

    def _steps(self) -> int:
        """The local steps that a device was asked for in this round."""
        plan = self.arm.schedule.plan(self._round)
        for algorithm in self.arm.algorithms:
            plan = algorithm.local(plan, self._round)
        own = self.arm.personal.second
        if own is not None and own.follows:
            plan = own.plan(plan)
        return (plan.first_private + plan.steps + plan.private_steps) * plan.repeat

    def diagnostics(self, found: Round) -> dict[str, float]:
        """Numbers of a round beside its loss. Means of nodes do not tell what single updates were."""
        if self._schema.edge or self.arm.devices == EVERYONE:
            return {}
        return product_gaps(found.updates, found.start)

    def _usable(self, found: Replies) -> Replies:
        """The same replies without those that the algorithm cannot use, as hostile devices of a study change them."""
        if not self._schema.shapes:
            return found
        if self.hostile and found.sound and found.sound[0].tensors is not None:
            seed = derive_seed(self.config.seed, self.arm.name, self._round, "attack")
            attacked = corrupted(found.sound, self.config.attack.name, self.hostile, seed)
            found = Replies(attacked, found.left_out, attacked)
        faults = {update.device_id: fault for update in found.sound if (fault := self.aggregator.fault(update))}
        sound, parts = (
            tuple(update for update in updates if update.device_id not in faults)
            for updates in (found.sound, found.parts)
        )
        return Replies(sound, {**found.left_out, **faults}, parts)

    def _step(self, update: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The new shared tensors: where the update leads, or the optimizer's step. Never one that is not finite."""
        if self.optimizer is not None:
            update = self.optimizer.step(update, self.aggregator.moving(tuple(update), self._round))
        new = moved(self._start, update)
        odd = [name for name, values in new.items() if not np.isfinite(values).all()]
        if odd:
            raise AggregationError(
                f"the aggregate of {odd[0]!r} is not finite: the devices' updates are too large for this algorithm; "
                "lower the learning rates, or choose a robust algorithm"
            )
        return new

    def aggregate(self, found: Round) -> dict[str, np.ndarray]:
        """The update of the shared tensors; what private means replace."""
        return self.aggregator.aggregate(found)

    def server_state(self) -> dict[str, np.ndarray]:
        """What must survive beside the shared tensors for a resumed run to give the same numbers."""
        moments = {} if self.optimizer is None else self.optimizer.state
        directions = {DIRECTION + name: values for name, values in self.directions.items()}
        return {**moments, **directions, **self.aggregator.state()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from :meth:`server_state`."""
        moments = {name: value for name, value in state.items() if name.startswith(MOMENTS)}
        if self.optimizer is not None:
            self.optimizer.state = moments
        told = {name: value for name, value in state.items() if name.startswith(DIRECTION)}
        self.directions = {name.removeprefix(DIRECTION): value for name, value in told.items()}
        rest = {name: value for name, value in state.items() if name not in moments and name not in told}
        self.aggregator.restore(rest, self.roster.training)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Sums of the devices' counts; rates are formed where they are printed."""
        self.last = read_replies(replies, self._hosts, ReplySchema())
        self._report(server_round)
        if not self.last.sound:
            return None
        counts = flat_counts(add_counts([r.metrics for r in self.last.sound]), {"devices": len(self.last.sound)})
        return MetricRecord(dict(counts))

    def _report(self, server_round: int) -> None:
        reasons = {d: reason_of(self.config.output, d, why) for d, why in self.last.left_out.items()}
        self.last = replace(self.last, left_out=reasons)
        for device_id, reason in self.last.left_out.items():
            log.warning("round %s, arm %s: %s left out: %s", server_round, self.job.arm, device_id, reason)


def _record(tensors: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(values)) for name, values in tensors.items()})


def weighted_mean(pairs: list[tuple[float, float]]) -> float:
    """Mean of values with weights."""
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if total else 0.0


def check_population(config: RunConfig, roster: Roster) -> None:
    """Refuse a study of hostile devices among deployed ones, and log it loudly where it may run."""
    attack = config.attack
    if attack.name == NONE:
        return
    if not roster.simulated:
        raise ConfigError(f"attack = {attack.name!r} is for simulations, and some of these nodes are deployed")
    hostile = attackers(roster.training, attack.attacker_share, config.seed)
    log.warning(
        "STUDY OF HOSTILE DEVICES: attack = %s, %d of %d devices are hostile: %s",
        attack.name,
        len(hostile),
        len(roster.training),
        ", ".join(sorted(hostile)[:20]),
    )
