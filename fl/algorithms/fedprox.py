"""FedProx: a proximal term holds the shared tensors near the values that the round began with (Li et al. 2020)."""

from dataclasses import replace

from fl.algorithms.base import About, Algorithm, Role
from fl.algorithms.plan import LocalPlan
from fl.settings.fields import setting


class FedProx(Algorithm):
    """A term of the local objective, with any way to aggregate."""

    name = "fedprox"
    role = Role.LOCAL
    about = About("Li et al. 2020", "1812.06127")
    proximal: float = setting(
        0.01, "mu: the loss has mu / 2 times the squared distance from the round's start", low=0.0
    )

    def local(self, plan: LocalPlan, server_round: int) -> LocalPlan:
        """The plan with the proximal term."""
        return replace(plan, proximal=self.proximal)
