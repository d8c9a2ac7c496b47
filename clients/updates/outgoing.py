"""What becomes of a device's update before it leaves: formed, what was lost before added, clipped, noised, encoded or masked.

The order is that of docs/privacy.md. Everything here is a function of the job, the settings and the device's own state; the
guard looks at what comes out of it as at everything else. :mod:`fl.protocol.reply` says in which form an update leaves.
"""

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from flwr.app import ConfigRecord, RecordDict

from clients.training.phase import DEVICE_FAULTS
from clients.updates.mask import Masking, Sessions, inboxes
from clients.updates.reply import DeviceFailure, DeviceResult, ReplyWriter
from clients.worker import Worker
from fl.adapters.state import State
from fl.algorithms.arms import EVERYONE, trained_arm
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


def check_demands(node: NodeConfig, exchange: Exchange, job: Job) -> None:
    """Raise :class:`DemandError` if a job gives less than this node's owner demands, or asks a real device to play a hostile one.

    ``secure-sum='pairwise'`` in the node-config refuses to send an update unmasked, ``local-noise=0.8`` with less than that
    multiplier of noise added at the device: both without having to believe the aggregator.
    """
    attack = exchange.config.attack.name
    if attack != NONE and node.deployed:
        raise DemandError(f"attack = {attack!r} is for simulations, and this is a deployed device: it takes no part")
    if exchange.form is Form.NOTHING or not job.devices:
        return
    if node.masked_only and exchange.form is not Form.MASKED:
        raise DemandError("this node sends updates masked only, and the run has secure-sum = 'none': it takes no part")
    least = node.local_noise
    if least and not job.noise >= least * job.bound > 0:
        raise DemandError(
            f"this node adds noise of at least {least:g} clipping norms, the run asks for {job.noise:g} at norm {job.bound:g}: "
            "it takes no part"
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
        if result.device_id == EVERYONE:
            return replace(result, shared=_tensors(update))
        for name, lost in self._residual(result.device_id, update).items():
            update[name] = update[name] + lost
        if self.exchange.clips:
            result, update = self._clipped(result, update)
        if self._job.noise:
            drawn = self._config.seed, self._job.arm, self._job.round, result.device_id, "local noise"
            noisy = add_noise(update, self._job.noise, key_from_seed(*drawn) if self._simulated else None)
            update = {name: value.astype(np.float32) for name, value in noisy.items()}
        if self.exchange.form is Form.MASKED or self.exchange.codec.lossless:
            return replace(result, shared=_tensors(update))
        return self._encoded(result, update)

    def _clipped(self, result: DeviceResult, update: Update) -> tuple[DeviceResult, Update]:
        bound = self._job.bound if self._masking is None else self._masking.clipping_norm()
        length = norm(update)
        if self.exchange.adaptive:
            result = replace(result, within=length <= self._job.bound)
        elif 0 < CUT_SHORT * bound < length and not self._told:
            self._told = True
            log.warning(
                "update-norm = %g is short: the update of device %s has norm %.3g and loses %.0f %% of it, which "
                "slows training down; raise update-norm, or with dp let it follow clip-quantile",
                self._job.bound,
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
