"""FedEx-LoRA (Singhal et al. 2024): devices get the means of the factors, the aggregator keeps the exact residual."""

from collections.abc import Sequence

import numpy as np

from fl.adapters.pairs import LowRankPair
from fl.aggregation.pairs import mean_and_residual, plus
from fl.algorithms.base import About
from fl.algorithms.shared.products import CorrectedAlgorithm


class FedEx(CorrectedAlgorithm):
    """Mean factors; the correction is what they lack."""

    name = "fedex"
    about = About("Singhal et al. 2024", "2410.09432", "A and B", "mean(BA) - mean(B) mean(A)")

    def combine(
        self, start: LowRankPair, moves: Sequence[LowRankPair], weights: np.ndarray
    ) -> tuple[LowRankPair, np.ndarray | None]:
        """See :func:`fl.aggregation.pairs.mean_and_residual`."""
        mean, lost = mean_and_residual(moves, weights)
        return plus(start, mean), lost
