"""What becomes of a device's update before it leaves: formed, what was lost before added, clipped, noised, encoded or masked.

The order is that of docs/privacy.md. Everything here is a function of the job, the settings and the device's own state; the
guard looks at what comes out of it as at everything else. :mod:`fl.protocol.reply` says in which form an update leaves.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from flwr.app import ConfigRecord, RecordDict

from clients.training.phase import DEVICE_FAULTS
from clients.updates.mask import Masking, Sessions, inboxes
from clients.updates.reply import DeviceFailure, DeviceResult, ReplyWriter
from clients.worker import Worker
from fl.adapters.state import State
from fl.algorithms.arms import trained_arm
from fl.codecs.tensors import decode_all, encode_all, encoded_bytes, join
from fl.core.errors import DemandError
from fl.privacy.dp import CUT_SHORT, Update, add_noise, clip, difference, norm
from fl.privacy.plan import WITH_BIT
from fl.privacy.randomness import key_from_seed
from fl.privacy.secure_sum.keys import SecureSumError
from fl.protocol.node import NodeConfig
from fl.protocol.reply import Exchange, Form, ReplySchema
from fl.protocol.wire import ARRAY_HEADER_BYTES, PAYLOAD, Job
from fl.settings.names import NONE

log = logging.getLogger("idiolect.client")

RESIDUAL = "residual"  # and the arm: where the store keeps what compression lost


@dataclass(frozen=True)
class Release:
    """What is done to a device's update before it takes its form: clipped to ``norm`` (infinity: not at all), then ``noise`` of this
    standard deviation. Updates are released by it and an owner's demand reads it, so the two cannot differ."""

    norm: float
    noise: float

    @classmethod
    def of(cls, exchange: Exchange, job: Job) -> Release:
        """The release of a message. Noise on an update without a bound hides nobody, so without clipping there is none."""
        return cls(job.bound, job.noise) if exchange.clips else cls(math.inf, 0.0)

    @property
    def multiplier(self) -> float:
        """The noise over the clipping norm."""
        return self.noise / self.norm if self.norm > 0 else 0.0


def check_demands(node: NodeConfig, exchange: Exchange, job: Job) -> None:
    """Raise :class:`DemandError` if a job gives less than this node's owner demands, or asks a real device for what simulations do.

    ``secure-sum='pairwise'`` in the node-config refuses to send an update unmasked, ``local-noise=0.8`` with less than that
    multiplier of noise added at the device: both without having to believe the aggregator.
    """
    attack = exchange.config.attack.name
    if attack != NONE and node.deployed:
        raise DemandError(f"attack = {attack!r} is for simulations, and this is a deployed device: it takes no part")
    if exchange.form is Form.NOTHING or not job.devices:
        return
    if node.deployed and not exchange.federates:
        raise DemandError(
            "this arm needs everybody's data in one place, and this is a deployed device: it takes no part"
        )
    if node.masked_only and exchange.form is not Form.MASKED:
        raise DemandError("this node sends updates masked only, and the run has secure-sum = 'none': it takes no part")
    release = Release.of(exchange, job)
    if not release.multiplier >= node.local_noise:
        raise DemandError(
            f"this node adds noise of at least {node.local_noise:g} clipping norms to its own update, with this run's settings and "
            f"job it would add {release.multiplier:g}: set dp = 'local' with a larger noise-multiplier, or it takes no part"
        )


class Outgoing:
    """Prepares the results of one message's devices, as ``job`` and the secure sums in ``content`` ask for. Without ``training``
    there are no updates, and results pass as they are.

    A simulation draws noise from the run's seed, so that a run is deterministic; a deployed device asks its operating system.
    Raises :class:`DemandError` where the node's owner demands more.
    """

    def __init__(
        self, worker: Worker, job: Job, content: RecordDict, node: NodeConfig, incoming: State, *, training: bool
    ) -> None:
        self._worker, self._job, self._config = worker, job, worker.config
        self._simulated = not node.deployed
        self._incoming = {name: tensor.numpy() for name, tensor in incoming.items()}
        arm = trained_arm(job.arm, self._config) if training else None
        self.exchange = Exchange.of(self._config, arm, job.phase)
        self.release = Release.of(self.exchange, job)
        if training:
            check_demands(node, self.exchange, job)
        self._told = job.round != 1  # one device of the first message is enough
        self._masking: Masking | None = None
        if found := inboxes(content):
            sessions = Sessions(worker.store.root, node)
            self._masking = Masking(sessions, self.exchange, job, found, simulated=self._simulated)
        elif self.exchange.form is Form.MASKED:
            raise SecureSumError(
                "a secure sum was agreed, and the message brings no session of one: nothing is trained"
            )

    @property
    def noise_multiplier(self) -> float:
        """Of the noise that this device adds by itself, over the norm that it clips to; 0 where it does not do both."""
        own = self._job.noise if self._masking is None else self._masking.noise
        bound = self._job.bound * (WITH_BIT if self.exchange.adaptive else 1.0)
        return own / bound if self.exchange.clips and bound > 0 and 0 < own < math.inf else 0.0

    def writer(self, capacity: int) -> ReplyWriter:
        """What collects the results of this message."""
        shapes = {name: value.shape for name, value in self._incoming.items()}
        return ReplyWriter(capacity, ReplySchema(shapes, self.exchange))

    def prepared(self, results: Iterable[DeviceResult | DeviceFailure]) -> Iterator[DeviceResult | DeviceFailure]:
        """The same results with updates as they may leave; a failure where one cannot."""
        for result in results:
            if isinstance(result, DeviceFailure) or not result.shared:
                yield result
                continue
            try:
                yield self._prepare(result)
            except DEVICE_FAULTS as error:
                yield DeviceFailure(result.device_id, error)

    def _prepare(self, result: DeviceResult) -> DeviceResult:
        update = difference({n: t.detach().cpu().numpy() for n, t in result.shared.items()}, self._incoming)
        if not self.exchange.federates:  # all data in one place, in a simulation
            return replace(result, shared=_tensors(update))
        for name, lost in self._residual(result.device_id, update).items():
            update[name] = update[name] + lost
        if self.exchange.clips:
            result, update = self._clipped(result, update)
        if self.release.noise:
            drawn = self._config.seed, self._job.arm, self._job.round, result.device_id, "local noise"
            noisy = add_noise(update, self.release.noise, key_from_seed(*drawn) if self._simulated else None)
            update = {name: value.astype(np.float32) for name, value in noisy.items()}
        if self.exchange.form is Form.MASKED or self.exchange.codec.lossless:
            return replace(result, shared=_tensors(update))
        return self._encoded(result, update)

    def _clipped(self, result: DeviceResult, update: Update) -> tuple[DeviceResult, Update]:
        bound = self.release.norm if self._masking is None else self._masking.clipping_norm()
        length = norm(update)
        if self.exchange.adaptive:
            result = replace(result, within=length <= self.release.norm)
        elif 0 < CUT_SHORT * bound < length and not self._told:
            self._told = True
            log.warning(
                "update-norm = %g is short: the update of device %s has norm %.3g and loses %.0f %% of it, which "
                "slows training down; raise update-norm, or with dp let it follow clip-quantile",
                self.release.norm,
                result.device_id,
                length,
                100 * (1 - bound / length),
            )
        return result, clip(update, bound, self._config.privacy.update_clipping)

    def masked(self, result: DeviceResult | DeviceFailure) -> DeviceResult | DeviceFailure:
        """With ``masking`` the result without tensors, its update in a masked vector. Its private state must be durable by then."""
        if isinstance(result, DeviceFailure) or self._masking is None or self.exchange.form is not Form.MASKED:
            return result
        try:
            sent = self._masking.add(result, {name: tensor.numpy() for name, tensor in result.shared.items()})
        except DEVICE_FAULTS as error:
            return DeviceFailure(result.device_id, error)
        return replace(result, numbers={**result.numbers, "bytes-up": sent}, shared={})

    def records(self) -> dict[str, ConfigRecord]:
        """What a reply holds beside counts and tensors: masked vectors."""
        return {} if self._masking is None else self._masking.records()

    def _encoded(self, result: DeviceResult, update: Update) -> DeviceResult:
        """With the update as bytes; for a node's sum as what those bytes decode to."""
        codec = self.exchange.codec
        encoded = encode_all(update, codec)
        decoded = decode_all(encoded, {name: value.shape for name, value in update.items()}, codec)
        if self._config.codec.error_feedback:
            lost = {name: torch.from_numpy(update[name] - decoded[name]) for name in update}
            self._worker.store.save(self._place, result.device_id, self._job.round, lost)
        sent = encoded_bytes(encoded) + ARRAY_HEADER_BYTES
        result = replace(result, numbers={**result.numbers, "bytes-up": sent})
        if self.exchange.form is Form.ENCODED:
            return replace(result, shared={PAYLOAD: torch.from_numpy(join(encoded))})
        return replace(result, shared=_tensors(decoded))

    @property
    def _place(self) -> str:
        return f"{self._job.arm}.{RESIDUAL}"

    def _residual(self, device_id: str, update: Update) -> dict[str, np.ndarray]:
        """What earlier encodings lost, from before this round; nothing without error feedback or in the first round."""
        if self.exchange.codec.lossless or not self._config.codec.error_feedback:
            return {}
        shapes = {name: value.shape for name, value in update.items()}
        stored = self._worker.store.load(self._place, device_id, shapes, before=self._job.round)
        return {} if stored is None else {name: tensor.numpy() for name, tensor in stored.items()}


def _tensors(update: Update) -> State:
    return {name: torch.from_numpy(value) for name, value in update.items()}
