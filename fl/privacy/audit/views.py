"""What an honest but curious server sees of a round under a protection: the same recorded updates, protected in each way.

| protection | what stands for one device's update |
| --- | --- |
| ``plain`` | the update |
| ``clip`` | the update, clipped: what the server itself sees where the *server* adds the noise |
| ``share:Z`` | clipped, with its share Z C / sqrt(n) of distributed noise: what is left if secure sums are left out |
| ``local:Z`` | clipped, with all the noise, Z C, added at the device |
| ``secure-sum`` | a masked vector; and the sum of all |
| ``noisy-sum:Z`` | only the sum, with noise Z C: distributed noise in secure sums; or what all others see of noise at the server |
| ``fp16``, ``int8``, ``top-k:0.1``, ... | the update after a codec of :mod:`fl.codecs.table` |

They are made by the functions that protect real runs, :mod:`fl.privacy.dp`, :mod:`fl.privacy.secure_sum` and
:mod:`fl.codecs.table`, with seeded keys so that an audit is deterministic.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import numpy as np
from numpy.typing import NDArray

from fl.codecs.base import Codec, CompressionError
from fl.codecs.table import make_codec
from fl.codecs.tensors import decode_all, encode_all
from fl.privacy.audit.attackers import AuditError
from fl.privacy.dp import Update, add_noise, clip, clipped_sum, noise_share, norm
from fl.privacy.randomness import key_from_seed
from fl.privacy.secure_sum.device import SecureSumClient
from fl.privacy.secure_sum.keys import RandomBytes
from fl.privacy.secure_sum.messages import SESSION_BYTES, MaskedInput, SecureSumSetup, default_threshold
from fl.privacy.secure_sum.server import SecureSumServer
from fl.privacy.secure_sum.vector import flatten, unflatten

DEFAULT = "plain,clip,int8,share:1,local:0.001,local:0.01,local:0.1,secure-sum,noisy-sum:0.1,noisy-sum:1"
Updates = Mapping[str, Update]
Seed = tuple[str | int, ...]


@dataclass(frozen=True)
class ServerView:
    """What the server sees of a round: ``each`` device's vector (empty if there is none), or only the ``mean`` of the sum.

    ``shrink`` is what an attacker multiplies a noisy vector with to come nearest to the update, knowing the noise and the
    clipping norm (the Wiener filter): C^2 / (C^2 + noise^2 * numbers).
    """

    each: Updates = field(default_factory=dict)
    mean: Mapping[str, np.ndarray] | None = None
    shrink: float = 1.0

    def guess(self, device: str) -> Update:
        """The attacker's best guess of one device's update; of a sum, the mean."""
        seen: Mapping[str, np.ndarray] = self.each[device] if self.mean is None else self.mean
        return {name: (value * self.shrink).astype(np.float32) for name, value in seen.items()}


Protection = Callable[[Updates, float, Seed], ServerView]  # updates of a round, clipping norm, what seeds the keys


def median_norm(rounds: Iterable[Updates]) -> float:
    """The clipping norm of an audit: the median norm of all updates, so that half of them are clipped."""
    found = float(np.median([norm(update) for updates in rounds for update in updates.values()]))
    if not found > 0:
        raise AuditError("the recorded updates are zero: nothing was trained; raise local-steps or learning-rate")
    return found


def make_protection(name: str) -> Protection:
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
        return partial(_NOISY[kind], multiplier)
    try:
        return partial(_encoded, make_codec(name))
    except CompressionError as error:
        known = ", ".join([*_PLAIN, *(f"{noisy}:Z" for noisy in _NOISY)])
        raise AuditError(f"protection {name!r} is unknown: use {known} or a codec ({error})") from error


def _shapes(updates: Updates) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in next(iter(updates.values())).items()}


def _wiener(deviation: float, bound: float, updates: Updates) -> float:
    numbers = sum(map(math.prod, _shapes(updates).values()))
    return bound**2 / (bound**2 + deviation**2 * numbers)


def _encoded(codec: Codec, updates: Updates, bound: float, seed: Seed) -> ServerView:
    shapes = _shapes(updates)
    return ServerView({d: decode_all(encode_all(update, codec), shapes, codec) for d, update in updates.items()})


def _noisy(deviation: float, updates: Updates, bound: float, seed: Seed) -> ServerView:
    each: dict[str, Update] = {}
    for device, update in updates.items():
        noisy = add_noise(clip(update, bound), deviation, key_from_seed(*seed, device))
        each[device] = {name: value.astype(np.float32) for name, value in noisy.items()}
    return ServerView(each, shrink=_wiener(deviation, bound, updates))


def _noisy_sum(multiplier: float, updates: Updates, bound: float, seed: Seed) -> ServerView:
    sums = clipped_sum(((1.0, updates[device]) for device in sorted(updates)), bound)
    noisy = add_noise(sums, multiplier * bound, key_from_seed(*seed, "sum"))
    mean = {name: value / len(updates) for name, value in noisy.items()}
    return ServerView(mean=mean, shrink=_wiener(multiplier * bound / len(updates), bound, updates))


def run_session(
    setup: SecureSumSetup, vectors: Mapping[str, NDArray[np.floating]], random_bytes: Callable[[str], RandomBytes]
) -> tuple[dict[str, MaskedInput], NDArray[np.float64]]:
    """A whole secure sum of ``vectors`` ``(size,)`` by device: each one's masked vector, and the sum; nobody drops out.

    ``random_bytes`` gives a device its source of secrets: a seeded one makes the session deterministic.
    """
    server = SecureSumServer(setup)
    clients = {device: SecureSumClient(device, setup, random_bytes(device)) for device in setup.devices}
    for client in clients.values():
        server.add(client.advertise())
    participants = server.participants()
    for client in clients.values():
        server.add(client.share(participants))
    masked = {device: client.mask(server.inbox(device), vectors[device]) for device, client in clients.items()}
    for message in masked.values():
        server.add(message)
    survivors = server.survivors()
    for client in clients.values():
        server.add(client.reveal(survivors))
    return masked, server.total()


def _secure(updates: Updates, bound: float, seed: Seed) -> ServerView:
    """Each device's vector is what it sends in the third step, as signed numbers."""
    shapes = _shapes(updates)
    vectors = {device: flatten(clip(update, bound), 1.0, bound) for device, update in updates.items()}
    devices, size = tuple(sorted(updates)), len(next(iter(vectors.values())))
    session = key_from_seed(*seed, "session")[:SESSION_BYTES]
    setup = SecureSumSetup(session, devices, default_threshold(len(devices)), size, bound)
    masked, total = run_session(setup, vectors, lambda device: _seeded(*seed, "client", device))
    each: dict[str, Update] = {}
    for device, message in masked.items():
        words, _ = unflatten(np.frombuffer(message.words, np.int32).astype(np.float64), shapes, bound)
        each[device] = {name: value.astype(np.float32) for name, value in words.items()}
    sums, weight = unflatten(total, shapes, bound)
    return ServerView(each, {name: (value / weight).astype(np.float32) for name, value in sums.items()})


def _seeded(*parts: str | int) -> RandomBytes:
    """A deterministic source of at most 32 bytes a call, the length of every seed and nonce."""
    calls = count()
    return lambda size: key_from_seed(*parts, next(calls), 0)[:size]


_PLAIN: dict[str, Protection] = {
    "plain": lambda updates, bound, seed: ServerView(updates),
    "clip": lambda updates, bound, seed: ServerView({d: clip(update, bound) for d, update in updates.items()}),
    "secure-sum": _secure,
}
_NOISY: dict[str, Callable[[float, Updates, float, Seed], ServerView]] = {
    "share": lambda multiplier, updates, bound, seed: _noisy(
        noise_share(multiplier, bound, len(updates)), updates, bound, (*seed, "share")
    ),
    "local": lambda multiplier, updates, bound, seed: _noisy(multiplier * bound, updates, bound, (*seed, "local")),
    "noisy-sum": _noisy_sum,
}
