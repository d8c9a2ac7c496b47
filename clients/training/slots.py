"""The trained tensors of K adapters as one matrix, and AdamW for each of its rows as if it were alone.

A row is a slot of :class:`fl.adapters.stacked.StackedAdapters`, a column a trained number. Columns come in groups that are
trained in the same steps at the same rate: shared factors, shared gates, private factors, private gates. In this layout a
step of clipping and AdamW over all devices is a few dozen vector operations instead of a dozen for each of thousands of tensors.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fl.adapters.split import Split, tensor_kind
from fl.adapters.stacked import Slot, StackedAdapters, cut
from fl.adapters.state import State
from fl.algorithms.plan import LocalPlan
from fl.core.errors import AdapterError

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # torch.optim.AdamW's defaults, which the single-device trainer uses
SHARED, SHARED_GATES, FACTORS, GATES = "shared factors", "shared gates", "private factors", "private gates"
SKIPPED = {
    SHARED: ("private",),
    SHARED_GATES: ("private", "neutral"),
    FACTORS: ("shared",),
    GATES: ("neutral", "shared"),
}
"""In which kinds of steps a group gets no gradient, and keeps its values, its moments and its count."""


class SlotMatrix(ABC):
    """The trained tensors of K slots, each (K, ...) in ``stacked``, as one (K, P) matrix, ``groups`` of them one after the other.

    ``values`` and ``gradients`` are (K, P). ``leaves`` are the memory of ``values`` by name, and :meth:`backward` adds the gradient of
    a loss that depends on them to ``gradients``.
    """

    def __init__(
        self, stacked: Mapping[str, Tensor], groups: Mapping[str, Sequence[str]], device: torch.device | str = "cpu"
    ) -> None:
        self.columns: dict[str, slice] = {}  # of each group
        self._columns: dict[str, slice] = {}  # of each tensor
        self._shapes: dict[str, tuple[int, ...]] = {}  # padded, of one slot
        column = 0
        for group, names in groups.items():
            first = column
            for name in names:
                self._shapes[name] = tuple(stacked[name].shape[1:])
                self._columns[name] = slice(column, column + math.prod(self._shapes[name]))
                column = self._columns[name].stop
            self.columns[group] = slice(first, column)
        example = next(iter(stacked.values()))
        slots = max(len(tensor) for tensor in stacked.values())
        self.values = torch.empty(slots, column, device=device, dtype=example.dtype)
        self.gradients = torch.zeros_like(self.values)
        for name in self._shapes:
            self.view(self.values, name).copy_(stacked[name])
        self.leaves = {name: self.view(self.values, name).detach().requires_grad_(True) for name in self._shapes}

    @property
    @abstractmethod
    def stack(self) -> StackedAdapters:
        """The adapters with which the slots decode, with a graph back to ``leaves``."""

    def view(self, matrix: Tensor, name: str) -> Tensor:
        """One tensor of all slots in a matrix like :attr:`values`."""
        return matrix[:, self._columns[name]].view(len(matrix), *self._shapes[name])

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss`` to ``gradients``; a tensor that the loss does not depend on has none."""
        found = torch.autograd.grad(loss, list(self.leaves.values()), allow_unused=True)
        for name, gradient in zip(self.leaves, found, strict=True):
            if gradient is not None:
                self.view(self.gradients, name).add_(gradient)


class SlotParameters(SlotMatrix):
    """K adapters with the same gate (ranks may differ) whose trained tensors share one matrix.

    Tensors that the split fixes are held once for all slots where they are the same.
    """

    def __init__(
        self, slots: Sequence[Slot], states: Sequence[State], split: Split, device: torch.device | str = "cpu"
    ) -> None:
        if len({slot.gate for slot in slots}) != 1:
            raise AdapterError("the devices of a cohort have one kind of gate: put others into another cohort")
        self.slots = tuple(slots)
        alike = len({slot.rank for slot in slots}) == 1
        common = {
            n: states[0][n] for n in split.fixed if alike and all(torch.equal(s[n], states[0][n]) for s in states)
        }
        padded = StackedAdapters.from_states(slots, states, common)
        every = {**padded.factors, **padded.gates.get(slots[0].gate, {})}
        super().__init__(every, grouped(split), device)
        tensors = {**{name: every[name].to(device) for name in split.fixed}, **self.leaves}
        factors = {n: t for n, t in tensors.items() if tensor_kind(n) != "gate"}
        gates = {n: t for n, t in tensors.items() if tensor_kind(n) == "gate"}
        self._stack = StackedAdapters(self.slots, factors, {self.slots[0].gate: gates} if gates else {})

    @property
    def stack(self) -> StackedAdapters:
        """The memory of :attr:`values` as adapters."""
        return self._stack

    def laid_out(self, states: Sequence[State]) -> Tensor:
        """Tensors of each slot as a matrix like :attr:`values`, (K, P); zero where a slot has none."""
        matrix = torch.zeros_like(self.values)
        for name in self._shapes:
            for row, slot, state in zip(self.view(matrix, name), self.slots, states, strict=True):
                if name in state:
                    row[cut(name, slot)] = state[name].to(matrix)
        return matrix

    def taken_out(self, matrix: Tensor, slot: int, names: Sequence[str]) -> State:
        """The inverse of :meth:`laid_out` for one slot: copies on the CPU."""
        rows = {name: self.view(matrix, name)[slot] for name in names}
        return {name: row[cut(name, self.slots[slot])].to("cpu", copy=True) for name, row in rows.items()}


def grouped(split: Split) -> dict[str, list[str]]:
    """Names by group, in the order of the columns: shared before private."""
    groups: dict[str, list[str]] = {group: [] for group in SKIPPED}
    for names, factors, gates in ((split.shared, SHARED, SHARED_GATES), (split.private, FACTORS, GATES)):
        for name in names:
            groups[gates if tensor_kind(name) == "gate" else factors].append(name)
    return groups


class SlotAdamW:
    """Gradient clipping and AdamW (Loshchilov & Hutter 2019), a state and a step count for each slot and group.

    Equal to ``torch.optim.AdamW`` on each adapter alone, which skips a tensor without gradient (see :data:`SKIPPED`).
    """

    def __init__(self, parameters: SlotMatrix, plans: Sequence[LocalPlan]) -> None:
        self.parameters = parameters
        self.first = torch.zeros_like(parameters.values)
        self.second = torch.zeros_like(parameters.values)
        self.steps = {group: [0] * len(plans) for group in SKIPPED}
        self.plans = list(plans)
        self._limits = parameters.values.new_tensor([plan.clipping_norm for plan in plans])

    def clip(self) -> Tensor:
        """Scale each slot's gradient to its plan's norm, shared and private apart; the largest norm before (slots,).

        Nothing is read from the device. A slot whose gradient is not finite has a norm that is not, and spoils its own row only.
        """
        largest = torch.zeros_like(self.parameters.values[:, 0])
        columns = self.parameters.columns
        for first, last in ((SHARED, SHARED_GATES), (FACTORS, GATES)):
            part = self.parameters.gradients[:, columns[first].start : columns[last].stop]
            if not part.shape[1]:
                continue
            norms = torch.linalg.vector_norm(part, dim=1)
            part.mul_((self._limits / (norms + 1e-6)).clamp(max=1.0)[:, None])
            largest = torch.maximum(largest, norms)  # not a number where one of them is not
        return largest

    def step(self, kinds: Mapping[int, str]) -> None:
        """One update of the slots in ``kinds``: ``neutral`` leaves the gates, ``private`` the shared part, ``joint`` nothing."""
        for group, skipping in SKIPPED.items():
            slots = [slot for slot, kind in kinds.items() if kind not in skipping]
            columns = self.parameters.columns[group]
            if slots and columns.stop > columns.start:
                self._update(group, slots)

    def _update(self, group: str, slots: list[int]) -> None:
        # As in the single-device trainer, only private gates have a rate of their own: a private A or B is an ordinary factor.
        columns = self.parameters.columns[group]
        matrices = (self.parameters.values, self.parameters.gradients, self.first, self.second)
        everyone = len(slots) == len(self.plans)
        rows = slice(None) if everyone else torch.tensor(slots, device=self.first.device)
        value, gradient, first, second = (matrix[rows, columns] for matrix in matrices)  # views, or copies of some rows
        for slot in slots:
            self.steps[group][slot] += 1
        counts = [self.steps[group][slot] for slot in slots]
        plans = [self.plans[slot] for slot in slots]
        rates = [p.private_learning_rate if group == GATES else p.learning_rate for p in plans]
        decays = [0.0 if group == GATES else p.weight_decay for p in plans]

        def column(numbers: list[float]) -> Tensor:
            return torch.tensor(numbers, device=value.device, dtype=value.dtype)[:, None]

        if any(decays):
            value.mul_(column([1 - rate * decay for rate, decay in zip(rates, decays, strict=True)]))
        first.lerp_(gradient, 1 - BETA1)
        second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        denominator = second.sqrt().div_(column([(1 - BETA2**n) ** 0.5 for n in counts])).add_(EPSILON)
        step = column([-rate / (1 - BETA1**n) for rate, n in zip(rates, counts, strict=True)])
        value.add_(denominator.reciprocal_().mul_(first).mul_(step))
        if not everyone:
            for matrix, updated in ((self.parameters.values, value), (self.first, first), (self.second, second)):
                matrix[rows, columns] = updated
