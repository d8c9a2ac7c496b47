"""SCAFFOLD at a device (Karimireddy et al. 2020, arXiv 1910.06378): local gradients without the pull of the device's own data.

Each step on the shared part uses g - c_i + c for its gradient g: c_i is what the device's gradients were on average, c the same
over all devices. Afterwards, option II of the paper (eq. 4) is

    c_i+ = c_i - c + (x - y_i) / (K eta)

With the paper's SGD, x - y_i is eta times the sum of the K corrected gradients, so c_i+ is the mean of the K gradients g. That
mean is what is computed here: it means the same under AdamW and clipping, where x - y_i no longer is a sum of gradients. A
tensor that got no gradient in the whole round keeps its c_i.

c_i stays on the device. Under ``control:<name>`` c comes with the shared tensors and c + (c_i+ - c_i) leaves with them, that
is, c moved by the device's difference, as the shared tensors leave moved by its training: whoever clips, adds noise to or sums
the differences of shared tensors does the same to these.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from clients.store import PrivateState
from clients.worker import Worker
from fl.adapters.split import CONTROL, OWN
from fl.adapters.state import State
from fl.algorithms.arms import Arm


@dataclass
class Control:
    """One device's control variate in one local phase, by the names of the shared tensors."""

    own: State  # c_i
    everyone: State  # c
    sums: State = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def correction(self) -> State:
        """c - c_i, which is added to every gradient."""
        return {name: self.everyone[name] - self.own[name] for name in self.own}

    def observe(self, name: str, gradient: Tensor) -> None:
        """Count one step's gradient of the loss alone."""
        self.counts[name] = self.counts.get(name, 0) + 1
        self.sums[name] = self.sums[name] + gradient if name in self.sums else gradient.detach().clone()

    def after(self) -> State:
        """c_i+: the mean gradient of the phase."""
        return {
            name: self.sums[name].cpu() / self.counts[name] if self.counts.get(name) else self.own[name]
            for name in self.own
        }

    def message(self) -> State:
        """What leaves with the shared tensors: c + (c_i+ - c_i)."""
        after = self.after()
        return {CONTROL + name: self.everyone[name] + (after[name] - self.own[name]) for name in self.own}


def without_controls(incoming: State) -> State:
    """The shared tensors of a message."""
    return {name: tensor for name, tensor in incoming.items() if not name.startswith(CONTROL)}


def control_folder(arm: Arm) -> str:
    """Under which name the device store keeps c_i of this arm."""
    return f"{arm.name}-control"


def load_control(worker: Worker, arm: Arm, device_id: str, incoming: State, *, before: int) -> Control | None:
    """The device's control variate, zero in its first round; None if the message has none, that is, without SCAFFOLD."""
    everyone = {n.removeprefix(CONTROL): t for n, t in incoming.items() if n.startswith(CONTROL)}
    if not everyone:
        return None
    shapes = {OWN + name: tuple(tensor.shape) for name, tensor in everyone.items()}
    found = worker.store.load(control_folder(arm), device_id, shapes, before=before)
    own = {
        name: tensor.new_zeros(tensor.shape) if found is None else found.tensors[OWN + name]
        for name, tensor in everyone.items()
    }
    return Control(own, everyone)


def keep_control(worker: Worker, arm: Arm, device_id: str, server_round: int, control: Control) -> None:
    """Write c_i+ to the device's store."""
    tensors = {OWN + name: tensor for name, tensor in control.after().items()}
    worker.store.save(control_folder(arm), device_id, PrivateState(server_round, tensors))
