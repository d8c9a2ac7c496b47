"""Linkage: are an update of one round and an update of another from the same person? Measured as speaker verification is.

Tomashenko et al. (ICASSP 2022, arXiv 2111.03777) showed that updates of speech models identify their speakers, as an equal error
rate. Their attack compares the layers' outputs on indicator speech; these compare the updates themselves. Three attackers, each
with more knowledge than the one before:

- ``cosine``: a pair's score is the cosine of the whole updates, the plain score of speaker embeddings (Dehak et al. 2011, IEEE
  TASLP 19(4)).
- ``layers``: the mean over the layers of the cosine after the round's mean is taken off. Centring and length normalisation are
  those of Garcia-Romero and Espy-Wilson (Interspeech 2011), layer by layer since layers move unequally far.
- ``fused``: the layers' cosines weighted by Fisher's linear discriminant (1936) for "same person", as scores are fused in
  speaker verification (Brümmer et al. 2007, IEEE TASLP 15(7)); learnt from pairs that hold neither of the two people.

The equal error rate is where as many pairs of different people are taken for one (false acceptances) as pairs of one person
for two (false rejections). 0 is a perfect link, 50 % is chance; more than that is chance again, or a score upside down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fl.core.rng import derive_generator
from fl.privacy.audit.attackers import AuditError, Finding, Floats, Kernels, against, check_people, shuffled_within

PERMUTATIONS = 100
SHRINKAGE = 0.1  # of the discriminant's covariance towards a multiple of the identity


@dataclass(frozen=True)
class UpdatePairs:
    """All pairs of updates of different rounds: rows of the earlier and of the later one, and whose they are."""

    earlier: np.ndarray
    later: np.ndarray
    first: np.ndarray  # person of the earlier one
    second: np.ndarray

    @classmethod
    def of(cls, kernels: Kernels, persons: np.ndarray | None = None) -> UpdatePairs:
        """UpdatePairs with the people of ``persons`` ``(rows,)``, by default the real ones.

        :class:`AuditError` for fewer than four people, or if nobody is there twice.
        """
        persons = kernels.persons if persons is None else persons
        check_people(len(kernels.names), "linkage")
        rounds = np.array(kernels.rounds)
        earlier, later = np.nonzero(rounds[:, None] < rounds[None, :])
        pairs = cls(earlier, later, persons[earlier], persons[later])
        if not pairs.same.any():
            raise AuditError("nobody took part in two recorded rounds: record more rounds, or sample more devices")
        return pairs

    @property
    def same(self) -> np.ndarray:
        """Whether both are of one person."""
        return np.asarray(self.first == self.second)


def equal_error_rate(scores: Floats, same: np.ndarray, weights: Floats | None = None) -> float | None:
    """The rate at which both errors are equal, on straight lines between thresholds; None where one side has no weight.

    Equal scores are accepted or rejected together, so scores that say nothing give exactly one half.
    """
    weights = np.ones(len(scores)) if weights is None else weights
    order = np.argsort(-scores, kind="stable")
    scores, same, weights = scores[order], same[order], weights[order]
    genuine, impostor = float(weights[same].sum()), float(weights[~same].sum())
    if not genuine or not impostor:
        return None
    last = np.append(np.diff(scores) != 0, True)  # of each group of equal scores
    accepted = np.append(0.0, np.cumsum(weights * ~same)[last] / impostor)
    rejected = np.append(1.0, 1.0 - np.cumsum(weights * same)[last] / genuine)
    gap = accepted - rejected
    place = int(np.argmax(gap >= -1e-12))
    share = gap[place - 1] / (gap[place - 1] - gap[place])
    return float(accepted[place - 1] + share * (accepted[place] - accepted[place - 1]))


def _moments(members: Floats, sizes: Floats, totals: Floats, squares: Floats) -> tuple[Floats, Floats]:
    """Means ``(rows, n)`` and covariances ``(rows, n, n)`` of the features of the groups that ``members`` ``(rows, groups)`` has.

    Of each group ``sizes`` has the number of features, ``totals`` ``(groups, n)`` their sum, ``squares`` their second moments.
    """
    groups, size = totals.shape
    count = np.maximum(members @ sizes, 1.0)[:, None]
    mean = members @ totals / count
    second = (members @ squares.reshape(groups, -1)).reshape(-1, size, size) / count[:, :, None]
    return mean, np.asarray(second - mean[:, :, None] * mean[:, None])


def fused(kernels: Kernels, pairs: UpdatePairs) -> Floats:
    """Scores ``(pairs,)`` of the attacker ``fused``: log-likelihood ratios of two Gaussians with one covariance."""
    features = kernels.by_layer[:, pairs.earlier, pairs.later].T
    low, high = np.minimum(pairs.first, pairs.second), np.maximum(pairs.first, pairs.second)
    codes, group = np.unique(low * len(kernels.names) + high, return_inverse=True)  # one group for each two people
    one, other = np.divmod(codes, len(kernels.names))
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group)
    place = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # within its group
    padded = np.zeros((len(codes), sizes.max(), features.shape[1]))
    padded[group[order], place] = features[order]
    moments = sizes.astype(float), padded.sum(axis=1), padded.transpose(0, 2, 1) @ padded
    # Row g: the groups in which neither of the two people of group g is.
    free = (one[:, None] != one) & (one[:, None] != other) & (other[:, None] != one) & (other[:, None] != other)
    same, spread_of_same = _moments((free & (one == other)).astype(float), *moments)
    different, spread_of_different = _moments((free & (one != other)).astype(float), *moments)
    covariance = (spread_of_same + spread_of_different) / 2
    size = features.shape[1]
    scale = np.maximum(np.trace(covariance, axis1=1, axis2=2) / size, 1e-12)
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * scale[:, None, None] * np.eye(size)
    weights = np.linalg.solve(shrunk, (same - different)[:, :, None])[:, :, 0]
    middle = (same + different) / 2
    return np.asarray(np.einsum("pn,pn->p", features - middle[group], weights[group]))


ATTACKERS: dict[str, Callable[[Kernels, UpdatePairs], Floats]] = {
    "cosine": lambda kernels, pairs: kernels.whole()[pairs.earlier, pairs.later],
    "layers": lambda kernels, pairs: np.asarray(kernels.by_layer[:, pairs.earlier, pairs.later].mean(axis=0)),
    "fused": fused,
}


def linkage(kernels: Kernels, *, seed: int) -> dict[str, Finding]:
    """The equal error rate of each attacker over all pairs of updates of different rounds."""
    pairs = UpdatePairs.of(kernels)
    generator, rounds = derive_generator(seed, "audit permutations", "linkage"), np.array(kernels.rounds)
    # Whose an update is, shuffled within its round: without linkage any assignment is as good.
    assigned = [shuffled_within(rounds, kernels.persons, generator) for _ in range(PERMUTATIONS)]
    others = [UpdatePairs.of(kernels, persons) for persons in assigned]

    def rate(judged: tuple[Floats, UpdatePairs], counts: Floats) -> float | None:
        scores, found = judged
        # A person drawn twice is two people who are alike, not an impostor of oneself.
        weights = np.where(found.same, counts[found.first], counts[found.first] * counts[found.second])
        return equal_error_rate(scores, found.same, weights)

    return {
        name: against(
            len(kernels.names),
            rate,
            (attack(kernels, pairs), pairs),
            [(attack(kernels, other), other) for other in others],
            seed=seed,
            low_wins=True,
        )
        for name, attack in ATTACKERS.items()
    }
