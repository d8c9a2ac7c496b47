"""How a person enrols: what trains, at what rate, and among which numbers of steps left-out examples choose. Loads without torch."""

import math
from dataclasses import dataclass

from fl.adapters.gates.table import GATES, NONE
from fl.adapters.split import in_part
from fl.algorithms.personal.enrolment import EnrolledPart
from fl.core.errors import ConfigError


@dataclass(frozen=True)
class EnrolMethod:
    """What an enrolment trains, and how.

    ``part`` are the tensors that train (:func:`fl.adapters.split.in_part`). ``gate`` is added to an adapter that has none, neutral;
    ``beside`` is the rank of a fresh LoRA beside the shared one, of which alone ``part`` trains. ``grid`` are the numbers of steps
    between which the left-out examples decide, ``steps`` is the number for a single example. ``shrinkage`` is lambda of a decoupled
    pull towards the start (w <- w - rate lambda (w - w0)): the mode under a Gaussian prior around it. With ``few`` that is the pull
    for so many examples, and n > few have few / n of it, as a prior weighs less beside more data; with 0 it is the same for any.
    """

    part: str
    rate: float
    gate: str = NONE.name
    beside: int = 0
    shrinkage: float = 0.0
    few: int = 0
    grid: tuple[int, ...] = (0, 3, 6, 12, 24, 48)
    steps: int = 12
    batch_size: int = 2
    folds: int = 3

    def __post_init__(self) -> None:
        in_part(self.part)
        GATES.find(self.gate)
        if not 0 <= self.rate < math.inf:
            raise ConfigError(f"rate {self.rate:g} is no learning rate: a number from 0 up")
        if self.grid[:1] != (0,) or list(self.grid) != sorted({*self.grid}) or self.steps not in self.grid:
            raise ConfigError(
                f"steps {self.steps} on a grid of {self.grid}: a grid ascends from 0, and has the steps of a single example"
            )

    @property
    def examples(self) -> int:
        """Of a person at most, in training, each as often as it comes in every fold."""
        return self.folds * self.grid[-1] * self.batch_size


def method_of(part: EnrolledPart) -> EnrolMethod:
    """How the arm ``personalized`` enrols with these options."""
    grid = part.grid
    return EnrolMethod(part.enrolment_part, rate=part.enrolment_rate, grid=grid, steps=part.steps // 2 or part.steps)


DEFAULT = method_of(EnrolledPart())
"""How a person enrols unless told otherwise, by whatever way (docs/results/enrol.md)."""
