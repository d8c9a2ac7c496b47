"""The device's side of a secure sum: four steps in order, each once, and a state that survives between messages."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ConfigRecord
from numpy.typing import NDArray

from fl.privacy.secure_sum.keys import (
    CHANNEL,
    MASK,
    SECRET_BYTES,
    SELF,
    SHARE_BYTES,
    RandomBytes,
    SecureSumError,
    add_mask,
    agree,
    commitment,
    derive_key,
    private_key,
    public_bytes,
    seal,
    split_secret,
    unseal,
)
from fl.privacy.secure_sum.messages import Content, Inbox, Masked, PublicKeys, Reveal, Roster, Setup, Shares, Survivors

STEPS = ("advertise", "share", "mask", "reveal", "done")


class Client:
    """One device in one session (Bonawitz et al. 2017, figure 4, without the consistency check).

    Its secrets are two seeds of key pairs and the seed of its self-mask. Any :class:`SecureSumError` ends its part in the
    session: it has then sent nothing more, and the others restore what is missing or the sum fails.
    """

    def __init__(self, device: str, setup: Setup, random_bytes: RandomBytes = os.urandom) -> None:
        if device not in setup.devices:
            raise SecureSumError(f"{device!r} is not among the {len(setup.devices)} devices of this session")
        self.device = device
        self.setup = setup
        self._random = random_bytes
        self._step = STEPS[0]
        self._mask_seed, self._channel_seed, self._self_seed = (random_bytes(SECRET_BYTES) for _ in range(3))
        self._mask_keys: dict[str, bytes] = {}
        self._channel_keys: dict[str, bytes] = {}
        self._held: dict[str, bytes] = {}  # by device: a share of its self-mask's seed and one of its mask key

    def _begin(self, step: str, message: Content | None = None) -> None:
        """Move on, or raise if it is another step's turn. A step that fails half way cannot be tried again."""
        if self._step != step:
            raise SecureSumError(
                f"{self.device!r} was asked to {step} but is to {self._step}: each step is taken once, in order"
            )
        if message is not None and message.session != self.setup.session:
            raise SecureSumError(f"a message of another session reached {self.device!r}: it answers nothing")
        self._step = STEPS[STEPS.index(step) + 1]

    def advertise(self) -> PublicKeys:
        """Step 1: the public keys."""
        self._begin("advertise")
        session = self.setup.session
        return PublicKeys(
            session,
            self.device,
            public_bytes(private_key(self._mask_seed, session, MASK)),
            public_bytes(private_key(self._channel_seed, session, CHANNEL)),
        )

    def share(self, roster: Roster) -> Shares:
        """Step 2: shares of both secrets, sealed for each other device of the roster."""
        self._begin("share", roster)
        self._check_roster(roster)
        self._mask_keys, self._channel_keys = dict(roster.mask), dict(roster.channel)
        session, names = self.setup.session, sorted(roster.mask)
        seeds = split_secret(self._self_seed, self.setup.threshold, len(names))
        keys = split_secret(self._mask_seed, self.setup.threshold, len(names))
        channel = private_key(self._channel_seed, session, CHANNEL)
        sealed: dict[str, bytes] = {}
        for name, seed, key in zip(names, seeds, keys, strict=True):
            if name == self.device:
                self._held[name] = seed + key
            else:
                shared = agree(channel, roster.channel[name], session, CHANNEL)
                sealed[name] = seal(shared, seed + key, session, self.device, name, self._random)
        return Shares(session, self.device, sealed)

    def _check_roster(self, roster: Roster) -> None:
        session = self.setup.session
        names = roster.mask.keys()
        if names != roster.channel.keys() or not names <= set(self.setup.devices):
            raise SecureSumError(f"the roster names other devices than were invited: {self.device!r} takes no part")
        if len(names) < self.setup.threshold:
            raise SecureSumError(
                f"{len(names)} devices gave keys, {self.setup.threshold} are needed: the sum would say too much"
            )
        own = (private_key(self._mask_seed, session, MASK), private_key(self._channel_seed, session, CHANNEL))
        if (roster.mask.get(self.device), roster.channel.get(self.device)) != tuple(map(public_bytes, own)):
            raise SecureSumError(
                f"the roster shows other keys for {self.device!r} than it sent: somebody is in between"
            )
        if len({*roster.mask.values(), *roster.channel.values()}) < 2 * len(names):
            raise SecureSumError("two devices have the same public key: one of them is not what it claims")

    def mask(self, inbox: Inbox, numbers: NDArray[np.floating], noise: float = 0.0, key: bytes | None = None) -> Masked:
        """Step 3: ``numbers`` ``(size,)`` on the grid, plus this device's share of ``noise``, plus all masks.

        ``numbers`` are already clipped and weighted, ``noise`` is :attr:`fl.privacy.dp.DistributedNoise.share`. A ``key`` for
        the noise is for simulations that must come again.
        """
        self._begin("mask", inbox)
        if inbox.device != self.device or not inbox.sealed.keys() <= self._mask_keys.keys() - {self.device}:
            raise SecureSumError(f"the inbox is not one for {self.device!r}, or holds shares of devices without keys")
        if len(inbox.sealed) + 1 < self.setup.threshold:
            raise SecureSumError(
                f"{len(inbox.sealed) + 1} devices shared, {self.setup.threshold} are needed: nothing is sent"
            )
        if np.shape(numbers) != (self.setup.size,):
            raise SecureSumError(f"a vector of shape {np.shape(numbers)} where {self.setup.size:,} numbers are summed")
        session = self.setup.session
        channel = private_key(self._channel_seed, session, CHANNEL)
        for sender, sealed in inbox.sealed.items():
            shared = agree(channel, self._channel_keys[sender], session, CHANNEL)
            self._held[sender] = unseal(shared, sealed, session, sender, self.device)
            if len(self._held[sender]) != 2 * SHARE_BYTES:
                raise SecureSumError(f"{sender!r} sent shares of another length: it does not follow the protocol")
        words = self.setup.grid.encode(numbers, noise, key)
        add_mask(words, derive_key(self._self_seed, session, SELF))
        own = private_key(self._mask_seed, session, MASK)
        for sender in sorted(inbox.sealed):
            add_mask(words, agree(own, self._mask_keys[sender], session, MASK), subtract=self.device > sender)
        sent = words.astype(words.dtype.newbyteorder("<"), copy=False).tobytes()
        return Masked(session, self.device, sent, commitment(self._self_seed, session))

    def reveal(self, survivors: Survivors) -> Reveal:
        """Step 4: for each device with which it masked one share, of the seed if it survived, of the key if it did not."""
        self._begin("reveal", survivors)
        alive = set(survivors.devices)
        if not alive <= self._held.keys() or self.device not in alive:
            raise SecureSumError(f"the survivors are not those with whom {self.device!r} masked: it reveals nothing")
        if len(alive) < self.setup.threshold:
            raise SecureSumError(f"{len(alive)} devices remain, {self.setup.threshold} are needed: nothing is revealed")
        seeds = {name: held[:SHARE_BYTES] for name, held in self._held.items() if name in alive}
        keys = {name: held[SHARE_BYTES:] for name, held in self._held.items() if name not in alive}
        self._held = {}
        return Reveal(self.setup.session, self.device, seeds, keys)

    def to_record(self) -> ConfigRecord:
        """The whole state, secrets included: it stays on the device, and is needed where each message starts a new process."""
        record = {f"setup.{name}": value for name, value in self.setup.to_record().items()}
        for name, held in self._maps().items():
            record[f"{name}.names"], record[f"{name}.values"] = list(held), list(held.values())
        seeds = [self._mask_seed, self._channel_seed, self._self_seed]
        return ConfigRecord({**record, "device": self.device, "step": self._step, "seeds": seeds})

    def _maps(self) -> dict[str, dict[str, bytes]]:
        return {"mask": self._mask_keys, "channel": self._channel_keys, "held": self._held}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Client:
        """The client that :meth:`to_record` stored. :class:`SecureSumError` for anything else."""
        try:
            parts = {name.removeprefix("setup."): value for name, value in record.items() if name.startswith("setup.")}
            client = cls(str(record["device"]), Setup.from_record(parts))
            client._step = STEPS[STEPS.index(record["step"])]
            client._mask_seed, client._channel_seed, client._self_seed = record["seeds"]
            for name, held in client._maps().items():
                held.update(zip(record[f"{name}.names"], record[f"{name}.values"], strict=True))
        except (KeyError, ValueError, TypeError) as error:
            raise SecureSumError(
                f"stored state of a secure sum is damaged ({error!r}): leave this session out"
            ) from error
        return client
