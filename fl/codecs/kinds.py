"""The codecs of :mod:`fl.codecs.compression`, each a frozen dataclass that turns the entries of one tensor into bytes and back.

They know neither names nor shapes, and check every byte that they read: it may come from anybody.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fl.core.errors import IdiolectError

Payload = NDArray[np.uint8]
Real = NDArray[np.float32]
BLOCK = 1024  # entries that share a scale
LEVELS = {8: 127, 4: 7}  # of each sign
FLOAT32, FLOAT16, _PLACE = np.dtype("<f4"), np.dtype("<f2"), np.dtype("<u4")


class CompressionError(IdiolectError):
    """An unknown codec, a tensor that a codec cannot take, or bytes that are no encoding of the expected shape."""


class Codec(Protocol):
    """What encodes one tensor. ``sum_compatible``: entries of :meth:`numbers` of several encodings may be added, and
    :meth:`from_numbers` of the sum is then the sum of the decoded tensors."""

    @property
    def sum_compatible(self) -> bool:
        """Whether encodings can be added."""

    def encode(self, values: Real) -> Payload:
        """Bytes of ``values`` ``(n,)``, which are finite."""

    def decode(self, payload: Payload, size: int) -> Real:
        """The ``size`` values ``(n,)`` of an encoding; :class:`CompressionError` for other bytes."""


def _take(payload: Payload, expected: int) -> None:
    if len(payload) != expected:
        raise CompressionError(
            f"an encoding of {len(payload):,} bytes where {expected:,} are expected: codec or shape differ"
        )


def check_finite(values: NDArray[np.floating], what: str) -> None:
    """Raise :class:`CompressionError`, beginning with ``what``, for NaN or infinity."""
    if not np.isfinite(values).all():
        raise CompressionError(f"{what} NaN or infinity: training diverged, or the bytes were damaged")


@dataclass(frozen=True)
class Float:
    """Each entry as a float of 4 or 2 bytes."""

    dtype: np.dtype[np.floating]
    sum_compatible: bool = True

    def encode(self, values: Real) -> Payload:
        """See :class:`Codec`."""
        with np.errstate(over="ignore"):
            rounded = values.astype(self.dtype)
        check_finite(
            rounded, f"values of up to {np.abs(values).max(initial=0):g} in {self.dtype.itemsize} bytes become"
        )
        return rounded.view(np.uint8)

    def decode(self, payload: Payload, size: int) -> Real:
        """See :class:`Codec`."""
        return self.numbers(payload, size).astype(np.float32)

    def numbers(self, payload: Payload, size: int) -> NDArray[np.float64]:
        """The entries in float64, to be added."""
        _take(payload, size * self.dtype.itemsize)
        values = payload.view(self.dtype).astype(np.float64)
        check_finite(values, "the encoding holds")
        return values

    def from_numbers(self, numbers: NDArray[np.float64]) -> Real:
        """A sum of :meth:`numbers` as values."""
        return numbers.astype(np.float32)


def _pack(levels: NDArray[np.int8], bits: int) -> Payload:
    if bits == 8:
        return levels.view(np.uint8)
    padded: Payload = np.append(levels, np.zeros(len(levels) % 2, np.int8)).view(np.uint8)
    packed: Payload = padded[0::2] & np.uint8(15) | padded[1::2] << np.uint8(4)
    return packed


def _unpack(payload: Payload, size: int, bits: int) -> NDArray[np.int8]:
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


def _packed_bytes(size: int, bits: int) -> int:
    return -(-size * bits // 8)


@dataclass(frozen=True)
class BlockInteger:
    """Integers of 8 or 4 bits, to nearest, with a scale for each block of the tensor: scales first, then levels."""

    bits: int
    sum_compatible: bool = False

    def encode(self, values: Real) -> Payload:
        """See :class:`Codec`."""
        blocks = -(-len(values) // BLOCK)
        padded = np.zeros((blocks, BLOCK), np.float32)
        padded.reshape(-1)[: len(values)] = values
        largest = np.abs(padded).max(axis=1, initial=0.0)
        scales = (largest / LEVELS[self.bits]).astype(FLOAT32)
        inverse = np.divide(1.0, scales, out=np.zeros(blocks), where=scales > 0)
        levels = np.rint(padded * inverse[:, None]).clip(-LEVELS[self.bits], LEVELS[self.bits]).astype(np.int8)
        return np.concatenate([scales.view(np.uint8), _pack(levels.reshape(-1)[: len(values)], self.bits)])

    def decode(self, payload: Payload, size: int) -> Real:
        """See :class:`Codec`."""
        scale_bytes = FLOAT32.itemsize * -(-size // BLOCK)
        _take(payload, scale_bytes + _packed_bytes(size, self.bits))
        scales = np.frombuffer(payload[:scale_bytes].tobytes(), FLOAT32)
        check_finite(scales, "a scale is")
        if (scales < 0).any():
            raise CompressionError("a scale of an encoding is negative: the bytes are damaged")
        levels = _unpack(payload[scale_bytes:], size, self.bits)
        return (levels * np.repeat(scales, BLOCK)[:size]).astype(np.float32)


@dataclass(frozen=True)
class FixedInteger:
    """Integers of 8 or 4 bits with one step for all devices, ``limit / levels``: their sums are sums of the values."""

    bits: int
    limit: float
    sum_compatible: bool = True

    @property
    def step(self) -> float:
        """Value of one level."""
        return self.limit / LEVELS[self.bits]

    def encode(self, values: Real) -> Payload:
        """See :class:`Codec`."""
        largest = float(np.abs(values).max(initial=0.0))
        if largest > self.limit:
            raise CompressionError(f"an entry of {largest:g} is above the limit {self.limit:g}: clip the update first")
        levels = np.rint(values / self.step).clip(-LEVELS[self.bits], LEVELS[self.bits])
        return _pack(levels.astype(np.int8), self.bits)

    def decode(self, payload: Payload, size: int) -> Real:
        """See :class:`Codec`."""
        return self.from_numbers(self.numbers(payload, size))

    def numbers(self, payload: Payload, size: int) -> NDArray[np.int64]:
        """The levels, to be added; modulo 2^32 too."""
        _take(payload, _packed_bytes(size, self.bits))
        return _unpack(payload, size, self.bits).astype(np.int64)

    def from_numbers(self, numbers: NDArray[np.int64]) -> Real:
        """A sum of :meth:`numbers` as values."""
        return (numbers * self.step).astype(np.float32)


@dataclass(frozen=True)
class TopK:
    """The ``share`` of entries with the largest absolute value: their number, their places, then they under ``inner``."""

    share: float
    inner: Codec = field(default_factory=lambda: Float(FLOAT32))
    sum_compatible: bool = False

    def count(self, size: int) -> int:
        """Entries that are kept of ``size``: at least one."""
        return min(size, math.ceil(self.share * size))

    def encode(self, values: Real) -> Payload:
        """See :class:`Codec`."""
        kept = self.count(len(values))
        # A stable sort: of equal entries the first ones, on every machine.
        places = np.sort(np.argsort(-np.abs(values), kind="stable")[:kept])
        head = np.array([kept], _PLACE).view(np.uint8)
        return np.concatenate([head, places.astype(_PLACE).view(np.uint8), self.inner.encode(values[places])])

    def decode(self, payload: Payload, size: int) -> Real:
        """See :class:`Codec`."""
        kept = self.count(size)
        start, end = _PLACE.itemsize, _PLACE.itemsize + _PLACE.itemsize * kept
        if len(payload) < end or int(np.frombuffer(payload[:start].tobytes(), _PLACE)[0]) != kept:
            raise CompressionError(f"an encoding does not hold the {kept:,} largest of {size:,}: codec or shape differ")
        places = np.frombuffer(payload[start:end].tobytes(), _PLACE).astype(np.int64)
        if kept and (places[-1] >= size or (np.diff(places) <= 0).any()):
            raise CompressionError("places in an encoding do not ascend within the tensor: the bytes are damaged")
        values = np.zeros(size, np.float32)
        values[places] = self.inner.decode(payload[end:], kept)
        return values
