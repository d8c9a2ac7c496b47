"""Gates of one's own on a shared adapter: what ``adapter.gate`` and ``adapter.split`` say, and when the gates train."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl.algorithms.base import About, Algorithm, Capabilities, Role
from fl.settings.fields import setting

if TYPE_CHECKING:
    from fl.settings.config import RunConfig


class Gates(Algorithm):
    """What gate and split make private, by default the gates, never leaves the device. Its options: when and how fast gates train."""

    name = "gates"
    role = Role.PERSONALIZATION
    about = About("Gated LoRA", "2406.02562", "A and B", "nothing; a device keeps its gates")
    can = Capabilities(mean=True, ranks="first")
    private_learning_rate: float = setting(3e-3, "learning rate of private gates", low=0.0, high=10.0)
    private_share: float = setting(
        0.15,
        "the last share of all local steps trains only the gates, on frozen A and B, and nothing is sent; before it gates are neutral. "
        "0, or a single round: they train with A and B in every step",
        low=0.0,
        high=1.0,
    )

    def trained(self, config: RunConfig) -> tuple[str, str]:
        """What the adapter's settings say."""
        return config.gate, config.adapter.split
