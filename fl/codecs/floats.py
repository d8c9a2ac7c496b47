"""Each entry as a float of 4 or 2 bytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from fl.codecs.base import FLOAT32, Codec, Payload, Real, check_finite, check_length, check_unused

FLOAT16 = np.dtype("<f2")


@dataclass(frozen=True)
class FloatCodec(Codec):
    """Floats of ``dtype``, little-endian."""

    dtype: np.dtype[np.floating] = FLOAT32
    sum_compatible = True

    @property
    def lossless(self) -> bool:
        """Whether nothing is rounded."""
        return self.dtype == FLOAT32

    def encode(self, values: Real) -> Payload:
        """See :class:`Codec`. Raises :class:`fl.codecs.base.CompressionError` for a value beyond the range of ``dtype``."""
        with np.errstate(over="ignore"):
            rounded = values.astype(self.dtype)
        check_finite(
            rounded, f"values of up to {np.abs(values).max(initial=0):g} in {self.dtype.itemsize} bytes become"
        )
        return rounded.view(np.uint8)

    def decode(self, payload: Payload, size: int) -> Real:
        """See :class:`Codec`."""
        check_length(payload, size * self.dtype.itemsize)
        values = payload.view(self.dtype).astype(np.float32)
        check_finite(values, "the encoding holds")
        return values


def _make(dtype: np.dtype[np.floating], argument: str, inner: Codec | None) -> Codec:
    check_unused(argument, inner)
    return FloatCodec(dtype)


fp32, fp16 = partial(_make, FLOAT32), partial(_make, FLOAT16)
