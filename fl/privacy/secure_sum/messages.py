"""The messages of a secure sum, each a frozen dataclass that turns into a Flower record and back.

| step | device to server | server to device |
| --- | --- | --- |
| begin | | :class:`Setup` |
| 1 | :class:`PublicKeys` | :class:`Roster` |
| 2 | :class:`Shares` | :class:`Inbox` |
| 3 | :class:`Masked` | :class:`Survivors` |
| 4 | :class:`Reveal` | |

Every message carries the session, 16 random bytes of the server, so that none of an earlier round can be played again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self, get_type_hints

from flwr.app import ConfigRecord

from fl.privacy.secure_sum.keys import PUBLIC_BYTES, SecureSumError
from fl.privacy.secure_sum.vector import Grid

KIND = "kind"
SESSION_BYTES = 16
MAX_DEVICES = 4096  # shares grow with the square of it
MAX_SIZE = 2**28  # numbers in a vector: 1 GiB of 32-bit words


@dataclass(frozen=True)
class Content:
    """What all messages have: the session, and the way to a record and back."""

    session: bytes

    def to_record(self) -> ConfigRecord:
        """As a Flower record; a mapping by device becomes a list of names and a list of values."""
        values: dict[str, Any] = {KIND: type(self).__name__}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, dict):
                values[f"{field.name}.names"] = sorted(value)
                values[f"{field.name}.values"] = [value[name] for name in sorted(value)]
            else:
                values[field.name] = list(value) if isinstance(value, tuple) else value
        return ConfigRecord(values)

    @classmethod
    def from_record(cls, record: Mapping[str, object]) -> Self:
        """The inverse of :meth:`to_record`. :class:`SecureSumError` for a record that is no such message."""
        if record.get(KIND) != cls.__name__:
            raise SecureSumError(
                f"message is {record.get(KIND)!r} where {cls.__name__!r} is expected: a step was left out"
            )
        hints = get_type_hints(cls)
        values: dict[str, Any] = {}
        for field in fields(cls):
            values[field.name] = _read(record, field.name, hints[field.name], cls.__name__)
        return cls(**values)


def _read(record: Mapping[str, object], name: str, hint: Any, kind: str) -> object:
    if hint in (str, int, float, bytes):
        value = record.get(name)
        if type(value) is hint:
            return value
    elif hint == tuple[str, ...]:
        names = record.get(name)
        if _is_names(names):
            return tuple(names)  # type: ignore[arg-type]
    else:
        names, found = record.get(f"{name}.names"), record.get(f"{name}.values")
        if _is_names(names) and isinstance(found, list) and all(isinstance(value, bytes) for value in found):
            assert isinstance(names, list)
            if len(names) == len(found):
                return dict(zip(names, found, strict=True))
    raise SecureSumError(
        f"field {name!r} of a {kind} message is missing or malformed: use the same version at both ends"
    )


def _is_names(value: object) -> bool:
    """A list of different device ids, not too long."""
    if not isinstance(value, list) or len(value) > MAX_DEVICES:
        return False
    return all(isinstance(name, str) for name in value) and len(set(value)) == len(value)


@dataclass(frozen=True)
class Setup(Content):
    """What all agree on: who is invited, how many must remain, and the grid of the numbers."""

    devices: tuple[str, ...]
    threshold: int
    size: int  # numbers in each vector
    limit: float
    bits: int = 32
    noise: float = 0.0

    def __post_init__(self) -> None:
        count = len(self.devices)
        if len(self.session) != SESSION_BYTES or count > MAX_DEVICES or len(set(self.devices)) < count:
            raise SecureSumError(
                f"a session has 16 random bytes and at most {MAX_DEVICES:,} different devices, not {count}"
            )
        if not count < 2 * self.threshold <= 2 * count:
            raise SecureSumError(
                f"threshold {self.threshold} of {count} devices: it must be more than half, or a server could restore both "
                "secrets of a device from different halves, and at most all"
            )
        if not 1 <= self.size <= MAX_SIZE:
            raise SecureSumError(f"vectors of {self.size:,} numbers: 1 to {MAX_SIZE:,} can be summed")
        _ = self.grid

    @property
    def grid(self) -> Grid:
        """How numbers become integers; each invited device contributes once at most."""
        return Grid(self.limit, len(self.devices), self.bits, self.noise)


def default_threshold(devices: int) -> int:
    """More than two thirds: 30 % may drop out at a step, and less than a third may work with a server that cheats."""
    return devices * 2 // 3 + 1


@dataclass(frozen=True)
class PublicKeys(Content):
    """A device's two public keys: for masks, and for the channels on which shares travel."""

    device: str
    mask: bytes
    channel: bytes

    def __post_init__(self) -> None:
        if not len(self.mask) == len(self.channel) == PUBLIC_BYTES:
            raise SecureSumError(f"public keys of {self.device!r} do not have {PUBLIC_BYTES} bytes")


@dataclass(frozen=True)
class Roster(Content):
    """The public keys of all who gave theirs in time."""

    mask: dict[str, bytes]
    channel: dict[str, bytes]


@dataclass(frozen=True)
class Shares(Content):
    """One device's shares, sealed for each other device."""

    device: str
    sealed: dict[str, bytes]


@dataclass(frozen=True)
class Inbox(Content):
    """The shares for one device, by sender. Who is a sender here is who the masks are made with."""

    device: str
    sealed: dict[str, bytes]


@dataclass(frozen=True)
class Masked(Content):
    """A device's masked vector as little-endian words, and the commitment to its self-mask."""

    device: str
    words: bytes
    commitment: bytes


@dataclass(frozen=True)
class Survivors(Content):
    """The devices whose masked vectors arrived."""

    devices: tuple[str, ...]


@dataclass(frozen=True)
class Reveal(Content):
    """One device's shares: of the self-mask's seed for who survived, of the mask key for who did not. Never both for one."""

    device: str
    seeds: dict[str, bytes]
    keys: dict[str, bytes]
