"""From an adapter that came back from ``POST /v1/adapt`` to what may go on to the aggregator, and nothing more."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

from fl.adapters.split import make_split
from fl.core.errors import AdapterMismatchError
from fl.packed.blob import unpack
from fl.protocol.guard import check_reply
from fl.protocol.wire import COUNTS, SHARED, device_key


def shared_reply(
    data: bytes,
    device_id: str,
    shapes: Mapping[str, tuple[int, ...]],
    counts: Mapping[str, int | float],
) -> RecordDict:
    """The reply of ``device_id`` to its aggregator from its packed adapter ``data``: shared tensors and counts, past the guard.

    ``shapes`` are the shared tensors that the run agreed on, ``counts`` numbers such as ``examples`` and ``loss``. Raises
    :class:`fl.core.errors.GuardError` for anything else than that, :class:`AdapterError` for bytes that are no adapter.
    """
    tensors, info = unpack(data)
    split = make_split(info.split, tensors)
    if set(split.shared) != set(shapes):
        other = sorted(set(split.shared) ^ set(shapes))
        raise AdapterMismatchError(
            f"the adapter shares other tensors than the run agreed on, first {other[0]!r}: check split, gate and sites of both"
        )
    arrays = ArrayRecord({name: Array(tensors[name]) for name in split.shared})
    reply = RecordDict(
        {device_key(SHARED, device_id): arrays, device_key(COUNTS, device_id): MetricRecord(dict(counts))}
    )
    check_reply(reply, shapes=shapes, private={*split.private, *split.fixed}, devices=(device_id,))
    return reply
