"""Randomness that depends on names, not on order.

Each random choice derives its own seed from what it is for, so results are the same whatever the order in which
devices are trained and whatever backend runs them.
"""

import hashlib
from collections.abc import Sequence
from random import Random
from typing import TypeVar

import numpy as np

Option = TypeVar("Option")
SEED_BITS = 63  # torch.Generator.manual_seed takes a signed 64-bit integer


def derive_seed(*parts: str | int) -> int:
    """A seed in ``[0, 2**63)`` that is a function of ``parts`` alone, e.g. ``(run_seed, round, device, "batches")``.

    Parts are length-prefixed before hashing, so ``("a", "bc")`` and ``("ab", "c")`` differ, and so do ``1`` and ``"1"``.
    """
    return int.from_bytes(seed_digest(b"", *parts)[:8], "little") >> (64 - SEED_BITS)


def seed_digest(purpose: bytes, *parts: str | int) -> bytes:
    """SHA-256 of ``purpose`` and ``parts``, as :func:`derive_seed` takes it."""
    digest = hashlib.sha256(purpose)
    for part in parts:
        data = f"{type(part).__name__}:{part}".encode()
        digest.update(len(data).to_bytes(4, "little") + data)
    return digest.digest()


def derive_generator(*parts: str | int) -> np.random.Generator:
    """A NumPy generator seeded by :func:`derive_seed`."""
    return np.random.default_rng(derive_seed(*parts))


def derive_random(*parts: str | int) -> Random:
    """A standard-library generator seeded by :func:`derive_seed`."""
    return Random(derive_seed(*parts))


def derive_choice(options: Sequence[Option], *parts: str | int) -> Option:
    """One of ``options``, each place in it as likely as any other: a function of them and of ``parts`` alone."""
    return options[derive_seed(*parts) % len(options)]
