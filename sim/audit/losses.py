"""Losses of utterances under the models that an attacker can form: the input of membership inference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from clients.worker import Worker, get_worker
from fl.adapters.files import load_adapter
from fl.adapters.state import load_state
from fl.algorithms.arms import Arm, trained_arm
from fl.data.batching import buckets
from fl.privacy.audit.attackers import Floats
from fl.privacy.audit.views import ServerView
from fl.settings.config import RunConfig
from fl.tasks.task import Example
from sim.audit.people import Chosen
from sim.audit.record import ARM, RecordedRound

ROWS = 16  # of a batch


class LossMeter:
    """The frozen base of one recorded run, and the losses of utterances under adapters loaded into it."""

    def __init__(self, config: RunConfig) -> None:
        arm = trained_arm(ARM, config)
        assert arm is not None
        self.arm: Arm = arm
        self.folder = Path(config.output)
        self.worker: Worker = get_worker(config, self.folder / "devices")
        self.initial = {name: tensor.numpy() for name, tensor in self.worker.initial(arm.gate).items()}

    def losses(self, tensors: Mapping[str, np.ndarray], examples: Sequence[Example]) -> Floats:
        """Mean loss over the labels of each example, in nats ``(examples,)``; tensors that are not given are as at the start."""
        slot = self.worker.slot(self.arm.gate)
        state = {name: torch.from_numpy(np.array(values)) for name, values in (self.initial | dict(tensors)).items()}
        load_state(self.worker.adapted, state, slot)
        found = np.zeros(len(examples))
        with torch.no_grad():
            for chosen in buckets([example.size for example in examples], rows=ROWS):
                total, labels = self.worker.task.losses(self.worker.adapted, [examples[place] for place in chosen])
                found[chosen] = (total / labels).float().cpu().numpy()
        return found

    def reference(self, chosen: Sequence[Chosen]) -> Floats:
        """Losses under the adapter before any training: it equals the frozen base, which has seen nobody."""
        return self.losses({}, [example for _, _, example in chosen])

    def under_view(self, recorded: RecordedRound, seen: ServerView, chosen: Sequence[Chosen]) -> Floats:
        """Losses under what the server can form for each person: the round's start plus its guess of the update.

        Private tensors are not there, so they are as at the start: gates neutral, a private A or B untrained.
        """

        def tensors(person: str) -> dict[str, np.ndarray]:
            guess = seen.guess(person)
            return {name: value + guess[name] for name, value in recorded.old.items()}

        return self._by_person(chosen, tensors, one_model=seen.mean is not None)

    def under_adapters(self, chosen: Sequence[Chosen]) -> Floats:
        """Losses under each person's finished adapter with its private part: what a serving host is sent."""

        def tensors(person: str) -> dict[str, np.ndarray]:
            found, info = load_adapter(self.worker.store.folder(ARM, person) / "adapter")
            info.require_base(self.worker.task.fingerprint)
            return {name: tensor.float().numpy() for name, tensor in found.items()}

        return self._by_person(chosen, tensors)

    def _by_person(
        self, chosen: Sequence[Chosen], tensors: Callable[[str], Mapping[str, np.ndarray]], *, one_model: bool = False
    ) -> Floats:
        """Losses of each person's utterances under this person's tensors, or all under the same ones."""
        groups: dict[str, list[int]] = {}
        for place, (person, _, _) in enumerate(chosen):
            groups.setdefault("" if one_model else person, []).append(place)
        found = np.zeros(len(chosen))
        for person, places in groups.items():
            found[places] = self.losses(tensors(person), [chosen[place][2] for place in places])
        return found
