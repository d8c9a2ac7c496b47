"""The aggregator's side of a secure sum over Flower messages: steps as queries, and one inside the training message.

| step | message | a participant answers with |
| --- | --- | --- |
| 1 | query: ``SecureSumSetup`` | public keys |
| 2 | query: ``Participants`` | sealed shares for the others |
| 3 | train: ``Inbox`` beside job and shared tensors | its masked vector, trained, clipped and weighted |
| 4 | query: ``CheckSurvivors``, if any device signs | its signature of that list |
| 5 | query: ``Survivors`` | shares that take the masks off the sum |

Who is left out, or everybody of a session that ends without a sum, is told to forget its secrets; nobody waits for an answer.

Whoever is missing at a step is out from there on. Below the threshold :class:`SecureSumError` ends the round without a sum.
"""

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fl.privacy.secure_sum.keys import SecureSumError
from fl.privacy.secure_sum.messages import (
    AdvertiseKeys,
    ConsistencyCheck,
    EndSession,
    Inbox,
    MaskedInput,
    SecureSumSetup,
    ShareKeys,
    Unmask,
)
from fl.privacy.secure_sum.server import SecureSumServer
from fl.protocol.wire import JOB, SECURE, SECURE_STEP, SETTINGS_RECORD, Job, split_key

log = logging.getLogger("idiolect.server")
STEP_TYPE = f"{MessageType.QUERY}.{SECURE_STEP}"


@dataclass
class SecureRound:
    """One session. ``nodes`` says where each participant lives; answers from elsewhere do not count.

    ``left_out`` collects who is out of the sum, with the reason.
    """

    grid: Grid
    setup: SecureSumSetup
    nodes: Mapping[str, int]
    job: Job  # the template of the queries
    settings: ConfigRecord
    timeout: float | None = None
    left_out: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._server = SecureSumServer(self.setup)

    def begin(self) -> dict[str, Inbox]:
        """Steps 1 and 2; what each remaining participant needs for step 3."""
        try:
            present = self._query(self.setup.to_record(), tuple(sorted(self.nodes)), AdvertiseKeys)
            present = self._query(self._server.participants().to_record(), present, ShareKeys)
            return {participant: self._server.inbox(participant) for participant in present}
        except SecureSumError:
            self._end(())
            raise

    def take(self, replies: Iterable[Message], asked: Iterable[str]) -> tuple[str, ...]:
        """Step 3: add the masked vectors of training replies; returns the participants that are in the sum."""
        return self._add(replies, tuple(asked), MaskedInput)

    def total(self) -> np.ndarray:
        """Steps 4 and 5, and the sum of all masked vectors ``(size,)``."""
        done: tuple[str, ...] = ()
        try:
            check = self._server.check()
            present = self._query(check.to_record(), check.devices, ConsistencyCheck) if check else ()
            survivors = self._server.survivors()
            done = self._query(survivors.to_record(), present or survivors.devices, Unmask)
            return self._server.total()
        finally:
            self._end(done)

    def _end(self, done: Collection[str]) -> None:
        """Tell all but those who are ``done`` that the session is over."""
        others = sorted(self.nodes.keys() - done)
        self.grid.push_messages(self._messages(EndSession(self.setup.session).to_record(), others))

    def _query(self, record: ConfigRecord, participants: tuple[str, ...], kind: type[Any]) -> tuple[str, ...]:
        messages = self._messages(record, participants)
        return self._add(self.grid.send_and_receive(messages, timeout=self.timeout), participants, kind)

    def _messages(self, record: ConfigRecord, participants: Iterable[str]) -> list[Message]:
        by_node: dict[int, list[str]] = {}
        for participant in participants:
            by_node.setdefault(self.nodes[participant], []).append(participant)
        messages = []
        for node, hosted in sorted(by_node.items()):
            job = replace(self.job, devices=tuple(hosted)).to_record()
            content = RecordDict({JOB: job, SETTINGS_RECORD: self.settings, SECURE: record})
            messages.append(Message(content, dst_node_id=node, message_type=STEP_TYPE))
        return messages

    def _add(self, replies: Iterable[Message], asked: tuple[str, ...], kind: type[Any]) -> tuple[str, ...]:
        """Take the messages of one step out of replies; returns who sent a sound one, and notes why others are out."""
        done: set[str] = set()
        faults: dict[str, str] = {}
        for reply in replies:
            node = reply.metadata.src_node_id
            if reply.has_error():
                faults[f"node {node}"] = f"error {reply.error.code}: {reply.error.reason}"
                continue
            for key, record in reply.content.config_records.items():
                part, participant = split_key(key)
                if part != SECURE:
                    continue
                try:
                    if participant not in asked or self.nodes[participant] != node:
                        raise SecureSumError("was not asked, or does not live there")
                    message = kind.from_record(record)
                    if message.device != participant:
                        raise SecureSumError("is under another participant's name")
                    self._server.add(message)
                    done.add(participant)
                except SecureSumError as error:
                    faults[participant] = f"{kind.__name__}: {error}"
        for participant in asked:
            if participant not in done:
                faults.setdefault(participant, f"sent no {kind.__name__} for the secure sum")
        for name, why in faults.items():
            log.warning("secure sum, step %s: %s: %s", kind.__name__, name, why)
        self.left_out |= {name: why for name, why in faults.items() if name not in done}
        return tuple(sorted(done))
