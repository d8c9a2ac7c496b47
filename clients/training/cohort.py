"""Local training of K devices in one computation, with the numbers of training them one by one.

In each step the batches of all devices that still have steps to take are one batch of rows, each with its own device's
adapter (:mod:`fl.adapters.stacked`). The rows are cut into groups of similar length that fit into memory; a group only adds to
the gradient, so how they are cut changes nothing but rounding. Each device keeps its own plan, order of examples, step kinds,
clipping and optimizer state (:mod:`clients.training.slots`), and all are drawn from its own seed as
:mod:`clients.training.single` draws them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from clients.training.optimizer import diverged, no_examples
from clients.training.single import LocalResult, draw_batches, step_kinds, trained_split
from clients.training.slots import SHARED, SHARED_GATES, SKIPPED, SlotAdamW, SlotParameters
from fl.adapters.split import Split, tensor_kind
from fl.adapters.stacked import Slot, StackedModel
from fl.adapters.state import State, size_of
from fl.algorithms.base import Correction
from fl.algorithms.plan import LocalPlan
from fl.core.errors import AdapterError
from fl.core.rng import derive_generator
from fl.data.batching import buckets
from fl.tasks.task import Example, Task

OPTIMIZER_COPIES = 4  # a tensor, its gradient and AdamW's two moments


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
    """A device's adapter after the local phase and what the phase did; or why it failed, and then neither."""

    device_id: str
    state: State | None = None
    result: LocalResult | None = None
    error: Exception | None = None


def divide(members: Iterable[Member], *, size: int, budget: int) -> Iterator[list[Member]]:
    """Cohorts of at most ``size`` members whose adapters and optimizer states take at most half of ``budget`` bytes.

    The other half is for activations (:func:`train_cohort`). A cohort has at least one member, whatever the budget.
    """
    if size < 1:
        raise AdapterError(f"a cohort of {size} devices: at least 1")
    cohort: list[Member] = []
    used = 0
    for member in members:
        need = (OPTIMIZER_COPIES + (member.plan.proximal > 0)) * size_of(
            member.state
        ).bytes  # and where the round began
        if cohort and (len(cohort) == size or used + need > budget // 2):
            yield cohort
            cohort, used = [], 0
        cohort.append(member)
        used += need
    if cohort:
        yield cohort


def train_cohort(
    host: StackedModel, task: Task, split: Split, members: Sequence[Member], *, budget: int
) -> list[MemberResult]:
    """Train the members' adapters and return them in the same order; ``budget`` is in bytes, half of it for activations.

    A member without examples, or whose loss or gradient stops being finite, fails alone. What goes wrong with the computation
    itself (an example that does not fit the base, memory) is raised: no member is trained then, and none has changed.
    """
    able = [m for m in members if m.examples]
    trained = _Cohort(host, task, split, able, budget).run() if able else []
    results = {one.device_id: one for one in trained}
    return [results.get(m.device_id) or MemberResult(m.device_id, error=no_examples()) for m in members]


@dataclass
class _Course:
    """What one member will do, and what it has done."""

    kinds: list[str]
    batches: list[list[int]]

    def kind(self, step: int) -> str | None:
        """The kind of a step; None if the member has finished."""
        return self.kinds[step] if step < len(self.kinds) else None


def _course(member: Member) -> _Course:
    generator = derive_generator(member.seed, "local-steps")
    kinds = step_kinds(member.plan, generator)
    return _Course(kinds, draw_batches(len(member.examples), member.plan.batch_size, len(kinds), generator))


class _Proximal:
    """FedProx's term for every member that has one: mu times the way from where the round began, added to the gradient.

    As in the single-device trainer, a tensor that gets no gradient in a step is not pulled either.
    """

    def __init__(self, parameters: SlotParameters, plans: Sequence[LocalPlan]) -> None:
        self.parameters = parameters
        self.strength = [plan.proximal for plan in plans]
        shared = parameters.columns(SHARED_GATES).stop  # shared columns come first
        self.start = parameters.values[:, :shared].clone() if any(self.strength) else None

    def pull(self, kinds: Mapping[int, str]) -> None:
        """Add the term to the gradients of the members that take a step."""
        if self.start is None:
            return
        for group in (SHARED, SHARED_GATES):
            columns = self.parameters.columns(group)
            strength = [
                mu if i in kinds and kinds[i] not in SKIPPED[group] else 0.0 for i, mu in enumerate(self.strength)
            ]
            way = self.parameters.values[:, columns] - self.start[:, columns]
            self.parameters.gradients[:, columns].addcmul_(way, way.new_tensor(strength)[:, None])


class _Corrections:
    """The gradient term of every member that has one, and the sum of its gradients before (:class:`fl.algorithms.base.Correction`)."""

    def __init__(self, parameters: SlotParameters, members: Sequence[Member], split: Split) -> None:
        self.parameters, self.members, self.split = parameters, members, split
        self.counts = {group: [0] * len(members) for group in (SHARED, SHARED_GATES)}
        none: State = {}
        given = [none if m.control is None else m.control.correction for m in members]
        self.added = parameters.laid_out(given) if any(given) else None
        self.sums = torch.zeros_like(parameters.gradients) if any(given) else None

    def apply(self, kinds: Mapping[int, str]) -> None:
        """Count and correct the gradients of the members that take a step."""
        if self.added is None or self.sums is None:
            return
        for group, counts in self.counts.items():
            columns = self.parameters.columns(group)
            taking = [i in kinds and kinds[i] not in SKIPPED[group] for i in range(len(self.members))]
            for i, one in enumerate(taking):
                counts[i] += one
            gradient = self.parameters.gradients[:, columns]
            step = gradient.new_tensor([float(one) for one in taking])[:, None]
            self.sums[:, columns].addcmul_(gradient, step)
            gradient.addcmul_(self.added[:, columns], step)

    def tell(self, i: int) -> None:
        """Give member ``i`` what its gradients were."""
        control = self.members[i].control
        if control is None or self.sums is None:
            return
        names = [name for name in self.split.shared if name in control.correction]
        control.sums = self.parameters.taken_out(self.sums, i, names)
        groups = {n: SHARED_GATES if tensor_kind(n) == "gate" else SHARED for n in names}
        control.counts = {name: self.counts[group][i] for name, group in groups.items()}


class _Cohort:
    """The state of one call of :func:`train_cohort`."""

    def __init__(self, host: StackedModel, task: Task, split: Split, members: list[Member], budget: int) -> None:
        self.host, self.task, self.members = host, task, members
        device = next(host.model.parameters()).device
        frozen = {m.plan.frozen for m in members}
        if len(frozen) > 1:
            raise AdapterError(
                f"the devices of a cohort train the same factors, not all but {sorted(frozen)}: divide them"
            )
        split = trained_split(split, frozen.pop())
        self.parameters = SlotParameters([m.slot for m in members], [m.state for m in members], split, device)
        self.proximal = _Proximal(self.parameters, [m.plan for m in members])
        self.corrections = _Corrections(self.parameters, members, split)
        self.optimizer = SlotAdamW(self.parameters, [m.plan for m in members])
        self.courses = [_course(m) for m in members]
        self.budget = budget // 2
        # Of each step: every member's mean loss and largest gradient norm. Read when all is done: reading waits for the
        # device, and a member that diverged spoils nothing but its own row until then.
        self.seen: list[torch.Tensor] = []

    def run(self) -> list[MemberResult]:
        started = time.perf_counter()
        for step in range(max(len(course.kinds) for course in self.courses)):
            self._step(step)
        seen: list[list[list[float]]] = (
            torch.stack(self.seen).tolist() if self.seen else []
        )  # step, loss or norm, member
        seconds = time.perf_counter() - started
        examples = [sum(map(len, course.batches)) for course in self.courses]
        return [
            self._trained(i, seen, examples[i], seconds * examples[i] / max(1, sum(examples)))
            for i in range(len(self.members))
        ]

    def _trained(self, i: int, seen: list[list[list[float]]], examples: int, seconds: float) -> MemberResult:
        member, course = self.members[i], self.courses[i]
        losses = [seen[step][0][i] for step in range(len(course.kinds))]
        norms = [seen[step][1][i] for step in range(len(course.kinds))]
        for loss, norm in zip(losses, norms, strict=True):
            what = "the loss" if not math.isfinite(loss) else "a gradient" if not math.isfinite(norm) else ""
            if what:
                return MemberResult(member.device_id, error=diverged(what))
        loss = sum(losses) / len(losses) if losses else 0.0
        result = LocalResult(loss=loss, examples=examples, steps=len(course.kinds), seconds=seconds)
        self.corrections.tell(i)
        return MemberResult(member.device_id, self.parameters.state(i), result)

    def _step(self, step: int) -> None:
        """One optimizer step of every member that has one left."""
        kinds = {i: kind for i, course in enumerate(self.courses) if (kind := course.kind(step)) is not None}
        if not kinds:
            return
        rows = [(i, self.members[i].examples[j]) for i in kinds for j in self.courses[i].batches[step]]
        self.parameters.gradients.zero_()
        device = self.parameters.values.device
        losses = torch.zeros(len(self.members), device=device, dtype=torch.float64)
        labels = torch.zeros_like(losses)
        for group in self._groups([example for _, example in rows]):
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
        self.corrections.apply(kinds)
        self.proximal.pull(kinds)
        means = losses / labels.clamp(min=1)
        self.seen.append(torch.stack((means, self.optimizer.clip().double())))
        self.optimizer.step(kinds)

    def _groups(self, examples: Sequence[Example]) -> list[list[int]]:
        """Rows of similar size, as many together as the memory for activations holds by estimate."""
        need = max(self.task.training_bytes(example) for example in examples)
        return buckets([example.size for example in examples], rows=max(1, self.budget // max(1, need)))
