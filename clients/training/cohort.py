"""Local training of K devices in one computation, with the numbers of training them one by one.

In each step the batches of all devices that still have steps to take are one batch of rows, each with its own device's
adapter (:mod:`fl.adapters.stacked`). The rows are cut into groups of similar length that fit into memory; a group only adds to
the gradient, so how they are cut changes nothing but rounding. Each device keeps its own plan, order of examples, step kinds,
clipping and optimizer state (:mod:`clients.training.slots`), and all are drawn from its own seed as
:mod:`clients.training.single` draws them. What the model computes before the first tensor that trains stays the same: a task that
can say where that ends (:meth:`fl.tasks.task.Task.precomputed`) computes it once for each example and not in every step.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clients.training.single import LocalResult, diverged, no_examples, step_batches, step_kinds, trained_split
from clients.training.slots import SHARED, SHARED_GATES, SKIPPED, SlotAdamW, SlotMatrix, SlotParameters
from fl.adapters.split import Split, tensor_kind
from fl.adapters.stacked import Slot, StackedModel
from fl.adapters.state import State, module_of
from fl.algorithms.base import Correction
from fl.algorithms.plan import LocalPlan
from fl.core.compute import CUDA
from fl.core.errors import AdapterError
from fl.data.batching import buckets
from fl.tasks.task import Example, Task

ACTIVATION_BYTES = (
    2 * 2**30
)  # of one computation in main memory: not what is free, so that the numbers do not depend on it
CPU_GROUPS = {"padding": 0.3, "group_cost": 2.0}  # products of few rows wait for the weights (docs/performance.md)
GPU_GROUPS = {"padding": 0.6, "group_cost": 200.0}  # a GPU waits for launches, not for products: few groups
GPU_SHARE = 0.25  # of the free memory of a GPU: an estimate may be off, and others want some too


def activation_bytes(device: torch.device) -> int:
    """Bytes that the activations of one computation may take, by estimate."""
    return int(GPU_SHARE * torch.cuda.mem_get_info(device)[0]) if device.type == CUDA else ACTIVATION_BYTES


@dataclass(frozen=True)
class Member:
    """One device of a cohort: its adapter before the local phase, its data, its plan and the seed of its random choices."""

    device_id: str
    slot: Slot
    state: State
    examples: Sequence[Example]
    plan: LocalPlan
    seed: int
    control: Correction | None = None  # of SCAFFOLD; it has seen the gradients when the member is trained


@dataclass(frozen=True)
class MemberResult:
    """A device's adapter after the local phase, and what the phase did."""

    state: State
    result: LocalResult


def train_cohort(
    host: StackedModel, task: Task, split: Split, members: Sequence[Member], *, budget: int
) -> list[MemberResult | Exception]:
    """Train the members' adapters and return them in the same order; ``budget`` is in bytes of activations.

    A member without examples, or whose loss or gradient stops being finite, fails alone: its place has the error. What goes wrong with
    the computation itself (an example that does not fit the base, memory) is raised: no member is trained then, and none has changed.
    """
    able = [m for m in members if m.examples]
    trained = iter(Cohort(host, task, split, able, budget).trained() if able else ())
    return [next(trained) if m.examples else no_examples() for m in members]


class _SharedTerms:
    """What is added to the gradients of the shared part, for every member that has it.

    A correction (:class:`fl.algorithms.base.Correction`), which is told the sum of the gradients before. As in the single-device
    trainer, a tensor that gets no gradient in a step gets no term either.
    """

    def __init__(self, parameters: SlotParameters, members: Sequence[Member]) -> None:
        self.parameters, self.members = parameters, members
        self.counts = {group: [0] * len(members) for group in (SHARED, SHARED_GATES)}
        none: State = {}
        given = [none if m.control is None else m.control.correction for m in members]
        self.added = parameters.laid_out(given) if any(given) else None
        self.sums = torch.zeros_like(parameters.gradients) if any(given) else None

    def add(self, kinds: Mapping[int, str]) -> None:
        """Add the terms of the members that take a step."""
        if self.added is None or self.sums is None:
            return
        for group, counts in self.counts.items():
            columns = self.parameters.columns[group]
            taking = [i in kinds and kinds[i] not in SKIPPED[group] for i in range(len(self.members))]
            gradient = self.parameters.gradients[:, columns]
            step = gradient.new_tensor(taking)[:, None]
            for i, one in enumerate(taking):
                counts[i] += one
            self.sums[:, columns].addcmul_(gradient, step)
            gradient.addcmul_(self.added[:, columns], step)

    def tell(self, i: int, split: Split) -> None:
        """Give the correction of member ``i`` what its gradients were."""
        control = self.members[i].control
        if control is None or self.sums is None:
            return
        names = [name for name in split.shared if name in control.correction]
        control.sums = self.parameters.taken_out(self.sums, i, names)
        groups = {n: SHARED_GATES if tensor_kind(n) == "gate" else SHARED for n in names}
        control.counts = {name: self.counts[group][i] for name, group in groups.items()}


class CohortSteps:
    """The steps of K devices in one computation, whatever it is of them that trains.

    ``parameters`` has the adapters of all (``stack``) and the matrix of what trains; ``kinds`` and ``batches`` are of each device's
    steps, a batch a list of examples.
    """

    def __init__(
        self,
        host: StackedModel,
        task: Task,
        parameters: SlotMatrix,
        devices: Sequence[tuple[Sequence[Example], LocalPlan]],
        kinds: list[list[str]],
        batches: list[list[list[int]]],
        budget: int,
    ) -> None:
        self.host, self.task, self.parameters, self.budget = host, task, parameters, budget
        self.examples = [examples for examples, _ in devices]
        self.optimizer = SlotAdamW(parameters, [plan for _, plan in devices])
        self.kinds, self.batches = kinds, batches
        self.precomputed: dict[tuple[int, int], Example] = {}  # by device and example, where it stays the same
        # Of each step: every device's mean loss and largest gradient norm. Read when all is done: reading waits for the
        # accelerator, and a device that diverged spoils nothing but its own row until then.
        self.seen: list[Tensor] = []

    def add_terms(self, kinds: Mapping[int, str]) -> None:
        """Add to the gradients what the loss of a batch lacks, of the devices that take a step."""

    def prepare(self) -> None:
        """What comes before the first step."""

    def stepped(self, step: int) -> None:
        """What follows step number ``step``, counted from 0."""

    def run(self) -> list[LocalResult | AdapterError]:
        """Take all steps; what they were for each device."""
        started = time.perf_counter()
        self.prepare()
        for _ in range(max(map(len, self.kinds))):
            self.step()
        seen = torch.stack(self.seen).cpu() if self.seen else torch.zeros(0, 2, len(self.examples))
        seconds = time.perf_counter() - started
        examples = [sum(map(len, batches)) for batches in self.batches]
        shares = [seconds * count / max(1, sum(examples)) for count in examples]
        return [self._result(i, seen[..., i], examples[i], shares[i]) for i in range(len(self.examples))]

    def _result(self, i: int, seen: Tensor, examples: int, seconds: float) -> LocalResult | AdapterError:
        """Of one device; ``seen`` is (steps of the longest, 2): its mean loss and largest gradient norm."""
        steps = len(self.kinds[i])
        losses, norms = seen[:steps].T.tolist()
        for loss, norm in zip(losses, norms, strict=True):
            what = "the loss" if not math.isfinite(loss) else "a gradient" if not math.isfinite(norm) else ""
            if what:
                return diverged(what)
        loss = sum(losses) / len(losses) if losses else 0.0
        return LocalResult(loss=loss, examples=examples, steps=steps, seconds=seconds)

    def step(self) -> None:
        """One optimizer step of every device that has one left."""
        step = len(self.seen)
        kinds = {i: device_kinds[step] for i, device_kinds in enumerate(self.kinds) if step < len(device_kinds)}
        keys = [(i, j) for i in kinds for j in self.batches[i][step]]
        rows = [(i, self.precomputed.get((i, j)) or self.examples[i][j]) for i, j in keys]
        self.parameters.gradients.zero_()
        device = self.parameters.values.device
        losses = torch.zeros(len(self.examples), device=device, dtype=torch.float64)
        labels = torch.zeros_like(losses)
        for group in self.groups([example for _, example in rows]):
            index = [rows[r][0] for r in group]
            neutral = [kinds[i] == "neutral" for i in index]
            with self.host.rows(self.parameters.stack, index, neutral=neutral) as model:
                summed, count = self.task.losses(model, [rows[r][1] for r in group])
                self.parameters.backward(summed.sum())
            slots = torch.tensor(index, device=device)
            losses.index_add_(0, slots, summed.detach().double())
            labels.index_add_(0, slots, count.double())
        # The gradient of a mean is that of the sum over the number of labels: known only now, and exact per device.
        self.parameters.gradients.div_(labels.clamp(min=1).to(self.parameters.gradients.dtype)[:, None])
        self.add_terms(kinds)
        means = losses / labels.clamp(min=1)
        self.seen.append(torch.stack((means, self.optimizer.clip().double())))
        self.optimizer.step(kinds)
        self.stepped(step)

    def groups(self, examples: Sequence[Example]) -> list[list[int]]:
        """Rows of similar size, as many together as the memory for activations holds by estimate."""
        need = max(self.task.training_bytes(example) for example in examples)
        limits = GPU_GROUPS if self.parameters.values.device.type == CUDA else CPU_GROUPS
        return buckets([example.size for example in examples], rows=max(1, self.budget // max(1, need)), **limits)


class Cohort(CohortSteps):
    """Members in training, each with at least one example: what :func:`train_cohort` runs to the end, and may be taken step by step."""

    def __init__(self, host: StackedModel, task: Task, split: Split, members: list[Member], budget: int) -> None:
        self.members = members
        splits = {trained_split(split, m.plan) for m in members}
        if len(splits) > 1:
            raise AdapterError("the devices of a cohort train the same tensors of their adapters: divide them")
        self.split = splits.pop()
        device = next(host.model.parameters()).device
        parameters = SlotParameters([m.slot for m in members], [m.state for m in members], self.split, device)
        self.adapters, self.terms = parameters, _SharedTerms(parameters, members)
        kinds = [step_kinds(m.plan) for m in members]
        batches = [step_batches(m.plan, len(m.examples), m.seed) for m in members]
        devices = [(m.examples, m.plan) for m in members]
        super().__init__(host, task, parameters, devices, kinds, batches, budget)

    def trained(self) -> list[MemberResult | Exception]:
        """Take all steps; the adapters after them."""
        return [one if isinstance(one, AdapterError) else self._trained(i, one) for i, one in enumerate(self.run())]

    def _trained(self, i: int, result: LocalResult) -> MemberResult:
        self.terms.tell(i, self.split)
        return MemberResult(self.adapters.stack.state(i), result)

    def add_terms(self, kinds: Mapping[int, str]) -> None:
        """Those of the shared part."""
        self.terms.add(kinds)

    def prepare(self) -> None:
        """Compute once what stays the same through the phase: all of the model before what trains, where no gate is neutral in turn."""
        if any("neutral" in kinds for kinds in self.kinds):
            return
        trained = {module_of(name) for name in self.split.trained}
        keys = [(i, j) for i, batches in enumerate(self.batches) for j in sorted({j for b in batches for j in b})]
        found = [self.examples[i][j] for i, j in keys]
        for group in self.groups(found) if found else ():
            with self.host.rows(self.adapters.stack, [keys[r][0] for r in group]) as model:
                known = self.task.precomputed(model, [found[r] for r in group], trained)
            self.precomputed.update(zip([keys[r] for r in group], known, strict=True))
