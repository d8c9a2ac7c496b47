"""Hostile devices of a study that learn wrong targets on purpose.

Attacks on updates are the aggregator's part of a simulation (:mod:`fl.algorithms.hostile`), since some of them look at what the
honest devices sent.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from fl.algorithms.hostile import attackers
from fl.core.rng import derive_random
from fl.settings.config import RunConfig
from fl.settings.names import LABEL_SWAP
from fl.tasks.task import DeviceExamples, Task


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
    return cast(Task, LabelSwapped(task, hostile, config.seed))
