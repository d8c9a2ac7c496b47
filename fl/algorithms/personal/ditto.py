"""Ditto: an adapter of one's own that is held near the shared one (Li et al. 2021)."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from fl.algorithms.base import About
from fl.algorithms.personal.own_adapter import OwnAdapter, StepOptions
from fl.algorithms.plan import LocalPlan, SecondPlan
from fl.settings.fields import Table, setting


class DittoOptions(StepOptions):
    """Options of Ditto."""

    pull: float = setting(
        0.1, "how strongly the personal adapter is held at the shared one (lambda)", low=0.0, high=1e6
    )


class Ditto(OwnAdapter):
    """The own adapter decodes; its loss has lambda / 2 times the squared distance from the shared one."""

    name: ClassVar[str] = "ditto"
    about: ClassVar[About] = About(
        "Li et al. 2021", "2012.04221", "A and B", "nothing; a device keeps an adapter held near the shared one"
    )
    Options: ClassVar[type[Table]] = DittoOptions
    options: DittoOptions

    def plan(self, plan: LocalPlan) -> SecondPlan:
        """With the pull towards the shared adapter."""
        return replace(super().plan(plan), pull=self.options.pull)
