"""Sparsity-weighted aggregation: factors weighted by the norm of each device's product (a part of HetLoRA, Cho et al. 2024).

HetLoRA's other part, devices that prune their own ranks, is not here.
"""

from collections.abc import Sequence

import numpy as np

from fl.adapters.pairs import LowRankPair
from fl.aggregation.pairs import mean_factors, plus, product_norms, shares
from fl.algorithms.base import About, Capabilities
from fl.algorithms.shared.products import PairAlgorithm


class SparsityWeighted(PairAlgorithm):
    """Factors weighted by the Frobenius norm of each device's product, layer by layer; the number of examples plays no role.

    Devices of smaller rank are filled up with zeros (:mod:`fl.adapters.ranks`). Directions that few devices have are not diluted by
    devices whose update is small.
    """

    name = "sparsity-weighted"
    about = About("after Cho et al. 2024", "2401.06432", "A and B")
    can = Capabilities(sums=False, pairs=True, low_rank=True, ranks="first")

    def combine(
        self, start: LowRankPair, moves: Sequence[LowRankPair], weights: np.ndarray
    ) -> tuple[LowRankPair, np.ndarray | None]:
        """The mean of factors, weighted by norms; by examples where no product differs from zero."""
        norms = product_norms(moves, start)
        return plus(start, mean_factors(moves, shares(list(norms)) if norms.any() else weights)), None
