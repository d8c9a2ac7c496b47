"""The entries with the largest absolute values alone, and those under a second codec."""

import math
from dataclasses import dataclass, field

import numpy as np

from fl.codecs.base import Codec, CompressionError, Payload, Real, positive
from fl.codecs.entries import FloatCodec

DEFAULT_SHARE = "0.1"
_PLACE = np.dtype("<u4")


@dataclass(frozen=True)
class TopK(Codec):
    """The ``share`` of entries with the largest absolute value: their number, their places, then they under ``inner``."""

    share: float
    inner: Codec = field(default_factory=FloatCodec)

    @property
    def limit(self) -> float | None:
        """That of the kept entries."""
        return self.inner.limit

    def encode(self, values: Real) -> Payload:
        """See :class:`Codec`."""
        kept = self._count(len(values))
        # A stable sort: of equal entries the first ones, on every machine.
        places = np.sort(np.argsort(-np.abs(values), kind="stable")[:kept])
        head = np.array([kept, *places], _PLACE).view(np.uint8)
        return np.concatenate([head, self.inner.encode(values[places])])

    def decode(self, payload: Payload, size: int) -> Real:
        """See :class:`Codec`."""
        kept = self._count(size)
        end = _PLACE.itemsize * (kept + 1)
        head = np.frombuffer(payload[:end].tobytes(), _PLACE) if len(payload) >= end else np.zeros(1, _PLACE)
        if len(payload) < end or head[0] != kept:
            raise CompressionError(f"an encoding does not hold the {kept:,} largest of {size:,}: codec or shape differ")
        places = head[1:].astype(np.int64)
        if kept and (places[-1] >= size or (np.diff(places) <= 0).any()):
            raise CompressionError("places in an encoding do not ascend within the tensor: the bytes are damaged")
        values = np.zeros(size, np.float32)
        values[places] = self.inner.decode(payload[end:], kept)
        return values

    def _count(self, size: int) -> int:
        """Entries that are kept of ``size``: at least one."""
        return min(size, math.ceil(self.share * size))


def top_k(argument: str, inner: Codec | None) -> Codec:
    """``top-k``, ``top-k:SHARE``, ``top-k:SHARE+CODEC``."""
    if isinstance(inner, TopK):
        raise CompressionError("it takes the largest of the largest: give one share")
    share = positive(argument or DEFAULT_SHARE, "share", 1.0)
    return TopK(share) if inner is None else TopK(share, inner)
