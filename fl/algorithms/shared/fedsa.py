"""FedSA-LoRA (Guo et al. 2024): A is averaged and B is personal."""

from __future__ import annotations

from typing import ClassVar

from fl.algorithms.base import About, Aggregator, Algorithm, Capabilities, Role
from fl.algorithms.shared.one_factor import OneFactor


class FedSa(Algorithm):
    """FedSA-LoRA: A is averaged, B is personal."""

    name: ClassVar[str] = "fedsa"
    role: ClassVar[Role] = Role.AGGREGATION
    about: ClassVar[About] = About("Guo et al. 2024", "2410.01463", "A", "nothing; B stays on its device")
    can: ClassVar[Capabilities] = Capabilities(mean=True, low_rank=True)
    split: ClassVar[str] = "fedsa"

    def aggregator(self) -> Aggregator:
        """FedAvg of A."""
        return OneFactor("A", self.name)
