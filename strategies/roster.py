"""Which device lives on which node: asked before the first round."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import cached_property

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fl.algorithms.arms import EVERYONE
from fl.core.errors import PopulationError, RunError
from fl.protocol.reply import ReplySchema, UnreadableError
from fl.protocol.wire import SETTINGS_RECORD, settings_record
from fl.settings.config import RunConfig
from strategies.replies import read_node

log = logging.getLogger("idiolect.server")
NODE_WAIT_SECONDS = 120.0


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
        """Held-out devices, which only test."""
        return tuple(d for d in sorted(self.nodes) if self.examples[d] <= 0)

    def with_everyone(self) -> Roster:
        """With the virtual device that has all data in one place, at home where the first device is."""
        total = sum(self.examples[d] for d in self.training)
        home = self.nodes[self.training[0]]
        return Roster({**self.nodes, EVERYONE: home}, {**self.examples, EVERYONE: total}, self.simulated)


def ask_roster(grid: Grid, config: RunConfig, wait: float = NODE_WAIT_SECONDS) -> Roster:
    """Ask every node which devices it hosts. Raises :class:`RunError` if there is no node, or no device that can train."""
    deadline = time.monotonic() + wait
    while not (node_ids := sorted(grid.get_node_ids())):
        if time.monotonic() > deadline:
            raise RunError(
                f"no node came up within {wait:.0f} s: start SuperNodes, or set num-supernodes of the simulation"
            )
        time.sleep(1.0)
    content = RecordDict({SETTINGS_RECORD: settings_record(config)})
    messages = [Message(content, dst_node_id=n, message_type=MessageType.QUERY) for n in node_ids]
    nodes: dict[str, int] = {}
    examples: dict[str, int] = {}
    errors: list[str] = []
    simulated = [
        _register(reply, nodes, examples, errors)
        for reply in grid.send_and_receive(messages, timeout=config.federation.round_timeout)
    ]
    roster = Roster(nodes, examples, all(simulated))
    if not roster.training:
        detail = f" ({errors[0]})" if errors else ""
        raise RunError(
            f"none of {len(node_ids)} nodes hosts a device with training data{detail}: check the manifest and the nodes' configuration"
        )
    return roster


def _register(reply: Message, nodes: dict[str, int], examples: dict[str, int], errors: list[str]) -> bool:
    """Enter the devices of one node; what is left out goes to ``errors``, a device that is there already raises.

    Returns whether the node says of all of them that they are simulated.
    """
    node = reply.metadata.src_node_id
    try:
        if reply.has_error():
            raise UnreadableError(reply.error.reason)
        answers = read_node(node, reply.content, ReplySchema()).answers
    except UnreadableError as error:
        errors.append(f"node {node}: {error}")
        log.warning("left out with all its devices: %s", errors[-1])
        return True
    for device_id, answer in answers:
        if isinstance(answer, str):
            errors.append(f"device {device_id}: its data cannot be read; its own log has the reason")
            log.warning("left out: %s", errors[-1])
        elif nodes.get(device_id) == node:
            raise PopulationError(f"node {node} lists device {device_id!r} twice: give each device an id of its own")
        elif device_id in nodes:
            raise RunError(f"two nodes say that they host device {device_id!r}: give each SuperNode its own device-id")
        else:
            nodes[device_id], examples[device_id] = node, int(answer.examples)
    return all(answer.numbers.get("simulated") for _, answer in answers if not isinstance(answer, str))
