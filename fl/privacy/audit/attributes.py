"""Attribute inference: what kind of person sent these updates? A linear classifier that learnt from other people's updates.

Melis et al. (IEEE S&P 2019, arXiv 1805.04049, section 4.3) train a classifier on updates of data with and without a property;
here a property belongs to a person, so the attacker is taught with the updates of all people but one (for example their own
recordings, or people who told) and asked about that one: leave-one-person-out. A person is the mean of their updates over
the rounds, each layer centred and normalised as in :class:`~fl.privacy.audit.attackers.Kernels`; the classifier is ridge regression on
the classes weighted to equal size, which is Fisher's discriminant with a regularised covariance (Friedman 1989, JASA 84).

Chance is 50 % for balanced accuracy, but with few people single figures stray far from it, so the same attacker is also asked
about shuffled labels: the permutation baseline.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from fl.core.rng import derive_generator
from fl.privacy.audit.attackers import AuditError, Finding, Floats, Kernels, against, check_people

PERMUTATIONS = 1000
RIDGE = 1.0  # times the mean diagonal of the kernel
MIN_OF_CLASS = 2  # one to be asked about, one to learn from


def person_kernel(kernels: Kernels) -> Floats:
    """Inner products of people, ``(people, people)``: of their mean updates, centred over people."""
    between = kernels.by_layer.mean(axis=0)
    member = (kernels.persons[None, :] == np.arange(len(kernels.names))[:, None]).astype(float)
    member /= member.sum(axis=1, keepdims=True)
    centre = np.eye(len(member)) - 1.0 / len(member)
    return np.asarray(centre @ member @ between @ member.T @ centre)


def _held_out(kernel: Floats) -> Floats:
    """``(people, people)``: row i weighs the targets of the others in the score of person i."""
    count = len(kernel)
    ridge = RIDGE * max(float(np.trace(kernel)) / count, 1e-12)
    weights = np.zeros((count, count))
    for person in range(count):
        others = np.arange(count) != person
        inverse = np.linalg.inv(kernel[np.ix_(others, others)] + ridge * np.eye(count - 1))
        weights[person, others] = kernel[person, others] @ inverse
    return weights


def _balanced(weights: Floats, positive: np.ndarray, counts: Floats) -> float | None:
    """The share of each class that is put into it, averaged; half right where the score is zero. None without one of them."""
    sides = [(counts * side).sum() for side in (positive, ~positive)]
    if not all(sides):
        return None
    others = np.array([[positive.sum()], [(~positive).sum()]]) - np.stack([positive, ~positive])  # without oneself
    targets = weights @ positive / others[0] - weights @ ~positive / others[1]
    correct = np.where(targets == 0, 0.5, (targets > 0) == positive)
    shares = [(counts * correct * side).sum() / total for side, total in zip((positive, ~positive), sides, strict=True)]
    return float(np.mean(shares))


def check_classes(labels: Mapping[str, bool], what: str) -> None:
    """Raise :class:`AuditError` unless there are four people and two of each class."""
    check_people(len(labels), f"inference of {what}")
    fewest = min(sum(labels.values()), len(labels) - sum(labels.values()))
    if fewest < MIN_OF_CLASS:
        raise AuditError(
            f"{what} cannot be inferred: {fewest} of {len(labels)} people are in one of the classes, and leaving one person out "
            f"must leave another to learn from; give more devices, at least {MIN_OF_CLASS} of each class"
        )


def infer(kernels: Kernels, labels: Mapping[str, bool], what: str, *, seed: int) -> Finding:
    """How well the attribute ``what``, ``labels`` of everybody by person, is told from the updates: balanced accuracy.

    :class:`AuditError` for too few people.
    """
    check_classes({name: labels[name] for name in kernels.names}, what)
    positive = np.array([labels[name] for name in kernels.names])
    accuracy = partial(_balanced, _held_out(person_kernel(kernels)))
    generator = derive_generator(seed, "audit permutations", what)
    others = (generator.permutation(positive) for _ in range(PERMUTATIONS))
    return against(len(positive), accuracy, positive, others, seed=seed)
