"""Means over the devices' replies, and how much a mean of factors loses of a mean of products."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from flwr.app import Array, ArrayRecord

from fl.adapters.pairs import Pair, pair_names
from fl.aggregation.blocks import over_cores, weighted_sum
from fl.aggregation.pairs import product_gap, shares
from fl.core.errors import AggregationError
from strategies.replies import DeviceReply

GAP = "product-gap"


def average(
    replies: Sequence[DeviceReply], weights: Mapping[str, float], names: Collection[str] | None = None
) -> ArrayRecord:
    """Weighted average of the devices' tensors, summed in float64 in the order of the replies so that it is reproducible.

    Blocks of devices, one after the other: memory does not grow with their number, and the result does not depend on how
    devices are spread over nodes. ``names`` are all tensors unless given.
    """
    total = sum(weights[reply.device_id] for reply in replies)
    if not replies or not total > 0:
        raise AggregationError("no device to average: every reply was left out or had no weight")
    parts = np.array([weights[reply.device_id] / total for reply in replies])
    chosen = list(replies[0].shared or {}) if names is None else list(names)
    means = over_cores(lambda name: weighted_sum(rows_of(replies, name), parts).astype(np.float32), chosen)
    return ArrayRecord({name: Array(mean) for name, mean in zip(chosen, means, strict=True)})


def rows_of(replies: Sequence[DeviceReply], name: str) -> list[np.ndarray]:
    """One tensor of every device, in the order of the replies."""
    return [reply.shared[name] for reply in replies if reply.shared is not None]


def layer_pairs(replies: Sequence[DeviceReply]) -> dict[str, list[Pair]]:
    """The factors of every layer that has both of them, by device in the order of the replies."""
    found = [reply.shared for reply in replies if reply.shared is not None]
    names = pair_names({name: values.shape for name, values in found[0].items()})
    return {layer: [Pair(shared[a], shared[b]) for shared in found] for layer, (a, b) in names.items()}


def product_gaps(replies: Sequence[DeviceReply]) -> dict[str, float]:
    """How far mean(B) mean(A) is from mean(B A), relative to the latter (Frobenius norms): what averaging factors loses.

    ``product-gap`` over all layers together and ``product-gap:<layer>`` for each; a layer whose products are zero has none.
    """
    weights = shares([reply.examples for reply in replies])
    layers = layer_pairs(replies)
    squares = dict(zip(layers, over_cores(lambda layer: product_gap(layers[layer], weights), layers), strict=True))
    sound = {
        layer: (lost, whole)
        for layer, (lost, whole) in squares.items()
        if whole > 0 and np.isfinite([lost, whole]).all()
    }
    gaps = {f"{GAP}:{layer}": float(np.sqrt(lost / whole)) for layer, (lost, whole) in sound.items()}
    if sound:
        gaps[GAP] = float(np.sqrt(sum(lost for lost, _ in sound.values()) / sum(whole for _, whole in sound.values())))
    return gaps
