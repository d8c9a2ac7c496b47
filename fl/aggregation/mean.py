"""Means of the devices' updates, and how much a mean of factors loses of a mean of products."""

from collections.abc import Collection, Sequence

import numpy as np

from fl.adapters.pairs import LowRankPair, pair_names
from fl.aggregation.pairs import product_gap, shares
from fl.aggregation.updates import Tensors, Updates, over_cores, rows_of, tensor_names, weighted_sum
from fl.core.errors import AggregationError

GAP = "product-gap"


def average(updates: Updates, weights: Sequence[float], names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Weighted average of the devices' updates in float64, in the order of the devices so that it is deterministic.

    Blocks of devices, one after the other: memory does not grow with their number, and the result does not depend on how
    devices are spread over nodes. ``names`` are all tensors unless given.
    """
    total = sum(weights)
    if not updates or not total > 0:
        raise AggregationError("no device to average: every reply was left out or had no weight")
    parts = np.array(weights, np.float64) / total
    chosen = list(tensor_names(updates) if names is None else names)
    means = over_cores(lambda name: weighted_sum(rows_of(updates, name), parts), chosen)
    return dict(zip(chosen, means, strict=True))


def mean(updates: Updates, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """FedAvg: the average weighted by training examples (McMahan et al. 2017, eq. 1)."""
    return average(updates, [update.examples for update in updates], names)


def moves_of(updates: Updates, names: tuple[str, str]) -> list[LowRankPair]:
    """One layer's update of each device, in the order of the updates; ``names`` of A and B."""
    return [LowRankPair(*rows) for rows in zip(*(rows_of(updates, name) for name in names), strict=True)]


def product_gaps(updates: Updates, start: Tensors) -> dict[str, float]:
    """How far mean(B) mean(A) is from mean(B A), relative to the latter (Frobenius norms): what averaging factors loses.

    ``product-gap`` over all layers together and ``product-gap:<layer>`` for each; a layer whose products are zero has none.
    """
    weights = shares([update.examples for update in updates])
    layers = pair_names({name: values.shape for name, values in start.items()})

    def gap(names: tuple[str, str]) -> tuple[float, float]:
        return product_gap(moves_of(updates, names), weights, LowRankPair(*(start[name] for name in names)))

    squares = dict(zip(layers, over_cores(gap, layers.values()), strict=True))
    sound = {
        layer: (lost, whole)
        for layer, (lost, whole) in squares.items()
        if whole > 0 and np.isfinite([lost, whole]).all()
    }
    gaps = {f"{GAP}:{layer}": float(np.sqrt(lost / whole)) for layer, (lost, whole) in sound.items()}
    if sound:
        gaps[GAP] = float(np.sqrt(sum(lost for lost, _ in sound.values()) / sum(whole for _, whole in sound.values())))
    return gaps
