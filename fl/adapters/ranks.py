"""Devices of different ranks in one federation (setting ``device-ranks``): who has which, and what fits into a smaller one.

All tensors keep the shapes of the full rank r. A device of rank k < r has zeros in the last r - k rows of A and columns of B. Where
both are zero neither gets a gradient, nor does what a private gate does there, so training leaves them exactly zero. In a message
the same zeros are what HetLoRA (Cho et al. 2024, arXiv 2401.06432) fills up with, so an aggregator needs to know no rank.
"""

import numpy as np
import torch

from fl.adapters.pairs import LowRankPair, pair_names, resized, truncated, turned
from fl.adapters.state import State
from fl.core.rng import derive_choice
from fl.settings.config import RunConfig


def device_rank(config: RunConfig, device_id: str) -> int:
    """The rank of a device, drawn by the seed and its id alone."""
    if not config.device_ranks:
        return config.adapter.rank
    return derive_choice(config.device_ranks, config.seed, device_id, "rank")


def reduced(state: State, rank: int, *, best: bool) -> State:
    """An adapter's tensors as a device of ``rank`` has them: each pair reduced to it and filled up with zeros to its own shape.

    With ``best`` the aggregator decomposes products: it sends a pair whose last coordinates say as much as its first ones, and a device
    keeps the best approximation of it (FlexLoRA, arXiv 2402.11505). Without it coordinates are the same at all devices, and it keeps the
    first (HetLoRA). A pair that has no more than ``rank`` already, such as a device's own, stays as it is to the bit.
    """
    found = dict(state)
    for name_a, name_b in pair_names({name: tuple(tensor.shape) for name, tensor in state.items()}).values():
        a, b = state[name_a], state[name_b]
        if not (bool(a[rank:].any()) or bool(b[:, rank:].any())):
            continue
        pair = fitted(LowRankPair(a.numpy(), b.numpy()), rank, best=best)
        found[name_a] = torch.from_numpy(np.ascontiguousarray(pair.a)).to(a.dtype)
        found[name_b] = torch.from_numpy(np.ascontiguousarray(pair.b)).to(b.dtype)
    return found


def fitted(pair: LowRankPair, rank: int, *, best: bool) -> LowRankPair:
    """``pair`` with zeros beyond ``rank``: its first coordinates, or its best approximation in the basis closest to those.

    A pair whose product is zero, as at the start, has no best approximation: it keeps its first coordinates.
    """
    if best and pair.b.any():
        close = truncated(pair, rank)
        if close.b.any():
            return resized(turned(close, pair.a[:rank].astype(np.float64)), pair.rank)
    return resized(resized(pair, rank), pair.rank)
