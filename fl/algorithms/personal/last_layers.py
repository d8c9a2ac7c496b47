"""The last adapted layers stay private and the others are shared: what FedPer and FedRep have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from fl.algorithms.base import Algorithm, Capabilities, Role
from fl.settings.fields import Table, setting
from fl.settings.names import LAST_PREFIX

if TYPE_CHECKING:
    from fl.settings.config import RunConfig


class LayerOptions(Table):
    """How much is private."""

    layers: int = setting(1, "how many of the last adapted layers stay private", low=1, high=1000)


class LastLayers(Algorithm):
    """An adapter in two parts, by layers."""

    role: ClassVar[Role] = Role.PERSONALIZATION
    decides_split: ClassVar[bool] = True
    can: ClassVar[Capabilities] = Capabilities(mean=True)
    Options: ClassVar[type[Table]] = LayerOptions
    options: LayerOptions

    def trained(self, config: RunConfig) -> tuple[str, str]:
        """No gates; the split by layers."""
        return "none", f"{LAST_PREFIX}{self.options.layers}"
