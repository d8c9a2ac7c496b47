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

import os
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fl.privacy.secure_sum import keys as crypto
from fl.privacy.secure_sum.keys import SecureSumError
from fl.privacy.secure_sum.messages import (
    SESSION_BYTES,
    AdvertiseKeys,
    CheckSurvivors,
    ConsistencyCheck,
    Inbox,
    MaskedInput,
    Participants,
    SecureSumSetup,
    ShareKeys,
    Survivors,
    Unmask,
    default_threshold,
)

SENT = (AdvertiseKeys, ShareKeys, MaskedInput, ConsistencyCheck, Unmask)  # by devices, in the order of the steps


def new_setup(
    devices: Sequence[str], size: int, limit: float, *, threshold: int | None = None, bits: int = 32, noise: float = 0.0
) -> SecureSumSetup:
    """A new session; ``noise`` is the standard deviation of all devices' noise together."""
    needed = default_threshold(len(devices)) if threshold is None else threshold
    return SecureSumSetup(
        os.urandom(SESSION_BYTES), tuple(sorted(devices)), needed, size, float(limit), bits, float(noise)
    )


class SecureSumServer:
    """The server's side of one session. ``add`` takes what devices send; a message that does not belong raises and is left out.

    After each step, :meth:`participants`, :meth:`inbox`, :meth:`check`, :meth:`survivors` and :meth:`total` close it for latecomers
    and raise :class:`SecureSumError` if fewer than the threshold took part: the session is then over, and nothing was learnt.
    """

    def __init__(self, setup: SecureSumSetup) -> None:
        self.setup = setup
        self._step = 0  # into SENT
        self._keys: dict[str, AdvertiseKeys] = {}
        self._shares: dict[str, dict[str, bytes]] = {}
        self._commitments: dict[str, bytes] = {}
        self._checks: dict[str, bytes] = {}  # signatures of the survivors
        self._unmasks: dict[str, Unmask] = {}
        self._sum = np.zeros(setup.size, setup.grid.dtype)  # of masked vectors: none is kept

    @property
    def _answered(self) -> tuple[Collection[str], ...]:
        """The devices that were invited, then those that answered each step."""
        return self.setup.devices, self._keys, self._shares, self._commitments, self._checks, self._unmasks

    def add(self, message: AdvertiseKeys | ShareKeys | MaskedInput | ConsistencyCheck | Unmask) -> None:
        """Take one device's message of the present step."""
        if message.session != self.setup.session or type(message) not in SENT[self._step : self._step + 1]:
            kind = type(message).__name__
            raise SecureSumError(f"{kind} of {message.device!r} came late or is of another session: it is left out")
        before, done = self._answered[self._step : self._step + 2]
        if message.device not in before:
            raise SecureSumError(f"{message.device!r} took no part in the step before: it is left out")
        if message.device in done:
            raise SecureSumError(f"{message.device!r} answered twice: the first answer counts")
        match message:
            case AdvertiseKeys():
                self._keys[message.device] = message
            case ShareKeys():
                if message.sealed.keys() != self._keys.keys() - {message.device}:
                    raise SecureSumError(
                        f"{message.device!r} has shares not for exactly the other participants: left out"
                    )
                self._shares[message.device] = message.sealed
            case MaskedInput():
                if len(message.words) != self._sum.nbytes:
                    raise SecureSumError(
                        f"{message.device!r} sent a vector of other than {self.setup.size:,} words: left out"
                    )
                self._sum += np.frombuffer(message.words, self._sum.dtype.newbyteorder("<"))
                self._commitments[message.device] = message.commitment
            case ConsistencyCheck():
                self._checks[message.device] = message.signature
            case Unmask():
                alive = self._commitments.keys()
                if message.seeds.keys() != alive or message.keys.keys() != self._shares.keys() - alive:
                    raise SecureSumError(f"{message.device!r} revealed other shares than it was asked for: left out")
                self._unmasks[message.device] = message

    def _close(self, step: int) -> None:
        """End a step; what it says can be asked for until the next one ends."""
        if self._step not in (step, step + 1):
            raise SecureSumError(f"step {SENT[step].__name__} of this session is over, or not begun")
        if self._step == step:
            self.setup.require(len(self._answered[step + 1]), f"sent {SENT[step].__name__}")
        self._step = step + 1

    def participants(self) -> Participants:
        """End step 1: the keys of who gave theirs."""
        self._close(0)
        return Participants(
            self.setup.session,
            {name: keys.mask for name, keys in self._keys.items()},
            {name: keys.channel for name, keys in self._keys.items()},
            {name: keys.signature for name, keys in self._keys.items() if keys.signature},
        )

    def inbox(self, device: str) -> Inbox:
        """End step 2: what the others sealed for ``device``."""
        self._close(1)
        if device not in self._shares:
            raise SecureSumError(f"{device!r} did not share its secrets: it is out of the sum")
        sealed = {sender: shares[device] for sender, shares in self._shares.items() if sender != device}
        return Inbox(self.setup.session, device, sealed)

    def check(self) -> CheckSurvivors | None:
        """End step 3: whose vectors are in the sum, for them to sign. None if nobody signs: step 4 is then passed over."""
        self._close(2)
        if any(keys.signature for keys in self._keys.values()):
            return CheckSurvivors(self.setup.session, tuple(sorted(self._commitments)))
        self._checks = dict.fromkeys(self._commitments, b"")
        return None

    def survivors(self) -> Survivors:
        """End step 4: whose vectors are in the sum, and who signed that."""
        if self._step == SENT.index(MaskedInput):
            self.check()
        self._close(3)
        signatures = {name: signature for name, signature in self._checks.items() if signature}
        return Survivors(self.setup.session, tuple(sorted(self._commitments)), signatures)

    def total(self) -> NDArray[np.float64]:
        """End step 5: the sum of the survivors' vectors ``(size,)``, exact on the grid. Can be had once."""
        self._close(4)
        self._step += 1  # beyond the last: nothing more is expected
        session = self.setup.session
        for name, expected in self._commitments.items():
            seed = self._restored({who: unmask.seeds[name] for who, unmask in self._unmasks.items()})
            if crypto.commitment(seed, session) != expected:
                raise SecureSumError(f"the self-mask of {name!r} was not restored: a share is false; no sum is formed")
            crypto.add_mask(self._sum, crypto.derive_key(seed, session, crypto.SELF), subtract=True)
        for name in self._shares.keys() - self._commitments.keys():
            seed = self._restored({who: unmask.keys[name] for who, unmask in self._unmasks.items()})
            key = crypto.private_key(seed, session, crypto.MASK)
            if key.public_key().public_bytes_raw() != self._keys[name].mask:
                raise SecureSumError(f"the key of {name!r} was not restored: a share is false; no sum is formed")
            for other in self._commitments:
                pairwise = crypto.agree(key, self._keys[other].mask, session, crypto.MASK)
                crypto.add_mask(self._sum, pairwise, subtract=other < name)
        return self.setup.grid.decode(self._sum)

    def _restored(self, shares: Mapping[str, bytes]) -> bytes:
        """The secret of which each device gave a share: numbered in the order of all names that gave keys."""
        places = {name: place for place, name in enumerate(sorted(self._keys), 1)}
        return crypto.join_secret({places[who]: share for who, share in shares.items()}, self.setup.threshold)
