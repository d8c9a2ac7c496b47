"""The devices of a task by name, each loaded when it is asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import lru_cache

from fl.core.errors import ConfigError
from fl.tasks.task import DeviceExamples, Example

KEPT = 64  # devices whose examples stay in memory


class NamedDevices(ABC):
    """The half of a :class:`fl.tasks.task.Task` that says who has which examples.

    ``held_out`` says of each device by name whether it is a held-out person, who is tested and never trains; these come last.
    """

    learns = True

    def __init__(self, held_out: Mapping[str, bool]) -> None:
        self._held_out = held_out
        self._loaded = lru_cache(maxsize=KEPT)(self._load)

    def device_ids(self) -> tuple[str, ...]:
        """Devices in the order of the population, held-out people last."""
        return tuple(self._held_out)

    def is_new(self, device_id: str) -> bool:
        """Whether this person never trains."""
        return self._held_out.get(device_id, False)

    def device(self, device_id: str) -> DeviceExamples:
        """One device's examples; :class:`ConfigError` for an unknown one."""
        if device_id not in self._held_out:
            raise ConfigError(f"unknown device {device_id!r}: known are {', '.join(list(self._held_out)[:10])}")
        return self._loaded(device_id)

    def _load(self, device_id: str) -> DeviceExamples:
        found = {split: tuple(examples) for split, examples in self._examples_of(device_id).items()}
        return DeviceExamples(device_id, **found, new_person=self.is_new(device_id))

    @abstractmethod
    def _examples_of(self, device_id: str) -> Mapping[str, Iterable[Example]]:
        """The examples of one device by split: train, validation, test."""
