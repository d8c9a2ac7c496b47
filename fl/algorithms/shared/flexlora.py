"""FlexLoRA (Bai et al. 2024): the mean of products, and of it what the devices' rank can hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from fl.adapters.pairs import LowRankPair
from fl.algorithms.base import About, Aggregator, Algorithm, Capabilities, Role
from fl.algorithms.shared.products import PairAggregator, best_pair


class BestPair(PairAggregator):
    """The mean of products, and of it what the devices' rank can hold."""

    def combine(self, layer: str, pairs: Sequence[LowRankPair], weights: np.ndarray) -> LowRankPair:
        """Truncated singular value decomposition of mean(B A)."""
        return best_pair(pairs, weights)[0]


class FlexLora(Algorithm):
    """FlexLoRA (Bai et al. 2024)."""

    name: ClassVar[str] = "flexlora"
    role: ClassVar[Role] = Role.AGGREGATION
    about: ClassVar[About] = About("Bai et al. 2024", "2402.11505", "A and B")
    can: ClassVar[Capabilities] = Capabilities(sums=False, pairs=True, low_rank=True, ranks="best")

    def aggregator(self) -> Aggregator:
        """The best pair of the mean product."""
        return BestPair(self.name)
