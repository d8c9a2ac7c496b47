"""A node's part in secure sums: its participants' sessions on its own disk, and the masked vectors of a training message.

A participant is a device, or with ``edge`` aggregation the node itself, whose vector is the sum over its devices. Each step
takes the session off the disk, and stores it again only where another step follows, before the answer leaves: a process that
starts again never answers a step twice, and no seed outlives a step that failed (docs/privacy.md).
"""

import logging
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from clients.store import folder_name
from clients.updates.reply import DeviceResult
from fl.core.errors import DemandError
from fl.core.files import sync_path, write_atomically
from fl.privacy.randomness import key_from_seed
from fl.privacy.secure_sum.device import STEPS, SecureSumClient
from fl.privacy.secure_sum.identity import SIGNATURE_BYTES, read_identity
from fl.privacy.secure_sum.keys import PUBLIC_BYTES, SHARE_BYTES, SecureSumError
from fl.privacy.secure_sum.messages import (
    KIND,
    CheckSurvivors,
    EndSession,
    Inbox,
    MaskedInput,
    Participants,
    SecureSumSetup,
    Survivors,
)
from fl.privacy.secure_sum.vector import flatten
from fl.protocol.node import NodeConfig
from fl.protocol.reply import Exchange
from fl.protocol.wire import SECURE, WITHIN, Job, device_key, split_key
from fl.settings.names import NONE

log = logging.getLogger("idiolect.client")
MAX_SESSION_BYTES = 64 * 2**20
FOLDER = "secure-sums"
QUERIES: dict[str, Any] = {
    kind.__name__: kind for kind in (SecureSumSetup, Participants, CheckSurvivors, Survivors, EndSession)
}


class Sessions:
    """The newest session of each participant, in files below ``root``. They hold secrets and never leave the node."""

    def __init__(self, root: Path, node: NodeConfig) -> None:
        self._root = root / FOLDER
        self._node = node
        self.identity = read_identity(node.device_id, node.key, node.peers)

    def begin(self, participant: str, setup: SecureSumSetup) -> SecureSumClient:
        """A participant's part in a new session; what is left of its earlier ones is erased.

        Raises :class:`DemandError` if the sum could be over fewer than the owner asks for.
        """
        earlier = self._root if self._node.deployed else self._folder(participant)  # one device, whatever it is called
        if earlier.exists():
            shutil.rmtree(earlier)
        least = self._node.min_participants
        if self._node.deployed and setup.threshold < least:  # all later steps require the threshold
            raise DemandError(
                f"a secure sum of {len(setup.devices)} participants, {setup.threshold} of which must stay, where this device asks for "
                f"at least {least}: ask more devices, raise secure-sum.threshold, or let the owner lower min-participants"
            )
        return SecureSumClient(participant, setup)

    def _folder(self, participant: str) -> Path:
        return self._root / folder_name(participant)

    def save(self, client: SecureSumClient) -> None:
        """Durably store a participant's state. :class:`SecureSumError` on a full disk."""
        try:
            write_atomically(self._folder(client.device) / client.setup.session.hex(), client.state())
        except OSError as error:
            raise SecureSumError(
                f"the state of {client.device!r} could not be stored ({error}): it takes no part in this sum"
            ) from error

    def take(self, participant: str, session: bytes) -> SecureSumClient:
        """A participant's state, which is no longer on the disk then. :class:`SecureSumError` if there is none, or it is damaged."""
        stored = self._folder(participant) / session.hex()
        taken = stored.with_suffix(".taken")
        try:
            stored.rename(taken)  # of two processes that are asked for one step, one finds it
            with taken.open("rb") as file:
                taken.unlink()
                state = file.read(MAX_SESSION_BYTES)
        except OSError as error:
            raise SecureSumError(
                f"{participant!r} has no session {session.hex()} of a secure sum ({error}): it takes no part"
            ) from error
        return SecureSumClient.restored(state)

    def end(self, participant: str) -> None:
        """Make sure that a session that was taken does not come back after a power cut."""
        sync_path(self._folder(participant))


def take_step(sessions: Sessions, record: Mapping[str, Any], participant: str) -> ConfigRecord | None:
    """One participant's answer to a step that is a query: keys for a setup, shares for a roster, a signature or shares of secrets
    for survivors; none to the end of a session."""
    kind, identity = str(record.get(KIND)), sessions.identity
    if kind not in QUERIES:
        raise SecureSumError("this message is no step of a secure sum: use the same version at both ends")
    message = QUERIES[kind].from_record(record)
    answer: Any = None
    begins = isinstance(message, SecureSumSetup)
    client = sessions.begin(participant, message) if begins else sessions.take(participant, message.session)
    match message:
        case SecureSumSetup():
            answer = client.advertise(identity)
        case Participants():
            answer = client.share(message, identity)
        case CheckSurvivors():
            answer = client.check(message, identity)
        case Survivors():
            answer = client.reveal(message, identity)
    if answer is None or client.step == STEPS[-1]:
        sessions.end(participant)
    else:
        sessions.save(client)
    return None if answer is None else answer.to_record()


def inboxes(content: RecordDict) -> dict[str, Inbox]:
    """By participant, what a training message brings it from the others."""
    found = {split_key(key)[1]: record for key, record in content.config_records.items() if split_key(key)[0] == SECURE}
    return {participant: Inbox.from_record(record) for participant, record in found.items()}


def noise_of(setup: SecureSumSetup) -> float:
    """Standard deviation of the noise that each participant of a session adds."""
    return setup.noise / math.sqrt(len(setup.devices))


class Masking:
    """Step 3 of the sums that one training message belongs to: each device's update is masked, or added to its node's sum."""

    def __init__(
        self, sessions: Sessions, exchange: Exchange, job: Job, inboxes: Mapping[str, Inbox], *, simulated: bool
    ) -> None:
        self._sessions, self._exchange, self._job, self._inboxes = sessions, exchange, job, inboxes
        self._simulated, self._edge = simulated, exchange.edge
        if self._edge and len(inboxes) != 1:
            raise SecureSumError(f"{len(inboxes)} participants for one node: with edge sums it is one")
        self._clients: dict[str, SecureSumClient] = {}
        for participant, inbox in inboxes.items():
            try:
                self._clients[participant] = sessions.take(participant, inbox.session)
            except SecureSumError as error:
                log.warning("participant %s leaves the secure sum of round %s: %s", participant, job.round, error)
        if not self._clients:
            raise SecureSumError("none of the participants of this message has a session: nothing is trained")
        self._sums: dict[str, np.ndarray] = {}
        self._weight = 0.0
        self._records: dict[str, ConfigRecord] = {}

    @property
    def noise(self) -> float:
        """Standard deviation of a device's own share of the noise."""
        return noise_of(next(iter(self._clients.values())).setup)

    def clipping_norm(self) -> float:
        """What to clip an update to so that it is within the job's bound on the grid too. A sum is rounded once for all."""
        setup = next(iter(self._clients.values())).setup
        return self._job.bound - (2 if self._edge else 1) * setup.grid.norm_slack(setup.size)

    def add(self, result: DeviceResult, update: Mapping[str, np.ndarray]) -> int:
        """Take one device's clipped update; returns the bytes that this device sends for it in all steps together."""
        weight = self._exchange.weigh(result.numbers["examples"])
        sums = {name: np.multiply(value, weight, dtype=np.float64) for name, value in update.items()}
        if self._exchange.adaptive:  # one more coordinate of the vector, worth half of the bound
            sums[WITHIN] = np.array([self._job.bound * (0.5 if result.within else -0.5)])
        if self._edge:
            for name, value in sums.items():
                self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._weight += weight
            return int(result.numbers["bytes-up"])
        if result.device_id not in self._clients:
            raise SecureSumError(f"{result.device_id!r} is in no secure sum of this round: it sends nothing")
        masked = self._mask(result.device_id, sums, weight)
        sealed = self._inboxes[result.device_id].sealed
        shares = sum(map(len, sealed.values())) + SHARE_BYTES * (len(sealed) + 1)
        signatures = 0 if self._sessions.identity.key is None else 2 * SIGNATURE_BYTES
        return 2 * PUBLIC_BYTES + signatures + shares + len(masked.words) + len(masked.commitment)

    def _mask(self, participant: str, sums: Mapping[str, np.ndarray], weight: float) -> MaskedInput:
        client = self._clients[participant]
        # With noise the divisor is public and the weights' sum would be one more thing to protect: it is not asked for.
        said = weight if self._exchange.config.privacy.dp.mode == NONE else 0.0
        numbers = flatten(sums, said, self._job.bound)
        key = None
        if self._simulated:
            key = key_from_seed(
                self._exchange.config.seed, self._job.arm, self._job.round, participant, "distributed noise"
            )
        masked = client.mask(self._inboxes[participant], numbers, noise_of(client.setup), key)
        self._sessions.save(client)
        self._records[device_key(SECURE, participant)] = masked.to_record()
        return masked

    def records(self) -> dict[str, ConfigRecord]:
        """The masked vectors, once all devices were added. A node without any device to sum sends none."""
        if self._edge and self._sums:
            ((participant, _),) = self._inboxes.items()
            self._mask(participant, self._sums, self._weight)
            self._sums = {}
        return self._records
