"""FedSA-LoRA (Guo et al. 2024): A is averaged and B is personal."""

from collections.abc import Mapping
from typing import ClassVar

from fl.adapters.split import tensor_kind
from fl.algorithms.base import About, Algorithm, Capabilities
from fl.core.errors import ConfigError


class OneFactor(Algorithm):
    """FedAvg of one kind of factor, so that the mean of factors is the mean of products.

    The other one may not be shared, since it would be trained.
    """

    kind: ClassVar[str]
    can = Capabilities(mean=True, low_rank=True)

    def require_fit(self, shapes: Mapping[str, tuple[int, ...]], devices: int) -> None:
        """Factors of this kind are shared, and none of the other."""
        odd = [name for name in sorted(shapes) if tensor_kind(name) in ("A", "B") and tensor_kind(name) != self.kind]
        if odd or not any(tensor_kind(name) == self.kind for name in shapes):
            raise ConfigError(
                f"algorithm {self.name!r} shares {self.kind} alone, but this split shares {odd[0] if odd else 'none'!r}: "
                f"set adapter.split = {self.split!r}"
            )


class FedSa(OneFactor):
    """FedAvg of A."""

    name = split = "fedsa"
    kind = "A"
    about = About("Guo et al. 2024", "2410.01463", "A", "nothing; B stays on its device")
