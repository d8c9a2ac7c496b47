"""RoLoRA (Chen et al. 2024): mean(B) in odd rounds, mean(A) in even ones; the other factor is frozen in that round."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fl.adapters.split import tensor_kind
from fl.aggregation.mean import mean
from fl.algorithms.base import About, Algorithm, Capabilities, Round
from fl.algorithms.plan import LocalPlan


def frozen_factor(server_round: int) -> str:
    """RoLoRA's frozen factor in a round, counted from 1. B trains first: while it is zero, A has no gradient."""
    return "A" if server_round % 2 else "B"


class RoLora(Algorithm):
    """FedAvg of the factor that trains in the round, so its mean is exact; the other one is frozen and keeps its bits."""

    name = "rolora"
    about = About("Chen et al. 2024", "2409.02346", "A and B, one of them trains in a round")
    can = Capabilities(mean=True, pairs=True, low_rank=True)

    def local(self, plan: LocalPlan, server_round: int) -> LocalPlan:
        """The plan with this round's frozen factor."""
        return replace(plan, frozen=frozen_factor(server_round))

    def moving(self, names: Sequence[str], number: int) -> tuple[str, ...]:
        """All tensors but the frozen factors."""
        return tuple(name for name in names if tensor_kind(name) != frozen_factor(number))

    def aggregate(self, found: Round) -> dict[str, np.ndarray]:
        """The mean of what moves."""
        return mean(found.updates, self.moving(tuple(found.start), found.number))
