"""FedAvg of one factor of each low-rank pair, so that the mean of factors is the mean of products; and what needs both factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from fl.adapters.pairs import pair_names
from fl.adapters.split import tensor_kind
from fl.algorithms.base import Algorithm, Capabilities
from fl.core.errors import ConfigError


def require_pairs(name: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise :class:`ConfigError` unless both factors of each layer are shared."""
    paired = {tensor for pair in pair_names(shapes).values() for tensor in pair}
    lonely = [tensor for tensor in sorted(shapes) if tensor_kind(tensor) in ("A", "B") and tensor not in paired]
    if lonely or not paired:
        raise ConfigError(
            f"algorithm {name!r} needs A and B of each layer, but the split shares {lonely[0] if lonely else 'no pair'!r} alone: "
            "set adapter.split = 'gates' or 'all-shared', or choose algorithm = 'fedavg'"
        )


class OneFactor(Algorithm):
    """FedAvg of one kind of factor; the other one may not be shared, since it would be trained."""

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
