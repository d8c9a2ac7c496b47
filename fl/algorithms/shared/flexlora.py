"""FlexLoRA (Bai et al. 2024): the mean of products, and of it what the devices' rank can hold."""

from collections.abc import Sequence

import numpy as np

from fl.adapters.pairs import LowRankPair
from fl.algorithms.base import About
from fl.algorithms.shared.products import PairAlgorithm, best_pair


class FlexLora(PairAlgorithm):
    """Truncated singular value decomposition of mean(B A)."""

    name = "flexlora"
    about = About("Bai et al. 2024", "2402.11505", "A and B")

    def combine(
        self, start: LowRankPair, moves: Sequence[LowRankPair], weights: np.ndarray
    ) -> tuple[LowRankPair, np.ndarray | None]:
        """The best pair of the mean product; what it lacks is lost."""
        return best_pair(start, moves, weights)[0], None
