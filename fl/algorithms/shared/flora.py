"""FLoRA (Wang et al. 2024): the stack of all devices' pairs is the exact mean of their products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from fl.adapters.pairs import LowRankPair
from fl.algorithms.base import About, Aggregator, Algorithm, Capabilities, Role
from fl.algorithms.shared.products import Corrected, best_pair, to_float32


class StackRest(Corrected):
    """FLoRA: the stack of all devices' pairs is the exact mean of their products.

    The paper merges the stack into every device's base and starts new pairs. Here the base at the device stays untouched: devices
    go on from the best pair of their rank, and the aggregator keeps the rest of the stack.
    """

    def combine(self, layer: str, pairs: Sequence[LowRankPair], weights: np.ndarray) -> LowRankPair:
        """The best pair; the correction is what it lacks of the stack."""
        best, product = best_pair(pairs, weights)
        self.found[layer] = to_float32(product - best.product())
        return best


class Flora(Algorithm):
    """FLoRA (Wang et al. 2024)."""

    name: ClassVar[str] = "flora"
    role: ClassVar[Role] = Role.AGGREGATION
    about: ClassVar[About] = About(
        "Wang et al. 2024", "2409.05976", "A and B", "what the stack has beyond the devices' rank"
    )
    can: ClassVar[Capabilities] = Capabilities(sums=False, pairs=True, low_rank=True, ranks="best", optimizer=False)

    def aggregator(self) -> Aggregator:
        """The best pair and the rest of the stack."""
        return StackRest(self.name)
