"""Secure sums: the server learns the sum of many devices' vectors and nothing else about any of them.

Bonawitz et al. 2017, "Practical secure aggregation for privacy-preserving machine learning". Device u sends

    y_u = x_u + PRG(b_u) + sum over v > u of PRG(s_uv) - sum over v < u of PRG(s_uv)      modulo 2^32 (or 2^64)

s_uv is agreed by two devices, so these masks cancel in the sum; the self-mask b_u keeps y_u hidden when the server later
restores the pairwise masks of u because u seemed to have dropped out. Each device gave every other a share of b_u and of its
key. From those who remain the server gets shares of b for the survivors and of keys for the others, and at ``threshold``
shares each it can take all masks off the sum, never off one vector. Below the threshold nothing comes out at all.

A participant is a device, or a node that already summed the updates of its devices: limit and largest weight are then
those of the node. :mod:`fl.privacy.secure_sum.device` is the other side; the steps are in
:mod:`fl.privacy.secure_sum.messages`. The server must relay messages as they are; see ``docs/privacy.md`` for who must be trusted.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fl.privacy.secure_sum.device import Client
from fl.privacy.secure_sum.keys import (
    MASK,
    SELF,
    SHARE_BYTES,
    SecureSumError,
    add_mask,
    agree,
    commitment,
    derive_key,
    join_secret,
    private_key,
    public_bytes,
)
from fl.privacy.secure_sum.messages import (
    SESSION_BYTES,
    Content,
    Inbox,
    Masked,
    PublicKeys,
    Reveal,
    Roster,
    Setup,
    Shares,
    Survivors,
    default_threshold,
)

__all__ = ["Client", "SecureSumError", "Server", "Setup", "flatten", "new_setup", "unflatten"]


def new_setup(
    devices: Sequence[str], size: int, limit: float, *, threshold: int | None = None, bits: int = 32, noise: float = 0.0
) -> Setup:
    """A new session; ``noise`` is the standard deviation of all devices' noise together."""
    needed = default_threshold(len(devices)) if threshold is None else threshold
    return Setup(os.urandom(SESSION_BYTES), tuple(sorted(devices)), needed, size, float(limit), bits, float(noise))


def flatten(
    sums: Mapping[str, np.ndarray], weight: float, limit: float, largest_weight: float = 1.0
) -> NDArray[np.float64]:
    """Weighted tensors and their weight as one vector, in the order of names; the weight comes last, on the grid's scale."""
    if not 0.0 <= weight <= largest_weight or not math.isfinite(weight):
        raise SecureSumError(f"weight {weight} is outside 0 to {largest_weight}: cap it")
    parts = [np.asarray(sums[name], np.float64).reshape(-1) for name in sorted(sums)]
    return np.concatenate([*parts, [weight / largest_weight * limit]])


def unflatten(
    numbers: NDArray[np.float64], shapes: Mapping[str, tuple[int, ...]], limit: float, largest_weight: float = 1.0
) -> tuple[dict[str, NDArray[np.float64]], float]:
    """The inverse of :func:`flatten` on a sum: sums by name, and the total weight."""
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    if numbers.shape != (sum(sizes.values()) + 1,):
        raise SecureSumError(f"a sum of {numbers.shape} numbers does not fit the {len(shapes)} shared tensors")
    sums: dict[str, NDArray[np.float64]] = {}
    start = 0
    for name in sorted(shapes):
        sums[name] = numbers[start : start + sizes[name]].reshape(shapes[name])
        start += sizes[name]
    return sums, float(numbers[-1]) / limit * largest_weight


class Server:
    """The server's side of one session. ``add`` takes what devices send; a message that does not belong raises and is left out.

    After each step, :meth:`roster`, :meth:`inbox`, :meth:`survivors` and :meth:`total` close it for latecomers and raise
    :class:`SecureSumError` if fewer than the threshold took part: the session is then over, and nothing was learnt.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._expected: type[Content] = PublicKeys
        self._keys: dict[str, PublicKeys] = {}
        self._shares: dict[str, dict[str, bytes]] = {}
        self._commitments: dict[str, bytes] = {}
        self._reveals: dict[str, Reveal] = {}
        self._sum = np.zeros(setup.size, setup.grid.dtype)  # of masked vectors: none is kept

    def add(self, message: PublicKeys | Shares | Masked | Reveal) -> None:
        """Take one device's message of the present step."""
        if message.session != self.setup.session or not isinstance(message, self._expected):
            raise SecureSumError(
                f"{type(message).__name__} of {message.device!r} came late or is of another session: it is left out"
            )
        before = self._before()
        if message.device not in before:
            raise SecureSumError(f"{message.device!r} took no part in the step before: it is left out")
        if message.device in self._done():
            raise SecureSumError(f"{message.device!r} answered twice: the first answer counts")
        if isinstance(message, PublicKeys):
            self._keys[message.device] = message
        elif isinstance(message, Shares):
            self._add_shares(message)
        elif isinstance(message, Masked):
            self._add_masked(message)
        else:
            self._add_reveal(message)

    def _before(self) -> Sequence[str] | Mapping[str, object]:
        """The devices that the present step can hear from."""
        steps: dict[type[Content], Sequence[str] | Mapping[str, object]] = {
            PublicKeys: self.setup.devices,
            Shares: self._keys,
            Masked: self._shares,
            Reveal: self._commitments,
        }
        return steps[self._expected]

    def _done(self) -> Mapping[str, object]:
        """The devices that the present step has heard from."""
        steps: dict[type[Content], Mapping[str, object]] = {
            PublicKeys: self._keys,
            Shares: self._shares,
            Masked: self._commitments,
            Reveal: self._reveals,
        }
        return steps[self._expected]

    def _add_shares(self, message: Shares) -> None:
        if message.sealed.keys() != self._keys.keys() - {message.device}:
            raise SecureSumError(
                f"shares of {message.device!r} are not for exactly the others of the roster: it is left out"
            )
        self._shares[message.device] = message.sealed

    def _add_masked(self, message: Masked) -> None:
        words = np.frombuffer(message.words, np.uint8)
        if len(words) != self._sum.nbytes or len(message.commitment) != len(commitment(b"", b"")):
            raise SecureSumError(
                f"the vector of {message.device!r} has another length than {self.setup.size:,} words: left out"
            )
        self._sum += words.view(self._sum.dtype.newbyteorder("<"))
        self._commitments[message.device] = message.commitment

    def _add_reveal(self, message: Reveal) -> None:
        alive = self._commitments.keys()
        shares = (*message.seeds.values(), *message.keys.values())
        if message.seeds.keys() != alive or message.keys.keys() != self._shares.keys() - alive:
            raise SecureSumError(f"{message.device!r} revealed other shares than it was asked for: they are not used")
        if any(len(share) != SHARE_BYTES for share in shares):
            raise SecureSumError(f"{message.device!r} revealed shares of another length: they are not used")
        self._reveals[message.device] = message

    def _close(self, step: type[Content], following: type[Content]) -> None:
        if self._expected is step:
            if len(self._done()) < self.setup.threshold:
                raise SecureSumError(
                    f"{len(self._done())} of {len(self.setup.devices)} devices sent {step.__name__}, {self.setup.threshold} are "
                    "needed: no sum is formed; skip the round, or ask more devices"
                )
            self._expected = following
        elif self._expected is not following:
            raise SecureSumError(f"step {step.__name__} of this session is over, or not begun")

    def roster(self) -> Roster:
        """End step 1: the keys of who gave theirs."""
        self._close(PublicKeys, Shares)
        return Roster(
            self.setup.session,
            {name: keys.mask for name, keys in self._keys.items()},
            {name: keys.channel for name, keys in self._keys.items()},
        )

    def inbox(self, device: str) -> Inbox:
        """End step 2: what the others sealed for ``device``."""
        self._close(Shares, Masked)
        if device not in self._shares:
            raise SecureSumError(f"{device!r} did not share its secrets: it is out of the sum")
        sealed = {sender: shares[device] for sender, shares in self._shares.items() if sender != device}
        return Inbox(self.setup.session, device, sealed)

    def survivors(self) -> Survivors:
        """End step 3: whose vectors are in the sum."""
        self._close(Masked, Reveal)
        return Survivors(self.setup.session, tuple(sorted(self._commitments)))

    def total(self) -> NDArray[np.float64]:
        """End step 4: the sum of the survivors' vectors ``(size,)``, exact on the grid. Can be had once."""
        self._close(Reveal, Content)
        self._expected = Setup  # nothing more is expected
        session, places = self.setup.session, {name: place for place, name in enumerate(sorted(self._keys), 1)}
        for name, expected in self._commitments.items():
            held = {places[who]: reveal.seeds[name] for who, reveal in self._reveals.items()}
            seed = join_secret(held, self.setup.threshold)
            if commitment(seed, session) != expected:
                raise SecureSumError(f"the self-mask of {name!r} was not restored: a share is false; no sum is formed")
            add_mask(self._sum, derive_key(seed, session, SELF), subtract=True)
        for name in self._shares.keys() - self._commitments.keys():
            held = {places[who]: reveal.keys[name] for who, reveal in self._reveals.items()}
            key = private_key(join_secret(held, self.setup.threshold), session, MASK)
            if public_bytes(key) != self._keys[name].mask:
                raise SecureSumError(f"the key of {name!r} was not restored: a share is false; no sum is formed")
            for other in self._commitments:
                add_mask(self._sum, agree(key, self._keys[other].mask, session, MASK), subtract=other < name)
        return self.setup.grid.decode(self._sum)
