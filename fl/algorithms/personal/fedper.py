"""FedPer: the last layers are private and train with the others (Arivazhagan et al. 2019)."""

from __future__ import annotations

from fl.algorithms.base import About
from fl.algorithms.personal.last_layers import LastLayers


class FedPer(LastLayers):
    """Private last layers."""

    name = "fedper"
    about = About(
        "Arivazhagan et al. 2019", "1912.00818", "all but the last layers", "nothing; a device keeps the last layers"
    )
