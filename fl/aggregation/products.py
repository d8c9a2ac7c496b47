"""Sums over many devices' pairs of factors, streamed: a block of devices at a time, whatever their number.

``factors`` are (a, b) of each device, ``a`` (rank, d_in) and ``b`` (d_out, rank), of one rank; ``weights`` are (devices,) and sum
to 1. A product over a block is one float32 matrix product, blocks are added in float64: with u = 2^-24 and k devices in a block
an element of a result is off by at most (k rank + 2) u times the sum of the absolute terms it is made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fl.aggregation.blocks import places, side_by_side

INNER = 512  # devices times rank of a block: long enough for the speed of a matrix product, short enough for the cache

Factors = Sequence[tuple[np.ndarray, np.ndarray]]


class Block(NamedTuple):
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

    @property
    def spread_weights(self) -> np.ndarray:
        """Each weight ``rank`` times, (devices * rank,)."""
        return np.repeat(self.weights, self.a.shape[1])


def factor_blocks(factors: Factors, weights: np.ndarray) -> Iterator[Block]:
    """The devices in their order."""
    for place in places(len(factors), INNER // factors[0][0].shape[0]):
        a, b = (side_by_side([pair[i] for pair in factors[place]], np.float32) for i in (0, 1))
        yield Block(weights[place].astype(np.float32), a, b)


def means(factors: Factors, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The weighted means of b a (d_out, d_in), of a and of b, float64, in one pass over the devices."""
    import torch  # here, so that settings can be read without it

    (rank, d_in), d_out = factors[0][0].shape, factors[0][1].shape[0]
    product, mean_a, mean_b = np.zeros((d_out, d_in)), np.zeros(rank * d_in), np.zeros(d_out * rank)
    for block in factor_blocks(factors, weights):
        left, right = block.columns, block.rows * block.spread_weights[:, None]
        product += torch.mm(torch.from_numpy(left), torch.from_numpy(right)).numpy()  # side by side faster than NumPy's
        mean_a += block.weights @ block.a.reshape(len(block.a), -1)
        mean_b += block.weights @ block.b.reshape(len(block.b), -1)
    return product, mean_a.reshape(rank, d_in), mean_b.reshape(d_out, rank)


def sketched_gap(factors: Factors, weights: np.ndarray, directions: int) -> tuple[float, float]:
    """Squared norms of mean(b a) - mean(b) mean(a) and of mean(b a), from a few sums of their rows.

    Each of the d_out rows gets a random sign and one of ``directions`` sums (Charikar, Chen & Farach-Colton 2002, a count sketch):
    the squared norm of the sums is an unbiased estimate of the matrix's, with a relative standard error of at most
    sqrt(2 / directions). Both matrices are seen through the same sums, drawn from a fixed seed: a diagnostic of the same replies must
    be deterministic.
    """
    (rank, d_in), d_out = factors[0][0].shape, factors[0][1].shape[0]
    generator = np.random.default_rng(0)
    signs = generator.choice(np.array([-1, 1], np.float32), (d_out, 1))
    share = -(-d_out // directions)  # rows of a sum; the last ones are filled up with zeros
    adds = np.tile(np.eye(rank, dtype=np.float32), (share, 1))
    whole, seen_b, mean_a = np.zeros((directions, d_in)), np.zeros((directions, rank)), np.zeros(rank * d_in)
    for block in factor_blocks(factors, weights):
        signed = block.b * signs
        if share * directions != d_out:
            signed = np.pad(signed, ((0, 0), (0, share * directions - d_out), (0, 0)))
        sums = (signed.reshape(-1, share * rank) @ adds).reshape(-1, directions, rank)
        sums *= block.weights[:, None, None]
        whole += sums.transpose(1, 0, 2).reshape(directions, -1) @ block.rows
        seen_b += sums.sum(axis=0)
        mean_a += block.weights @ block.a.reshape(len(block.a), -1)
    lost = whole - seen_b @ mean_a.reshape(rank, d_in)
    return float(np.square(lost).sum()), float(np.square(whole).sum())


def norms(factors: Factors) -> np.ndarray:
    """The Frobenius norm of each b a, (devices,), from rank x rank Gram matrices: tr(b^T b a a^T)."""
    import torch

    found = []
    for block in factor_blocks(factors, np.ones(len(factors))):
        a, b = torch.from_numpy(block.a), torch.from_numpy(block.b)
        grams = torch.bmm(b.transpose(1, 2), b) * torch.bmm(a, a.transpose(1, 2))
        found.append(np.sqrt(np.maximum(grams.numpy().sum(axis=(1, 2), dtype=np.float64), 0.0)))
    return np.concatenate(found)
