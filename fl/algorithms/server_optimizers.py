"""Server optimizers: what the devices agree on is a direction, and the aggregator's own optimizer takes the step.

With the pseudo-gradient d = the aggregated update (Reddi et al. 2021, arXiv 2003.00295, algorithm 2):

| name | first moment m | second moment v | step |
| --- | --- | --- | --- |
| ``fedavgm`` (arXiv 1909.06335) | beta m + d | | lr m |
| ``fedadagrad`` | d: its beta is 0 | v + d^2 | lr m / (sqrt(v) + tau) |
| ``fedyogi`` | beta m + (1 - beta) d | v - (1 - beta2) d^2 sign(v - d^2) | lr m / (sqrt(v) + tau) |
| ``fedadam`` | beta m + (1 - beta) d | beta2 v + (1 - beta2) d^2 | lr m / (sqrt(v) + tau) |

v starts at tau^2, nothing is corrected for its start, both as in the paper. It works with any rule of aggregation.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from fl.core.errors import ConfigError
from fl.settings.names import SERVER_OPTIMIZERS

FEDAVGM, FEDADAGRAD = "fedavgm", "fedadagrad"
BETA2 = 0.99
TAU = 1e-3  # adaptivity: how small a second moment still counts
LEARNING_RATES: Mapping[str, float] = {FEDAVGM: 1.0, FEDADAGRAD: 0.01, "fedyogi": 0.003, "fedadam": 0.003}
SECOND_MOMENTS: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {  # of v and d^2
    FEDADAGRAD: lambda v, square: v + square,
    "fedyogi": lambda v, square: v - (1 - BETA2) * square * np.sign(v - square),
    "fedadam": lambda v, square: BETA2 * v + (1 - BETA2) * square,
}
FIRST, SECOND = "first:", "second:"  # of the names in ``state``


@dataclass
class ServerOptimizer:
    """One optimizer of the shared tensors. ``state`` holds its float64 moments by name and is all that a resumed run needs.

    A learning rate of 0 takes the one of :data:`LEARNING_RATES`. FedAdagrad has no momentum, whatever is asked for.
    """

    name: str
    learning_rate: float
    momentum: float = 0.9
    state: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in LEARNING_RATES:
            raise ConfigError(f"unknown server optimizer {self.name!r}: known are {', '.join(SERVER_OPTIMIZERS)}")
        self.learning_rate = self.learning_rate or LEARNING_RATES[self.name]
        self.momentum = 0.0 if self.name == FEDADAGRAD else self.momentum

    def step(self, update: Mapping[str, np.ndarray], moving: Collection[str]) -> dict[str, np.ndarray]:
        """The update that the optimizer takes instead of ``update``; only ``moving`` tensors and their moments change."""
        return {
            name: self.learning_rate * self._direction(name, np.asarray(values, np.float64))
            for name, values in update.items()
            if name in moving
        }

    def _direction(self, name: str, pseudo_gradient: np.ndarray) -> np.ndarray:
        first = self.state.get(FIRST + name, np.zeros_like(pseudo_gradient))
        if self.name == FEDAVGM:
            self.state[FIRST + name] = np.asarray(self.momentum * first + pseudo_gradient)
            return self.state[FIRST + name]
        second = self.state.get(SECOND + name, np.full_like(pseudo_gradient, TAU**2))
        second = SECOND_MOMENTS[self.name](second, np.square(pseudo_gradient))
        first = self.momentum * first + (1 - self.momentum) * pseudo_gradient
        self.state[FIRST + name], self.state[SECOND + name] = first, second
        return np.asarray(first / (np.sqrt(second) + TAU))
