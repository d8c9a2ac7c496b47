"""HetLoRA (Cho et al. 2024): factors weighted by the norm of each device's product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from fl.adapters.pairs import LowRankPair
from fl.aggregation.pairs import heterogeneous_mean
from fl.algorithms.base import About, Aggregator, Algorithm, Capabilities, Role
from fl.algorithms.shared.products import PairAggregator


class NormWeighted(PairAggregator):
    """Factors weighted by the Frobenius norm of each device's product, layer by layer; the number of examples plays no role."""

    def combine(self, layer: str, pairs: Sequence[LowRankPair], weights: np.ndarray) -> LowRankPair:
        """The mean of factors, weighted by norms."""
        return heterogeneous_mean(pairs, pairs[0].rank, weights)


class HetLora(Algorithm):
    """HetLoRA (Cho et al. 2024). Devices of smaller rank are filled up with zeros (:mod:`fl.adapters.ranks`)."""

    name: ClassVar[str] = "hetlora"
    role: ClassVar[Role] = Role.AGGREGATION
    about: ClassVar[About] = About("Cho et al. 2024", "2401.06432", "A and B")
    can: ClassVar[Capabilities] = Capabilities(sums=False, pairs=True, low_rank=True, ranks="first")

    def aggregator(self) -> Aggregator:
        """Factors weighted by norms."""
        return NormWeighted(self.name)
