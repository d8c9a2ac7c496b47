"""One person's enrolment: the private part, and what it changes in examples left out of training."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Protocol

from clients.training.cohort import activation_bytes
from clients.training.enrol import enrol, precomputed, predict
from clients.training.enrol_method import EnrolMethod
from clients.training.private_part import Adapter, Enrolment, Start, kept
from clients.training.single import diverged
from fl.adapters.stacked import StackedModel
from fl.adapters.state import State
from fl.tasks.task import Example, Task


class Rewriter(Protocol):
    """What else was learned from a person's targets, and changes predictions."""

    def respell(self, text: str) -> str:
        """The prediction ``text`` as the person would have it."""
        ...


Speller = Callable[[Sequence[str]], Rewriter]


@dataclass(frozen=True)
class LeftOut:
    """An example that its fold did not train on: what was said, and the predictions before and after."""

    name: str
    said: str
    before: str
    after: str
    errors: tuple[int, int]
    tokens: int


@dataclass(frozen=True)
class Personal:
    """What a person's enrolment came to: all tensors of the adapter after it, and the ``private`` ones, by name.

    ``bytes`` are those of the private ones as they are kept (:func:`clients.training.private_part.kept`), ``directions`` those of
    participants' updates that they were drawn to.
    """

    enrolment: Enrolment
    left_out: Sequence[LeftOut]
    tensors: State
    private: tuple[str, ...]
    bytes: int
    seconds: float
    directions: int = 0
    spelling: Rewriter | None = None

    @cached_property
    def errors(self) -> tuple[int, int]:
        """Errors on the left-out examples, before and after."""
        before, after = (sum(one.errors[i] for one in self.left_out) for i in (0, 1))
        return before, after

    @property
    def helps(self) -> bool:
        """Whether left-out examples have fewer errors, or a lower loss and no more. Of a single one, steps are taken as helping."""
        before, after = self.errors
        return after < before or (self.enrolment.steps > 0 and after == before)

    def report(self) -> dict[str, Any]:
        """What a person is told, as JSON has it."""
        return {
            "steps": self.enrolment.steps,
            "losses": {n: loss if math.isfinite(loss) else None for n, loss in self.enrolment.curve.items()},
            "private_bytes": self.bytes,
            "directions": self.directions,
            "seconds": round(self.seconds, 3),
            "unseen": [asdict(one) for one in self.left_out],
        }


def enrol_person(
    task: Task, shared: Adapter, method: EnrolMethod, *, metric: str, seed: int, spelling: Speller | None = None
) -> Personal:
    """Enrol the first person of ``task`` from ``shared``, and predict every example by the fold that left it out, before and after.

    Errors are those of ``metric``. ``spelling`` makes the table of some targets' spellings; a fold's respells what it left out.

    Raises :class:`fl.core.errors.SplitError` where ``method`` trains nothing of the adapter, :class:`fl.core.errors.AdapterError`
    where its loss is not finite.
    """
    began = time.perf_counter()
    start = Start.of(shared, method, seed=seed)
    name = task.device_ids()[0]
    host = StackedModel(task.new_model(), task.targets)
    budget = activation_bytes(next(host.model.parameters()).device)
    own = precomputed(host, task, start, {name: task.device(name).train}, budget)  # here, since predictions use it too
    found = enrol(host, task, start, own, seed=seed, budget=budget, with_unseen=True)[name]
    if not math.isfinite(found.curve.get(0, 0.0)):  # before the first step
        raise diverged("the loss")
    none, examples = {name: start.state[name] for name in start.split.private}, own[name]
    rows = [(fold + 1, i) for fold, (away, _) in enumerate(found.unseen) for i in sorted(away)]
    states = [none, *(state for _, state in found.unseen)]
    both = [(place, examples[i]) for place, i in [*((0, i) for _, i in rows), *rows]]
    texts = predict(host, task, start, states, both)
    before, after = texts[: len(rows)], texts[len(rows) :]
    if spelling is not None:
        tables = [spelling([e.target for i, e in enumerate(examples) if i not in away]) for away, _ in found.unseen]
        after = [tables[place - 1].respell(text) for (place, _), text in zip(rows, after, strict=True)]
    left_out = [_left_out(task, metric, examples[i], *pair) for (_, i), *pair in zip(rows, before, after, strict=True)]
    private, size = kept(found.private)
    tensors = {**start.state, **(private if found.steps else none)}
    table = spelling([example.target for example in examples]) if spelling is not None else None
    drawn = len(next(iter(start.prior.directions.values()), ()))
    return Personal(found, left_out, tensors, start.split.private, size, time.perf_counter() - began, drawn, table)


def _left_out(task: Task, metric: str, example: Example, before: str, after: str) -> LeftOut:
    counts = [task.score(example, text)[metric] for text in (before, after)]
    return LeftOut(
        example.key, example.target, before, after, (counts[0].errors, counts[1].errors), counts[0].reference
    )
