"""Enrolment: a person who took no part in training gets a private part from a few labelled examples of their own.

All people train in one cohort, and beside each the *folds* of k-fold cross-validation over that person's examples. The loss on
the examples that a fold leaves out decides how many steps the person takes: those with the least loss on the grid, which has 0.
No step keeps the shared adapter, so a private part is kept only where it helps with examples that it has not seen. One
example leaves nothing out: it takes the method's own number of steps.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
from torch import Tensor

from clients.training.cohort import Cohort, Member
from fl.adapters.gates.table import GATES, NONE
from fl.adapters.layer import initial_a
from fl.adapters.pairs import pair_names
from fl.adapters.split import Split, in_part
from fl.adapters.stacked import Slot, StackedAdapters, StackedModel
from fl.adapters.state import State, module_of, part_of, tensor_name
from fl.algorithms.personal.enrolment import EnrolledPart
from fl.algorithms.plan import LocalPlan
from fl.core.compute import CUDA
from fl.core.errors import ConfigError, SplitError
from fl.core.rng import derive_random, derive_seed
from fl.data.batching import buckets
from fl.packed.blob import quantized, restored
from fl.tasks.task import Example, Task

PEOPLE = 16  # in one cohort, each with a member for all examples and one for each fold
PATIENCE = 2  # points of the grid without a lower left-out loss, after which a person stops
GPU_TIMES = 32  # times as many rows are predicted together on a GPU


@dataclass(frozen=True)
class EnrolMethod:
    """What an enrolment trains, and how.

    ``part`` are the tensors that train (:func:`fl.adapters.split.in_part`). ``gate`` is added to an adapter that has none, neutral;
    ``beside`` is the rank of a fresh LoRA beside the shared one, of which alone ``part`` trains. ``grid`` are the numbers of steps
    between which the left-out examples decide, ``steps`` is the number for a single example. ``shrinkage`` is lambda of a decoupled
    pull towards the start (w <- w - rate lambda (w - w0)): the mode under a Gaussian prior around it.
    """

    part: str
    rate: float
    gate: str = NONE.name
    beside: int = 0
    shrinkage: float = 0.0
    grid: tuple[int, ...] = (0, 3, 6, 12, 24, 48)
    steps: int = 12
    batch_size: int = 2
    folds: int = 3

    def __post_init__(self) -> None:
        in_part(self.part)
        if self.grid[:1] != (0,) or list(self.grid) != sorted({*self.grid}) or self.steps not in self.grid:
            raise ConfigError(
                f"steps {self.steps} on a grid of {self.grid}: a grid ascends from 0, and has the steps of a single example"
            )

    @property
    def examples(self) -> int:
        """Of a person at most, in training, each as often as it comes: of the folds too."""
        return (1 + self.folds) * self.grid[-1] * self.batch_size


def method_of(part: EnrolledPart) -> EnrolMethod:
    """How the arm ``personalized`` enrols with these options."""
    grid = part.grid
    return EnrolMethod(part.enrolment_part, rate=part.enrolment_rate, grid=grid, steps=part.steps // 2 or part.steps)


DEFAULT = method_of(EnrolledPart())
"""How a person enrols unless told otherwise, by whatever way (docs/results/enrol.md)."""


def kept(private: State) -> tuple[State, int]:
    """A person's private tensors as they are kept, in int8 with a scale for each row, and the bytes of that."""
    stored = quantized({name: tensor.numpy() for name, tensor in private.items()})
    values = {name: torch.from_numpy(array) for name, array in restored(stored).items()}
    return values, sum(array.nbytes for array in stored.values())


@dataclass(frozen=True)
class Adapter:
    """An adapter that people start from: what it is, and its tensors."""

    slot: Slot
    state: State


@dataclass(frozen=True)
class Prior:
    """What private parts of others tell: the mean of their distance from the start, and each number's precision, 1 on average.

    ``directions`` are orthonormal ways in which people differ, eigenvoices (Kuhn et al. 2000): along them nothing pulls.
    """

    mean: State
    precision: State
    directions: Sequence[State] = ()


@dataclass(frozen=True)
class Enrolment:
    """A person's private tensors after ``steps``, the left-out loss in nats a label by steps (none for one example), its cost.

    ``unseen``, where it was asked for, are the examples that each fold leaves out, by their places, and its tensors after ``steps``.
    """

    private: State
    steps: int
    curve: Mapping[int, float]
    seconds: float
    unseen: Sequence[tuple[frozenset[int], State]] = ()


@dataclass(frozen=True)
class Start:
    """Where everybody's enrolment by a method starts: the shared adapter with what the method adds, and which tensors train."""

    method: EnrolMethod
    slot: Slot
    state: State
    split: Split
    frozen: State = field(default_factory=dict)  # ones at the numbers of private tensors that do not train

    @classmethod
    def of(cls, shared: Adapter, method: EnrolMethod, *, seed: int) -> "Start":
        """The start from ``shared``; raises :class:`SplitError` where ``method`` trains nothing of it."""
        slot, state = shared.slot, dict(shared.state)
        frozen: State = {}
        if method.gate != slot.gate and method.gate != NONE.name:
            if slot.gate != NONE.name:
                raise ConfigError(f"the adapter has {slot.gate!r} gates, and the method trains {method.gate!r}")
            slot = replace(slot, gate=method.gate)
            state |= _fresh_gates(state, slot)
        if method.beside:
            state, frozen = _beside(state, slot, method.beside, seed)
            slot = replace(slot, rank=slot.rank + method.beside)
        chosen = in_part(method.part)
        private = tuple(name for name in sorted(state) if chosen(name))
        if not private:
            raise SplitError(f"part {method.part!r} matches no tensor: names look like {next(iter(state), '(none)')!r}")
        fixed = tuple(name for name in sorted(state) if not chosen(name))
        return cls(method, slot, state, Split(method.part, (), private, fixed), frozen)

    @property
    def numbers(self) -> int:
        """Private numbers of a person."""
        private = sum(self.state[name].numel() for name in self.split.private)
        return private - sum(int(self.frozen[n].sum()) for n in self.split.private if n in self.frozen)


def _fresh_gates(state: State, slot: Slot) -> State:
    """Neutral gates for every adapted map."""
    gates: State = {}
    for a, b in pair_names({name: tuple(tensor.shape) for name, tensor in state.items()}).values():
        shapes = GATES[slot.gate].shapes(state[a].shape[1], state[b].shape[0], slot.rank)
        module = module_of(a)
        gates |= {tensor_name(module, what): torch.zeros(s) for what, s in shapes.items() if what not in ("A", "B")}
    return gates


def _beside(state: State, slot: Slot, rank: int, seed: int) -> tuple[State, State]:
    """The adapter with ``rank`` further coordinates, A as LoRA draws it and B zero, and ones at all numbers but theirs."""
    if GATES[slot.gate].ranked:
        raise ConfigError(f"beside an adapter with {slot.gate!r} gates, one for each coordinate, no other can lie")
    wider, frozen = dict(state), {}
    for name, tensor in state.items():
        if (kind := part_of(name)) == "A":
            fresh = initial_a(rank, tensor.shape[1], derive_seed(seed, "beside"), module_of(name)).to(tensor)
        elif kind == "B":
            fresh = tensor.new_zeros(tensor.shape[0], rank)
        else:
            continue
        axis = 0 if kind == "A" else 1
        wider[name] = torch.cat((tensor, fresh), axis)
        frozen[name] = torch.cat((torch.ones_like(tensor), torch.zeros_like(fresh)), axis)
    return wider, frozen


def learned_prior(start: Start, enrolments: Sequence[Enrolment]) -> Prior:
    """The Gaussian of the private parts of ``enrolments``: mean and diagonal variance of their distance from the start."""
    mean, precision = {}, {}
    for name in start.split.private:
        away = torch.stack([one.private[name] - start.state[name] for one in enrolments])
        mean[name], precision[name] = away.mean(0), away.var(0, correction=0)
    typical = sum(float(v.sum()) for v in precision.values()) / sum(v.numel() for v in precision.values())
    # A number that nobody moved has no variance: its precision is bounded by ten times that of a typical one.
    inverse = {name: 1 / (variance + 0.1 * typical + 1e-30) for name, variance in precision.items()}
    average = sum(float(v.sum()) for v in inverse.values()) / sum(v.numel() for v in inverse.values())
    return Prior(mean, {name: tensor / average for name, tensor in inverse.items()})


def eigenvoices(start: Start, enrolments: Sequence[Enrolment], count: int) -> Prior:
    """The ``count`` directions with the most of the distance from the start to the private parts of ``enrolments``."""
    names = start.split.private
    away = torch.stack([torch.cat([(one.private[n] - start.state[n]).flatten() for n in names]) for one in enrolments])
    _, sizes, rows = torch.linalg.svd(away.double(), full_matrices=False)
    shapes = [start.state[name].shape for name in names]

    def parts(row: Tensor) -> State:
        cut = torch.split(row.float(), [shape.numel() for shape in shapes])
        return {name: part.reshape(shape) for name, part, shape in zip(names, cut, shapes, strict=True)}

    found = [parts(row) for row, size in zip(rows[:count], sizes, strict=False) if size > 0]
    none = {name: torch.zeros(shape) for name, shape in zip(names, shapes, strict=True)}
    return Prior(none, {name: torch.ones(shape) for name, shape in zip(names, shapes, strict=True)}, found)


def enrol(
    host: StackedModel,
    task: Task,
    start: Start,
    people: Mapping[str, Sequence[Example]],
    *,
    seed: int,
    budget: int,
    prior: Prior | None = None,
    with_unseen: bool = False,
) -> dict[str, Enrolment]:
    """Enrol ``people``, each from at least one example of their own; ``budget`` is in bytes of activations."""
    found: dict[str, Enrolment] = {}
    waiting = iter(people.items())
    most = PEOPLE * (GPU_TIMES if next(host.model.parameters()).device.type == CUDA else 1)
    while chunk := dict(islice(waiting, most)):
        found |= _Enrolling(host, task, start, chunk, seed, budget, prior).run(with_unseen)
    return found


class _Enrolling:
    """Some people's enrolment: one cohort of a member for each person and one for each fold of their examples."""

    def __init__(
        self,
        host: StackedModel,
        task: Task,
        start: Start,
        people: Mapping[str, Sequence[Example]],
        seed: int,
        budget: int,
        prior: Prior | None,
    ) -> None:
        people = _precomputed(host, task, start, people, budget)
        self.task, self.start, self.people = task, start, people
        method = start.method
        plan = LocalPlan(
            steps=0,
            batch_size=method.batch_size,
            learning_rate=method.rate,
            private_learning_rate=method.rate,
            private_steps=method.grid[-1],
        )
        members: list[Member] = []
        self.whole: list[int] = []  # of each person, the member with all examples
        self.folds: list[list[tuple[int, frozenset[int]]]] = [
            [] for _ in people
        ]  # of each person, members and what they leave out
        self.left_out: list[tuple[int, int, Example]] = []  # person, the member that has not seen it, example
        for person, (name, examples) in enumerate(people.items()):
            self.whole.append(len(members))
            for fold, away in enumerate([frozenset[int](), *_folds(len(examples), method.folds, seed, name)]):
                self.left_out += [(person, len(members), examples[i]) for i in sorted(away)]
                self.folds[person] += [(len(members), away)] if away else []
                kept = [example for i, example in enumerate(examples) if i not in away]
                own_seed = derive_seed(seed, name, "enrol", fold)
                members.append(Member(name, start.slot, start.state, kept, plan, own_seed))
        self.cohort = Cohort(host, task, start.split, members, budget)
        self._target, self._pull = self._pulled(prior)
        laid_out = [self._laid_out(direction) for direction in prior.directions] if prior else []
        self._directions = torch.cat(laid_out) if laid_out else None  # (directions, P)

    def _laid_out(self, state: State) -> Tensor:
        """One member's tensors as a row of the cohort's matrix."""
        return self.cohort.adapters.laid_out([state] * len(self.cohort.members))[:1].clone()

    def _drawn(self, values: Tensor) -> Tensor:
        """Where the prior draws ``values`` (members, P) to: its centre, or what is nearest to them along its directions."""
        target = self._target.expand_as(values)
        if self._directions is None:
            return target
        return target + (values - target) @ self._directions.T @ self._directions

    def _pulled(self, prior: Prior | None) -> tuple[Tensor, Tensor | None]:
        """Where the prior is centred, and the share of the way to it that a step takes each number; both (members or 1, P)."""
        values, method, laid_out = self.cohort.adapters.values, self.start.method, self._laid_out
        target = values[:1].clone()
        weight = torch.full_like(target, method.rate * method.shrinkage)
        if prior is not None:
            target, weight = target + laid_out(prior.mean), weight * laid_out(prior.precision)
        if self.start.frozen:
            weight = torch.where(laid_out(self.start.frozen) > 0, 1.0, weight)
        return target, weight.clamp(max=1.0) if bool(weight.any()) else None

    def run(self, with_unseen: bool) -> dict[str, Enrolment]:
        """Train to the end of the grid, or until nobody's loss falls, and keep of each person what the left-out examples choose."""
        began = time.perf_counter()
        values, grid = self.cohort.parameters.values, self.start.method.grid
        kept = range(len(self.cohort.members)) if with_unseen else self.whole
        snapshots: dict[int, Tensor] = {}  # of the members in ``kept``, by steps
        curves: list[dict[int, float]] = [{} for _ in self.people]
        for steps in grid:
            while len(self.cohort.seen) < steps:
                if not self.cohort.seen:
                    values.copy_(self._target.expand_as(values))
                self.cohort.step()
                if self._pull is not None:
                    values.lerp_(self._drawn(values), self._pull.expand_as(values))
            snapshots[steps] = values[list(kept)].cpu()
            for curve, loss in zip(curves, self._losses(), strict=True):
                if loss is not None and not _over(curve):
                    curve[steps] = loss if math.isfinite(loss) else math.inf
            if all(_over(curve) if curve else steps >= self.start.method.steps for curve in curves):
                break
        places = {member: place for place, member in enumerate(kept)}
        chosen = []
        for member, curve, folds in zip(self.whole, curves, self.folds, strict=True):
            steps = min(curve, key=lambda steps: (curve[steps], steps)) if curve else self.start.method.steps
            if not bool(torch.isfinite(snapshots[steps][places[member]]).all()):
                steps = 0
            for one in (member, *(fold for fold, _ in folds if fold in places)):
                values[one] = snapshots[steps][places[one]].to(values)
            chosen.append(steps)
        seconds = (time.perf_counter() - began) / len(self.people)
        return {
            name: Enrolment(
                self._private(member),
                steps,
                curve,
                seconds,
                [(away, self._private(fold)) for fold, away in folds if with_unseen],
            )
            for name, member, steps, curve, folds in zip(
                self.people, self.whole, chosen, curves, self.folds, strict=True
            )
        }

    def _private(self, member: int) -> State:
        parameters = self.cohort.adapters
        return parameters.taken_out(parameters.values, member, self.start.split.private)

    def _losses(self) -> list[float | None]:
        """Each person's mean loss over the labels of all left-out examples; None without any."""
        if not self.left_out:
            return [None] * len(self.people)
        cohort, device = self.cohort, self.cohort.parameters.values.device
        sums = torch.zeros(2, len(self.people), device=device, dtype=torch.float64)
        with torch.no_grad():
            for group in cohort.groups([example for _, _, example in self.left_out]):
                rows = [self.left_out[i] for i in group]
                with cohort.host.rows(cohort.parameters.stack, [member for _, member, _ in rows]) as model:
                    losses, labels = self.task.losses(model, [example for _, _, example in rows])
                people = torch.tensor([person for person, _, _ in rows], device=device)
                sums.index_add_(1, people, torch.stack((losses.double(), labels.double())))
        return [loss / labels if labels else None for loss, labels in sums.T.tolist()]


def _over(curve: Mapping[int, float]) -> bool:
    """Whether a left-out loss has not fallen for :data:`PATIENCE` points of the grid."""
    losses = [*curve.values()]
    return len(losses) > PATIENCE and min(losses[-PATIENCE:]) >= min(losses[:-PATIENCE])


def _precomputed(
    host: StackedModel, task: Task, start: Start, people: Mapping[str, Sequence[Example]], budget: int
) -> dict[str, list[Example]]:
    """Everybody's examples with what the model makes of them before the first tensor that trains: once, for all folds and steps."""
    examples = [example for of_one in people.values() for example in of_one]
    device = next(host.model.parameters()).device
    stack = StackedAdapters.from_states([start.slot], [{n: t.to(device) for n, t in start.state.items()}])
    trained = {module_of(name) for name in start.split.private}
    need = max(task.training_bytes(example) for example in examples)
    for group in buckets([example.size for example in examples], rows=max(1, budget // max(1, need))):
        with host.rows(stack, [0] * len(group)) as model:
            known = task.precomputed(model, [examples[i] for i in group], trained)
        for i, example in zip(group, known, strict=True):
            examples[i] = example
    left = iter(examples)
    return {name: [next(left) for _ in of_one] for name, of_one in people.items()}


def _folds(count: int, most: int, seed: int, name: str) -> Iterator[frozenset[int]]:
    """The examples that each fold leaves out: of ``count`` in a random order, every one once; none of a single example."""
    folds = min(most, count)
    order = derive_random(seed, name, "folds").sample(range(count), count)
    return (frozenset(order[fold::folds]) for fold in range(folds)) if folds > 1 else iter(())


def predict(
    host: StackedModel, task: Task, start: Start, private: Sequence[State], rows: Sequence[tuple[int, Example]]
) -> list[str]:
    """A prediction for each of ``rows``: a place in ``private``, whose tensors decode it, and an example."""
    device = next(host.model.parameters()).device
    own = [{name: tensor.to(device) for name, tensor in state.items()} for state in private]
    common = {name: start.state[name].to(device) for name in start.split.fixed}
    stack = StackedAdapters.from_states([start.slot] * len(own), own, common)
    examples = [example for _, example in rows]
    most = task.prediction_rows(examples, adapted=True) * (GPU_TIMES if device.type == "cuda" else 1)
    found = [""] * len(rows)
    for group in buckets([example.size for example in examples], rows=most):
        with host.rows(stack, [rows[i][0] for i in group]) as model:
            texts = task.predict(model, [examples[i] for i in group], adapted=True, beams=1)
        for i, text in zip(group, texts, strict=True):
            found[i] = text
    return found
