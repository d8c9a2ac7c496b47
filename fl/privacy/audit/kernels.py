"""Inner products of all recorded updates, layer by layer: all that similarities and linear classifiers need of them.

An update has a million numbers and there are some hundreds of updates, so everything is done with their Gram matrices
``(updates, updates)``, one for each layer of the adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fl.privacy.audit.attackers import AuditError, Floats
from fl.privacy.dp import layer_of

_NOTHING = 1e-30  # of a squared norm: a layer that did not move


@dataclass(frozen=True)
class Kernels:
    """``grams`` ``(layers, rows, rows)``; row i is the update of ``people[i]`` in ``rounds[i]``."""

    people: tuple[str, ...]
    rounds: tuple[int, ...]
    layers: tuple[str, ...]
    grams: Floats

    @classmethod
    def of(cls, rounds: Mapping[int, Mapping[str, Mapping[str, np.ndarray]]]) -> Kernels:
        """Of updates by round, person and tensor. :class:`AuditError` unless all have the same tensors."""
        rows = [(number, person) for number in sorted(rounds) for person in sorted(rounds[number])]
        updates = [rounds[number][person] for number, person in rows]
        if len({number for number, _ in rows}) < 2:
            raise AuditError("updates of one round alone cannot be linked: record two rounds or more")
        shapes = {name: value.shape for name, value in updates[0].items()}
        if any({name: value.shape for name, value in update.items()} != shapes for update in updates):
            raise AuditError("the recorded updates hold other tensors than each other: they are of several runs")
        layers = tuple(sorted({layer_of(name) for name in shapes}))
        grams = np.zeros((len(layers), len(rows), len(rows)))
        for name in shapes:
            values = np.stack([np.asarray(update[name], np.float32).reshape(-1) for update in updates])
            grams[layers.index(layer_of(name))] += values @ values.T
        return cls(tuple(person for _, person in rows), tuple(number for number, _ in rows), layers, grams)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Everybody, sorted."""
        return tuple(sorted(set(self.people)))

    @cached_property
    def persons(self) -> np.ndarray:
        """Index into :attr:`names` of each row ``(rows,)``."""
        return np.array([self.names.index(person) for person in self.people])

    def whole(self) -> Floats:
        """Cosines of whole updates as they are, ``(rows, rows)``."""
        return _cosines(self.grams.sum(axis=0))

    @cached_property
    def by_layer(self) -> Floats:
        """Cosines in each layer after taking off the round's mean update, ``(layers, rows, rows)``.

        The direction that all people of a round have in common does not identify anyone, and layers with large updates would
        dominate the others.
        """
        rounds = np.array(self.rounds)
        same = (rounds[:, None] == rounds[None, :]).astype(float)
        centre = np.eye(len(rounds)) - same / same.sum(axis=1, keepdims=True)
        return np.stack([_cosines(centre @ gram @ centre.T) for gram in self.grams])


def _cosines(gram: Floats) -> Floats:
    """The Gram matrix of unit vectors; a vector of zeros is like nothing."""
    squares = np.clip(np.diag(gram), 0.0, None)
    inverse = np.divide(1.0, np.sqrt(squares), out=np.zeros_like(squares), where=squares > _NOTHING)
    return np.asarray(gram * inverse[:, None] * inverse[None, :])
