"""How the updates of one training message come back: the client, the guard and the aggregator ask here, so that they agree.

| form | a node sends | who uses it |
| --- | --- | --- |
| ``nothing`` | counts alone | private phases, fine-tuning, arms without federation |
| ``plain`` | each device's update, or the node's sum of them | everything |
| ``encoded`` | each device's update as bytes of a codec | every algorithm; not with sums at nodes |
| ``masked`` | a masked vector of each device, or of the node's sum | means alone |
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, lru_cache

import numpy as np

from fl.algorithms.arms import EVERYONE, Arm
from fl.algorithms.plan import Phase
from fl.codecs.base import Codec
from fl.codecs.table import make_codec
from fl.privacy.dp import weight_of
from fl.settings.config import RunConfig
from fl.settings.names import DISTRIBUTED_NOISE, EDGE, LOCAL_NOISE, NONE, PAIRWISE, SERVER_NOISE


class Form(Enum):
    """In which form a device's update leaves."""

    NOTHING = "nothing"
    PLAIN = "plain"
    ENCODED = "encoded"
    MASKED = "masked"


def bounded_mean(config: RunConfig) -> bool:
    """Whether the aggregate is a mean of clipped updates with bounded weights, and not the algorithm's own."""
    privacy = config.privacy
    return privacy.dp.mode in (SERVER_NOISE, DISTRIBUTED_NOISE) or privacy.secure_sum.mode == PAIRWISE


@dataclass(frozen=True)
class Exchange:
    """What is agreed about the updates of one message."""

    form: Form
    config: RunConfig
    federates: bool

    @classmethod
    def of(cls, config: RunConfig, arm: Arm | None, phase: Phase) -> Exchange:
        """The exchange of a training message of an arm."""
        sends = arm is not None and phase is Phase.FEDERATE and (arm.federates or arm.devices == EVERYONE)
        federates = arm is not None and arm.federates
        if not sends:
            return cls(Form.NOTHING, config, federates)
        if not federates:
            return cls(Form.PLAIN, config, federates)
        if config.privacy.secure_sum.mode == PAIRWISE:
            return cls(Form.MASKED, config, federates)
        compressed = not make_codec(config.codec.name).lossless and config.federation.aggregation != EDGE
        return cls(Form.ENCODED if compressed else Form.PLAIN, config, federates)

    @property
    def edge(self) -> bool:
        """Whether a node sends sums over its devices."""
        return self.config.federation.aggregation == EDGE

    @cached_property
    def codec(self) -> Codec:
        """What updates are compressed by."""
        return make_codec(self.config.codec.name)

    @property
    def clips(self) -> bool:
        """Whether a device clips its own update. An aggregator that sees single updates does that itself."""
        summed = self.edge or self.config.privacy.secure_sum.mode == PAIRWISE
        local = self.config.privacy.dp.mode == LOCAL_NOISE or self.codec.limit is not None
        return self.federates and (local or (bounded_mean(self.config) and summed))

    @property
    def adaptive(self) -> bool:
        """Whether the clipping norm follows a quantile."""
        return self.config.privacy.clip_quantile > 0 and self.config.privacy.dp.mode != NONE

    def weigh(self, examples: float) -> float:
        """A device's weight from its number of examples: the number itself, or one in 0 to 1 where sums must be bounded."""
        if not self.federates or not bounded_mean(self.config):
            return float(examples)
        return weight_of(examples, self.config.privacy.example_cap or None)

    def payload_sizes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """Bytes of the encoding of each tensor."""
        return {name: _payload_bytes(self.config.codec.name, math.prod(shape)) for name, shape in shapes.items()}

    def vector_size(self, sizes: Iterable[int]) -> int:
        """Numbers in the vector of a secure sum: all tensors, their weight, and with adaptive clipping one bit."""
        return sum(sizes) + 1 + int(self.adaptive)


@lru_cache(maxsize=4096)
def _payload_bytes(codec: str, entries: int) -> int:
    """Bytes of an encoding of so many numbers: the same for all values."""
    return len(make_codec(codec).encode(np.zeros(entries, np.float32)))
