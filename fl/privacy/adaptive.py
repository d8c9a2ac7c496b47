"""A clipping norm that nobody has to guess: it follows a quantile of the norms of the updates, privately."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fl.privacy.dp import PrivacyError, check_positive
from fl.privacy.randomness import fresh_key, standard_normal


@dataclass(frozen=True)
class AdaptiveClipping:
    """The clipping norm follows a quantile of the updates' norms (Andrew et al. 2021, arXiv 1905.03871, algorithm 1).

    Each device adds to a second sum the bit "my norm is within C" minus 1/2; that sum gets noise too. With the sum's noise
    at :attr:`update_multiplier` both together cost exactly what one release at ``noise_multiplier`` costs.
    """

    bound: float  # C of the next round
    noise_multiplier: float  # z that is accounted for
    count_deviation: float  # of the noise on the sum of bits; the paper takes a twentieth of the expected devices
    quantile: float = 0.5
    rate: float = 0.2

    def __post_init__(self) -> None:
        check_positive(self.bound, "clipping norm")
        check_positive(self.noise_multiplier, "noise multiplier")
        if not 0.0 < self.quantile < 1.0 or not self.rate > 0:
            raise PrivacyError(f"quantile {self.quantile} must be in (0, 1) and rate {self.rate} positive")
        if not 2.0 * self.count_deviation > self.noise_multiplier:
            raise PrivacyError(
                f"count deviation {self.count_deviation} leaves nothing for the updates: it must be above "
                f"{self.noise_multiplier / 2:g}, half the noise multiplier"
            )

    @property
    def update_multiplier(self) -> float:
        """``(z^-2 - (2 sigma_b)^-2)^(-1/2)``: the multiplier of the noise on the updates; a bit moves its sum by 1/2."""
        return float((self.noise_multiplier**-2 - (2.0 * self.count_deviation) ** -2) ** -0.5)

    def next(self, bits: float, devices: float, key: bytes | None = None, *, noisy: bool = False) -> AdaptiveClipping:
        """The setting for the next round from the sum of ``bits`` and the public number of ``devices``.

        The sum gets its noise here, unless it is ``noisy`` already.
        """
        noise = 0.0 if noisy else float(standard_normal(key or fresh_key(), 1)[0]) * self.count_deviation
        share = (bits + noise) / check_positive(devices, "number of devices") + 0.5
        # Noise can carry the share beyond 0 and 1; a step of more than exp(rate) would be noise alone.
        step = min(1.0, max(0.0, share)) - self.quantile
        return replace(self, bound=self.bound * math.exp(-self.rate * step))
