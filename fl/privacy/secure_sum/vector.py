"""Real numbers as integers modulo 2^32 or 2^64, so that masked sums are exact.

Numbers x with |x| <= limit are rounded to multiples of a step, 1 / scale, and negative ones wrap around. For n
contributions and noise of total standard deviation s,

    scale = (2^(m-1) - 1 - n) / (n limit + 12 s)        m = 32 or 64 bits

so that the sum cannot wrap (with noise: with probability below 4e-33 for each number). Adding integers is exact: the only error
is the rounding, at most 1 / (2 scale) for each number and contribution, n / (2 scale) for the sum.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.privacy.randomness import fresh_key, standard_normal
from fl.privacy.secure_sum.keys import SecureSumError

MODULUS_BITS: dict[int, np.dtype[Any]] = {32: np.dtype(np.uint32), 64: np.dtype(np.uint64)}
NOISE_TAIL = 12.0  # standard deviations for which there is room
NOISE_STEPS = 8.0  # a device's share of the noise must span so many steps: see :meth:`FixedPointGrid.encode`
MAX_EXACT_BITS = 53  # of float64, in which numbers are scaled

Words = NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class FixedPointGrid:
    """The grid on which ``contributions`` vectors with entries of at most ``limit`` are summed. Public, the same for all."""

    limit: float  # largest absolute value of an entry: weight times update; the clipping norm bounds it
    contributions: int  # largest number of vectors in the sum
    bits: int = 32
    noise: float = 0.0  # standard deviation of the noise in the sum, 0 without

    def __post_init__(self) -> None:
        if self.bits not in MODULUS_BITS:
            raise SecureSumError(f"modulus of {self.bits} bits is unknown: use {' or '.join(map(str, MODULUS_BITS))}")
        if not (math.isfinite(self.limit) and self.limit > 0) or not (math.isfinite(self.noise) and self.noise >= 0):
            raise SecureSumError(f"limit {self.limit} must be positive and noise {self.noise} at least 0, both finite")
        if not 1 <= self.contributions <= 2 ** (self.bits // 2):
            raise SecureSumError(
                f"{self.contributions} contributions: a modulus of {self.bits} bits takes 1 to {2 ** (self.bits // 2):,}"
            )

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of encoded vectors."""
        return MODULUS_BITS[self.bits]

    @property
    def scale(self) -> float:
        """Steps in 1."""
        room = 2.0 ** (self.bits - 1) - 1 - self.contributions
        scale = room / (self.contributions * self.limit + NOISE_TAIL * self.noise)
        return min(scale, 2.0 ** (MAX_EXACT_BITS - 1) / self.limit)

    @property
    def error(self) -> float:
        """Largest error of one number in a sum of all contributions."""
        return self.contributions / (2.0 * self.scale)

    def norm_slack(self, size: int) -> float:
        """By how much rounding can lengthen a vector of ``size`` numbers.

        Clip to the clipping norm less this much, and the norm on the grid is within the clipping norm.
        """
        return math.sqrt(size) / (2.0 * self.scale)

    def encode(self, values: NDArray[np.floating], noise: float = 0.0, key: bytes | None = None) -> Words:
        """Numbers ``(size,)`` as words, plus Gaussian noise of standard deviation ``noise`` rounded to the grid.

        The values are put on the grid *before* the noise, so that the noise in the sum does not depend on them. A sum of
        rounded Gaussians over at least 8 steps each is, but for a total variation below exp(-pi^2 8^2 / 2) per number and
        device, itself a rounding of (Gaussian + something independent of the data): the sum is a post-processing of the
        Gaussian mechanism that is accounted for. Coarser noise is refused.
        """
        values = np.asarray(values, np.float64)
        if not np.isfinite(values).all():
            raise SecureSumError("the vector holds NaN or infinity: training diverged, take no part in this round")
        largest = float(np.abs(values).max(initial=0.0))
        if largest > self.limit * (1 + 1e-9):
            raise SecureSumError(f"an entry of {largest:g} is above the limit {self.limit:g}: clip the update first")
        steps = np.rint(np.clip(values, -self.limit, self.limit) * self.scale)
        if noise:
            if noise > self.noise or noise * self.scale < NOISE_STEPS:
                raise SecureSumError(
                    f"noise of {noise:g} needs a grid planned for at least that much ({self.noise:g}) and "
                    f"steps of at most an eighth of it ({1 / self.scale:g}): use 64 bits or plan the noise"
                )
            steps += np.rint(standard_normal(key or fresh_key(), len(values)) * (noise * self.scale))
        words: Words = steps.astype(np.int64).astype(self.dtype)
        return words

    def decode(self, words: Words) -> NDArray[np.float64]:
        """A sum of encoded vectors as numbers: words above half of the modulus are negative."""
        signed = words.view(np.dtype(f"i{words.dtype.itemsize}"))
        return signed.astype(np.float64) / self.scale


def flatten(sums: Mapping[str, np.ndarray], weight: float, unit: float) -> NDArray[np.float64]:
    """Weighted tensors and their weight as one vector, in the order of names; the weight comes last, a weight of 1 as ``unit``."""
    if not 0.0 <= weight < math.inf:
        raise SecureSumError(f"weight {weight} of a vector must be a finite number of at least 0")
    parts = [np.asarray(sums[name], np.float64).reshape(-1) for name in sorted(sums)]
    return np.concatenate([*parts, [weight * unit]])


def unflatten(
    numbers: NDArray[np.float64], shapes: Mapping[str, tuple[int, ...]], unit: float
) -> tuple[dict[str, NDArray[np.float64]], float]:
    """The inverse of :func:`flatten` on a sum: sums by name, and the total weight."""
    names = sorted(shapes)
    sizes = [math.prod(shapes[name]) for name in names]
    if numbers.shape != (sum(sizes) + 1,):
        raise SecureSumError(f"a sum of {numbers.shape} numbers does not fit the {len(shapes)} shared tensors")
    *parts, weight = np.split(numbers, np.cumsum(sizes, dtype=int))
    sums = {name: part.reshape(shapes[name]) for name, part in zip(names, parts, strict=True)}
    return sums, float(weight[0]) / unit
