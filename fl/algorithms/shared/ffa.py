"""FFA-LoRA (Sun et al. 2024): A is fixed by the seed and B is averaged."""

from __future__ import annotations

from typing import ClassVar

from fl.algorithms.base import About, Aggregator, Algorithm, Capabilities, Role
from fl.algorithms.shared.one_factor import OneFactor


class Ffa(Algorithm):
    """FFA-LoRA: A is the same at all devices from the seed on, and the mean of B is the mean of products."""

    name: ClassVar[str] = "ffa"
    role: ClassVar[Role] = Role.AGGREGATION
    about: ClassVar[About] = About("Sun et al. 2024", "2403.12313", "B", "nothing; A is fixed by the seed")
    can: ClassVar[Capabilities] = Capabilities(mean=True, low_rank=True)
    split: ClassVar[str] = "ffa"

    def aggregator(self) -> Aggregator:
        """FedAvg of B."""
        return OneFactor("B", self.name)
