"""The last look at a message before it leaves a device: shared tensors and counts pass, everything else stays.

It knows only the message, not how it was made, so no bug or option further in can leak a gate.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fl.core.errors import GuardError
from fl.metrics import METRICS
from fl.privacy.secure_sum.keys import SecureSumError
from fl.privacy.secure_sum.messages import KIND, Masked, PublicKeys, Reveal, Shares
from fl.protocol.wire import (
    COUNTS,
    DEVICES,
    ENCODED,
    FIELDS,
    IDS,
    SECURE,
    SHARED,
    SUM,
    TOTAL_NAMES,
    TOTALS,
    WITHIN,
    split_key,
)
from fl.tasks.table import TASKS

# Counts and sizes that say nothing beyond how much was done and how well. A name outside this list does not leave.
PLAIN_COUNTS = frozenset(
    {
        "examples",
        "steps",
        "loss",
        "bytes-up",
        "bytes-down",
        "seconds-train",
        "seconds-evaluate",
        "failed",
        "new-person",
        "round",
        "simulated",
    }
)
ERROR_COUNTS = frozenset(
    f"{metric}.{field}"
    for metric in {*METRICS, *(m for kind in TASKS.values() for m in kind.measures)}
    for field in FIELDS
)
UPDATE_DTYPES, SUM_DTYPES, BYTES = ("float32", "float16"), ("float64",), ("uint8",)
SECURE_STEPS = {kind.__name__: kind for kind in (PublicKeys, Shares, Reveal)}


def check_reply(
    reply: RecordDict,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    private: Collection[str],
    devices: Collection[str],
    edge: bool = False,
    payloads: Mapping[str, int] | None = None,
    masked: Mapping[str, int] | None = None,
) -> None:
    """Raise :class:`GuardError` unless ``reply`` holds only the shared tensors named in ``shapes`` and counts of ``devices``.

    ``shapes`` are the names and shapes of one device's shared tensors; ``private`` names are refused even if ``shapes`` lists
    them. With ``edge`` the tensors are one float64 sum over the devices, and no single device's tensors may leave. With
    ``payloads`` (the bytes of each tensor's encoding) tensors leave encoded or not at all, with ``masked`` (the numbers in each
    participant's masked vector) as masked vectors or not at all.
    """
    rows = _check_ids(reply, devices)
    shapes = {} if masked is not None else shapes
    for key, record in reply.items():
        if key == DEVICES:
            continue
        if masked is not None and split_key(key)[0] == SECURE:
            _check_masked(key, record, masked)
            continue
        if key == ENCODED and payloads is not None and rows is not None and isinstance(record, ArrayRecord):
            encoded: dict[str, tuple[int, ...]] = {name: (rows, size) for name, size in payloads.items()}
            _check_arrays(key, record, encoded, private, BYTES)
            continue
        if (payloads is not None or masked is not None) and split_key(key)[0] in (SHARED, SUM):
            raise GuardError(
                f"nothing was sent: record {key!r} holds tensors as they are; encoded or masked ones were agreed"
            )
        if key == COUNTS and rows is not None and isinstance(record, MetricRecord):
            _check_columns(key, record, rows)
        elif key == SHARED and rows is not None and not edge and isinstance(record, ArrayRecord):
            stacked = {name: (rows, *shape) for name, shape in shapes.items()}
            _check_arrays(key, record, stacked, private, UPDATE_DTYPES)
        elif key == SUM and rows is not None and edge and isinstance(record, ArrayRecord):
            _check_arrays(key, record, shapes, private, SUM_DTYPES)
        elif key == TOTALS and rows is not None and edge and isinstance(record, MetricRecord):
            _check_totals(key, record, rows)
        else:
            _check_single(key, record, shapes, private, devices, edge)


def _check_masked(key: str, record: object, sizes: Mapping[str, int]) -> None:
    """A participant's masked vector: exactly the agreed fields and length."""
    participant = split_key(key)[1]
    if participant not in sizes:
        raise GuardError(_not_asked(key, participant, sizes))
    message = _secure_message(key, record, {Masked.__name__: Masked})
    if len(message.words) not in (4 * sizes[participant], 8 * sizes[participant]):
        raise GuardError(
            f"nothing was sent: {key} has {len(message.words):,} bytes, {sizes[participant]:,} masked numbers were agreed"
        )


def check_secure_step(reply: RecordDict, participants: Collection[str]) -> None:
    """Raise :class:`GuardError` unless ``reply`` holds only keys and shares of secure sums, of the asked ``participants``."""
    for key, record in reply.items():
        kind, participant = split_key(key)
        if kind != SECURE or participant not in participants:
            raise GuardError(_not_asked(key, participant, participants))
        _secure_message(key, record, SECURE_STEPS)


def _secure_message(key: str, record: object, kinds: Mapping[str, type[Any]]) -> Any:
    """The message that a record is, of one of these kinds and with nothing beside it."""
    if not isinstance(record, ConfigRecord) or str(record.get(KIND)) not in kinds:
        raise GuardError(f"nothing was sent: record {key!r} is none of the messages {', '.join(kinds)} of a secure sum")
    try:
        message = kinds[str(record[KIND])].from_record(record)
    except SecureSumError as error:
        raise GuardError(f"nothing was sent: record {key!r}: {error}") from None
    if message.device != split_key(key)[1] or set(message.to_record()) != set(record):
        raise GuardError(f"nothing was sent: record {key!r} holds more than its message, or another participant's")
    return message


def named_devices(reply: RecordDict) -> set[str]:
    """The devices that a reply speaks of, in columns or in records of their own."""
    listed = reply.config_records.get(DEVICES, ConfigRecord()).get(IDS, [])
    alone = {device for kind, device in map(split_key, reply) if kind in (COUNTS, SHARED) and device}
    return {*(listed if isinstance(listed, list) else ()), *alone}  # type: ignore[arg-type]


def _check_ids(reply: RecordDict, devices: Collection[str]) -> int | None:
    """The number of rows of the reply's columns, None if it has no list of devices."""
    if DEVICES not in reply:
        return None
    record = reply[DEVICES]
    ids = record.get(IDS) if isinstance(record, ConfigRecord) and set(record) == {IDS} else None
    if not isinstance(ids, list) or not all(isinstance(device, str) for device in ids):
        raise GuardError(f"nothing was sent: record {DEVICES!r} ({type(record).__name__}) is not a list of device ids")
    for device in ids:
        if device not in devices:
            raise GuardError(_not_asked(DEVICES, str(device), devices))
    if len(set(ids)) < len(ids):
        raise GuardError(f"nothing was sent: record {DEVICES!r} names a device twice")
    return len(ids)


def _not_asked(key: str, device: str, devices: Collection[str]) -> str:
    asked = sorted(devices)
    more = f" and {len(asked) - 10} more" if len(asked) > 10 else ""
    return (
        f"nothing was sent: record {key!r} is for a device that was not asked: {device[:40]!r} "
        f"(asked: {', '.join(asked[:10])}{more})"
    )


def _check_single(
    key: str,
    record: object,
    shapes: Mapping[str, tuple[int, ...]],
    private: Collection[str],
    devices: Collection[str],
    edge: bool,
) -> None:
    """A record of one device."""
    kind, device = split_key(key)
    if device not in devices:
        raise GuardError(_not_asked(key, device, devices))
    if kind == SHARED and edge:
        raise GuardError(f"nothing was sent: record {key!r} is of a single device; a sum over devices was agreed")
    if kind == SHARED and isinstance(record, ArrayRecord):
        _check_arrays(key, record, shapes, private, UPDATE_DTYPES)
    elif kind == COUNTS and isinstance(record, MetricRecord):
        _check_counts(key, record)
    else:
        raise GuardError(
            f"nothing was sent: record {key!r} ({type(record).__name__}) is neither shared tensors nor counts"
        )


def _check_arrays(
    key: str,
    record: ArrayRecord,
    shapes: Mapping[str, tuple[int, ...]],
    private: Collection[str],
    dtypes: tuple[str, ...],
) -> None:
    for name, array in record.items():
        if name in private:
            raise GuardError(f"nothing was sent: {key} holds the private tensor {name!r}; gates never leave the device")
        if name not in shapes:
            raise GuardError(f"nothing was sent: {key} holds {name!r}, which is not a shared tensor of this run")
        if tuple(array.shape) != tuple(shapes[name]):
            raise GuardError(
                f"nothing was sent: {key}/{name} has shape {tuple(array.shape)}, {tuple(shapes[name])} was agreed"
            )
        if array.dtype not in dtypes:
            raise GuardError(
                f"nothing was sent: {key}/{name} has dtype {array.dtype}; {' or '.join(dtypes)} was agreed"
            )
        values = _decode(key, name, array)
        if dtypes is not BYTES and not np.isfinite(values).all():
            raise GuardError(
                f"nothing was sent: {key}/{name} holds NaN or infinity; training diverged, lower the learning rate"
            )
    missing = sorted(set(shapes) - set(record))
    if missing:
        raise GuardError(f"nothing was sent: {key} lacks {len(missing)} shared tensors, first {missing[0]!r}")


def _decode(key: str, name: str, array: Array) -> np.ndarray:
    """The values of an array; what it holds must be what its label says, or a larger one could hide in it."""
    try:
        values = array.numpy()
    except (ValueError, TypeError, EOFError) as error:
        raise GuardError(f"nothing was sent: {key}/{name} cannot be decoded ({type(error).__name__})") from None
    if values.shape != tuple(array.shape) or values.dtype != array.dtype:
        raise GuardError(f"nothing was sent: {key}/{name} holds {values.dtype} {values.shape} under another label")
    return values


# Flower sends the text of an exception to the aggregator, so these messages never quote a refused value.


def _check_counts(key: str, record: MetricRecord) -> None:
    """One device's counts: one number under each name."""
    for name, value in record.items():
        _check_name(key, name)
        if isinstance(value, list) or not math.isfinite(value):
            raise GuardError(f"nothing was sent: {key}/{name} is not one finite number")
        if name in ERROR_COUNTS and (not isinstance(value, int) or value < 0):
            raise GuardError(f"nothing was sent: {key}/{name} is not a whole number of at least 0")


def _check_columns(key: str, record: MetricRecord, rows: int) -> None:
    """Many devices' counts: as many numbers under each name as there are devices."""
    for name, values in record.items():
        _check_name(key, name)
        if not isinstance(values, list) or len(values) != rows or not all(map(math.isfinite, values)):
            raise GuardError(f"nothing was sent: {key}/{name} is not one finite number for each of {rows} devices")
        if name in ERROR_COUNTS and any(not isinstance(value, int) or value < 0 for value in values):
            raise GuardError(f"nothing was sent: {key}/{name} are not whole numbers of at least 0")


def _check_name(key: str, name: str) -> None:
    if name not in PLAIN_COUNTS and name not in ERROR_COUNTS:
        raise GuardError(
            f"nothing was sent: {key} holds {name[:40]!r}, which is no count; known are {', '.join(sorted(PLAIN_COUNTS))} "
            f"and <metric>.<{'|'.join(FIELDS)}>"
        )


def _check_totals(key: str, record: MetricRecord, rows: int) -> None:
    weight, devices = record.get("weight"), record.get("devices")
    sound = isinstance(weight, int | float) and math.isfinite(weight) and weight >= 0 and devices == rows
    within = record.get(WITHIN, 0)
    sound = sound and isinstance(within, int) and 0 <= within <= rows
    if set(record) - {WITHIN} != TOTAL_NAMES or not sound:
        raise GuardError(f"nothing was sent: {key} is not a weight and the number of the {rows} devices")
