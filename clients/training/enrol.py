"""Enrolment: a person who took no part in training gets a private part from a few labelled examples of their own.

All people train in one cohort, each as the *folds* of k-fold cross-validation over that person's examples. The loss on the
examples that a fold leaves out decides how many steps the person takes: those with the least loss on the grid, which has 0; 0 too
where it is hardly less than that of the shared adapter (:func:`chosen_steps`). The private part is the mean of the folds', which
saw every example between them. No step keeps the shared adapter, so a private part is kept only where it helps with examples that
it has not seen. One example leaves nothing out: it trains alone, in the method's own number of steps.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor

from clients.training.cohort import Cohort, Member
from clients.training.private_part import Enrolment, Start
from clients.training.slots import grouped
from fl.adapters.stacked import StackedAdapters, StackedModel
from fl.adapters.state import State, module_of
from fl.algorithms.plan import LocalPlan
from fl.core.compute import CUDA
from fl.core.errors import AdapterError
from fl.core.rng import derive_random, derive_seed
from fl.data.batching import buckets
from fl.tasks.task import Example, Task

PEOPLE = 16  # in one cohort, each with a member for each fold
LEFT_OUT = 48  # examples that decide a number of steps: a fold more costs its training and decides hardly better
MARGIN = 0.1  # of the loss, over the root of the left-out examples: by how much it has to fall (docs/results/enrol.md)
PATIENCE = 2  # points of the grid without a lower left-out loss, after which a person stops
GPU_TIMES = 32  # times as many rows are predicted together on a GPU


def enrol(
    host: StackedModel,
    task: Task,
    start: Start,
    people: Mapping[str, Sequence[Example]],
    *,
    seed: int,
    budget: int,
    with_unseen: bool = False,
) -> dict[str, Enrolment]:
    """Enrol ``people``, each from at least one example of their own; ``budget`` is in bytes of activations."""
    found: dict[str, Enrolment] = {}
    waiting = iter(people.items())
    most = PEOPLE * (GPU_TIMES if next(host.model.parameters()).device.type == CUDA else 1)
    while chunk := dict(islice(waiting, most)):
        found |= _Enrolling(host, task, start, chunk, seed, budget).run(with_unseen)
    return found


class _Enrolling:
    """Some people's enrolment: one cohort of a member for each fold of their examples."""

    def __init__(
        self,
        host: StackedModel,
        task: Task,
        start: Start,
        people: Mapping[str, Sequence[Example]],
        seed: int,
        budget: int,
    ) -> None:
        people = precomputed(host, task, start, people, budget)
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
        self.folds: list[dict[int, frozenset[int]]] = []  # of each person, members and the examples that they leave out
        self.left_out: list[tuple[int, int, Example]] = []  # person, the member that has not seen it, example
        for person, (name, examples) in enumerate(people.items()):
            self.folds.append({})
            for number, away in _folds(len(examples), method.folds, seed, name):
                self.folds[person][len(members)] = away
                self.left_out += [(person, len(members), examples[i]) for i in sorted(away)]
                kept = [example for i, example in enumerate(examples) if i not in away]
                own_seed = derive_seed(seed, name, "enrol", number)
                members.append(Member(name, start.slot, start.state, kept, plan, own_seed))
        self.cohort = Cohort(host, task, start.split, members, budget)
        self._shared = self.cohort.adapters.values[:1].clone()
        self._target, self._pull = self._pulled()
        self._directions = self._orthonormal()

    def _laid_out(self, state: State) -> Tensor:
        """One member's tensors as a row of the cohort's matrix."""
        return self.cohort.adapters.laid_out([state] * len(self.cohort.members))[:1].clone()

    def _orthonormal(self) -> Tensor | None:
        """The prior's directions (directions, P), orthonormal whatever rounding did to them; None without any.

        By Cholesky: a QR decomposition of so many numbers has other bits with another number of threads.
        """
        rows = self.start.prior.directions
        if not rows:
            return None
        columns = [name for names in grouped(self.cohort.split).values() for name in names]
        whole = torch.cat([rows[name] for name in columns], dim=1).to(self.cohort.parameters.values)
        factor, failed = torch.linalg.cholesky_ex(whole @ whole.T)
        if bool(failed):
            raise AdapterError("the directions beside the adapter depend on each other: remove them to enrol without")
        basis: Tensor = torch.linalg.solve_triangular(factor, whole, upper=False)
        return basis

    def _drawn(self, values: Tensor) -> Tensor:
        """Where the prior draws ``values`` (members, P) to: its centre, or what is nearest to them along its directions."""
        target = self._target.expand_as(values)
        if self._directions is None:
            return target
        return target + (values - target) @ self._directions.T @ self._directions

    def _pulled(self) -> tuple[Tensor, Tensor | None]:
        """Where the prior is centred (1, P), and the share of the way to it that a step takes each number (members, P or 1)."""
        values, method, laid_out = self.cohort.adapters.values, self.start.method, self._laid_out
        prior = self.start.prior
        target = self._shared
        counts = [len(own) for own, folds in zip(self.people.values(), self.folds, strict=True) for _ in folds]
        shares = [min(1.0, method.few / count) if method.few else 1.0 for count in counts]  # of each member
        weight = method.rate * method.shrinkage * torch.tensor(shares).to(values)[:, None]
        if prior.mean:
            target, weight = target + laid_out(prior.mean), weight * laid_out(prior.precision)
        if self.start.frozen:
            weight = torch.where(laid_out(self.start.frozen) > 0, 1.0, weight)
        return target, weight.clamp(max=1.0) if bool(weight.any()) else None

    def run(self, with_unseen: bool) -> dict[str, Enrolment]:
        """Train, and keep of each person what the left-out examples choose."""
        began = time.perf_counter()
        best, curves = self._trained()
        seconds = (time.perf_counter() - began) / len(self.people)
        found = {}
        for name, curve, folds in zip(self.people, curves, self.folds, strict=True):
            steps = chosen_steps(curve, sum(map(len, folds.values()))) if curve else self.start.method.steps
            numbers = best[list(folds)]
            if not steps or not bool(torch.isfinite(numbers).all()):
                steps, numbers = 0, self._shared.expand_as(numbers)
            each = zip(folds.values(), numbers, strict=True) if with_unseen and curve else ()
            unseen = [(away, self._private(of_one)) for away, of_one in each]
            mean = numbers[0] + (numbers - numbers[0]).mean(0)  # to the bit, where nothing trained
            found[name] = Enrolment(self._private(mean), steps, curve, seconds, unseen)
        return found

    def _trained(self) -> tuple[Tensor, list[dict[int, float]]]:
        """Train to the end of the grid, or until nobody's loss falls.

        Returns the numbers of every member (members, P) after the steps with the least loss of its person, and by person the left-out
        losses by steps. Without a loss they are those after the method's own steps.
        """
        values, method = self.cohort.parameters.values, self.start.method
        best = values.clone()
        curves: list[dict[int, float]] = [{} for _ in self.people]
        for steps in method.grid:
            while len(self.cohort.seen) < steps:
                if not self.cohort.seen:
                    values.copy_(self._target.expand_as(values))
                self.cohort.step()
                if self._pull is not None:
                    values.lerp_(self._drawn(values), self._pull.expand_as(values))
            for curve, loss, folds in zip(curves, self._losses(), self.folds, strict=True):
                if _over(curve):
                    continue
                if loss is not None:
                    curve[steps] = loss if math.isfinite(loss) else math.inf
                if _best(curve) == steps if curve else steps == method.steps:
                    best[list(folds)] = values[list(folds)]
            if all(_over(curve) if curve else steps >= method.steps for curve in curves):
                break
        return best.cpu(), curves

    def _private(self, numbers: Tensor) -> State:
        return self.cohort.adapters.taken_out(numbers[None], 0, self.start.split.private)

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


def precomputed(
    host: StackedModel, task: Task, start: Start, people: Mapping[str, Sequence[Example]], budget: int
) -> dict[str, list[Example]]:
    """Everybody's examples with what the model makes of them before the first tensor that trains: once, for all folds and steps.

    Those that have it keep it.
    """
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


def _folds(count: int, most: int, seed: int, name: str) -> Iterator[tuple[int, frozenset[int]]]:
    """The folds, numbered from 1, with the examples that each leaves out: of ``count`` in a random order, none twice. A single example
    is left out by none, 0.

    Only as many of the folds as leave out :data:`LEFT_OUT` examples, or all; two at least, so that each is in some.
    """
    folds = min(most, count)
    if folds < 2:
        yield 0, frozenset()
        return
    order = derive_random(seed, name, "folds").sample(range(count), count)
    for fold in range(min(folds, max(2, math.ceil(LEFT_OUT * folds / count)))):
        yield fold + 1, frozenset(order[fold::folds])


def _best(curve: Mapping[int, float]) -> int:
    """The steps with the least of the left-out losses of ``curve``, the fewest of several."""
    return min(curve, key=lambda steps: (curve[steps], steps))


def chosen_steps(curve: Mapping[int, float], left_out: int) -> int:
    """The steps with the least of the left-out losses of ``curve``; 0 where the loss falls by no more than :data:`MARGIN` of it over
    the root of how many are ``left_out``: the least of several losses is lower by chance too."""
    steps = _best(curve)
    return steps if curve[steps] < curve[0] * (1 - MARGIN / math.sqrt(left_out)) else 0


def predict(
    host: StackedModel, task: Task, start: Start, private: Sequence[State], rows: Sequence[tuple[int, Example]]
) -> list[str]:
    """A prediction for each of ``rows``: a place in ``private``, whose tensors decode it, and an example."""
    device = next(host.model.parameters()).device
    own = [{name: tensor.to(device) for name, tensor in state.items()} for state in private]
    common = {name: start.state[name].to(device) for name in start.split.fixed}
    stack = StackedAdapters.from_states([start.slot] * len(own), own, common)
    examples = [example for _, example in rows]
    most = task.prediction_rows(examples, adapted=True) * (GPU_TIMES if device.type == CUDA else 1)
    found = [""] * len(rows)
    for group in buckets([example.size for example in examples], rows=most):
        with host.rows(stack, [rows[i][0] for i in group]) as model:
            texts = task.predict(model, [examples[i] for i in group], adapted=True, beams=1)
        for i, text in zip(group, texts, strict=True):
            found[i] = text
    return found
