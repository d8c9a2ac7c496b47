"""Each entry by itself: as a float of 4 or 2 bytes, or as an integer of 8 or 4 bits.

An integer has a scale for each block of the tensor, or one step for all devices.
"""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fl.codecs.base import Codec, CompressionError, Payload, Real, check_finite, check_length, check_unused, positive

FLOAT32, FLOAT16 = np.dtype("<f4"), np.dtype("<f2")
BLOCK = 1024  # entries that share a scale
LEVELS = {8: 127, 4: 7}  # of each sign


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
        """See :class:`Codec`. Raises :class:`CompressionError` for a value beyond the range of ``dtype``."""
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


def _pack(levels: NDArray[np.floating], bits: int) -> Payload:
    """Levels to nearest, clipped to their range, as bytes: two of 4 bits in one."""
    whole = np.rint(levels).clip(-LEVELS[bits], LEVELS[bits]).astype(np.int8)
    if bits == 8:
        return np.asarray(whole.view(np.uint8))
    padded: Payload = np.append(whole, np.zeros(len(whole) % 2, np.int8)).view(np.uint8)
    packed: Payload = padded[0::2] & np.uint8(15) | padded[1::2] << np.uint8(4)
    return packed


def _unpack(payload: Payload, size: int, bits: int) -> NDArray[np.int8]:
    check_length(payload, -(-size * bits // 8))
    if bits == 8:
        levels = payload.view(np.int8)
    else:
        nibbles = np.stack([payload & 0xF, payload >> 4], axis=1).reshape(-1)
        if nibbles[size:].any():
            raise CompressionError("the last half byte of an encoding is not empty: codec or shape differ")
        levels = ((nibbles[:size] ^ 8).astype(np.int8) - 8).astype(np.int8)
    if levels.min(initial=0) < -LEVELS[bits]:
        raise CompressionError(f"a level below -{LEVELS[bits]} in an encoding: the bytes are damaged")
    return levels


@dataclass(frozen=True)
class BlockInteger(Codec):
    """Integers of ``bits``, to nearest, with a scale for each block of the tensor: scales first, then levels."""

    bits: int

    def encode(self, values: Real) -> Payload:
        """See :class:`Codec`."""
        blocks = -(-len(values) // BLOCK)
        padded = np.zeros((blocks, BLOCK), np.float32)
        padded.reshape(-1)[: len(values)] = values
        largest = np.abs(padded).max(axis=1, initial=0.0)
        scales = (largest / LEVELS[self.bits]).astype(FLOAT32)
        inverse = np.divide(1.0, scales, out=np.zeros(blocks), where=scales > 0)
        levels = (padded * inverse[:, None]).reshape(-1)[: len(values)]
        return np.concatenate([scales.view(np.uint8), _pack(levels, self.bits)])

    def decode(self, payload: Payload, size: int) -> Real:
        """See :class:`Codec`."""
        scale_bytes = FLOAT32.itemsize * -(-size // BLOCK)
        levels = _unpack(payload[scale_bytes:], size, self.bits)
        scales = np.frombuffer(payload[:scale_bytes].tobytes(), FLOAT32)
        check_finite(scales, "a scale is")
        if (scales < 0).any():
            raise CompressionError("a scale of an encoding is negative: the bytes are damaged")
        return (levels * np.repeat(scales, BLOCK)[:size]).astype(np.float32)


@dataclass(frozen=True)
class FixedInteger(Codec):
    """Integers of ``bits`` with one step for all devices, ``largest / levels``; entries up to ``largest`` can be encoded."""

    bits: int
    largest: float
    sum_compatible = True

    @property
    def limit(self) -> float:
        """The largest absolute value of an entry."""
        return self.largest

    @property
    def step(self) -> float:
        """Value of one level."""
        return self.largest / LEVELS[self.bits]

    def encode(self, values: Real) -> Payload:
        """See :class:`Codec`. Raises :class:`CompressionError` for an entry above the limit."""
        found = float(np.abs(values).max(initial=0.0))
        if found > self.largest:
            raise CompressionError(f"an entry of {found:g} is above the limit {self.largest:g}: clip the update first")
        return _pack(values / self.step, self.bits)

    def decode(self, payload: Payload, size: int) -> Real:
        """See :class:`Codec`."""
        return (_unpack(payload, size, self.bits).astype(np.int64) * self.step).astype(np.float32)


def _floats(dtype: np.dtype[np.floating], argument: str, inner: Codec | None) -> Codec:
    check_unused(argument, inner)
    return FloatCodec(dtype)


def _integers(bits: int, argument: str, inner: Codec | None) -> Codec:
    """``int8`` and ``int4``, with a limit as in ``int8:0.1``."""
    check_unused("", inner)
    return FixedInteger(bits, positive(argument, "limit", math.inf)) if argument else BlockInteger(bits)


int8, int4 = partial(_integers, 8), partial(_integers, 4)
fp32, fp16 = partial(_floats, FLOAT32), partial(_floats, FLOAT16)
