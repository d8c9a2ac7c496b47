"""FedEx-LoRA (Singhal et al. 2024): devices get the means of the factors, the aggregator keeps the exact residual."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from fl.adapters.pairs import LowRankPair
from fl.aggregation.pairs import mean_and_residual
from fl.algorithms.base import About, Aggregator, Algorithm, Capabilities, Role
from fl.algorithms.shared.products import Corrected, to_float32


class ExactResidual(Corrected):
    """FedEx-LoRA: devices get the means of the factors, the aggregator keeps the exact residual."""

    def combine(self, layer: str, pairs: Sequence[LowRankPair], weights: np.ndarray) -> LowRankPair:
        """Mean factors; the correction is what they lack."""
        pair, lost = mean_and_residual(pairs, weights)
        self.found[layer] = to_float32(lost)
        return pair


class FedEx(Algorithm):
    """FedEx-LoRA (Singhal et al. 2024)."""

    name: ClassVar[str] = "fedex"
    role: ClassVar[Role] = Role.AGGREGATION
    about: ClassVar[About] = About("Singhal et al. 2024", "2410.09432", "A and B", "mean(BA) - mean(B) mean(A)")
    can: ClassVar[Capabilities] = Capabilities(sums=False, pairs=True, low_rank=True, ranks="best", optimizer=False)

    def aggregator(self) -> Aggregator:
        """Mean factors and their residual."""
        return ExactResidual(self.name)
