"""Smaller updates on the wire: half precision, 8 and 4 bits, the largest entries only, and products of those.

A codec turns one tensor into bytes and back; codec and shape are agreed beforehand and not sent. n entries, k kept ones,
blocks of 1,024 entries each with its own scale, m the largest absolute value of a block (for ``top-k`` of kept entries):

| codec | bytes | largest error | sums of encodings |
| --- | --- | --- | --- |
| ``fp32`` | 4 n | 0 | yes |
| ``fp16`` | 2 n | 2^-11 abs(x), or 2^-25 if that is more | yes |
| ``int8`` | n + 4 ceil(n / 1024) | m / 254 | no: each block of each device has its own scale |
| ``int4`` | ceil(n / 2) + 4 ceil(n / 1024) | m / 14 | no |
| ``int8:LIMIT``, ``int4:LIMIT`` | n, ceil(n / 2) | LIMIT / 254, LIMIT / 14 | yes: all have the same step; abs(x) <= LIMIT |
| ``top-k:SHARE`` | 4 + 8 k, k = ceil(SHARE n) | the kept ones 0; norm of the rest <= sqrt(1 - k / n) of the whole | no: other places |
| ``top-k:SHARE+int8`` and so on | 4 + 4 k + those of k entries | kept ones as that codec's; the rest as above | no |

int8 is a quarter of fp32 plus 0.4 % for the scales (one float32 for 1,024 entries); ``int8:LIMIT`` is a quarter exactly.
With error feedback (Seide et al. 2014; Karimireddy et al. 2019) a device adds what was lost to its next update, so that
nothing is lost for good: :class:`ErrorFeedback`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from fl.codecs.kinds import (
    FLOAT16,
    FLOAT32,
    BlockInteger,
    Codec,
    CompressionError,
    FixedInteger,
    Float,
    Payload,
    Real,
    TopK,
    check_finite,
)

__all__ = [
    "CODECS",
    "Codec",
    "CompressionError",
    "ErrorFeedback",
    "decode_all",
    "encode_all",
    "encoded_bytes",
    "join",
    "make_codec",
    "split",
]

Shape = tuple[int, ...]
MAX_ENTRIES = 2**31


def _integer(bits: int, argument: str) -> Codec:
    return FixedInteger(bits, _number(argument, "limit", math.inf)) if argument else BlockInteger(bits)


def _number(text: str, what: str, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 < value <= most and math.isfinite(value)):
        raise CompressionError(f"{what} {text!r} of a codec must be a number above 0 and at most {most:g}")
    return value


CODECS: dict[str, Callable[[str], Codec]] = {
    "fp32": lambda _: Float(FLOAT32),
    "fp16": lambda _: Float(FLOAT16),
    "int8": lambda argument: _integer(8, argument),
    "int4": lambda argument: _integer(4, argument),
    "top-k": lambda argument: TopK(_number(argument or "0.1", "share", 1.0)),
}


def make_codec(name: str) -> Codec:
    """The codec of a name as in the table above; :class:`CompressionError` lists the known ones."""
    first, plus, second = name.partition("+")
    kind, colon, argument = first.partition(":")
    known = kind in CODECS and not (colon and not argument) and not (argument and kind in ("fp32", "fp16"))
    if not known or (plus and kind != "top-k"):
        raise CompressionError(
            f"codec {name!r} is unknown: use {', '.join(CODECS)}, a limit as int8:0.1, or top-k:0.1+int8"
        )
    codec = CODECS[kind](argument)
    if not plus:
        return codec
    inner = make_codec(second)
    if isinstance(inner, TopK):
        raise CompressionError(f"codec {name!r} takes the largest of the largest: give one share")
    return TopK(_number(argument or "0.1", "share", 1.0), inner)


def encode_all(update: Mapping[str, np.ndarray], codec: Codec) -> dict[str, Payload]:
    """Each tensor's bytes, a uint8 array; :class:`CompressionError` names the tensor that cannot be encoded."""
    encoded: dict[str, Payload] = {}
    for name in sorted(update):
        values = np.ascontiguousarray(update[name], np.float32).reshape(-1)
        try:
            check_finite(values, "it holds")
            encoded[name] = codec.encode(values)
        except CompressionError as error:
            raise CompressionError(f"tensor {name!r} cannot be encoded: {error}") from error
    return encoded


def decode_all(encoded: Mapping[str, np.ndarray], shapes: Mapping[str, Shape], codec: Codec) -> dict[str, Real]:
    """The inverse of :func:`encode_all`. :class:`CompressionError` for other names, dtypes, lengths or damaged bytes."""
    if encoded.keys() != shapes.keys():
        raise CompressionError(f"tensors {sorted(encoded.keys() ^ shapes.keys())[:3]} are missing or not expected")
    decoded: dict[str, Real] = {}
    for name in sorted(shapes):
        payload, size = encoded[name], math.prod(shapes[name])
        if payload.dtype != np.uint8 or payload.ndim != 1 or size > MAX_ENTRIES:
            raise CompressionError(
                f"tensor {name!r} is {payload.dtype} of {payload.shape}, not the bytes of an encoding"
            )
        try:
            decoded[name] = codec.decode(np.ascontiguousarray(payload), size).reshape(shapes[name])
        except CompressionError as error:
            raise CompressionError(f"tensor {name!r} cannot be decoded: {error}") from error
    return decoded


def join(encoded: Mapping[str, Payload]) -> Payload:
    """All encodings end to end, in the order of their names: one array on the wire needs one header."""
    return np.concatenate([encoded[name] for name in sorted(encoded)]) if encoded else np.zeros(0, np.uint8)


def split(joined: np.ndarray, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The inverse of :func:`join` for encodings of ``sizes`` bytes; :class:`CompressionError` for another length."""
    if joined.shape != (sum(sizes.values()),):
        raise CompressionError(
            f"an update of shape {joined.shape} came where {sum(sizes.values()):,} bytes were agreed"
        )
    ends = np.cumsum([sizes[name] for name in sorted(sizes)])[:-1]
    return dict(zip(sorted(sizes), np.split(joined, ends), strict=True))


def encoded_bytes(encoded: Mapping[str, np.ndarray]) -> int:
    """Bytes of all encodings, without names and envelope."""
    return sum(payload.nbytes for payload in encoded.values())


@dataclass(frozen=True)
class ErrorFeedback:
    """What a device's earlier encodings lost, by tensor: private state of the device, kept with its gates. Empty at first."""

    residual: Mapping[str, Real] = field(default_factory=dict)

    def encode(self, update: Mapping[str, np.ndarray], codec: Codec) -> tuple[dict[str, Payload], ErrorFeedback]:
        """Encode update plus residual; returns the bytes and the state to store once they were sent.

        After any number of rounds the sum of what was decoded plus the residual is the sum of the updates.
        """
        shapes = {name: value.shape for name, value in update.items()}
        if self.residual and {name: value.shape for name, value in self.residual.items()} != shapes:
            raise CompressionError(
                "the stored residual has other tensors than the update: it is of another run, remove it"
            )
        wanted = {
            name: np.asarray(value, np.float32) + self.residual.get(name, np.float32(0))
            for name, value in update.items()
        }
        encoded = encode_all(wanted, codec)
        decoded = decode_all(encoded, shapes, codec)
        return encoded, ErrorFeedback({name: wanted[name] - decoded[name] for name in sorted(wanted)})
