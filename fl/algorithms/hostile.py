"""Hostile devices for tests and studies: who they are, and what they do, as pure functions of a seed.

An attack on updates is the aggregator's part of a simulation, since some look at what the honest devices sent: the sound updates of
the ``hostile`` devices are replaced by others that are made to harm. Swapped labels are an attack on data, before training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fl.aggregation.updates import DeviceUpdate, Updates
from fl.core.errors import ConfigError
from fl.core.rng import derive_generator, derive_random, derive_seed
from fl.settings.names import LABEL_SWAP

if TYPE_CHECKING:
    from fl.settings.config import RunConfig
    from fl.tasks.task import DeviceExamples, Task

# Of one tensor: the device's own update, the mean of the honest ones, a noise that all hostile devices have in common, and the
# device's own generator. It gives what is sent instead.
Attack = Callable[[np.ndarray, np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
SCALE = 100.0
UPDATE_ATTACKS: dict[str, Attack] = {
    "sign-flip": lambda values, mean, common, own: -values,
    "scale": lambda values, mean, common, own: SCALE * values,  # model replacement, arXiv 1807.00459
    "random": lambda values, mean, common, own: _noise(values, own),  # of the norm that the device's own update has
    "collusion": lambda values, mean, common, own: common - mean,  # all the same, away from the honest
}


def hostile_count(share: float, devices: int) -> int:
    """How many of ``devices`` a share of them is: rounded up, so that a rule never assumes fewer than there are."""
    return math.ceil(share * devices - 1e-9)


def attackers(devices: Collection[str], share: float, seed: int) -> frozenset[str]:
    """The hostile ones: ``share`` of ``devices``, at least one, the same for the seed in whatever order they are named."""
    count = max(1, hostile_count(share, len(devices)))
    return frozenset(sorted(devices, key=lambda device: derive_seed(seed, "attacker", device))[:count])


def corrupted(updates: Updates, attack: str, hostile: Collection[str], seed: int) -> tuple[DeviceUpdate, ...]:
    """``updates`` with those of ``hostile`` devices attacked. Raises :class:`ConfigError` for an unknown attack."""
    if attack not in UPDATE_ATTACKS:
        raise ConfigError(f"unknown attack {attack!r}: known are {', '.join(UPDATE_ATTACKS)}")
    honest = [u.tensors or {} for u in updates if u.device_id not in hostile] or [u.tensors or {} for u in updates]
    mean = {name: np.mean([tensors[name] for tensors in honest], axis=0) for name in honest[0]}
    alike = derive_generator(seed, attack)
    common = {name: 0.1 * _noise(values, alike) for name, values in mean.items()}
    result = []
    for update in updates:
        if update.device_id in hostile:
            own = derive_generator(seed, attack, update.device_id)
            bad = {
                name: np.asarray(UPDATE_ATTACKS[attack](values, mean[name], common[name], own), values.dtype)
                for name, values in (update.tensors or {}).items()
            }
            update = replace(update, tensors=bad)
        result.append(update)
    return tuple(result)


def _noise(values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    noise = generator.standard_normal(values.shape)
    return np.asarray(noise * (np.linalg.norm(values) / max(float(np.linalg.norm(noise)), 1e-30)))


def swapped(device: DeviceExamples, seed: int) -> DeviceExamples:
    """The device with each training example's target replaced by another example's."""
    order = list(range(len(device.train)))
    derive_random(seed, LABEL_SWAP, device.device_id).shuffle(order)
    following = dict(zip(order, order[1:] + order[:1], strict=True))
    train = tuple(
        replace(example, target=device.train[following[place]].target) for place, example in enumerate(device.train)
    )
    return replace(device, train=train)


class LabelSwapped:
    """A task in which some devices have swapped targets to train on; all else is the task's own."""

    def __init__(self, task: Task, hostile: frozenset[str], seed: int) -> None:
        self._task, self._hostile, self._seed = task, hostile, seed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def device(self, device_id: str) -> DeviceExamples:
        """One device's data, as it is or with swapped targets."""
        device = self._task.device(device_id)
        return swapped(device, self._seed) if device_id in self._hostile else device


def attacked(task: Task, config: RunConfig) -> Task:
    """``task``, or with the setting ``attack = label-swap`` one whose hostile devices learn other texts."""
    if not config.attack.swaps_labels:
        return task
    trained = [device for device in task.device_ids() if not task.is_new(device)]
    hostile = attackers(trained, config.attack.attacker_share, config.seed)
    return cast("Task", LabelSwapped(task, hostile, config.seed))
