"""FLoRA (Wang et al. 2024): the stack of all devices' pairs is the exact mean of their products."""

from collections.abc import Sequence

import numpy as np

from fl.adapters.pairs import LowRankPair
from fl.algorithms.base import About
from fl.algorithms.shared.products import CorrectedAlgorithm, best_pair


class Flora(CorrectedAlgorithm):
    """The paper merges the stack into every device's base and starts new pairs.

    Here the base at the device stays untouched: devices go on from the best pair of their rank, and the aggregator keeps the rest
    of the stack.
    """

    name = "flora"
    about = About("Wang et al. 2024", "2409.05976", "A and B", "what the stack has beyond the devices' rank")

    def combine(
        self, start: LowRankPair, moves: Sequence[LowRankPair], weights: np.ndarray
    ) -> tuple[LowRankPair, np.ndarray | None]:
        """The best pair; the correction is what it lacks of the stack."""
        best, product = best_pair(start, moves, weights)
        return best, product - best.product()
