"""FedAvg: the average of the updates, weighted by training examples (McMahan et al. 2017, eq. 1)."""

from __future__ import annotations

from typing import ClassVar

from fl.algorithms.base import About, Algorithm, Capabilities, Role


class FedAvg(Algorithm):
    """The default: cheap, and composes with everything."""

    name: ClassVar[str] = "fedavg"
    role: ClassVar[Role] = Role.AGGREGATION
    about: ClassVar[About] = About("McMahan et al. 2017", "1602.05629")
    can: ClassVar[Capabilities] = Capabilities(mean=True, ranks="first")
