"""FedRep: in each round the private last layers train first, alone, then the others (Collins et al. 2021)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fl.algorithms.base import About
from fl.algorithms.personal.fedper import FedPer
from fl.algorithms.plan import LocalPlan
from fl.settings.fields import setting

if TYPE_CHECKING:
    from fl.settings.config import RunConfig


class FedRep(FedPer):
    """FedPer whose private part trains before the shared one."""

    name = "fedrep"
    about = About(
        "Collins et al. 2021", "2102.07078", "all but the last layers", "nothing; a device keeps the last layers"
    )
    steps: int = setting(0, "steps of a round for the last layers; 0 takes half of local-steps", low=0, high=100_000)

    def local(self, plan: LocalPlan, server_round: int) -> LocalPlan:
        """The plan with the first steps for the private part, one at least for each part."""
        first = min(self.steps or plan.steps // 2, plan.steps - 1) if plan.steps else 0
        return replace(plan, first_private=first, steps=plan.steps - first)

    def refused(self, config: RunConfig) -> str:
        """Each part needs a step."""
        least = max(self.steps + 1, 2)
        if config.train.local_steps >= least:
            return ""
        return (
            f"algorithm = {self.name!r} with algorithm.fedrep.steps = {self.steps} needs a step for each part, and "
            f"train.local-steps = {config.train.local_steps}: set train.local-steps = {least}"
        )
