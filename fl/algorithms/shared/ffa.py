"""FFA-LoRA (Sun et al. 2024): A is fixed by the seed and B is averaged."""

from fl.algorithms.base import About
from fl.algorithms.shared.fedsa import OneFactor


class Ffa(OneFactor):
    """FedAvg of B: A is the same at all devices from the seed on, so the mean of B is the mean of products."""

    name = split = "ffa"
    kind = "B"
    about = About("Sun et al. 2024", "2403.12313", "B", "nothing; A is fixed by the seed")
