"""One node's message, taken apart: what it says of each of its devices, in columns or one by one, and its sum over them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fl.codecs.compression import CompressionError, decode_all, make_codec, split
from fl.core.errors import IdiolectError
from fl.metrics import Counts
from fl.protocol.forms import payload_sizes
from fl.protocol.wire import (
    COUNTS,
    DEVICES,
    ENCODED,
    FIELDS,
    IDS,
    PAYLOAD,
    SHARED,
    SUM,
    TOTALS,
    WITHIN,
    device_key,
    read_counts,
    split_key,
)

Shapes = Mapping[str, tuple[int, ...]]
Tensors = Mapping[str, np.ndarray]
UPDATE_DTYPES, SUM_DTYPES, BYTES = ("float32", "float16"), ("float64",), ("uint8",)


class UnreadableError(IdiolectError):
    """A message of which nothing can be used."""


@dataclass(frozen=True)
class DeviceReply:
    """One device's sound answer: its shared tensors (None where it sent none of its own), counts, and plain numbers.

    With edge aggregation the mean over a node's devices takes the same form, under the name of the node.
    """

    device_id: str
    shared: Tensors | None
    metrics: dict[str, Counts]
    numbers: dict[str, float]

    @property
    def examples(self) -> float:
        """Number of training examples: the weight of this device in an average."""
        return self.numbers.get("examples", 0.0)


@dataclass(frozen=True)
class Agreed:
    """What was agreed on beside names and shapes: the codec of updates to ``before`` (empty: tensors come as they are), and
    what weight a number of examples is."""

    codec: str = ""
    before: Tensors = field(default_factory=dict)
    weigh: Callable[[float], float] = float


@dataclass
class NodeReply:
    """What a node says of each device, and the mean of a sum over some of them."""

    name: str
    answers: list[tuple[str, DeviceReply | str]]  # device, and its answer or what is wrong with it
    summed: tuple[str, ...] = ()  # devices that are in the sum
    mean: DeviceReply | None = None


def read_node(
    name: str, content: RecordDict, shapes: Shapes | None, edge: bool, agreed: Agreed | None = None
) -> NodeReply:
    """Take a reply apart; raises :class:`UnreadableError` where columns, stacks or the sum as a whole are not as agreed."""
    agreed = agreed or Agreed()
    ids, rows = device_columns(content)
    read_stacks = _read_encoded if agreed.codec and shapes else _read_stacks
    stacks, bad = ({}, {}) if edge or not ids else read_stacks(content, ids, shapes, agreed)
    answers: list[tuple[str, DeviceReply | str]] = []
    for place, (device_id, values) in enumerate(zip(ids, rows, strict=True)):
        answer = _read_numbers(values)
        if isinstance(answer, DeviceReply):
            answer = replace(answer, device_id=device_id)
            if shapes is not None:
                own = {n: stack[place] for n, stack in stacks.items()}
                fault = bad.get(place, "") or _weight_fault(answer)
                answer = fault or replace(answer, shared=None if edge else own)
        answers.append((device_id, answer))
    for key in list(content):
        kind, device_id = split_key(key)
        if kind == COUNTS and device_id:
            answers.append((device_id, _read_single(content, device_id, shapes, edge, agreed)))
    node = NodeReply(name, answers)
    if edge and shapes and ids:
        node.summed, node.mean = tuple(ids), _read_sum(name, content, shapes, answers[: len(ids)], agreed)
    return node


def device_columns(content: RecordDict) -> tuple[list[str], list[dict[str, int | float]]]:
    """The devices of a reply's columns and each one's numbers by name; raises :class:`IdiolectError` for uneven columns."""
    ids = content[DEVICES].get(IDS) if isinstance(content.get(DEVICES), ConfigRecord) else []  # type: ignore[union-attr]
    columns = content.get(COUNTS, MetricRecord())
    if not isinstance(ids, list) or not isinstance(columns, MetricRecord):
        raise UnreadableError("its list of devices or its columns of counts are of another kind")
    for name, values in columns.items():
        if not isinstance(values, list) or len(values) != len(ids):
            raise UnreadableError(f"its column {name!r} has not one number for each of its {len(ids)} devices")
    names = list(columns)
    if not names:
        return [str(i) for i in ids], [{} for _ in ids]
    rows = zip(*(columns[name] for name in names), strict=True)  # type: ignore[arg-type]
    return [str(i) for i in ids], [dict(zip(names, row, strict=True)) for row in rows]


def _read_numbers(values: Mapping[str, object]) -> DeviceReply | str:
    """A device's counts and numbers, without a name yet; or what is wrong with them."""
    try:
        metrics, numbers = read_counts(values)
    except (IdiolectError, ValueError, OverflowError) as error:
        return f"unreadable counts: {error}"
    odd = [name for name, value in numbers.items() if not math.isfinite(value)]
    if odd or any(getattr(counts, f) < 0 for counts in metrics.values() for f in FIELDS):
        return f"unreadable counts: {odd[0]} is {numbers[odd[0]]}" if odd else "unreadable counts: a negative one"
    if numbers.get("failed"):
        return "failed on the device; its own log has the reason"
    return DeviceReply("", None, metrics, numbers)


def _weight_fault(reply: DeviceReply) -> str:
    weight = reply.numbers.get("examples", 0.0)
    return "" if weight > 0 else f"weight {weight} is not positive"


def _read_single(
    content: RecordDict, device_id: str, shapes: Shapes | None, edge: bool, agreed: Agreed
) -> DeviceReply | str:
    """The answer of a device that has records of its own."""
    try:
        record = content.metric_records[device_key(COUNTS, device_id)]
    except KeyError as error:
        return f"unreadable counts: {error}"
    answer = _read_numbers(record)
    if isinstance(answer, str):
        return answer
    answer = replace(answer, device_id=device_id)
    if shapes is None:
        return answer
    if edge and shapes:
        return "is not in its node's sum"
    if agreed.codec and shapes:
        return f"sent no update encoded as {agreed.codec}"
    shared = content.array_records.get(device_key(SHARED, device_id))
    if shapes and shared is None:
        return "sent no shared tensors"
    try:
        tensors = None if shared is None else read_tensors(shared, shapes, UPDATE_DTYPES)
    except UnreadableError as error:
        return str(error)
    odd = [name for name, values in (tensors or {}).items() if not np.isfinite(values).all()]
    if odd:
        return f"tensor {odd[0]!r} holds NaN or infinity"
    return _weight_fault(answer) or replace(answer, shared=tensors)


def _read_encoded(
    content: RecordDict, ids: list[str], shapes: Shapes | None, agreed: Agreed
) -> tuple[dict[str, np.ndarray], dict[int, str]]:
    """The same from stacks of encodings: each device's update is decoded and added to what the round began with."""
    assert shapes is not None
    record = content.array_records.get(ENCODED)
    if record is None:
        return {}, dict.fromkeys(range(len(ids)), f"sent no update encoded as {agreed.codec}")
    sizes = payload_sizes(agreed.codec, shapes)
    payload = read_tensors(record, {PAYLOAD: (len(ids), sum(sizes.values()))}, BYTES)[PAYLOAD]
    codec = make_codec(agreed.codec)
    stacks = {n: np.zeros((len(ids), *shape), np.float32) for n, shape in shapes.items()}
    bad: dict[int, str] = {}
    for row in range(len(ids)):
        try:
            update = decode_all(split(payload[row], sizes), shapes, codec)
        except CompressionError as error:
            bad[row] = str(error)
            continue
        for name, values in update.items():
            stacks[name][row] = agreed.before[name] + values
    return stacks, bad


def _read_stacks(
    content: RecordDict, ids: list[str], shapes: Shapes | None, agreed: Agreed
) -> tuple[dict[str, np.ndarray], dict[int, str]]:
    """Tensors with a leading dimension of devices, and what is wrong with single rows."""
    shared = content.array_records.get(SHARED)
    if shapes is None:
        return {}, {}
    if shared is None:
        return {}, dict.fromkeys(range(len(ids)), "sent no shared tensors") if shapes else {}
    stacks = read_tensors(shared, {n: (len(ids), *shape) for n, shape in shapes.items()}, UPDATE_DTYPES)
    bad: dict[int, str] = {}
    for name, stack in stacks.items():
        finite = np.isfinite(stack)
        if not finite.all():
            rows = finite.reshape(len(ids), -1).all(axis=1)
            bad |= {int(row): f"tensor {name!r} holds NaN or infinity" for row in np.flatnonzero(~rows)}
    return stacks, bad


def _read_sum(
    name: str, content: RecordDict, shapes: Shapes, answers: list[tuple[str, DeviceReply | str]], agreed: Agreed
) -> DeviceReply:
    """The mean of a node's devices, from its sum; raises if the sum is not one over exactly these devices."""
    summed, totals = content.array_records.get(SUM), content.metric_records.get(TOTALS, MetricRecord())
    if summed is None:
        raise UnreadableError("sent no sum of shared tensors")
    weight, count = totals.get("weight"), totals.get("devices")
    expected = math.fsum(agreed.weigh(a.examples) for _, a in answers if isinstance(a, DeviceReply))
    sound = all(isinstance(answer, DeviceReply) for _, answer in answers)
    if not isinstance(weight, int | float) or not weight > 0 or count != len(answers):
        raise UnreadableError(f"its sum has weight {weight} of {count} devices, but it names {len(answers)}")
    if sound and not math.isclose(weight, expected, rel_tol=1e-9):
        raise UnreadableError(f"its sum has weight {weight}, its devices have {expected} examples")
    within = totals.get(WITHIN, 0)
    if not isinstance(within, int) or not 0 <= within <= len(answers):
        raise UnreadableError(f"{within} of its {len(answers)} devices are said to be within the clipping norm")
    tensors = read_tensors(summed, shapes, SUM_DTYPES)
    odd = [n for n, values in tensors.items() if not np.isfinite(values).all()]
    if odd:
        raise UnreadableError(f"tensor {odd[0]!r} holds NaN or infinity")
    numbers = {"examples": float(weight), "devices": float(len(answers)), WITHIN: float(within)}
    return DeviceReply(name, {n: values / weight for n, values in tensors.items()}, {}, numbers)


def read_tensors(record: ArrayRecord, shapes: Shapes, dtypes: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The tensors of a record, decoded once; raises where names, shapes or types are not those that were agreed."""
    if set(record) != set(shapes):
        odd = sorted(set(record) ^ set(shapes))
        raise UnreadableError(f"other tensor names than agreed ({len(odd)} differ, first {odd[0]!r})")
    return {name: _decode(name, array, tuple(shapes[name]), dtypes) for name, array in record.items()}


def _decode(name: str, array: Array, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> np.ndarray:
    if tuple(array.shape) != shape or array.dtype not in dtypes:
        raise UnreadableError(f"tensor {name!r} is {array.dtype} {tuple(array.shape)}, not float {shape}")
    try:
        values = array.numpy()
    except (ValueError, TypeError, EOFError, OSError, MemoryError) as error:
        raise UnreadableError(f"tensor {name!r} cannot be decoded: {type(error).__name__}") from None
    if values.shape != shape or values.dtype != array.dtype:  # what a reply says and what it holds may differ
        raise UnreadableError(f"tensor {name!r} holds {values.dtype} {values.shape} under another label")
    return values
