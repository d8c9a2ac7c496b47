"""What an honest but curious server sees of a round under a protection: the same recorded updates, protected in each way.

| protection | what stands for one device's update |
| --- | --- |
| ``plain`` | the update |
| ``clip`` | the update, clipped: all that noise which the *server* adds changes for the server itself |
| ``share:Z`` | clipped, with its share Z C / sqrt(n) of distributed noise: what is left if secure sums are left out |
| ``local:Z`` | clipped, with all the noise, Z C, added at the device |
| ``secure-sum`` | a masked vector; and the sum of all |
| ``noisy-sum:Z`` | only the sum, with noise Z C: distributed noise in secure sums; or what all others see of noise at the server |
| ``fp16``, ``int8``, ``top-k:0.1``, ... | the update after a codec of :mod:`fl.codecs.compression` |

They are made by the functions that protect real runs, :mod:`fl.privacy.dp`, :mod:`fl.privacy.secure_sum.server` and
:mod:`fl.codecs.compression`, with seeded keys so that an audit comes again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from fl.codecs.compression import CompressionError, decode_all, encode_all, make_codec
from fl.privacy.audit.attackers import AuditError
from fl.privacy.dp import DistributedNoise, Update, add_noise, clip, noisy_mean, norm, privatize_locally
from fl.privacy.randomness import key_from_seed
from fl.privacy.secure_sum.messages import SESSION_BYTES, default_threshold
from fl.privacy.secure_sum.server import Client, Server, Setup, flatten, unflatten

DEFAULT = "plain,clip,int8,share:1,local:0.001,local:0.01,local:0.1,secure-sum,noisy-sum:0.1,noisy-sum:1"
Updates = Mapping[str, Update]


@dataclass(frozen=True)
class Seen:
    """What the server sees of a round: ``each`` device's vector (empty if there is none), or only the ``mean`` of the sum.

    ``shrink`` is what an attacker multiplies a noisy vector with to come nearest to the update, knowing the noise and the
    clipping norm (the Wiener filter): C^2 / (C^2 + noise^2 * numbers).
    """

    each: Updates = field(default_factory=dict)
    mean: Update | None = None
    shrink: float = 1.0

    def guess(self, device: str) -> Update:
        """The attacker's best guess of one device's update; of a sum, the mean."""
        if self.mean is not None:
            return self.mean
        return {name: (value * self.shrink).astype(np.float32) for name, value in self.each[device].items()}

    @property
    def linkable(self) -> bool:
        """Whether there is a vector of each device at all."""
        return bool(self.each)


View = Callable[[Updates, float, tuple[str | int, ...]], Seen]  # updates of a round, clipping norm, what seeds the keys


def median_norm(rounds: Iterable[Updates]) -> float:
    """The clipping norm of an audit: the median norm of all updates, so that half of them are clipped."""
    found = float(np.median([norm(update) for updates in rounds for update in updates.values()]))
    if not found > 0:
        raise AuditError("the recorded updates are zero: nothing was trained; raise local-steps or learning-rate")
    return found


def make_view(name: str) -> View:
    """The protection of a name as in the table above; :class:`AuditError` lists the known ones."""
    kind, colon, argument = name.partition(":")
    if kind in _PLAIN and not colon:
        return _PLAIN[kind]
    if kind in _NOISY and colon:
        try:
            multiplier = float(argument)
        except ValueError:
            multiplier = math.nan
        if not 0 < multiplier < math.inf:
            raise AuditError(f"protection {name!r}: the noise multiplier {argument!r} must be a number above 0")
        maker = _NOISY[kind]
        return lambda updates, bound, seed: maker(updates, bound, seed, multiplier)
    try:
        codec = make_codec(name)
    except CompressionError as error:
        known = ", ".join([*_PLAIN, *(f"{noisy}:Z" for noisy in _NOISY)])
        raise AuditError(f"protection {name!r} is unknown: use {known} or a codec ({error})") from error

    def encoded(updates: Updates, bound: float, seed: tuple[str | int, ...]) -> Seen:
        shapes = {key: value.shape for key, value in next(iter(updates.values())).items()}
        return Seen(
            {device: decode_all(encode_all(update, codec), shapes, codec) for device, update in updates.items()}
        )

    return encoded


def _plain(updates: Updates, bound: float, seed: tuple[str | int, ...]) -> Seen:
    return Seen(updates)


def _clipped(updates: Updates, bound: float, seed: tuple[str | int, ...]) -> Seen:
    return Seen({device: clip(update, bound) for device, update in updates.items()})


def _wiener(noise: float, bound: float, updates: Updates) -> float:
    numbers = sum(value.size for value in next(iter(updates.values())).values())
    return bound**2 / (bound**2 + noise**2 * numbers)


def _local(updates: Updates, bound: float, seed: tuple[str | int, ...], multiplier: float) -> Seen:
    noisy = {
        device: privatize_locally(update, bound, multiplier, key_from_seed(*seed, "local", device))
        for device, update in updates.items()
    }
    return Seen(noisy, shrink=_wiener(multiplier * bound, bound, updates))


def _share(updates: Updates, bound: float, seed: tuple[str | int, ...], multiplier: float) -> Seen:
    share = DistributedNoise.planned(multiplier, bound, len(updates)).share
    noisy = {}
    for device, update in updates.items():
        values = add_noise(clip(update, bound), share, key_from_seed(*seed, "share", device))
        noisy[device] = {name: value.astype(np.float32) for name, value in values.items()}
    return Seen(noisy, shrink=_wiener(share, bound, updates))


def _secure(updates: Updates, bound: float, seed: tuple[str | int, ...]) -> Seen:
    """A whole session of the protocol; each device's vector is what it sends in the third step, as signed numbers."""
    devices = tuple(sorted(updates))
    shapes = {name: value.shape for name, value in updates[devices[0]].items()}
    size = sum(math.prod(shape) for shape in shapes.values()) + 1
    session = key_from_seed(*seed, "session")[:SESSION_BYTES]
    setup = Setup(session, devices, default_threshold(len(devices)), size, bound, 32, 0.0)
    server = Server(setup)
    clients = {device: Client(device, setup, _seeded(*seed, "client", device)) for device in devices}
    for client in clients.values():
        server.add(client.advertise())
    roster = server.roster()
    for client in clients.values():
        server.add(client.share(roster))
    each: dict[str, Update] = {}
    for device, client in clients.items():
        message = client.mask(server.inbox(device), flatten(clip(updates[device], bound), 1.0, bound))
        server.add(message)
        words = np.frombuffer(message.words, np.int32).astype(np.float64)
        vector, _ = unflatten(words, shapes, bound)
        each[device] = {name: value.astype(np.float32) for name, value in vector.items()}
    survivors = server.survivors()
    for client in clients.values():
        server.add(client.reveal(survivors))
    sums, weight = unflatten(server.total(), shapes, bound)
    return Seen(each, {name: (value / weight).astype(np.float32) for name, value in sums.items()})


def _seeded(*parts: str | int) -> Callable[[int], bytes]:
    """Bytes that look random but come again: each call takes the next ones."""
    calls = iter(range(2**31))

    def take(size: int) -> bytes:
        call = next(calls)
        blocks = (key_from_seed(*parts, call, block) for block in range(-(-size // 32)))
        return b"".join(blocks)[:size]

    return take


def _noisy_sum(updates: Updates, bound: float, seed: tuple[str | int, ...], multiplier: float) -> Seen:
    devices = sorted(updates)
    mean = noisy_mean(
        ((1.0, updates[device]) for device in devices),
        bound=bound,
        noise_multiplier=multiplier,
        total_weight=float(len(devices)),
        key=key_from_seed(*seed, "sum"),
    )
    shrink = _wiener(multiplier * bound / len(devices), bound, updates)
    return Seen(mean={name: (value * shrink).astype(np.float32) for name, value in mean.items()})


_PLAIN: dict[str, View] = {"plain": _plain, "clip": _clipped, "secure-sum": _secure}
_NOISY: dict[str, Callable[[Updates, float, tuple[str | int, ...], float], Seen]] = {
    "share": _share,
    "local": _local,
    "noisy-sum": _noisy_sum,
}
