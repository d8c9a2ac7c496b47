"""A second, fresh adapter beside the shared one, and a learned gate over both, after FedDPA-T (Yang et al. 2024).

FedDPA weighs the two by how similar an input is to the training data; here a gate learns to, with the weights of each rank coordinate
apart, so it is not FedDPA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl.algorithms.base import About
from fl.algorithms.personal.own_adapter import BesideShared

if TYPE_CHECKING:
    from fl.adapters.state import State


class DualAdapter(BesideShared):
    """Two adapters and a gate over both."""

    name = "dual-adapter"
    about = About(
        "after Yang et al. 2024",
        "2403.19211",
        "A and B",
        "nothing; a device keeps a second adapter and a gate over both",
    )
    gate = "self"
    ranks = 2

    def start(self, shared: State, seed: int) -> State:
        """A fresh adapter with a neutral gate over both."""
        from fl.adapters.blend import beside

        return beside(shared, seed)

    def build(self, shared: State, own: State) -> State:
        """Both, gated."""
        from fl.adapters.blend import gated

        return gated(shared, own)
