"""The one definition of a node's reply: which records it may hold, with which names, shapes and types.

It is made from what was agreed in the request. The client fills it (:mod:`clients.updates.reply`), the guard holds a reply against it
before it leaves (:mod:`fl.protocol.guard`), and the aggregator reads by it (:mod:`strategies.replies`). Updates come back in one of
these forms:

| form | a node sends | who uses it |
| --- | --- | --- |
| ``nothing`` | counts alone | private phases, fine-tuning, arms without federation |
| ``plain`` | each device's update, or the node's sum of them | everything |
| ``encoded`` | each device's update as bytes of a codec | every algorithm; not with sums at nodes |
| ``masked`` | a masked vector of each device, or of the node's sum | means alone |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property, lru_cache

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fl.algorithms.arms import EVERYONE, Arm
from fl.algorithms.plan import Phase
from fl.codecs.base import Codec
from fl.codecs.table import make_codec
from fl.core.errors import IdiolectError
from fl.privacy.dp import weight_of
from fl.protocol.wire import COUNTS, DEVICES, ENCODED, IDS, PAYLOAD, SECURE, SUM, UPDATES
from fl.settings.config import RunConfig
from fl.settings.names import DISTRIBUTED_NOISE, EDGE, LOCAL_NOISE, NONE, PAIRWISE, SERVER_NOISE

Shapes = Mapping[str, tuple[int, ...]]
UPDATE_DTYPES, SUM_DTYPES, BYTES = ("float32", "float16"), ("float64",), ("uint8",)


class Form(Enum):
    """In which form a device's update leaves."""

    NOTHING = "nothing"
    PLAIN = "plain"
    ENCODED = "encoded"
    MASKED = "masked"


def bounded_mean(config: RunConfig) -> bool:
    """Whether the aggregate is a mean of clipped updates with bounded weights, and not the algorithm's own."""
    privacy = config.privacy
    return privacy.dp.mode in (SERVER_NOISE, DISTRIBUTED_NOISE) or privacy.secure_sum.mode == PAIRWISE


@dataclass(frozen=True)
class Exchange:
    """What is agreed about the updates of one message."""

    form: Form
    config: RunConfig
    federates: bool

    @classmethod
    def of(cls, config: RunConfig, arm: Arm | None, phase: Phase) -> Exchange:
        """The exchange of a training message of an arm."""
        if arm is None or phase is not Phase.FEDERATE or not (arm.federates or arm.devices == EVERYONE):
            form = Form.NOTHING
        elif not arm.federates:
            form = Form.PLAIN
        elif config.privacy.secure_sum.mode == PAIRWISE:
            form = Form.MASKED
        elif config.federation.aggregation == EDGE or make_codec(config.codec.name).lossless:
            form = Form.PLAIN
        else:
            form = Form.ENCODED
        return cls(form, config, arm is not None and arm.federates)

    @property
    def edge(self) -> bool:
        """Whether a node sends sums over its devices."""
        return self.config.federation.aggregation == EDGE

    @cached_property
    def codec(self) -> Codec:
        """What updates are compressed by."""
        return make_codec(self.config.codec.name)

    @property
    def clips(self) -> bool:
        """Whether a device clips its own update. An aggregator that sees single updates does that itself."""
        summed = self.edge or self.config.privacy.secure_sum.mode == PAIRWISE
        local = self.config.privacy.dp.mode == LOCAL_NOISE or self.codec.limit is not None
        return self.federates and (local or (bounded_mean(self.config) and summed))

    @property
    def adaptive(self) -> bool:
        """Whether the clipping norm follows a quantile."""
        return self.config.privacy.clip_quantile > 0 and self.config.privacy.dp.mode != NONE

    def weigh(self, examples: float) -> float:
        """A device's weight from its number of examples: the number itself, or one in 0 to 1 where sums must be bounded."""
        if not self.federates or not bounded_mean(self.config):
            return float(examples)
        return weight_of(examples, self.config.privacy.example_cap or None)

    def payload_sizes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """Bytes of the encoding of each tensor."""
        return {name: _payload_bytes(self.config.codec.name, math.prod(shape)) for name, shape in shapes.items()}


@lru_cache(maxsize=4096)
def _payload_bytes(codec: str, entries: int) -> int:
    """Bytes of an encoding of so many numbers: the same for all values."""
    return len(make_codec(codec).encode(np.zeros(entries, np.float32)))


NOTHING = Exchange(Form.NOTHING, RunConfig(), federates=False)


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
        except Exception as error:  # NumPy reads a header as Python source: tokenize and ast raise errors of their own
            raise UnreadableError(f"tensor {name!r} cannot be decoded: {type(error).__name__}") from None
        if not isinstance(values, np.ndarray):  # an archive of arrays is read without complaint
            raise UnreadableError(f"tensor {name!r} cannot be decoded: {type(values).__name__}")
        if values.shape != self.shape or values.dtype != array.dtype:  # what an array says and what it holds may differ
            raise UnreadableError(f"tensor {name!r} holds {values.dtype} {values.shape} under another label")
        if array.data != Array(values).data:
            raise UnreadableError(f"tensor {name!r} holds more than its values, or holds them in another order")
        return values


@dataclass(frozen=True)
class ReplySchema:
    """What a reply may hold beside counts. ``shapes`` are those of one device's update, ``masked`` the participants of a sum."""

    shapes: Shapes = field(default_factory=dict)
    exchange: Exchange = NOTHING
    participants: tuple[str, ...] = ()

    @property
    def form(self) -> Form:
        """The form of the updates."""
        return self.exchange.form if self.shapes else Form.NOTHING

    @property
    def edge(self) -> bool:
        """Whether updates come as one sum."""
        return self.form is Form.PLAIN and self.exchange.edge

    def arrays(self, rows: int) -> tuple[str, dict[str, Expected]]:
        """The record of arrays and what is in it, for a reply of so many devices; an empty name where there is none."""
        if self.form is Form.ENCODED:
            size = sum(self.exchange.payload_sizes(self.shapes).values())
            return ENCODED, {PAYLOAD: Expected((rows, size), BYTES)}
        if self.form is not Form.PLAIN:
            return "", {}
        if self.edge:
            return SUM, {name: Expected(shape, SUM_DTYPES) for name, shape in self.shapes.items()}
        return UPDATES, {name: Expected((rows, *shape), UPDATE_DTYPES) for name, shape in self.shapes.items()}

    @property
    def masked(self) -> dict[str, int]:
        """The numbers in each participant's masked vector: all tensors, their weight, and with adaptive clipping one bit."""
        size = sum(map(math.prod, self.shapes.values())) + 1 + int(self.exchange.adaptive)
        return dict.fromkeys(self.participants, size) if self.form is Form.MASKED else {}


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
