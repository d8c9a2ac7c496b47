"""HetLoRA (Cho et al. 2024): factors weighted by the norm of each device's product."""

from collections.abc import Sequence

import numpy as np

from fl.adapters.pairs import LowRankPair
from fl.aggregation.pairs import heterogeneous_mean
from fl.algorithms.base import About, Capabilities
from fl.algorithms.shared.products import PairAlgorithm


class HetLora(PairAlgorithm):
    """Factors weighted by the Frobenius norm of each device's product, layer by layer; the number of examples plays no role.

    Devices of smaller rank are filled up with zeros (:mod:`fl.adapters.ranks`).
    """

    name = "hetlora"
    about = About("Cho et al. 2024", "2401.06432", "A and B")
    can = Capabilities(sums=False, pairs=True, low_rank=True, ranks="first")

    def combine(self, pairs: Sequence[LowRankPair], weights: np.ndarray) -> tuple[LowRankPair, np.ndarray | None]:
        """The mean of factors, weighted by norms."""
        return heterogeneous_mean(pairs, pairs[0].rank, weights), None
