"""Low-rank pairs of many devices as linear algebra: means of products, stacking, and what a mean loses.

Pure functions of :class:`fl.adapters.pairs.LowRankPair`, the update ``b @ a`` of one layer, ``a`` (rank, d_in) and ``b`` (d_out, rank);
devices may have different ranks. The scale alpha / rank is not applied: where devices differ in it, give ``b`` multiplied by
it. Weights are shares that sum to 1 (:func:`shares`).

Sums over many devices (:func:`many`) are streamed, a block of devices at a time, whatever their number. A product over a block is
one float32 matrix product, blocks are added in float64: with u = 2^-24 and k devices in a block an element of a result is off by at
most (k rank + 2) u times the sum of the absolute terms it is made of.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fl.adapters.pairs import LowRankPair, resized
from fl.aggregation.updates import places, side_by_side, weighted_sum

EXACT_RANK = 512  # above this sum of ranks products are formed in float32 block by block, the gap in SKETCH directions
SKETCH = 32  # directions; the norm of a layer's gap is then right within about 1 / sqrt(2 * SKETCH) = 13 %
INNER = 512  # devices times rank of a block: long enough for the speed of a matrix product, short enough for the cache


def shares(weights: Sequence[float]) -> np.ndarray:
    """Weights that sum to 1, (devices,) float64."""
    values = np.asarray(weights, np.float64)
    values = values / values.max()  # so that a sum of huge ones stays finite
    return np.asarray(values / values.sum())


def many(pairs: Sequence[LowRankPair]) -> bool:
    """Whether the ranks sum up to so much that products are streamed; pairs of different ranks never are."""
    return sum(pair.rank for pair in pairs) > EXACT_RANK and len({pair.rank for pair in pairs}) == 1


def stacked(pairs: Sequence[LowRankPair], weights: np.ndarray) -> LowRankPair:
    """The weighted mean of the products as one pair, whose rank is the sum of all (FLoRA, arXiv 2409.05976), float64.

    ``a`` carries the weights. Exact, also for different ranks.
    """
    a = np.concatenate([pair.a for pair in pairs], dtype=np.float64)
    a *= np.repeat(weights, [pair.rank for pair in pairs])[:, None]
    return LowRankPair(a, np.concatenate([pair.b for pair in pairs], axis=1, dtype=np.float64))


def mean_factors(pairs: Sequence[LowRankPair], weights: np.ndarray) -> LowRankPair:
    """The weighted mean of each factor, float64; devices must have one rank."""
    return LowRankPair(*(weighted_sum([pair[i] for pair in pairs], weights) for i in (0, 1)))


def means(pairs: Sequence[LowRankPair], weights: np.ndarray) -> tuple[np.ndarray, LowRankPair]:
    """The weighted mean of the products (d_out, d_in) and :func:`mean_factors`, float64.

    In one pass over the devices; of many pairs in float32.
    """
    if many(pairs):
        return _streamed_means(pairs, weights)
    return stacked(pairs, weights).product(), mean_factors(pairs, weights)


def mean_and_residual(pairs: Sequence[LowRankPair], weights: np.ndarray) -> tuple[LowRankPair, np.ndarray]:
    """:func:`mean_factors`, and mean(b a) - mean(b) mean(a), (d_out, d_in), what they lose (FedEx-LoRA, arXiv 2410.09432).

    Computed as mean((b - mean(b)) (a - mean(a))), which loses no digits when devices are close to each other; as the plain
    difference where the ranks sum up to much.
    """
    if many(pairs):
        product, mean = means(pairs, weights)
        return mean, product - mean.product()
    mean = mean_factors(pairs, weights)
    return mean, stacked([LowRankPair(pair.a - mean.a, pair.b - mean.b) for pair in pairs], weights).product()


def product_gap(pairs: Sequence[LowRankPair], weights: np.ndarray) -> tuple[float, float]:
    """Squared norms of what the mean of factors loses and of the mean product; the root of their ratio is the relative loss.

    Where the ranks sum up to much both are estimated from the same :data:`SKETCH` directions.
    """
    if many(pairs):
        return _sketched_gap(pairs, weights)
    mean, lost = mean_and_residual(pairs, weights)
    return _square(lost), _square(lost + mean.product())


def _square(values: np.ndarray) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def product_norms(pairs: Sequence[LowRankPair]) -> np.ndarray:
    """The Frobenius norm of each product, (devices,), from the rank x rank Gram matrices; of many pairs in float32."""
    if many(pairs):
        return _streamed_norms(pairs)
    wide = [LowRankPair(pair.a.astype(np.float64), pair.b.astype(np.float64)) for pair in pairs]
    squares = [((pair.b.T @ pair.b) * (pair.a @ pair.a.T)).sum() for pair in wide]
    return np.sqrt(np.maximum(squares, 0.0))


def heterogeneous_mean(pairs: Sequence[LowRankPair], rank: int, fallback: np.ndarray) -> LowRankPair:
    """HetLoRA's mean of factors at ``rank``: zero-padded, weighted by the norm of each device's product (arXiv 2401.06432).

    Directions that few devices have are not diluted by devices whose update is small. ``fallback`` are the weights where no
    device has moved from zero.
    """
    norms = product_norms(pairs)
    weights = shares(list(norms)) if norms.any() else fallback
    return mean_factors([resized(pair, rank) for pair in pairs], weights)


class _Block(NamedTuple):
    """Some devices' factors in float32, and their weights."""

    weights: np.ndarray  # (devices,)
    a: np.ndarray  # (devices, rank, d_in)
    b: np.ndarray  # (devices, d_out, rank)

    @property
    def rows(self) -> np.ndarray:
        """All ``a`` below each other, (devices * rank, d_in)."""
        return self.a.reshape(-1, self.a.shape[2])

    @property
    def columns(self) -> np.ndarray:
        """All ``b`` beside each other, (d_out, devices * rank). A row of one ``b`` is copied as one piece."""
        pieces = self.b.view(f"V{self.b.itemsize * self.b.shape[2]}")[..., 0]
        return pieces.T.copy().view(np.float32)


def _blocks(pairs: Sequence[LowRankPair], weights: np.ndarray) -> Iterator[_Block]:
    """The devices in their order."""
    for place in places(len(pairs), INNER // pairs[0].rank):
        a, b = (side_by_side([pair[i] for pair in pairs[place]], np.float32) for i in (0, 1))
        yield _Block(weights[place].astype(np.float32), a, b)


def _streamed_means(pairs: Sequence[LowRankPair], weights: np.ndarray) -> tuple[np.ndarray, LowRankPair]:
    import torch  # here, so that settings can be read without it

    (rank, d_in), d_out = pairs[0].a.shape, len(pairs[0].b)
    product, mean_a, mean_b = np.zeros((d_out, d_in)), np.zeros(rank * d_in), np.zeros(d_out * rank)
    for block in _blocks(pairs, weights):
        left, right = block.columns, block.rows * np.repeat(block.weights, rank)[:, None]
        product += torch.mm(torch.from_numpy(left), torch.from_numpy(right)).numpy()  # side by side faster than NumPy's
        mean_a += block.weights @ block.a.reshape(len(block.a), -1)
        mean_b += block.weights @ block.b.reshape(len(block.b), -1)
    return product, LowRankPair(mean_a.reshape(rank, d_in), mean_b.reshape(d_out, rank))


def _sketched_gap(pairs: Sequence[LowRankPair], weights: np.ndarray) -> tuple[float, float]:
    """Squared norms of mean(b a) - mean(b) mean(a) and of mean(b a), from a few sums of their rows.

    Each of the d_out rows gets a random sign and one of SKETCH sums (Charikar, Chen & Farach-Colton 2002, a count sketch):
    the squared norm of the sums is an unbiased estimate of the matrix's, with a relative standard error of at most
    sqrt(2 / SKETCH). Both matrices are seen through the same sums, drawn from a fixed seed: a diagnostic of the same replies must
    be deterministic.
    """
    (rank, d_in), d_out = pairs[0].a.shape, len(pairs[0].b)
    generator = np.random.default_rng(0)
    signs = generator.choice(np.array([-1, 1], np.float32), (d_out, 1))
    share = -(-d_out // SKETCH)  # rows of a sum; the last ones are filled up with zeros
    adds = np.tile(np.eye(rank, dtype=np.float32), (share, 1))
    whole, seen_b, mean_a = np.zeros((SKETCH, d_in)), np.zeros((SKETCH, rank)), np.zeros(rank * d_in)
    for block in _blocks(pairs, weights):
        signed = block.b * signs
        if share * SKETCH != d_out:
            signed = np.pad(signed, ((0, 0), (0, share * SKETCH - d_out), (0, 0)))
        sums = (signed.reshape(-1, share * rank) @ adds).reshape(-1, SKETCH, rank)
        sums *= block.weights[:, None, None]
        whole += sums.transpose(1, 0, 2).reshape(SKETCH, -1) @ block.rows
        seen_b += sums.sum(axis=0)
        mean_a += block.weights @ block.a.reshape(len(block.a), -1)
    lost = whole - seen_b @ mean_a.reshape(rank, d_in)
    return float(np.square(lost).sum()), float(np.square(whole).sum())


def _streamed_norms(pairs: Sequence[LowRankPair]) -> np.ndarray:
    """From tr(b^T b a a^T)."""
    import torch

    found = []
    for block in _blocks(pairs, np.ones(len(pairs))):
        a, b = torch.from_numpy(block.a), torch.from_numpy(block.b)
        grams = torch.bmm(b.transpose(1, 2), b) * torch.bmm(a, a.transpose(1, 2))
        found.append(np.sqrt(np.maximum(grams.numpy().sum(axis=(1, 2), dtype=np.float64), 0.0)))
    return np.concatenate(found)
