"""pFedMe: the shared adapter follows the personal ones (Dinh et al. 2020, algorithm 1).

theta ~ argmin f(theta) + lambda / 2 |theta - w|^2 on a batch, then w <- w - eta lambda (w - theta). The inner problem is not solved
to a precision but by ``steps`` steps on each batch, on as many batches as keep the whole at ``train.local-steps``; they are AdamW's,
and the pull goes beside them, neither clipped nor scaled. The own adapter starts at the shared one in each round. The aggregator
averages (beta = 1).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fl.algorithms.base import About, Capabilities
from fl.algorithms.personal.own_adapter import OwnAdapter
from fl.algorithms.plan import LocalPlan
from fl.settings.fields import setting

if TYPE_CHECKING:
    from fl.settings.config import RunConfig

STEPS = 3  # on each batch, unless set


class PFedMe(OwnAdapter):
    """After the steps of each batch the shared adapter goes eta lambda of the way to the own one."""

    name = "pfedme"
    about = About(
        "Dinh et al. 2020",
        "2006.08848",
        "A and B, which follow the personal ones",
        "nothing; a device keeps an adapter",
    )
    can = Capabilities(mean=True, low_rank=True)
    follows = True
    steps: int = setting(0, "steps on each batch; 0 takes 3", low=0, high=100_000)
    pull: float = setting(
        15.0,
        "lambda: each step takes the personal adapter rate * lambda of the way to the shared one",
        low=0.0,
        high=1e6,
    )
    outer_learning_rate: float = setting(
        0.03,
        "eta: the shared adapter goes eta * lambda of the way to the personal one, at most all of it",
        low=0.0,
        high=1e6,
    )

    def plan(self, plan: LocalPlan) -> LocalPlan:
        """Repeated steps on each batch, and the outer step."""
        repeat = self.steps or STEPS
        outer = self.outer_learning_rate * self.pull
        return replace(plan, steps=max(1, plan.steps // repeat), repeat=repeat, shrinkage=self.pull, outer=outer)

    def refused(self, config: RunConfig) -> str:
        """A batch has no more steps than a round, and the shared adapter does not go past the personal one, nor stay."""
        steps, most = self.steps, config.train.local_steps
        if steps > most:
            return (
                f"algorithm = {self.name!r} does not go with algorithm.pfedme.steps = {steps} and train.local-steps = {most}: "
                f"set algorithm.pfedme.steps = {most}"
            )
        if not 0 < self.outer_learning_rate * self.pull <= 1:
            return (
                f"algorithm = {self.name!r} takes the shared adapter outer-learning-rate * pull of the way to the personal one, here "
                f"{self.outer_learning_rate:g} * {self.pull:g}, which has to be above 0 and at most 1: set "
                f"algorithm.pfedme.outer-learning-rate accordingly"
            )
        return ""
