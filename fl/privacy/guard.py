"""The last look at a message before it leaves a device: shared tensors and counts pass, everything else stays.

It knows only the message, not how it was made, so no bug or option further in can leak a gate.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

from fl.errors import GuardError
from fl.metrics import METRICS
from fl.wire import COUNTS, FIELDS, SHARED, split_key

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
    }
)
ERROR_COUNTS = frozenset(f"{metric}.{field}" for metric in METRICS for field in FIELDS)


def check_reply(
    reply: RecordDict,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    private: Collection[str],
    devices: Collection[str],
) -> None:
    """Raise :class:`GuardError` unless ``reply`` holds only the shared tensors named in ``shapes`` and counts of ``devices``.

    ``shapes`` are the names and shapes of the shared tensors; ``private`` names are refused even if ``shapes`` lists them.
    """
    for key, record in reply.items():
        kind, device = split_key(key)
        if device not in devices:
            raise GuardError(
                f"nothing was sent: record {key!r} is for a device that was not asked (asked: {', '.join(sorted(devices))})"
            )
        if kind == SHARED and isinstance(record, ArrayRecord):
            _check_arrays(key, record, shapes, private)
        elif kind == COUNTS and isinstance(record, MetricRecord):
            _check_counts(key, record)
        else:
            raise GuardError(
                f"nothing was sent: record {key!r} ({type(record).__name__}) is neither shared tensors nor counts"
            )


def _check_arrays(
    key: str, record: ArrayRecord, shapes: Mapping[str, tuple[int, ...]], private: Collection[str]
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
        if array.dtype not in ("float32", "float16"):
            raise GuardError(f"nothing was sent: {key}/{name} has dtype {array.dtype}; float32 or float16 was agreed")
        values = _decode(key, name, array)
        if not np.isfinite(values).all():
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


def _check_counts(key: str, record: MetricRecord) -> None:
    # Flower sends the text of an exception to the aggregator, so these messages never quote a refused value.
    for name, value in record.items():
        if name not in PLAIN_COUNTS and name not in ERROR_COUNTS:
            raise GuardError(
                f"nothing was sent: {key} holds {name[:40]!r}, which is no count; known are {', '.join(sorted(PLAIN_COUNTS))} "
                f"and <metric>.<{'|'.join(FIELDS)}>"
            )
        if isinstance(value, list) or not math.isfinite(value):
            raise GuardError(f"nothing was sent: {key}/{name} is not one finite number")
        if name in ERROR_COUNTS and (not isinstance(value, int) or value < 0):
            raise GuardError(f"nothing was sent: {key}/{name} is not a whole number of at least 0")
