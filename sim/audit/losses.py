"""Losses of utterances under the models that an attacker can put together: what membership inference is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from clients.worker import Worker, get_worker
from fl.adapters.files import load_adapter
from fl.adapters.state import load_state
from fl.algorithms.arms import Arm, trained_arm
from fl.data.batching import buckets
from fl.privacy.audit.attackers import AuditError, Floats
from fl.privacy.audit.membership import Losses
from fl.privacy.audit.views import Seen
from fl.settings.config import RunConfig
from fl.tasks.task import Example
from sim.audit.record import ARM, Recorded

ROWS = 16  # of a batch
Chosen = Sequence[tuple[str, bool, Example]]  # person, whether trained on, utterance


class LossMeter:
    """The frozen base of one recorded run, into which adapters are put to see what they say of utterances."""

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

    def reference(self, chosen: Chosen) -> Floats:
        """Losses under the adapter before any training: it equals the frozen base, which has seen nobody."""
        return self.losses({}, [example for _, _, example in chosen])

    def under_views(self, recorded: Recorded, seen: Seen, chosen: Chosen, reference: Floats) -> Losses:
        """Losses under what the server can put together for each person: the round's start plus its guess of the update.

        Private tensors are not there, so they are as at the start: gates neutral, a private A or B untrained.
        """
        found = np.zeros(len(chosen))
        if seen.mean is not None:
            groups = {"": list(range(len(chosen)))}
        else:
            groups = {}
            for place, (person, _, _) in enumerate(chosen):
                groups.setdefault(person, []).append(place)
        for person, places in groups.items():
            guess = seen.guess(person)
            tensors = {name: recorded.old[name] + guess[name] for name in recorded.old}
            found[places] = self.losses(tensors, [chosen[place][2] for place in places])
        return _losses(chosen, found, reference)

    def under_adapters(self, chosen: Chosen, reference: Floats) -> Losses:
        """Losses under each person's finished adapter with its private part: what a serving host is sent."""
        found = np.zeros(len(chosen))
        for person in dict.fromkeys(person for person, _, _ in chosen):
            places = [place for place, row in enumerate(chosen) if row[0] == person]
            folder = self.worker.store.folder(ARM, person) / "adapter"
            tensors, info = load_adapter(folder)
            info.require_base(self.worker.task.fingerprint)
            values = {name: tensor.float().numpy() for name, tensor in tensors.items()}
            found[places] = self.losses(values, [chosen[place][2] for place in places])
        return _losses(chosen, found, reference)

    def chosen_people(self, recorded: Recorded) -> tuple[str, ...]:
        """The people of a round, sorted; :class:`AuditError` if the task no longer knows one."""
        unknown = [name for name in recorded.updates if name not in self.worker.task.device_ids()]
        if unknown:
            raise AuditError(f"{unknown[0]!r} is in the recorded updates and not in the data: the manifest has changed")
        return tuple(sorted(recorded.updates))


def _losses(chosen: Chosen, found: Floats, reference: Floats) -> Losses:
    people, members = tuple(row[0] for row in chosen), np.array([row[1] for row in chosen])
    return Losses(people, members, found, reference)
