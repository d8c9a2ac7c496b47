"""A mixture of the shared and the own adapter with one learnt weight, after APFL (Deng et al. 2020).

It mixes the products, alpha B' A' + (1 - alpha) B A, not the factors, and alpha moves at every step on the own part. APFL mixes with the
device's own version of the shared model, which trains in the same steps; here w is as it came with the round, so it is not APFL.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fl.algorithms.base import About
from fl.algorithms.personal.own_adapter import BesideShared
from fl.algorithms.plan import LocalPlan
from fl.settings.fields import setting

if TYPE_CHECKING:
    from fl.adapters.state import State


class Mixture(BesideShared):
    """Two adapters and a weight."""

    name = "mixture"
    about = About(
        "after Deng et al. 2020",
        "2003.13461",
        "A and B",
        "nothing; a device keeps an adapter and its weight beside the shared one",
    )
    ranks = 2
    mixing: float = setting(0.5, "weight of the personal adapter at the start (alpha)", low=0.0, high=1.0)
    mixing_learning_rate: float = setting(
        0.1, "learning rate of that weight; 0 leaves it as it is", low=0.0, high=100.0
    )

    def start(self, shared: State, seed: int) -> State:
        """A copy, and the weight."""
        from fl.adapters.blend import with_weight

        return with_weight(shared, self.mixing)

    def build(self, shared: State, own: State) -> State:
        """Both products, weighted."""
        from fl.adapters.blend import weighted

        return weighted(shared, own)

    def plan(self, plan: LocalPlan) -> LocalPlan:
        """With the learning rate of the weight."""
        return replace(super().plan(plan), mixing_learning_rate=self.mixing_learning_rate)
