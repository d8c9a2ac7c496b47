"""What the settings under ``[privacy]`` mean for one device's update: both ends of a message ask here, so that they agree.

| form | a node sends | who uses it |
| --- | --- | --- |
| ``plain`` | each device's tensors, or the node's sum of them | everything |
| ``encoded`` | each device's update as bytes of a codec | every strategy; not with sums at nodes |
| ``masked`` | a masked vector of each device, or of the node's sum | the mean alone |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

import numpy as np

from fl.algorithms.arms import Arm, federates
from fl.codecs.compression import make_codec
from fl.codecs.kinds import Codec, FixedInteger, TopK
from fl.privacy.dp import weight_of
from fl.protocol.wire import FEDERATE
from fl.settings.config import RunConfig
from fl.settings.names import DISTRIBUTED_NOISE, EDGE, LOCAL_NOISE, NONE, PAIRWISE, SERVER_NOISE

PLAIN, ENCODED_FORM, MASKED = "plain", "encoded", "masked"
FULL_PRECISION = "fp32"


def form_of(config: RunConfig, arm: Arm | None, phase: str) -> str:
    """In which form the shared update of a training message comes back."""
    if arm is None or not federates(arm) or phase != FEDERATE:
        return PLAIN
    if config.privacy.secure_sum == PAIRWISE:
        return MASKED
    compressed = config.privacy.codec != FULL_PRECISION and config.federation.aggregation != EDGE
    return ENCODED_FORM if compressed else PLAIN


def bounded_mean(config: RunConfig) -> bool:
    """Whether the aggregate is a mean of clipped updates with bounded weights, and not the strategy's own rule."""
    return config.privacy.dp in (SERVER_NOISE, DISTRIBUTED_NOISE) or config.privacy.secure_sum == PAIRWISE


def clips_at_device(config: RunConfig) -> bool:
    """Whether a device clips its own update. A server that sees single updates and promises does that itself."""
    privacy = config.privacy
    summed = config.federation.aggregation == EDGE or privacy.secure_sum == PAIRWISE
    limited = isinstance(bare(make_codec(privacy.codec)), FixedInteger)
    return privacy.dp == LOCAL_NOISE or limited or (bounded_mean(config) and summed)


def bare(codec: Codec) -> Codec:
    """The codec of the numbers: that of the kept ones for ``top-k``."""
    return codec.inner if isinstance(codec, TopK) else codec


def weigher(config: RunConfig, arm: Arm | None) -> Callable[[float], float]:
    """A device's weight from its number of examples: the number itself, or one in 0 to 1 where sums must be bounded."""
    if arm is None or not federates(arm) or not bounded_mean(config):
        return float
    cap = config.privacy.example_cap or None
    return lambda examples: weight_of(examples, cap)


@lru_cache(maxsize=4096)
def payload_bytes(codec: str, entries: int) -> int:
    """Bytes of an encoding of so many numbers: the same for all values."""
    return len(make_codec(codec).encode(np.zeros(entries, np.float32)))


def payload_sizes(codec: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Bytes of the encoding of each tensor."""
    return {name: payload_bytes(codec, math.prod(shape)) for name, shape in shapes.items()}


def is_adaptive(config: RunConfig) -> bool:
    """Whether the clipping norm follows a quantile."""
    return config.privacy.clip_quantile > 0 and config.privacy.dp != NONE


def vector_size(config: RunConfig, sizes: Iterable[int]) -> int:
    """Numbers in the vector of a secure sum: all tensors, their weight, and with adaptive clipping one bit."""
    return sum(sizes) + 1 + int(is_adaptive(config))
