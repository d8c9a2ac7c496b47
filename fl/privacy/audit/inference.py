"""Inference: what kind of person sent these updates, and was this utterance among those that they were trained on?

Attributes: Melis et al. (IEEE S&P 2019, arXiv 1805.04049, section 4.3) train a classifier on updates of data with and without a
property; here a property belongs to a person, so the attacker is taught with the updates of all people but one (for example
their own recordings, or people who told) and asked about that one: leave-one-person-out. A person is the mean of their updates
over the rounds, each layer centred and normalised as in :class:`~fl.privacy.audit.attackers.Kernels`; the classifier is ridge
regression on the classes weighted to equal size, which is Fisher's discriminant with a regularised covariance (Friedman 1989,
JASA 84).

Membership has two attackers:

- ``threshold``: the score is -loss: what was trained on has a low one (Yeom et al. 2018, arXiv 1709.01604, adversary 2).
- ``calibrated``: the loss of a reference model minus the loss, so that easy utterances are not taken for members (difficulty
  calibration, Watson et al. 2022, arXiv 2111.08440). It is LiRA's offline attack (Carlini et al. 2022, arXiv 2112.03570)
  simplified to one reference model, the frozen base: no shadow models, no variance for each example.

The loss is the mean over an utterance's labels, in nats, of the model that the server can form: what it sent plus the update as
it sees it. Utterances of the same person that were never trained on are the other class, as many of them, so that
nothing but membership differs between the two. AUC is the probability that a member scores above a non-member (chance 50 %). Since
an attack may be sure of a few and wrong about the rest, TPR at 1 % FPR is given beside it (Carlini et al., section 3), where
there are the 100 non-members that 1 % needs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from fl.core.rng import derive_generator
from fl.privacy.audit.attackers import AuditError, Finding, Floats, Kernels, against, check_people, shuffled_within

SHUFFLED_PEOPLE, SHUFFLED_UTTERANCES = 1000, 200  # permutations of labels
RIDGE = 1.0  # times the mean diagonal of the kernel
MIN_OF_CLASS = 2  # one to be asked about, one to learn from
FALSE_POSITIVES = 0.01
MIN_NON_MEMBERS = 100  # fewer cannot show a rate of 1 %
ATTACKERS = ("threshold", "calibrated")


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
    others = (generator.permutation(positive) for _ in range(SHUFFLED_PEOPLE))
    return against(len(positive), accuracy, positive, others, seed=seed)


@dataclass(frozen=True)
class Membership:
    """AUC, and TPR at 1 % FPR (None with fewer than 100 non-members)."""

    auc: Finding
    tpr: float | None


def area(scores: Floats, member: np.ndarray, weights: Floats) -> float | None:
    """Area under the ROC curve: the weighted share of (member, non-member) pairs in the right order, equal ones half."""
    values, group = np.unique(scores, return_inverse=True)
    inside = np.bincount(group, weights * member, len(values))
    outside = np.bincount(group, weights * ~member, len(values))
    if not inside.sum() or not outside.sum():
        return None
    below = np.cumsum(outside) - outside
    return float((inside * (below + outside / 2)).sum() / (inside.sum() * outside.sum()))


def rate_at(scores: Floats, member: np.ndarray) -> float | None:
    """Share of members above a threshold that at most 1 % of the non-members exceed; None with fewer than 100."""
    outside = np.sort(scores[~member])[::-1]
    if len(outside) < MIN_NON_MEMBERS or not member.any():
        return None
    threshold = outside[int(np.floor(FALSE_POSITIVES * len(outside) + 1e-9))]
    return float((scores[member] > threshold).mean())


def membership(
    people: Sequence[str], member: np.ndarray, loss: Floats, reference: Floats, *, seed: int
) -> dict[str, Membership]:
    """What both attackers find; of each utterance its person, whether it was trained on, its loss and the reference model's.

    Losses that are not finite count as the largest there are.
    """
    loss = np.where(np.isfinite(loss), loss, np.finfo(np.float32).max)
    names = sorted(set(people))
    person = np.array([names.index(name) for name in people])
    generator = derive_generator(seed, "audit permutations", "membership")
    others = [shuffled_within(person, member, generator) for _ in range(SHUFFLED_UTTERANCES)]

    def auc(judged: tuple[Floats, np.ndarray], counts: Floats) -> float | None:
        return area(*judged, counts[person])

    found = {}
    for name, score in zip(ATTACKERS, (-loss, reference - loss), strict=True):
        finding = against(len(names), auc, (score, member), [(score, other) for other in others], seed=seed)
        found[name] = Membership(finding, rate_at(score, member))
    return found
