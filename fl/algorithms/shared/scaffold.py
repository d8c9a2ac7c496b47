"""SCAFFOLD: control variates take the pull of each device's own data out of its local steps (Karimireddy et al. 2020, option II).

The aggregator keeps c, the mean of the devices' control variates c_k, beside the shared tensors x. Devices get both, the one
under ``control:<name>``, and send the updates of both. With p_k device k's share of all devices' examples

    x <- x + sum_{k in S} p_k d_k / sum_{k in S} p_k          c <- c + sum_{k in S} p_k (c_k+ - c_k)

In the paper all p_k are 1 / N; with shares c is the gradient of the weighted objective that FedAvg's mean minimizes too. Both sums
are sums over devices, so nodes may send them (edge sums).

Each local step on the shared part uses g - c_k + c for its gradient g. Afterwards, option II of the paper (eq. 4) is

    c_k+ = c_k - c + (x - y_k) / (K eta)

With the paper's SGD, x - y_k is eta times the sum of the K corrected gradients, so c_k+ is the mean of the K gradients g. That
mean is what is computed here: it means the same under AdamW and clipping, where x - y_k no longer is a sum of gradients. A
tensor that got no gradient in the whole round keeps its c_k. c_k stays on the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fl.adapters.split import CONTROL, OWN
from fl.aggregation.mean import mean
from fl.aggregation.updates import Tensors
from fl.algorithms.base import About, Aggregator, Algorithm, Capabilities, Correction, Load, Round

if TYPE_CHECKING:
    from fl.adapters.state import State


@dataclass
class ControlVariate(Correction):
    """One device's control variate in one local phase, by the names of the shared tensors."""

    own: State  # c_k
    everyone: State  # c

    @property
    def correction(self) -> State:
        """c - c_k, which is added to every gradient."""
        return {name: self.everyone[name] - self.own[name] for name in self.own}

    def after(self) -> State:
        """c_k+: the mean gradient of the phase."""
        return {
            name: self.sums[name].cpu() / self.counts[name] if self.counts.get(name) else self.own[name]
            for name in self.own
        }

    def sent(self) -> State:
        """c + (c_k+ - c_k), whose update is the device's difference."""
        after = self.after()
        return {CONTROL + name: self.everyone[name] + (after[name] - self.own[name]) for name in self.own}

    def kept(self) -> State:
        """c_k+ under names that no message may hold."""
        return {OWN + name: tensor for name, tensor in self.after().items()}


@dataclass
class ControlledMean(Aggregator):
    """FedAvg of x and c. ``control`` is c in float64 by the names of the shared tensors, zero where it has none yet."""

    control: dict[str, np.ndarray] = field(default_factory=dict)

    def recipients(
        self, devices: tuple[str, ...], shared: Tensors, *, training: bool, held_out: bool = False
    ) -> list[tuple[tuple[str, ...], Tensors]]:
        """The shared tensors with their control variates, where they are trained."""
        if not training:
            return [(devices, shared)]
        own = {CONTROL + n: self.control.get(n, np.zeros(x.shape)).astype(np.float32) for n, x in shared.items()}
        return [(devices, {**shared, **own})]

    def aggregate(self, found: Round) -> dict[str, np.ndarray]:
        """The mean of the shared tensors; c moves by the mean of the differences, less the fewer devices took part."""
        update = mean(found.updates)
        for name, start in found.start.items():
            before = self.control.get(name, np.zeros(start.shape))
            self.control[name] = before + found.participation * update[CONTROL + name]
        return {name: update[name] for name in found.start}

    def state(self) -> dict[str, np.ndarray]:
        """c."""
        return {CONTROL + name: values for name, values in self.control.items()}

    def restore(self, state: Mapping[str, np.ndarray], devices: Sequence[str]) -> None:
        """Continue from :meth:`state`."""
        self.control = {n.removeprefix(CONTROL): np.array(v) for n, v in state.items() if n.startswith(CONTROL)}


class Scaffold(Algorithm):
    """Stochastic controlled averaging."""

    name = "scaffold"
    about = About(
        "Karimireddy et al. 2020",
        "1910.06378",
        "what the split shares, and a control variate for each",
        "their mean control variate; a device keeps its own",
    )
    can = Capabilities(encoded=False)

    def begin(self, incoming: State, load: Load) -> ControlVariate | None:
        """The device's control variate, zero in its first round; None in a message without any."""
        everyone = {n.removeprefix(CONTROL): t for n, t in incoming.items() if n.startswith(CONTROL)}
        if not everyone:
            return None
        stored = load({OWN + name: tuple(tensor.shape) for name, tensor in everyone.items()})
        own = {n: t.new_zeros(t.shape) if stored is None else stored[OWN + n] for n, t in everyone.items()}
        return ControlVariate(own, everyone)

    def aggregator(self) -> Aggregator:
        """FedAvg of x and c."""
        return ControlledMean()
