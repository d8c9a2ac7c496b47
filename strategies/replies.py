"""Replies of nodes, checked before any arithmetic: what is not sound is named, counted and left out."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from flwr.app import Message

from strategies.node import Agreed, DeviceReply, NodeReply, Shapes, UnreadableError, read_node

__all__ = ["DeviceReply", "Replies", "read_replies"]


@dataclass(frozen=True)
class Replies:
    """The sound answers of a round in the order of device ids, and the reason for each one left out.

    ``parts`` are what an aggregate is made of: the devices' answers, or with edge aggregation one mean for each node.
    """

    sound: tuple[DeviceReply, ...]
    left_out: dict[str, str]
    parts: tuple[DeviceReply, ...] = ()


def read_replies(
    messages: Iterable[Message],
    asked: Collection[str],
    shapes: Shapes | None,
    *,
    edge: bool = False,
    agreed: Agreed | None = None,
) -> Replies:
    """Check every device's part of every message. ``shapes`` are those of the shared tensors, None if none are expected.

    A device that was not asked, answers twice, failed, or sent other names, shapes, values or weights is left out. With
    ``edge`` a node sends one sum over its devices: if one of them must not count, none of that node can.
    """
    wanted = asked if isinstance(asked, set | frozenset) else frozenset(asked)
    sound: dict[str, DeviceReply] = {}
    left_out: dict[str, str] = {}
    sums: list[NodeReply] = []
    for message in messages:
        name = f"node {message.metadata.src_node_id}"
        if message.has_error():
            left_out[name] = f"error {message.error.code}: {message.error.reason}"
            continue
        try:
            node = read_node(name, message.content, shapes, edge, agreed)
        except UnreadableError as error:
            left_out[name] = str(error)
            continue
        for device_id, answer in node.answers:
            if device_id not in wanted:
                left_out[device_id] = "answered without being asked"
            elif device_id in sound or device_id in left_out:
                sound.pop(device_id, None)
                left_out[device_id] = "answered twice"
            elif isinstance(answer, DeviceReply):
                sound[device_id] = answer
            else:
                left_out[device_id] = answer
        if node.mean is not None:
            sums.append(node)
    means = _sound_sums(sums, sound, left_out)
    for device_id in sorted(wanted - sound.keys() - left_out.keys()):
        left_out[device_id] = "did not answer"
    devices = tuple(sound[d] for d in sorted(sound))
    return Replies(devices, left_out, means if edge and shapes else devices)


def _sound_sums(
    sums: list[NodeReply], sound: dict[str, DeviceReply], left_out: dict[str, str]
) -> tuple[DeviceReply, ...]:
    """The means of nodes all of whose summed devices count. A sum cannot be taken apart, so the others go as a whole."""
    means: list[DeviceReply] = []
    for node in sums:
        odd = [device_id for device_id in node.summed if device_id not in sound]
        if not odd and node.mean is not None:
            earlier = sum(
                other.device_id.split(" again ")[0] == node.name for other in means
            )  # a node may answer in two messages
            means.append(replace(node.mean, device_id=f"{node.name} again {earlier}") if earlier else node.mean)
        for device_id in node.summed if odd else ():
            if sound.pop(device_id, None) is not None:
                left_out[device_id] = f"its node's sum holds {odd[0]!r}, which cannot count"
    return tuple(sorted(means, key=lambda mean: mean.device_id))
