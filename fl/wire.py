"""What a message between aggregator and device is made of, as Flower records.

Aggregator to node: ``job`` (what to do, for which devices), ``settings`` (the run's configuration, flat) and ``shared`` (the
shared tensors). Node to aggregator, for each device: ``shared:<device>`` and ``counts:<device>``. Nothing else may come back:
:mod:`fl.privacy.guard` checks it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from fl.config import RunConfig, flat, make_config
from fl.errors import ConfigError, IdiolectError
from fl.metrics import Counts

JOB, SETTINGS_RECORD, SHARED = "job", "settings", "shared"
COUNTS = "counts"
FIELDS = ("substitutions", "deletions", "insertions", "reference")


@dataclass(frozen=True)
class Job:
    """What a node is asked to do in one message."""

    arm: str
    round: int
    devices: tuple[str, ...]
    phase: str = "federate"  # "federate", or "finetune": one local phase after the last round
    split: str = "validation"  # data to evaluate on
    final: bool = False  # write transcripts and adapters to the device's own disk
    parallel: int = 1  # messages in flight beside this one, itself included: sets the threads of a step

    def to_record(self) -> ConfigRecord:
        """As a Flower record."""
        return ConfigRecord(
            {
                "arm": self.arm,
                "round": self.round,
                "device-ids": list(self.devices),
                "phase": self.phase,
                "split": self.split,
                "final": self.final,
                "parallel": self.parallel,
            }
        )

    @classmethod
    def from_record(cls, record: Mapping[str, object]) -> Job:
        """The inverse of :meth:`to_record`; :class:`ConfigError` for a record that is none."""
        try:
            return cls(
                arm=str(record["arm"]),
                round=int(record["round"]),  # type: ignore[call-overload]
                devices=tuple(str(d) for d in record["device-ids"]),  # type: ignore[attr-defined]
                phase=str(record["phase"]),
                split=str(record["split"]),
                final=bool(record["final"]),
                parallel=int(record["parallel"]),  # type: ignore[call-overload]
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"message is not a job of this version ({error!r}): use the same version at both ends"
            ) from error


def settings_record(config: RunConfig) -> ConfigRecord:
    """The run's configuration as a flat Flower record."""
    return ConfigRecord(dict(flat(config)))


def read_settings(content: RecordDict) -> RunConfig:
    """The configuration that a message carries."""
    return make_config(dict(content.config_records.get(SETTINGS_RECORD, {})))


def to_arrays(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Tensors as a Flower record, in the order of their names."""
    return ArrayRecord({name: Array(tensors[name].detach().cpu().numpy()) for name in sorted(tensors)})


def from_arrays(record: ArrayRecord) -> dict[str, Tensor]:
    """A Flower record as tensors that own their memory."""
    return {name: torch.from_numpy(np.array(array.numpy())) for name, array in record.items()}


def arrays_bytes(record: ArrayRecord) -> int:
    """Bytes of the tensors as Flower serializes them: each with NumPy's header of 128 bytes, without the envelope."""
    return sum(len(array.data) for array in record.values())


def device_key(kind: str, device_id: str) -> str:
    """Record name of one device's part of a reply."""
    return f"{kind}:{device_id}"


def split_key(key: str) -> tuple[str, str]:
    """``(kind, device_id)`` of a record name; the device is empty where there is none."""
    kind, _, device = key.partition(":")
    return kind, device


def counts_record(metrics: Mapping[str, Counts], extra: Mapping[str, int | float]) -> MetricRecord:
    """Counts of one device as a flat record, ``mer.substitutions`` and so on, with plain numbers beside them."""
    values: dict[str, int | float | list[int] | list[float]] = dict(extra)
    for name, counts in metrics.items():
        for field in FIELDS:
            values[f"{name}.{field}"] = int(getattr(counts, field))
    return MetricRecord(values)


def read_counts(record: Mapping[str, object]) -> tuple[dict[str, Counts], dict[str, float]]:
    """The inverse of :func:`counts_record`. Raises :class:`IdiolectError` for values that are no numbers and counts that lack a part."""
    fields: dict[str, dict[str, int]] = {}
    extra: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise IdiolectError(
                f"count {key!r} is a {type(value).__name__}, not a number: the reply is not from this version"
            )
        name, _, field = key.rpartition(".")
        if name and field in FIELDS:
            if value != value // 1:  # NaN and infinity too
                raise IdiolectError(f"count {key!r} is {value}, not a whole number: the reply is not from this version")
            fields.setdefault(name, {})[field] = int(value)
        else:
            extra[key] = value
    for name, values in fields.items():
        if len(values) < len(FIELDS):
            raise IdiolectError(f"counts of {name!r} lack {sorted(set(FIELDS) - set(values))}: the reply is incomplete")
    return {name: Counts(**values) for name, values in fields.items()}, extra


def add_counts(rows: Sequence[Mapping[str, Counts]]) -> dict[str, Counts]:
    """Sums of counts by metric."""
    total: dict[str, Counts] = {}
    for row in rows:
        for name, counts in row.items():
            total[name] = total[name] + counts if name in total else counts
    return total
