"""Algorithms on products of low-rank pairs: the mean of A times the mean of B is not the mean of B A.

A correction belongs to the newest round only: devices train on the untouched base, so the next round's products do not contain it,
and adding it up over rounds would count it again and again. Whoever decodes with the base adds it to the frozen weight
(:mod:`fl.adapters.correction`): in evaluation, ``idiolect transcribe`` and ``idiolect serve``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fl.adapters.pairs import LowRankPair, aligned, best_of, pair_names, truncated
from fl.aggregation.mean import mean, moves_of
from fl.aggregation.pairs import many, mean_and_residual, plus, shares, stacked
from fl.aggregation.updates import over_cores
from fl.algorithms.base import Aggregator, Algorithm, Capabilities, Round
from fl.core.errors import AggregationError

if TYPE_CHECKING:
    from fl.settings.config import RunConfig

CORRECTION = "correction:"  # and the layer: a name of the aggregator's state


def to_float32(values: np.ndarray) -> np.ndarray:
    """As a file carries it; what does not fit becomes infinite, which is refused later by name."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, np.float32)


def holders(start: LowRankPair, moves: Sequence[LowRankPair], weights: np.ndarray) -> np.ndarray:
    """The share of the devices that have a coordinate, (rank,): less than 1 where some are of smaller rank, whose row of A is zero.

    1 for a coordinate that no device has. A device of smaller rank lacks the last ones (:mod:`fl.adapters.ranks`).
    """
    if all((start.a[-1] + move.a[-1]).any() for move in moves):
        return np.ones(start.rank)
    share = weights @ np.array([(start.a + move.a).any(axis=1) for move in moves], np.float64)
    return np.where(share > 0, share, 1.0)


def best_pair(start: LowRankPair, moves: Sequence[LowRankPair], weights: np.ndarray) -> tuple[LowRankPair, np.ndarray]:
    """The best pair of the messages' rank for the mean of the devices' products, and that mean.

    The basis is the one closest to the mean of their A, so one device alone gets its own factors back. A coordinate counts the
    devices that have it alone: with the zeros of the others its row of A would shrink in every round, and B would grow for it.
    """
    mean, lost = mean_and_residual(moves, weights)
    mean, rank = plus(start, mean), start.rank
    product = lost + mean.product()
    few = [] if many(moves) else [plus(start, move) for move in moves]
    best = truncated(stacked(few, weights), rank) if few else best_of(product, rank)
    reference = mean.a / holders(start, moves, weights)[:, None]
    if not best.b.any():  # products of zero say nothing about A
        return LowRankPair(reference, np.zeros_like(mean.b)), product
    return aligned(best, reference), product


class PairAlgorithm(Algorithm):
    """A rule that looks at both factors of a layer; other tensors (shared gates) are averaged."""

    can = Capabilities(sums=False, pairs=True, low_rank=True, ranks="best")

    @abstractmethod
    def combine(
        self, start: LowRankPair, moves: Sequence[LowRankPair], weights: np.ndarray
    ) -> tuple[LowRankPair, np.ndarray | None]:
        """The new pair of one layer, and what it lacks of mean(B A), if that is kept.

        Devices began with ``start``, each added its own of ``moves``, and ``weights`` are their shares.
        """

    def aggregator(self) -> Aggregator:
        """With the corrections of the last round as state."""
        return PairAggregator(self)


class CorrectedAlgorithm(PairAlgorithm):
    """One that keeps what the pair lacks of the mean product, for whoever decodes."""

    can = Capabilities(sums=False, pairs=True, low_rank=True, ranks="best", optimizer=False)

    def refused(self, config: RunConfig) -> str:
        """A correction may be below the last bit of a bf16 weight."""
        from fl.core.compute import BF16, FLOAT32  # torch

        if config.base.precision != BF16:
            return ""
        return (
            f"algorithm = {self.name!r} adds a correction to the frozen weights, which precision = {BF16!r} rounds to 8 bits: set "
            f"base.precision = {FLOAT32!r}, or algorithm = 'flexlora'"
        )


@dataclass
class PairAggregator(Aggregator):
    """A :class:`PairAlgorithm` layer by layer. Where it keeps what the pair lacks, pair + correction is mean(B A) exactly."""

    rule: PairAlgorithm
    found: dict[str, np.ndarray] = field(default_factory=dict)  # (d_out, d_in) float32 by layer, of the last round

    def aggregate(self, found: Round) -> dict[str, np.ndarray]:
        """The pairs, as many layers side by side as there are cores.

        Raises :class:`AggregationError` and keeps the corrections before where a new one is not finite.
        """
        weights = shares(found.examples)
        layers = pair_names({name: values.shape for name, values in found.start.items()})
        others = [name for name in found.start if all(name not in pair for pair in layers.values())]
        update = mean(found.updates, others) if others else {}
        corrections: dict[str, np.ndarray] = {}

        def combined(layer: str) -> LowRankPair:
            start = LowRankPair(*(found.start[name] for name in layers[layer]))
            pair, lost = self.rule.combine(start, moves_of(found.updates, layers[layer]), weights)
            if lost is not None:
                corrections[layer] = to_float32(lost)
            return pair

        for layer, pair in zip(layers, over_cores(combined, layers), strict=True):
            for name, values in zip(layers[layer], pair, strict=True):
                update[name] = np.subtract(to_float32(values), found.start[name], dtype=np.float64)
        odd = [layer for layer, correction in corrections.items() if not np.isfinite(correction).all()]
        if odd:
            raise AggregationError(
                f"the correction of {odd[0]!r} is not finite: the devices' updates are too large for {self.rule.name!r}; "
                "lower the learning rates, or choose a robust algorithm"
            )
        self.found = corrections
        return {name: update[name] for name in found.start}

    def corrections(self) -> dict[str, np.ndarray]:
        """Those of the last round."""
        return dict(self.found)

    def state(self) -> dict[str, np.ndarray]:
        """The corrections."""
        return {CORRECTION + layer: self.found[layer] for layer in sorted(self.found)}

    def restore(self, state: Mapping[str, np.ndarray], devices: Sequence[str]) -> None:
        """Continue from :meth:`state`."""
        self.found = {n.removeprefix(CORRECTION): c for n, c in state.items() if n.startswith(CORRECTION)}
