"""FedProx: a proximal term holds the shared tensors near the values that the round began with (Li et al. 2020).

A step is that of the paper's objective, w <- w - rate (g + mu (w - w0)), with AdamW's direction in the place of the gradient g alone: the
pull is neither clipped nor scaled by AdamW.
"""

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
        1.0, "mu: each step takes the shared tensors rate * mu of the way back to the round's start", low=0.0
    )

    def local(self, plan: LocalPlan, server_round: int) -> LocalPlan:
        """The plan with the proximal term."""
        return replace(plan, proximal=self.proximal)
