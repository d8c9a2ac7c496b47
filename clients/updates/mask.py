"""A node's part in secure sums: its participants' sessions on its own disk, and the masked vectors of a training message.

A participant is a device, or with ``edge`` aggregation the node itself, whose vector is the sum over its devices. Each step
stores the session before the answer leaves: a process that starts again never answers a step twice (docs/privacy.md).
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from clients.store import folder_name
from clients.updates.reply import DeviceResult
from fl.core.files import write_atomically
from fl.privacy.randomness import key_from_seed
from fl.privacy.secure_sum.device import SecureSumClient
from fl.privacy.secure_sum.keys import PUBLIC_BYTES, SHARE_BYTES, SecureSumError
from fl.privacy.secure_sum.messages import KIND, Inbox, MaskedInput, Participants, SecureSumSetup, Survivors
from fl.privacy.secure_sum.vector import flatten
from fl.protocol.reply import Exchange
from fl.protocol.wire import SECURE, WITHIN, Job, device_key, split_key
from fl.settings.names import NONE

log = logging.getLogger("idiolect.client")
MAX_SESSION_BYTES = 64 * 2**20
FOLDER = "secure-sums"


class Sessions:
    """The newest session of each participant, in files below ``root``. They hold secrets and never leave the node."""

    def __init__(self, root: Path) -> None:
        self._root = root / FOLDER

    def _path(self, participant: str) -> Path:
        return self._root / f"{folder_name(participant)}.json"

    def save(self, client: SecureSumClient) -> None:
        """Durably store a participant's state, in place of any earlier one. :class:`SecureSumError` on a full disk."""
        try:
            write_atomically(self._path(client.device), client.state())
        except OSError as error:
            raise SecureSumError(
                f"the state of {client.device!r} could not be stored ({error}): it takes no part in this sum"
            ) from error

    def load(self, participant: str) -> SecureSumClient:
        """A participant's state. :class:`SecureSumError` if there is none, or it is damaged."""
        path = self._path(participant)
        try:
            if path.stat().st_size > MAX_SESSION_BYTES:
                raise SecureSumError(f"{path} has more than {MAX_SESSION_BYTES:,} bytes: it is no session")
            return SecureSumClient.restored(path.read_bytes())
        except OSError as error:
            raise SecureSumError(
                f"{participant!r} has no session of a secure sum ({error}): it takes no part"
            ) from error


def take_step(sessions: Sessions, record: Mapping[str, Any], participant: str) -> ConfigRecord:
    """One participant's answer to a step that is a query: keys for a setup, shares for a roster, shares of secrets for survivors."""
    kind = record.get(KIND)
    if kind == SecureSumSetup.__name__:
        client = SecureSumClient(participant, SecureSumSetup.from_record(record))
        answer: Any = client.advertise()
    elif kind == Participants.__name__:
        client = sessions.load(participant)
        answer = client.share(Participants.from_record(record))
    elif kind == Survivors.__name__:
        client = sessions.load(participant)
        answer = client.reveal(Survivors.from_record(record))
    else:
        raise SecureSumError(f"message {kind!r} is no step of a secure sum: use the same version at both ends")
    sessions.save(client)
    record_out: ConfigRecord = answer.to_record()
    return record_out


def inboxes(content: RecordDict) -> dict[str, Inbox]:
    """By participant, what a training message brings it from the others."""
    found = {split_key(key)[1]: record for key, record in content.config_records.items() if split_key(key)[0] == SECURE}
    return {participant: Inbox.from_record(record) for participant, record in found.items()}


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
        for participant in inboxes:
            try:
                self._clients[participant] = sessions.load(participant)
            except SecureSumError as error:
                log.warning("participant %s leaves the secure sum of round %s: %s", participant, job.round, error)
        if not self._clients:
            raise SecureSumError("none of the participants of this message has a session: nothing is trained")
        self._sums: dict[str, np.ndarray] = {}
        self._weight = 0.0
        self._records: dict[str, ConfigRecord] = {}

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
        return 2 * PUBLIC_BYTES + shares + len(masked.words) + len(masked.commitment)

    def _mask(self, participant: str, sums: Mapping[str, np.ndarray], weight: float) -> MaskedInput:
        client = self._clients[participant]
        setup = client.setup
        # With noise the divisor is public and the weights' sum would be one more thing to protect: it is not asked for.
        said = weight if self._exchange.config.privacy.dp.mode == NONE else 0.0
        numbers = flatten(sums, said, self._job.bound)
        key = None
        if self._simulated:
            key = key_from_seed(
                self._exchange.config.seed, self._job.arm, self._job.round, participant, "distributed noise"
            )
        masked = client.mask(self._inboxes[participant], numbers, setup.noise / math.sqrt(len(setup.devices)), key)
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
