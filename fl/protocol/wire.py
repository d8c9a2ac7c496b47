"""What a message between aggregator and device is made of, as Flower records.

Aggregator to node: ``job`` (what to do, for which devices), ``settings`` (the run's configuration, flat), ``shared`` (the
shared tensors); to evaluate with, ``corrections`` of frozen weights (:mod:`fl.adapters.correction`), and to enrol with,
``directions`` (:mod:`fl.adapters.directions`). Node to aggregator, for all its devices together:

| record | holds |
| --- | --- |
| ``devices`` | ``ids`` of the devices that answered, one for each row of what follows |
| ``counts`` | their numbers in columns: a list for each name |
| ``updates`` | their updates (difference to what was sent), each with a leading dimension of devices; not with ``edge`` aggregation |
| ``encoded`` | instead of ``updates``: as bytes of a codec, each with a leading dimension of devices |
| ``sum``, ``totals`` | with ``edge`` aggregation: float64 sums of weight times update, their ``weight`` and number of ``devices`` |
| ``secure-sum:<participant>`` | a message of a secure sum; the masked vector instead of any tensor |
| ``counts:<device>`` | of a device that failed, or has other numbers than the first |

Nothing else may come back: :class:`fl.protocol.reply.ReplySchema` is the one definition of a reply.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from torch import Tensor

from fl.algorithms.plan import Phase
from fl.core.errors import ConfigError, IdiolectError
from fl.metrics import Counts
from fl.settings.config import RunConfig, flat, make_config
from fl.settings.fields import Value, one_of
from fl.settings.names import ARMS

JOB, SETTINGS_RECORD, SHARED = "job", "settings", "shared"
CORRECTIONS, DIRECTIONS = "corrections", "directions"
UPDATES = "updates"
COUNTS, DEVICES, SUM, TOTALS = "counts", "devices", "sum", "totals"
ENCODED, SECURE = "encoded", "secure-sum"
PAYLOAD = "update"  # the one array of ENCODED: a device's encodings end to end
SECURE_STEP = "secure_sum"  # the action of the queries that are steps of a secure sum
IDS = "ids"  # of DEVICES
WITHIN = "within"  # of TOTALS, with adaptive clipping: how many of the devices were within the clipping norm
ARRAY_HEADER_BYTES = 128  # of a tensor as Flower serializes it: NumPy's header
FIELDS = tuple(field.name for field in fields(Counts))


Positive = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Job:
    """What a node is asked to do in one message."""

    arm: Annotated[str, one_of(*ARMS)]
    round: Annotated[int, Field(ge=0)]
    devices: tuple[str, ...]
    phase: Phase = Phase.FEDERATE  # only this one sends updates back
    split: str = "validation"  # data to evaluate on
    final: bool = False  # write transcripts and adapters to the device's own disk
    parallel: int = 1  # messages in flight beside this one, itself included: sets the threads of a step
    bound: Positive = 0.0  # clipping norm of the shared update; 0 where devices do not clip
    noise: Positive = 0.0  # standard deviation of the noise that each device adds by itself
    # whose private state: as the aggregator's run folder names it
    run: Annotated[str, Field(pattern="^([0-9a-f]{32})?$")] = ""

    def to_record(self) -> ConfigRecord:
        """As a Flower record."""
        return ConfigRecord(TypeAdapter(Job).dump_python(self, mode="json"))

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Job:
        """The inverse of :meth:`to_record`; :class:`ConfigError` for a record that is none."""
        values: dict[str, Any] = {field.name: record.get(field.name) for field in fields(cls)}
        try:
            return cls(**values)
        except ValidationError as error:
            name, why = error.errors()[0]["loc"][0], error.errors()[0]["msg"]
            raise ConfigError(
                f"message is not a job of this version ({name}: {why}): use the same version at both ends"
            ) from error


def settings_record(config: RunConfig) -> ConfigRecord:
    """The run's configuration as a flat Flower record."""
    return ConfigRecord(dict(flat(config)))


def read_settings(content: RecordDict) -> RunConfig:
    """The configuration that a message carries; the same object for the same values."""
    told: Mapping[str, Any] = content.config_records.get(SETTINGS_RECORD, {})
    return _config(tuple((key, tuple(v) if isinstance(v, list) else v) for key, v in sorted(told.items())))  # hashable


@lru_cache(maxsize=16)
def _config(values: tuple[tuple[str, Value], ...]) -> RunConfig:
    return make_config(dict(values))


def to_arrays(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Tensors as a Flower record, in the order of their names."""
    return ArrayRecord({name: Array(tensors[name].detach().cpu().numpy()) for name in sorted(tensors)})


def from_arrays(record: ArrayRecord) -> dict[str, Tensor]:
    """A Flower record as tensors that own their memory."""
    return {name: torch.from_numpy(np.array(array.numpy())) for name, array in record.items()}


def tensors_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors as Flower serializes them: each with NumPy's header of 128 bytes, without the envelope."""
    return sum(t.numel() * t.element_size() + ARRAY_HEADER_BYTES for t in tensors)


def device_key(kind: str, device_id: str) -> str:
    """Record name of one device's part of a reply."""
    return f"{kind}:{device_id}"


def split_key(key: str) -> tuple[str, str]:
    """``(kind, device_id)`` of a record name; the device is empty where there is none."""
    kind, _, device = key.partition(":")
    return kind, device


def flat_counts(metrics: Mapping[str, Counts], extra: Mapping[str, int | float]) -> dict[str, int | float]:
    """Counts of one device by flat name, ``mer.substitutions`` and so on, with plain numbers beside them."""
    values: dict[str, int | float] = dict(extra)
    for name, counts in metrics.items():
        values |= {f"{name}.{field}": getattr(counts, field) for field in FIELDS}
    return values


def read_counts(record: Mapping[str, object]) -> tuple[dict[str, Counts], dict[str, float]]:
    """The inverse of :func:`flat_counts`. Raises :class:`IdiolectError` for values that are no numbers and counts that lack a part."""
    found: dict[str, dict[str, int]] = {}
    extra: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            kind = type(value).__name__
            raise IdiolectError(f"count {key!r} is a {kind}, not a number: the reply is not from this version")
        name, _, field = key.rpartition(".")
        if name and field in FIELDS:
            if value != value // 1:  # NaN and infinity too
                raise IdiolectError(f"count {key!r} is {value}, not a whole number: the reply is not from this version")
            found.setdefault(name, {})[field] = int(value)
        else:
            extra[key] = value
    for name, values in found.items():
        if len(values) < len(FIELDS):
            raise IdiolectError(f"counts of {name!r} lack {sorted(set(FIELDS) - set(values))}: the reply is incomplete")
    return {name: Counts(**values) for name, values in found.items()}, extra


def add_counts(rows: Sequence[Mapping[str, Counts]]) -> dict[str, Counts]:
    """Sums of counts by metric."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: sum((row[name] for row in rows if name in row), Counts()) for name in names}
