"""pFedMe: the shared adapter follows the personal ones (Dinh et al. 2020).

The inner problem is not solved to a precision but by ``steps`` steps on each batch, on as many batches as keep the whole at
``train.local-steps``. The own adapter starts at the shared one in each round.
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
    """After the steps of each batch the shared adapter goes ``outer-rate`` of the way to the own one."""

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
        0.1, "how strongly the personal adapter is held at the shared one (lambda)", low=0.0, high=1e6
    )
    outer_rate: float = setting(
        0.5, "share of the way to the personal adapter that the shared one goes (eta lambda)", low=1e-9, high=1.0
    )

    def plan(self, plan: LocalPlan) -> LocalPlan:
        """Repeated steps on each batch, and the outer step."""
        repeat = self.steps or STEPS
        return replace(plan, steps=max(1, plan.steps // repeat), repeat=repeat, pull=self.pull, outer=self.outer_rate)

    def refused(self, config: RunConfig) -> str:
        """A batch has no more steps than a round; a rule that trains the shared part otherwise has nothing to do."""
        steps, most = self.steps, config.train.local_steps
        if steps > most:
            return (
                f"algorithm = {self.name!r} does not go with algorithm.pfedme.steps = {steps} and train.local-steps = {most}: "
                f"set algorithm.pfedme.steps = {most}"
            )
        return ""
