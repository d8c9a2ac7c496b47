"""Ditto: an adapter of one's own that is held near the shared one (Li et al. 2021, algorithm 1).

v <- v - rate (grad f(v) + lambda (v - w)), with AdamW's direction in the place of the gradient alone: the pull is neither clipped nor
scaled by AdamW. Rate and pull are the best of a search (docs/results/federated.md): with a pull of 1, which is of the paper's order, the
own adapter has to learn from a person's sentences alone what the shared one knows.
"""

from dataclasses import replace

from fl.algorithms.base import About
from fl.algorithms.personal.own_adapter import BesideShared
from fl.algorithms.plan import LocalPlan
from fl.settings.fields import setting


class Ditto(BesideShared):
    """The own adapter decodes; each step draws it to the shared one."""

    name = "ditto"
    about = About(
        "Li et al. 2021", "2012.04221", "A and B", "nothing; a device keeps an adapter held near the shared one"
    )
    rate: float = setting(
        0.3, "learning rate of the personal adapter, as a multiple of train.learning-rate", low=0.0, high=100.0
    )
    pull: float = setting(
        100.0,
        "lambda: each step takes the personal adapter rate * lambda of the way to the shared one",
        low=0.0,
        high=1e6,
    )

    def plan(self, plan: LocalPlan) -> LocalPlan:
        """With the pull towards the shared adapter."""
        return replace(super().plan(plan), shrinkage=self.pull)
