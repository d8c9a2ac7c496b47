"""Random bits that nobody can predict, for noise and masks: ChaCha20 of the cryptography library under a 256-bit key.

NumPy's generators are made for statistics: their state can be computed from their output. Whoever knows the noise takes it
off, so the noise of differential privacy needs the same bits as encryption. A key from a seed (:func:`key_from_seed`) is for
tests and simulations, where a result must be deterministic.
"""

import os
from collections.abc import Iterator

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from fl.core.rng import seed_digest

KEY_BYTES = 32
CHUNK_BYTES = 1 << 16  # of keystream at a time: stays in the processor's cache
_NONCE = bytes(16)  # each key is used for one stream only
_ZEROS = bytes(CHUNK_BYTES)
_UNIFORM_BITS = 53  # of a float64's mantissa


def fresh_key() -> bytes:
    """A key from the operating system's generator."""
    return os.urandom(KEY_BYTES)


def key_from_seed(*parts: str | int) -> bytes:
    """A key that is a function of ``parts`` alone. Only for simulations: who knows the seed knows the noise."""
    return seed_digest(b"idiolect noise", *parts)


def keystream(key: bytes, size: int) -> Iterator[NDArray[np.uint8]]:
    """The first ``size`` bytes of the key's stream in chunks. A chunk is overwritten by the next one."""
    encryptor = Cipher(algorithms.ChaCha20(key, _NONCE), mode=None).encryptor()
    chunk = np.empty(CHUNK_BYTES, np.uint8)
    for start in range(0, size, CHUNK_BYTES):
        count = min(CHUNK_BYTES, size - start)
        encryptor.update_into(memoryview(_ZEROS)[:count], chunk.data[:count])
        yield chunk[:count]


def standard_normal(key: bytes, size: int) -> NDArray[np.float64]:
    """``size`` standard normal numbers by inversion: ``Phi^-1((k + 1/2) / 2^53)`` for 53 random bits ``k``.

    The largest possible value is 8.3: a number beyond that has probability 1e-16 under the exact distribution.
    """
    from scipy.special import ndtri  # a tenth of a second, where no noise is drawn

    values = np.empty(size)
    place = 0
    for chunk in keystream(key, 8 * size):
        bits = chunk.view(np.uint64) >> np.uint64(64 - _UNIFORM_BITS)
        # Folded to the lower half, where float64 is dense: near 1 it could not tell the tail's numbers from 1.
        upper = bits >> np.uint64(_UNIFORM_BITS - 1) != 0
        folded = np.where(upper, np.uint64((1 << _UNIFORM_BITS) - 1) - bits, bits)
        normal = ndtri((folded.astype(np.float64) + 0.5) * 2.0**-_UNIFORM_BITS)
        values[place : place + len(bits)] = np.where(upper, -normal, normal)
        place += len(bits)
    return values
