"""The messages of a secure sum, and how a dataclass becomes a Flower record and back.

| round | device to server | server to device |
| --- | --- | --- |
| begin | | :class:`SecureSumSetup` |
| 1 | :class:`AdvertiseKeys` | :class:`Participants` |
| 2 | :class:`ShareKeys` | :class:`Inbox` |
| 3 | :class:`MaskedInput` | :class:`Survivors` |
| 4 | :class:`Unmask` | |

Every message carries the session, 16 random bytes of the server, so that none of an earlier round can be replayed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self, TypeGuard, get_type_hints

from flwr.app import ConfigRecord

from fl.privacy.secure_sum.keys import PUBLIC_BYTES, SecureSumError
from fl.privacy.secure_sum.vector import FixedPointGrid

KIND = "kind"
SESSION_BYTES = 16
MAX_DEVICES = 4096  # shares grow with the square of it
MAX_SIZE = 2**28  # numbers in a vector: 1 GiB of 32-bit words


class Recordable:
    """A dataclass whose constructor's fields are text, numbers, bytes, tuples of them, bytes by device, or such dataclasses."""

    def to_record(self) -> ConfigRecord:
        """As a Flower record: bytes by device become a list of names and one of values, a dataclass its fields with a prefix."""
        values: dict[str, Any] = {KIND: type(self).__name__}
        for name in _hints(type(self)):
            value = getattr(self, name)
            if isinstance(value, dict):
                values |= {f"{name}.names": sorted(value), f"{name}.values": [value[key] for key in sorted(value)]}
            elif isinstance(value, Recordable):
                values |= {f"{name}.{key}": part for key, part in value.to_record().items()}
            else:
                values[name] = list(value) if isinstance(value, tuple) else value
        return ConfigRecord(values)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_record`. :class:`SecureSumError` for a record that is no such dataclass."""
        if record.get(KIND) != cls.__name__:
            raise SecureSumError(
                f"message is {record.get(KIND)!r} where {cls.__name__!r} is expected: a step was left out"
            )
        return cls(**{name: _read(record, name, hint, cls.__name__) for name, hint in _hints(cls).items()})


def _hints(kind: type[Any]) -> dict[str, Any]:
    """The types of a dataclass's fields, without those that its constructor does not take."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind) if field.init}


def _read(record: Mapping[str, Any], name: str, hint: Any, kind: str) -> object:
    value, keys = record.get(name), record.get(f"{name}.names")
    if hint in (str, int, float, bytes):
        if type(value) is hint:  # a bool is no int, and an int no float
            return value
    elif hint in (tuple[str, ...], tuple[bytes, ...]):
        if _is_list(value, str if hint == tuple[str, ...] else bytes):
            return tuple(value)
    elif hint == dict[str, bytes]:
        values = record.get(f"{name}.values")
        if _is_list(keys, str) and _is_list(values, bytes, distinct=False) and len(keys) == len(values):
            return dict(zip(keys, values, strict=True))
    else:
        prefix = f"{name}."
        inner = {key.removeprefix(prefix): part for key, part in record.items() if key.startswith(prefix)}
        return hint.from_record(inner)
    raise SecureSumError(
        f"field {name!r} of a {kind} message is missing or malformed: use the same version at both ends"
    )


def _is_list(value: object, kind: type, *, distinct: bool = True) -> TypeGuard[list[Any]]:
    """Whether ``value`` is a list with entries of one type, not too long, and none of them twice."""
    if not isinstance(value, list) or len(value) > MAX_DEVICES or not all(type(entry) is kind for entry in value):
        return False
    return not distinct or len(set(value)) == len(value)


@dataclass(frozen=True)
class SecureSumMessage(Recordable):
    """What all messages have."""

    session: bytes


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class AdvertiseKeys(SecureSumMessage):
    """A device's two public keys: for masks, and for the channels on which shares travel."""

    device: str
    mask: bytes
    channel: bytes

    def __post_init__(self) -> None:
        if not len(self.mask) == len(self.channel) == PUBLIC_BYTES:
            raise SecureSumError(f"public keys of {self.device!r} do not have {PUBLIC_BYTES} bytes")


@dataclass(frozen=True)
class Participants(SecureSumMessage):
    """The public keys of all who gave theirs in time."""

    mask: dict[str, bytes]
    channel: dict[str, bytes]


@dataclass(frozen=True)
class ShareKeys(SecureSumMessage):
    """One device's shares, sealed for each other device."""

    device: str
    sealed: dict[str, bytes]


@dataclass(frozen=True)
class Inbox(SecureSumMessage):
    """The shares for one device, by sender. Who is a sender here is who the masks are made with."""

    device: str
    sealed: dict[str, bytes]


@dataclass(frozen=True)
class MaskedInput(SecureSumMessage):
    """A device's masked vector as little-endian words, and the commitment to its self-mask."""

    device: str
    words: bytes
    commitment: bytes


@dataclass(frozen=True)
class Survivors(SecureSumMessage):
    """The devices whose masked vectors arrived."""

    devices: tuple[str, ...]


@dataclass(frozen=True)
class Unmask(SecureSumMessage):
    """One device's shares: of the self-mask's seed for who survived, of the mask key for who did not. Never both for one."""

    device: str
    seeds: dict[str, bytes]
    keys: dict[str, bytes]
