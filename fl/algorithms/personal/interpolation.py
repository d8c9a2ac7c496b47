"""Interpolation between the shared and the own adapter, input by input (after Yang et al. 2024): one weight that both divide."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl.algorithms.base import About
from fl.algorithms.personal.own_adapter import BesideShared

if TYPE_CHECKING:
    from fl.adapters.state import State


class Interpolation(BesideShared):
    """a(x) B' A' x + (1 - a(x)) B A x with a learnt a(x)."""

    name = "interpolation"
    about = About(
        "after Yang et al. 2024",
        "2403.19211",
        "A and B",
        "nothing; a device keeps an adapter and what to weigh it by, input by input",
    )
    gate = "self"
    ranks = 2

    def start(self, shared: State, seed: int) -> State:
        """A copy, and a switch at one half."""
        from fl.adapters.blend import with_switch

        return with_switch(shared)

    def build(self, shared: State, own: State) -> State:
        """Both, with the switch between them."""
        from fl.adapters.blend import switched

        return switched(shared, own)
