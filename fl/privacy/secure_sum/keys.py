"""The cryptography of secure sums, all of it other people's: what each piece is, and which library does it.

| for | what | library |
| --- | --- | --- |
| agreement of two devices | X25519, then HKDF-SHA256 bound to the session and the purpose | cryptography |
| sealing a share for another device | ChaCha20-Poly1305, bound to session, sender and receiver | cryptography |
| masks from a key | ChaCha20 keystream (:mod:`fl.privacy.randomness`) | cryptography |
| secrets in shares | Shamir modulo 2^130 - 5 | shamirs |

Flower's own helpers are not used. Their masks come from a Mersenne Twister whose seed is the agreed key folded to 32 bits
(``pseudo_rand_gen`` of flwr 1.41), so that a server can try all of them. They put a private key into the shares as a PEM text of
20 blocks, and pycryptodome, which splits a block, takes 25 times as long for it as shamirs does.
"""

import hashlib
from collections.abc import Callable

import numpy as np
import shamirs
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from fl.core.errors import IdiolectError
from fl.privacy.randomness import KEY_BYTES, keystream

SECRET_BYTES = 16  # of a seed: 128 bits of security, as X25519 has
PRIME = 2**130 - 5  # of the field of shares: a seed fits
SHARE_BYTES = 17
SEALED_BYTES = 12 + 2 * SHARE_BYTES + 16  # nonce, shares of two secrets, tag
PUBLIC_BYTES = 32
COMMITMENT_BYTES = 32
MASK, CHANNEL, SELF = b"mask", b"channel", b"self"  # purposes of keys
RandomBytes = Callable[[int], bytes]


class SecureSumError(IdiolectError):
    """A secure sum that cannot go on: too few devices, a message that does not belong, or one that asks for too much.

    Whoever raises it sends nothing, and no sum is formed.
    """


def derive_key(secret: bytes, session: bytes, purpose: bytes) -> bytes:
    """A 32-byte key from a secret by HKDF-SHA256, another one for each session and purpose."""
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=session, info=b"idiolect secure sum " + purpose).derive(secret)


def private_key(seed: bytes, session: bytes, purpose: bytes) -> X25519PrivateKey:
    """The key pair that belongs to a seed of 16 bytes: who has the seed's shares has the key."""
    return X25519PrivateKey.from_private_bytes(derive_key(seed, session, purpose))


def agree(own: X25519PrivateKey, other: bytes, session: bytes, purpose: bytes) -> bytes:
    """The key that two devices share. :class:`SecureSumError` for bytes that are no public key."""
    try:
        return derive_key(own.exchange(X25519PublicKey.from_public_bytes(other)), session, purpose)
    except ValueError as error:
        raise SecureSumError(f"another device's public key is unusable ({error}): start the session again") from error


def commitment(seed: bytes, session: bytes) -> bytes:
    """What a device publishes of its self-mask's seed, so that a wrongly restored one is found. Says nothing of 128 random bits."""
    return hashlib.sha256(b"idiolect self-mask" + len(session).to_bytes(4, "little") + session + seed).digest()


def framed(*parts: bytes) -> bytes:
    """Parts as one text from which each can be told: what is signed or sealed for an address."""
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts)


def seal(key: bytes, text: bytes, session: bytes, sender: str, receiver: str, random_bytes: RandomBytes) -> bytes:
    """Encrypt ``text`` for one receiver; nonce first."""
    nonce = random_bytes(12)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, text, framed(session, sender.encode(), receiver.encode()))


def unseal(key: bytes, sealed: bytes, session: bytes, sender: str, receiver: str) -> bytes:
    """The inverse of :func:`seal`. :class:`SecureSumError` for anything that this sender did not seal for this receiver."""
    address = framed(session, sender.encode(), receiver.encode())
    try:
        return ChaCha20Poly1305(key).decrypt(sealed[:12], sealed[12:], address)
    except (InvalidTag, ValueError) as error:
        raise SecureSumError(
            f"shares of {sender!r} for {receiver!r} were changed on the way: start the session again"
        ) from error


def split_secret(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """Shares 1 to ``count`` of a secret of 16 bytes; ``threshold`` of them restore it, fewer say nothing."""
    number = int.from_bytes(secret, "little")
    shares = shamirs.shares(number, quantity=count, modulus=PRIME, threshold=threshold)
    return [share.value.to_bytes(SHARE_BYTES, "little") for share in shares]


def join_secret(shares: dict[int, bytes], threshold: int) -> bytes:
    """The secret from shares by place (1 to count). :class:`SecureSumError` for fewer than ``threshold``, or for false ones.

    The value at 0 of the polynomial through the shares (Lagrange). The library does the same, hundreds of times slower: it
    inverts for each pair of shares.
    """
    if len(shares) < threshold:
        raise SecureSumError(f"{len(shares)} shares of {threshold} that are needed: the secret stays unknown")
    places = sorted(shares)[:threshold]
    total = 0
    for place in places:
        above = below = 1
        for other in places:
            if other != place:
                above = above * other % PRIME
                below = below * (other - place) % PRIME
        total += int.from_bytes(shares[place], "little") * above * pow(below, -1, PRIME)
    number = total % PRIME
    if number >> 8 * SECRET_BYTES:
        raise SecureSumError("a secret was not restored: a share is false; no sum is formed")
    return number.to_bytes(SECRET_BYTES, "little")


def add_mask(vector: NDArray[np.unsignedinteger], key: bytes, *, subtract: bool = False) -> None:
    """Add the key's mask to ``vector`` in place, modulo 2^32 or 2^64 as its dtype says.

    The keystream has a fixed nonce, so a key may mask one vector. It does: each comes from seeds of its own session, and a
    session's state is taken off the disk before it masks, so that it masks once.
    """
    size = vector.dtype.itemsize
    little = vector.dtype.newbyteorder("<")
    start = 0
    for chunk in keystream(key, len(vector) * size):
        words = chunk.view(little)
        part = vector[start : start + len(words)]
        (np.subtract if subtract else np.add)(part, words, out=part)
        start += len(words)
