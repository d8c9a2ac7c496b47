"""Ditto: an adapter of one's own that is held near the shared one (Li et al. 2021)."""

from dataclasses import replace

from fl.algorithms.base import About
from fl.algorithms.personal.own_adapter import OwnAdapter
from fl.algorithms.plan import LocalPlan
from fl.settings.fields import setting


class Ditto(OwnAdapter):
    """The own adapter decodes; its loss has lambda / 2 times the squared distance from the shared one."""

    name = "ditto"
    about = About(
        "Li et al. 2021", "2012.04221", "A and B", "nothing; a device keeps an adapter held near the shared one"
    )
    pull: float = setting(
        0.1, "how strongly the personal adapter is held at the shared one (lambda)", low=0.0, high=1e6
    )

    def plan(self, plan: LocalPlan) -> LocalPlan:
        """With the pull towards the shared adapter."""
        return replace(super().plan(plan), pull=self.pull)
