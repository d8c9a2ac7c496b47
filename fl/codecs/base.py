"""What a codec is: the entries of one tensor as bytes, and back. It knows neither names nor shapes."""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from fl.core.errors import IdiolectError

Payload = NDArray[np.uint8]
Real = NDArray[np.float32]


class CompressionError(IdiolectError):
    """An unknown codec, a tensor that a codec cannot take, or bytes that are no encoding of the expected shape."""


class Codec(ABC):
    """One codec with its options. It checks every byte that it reads, which may come from anybody."""

    @property
    def lossless(self) -> bool:
        """Whether decoding gives the very values."""
        return False

    @property
    def sum_compatible(self) -> bool:
        """Whether all encodings have the same step at every entry, so that a sum of them has no other error than theirs."""
        return False

    @property
    def limit(self) -> float | None:
        """The largest absolute value that can be encoded; None where there is no fixed one."""
        return None

    @abstractmethod
    def encode(self, values: Real) -> Payload:
        """Bytes of ``values`` ``(n,)``, which are finite."""

    @abstractmethod
    def decode(self, payload: Payload, size: int) -> Real:
        """The ``size`` values ``(n,)`` of an encoding; :class:`CompressionError` for other bytes."""


def check_length(payload: Payload, expected: int) -> None:
    """Raise :class:`CompressionError` for an encoding of another number of bytes."""
    if len(payload) != expected:
        raise CompressionError(
            f"an encoding of {len(payload):,} bytes where {expected:,} are expected: codec or shape differ"
        )


def check_finite(values: NDArray[np.floating], what: str) -> None:
    """Raise :class:`CompressionError`, beginning with ``what``, for NaN or infinity."""
    if not np.isfinite(values).all():
        raise CompressionError(f"{what} NaN or infinity: training diverged, or the bytes were damaged")


def check_unused(argument: str, inner: Codec | None) -> None:
    """Raise :class:`CompressionError` for what stands behind the colon or the plus of a codec that takes nothing there."""
    if argument or inner is not None:
        raise CompressionError(
            f"{argument or 'a second codec'} may not follow it: write fp16, int8:0.1 or top-k:0.1+int8"
        )


def positive(text: str, what: str, most: float) -> float:
    """``text`` as a number above 0 and at most ``most``; :class:`CompressionError` says ``what`` it is."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not (0 < value <= most and np.isfinite(value)):
        raise CompressionError(f"the {what} {text!r} must be a number above 0 and at most {most:g}")
    return value
