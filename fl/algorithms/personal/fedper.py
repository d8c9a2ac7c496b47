"""FedPer: the last adapted layers are private and train with the others (Arivazhagan et al. 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl.algorithms.base import About, Algorithm, Capabilities, Role
from fl.settings.fields import setting
from fl.settings.names import LAST_PREFIX

if TYPE_CHECKING:
    from fl.settings.config import RunConfig


class FedPer(Algorithm):
    """An adapter in two parts, by layers."""

    name = "fedper"
    role = Role.PERSONALIZATION
    about = About(
        "Arivazhagan et al. 2019", "1912.00818", "all but the last layers", "nothing; a device keeps the last layers"
    )
    can = Capabilities(mean=True)
    decides_split = True
    layers: int = setting(1, "how many of the last adapted layers stay private", low=1, high=1000)

    def trained(self, config: RunConfig) -> tuple[str, str]:
        """No gates; the split by layers."""
        return "none", f"{LAST_PREFIX}{self.layers}"
