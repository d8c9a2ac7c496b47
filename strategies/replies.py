"""Replies of nodes, checked before any arithmetic: what is not sound is named, counted and left out."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, Message

from fl.errors import IdiolectError
from fl.metrics import Counts
from fl.wire import COUNTS, FIELDS, SHARED, device_key, read_counts, split_key


@dataclass(frozen=True)
class DeviceReply:
    """One device's sound answer: its shared tensors (None after an evaluation), counts, and plain numbers."""

    device_id: str
    shared: ArrayRecord | None
    metrics: dict[str, Counts]
    numbers: dict[str, float]

    @property
    def examples(self) -> float:
        """Number of training examples: the weight of this device in an average."""
        return self.numbers.get("examples", 0.0)


@dataclass(frozen=True)
class Replies:
    """The sound answers of a round in the order of device ids, and the reason for each one left out."""

    sound: tuple[DeviceReply, ...]
    left_out: dict[str, str]


def read_replies(
    messages: Iterable[Message], asked: Collection[str], shapes: Mapping[str, tuple[int, ...]] | None
) -> Replies:
    """Check every device's part of every message. ``shapes`` are those of the shared tensors, None if none are expected.

    A device that was not asked, answers twice, failed, or sent other names, shapes, values or weights is left out.
    """
    sound: dict[str, DeviceReply] = {}
    left_out: dict[str, str] = {}
    for message in messages:
        if message.has_error():
            left_out[f"node {message.metadata.src_node_id}"] = f"error {message.error.code}: {message.error.reason}"
            continue
        for key in list(message.content):
            kind, device_id = split_key(key)
            if kind != COUNTS:
                continue
            if device_id not in asked:
                left_out[device_id] = "answered without being asked"
            elif device_id in sound or device_id in left_out:
                sound.pop(device_id, None)
                left_out[device_id] = "answered twice"
            else:
                reply = _read_device(message, device_id, shapes)
                if isinstance(reply, DeviceReply):
                    sound[device_id] = reply
                else:
                    left_out[device_id] = reply
    for device_id in asked:
        if device_id not in sound and device_id not in left_out:
            left_out[device_id] = "did not answer"
    return Replies(tuple(sound[d] for d in sorted(sound)), left_out)


def _read_device(message: Message, device_id: str, shapes: Mapping[str, tuple[int, ...]] | None) -> DeviceReply | str:
    try:
        metrics, numbers = read_counts(message.content.metric_records[device_key(COUNTS, device_id)])
    except (IdiolectError, KeyError, ValueError, OverflowError) as error:
        return f"unreadable counts: {error}"
    odd = [name for name, value in numbers.items() if not math.isfinite(value)]
    if odd or any(getattr(counts, f) < 0 for counts in metrics.values() for f in FIELDS):
        return f"unreadable counts: {odd[0]} is {numbers[odd[0]]}" if odd else "unreadable counts: a negative one"
    if numbers.get("failed"):
        return "failed on the device; its own log has the reason"
    shared = message.content.array_records.get(device_key(SHARED, device_id))
    if shapes is None:
        return DeviceReply(device_id, None, metrics, numbers)
    if shapes and shared is None:
        return "sent no shared tensors"
    reason = _array_fault(shared, shapes) if shared is not None else ""
    weight = numbers.get("examples", 0.0)
    if not reason and not weight > 0:
        reason = f"weight {weight} is not positive"
    return reason or DeviceReply(device_id, shared, metrics, numbers)


def _array_fault(shared: ArrayRecord, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What is wrong with a device's tensors, or an empty text."""
    if set(shared) != set(shapes):
        odd = sorted(set(shared) ^ set(shapes))
        return f"other tensor names than agreed ({len(odd)} differ, first {odd[0]!r})"
    for name, array in shared.items():
        if tuple(array.shape) != tuple(shapes[name]) or array.dtype not in ("float32", "float16"):
            return f"tensor {name!r} is {array.dtype} {tuple(array.shape)}, not float {tuple(shapes[name])}"
        try:
            values = array.numpy()
        except (ValueError, TypeError, EOFError, OSError, MemoryError) as error:
            return f"tensor {name!r} cannot be decoded: {type(error).__name__}"
        # What a reply says and what it holds may differ.
        if values.shape != tuple(shapes[name]) or values.dtype != array.dtype:
            return f"tensor {name!r} holds {values.dtype} {values.shape} under another label"
        if not np.isfinite(values).all():
            return f"tensor {name!r} holds NaN or infinity"
    return ""
