"""The second adapters of K devices in one computation, with the numbers of :func:`clients.training.second.train_own` one by one.

The own tensors of all are one matrix. In each step the blend of :mod:`fl.adapters.blend`, on tensors with a leading dimension, makes
the K adapters that decode, and gradients go back through it.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from clients.training.cohort import CohortSteps
from clients.training.second import Own, OwnResult
from clients.training.single import LocalResult, draw_batches, no_examples
from clients.training.slots import SlotMatrix, grouped
from fl.adapters.blend import MIXING, own
from fl.adapters.split import Split, tensor_kind
from fl.adapters.stacked import Slot, StackedAdapters, StackedModel
from fl.adapters.state import State
from fl.algorithms.personal.own_adapter import OwnAdapter
from fl.core.errors import AdapterError
from fl.core.rng import derive_generator
from fl.tasks.task import Task


def train_own_cohort(
    host: StackedModel, task: Task, second: OwnAdapter, slot: Slot, devices: Sequence[Own], *, budget: int
) -> list[OwnResult | AdapterError]:
    """Train the own tensors of ``devices``, which have one plan, and return them in the same order.

    ``slot`` is that in which they decode, ``budget`` in bytes of activations. Errors are those of
    :func:`clients.training.cohort.train_cohort`.
    """
    able = [device for device in devices if device.examples]
    trained = iter(_OwnCohort(host, task, second, slot, able, budget).trained() if able else ())
    return [next(trained) if device.examples else no_examples() for device in devices]


class _OwnMatrix(SlotMatrix):
    """The own tensors of K devices, beside the shared adapters (K, ...) that they are blended with."""

    def __init__(self, second: OwnAdapter, slot: Slot, devices: Sequence[Own], device: torch.device) -> None:
        def stacked(states: Sequence[State]) -> State:
            return {name: torch.stack([state[name] for state in states]).to(device) for name in states[0]}

        self.second, self.slots = second, (slot,) * len(devices)
        self.shared, personal = stacked([d.shared for d in devices]), stacked([d.personal for d in devices])
        weight = [
            name for name in personal if name == MIXING
        ]  # in a group of its own, which neither clipping nor AdamW knows
        adapter = Split("own", (), tuple(name for name in personal if name != MIXING))
        super().__init__(personal, {**grouped(adapter), MIXING: weight}, device)

    @property
    def stack(self) -> StackedAdapters:
        """The adapters that decode, with a graph back to the own tensors."""
        built = self.second.build(self.shared, self.leaves)
        factors = {name: tensor for name, tensor in built.items() if tensor_kind(name) != "gate"}
        gates = {name: tensor for name, tensor in built.items() if tensor_kind(name) == "gate"}
        return StackedAdapters(self.slots, factors, {self.slots[0].gate: gates} if gates else {})

    def states(self, i: int) -> tuple[State, State]:
        """Own and shared tensors of one device: copies on the CPU."""

        def copied(stacked: Mapping[str, Tensor]) -> State:
            return {name: tensor[i].detach().to("cpu", copy=True) for name, tensor in stacked.items()}

        return copied(self.leaves), copied(self.shared)


class _OwnCohort(CohortSteps):
    """The state of one call of :func:`train_own_cohort`."""

    def __init__(
        self, host: StackedModel, task: Task, second: OwnAdapter, slot: Slot, devices: Sequence[Own], budget: int
    ) -> None:
        self.own = _OwnMatrix(second, slot, devices, next(host.model.parameters()).device)
        self.plan = devices[0].plan
        if any(device.plan != self.plan for device in devices):
            raise AdapterError("the second adapters of a cohort train by one plan: divide the devices")
        kinds, batches = [], []
        for device in devices:
            plan, generator = device.plan, derive_generator(device.seed, "local-steps")
            drawn = draw_batches(len(device.examples), plan.batch_size, plan.steps, generator)
            batches.append([batch for batch in drawn for _ in range(plan.repeat)])
            kinds.append(["private"] * len(batches[-1]))
        runs = [(device.examples, device.plan) for device in devices]
        super().__init__(host, task, self.own, runs, kinds, batches, budget)

    def trained(self) -> list[OwnResult | AdapterError]:
        """Take all steps; what every device has after them."""
        found = enumerate(self.run())
        return [OwnResult(*self.own.states(i), one) if isinstance(one, LocalResult) else one for i, one in found]

    def prepare(self) -> None:
        """The pull is towards the shared adapter."""
        if self.optimizer.centres is not None:
            for name, tensor in self.own.shared.items():
                self.own.view(self.optimizer.centres, own(name)).copy_(tensor)

    def stepped(self, step: int) -> None:
        """The weight of a mixture moves; after the steps of a batch pFedMe's shared adapter follows (:mod:`clients.training.second`)."""
        if MIXING in self.own.leaves:
            weight, gradient = (self.own.view(matrix, MIXING) for matrix in (self.own.values, self.own.gradients))
            weight.sub_(self.plan.mixing_learning_rate * gradient).clamp_(0.0, 1.0)
        if self.plan.outer and (step + 1) % self.plan.repeat == 0:
            for name, tensor in self.own.shared.items():
                tensor.lerp_(self.own.leaves[own(name)].detach(), self.plan.outer)
            self.prepare()
