"""Membership inference: was this utterance among those that this person's update was trained on?

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

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fl.core.rng import derive_generator
from fl.privacy.audit.attackers import Finding, Floats, against, shuffled_within

FALSE_POSITIVES = 0.01
PERMUTATIONS = 200
MIN_NON_MEMBERS = 100  # fewer cannot show a rate of 1 %


@dataclass(frozen=True)
class Membership:
    """AUC, and TPR at 1 % FPR (None with fewer than 100 non-members)."""

    auc: Finding
    tpr: float | None


ATTACKERS = ("threshold", "calibrated")


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
    others = [shuffled_within(person, member, generator) for _ in range(PERMUTATIONS)]

    def auc(judged: tuple[Floats, np.ndarray], counts: Floats) -> float | None:
        return area(*judged, counts[person])

    found = {}
    for name, score in zip(ATTACKERS, (-loss, reference - loss), strict=True):
        finding = against(len(names), auc, (score, member), [(score, other) for other in others], seed=seed)
        found[name] = Membership(finding, rate_at(score, member))
    return found
