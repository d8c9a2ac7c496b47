"""What shared updates tell an honest but curious server: the attackers of ``idiolect audit``, as functions of arrays.

| question | attackers | chance | module |
| --- | --- | --- | --- |
| are two updates of different rounds from one person? | three similarities | EER 50 % | :mod:`fl.privacy.audit.linkage` |
| what kind of person sent these updates? | a linear classifier on the other people | accuracy 50 % | :mod:`fl.privacy.audit.inference` |
| was this utterance trained on? | loss, loss against a reference model | AUC 50 % | :mod:`fl.privacy.audit.inference` |

What the server has to attack is one of the views of :mod:`fl.privacy.audit.views`; similarities are those of
:class:`Kernels`. None of these modules knows how updates came about or where they are kept. An attack that
fails here shows that *this* attacker fails; only the accounting of :mod:`fl.privacy.accounting` bounds all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fl.core.errors import IdiolectError
from fl.core.rng import derive_generator
from fl.privacy.dp import layer_of

Floats = NDArray[np.float64]
Labels = TypeVar("Labels")  # what an attacker is to tell
MIN_PEOPLE = 4  # two are held out of what an attacker learns from, and what is left must hold pairs too
SAMPLES = 1000  # of a bootstrap
CONFIDENCE = 0.95
REACHED_BY = 0.05  # the share of shufflings of which a finding says what they reach
_NOTHING = 1e-30  # of a squared norm: a layer that did not move


class AuditError(IdiolectError):
    """Updates, people or settings with which nothing can be measured."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval, all as shares of 1."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Finding:
    """What an attacker reaches, and what the same attacker reaches where there is nothing to find.

    For the latter what is asked for is shuffled (Ojala and Garriga 2010, JMLR 11): ``baseline`` is the mean over shufflings,
    ``reached`` what one in twenty does at least, ``p`` the share of shufflings that do as well or better. With few people
    single figures stray far from chance, and an interval alone is no proof that one did not.
    """

    rate: Estimate
    baseline: float
    reached: float
    p: float


def against(
    count: int,
    statistic: Callable[[Labels, Floats], float | None],
    labels: Labels,
    shuffled: Iterable[Labels],
    *,
    seed: int,
    low_wins: bool = False,
) -> Finding:
    """``statistic`` of the true ``labels`` over ``count`` people (:func:`over_people`) beside its values of ``shuffled`` ones.

    ``statistic`` takes labels and how often each person counts. Error rates are won by low values (``low_wins``); a shuffling
    without a value is left out.
    """
    rate = over_people(count, partial(statistic, labels), seed=seed)
    values = (statistic(other, np.ones(count)) for other in shuffled)
    found = np.array([value for value in values if value is not None])
    sign = -1.0 if low_wins else 1.0
    as_good = int((sign * found >= sign * rate.value - 1e-12).sum())
    reached = float(np.quantile(found, REACHED_BY if low_wins else 1 - REACHED_BY))
    return Finding(rate, float(found.mean()), reached, (as_good + 1) / (len(found) + 1))


def shuffled_within(groups: np.ndarray, values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """``values`` ``(n,)``, shuffled among the places of each group of ``groups`` ``(n,)``."""
    shuffled = values.copy()
    for group in np.unique(groups):
        places = np.flatnonzero(groups == group)
        shuffled[places] = values[generator.permutation(places)]
    return shuffled


def check_people(count: int, what: str) -> None:
    """Raise :class:`AuditError` for fewer than four people."""
    if count < MIN_PEOPLE:
        raise AuditError(
            f"{what} of {count} people cannot be measured: an attacker learns from those who are left out of the test; "
            f"give at least {MIN_PEOPLE} devices"
        )


def over_people(count: int, statistic: Callable[[Floats], float | None], *, seed: int) -> Estimate:
    """``statistic`` of everybody once, with its percentile interval over resampled people.

    ``statistic`` takes how often each of ``count`` people counts, ``(count,)``, and may return None for a draw that it has no
    value for. People are resampled whole, with all that is theirs, since what one person sent in two rounds is not
    independent (the subset bootstrap of Bolle, Ratha and Pankanti 2004, CVIU 93(1)).
    """
    value = statistic(np.ones(count))
    if value is None:
        raise AuditError("nothing can be measured: there is nothing on one side of the comparison")
    generator = derive_generator(seed, "audit bootstrap")
    drawn = (statistic(generator.multinomial(count, np.full(count, 1 / count)).astype(float)) for _ in range(SAMPLES))
    found = [one for one in drawn if one is not None]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(found, [tail, 1 - tail]) if found else (value, value)
    return Estimate(float(value), float(low), float(high))


@dataclass(frozen=True)
class Kernels:
    """Inner products of all recorded updates, layer by layer: all that similarities and linear classifiers need of them.

    ``grams`` ``(layers, rows, rows)``; row i is the update of ``people[i]`` in ``rounds[i]``. An update has a million numbers
    and there are some hundreds of updates, so everything is done with their Gram matrices.
    """

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
