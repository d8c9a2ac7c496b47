"""Hostile devices for tests and studies: sound replies whose values are made to harm. Pure functions of replies and a seed.

An attack replaces the tensors of the ``hostile`` devices and nothing else; ``before`` are the shared tensors of the round's start.
Swapped labels are an attack on data, before training: :mod:`fl.algorithms.attacks`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fl.core.errors import ConfigError
from fl.core.rng import derive_generator, derive_seed
from strategies.replies import DeviceReply, Replies

Tensors = Mapping[str, np.ndarray]
Attack = Callable[[Tensors, Tensors, Tensors, np.random.Generator], dict[str, np.ndarray]]
SCALE = 100.0


def sign_flip(update: Tensors, mean: Tensors, common: Tensors, own: np.random.Generator) -> dict[str, np.ndarray]:
    """The opposite of what the device learned."""
    return {name: -values for name, values in update.items()}


def scaled(update: Tensors, mean: Tensors, common: Tensors, own: np.random.Generator) -> dict[str, np.ndarray]:
    """What the device learned, :data:`SCALE` times as far (model replacement, arXiv 1807.00459)."""
    return {name: SCALE * values for name, values in update.items()}


def random_noise(update: Tensors, mean: Tensors, common: Tensors, own: np.random.Generator) -> dict[str, np.ndarray]:
    """Gaussian noise of the norm that the device's own update has."""
    return {name: _noise(values, own) for name, values in update.items()}


def collusion(update: Tensors, mean: Tensors, common: Tensors, own: np.random.Generator) -> dict[str, np.ndarray]:
    """All hostile devices send the same: away from the mean of the honest, and a common noise to be alike in."""
    return {name: common[name] - values for name, values in mean.items()}


ATTACKS: dict[str, Attack] = {
    "sign-flip": sign_flip,
    "scale": scaled,
    "random": random_noise,
    "collusion": collusion,
}


def corrupted(
    replies: Sequence[DeviceReply], before: Tensors, attack: str, hostile: Collection[str], seed: int
) -> tuple[DeviceReply, ...]:
    """``replies`` with those of ``hostile`` devices attacked. Raises :class:`ConfigError` for an unknown attack."""
    if attack not in ATTACKS:
        raise ConfigError(f"unknown attack {attack!r}: known are {', '.join(ATTACKS)}")
    updates = {r.device_id: {n: v - before[n] for n, v in (r.shared or {}).items()} for r in replies}
    honest = [updates[r.device_id] for r in replies if r.device_id not in hostile] or list(updates.values())
    mean = {name: np.mean([update[name] for update in honest], axis=0) for name in honest[0]}
    alike = derive_generator(seed, attack)
    common = {name: 0.1 * _noise(values, alike) for name, values in mean.items()}
    result = []
    for reply in replies:
        if reply.device_id in hostile:
            own = derive_generator(seed, attack, reply.device_id)
            bad = ATTACKS[attack](updates[reply.device_id], mean, common, own)
            shared = {n: np.asarray(before[n] + bad[n], v.dtype) for n, v in (reply.shared or {}).items()}
            reply = replace(reply, shared=shared)
        result.append(reply)
    return tuple(result)


def _noise(values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    noise = generator.standard_normal(values.shape)
    return np.asarray(noise * (np.linalg.norm(values) / max(float(np.linalg.norm(noise)), 1e-30)))


@dataclass(frozen=True)
class Attacker:
    """A study's hostile devices: their sound replies are replaced before the strategy sees them, in every round."""

    attack: str
    hostile: frozenset[str]
    seed: int

    def corrupt(self, found: Replies, before: Tensors, arm: str, server_round: int) -> Replies:
        """The replies of one round, attacked; only where each device's own update is there."""
        if not found.sound or found.sound[0].shared is None:
            return found
        seed = derive_seed(self.seed, arm, server_round, "attack")
        replies = corrupted(found.sound, before, self.attack, self.hostile, seed)
        return Replies(replies, found.left_out, replies)
