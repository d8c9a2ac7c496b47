"""A codec applied to the tensors of an update: each tensor's bytes by name, or all of them end to end."""

import math
from collections.abc import Mapping

import numpy as np

from fl.codecs.base import Codec, CompressionError, Payload, Real, check_finite

Shape = tuple[int, ...]
MAX_ENTRIES = 2**31


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
