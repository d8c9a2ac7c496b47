"""FedProx: a proximal term holds the shared tensors near the values that the round began with (Li et al. 2020)."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from fl.algorithms.base import About, Algorithm, Role
from fl.algorithms.plan import LocalPlan
from fl.settings.fields import Table, setting


class FedProxOptions(Table):
    """Options of FedProx."""

    proximal: float = setting(
        0.01, "mu: the loss has mu / 2 times the squared distance from the round's start", low=0.0
    )


class FedProx(Algorithm):
    """A term of the local objective, with any way to aggregate."""

    name: ClassVar[str] = "fedprox"
    role: ClassVar[Role] = Role.LOCAL
    about: ClassVar[About] = About("Li et al. 2020", "1812.06127")
    Options: ClassVar[type[Table]] = FedProxOptions
    options: FedProxOptions

    def local(self, plan: LocalPlan, server_round: int) -> LocalPlan:
        """The plan with the proximal term."""
        return replace(plan, proximal=self.options.proximal)
