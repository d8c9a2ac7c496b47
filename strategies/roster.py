"""Which device lives on which node: asked before the first round."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fl.aggregation.updates import DeviceUpdate
from fl.algorithms.arms import EVERYONE
from fl.algorithms.plan import Phase
from fl.core.errors import RunError
from fl.protocol.reply import Exchange, ReplySchema, UnreadableError
from fl.protocol.wire import SETTINGS_RECORD, settings_record
from fl.settings.config import RunConfig
from strategies.keys import Owners, keys_of
from strategies.replies import plain, read_node, reason_of

log = logging.getLogger("idiolect.server")
NODE_WAIT_SECONDS = 120.0
MAX_ID = 128  # characters of a device's id


@dataclass(frozen=True)
class Roster:
    """Which device lives on which node, and by which key. ``examples`` are those that count, 0 for people who never train.

    ``simulated`` if every node says so: one that does not is enough for noise and samples of the operating system.
    """

    nodes: dict[str, int]
    examples: dict[str, int]
    simulated: bool = True
    keys: dict[str, str] = field(default_factory=dict)

    @cached_property
    def training(self) -> tuple[str, ...]:
        """Devices that take part in training."""
        return tuple(d for d in sorted(self.nodes) if self.examples[d] > 0)

    @cached_property
    def new_people(self) -> tuple[str, ...]:
        """Held-out devices, which only test."""
        return tuple(d for d in sorted(self.nodes) if self.examples[d] <= 0)

    def with_everyone(self) -> Roster:
        """With the virtual device that has all data in one place, at home where the first device is."""
        total = sum(self.examples[d] for d in self.training)
        home = self.nodes[self.training[0]]
        return Roster({**self.nodes, EVERYONE: home}, {**self.examples, EVERYONE: total}, self.simulated)


def ask_roster(grid: Grid, config: RunConfig, wait: float = NODE_WAIT_SECONDS) -> Roster:
    """Ask every node which devices it hosts. Raises :class:`RunError` if there is no node, or no device that can train.

    What a node says is a claim. An id belongs to the key that is known for it (:mod:`strategies.keys`), else to the first node that
    claims it, in the order of node ids. Claims that do not count are named in the log.
    """
    owners = Owners.of(config)
    deadline = time.monotonic() + wait
    while not (node_ids := sorted(grid.get_node_ids())):
        if time.monotonic() > deadline:
            raise RunError(f"no node came up within {wait:.0f} s: start SuperNodes, or set num-supernodes to more")
        time.sleep(1.0)
    content = RecordDict({SETTINGS_RECORD: settings_record(config)})
    messages = [
        Message(content, dst_node_id=n, message_type=MessageType.QUERY, group_id=secrets.token_hex(16))
        for n in node_ids
    ]
    replies = list(grid.send_and_receive(messages, timeout=config.federation.round_timeout))
    schema = ReplySchema(exchange=Exchange.of(config, None, Phase.FEDERATE))  # counts alone
    replies.sort(key=lambda reply: reply.metadata.src_node_id)
    roster, faults = _enter(replies, schema, keys_of(grid), owners, config.output)
    lines = [f"{plain(who)} left out: {plain(why)}" for who, why in faults.items()]
    for line in lines:
        log.warning("%s", line)
    if not roster.training:
        detail = f" ({lines[0]})" if lines else ""
        raise RunError(
            f"none of {len(node_ids)} nodes hosts a device with training data{detail}: check the manifest and the nodes' configuration"
        )
    return roster


def _enter(
    replies: list[Message], schema: ReplySchema, keys: Mapping[int, str], owners: Owners, output: str
) -> tuple[Roster, dict[str, str]]:
    """The roster of these claims, and why others do not count; a simulation's devices say why in its folder ``output``."""
    claims: dict[int, dict[str, DeviceUpdate | str]] = {}
    faults: dict[str, str] = {}
    for reply in replies:
        node = reply.metadata.src_node_id
        try:
            claims[node] = _claimed(node, reply, schema)
        except UnreadableError as error:
            faults[f"node {node}"] = str(error)
    sound = [answer for rows in claims.values() for answer in rows.values() if isinstance(answer, DeviceUpdate)]
    simulated = all(answer.numbers.get("simulated") for answer in sound)
    nodes: dict[str, int] = {}
    examples: dict[str, int] = {}
    for node, rows in claims.items():
        if len(rows) > 1 and not simulated:
            faults[f"node {node}"] = f"lists {len(rows)} devices, and a deployed node hosts one"
            continue
        for device_id, answer in rows.items():
            why = _id_fault(device_id) or owners.fault(device_id, keys.get(node, ""))
            if not why and device_id in nodes:
                why = f"node {nodes[device_id]} hosts it already: give each SuperNode its own device-id"
            if why or isinstance(answer, str):
                faults[f"device {device_id[:MAX_ID]} of node {node}"] = why or reason_of(output, device_id, str(answer))
            else:
                nodes[device_id], examples[device_id] = node, int(answer.examples)
    return Roster(nodes, examples, simulated, {d: keys[n] for d, n in nodes.items() if keys.get(n)}), faults


def _id_fault(device_id: str) -> str:
    if 0 < len(device_id) <= MAX_ID and device_id.isprintable() and device_id != EVERYONE:
        return ""
    return f"its id has to be printable, of 1 to {MAX_ID} characters, and not {EVERYONE!r}"


def _claimed(node: int, reply: Message, schema: ReplySchema) -> dict[str, DeviceUpdate | str]:
    """What a node says of each device it hosts; :class:`UnreadableError` if that cannot be as a whole."""
    if reply.has_error():
        raise UnreadableError(reply.error.reason)
    claimed: dict[str, DeviceUpdate | str] = {}
    for device_id, answer in read_node(node, reply.content, schema).answers:
        if device_id in claimed:
            raise UnreadableError(f"lists device {device_id!r} twice: give each device an id of its own")
        claimed[device_id] = answer
    return claimed
