"""The device's side of a secure sum: its steps in order, each once, and a state that survives between messages."""

import os
from dataclasses import InitVar, field
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from fl.privacy.secure_sum import keys as crypto
from fl.privacy.secure_sum.identity import Identity
from fl.privacy.secure_sum.keys import RandomBytes, SecureSumError
from fl.privacy.secure_sum.messages import (
    STRICT,
    AdvertiseKeys,
    CheckSurvivors,
    ConsistencyCheck,
    Inbox,
    MaskedInput,
    Participants,
    SecureSumMessage,
    SecureSumSetup,
    ShareKeys,
    Survivors,
    Unmask,
)

STEPS = ("advertise", "share", "mask", "check", "reveal", "done")
NOBODY = Identity()
KEYS, SURVIVORS = b"idiolect secure sum keys", b"idiolect secure sum survivors"  # what a signature is for


@dataclass(config=STRICT)
class SecureSumClient:
    """One device in one session (Bonawitz et al. 2017, figure 4).

    An ``identity`` with a key signs. With peers every participant must have signed its public keys, and at least the threshold of
    the survivors the same list of survivors; without peers a device believes what it is shown.

    Its secrets are two seeds of key pairs and the seed of its self-mask. Any :class:`SecureSumError` ends its part in the
    session: it has then sent nothing more, and the others restore what is missing or the sum fails. Its state is stored where
    each message starts a new process.
    """

    device: str
    setup: SecureSumSetup
    random_bytes: InitVar[RandomBytes] = os.urandom
    step: str = STEPS[0]
    seeds: tuple[bytes, ...] = field(default=(), repr=False)  # of the keys for masks and channels; of the self-mask
    mask_keys: dict[str, bytes] = field(default_factory=dict)  # by device: public
    channel_keys: dict[str, bytes] = field(default_factory=dict)
    held: dict[str, bytes] = field(default_factory=dict, repr=False)  # by device: shares of its self-mask and mask key

    def __post_init__(self, random_bytes: RandomBytes) -> None:
        if self.device not in self.setup.devices:
            raise SecureSumError(f"{self.device!r} is not among the {len(self.setup.devices)} devices of this session")
        self._random = random_bytes
        if self.step == STEPS[0] and not self.seeds:
            self.seeds = tuple(random_bytes(crypto.SECRET_BYTES) for _ in range(3))
        if self.step not in STEPS or [len(seed) for seed in self.seeds] != 3 * [crypto.SECRET_BYTES]:
            raise SecureSumError(f"{self.device!r} has no step {self.step!r}, or other secrets than three seeds")
        session = self.setup.session
        self._mask_key = crypto.private_key(self.seeds[0], session, crypto.MASK)
        self._channel = crypto.private_key(self.seeds[1], session, crypto.CHANNEL)
        self._public = tuple(key.public_key().public_bytes_raw() for key in (self._mask_key, self._channel))

    @classmethod
    def restored(cls, state: bytes) -> Self:
        """The client whose :meth:`state` was stored. :class:`SecureSumError` for anything else."""
        try:
            return TypeAdapter(cls).validate_json(state)
        except (ValidationError, SecureSumError) as error:
            why = f"field {error.errors()[0]['loc']}" if isinstance(error, ValidationError) else error
            raise SecureSumError(f"stored state of a secure sum is damaged ({why}): leave this session out") from None

    def state(self) -> bytes:
        """All of it as JSON, secrets included: it stays on the device."""
        return TypeAdapter(type(self)).dump_json(self)

    def _begin(self, step: str, message: SecureSumMessage | None = None) -> None:
        """Move on, or raise if it is another step's turn. A step that fails half way cannot be tried again."""
        if self.step != step:
            raise SecureSumError(f"{self.device!r} was asked to {step} but is to {self.step}: each step is taken once")
        if message is not None and message.session != self.setup.session:
            raise SecureSumError(f"a message of another session reached {self.device!r}: it answers nothing")
        self.step = STEPS[STEPS.index(step) + 1]

    def advertise(self, identity: Identity = NOBODY) -> AdvertiseKeys:
        """Step 1: the public keys."""
        self._begin("advertise")
        session = self.setup.session
        signature = identity.sign(KEYS, session, self.device.encode(), *self._public)
        return AdvertiseKeys(session, self.device, self._public[0], self._public[1], signature)

    def share(self, participants: Participants, identity: Identity = NOBODY) -> ShareKeys:
        """Step 2: shares of both secrets, sealed for each other participant."""
        self._begin("share", participants)
        given = participants.mask.keys()
        if given != participants.channel.keys() or not given <= set(self.setup.devices):
            raise SecureSumError(f"the participants are not among the invited devices: {self.device!r} takes no part")
        self.setup.require(len(given), "gave keys")
        if (participants.mask.get(self.device), participants.channel.get(self.device)) != self._public:
            raise SecureSumError(
                f"the list of participants shows other keys for {self.device!r} than it sent: somebody is in between"
            )
        if len({*participants.mask.values(), *participants.channel.values()}) < 2 * len(given):
            raise SecureSumError("two devices have the same public key: one of them is not what it claims")
        session, names = self.setup.session, sorted(participants.mask)
        for name in names if identity.peers else ():
            given_keys = participants.mask[name], participants.channel[name]
            if not identity.signed(
                name, participants.signatures.get(name, b""), KEYS, session, name.encode(), *given_keys
            ):
                raise SecureSumError(
                    f"the keys of {name!r} are not signed by a key that the file of peers lists for it: {self.device!r} takes no "
                    "part; ask its owner for the public key, or leave that device out of the run"
                )
        self.mask_keys, self.channel_keys = dict(participants.mask), dict(participants.channel)
        seeds = crypto.split_secret(self.seeds[2], self.setup.threshold, len(names))
        keys = crypto.split_secret(self.seeds[0], self.setup.threshold, len(names))
        sealed: dict[str, bytes] = {}
        for name, seed, key in zip(names, seeds, keys, strict=True):
            if name == self.device:
                self.held[name] = seed + key
            else:
                shared = crypto.agree(self._channel, self.channel_keys[name], session, crypto.CHANNEL)
                sealed[name] = crypto.seal(shared, seed + key, session, self.device, name, self._random)
        return ShareKeys(session, self.device, sealed)

    def mask(
        self, inbox: Inbox, numbers: NDArray[np.floating], noise: float = 0.0, key: bytes | None = None
    ) -> MaskedInput:
        """Step 3: ``numbers`` ``(size,)`` on the grid, plus this device's share of ``noise``, plus all masks.

        ``numbers`` are already clipped and weighted, ``noise`` is :func:`fl.privacy.dp.noise_share`. A ``key`` for
        the noise is for simulations, which must be deterministic.
        """
        self._begin("mask", inbox)
        if inbox.device != self.device or not inbox.sealed.keys() <= self.mask_keys.keys() - {self.device}:
            raise SecureSumError(f"the inbox is not one for {self.device!r}, or holds shares of devices without keys")
        self.setup.require(len(inbox.sealed) + 1, "shared their secrets")
        if np.shape(numbers) != (self.setup.size,):
            raise SecureSumError(f"a vector of shape {np.shape(numbers)} where {self.setup.size:,} numbers are summed")
        session = self.setup.session
        for sender, sealed in inbox.sealed.items():
            shared = crypto.agree(self._channel, self.channel_keys[sender], session, crypto.CHANNEL)
            self.held[sender] = crypto.unseal(shared, sealed, session, sender, self.device)
            if len(self.held[sender]) != 2 * crypto.SHARE_BYTES:
                raise SecureSumError(f"{sender!r} sent shares of another length: it does not follow the protocol")
        words = self.setup.grid.encode(numbers, noise, key)
        crypto.add_mask(words, crypto.derive_key(self.seeds[2], session, crypto.SELF))
        for sender in sorted(inbox.sealed):
            pairwise = crypto.agree(self._mask_key, self.mask_keys[sender], session, crypto.MASK)
            crypto.add_mask(words, pairwise, subtract=self.device > sender)
        sent = words.astype(words.dtype.newbyteorder("<"), copy=False).tobytes()
        return MaskedInput(session, self.device, sent, crypto.commitment(self.seeds[2], session))

    def check(self, shown: CheckSurvivors, identity: Identity = NOBODY) -> ConsistencyCheck:
        """Step 4: a signature of the survivors, as this device was shown them."""
        self._begin("check", shown)
        self._require_survivors(shown.devices)
        return ConsistencyCheck(self.setup.session, self.device, identity.sign(*self._list(shown.devices)))

    def _require_survivors(self, devices: tuple[str, ...]) -> None:
        if not set(devices) <= self.held.keys() or self.device not in devices:
            raise SecureSumError(f"the survivors are not those with whom {self.device!r} masked: it reveals nothing")
        self.setup.require(len(set(devices)), "remain")

    def _list(self, devices: tuple[str, ...]) -> tuple[bytes, ...]:
        return SURVIVORS, self.setup.session, *(name.encode() for name in devices)

    def reveal(self, survivors: Survivors, identity: Identity = NOBODY) -> Unmask:
        """Step 5: for each device with which it masked one share, of the seed if it survived, of the key if it did not."""
        if self.step == "check" and not identity.peers:
            self.step = "reveal"
        self._begin("reveal", survivors)
        alive = set(survivors.devices)
        self._require_survivors(survivors.devices)
        if identity.peers:
            signed = {
                n for n, s in survivors.signatures.items() if identity.signed(n, s, *self._list(survivors.devices))
            }
            if len(signed & alive) < self.setup.threshold:
                raise SecureSumError(
                    f"{len(signed & alive)} survivors signed the list that {self.device!r} is shown, {self.setup.threshold} must have: "
                    "others may have been shown another one; it reveals nothing"
                )
        seeds = {name: held[: crypto.SHARE_BYTES] for name, held in self.held.items() if name in alive}
        keys = {name: held[crypto.SHARE_BYTES :] for name, held in self.held.items() if name not in alive}
        self.held = {}
        return Unmask(self.setup.session, self.device, seeds, keys)
