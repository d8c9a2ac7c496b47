"""FedSA-LoRA (Guo et al. 2024): A is averaged and B is personal."""

from __future__ import annotations

from fl.algorithms.base import About
from fl.algorithms.shared.one_factor import OneFactor


class FedSa(OneFactor):
    """FedAvg of A."""

    name = split = "fedsa"
    kind = "A"
    about = About("Guo et al. 2024", "2410.01463", "A", "nothing; B stays on its device")
