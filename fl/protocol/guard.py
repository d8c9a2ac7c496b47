"""The last look at a message before it leaves a device: updates of shared tensors and counts pass, everything else stays.

It knows only the message and what was agreed (:mod:`fl.protocol.reply`), not how it was made, so no bug or option further in can leak
a gate. Flower sends the text of an exception to the aggregator, so these messages name what was agreed alone: a refused name or value
stands in the device's own log.
"""

import logging
import math
from collections.abc import Collection, Mapping
from functools import cache
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fl.core.errors import GuardError
from fl.metrics import METRICS
from fl.privacy.secure_sum.keys import SecureSumError
from fl.privacy.secure_sum.messages import KIND, AdvertiseKeys, ConsistencyCheck, MaskedInput, ShareKeys, Unmask
from fl.protocol.node import COARSE, FULL
from fl.protocol.reply import BYTES, Expected, ReplySchema, UnreadableError
from fl.protocol.wire import COUNTS, DEVICES, FIELDS, IDS, SECURE, TOTALS, WITHIN, split_key
from fl.tasks.table import TASKS

log = logging.getLogger("idiolect.client")

# Counts and sizes that say nothing beyond how much was done and how well. A name outside these and the error counts does not leave.
WHOLE_COUNTS = frozenset({"examples", "steps", "bytes-up", "bytes-down", "failed", "new-person", "simulated"})
LOSS = "loss"
REAL_COUNTS = frozenset({LOSS, "seconds-train", "seconds-evaluate"})
NOT_ASKED = "a record or a row is for a device that was not asked, or does not live here"
SECURE_STEPS = {kind.__name__: kind for kind in (AdvertiseKeys, ShareKeys, ConsistencyCheck, Unmask)}


@cache
def error_counts() -> frozenset[str]:
    """The names of all error counts, of every metric and task that there is; the first reply loads what others registered."""
    measures = {*METRICS, *(name for kind in TASKS.values() for name in kind.measures)}
    return frozenset(f"{name}.{field}" for name in measures for field in FIELDS)


def kept_counts(detail: str, main: str) -> frozenset[str]:
    """The names of the counts that stay on a device which says so much of its errors; ``main`` is the task's main metric."""
    if detail == FULL:
        return frozenset()
    said = {f"{main}.{field}" for field in FIELDS} if detail == COARSE else set()
    return error_counts() - said | {LOSS}


def _refuse(why: str, found: object = "") -> GuardError:
    """The error that says ``why``; what was ``found``, which may be anything, goes to this machine's log alone."""
    log.error("nothing was sent: %s: %r", why, found)
    return GuardError(f"nothing was sent: {why}")


def check_reply(reply: RecordDict, schema: ReplySchema, *, private: Collection[str], devices: Collection[str]) -> None:
    """Raise :class:`GuardError` unless ``reply`` holds only what ``schema`` says, and counts of ``devices``.

    ``private`` names, of tensors and of counts, are refused even if the schema lists them.
    """
    rows = _check_ids(reply, devices)
    arrays, expected = schema.arrays(rows or 0)
    for key, record in reply.items():
        kind, device = split_key(key)
        if key == DEVICES:
            continue
        if schema.masked and kind == SECURE:
            _check_masked(key, record, schema.masked)
        elif isinstance(record, ArrayRecord):
            if not arrays or key != arrays or rows is None:
                raise _refuse(f"a record holds tensors that were not agreed; {arrays or 'none'} were", key)
            _check_arrays(key, record, expected, private)
        elif key == COUNTS and rows is not None and isinstance(record, MetricRecord):
            _check_counts(key, record, rows, private)
        elif key == TOTALS and rows is not None and schema.edge and isinstance(record, MetricRecord):
            _check_totals(key, record, rows)
        elif device not in devices:
            raise _refuse(NOT_ASKED, key)
        elif kind == COUNTS and isinstance(record, MetricRecord):
            _check_counts(kind, record, None, private)
        else:
            raise _refuse("a record is neither updates nor counts", key)


def check_secure_step(reply: RecordDict, participants: Collection[str]) -> None:
    """Raise :class:`GuardError` unless ``reply`` holds only keys and shares of secure sums, of the asked ``participants``."""
    for key, record in reply.items():
        kind, participant = split_key(key)
        if kind != SECURE or participant not in participants:
            raise _refuse(NOT_ASKED, key)
        _secure_message(key, record, SECURE_STEPS)


def _check_masked(key: str, record: object, sizes: Mapping[str, int]) -> None:
    """A participant's masked vector: exactly the agreed fields and length."""
    participant = split_key(key)[1]
    if participant not in sizes:
        raise _refuse(NOT_ASKED, key)
    message = _secure_message(key, record, {MaskedInput.__name__: MaskedInput})
    if len(message.words) not in (4 * sizes[participant], 8 * sizes[participant]):
        raise _refuse(
            f"a masked vector is of another length than the {sizes[participant]:,} numbers that were agreed", key
        )


def _secure_message(key: str, record: object, kinds: Mapping[str, type[Any]]) -> Any:
    """The message that a record is, of one of these kinds and with nothing beside it."""
    if not isinstance(record, ConfigRecord) or str(record.get(KIND)) not in kinds:
        raise _refuse(f"a record is none of the messages {', '.join(kinds)} of a secure sum", key)
    try:
        message = kinds[str(record[KIND])].from_record(record)
    except SecureSumError as error:
        raise _refuse("a message of a secure sum is missing or malformed in parts", error) from None
    if message.device != split_key(key)[1] or set(message.to_record()) != set(record):
        raise _refuse("a record holds more than its message of a secure sum, or another participant's", key)
    return message


def named_devices(reply: RecordDict) -> set[str]:
    """The devices that a reply speaks of, in columns or in records of their own."""
    listed = reply.config_records.get(DEVICES, ConfigRecord()).get(IDS, [])
    alone = {device for kind, device in map(split_key, reply) if kind == COUNTS and device}
    return {*(listed if isinstance(listed, list) else ()), *alone}  # type: ignore[arg-type]


def _check_ids(reply: RecordDict, devices: Collection[str]) -> int | None:
    """The number of rows of the reply's columns, None if it has no list of devices."""
    if DEVICES not in reply:
        return None
    record = reply[DEVICES]
    ids = record.get(IDS) if isinstance(record, ConfigRecord) and set(record) == {IDS} else None
    if not isinstance(ids, list) or not all(isinstance(device, str) for device in ids):
        raise _refuse(f"record {DEVICES!r} is not a list of device ids", ids)
    for device in ids:
        if device not in devices:
            raise _refuse(NOT_ASKED, device)
    if len(set(ids)) < len(ids):
        raise _refuse(f"record {DEVICES!r} names a device twice")
    return len(ids)


def _check_arrays(key: str, record: ArrayRecord, expected: Mapping[str, Expected], private: Collection[str]) -> None:
    for name, array in record.items():
        if name in private:
            raise _refuse(f"{key} holds the private tensor {name!r}; gates never leave the device")
        if name not in expected:
            raise _refuse(f"{key} holds a name which is not a shared tensor of this run", name)
        try:
            values = expected[name].decode(name, array)
        except UnreadableError as error:
            raise _refuse(
                f"{key}: tensor {name!r} is not {expected[name]} and the bytes of that alone", error
            ) from None
        if expected[name].dtypes is not BYTES and not np.isfinite(values).all():
            raise _refuse(f"{key}/{name} holds NaN or infinity; training diverged, lower the learning rate")
    missing = sorted(set(expected) - set(record))
    if missing:
        raise _refuse(f"{key} lacks {len(missing)} shared tensors, first {missing[0]!r}")


def _check_counts(key: str, record: MetricRecord, rows: int | None, private: Collection[str]) -> None:
    """Counts of many devices, as many numbers under each name as there are devices; or of one, without ``rows``."""
    for name, value in record.items():
        if name in private:
            raise _refuse(f"{key} holds {name}, which this device's owner keeps")
        if name not in error_counts() and name not in WHOLE_COUNTS | REAL_COUNTS:
            raise _refuse(
                f"{key} holds a name which is no count; known are {', '.join(sorted(WHOLE_COUNTS | REAL_COUNTS))} "
                f"and <metric>.<{'|'.join(FIELDS)}>",
                name,
            )
        values: list[Any] = value if isinstance(value, list) else [value]
        sound = isinstance(value, list) == (rows is not None) and len(values) == (1 if rows is None else rows)
        if not sound or not all(map(math.isfinite, values)):
            wanted = "one finite number" if rows is None else f"one finite number for each of {rows} devices"
            raise _refuse(f"{key}/{name} is not {wanted}", value)
        if name not in REAL_COUNTS and any(not isinstance(one, int) or one < 0 for one in values):
            raise _refuse(f"{key}/{name} is not a whole number of at least 0", value)


def _check_totals(key: str, record: MetricRecord, rows: int) -> None:
    weight, devices = record.get("weight"), record.get("devices")
    sound = isinstance(weight, int | float) and math.isfinite(weight) and weight >= 0 and devices == rows
    within = record.get(WITHIN, 0)
    sound = sound and isinstance(within, int) and 0 <= within <= rows
    if set(record) - {WITHIN} != {"weight", "devices"} or not sound:
        raise _refuse(f"{key} is not a weight and the number of the {rows} devices")
