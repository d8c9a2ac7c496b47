"""The one definition of a node's reply: which records it may hold, with which names, shapes and types.

It is made from what was agreed in the request. The client fills it (:mod:`clients.updates.reply`), the guard holds a reply against it
before it leaves (:mod:`fl.protocol.guard`), and the aggregator reads by it (:mod:`strategies.replies`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fl.core.errors import IdiolectError
from fl.protocol.forms import Exchange, Form
from fl.protocol.wire import COUNTS, DEVICES, ENCODED, IDS, PAYLOAD, SECURE, SUM, UPDATES

Shapes = Mapping[str, tuple[int, ...]]
UPDATE_DTYPES, SUM_DTYPES, BYTES = ("float32", "float16"), ("float64",), ("uint8",)


class UnreadableError(IdiolectError):
    """A record that is not as agreed; the text says what is wrong without quoting its values."""


@dataclass(frozen=True)
class Expected:
    """An array that is expected: its shape and the types that it may have."""

    shape: tuple[int, ...]
    dtypes: tuple[str, ...]

    def decode(self, name: str, array: Array) -> np.ndarray:
        """The values; :class:`UnreadableError` unless the array is what it says, and that is what is expected."""
        if tuple(array.shape) != self.shape or array.dtype not in self.dtypes:
            raise UnreadableError(
                f"tensor {name!r} is {array.dtype} {tuple(array.shape)}, not {' or '.join(self.dtypes)} {self.shape}"
            )
        try:
            values = array.numpy()
        except (ValueError, TypeError, EOFError, OSError, MemoryError) as error:
            raise UnreadableError(f"tensor {name!r} cannot be decoded: {type(error).__name__}") from None
        if values.shape != self.shape or values.dtype != array.dtype:  # what an array says and what it holds may differ
            raise UnreadableError(f"tensor {name!r} holds {values.dtype} {values.shape} under another label")
        return values


@dataclass(frozen=True)
class ReplySchema:
    """What a reply may hold beside counts. ``shapes`` are those of one device's update, ``masked`` the participants of a sum."""

    shapes: Shapes = field(default_factory=dict)
    exchange: Exchange | None = None
    participants: tuple[str, ...] = ()

    @property
    def form(self) -> Form:
        """The form of the updates."""
        return Form.NOTHING if self.exchange is None or not self.shapes else self.exchange.form

    @property
    def edge(self) -> bool:
        """Whether updates come as one sum."""
        return self.form is Form.PLAIN and self.exchange is not None and self.exchange.edge

    def arrays(self, rows: int) -> tuple[str, dict[str, Expected]]:
        """The record of arrays and what is in it, for a reply of so many devices; an empty name where there is none."""
        if self.form is Form.ENCODED and self.exchange is not None:
            size = sum(self.exchange.payload_sizes(self.shapes).values())
            return ENCODED, {PAYLOAD: Expected((rows, size), BYTES)}
        if self.form is not Form.PLAIN:
            return "", {}
        if self.edge:
            return SUM, {name: Expected(shape, SUM_DTYPES) for name, shape in self.shapes.items()}
        return UPDATES, {name: Expected((rows, *shape), UPDATE_DTYPES) for name, shape in self.shapes.items()}

    @property
    def masked(self) -> dict[str, int]:
        """The numbers in each participant's masked vector."""
        if self.form is not Form.MASKED or self.exchange is None:
            return {}
        size = self.exchange.vector_size(math.prod(shape) for shape in self.shapes.values())
        return dict.fromkeys(self.participants, size)


def read_arrays(record: ArrayRecord, expected: Mapping[str, Expected]) -> dict[str, np.ndarray]:
    """The tensors of a record; :class:`UnreadableError` where names, shapes or types are not those that were agreed."""
    if set(record) != set(expected):
        odd = sorted(set(record) ^ set(expected))
        raise UnreadableError(f"other tensor names than agreed ({len(odd)} differ, first {odd[0]!r})")
    return {name: expected[name].decode(name, array) for name, array in record.items()}


def read_columns(content: RecordDict) -> tuple[list[str], list[dict[str, int | float]]]:
    """The devices of a reply's columns and each one's numbers by name; :class:`UnreadableError` for uneven columns."""
    record = content.get(DEVICES)
    ids = record.get(IDS) if isinstance(record, ConfigRecord) else []
    columns = content.get(COUNTS, MetricRecord())
    if not isinstance(ids, list) or not isinstance(columns, MetricRecord):
        raise UnreadableError("its list of devices or its columns of counts are of another kind")
    for name, values in columns.items():
        if not isinstance(values, list) or len(values) != len(ids):
            raise UnreadableError(f"its column {name!r} has not one number for each of its {len(ids)} devices")
    names = list(columns)
    rows = zip(*(columns[name] for name in names), strict=True) if names else ((),) * len(ids)  # type: ignore[arg-type]
    return [str(i) for i in ids], [dict(zip(names, row, strict=True)) for row in rows]


def participants_of(content: RecordDict) -> tuple[str, ...]:
    """The participants whose part of a secure sum a message brings."""
    return tuple(key.partition(":")[2] for key in content.config_records if key.startswith(f"{SECURE}:"))
