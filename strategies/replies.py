"""Replies of nodes, checked before any arithmetic: what is not sound is named, counted and left out.

What is trusted is the node that a message says it comes from. Flower 1.41's SuperLink takes a request from the holder of the node's key
alone (``node_auth_server_interceptor.py``) and a reply only in the name of the node that the message was for
(``store_message_res`` in ``sql_linkstate.py``). It does not compare the two, so whoever knew the id of a message to another node could
answer it; that id is a hash, of which :mod:`strategies.arm` makes a part unguessable.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from flwr.app import Message, MetricRecord, RecordDict

from fl.aggregation.updates import DeviceUpdate
from fl.codecs.base import CompressionError
from fl.codecs.tensors import decode_all, split
from fl.core.errors import IdiolectError
from fl.metrics.align import MAX_COUNT
from fl.protocol.guard import LOSS, REAL_COUNTS, WHOLE_COUNTS, error_counts
from fl.protocol.reply import Form, ReplySchema, UnreadableError, read_arrays, read_columns
from fl.protocol.wire import COUNTS, FIELDS, PAYLOAD, TOTALS, WITHIN, read_counts, split_key
from fl.runs.failures import last_failure

Stacks = dict[str, np.ndarray]
SHOWN = 200  # characters of what a node says that reach the log
FAILED = "failed on the device; its own log has the reason"


@dataclass(frozen=True)
class Replies:
    """The sound answers of a round in the order of device ids, and the reason for each one left out.

    ``parts`` are what an aggregate is made of: the devices' updates, or with edge aggregation one mean for each node.
    """

    sound: tuple[DeviceUpdate, ...]
    left_out: dict[str, str]
    parts: tuple[DeviceUpdate, ...] = ()


@dataclass
class NodeReply:
    """What a node says of each device, and the mean of a sum over some of them."""

    node: int
    answers: list[tuple[str, DeviceUpdate | str]]  # device, and its answer or what is wrong with it
    summed: tuple[str, ...] = ()  # devices that are in the sum
    mean: DeviceUpdate | None = None


def plain(text: str) -> str:
    """A node's words as they may stand in a log: printable and not long."""
    return "".join(sign if sign.isprintable() else "?" for sign in text[:SHOWN])


def reason_of(folder: str, device_id: str, answer: str) -> str:
    """``answer``, what is wrong with that of a device; where it failed in a simulation, its own words of the run folder."""
    said = last_failure(Path(folder), device_id) if answer == FAILED else ""
    return f"failed: {said}" if said else answer


def read_node(node: int, content: RecordDict, schema: ReplySchema, *, trains: bool = False) -> NodeReply:
    """Take a reply apart; raises :class:`UnreadableError` where columns, stacks or the sum as a whole are not as agreed.

    With ``trains`` every device must have a positive weight and an update where one is expected.
    """
    ids, rows = read_columns(content)
    stacks, bad = ({}, {}) if schema.edge or not ids else _read_stacks(content, len(ids), schema)
    own = schema.form in (Form.PLAIN, Form.ENCODED) and not schema.edge
    answers: list[tuple[str, DeviceUpdate | str]] = []
    for place, (device_id, values) in enumerate(zip(ids, rows, strict=True)):
        answer = _read_numbers(device_id, values, schema)
        if trains and isinstance(answer, DeviceUpdate):
            tensors = {n: stack[place] for n, stack in stacks.items()} if own else None
            answer = bad.get(place, "") or _weight_fault(answer) or replace(answer, tensors=tensors)
        answers.append((device_id, answer))
    for key in list(content):
        kind, device_id = split_key(key)
        if kind == COUNTS and device_id:
            answers.append((device_id, _read_alone(content, key, device_id, schema, trains)))
    reply = NodeReply(node, answers)
    if schema.edge and ids:
        reply.summed, reply.mean = tuple(ids), _read_sum(f"node {node}", content, schema, answers[: len(ids)])
    return reply


def _read_numbers(device_id: str, values: Mapping[str, object], schema: ReplySchema) -> DeviceUpdate | str:
    """A device's counts and numbers; or what is wrong with them."""
    try:
        metrics, numbers = read_counts(values)
    except (IdiolectError, ValueError, OverflowError) as error:
        return f"unreadable counts: {error}"
    said = {f"{name}.{part}": getattr(counts, part) for name, counts in metrics.items() for part in FIELDS} | numbers
    for name, value in said.items():  # all of them reach results.jsonl; a loss alone may be negative
        if name not in WHOLE_COUNTS | REAL_COUNTS and name not in error_counts():
            return f"unreadable counts: {name!r} is none"
        if not math.isfinite(value) or abs(value) > MAX_COUNT or (value < 0 and name != LOSS):
            return f"unreadable counts: {name} is {value:g}"
    if numbers.get("failed"):
        return FAILED
    return DeviceUpdate(device_id, None, metrics, numbers, schema.exchange.most_examples)


def _weight_fault(update: DeviceUpdate) -> str:
    return "" if update.examples > 0 else f"weight {update.examples} is not positive"


def _read_alone(content: RecordDict, key: str, device_id: str, schema: ReplySchema, trains: bool) -> DeviceUpdate | str:
    """The answer of a device that has a record of its own: a failure, or an evaluation with other counts. It has no update."""
    try:
        answer = _read_numbers(device_id, content.metric_records[key], schema)
    except KeyError as error:
        return f"unreadable counts: {error}"
    if isinstance(answer, str) or not trains:
        return answer
    if schema.form not in (Form.NOTHING, Form.MASKED):
        return "is not in its node's sum" if schema.edge else "sent no update"
    return _weight_fault(answer) or answer


def _read_stacks(content: RecordDict, count: int, schema: ReplySchema) -> tuple[Stacks, dict[int, str]]:
    """Updates with a leading dimension of devices, decoded, and what is wrong with single rows."""
    key, expected = schema.arrays(count)
    if not key:
        return {}, {}
    record = content.array_records.get(key)
    if record is None:
        return {}, dict.fromkeys(range(count), "sent no update")
    stacks = read_arrays(record, expected)
    if schema.form is Form.ENCODED:
        return _decoded(stacks[PAYLOAD], schema)
    bad: dict[int, str] = {}
    for name, stack in stacks.items():
        finite = np.isfinite(stack)
        if not finite.all():
            rows = finite.reshape(count, -1).all(axis=1)
            bad |= {int(row): f"tensor {name!r} holds NaN or infinity" for row in np.flatnonzero(~rows)}
    return stacks, bad


def _decoded(payload: np.ndarray, schema: ReplySchema) -> tuple[Stacks, dict[int, str]]:
    """Each device's update from its encoding."""
    sizes, codec = schema.exchange.payload_sizes(schema.shapes), schema.exchange.codec
    stacks = {name: np.zeros((len(payload), *shape), np.float32) for name, shape in schema.shapes.items()}
    bad: dict[int, str] = {}
    for row, data in enumerate(payload):
        try:
            for name, values in decode_all(split(data, sizes), schema.shapes, codec).items():
                stacks[name][row] = values
        except CompressionError as error:
            bad[row] = str(error)
    return stacks, bad


def _read_sum(
    name: str, content: RecordDict, schema: ReplySchema, answers: list[tuple[str, DeviceUpdate | str]]
) -> DeviceUpdate:
    """The mean of a node's devices, from its sum; raises if the sum is not one over exactly these devices."""
    key, expected = schema.arrays(len(answers))
    record, totals = content.array_records.get(key), content.metric_records.get(TOTALS, MetricRecord())
    if record is None:
        raise UnreadableError("sent no sum of updates")
    weight, count = totals.get("weight"), totals.get("devices")
    said = math.fsum(schema.exchange.weigh(a.examples) for _, a in answers if isinstance(a, DeviceUpdate))
    sound = all(isinstance(answer, DeviceUpdate) for _, answer in answers)
    if not isinstance(weight, int | float) or not weight > 0 or count != len(answers):
        raise UnreadableError(f"its sum has weight {weight} of {count} devices, but it names {len(answers)}")
    if sound and not math.isclose(weight, said, rel_tol=1e-9):
        raise UnreadableError(f"its sum has weight {weight}, its devices have {said} examples")
    within = totals.get(WITHIN, 0)
    if not isinstance(within, int) or not 0 <= within <= len(answers):
        raise UnreadableError(f"{within} of its {len(answers)} devices are said to be within the clipping norm")
    tensors = read_arrays(record, expected)
    odd = [n for n, values in tensors.items() if not np.isfinite(values).all()]
    if odd:
        raise UnreadableError(f"tensor {odd[0]!r} holds NaN or infinity")
    numbers = {"examples": float(weight), "devices": float(len(answers)), WITHIN: float(within)}
    return DeviceUpdate(name, {n: values / weight for n, values in tensors.items()}, {}, numbers)


def read_replies(
    messages: Iterable[Message], hosts: Mapping[str, int], schema: ReplySchema, *, trains: bool = False
) -> Replies:
    """Check every device's part of every message. ``hosts`` are the devices that were asked, each with the node that it lives on.

    A row counts from that node alone: any other is passed over, whatever it says. A device that answers twice, failed, or sent
    other names, shapes, values or weights is left out. With ``edge`` a node sends one sum over its devices: if one of them must
    not count, none of that node can.
    """
    found: dict[str, DeviceUpdate | str] = {}  # by device
    faults: dict[str, str] = {}  # by node
    sums: list[NodeReply] = []
    for message in messages:
        node = message.metadata.src_node_id
        name = f"node {node}"
        if message.has_error():
            faults[name] = plain(f"error {message.error.code}: {message.error.reason}")
            continue
        try:
            reply = read_node(node, message.content, schema, trains=trains)
        except UnreadableError as error:
            faults[name] = plain(str(error))
            continue
        if foreign := [device_id for device_id, _ in reply.answers if hosts.get(device_id) != node]:
            more = f" and {len(foreign) - 1} more" if foreign[1:] else ""
            faults[name] = plain(f"rows for {foreign[0]!r}{more} are passed over: it was not asked for them")
        for device_id, answer in reply.answers:
            if hosts.get(device_id) == node:
                found[device_id] = "answered twice" if device_id in found else answer
        if reply.mean is not None:
            sums.append(reply)
    means = _sound_sums(sums, hosts, found)
    left_out = {**faults, **{d: plain(answer) for d, answer in found.items() if isinstance(answer, str)}}
    for device_id in sorted(hosts.keys() - found.keys()):
        left_out[device_id] = "did not answer"
    devices = tuple(answer for _, answer in sorted(found.items()) if isinstance(answer, DeviceUpdate))
    return Replies(devices, left_out, means if schema.edge else devices)


def _sound_sums(
    sums: list[NodeReply], hosts: Mapping[str, int], found: dict[str, DeviceUpdate | str]
) -> tuple[DeviceUpdate, ...]:
    """The means of nodes all of whose summed devices are theirs and count. A sum cannot be taken apart, so others go as a whole."""
    means: list[DeviceUpdate] = []
    for reply in sums:
        own = [device_id for device_id in reply.summed if hosts.get(device_id) == reply.node]
        odd = [d for d in reply.summed if hosts.get(d) != reply.node or isinstance(found[d], str)]
        if not odd and reply.mean is not None:
            name = reply.mean.device_id
            earlier = sum(m.device_id.split(" again ")[0] == name for m in means)  # a node may answer in two messages
            means.append(replace(reply.mean, device_id=f"{name} again {earlier}") if earlier else reply.mean)
        for device_id in own if odd else ():
            if not isinstance(found[device_id], str):
                found[device_id] = f"its node's sum holds {odd[0]!r}, which cannot count"
    return tuple(sorted(means, key=lambda mean: mean.device_id))
