"""The messages of a secure sum, and how one becomes a Flower record and back.

| round | device to server | server to device |
| --- | --- | --- |
| begin | | :class:`SecureSumSetup` |
| 1 | :class:`AdvertiseKeys` | :class:`Participants` |
| 2 | :class:`ShareKeys` | :class:`Inbox` |
| 3 | :class:`MaskedInput` | :class:`CheckSurvivors` |
| 4 | :class:`ConsistencyCheck` | :class:`Survivors` |
| 5 | :class:`Unmask` | |
| broken off | | :class:`EndSession` |

Round 4 is passed over where no device signs: :class:`Survivors` then follows round 3.

Every message carries the session, 16 random bytes of the server, so that none of an earlier round can be replayed.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Self

from flwr.app import ConfigRecord
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from fl.privacy.secure_sum.identity import SIGNATURE_BYTES
from fl.privacy.secure_sum.keys import COMMITMENT_BYTES, PUBLIC_BYTES, SEALED_BYTES, SHARE_BYTES, SecureSumError
from fl.privacy.secure_sum.vector import FixedPointGrid

KIND = "kind"
SESSION_BYTES = 16
MAX_DEVICES = 4096  # shares grow with the square of it
MAX_SIZE = 2**28  # numbers in a vector: 1 GiB of 32-bit words
# A bool is no int; bytes as JSON are those of a stored session.
STRICT = ConfigDict(strict=True, ser_json_bytes="base64", val_json_bytes="base64")
PublicKey = Annotated[bytes, Field(min_length=PUBLIC_BYTES, max_length=PUBLIC_BYTES)]
Share = Annotated[bytes, Field(min_length=SHARE_BYTES, max_length=SHARE_BYTES)]
PublicKeys = Annotated[dict[str, PublicKey], Field(max_length=MAX_DEVICES)]  # these are by device
Shares = Annotated[dict[str, Share], Field(max_length=MAX_DEVICES)]
SealedShares = Annotated[bytes, Field(min_length=SEALED_BYTES, max_length=SEALED_BYTES)]
Sealed = Annotated[dict[str, SealedShares], Field(max_length=MAX_DEVICES)]
Signature = Annotated[bytes, Field(max_length=SIGNATURE_BYTES)]  # empty from a device without a key
Signatures = Annotated[dict[str, Signature], Field(max_length=MAX_DEVICES)]


@dataclass(frozen=True, config=STRICT)
class SecureSumMessage:
    """What all messages have. Their fields are text, numbers, bytes, tuples of text and bytes by device."""

    session: Annotated[bytes, Field(min_length=SESSION_BYTES, max_length=SESSION_BYTES)]

    def to_record(self) -> ConfigRecord:
        """As a Flower record: bytes by device become a list of names and one of values."""
        values: dict[str, Any] = {KIND: type(self).__name__}
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if isinstance(value, dict):
                values |= {f"{name}.names": sorted(value), f"{name}.values": [value[key] for key in sorted(value)]}
            else:
                values[name] = list(value) if isinstance(value, tuple) else value
        return ConfigRecord(values)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_record`. :class:`SecureSumError` for a record that is no such message."""
        if record.get(KIND) != cls.__name__:
            raise SecureSumError(f"message is {record.get(KIND)!r}, not {cls.__name__!r}: a step was left out")
        try:
            message = cls(**{field.name: _read(record, field.name) for field in fields(cls)})
        except ValidationError as error:
            name = error.errors()[0]["loc"][0]
            raise SecureSumError(
                f"field {name!r} of a {cls.__name__} message is missing or malformed: use the same version at both ends"
            ) from None
        if record.keys() != message.to_record().keys():
            raise SecureSumError(
                f"a {cls.__name__} record holds more than its message: use the same version at both ends"
            )
        return message


def _read(record: Mapping[str, Any], name: str) -> Any:
    """The value of a field; None, which no field is, for one that is missing or has names twice or without a value."""
    names, values = record.get(f"{name}.names"), record.get(f"{name}.values")
    if isinstance(names, list) and isinstance(values, list) and len(set(names)) == len(names) == len(values):
        return dict(zip(names, values, strict=True))
    value = record.get(name)
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True, config=STRICT)
class SecureSumSetup(SecureSumMessage):
    """What all agree on: who is invited, how many must remain, and the grid of the numbers."""

    devices: tuple[str, ...]
    threshold: int
    size: int  # numbers in each vector
    limit: float
    bits: int = 32
    noise: float = 0.0

    def __post_init__(self) -> None:
        count = len(self.devices)
        if count > MAX_DEVICES or len(set(self.devices)) < count:
            raise SecureSumError(f"a session has at most {MAX_DEVICES:,} different devices, not {count}")
        if not count < 2 * self.threshold <= 2 * count:
            raise SecureSumError(
                f"threshold {self.threshold} of {count} devices: it must be more than half, or a server could restore both "
                "secrets of a device from different halves, and at most all"
            )
        if not 1 <= self.size <= MAX_SIZE:
            raise SecureSumError(f"vectors of {self.size:,} numbers: 1 to {MAX_SIZE:,} can be summed")
        _ = self.grid

    def require(self, count: int, did: str) -> None:
        """Raise :class:`SecureSumError` if fewer devices than the threshold ``did`` their part: a sum would say too much."""
        if count < self.threshold:
            raise SecureSumError(
                f"{count} of {len(self.devices)} devices {did}, {self.threshold} are needed: no sum is formed; skip the round, "
                "or ask more devices"
            )

    @property
    def grid(self) -> FixedPointGrid:
        """How numbers become integers; each invited device contributes once at most."""
        return FixedPointGrid(self.limit, len(self.devices), self.bits, self.noise)


def default_threshold(devices: int) -> int:
    """More than two thirds: 30 % may drop out at a step, and less than a third may collude with a server that cheats."""
    return devices * 2 // 3 + 1


@dataclass(frozen=True, config=STRICT)
class AdvertiseKeys(SecureSumMessage):
    """A device's two public keys: for masks, and for the channels on which shares travel; signed, if it has a key to sign with."""

    device: str
    mask: PublicKey
    channel: PublicKey
    signature: Signature = b""


@dataclass(frozen=True, config=STRICT)
class Participants(SecureSumMessage):
    """The public keys of all who gave theirs in time, with the signatures of who signed."""

    mask: PublicKeys
    channel: PublicKeys
    signatures: Signatures = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, config=STRICT)
class ShareKeys(SecureSumMessage):
    """One device's shares, sealed for each other device."""

    device: str
    sealed: Sealed


@dataclass(frozen=True, config=STRICT)
class Inbox(SecureSumMessage):
    """The shares for one device, by sender. Who is a sender here is who the masks are made with."""

    device: str
    sealed: Sealed


@dataclass(frozen=True, config=STRICT)
class MaskedInput(SecureSumMessage):
    """A device's masked vector as little-endian words, and the commitment to its self-mask."""

    device: str
    words: bytes
    commitment: Annotated[bytes, Field(min_length=COMMITMENT_BYTES, max_length=COMMITMENT_BYTES)]


@dataclass(frozen=True, config=STRICT)
class CheckSurvivors(SecureSumMessage):
    """The devices whose masked vectors arrived, for each of them to sign."""

    devices: tuple[str, ...]


@dataclass(frozen=True, config=STRICT)
class ConsistencyCheck(SecureSumMessage):
    """One device's signature of the session and the survivors that it was shown."""

    device: str
    signature: Signature


@dataclass(frozen=True, config=STRICT)
class Survivors(SecureSumMessage):
    """The devices whose masked vectors arrived, with the signatures of who signed the list."""

    devices: tuple[str, ...]
    signatures: Signatures = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, config=STRICT)
class Unmask(SecureSumMessage):
    """One device's shares: of the self-mask's seed for who survived, of the mask key for who did not. Never both for one."""

    device: str
    seeds: Shares
    keys: Shares


@dataclass(frozen=True, config=STRICT)
class EndSession(SecureSumMessage):
    """The session goes on without the device that gets this, or not at all: it forgets its secrets."""
