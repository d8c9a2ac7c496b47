"""Strategies for low-rank pairs. The mean of A times the mean of B is not the mean of B A; each deals with that in its own way.

| name | devices get | the aggregator keeps |
| --- | --- | --- |
| ``fedavg`` (strategies.base) | mean(A), mean(B) | nothing |
| ``ffa`` | mean(B); A is fixed by the seed, so the mean is exact | nothing |
| ``fedsa`` | mean(A); B stays on its device | nothing |
| ``rolora`` | the mean of B in odd rounds, of A in even ones; the other rests, so the mean is exact | nothing |
| ``flexlora`` | the best pair of their rank for mean(B A) | nothing |
| ``hetlora`` | factors weighted by the norm of each device's product | nothing |
| ``fedex`` | mean(A), mean(B) | mean(B A) - mean(B) mean(A) |
| ``flora`` | the best pair of their rank for the stack of all | the rest of the stack |

What is kept (*correction*) belongs to the newest round only: devices train on the untouched base, so the next round's products
do not contain it, and adding it up over rounds would count it again and again.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from flwr.app import Array, ArrayRecord

from fl.adapters.pairs import Pair, aligned, best_of, pair_names, truncated
from fl.adapters.split import tensor_kind
from fl.aggregation.blocks import over_cores
from fl.aggregation.pairs import heterogeneous_mean, many, mean_and_residual, means, shares, stacked
from fl.core.errors import AggregationError, ConfigError
from fl.settings.config import resting_factor
from strategies.averaging import average, layer_pairs
from strategies.base import SharedFedAvg
from strategies.replies import DeviceReply

CORRECTION = "correction:"  # and the layer: a name of the server's state


def lonely_factors(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Shared A or B without the other one of its layer."""
    paired = {name for pair in pair_names(shapes).values() for name in pair}
    return [name for name in sorted(shapes) if tensor_kind(name) in ("A", "B") and name not in paired]


def require_pairs(strategy: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise :class:`ConfigError` unless both factors of each layer are shared."""
    lonely = lonely_factors(shapes)
    if lonely or not pair_names(shapes):
        raise ConfigError(
            f"{strategy} needs A and B of each layer, but the split shares {lonely[0] if lonely else 'no pair'!r} alone: "
            "set split = 'gates' or 'all-shared', or choose strategy = 'fedavg'"
        )


@dataclass
class Ffa(SharedFedAvg):
    """FFA-LoRA (arXiv 2403.12313): A is the same at all devices from the seed on, and the mean of B is the mean of products."""

    def require_fit(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """No A may be shared: it would be trained."""
        _require_only("B", "ffa", shapes)


@dataclass
class FedSa(SharedFedAvg):
    """FedSA-LoRA (arXiv 2410.01463): A is averaged, B is personal."""

    def require_fit(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """No B may be shared."""
        _require_only("A", "fedsa", shapes)


def _require_only(kind: str, split: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    odd = [name for name in sorted(shapes) if tensor_kind(name) in ("A", "B") and tensor_kind(name) != kind]
    if odd or not any(tensor_kind(name) == kind for name in shapes):
        raise ConfigError(
            f"strategy = {split!r} shares {kind} alone, but this split shares {odd[0] if odd else 'none'!r}: set split = {split!r}"
        )


@dataclass
class RoLora(SharedFedAvg):
    """RoLoRA (arXiv 2409.02346): one factor trains in a round while the other rests, so its mean is exact.

    Devices get to know from the round which one rests (:func:`fl.settings.config.resting_factor`): B trains in the first round, since
    A has no gradient while B is zero. What they send of the resting factor is what they got, and is not looked at.
    """

    def require_fit(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Both factors must be shared."""
        require_pairs("rolora", shapes)

    def moving(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """All tensors but the resting factors."""
        return tuple(n for n in names if tensor_kind(n) != resting_factor("rolora", self._round))

    def aggregate(self, replies: tuple[DeviceReply, ...]) -> ArrayRecord:
        """The mean of what moves; the rest bit for bit as it was."""
        moving = self.moving(tuple(self._incoming))
        mean = average(replies, {reply.device_id: reply.examples for reply in replies}, moving)
        return ArrayRecord({name: mean[name] if name in moving else array for name, array in self._incoming.items()})


def to_float32(values: np.ndarray) -> np.ndarray:
    """As the messages carry it; what does not fit becomes infinite, which is refused later by name."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, np.float32)


@dataclass
class PairRule(SharedFedAvg):
    """A rule that looks at both factors of a layer; other tensors (shared gates) are averaged."""

    single_devices: ClassVar[bool] = True

    def require_fit(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Both factors must be shared."""
        require_pairs(type(self).__name__, shapes)

    def aggregate(self, replies: tuple[DeviceReply, ...]) -> ArrayRecord:
        """:meth:`combine` layer by layer, as many side by side as there are cores."""
        weights = shares([reply.examples for reply in replies])
        shapes = {name: values.shape for name, values in (replies[0].shared or {}).items()}
        names = pair_names(shapes)
        others = [name for name in shapes if all(name not in pair for pair in names.values())]
        new = dict(average(replies, {r.device_id: r.examples for r in replies}, others)) if others else {}
        layers = layer_pairs(replies)
        combined = over_cores(lambda layer: self.combine(layer, layers[layer], weights), layers)
        for layer, pair in zip(layers, combined, strict=True):
            for name, values in zip(names[layer], pair, strict=True):
                new[name] = Array(to_float32(values))
        return ArrayRecord({name: new[name] for name in shapes})

    @abstractmethod
    def combine(self, layer: str, pairs: Sequence[Pair], weights: np.ndarray) -> Pair:
        """The new pair of one layer from the devices' pairs and their shares."""


def holders(pairs: Sequence[Pair], weights: np.ndarray) -> np.ndarray:
    """The share of the devices that have a coordinate, (rank,): less than 1 where some are of smaller rank, whose row of A is zero.

    1 for a coordinate that no device has. A device of smaller rank lacks the last ones (:mod:`fl.adapters.ranks`).
    """
    if all(pair.a[-1].any() for pair in pairs):
        return np.ones(pairs[0].rank)
    share = weights @ np.array([pair.a.any(axis=1) for pair in pairs], np.float64)
    return np.where(share > 0, share, 1.0)


def best_pair(pairs: Sequence[Pair], weights: np.ndarray) -> tuple[Pair, np.ndarray]:
    """The best pair of the messages' rank for the mean of the devices' products, and that mean.

    The basis is the one closest to the mean of their A, so one device alone gets its own factors back. A coordinate counts the
    devices that have it alone: with the zeros of the others its row of A would shrink in every round, and B would grow for it.
    """
    product, mean = means(pairs, weights)
    rank = pairs[0].rank
    reference = mean.a / holders(pairs, weights)[:, None]
    best = best_of(product, rank) if many(pairs) else truncated(stacked(pairs, weights), rank)
    if not best.b.any():  # products of zero say nothing about A
        return Pair(reference, np.zeros_like(mean.b)), product
    return aligned(best, reference), product


@dataclass
class FlexLora(PairRule):
    """FlexLoRA (arXiv 2402.11505): the mean of products, and of it what the devices' rank can hold."""

    def combine(self, layer: str, pairs: Sequence[Pair], weights: np.ndarray) -> Pair:
        """Truncated singular value decomposition of mean(B A)."""
        return best_pair(pairs, weights)[0]


@dataclass
class HetLora(PairRule):
    """HetLoRA (arXiv 2401.06432): factors weighted by the Frobenius norm of each device's product, layer by layer.

    How many examples a device has plays no role. Devices of smaller rank are filled up with zeros (:mod:`fl.adapters.ranks`).
    """

    def combine(self, layer: str, pairs: Sequence[Pair], weights: np.ndarray) -> Pair:
        """The mean of factors, weighted by norms."""
        return heterogeneous_mean(pairs, pairs[0].rank, weights)


@dataclass
class Corrected(PairRule):
    """A rule after which the aggregator holds what the devices' pair lacks: pair + correction is mean(B A) exactly."""

    corrections: dict[str, np.ndarray] = field(
        default_factory=dict
    )  # (d_out, d_in) float32 by layer, of the last round

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer is not None:
            raise ConfigError(
                f"{type(self).__name__} keeps what its own pair lacks, and server-optimizer = {self.optimizer.name!r} "
                "makes another pair of it: set server-optimizer = 'none', or strategy = 'flexlora'"
            )

    def aggregate(self, replies: tuple[DeviceReply, ...]) -> ArrayRecord:
        """The pairs; raises :class:`AggregationError` and keeps the corrections before where a new one is not finite."""
        before, self.corrections = self.corrections, {}
        new = super().aggregate(replies)
        odd = [layer for layer, correction in self.corrections.items() if not np.isfinite(correction).all()]
        if odd:
            self.corrections = before
            raise AggregationError(
                f"the correction of {odd[0]!r} is not finite: the devices' updates are too large for {type(self).__name__}; "
                "lower the learning rates, or choose a robust strategy"
            )
        return new

    def server_state(self) -> dict[str, np.ndarray]:
        """The corrections beside what the optimizer keeps."""
        return {**super().server_state(), **{CORRECTION + n: self.corrections[n] for n in sorted(self.corrections)}}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from :meth:`server_state`."""
        super().restore({name: value for name, value in state.items() if not name.startswith(CORRECTION)})
        self.corrections = {n.removeprefix(CORRECTION): c for n, c in state.items() if n.startswith(CORRECTION)}


@dataclass
class FedEx(Corrected):
    """FedEx-LoRA (arXiv 2410.09432): devices get the means of the factors, the aggregator keeps the exact residual."""

    def combine(self, layer: str, pairs: Sequence[Pair], weights: np.ndarray) -> Pair:
        """Mean factors; the correction is what they lack."""
        mean, lost = mean_and_residual(pairs, weights)
        self.corrections[layer] = to_float32(lost)
        return mean


@dataclass
class Flora(Corrected):
    """FLoRA (arXiv 2409.05976): the stack of all devices' pairs is the exact mean of their products.

    The paper merges the stack into every device's base and starts new pairs. Here the base at the device stays untouched: devices
    go on from the best pair of their rank, and the aggregator keeps the rest of the stack.
    """

    def combine(self, layer: str, pairs: Sequence[Pair], weights: np.ndarray) -> Pair:
        """The best pair; the correction is what it lacks of the stack."""
        best, product = best_pair(pairs, weights)
        self.corrections[layer] = to_float32(product - best.product())
        return best
