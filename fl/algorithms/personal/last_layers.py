"""The last adapted layers stay private and the others are shared: what FedPer and FedRep have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl.algorithms.base import Algorithm, Capabilities, Role
from fl.settings.fields import setting
from fl.settings.names import LAST_PREFIX

if TYPE_CHECKING:
    from fl.settings.config import RunConfig


class LastLayers(Algorithm):
    """An adapter in two parts, by layers."""

    role = Role.PERSONALIZATION
    decides_split = True
    can = Capabilities(mean=True)
    layers: int = setting(1, "how many of the last adapted layers stay private", low=1, high=1000)

    def trained(self, config: RunConfig) -> tuple[str, str]:
        """No gates; the split by layers."""
        return "none", f"{LAST_PREFIX}{self.layers}"
