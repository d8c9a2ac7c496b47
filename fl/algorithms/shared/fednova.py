"""FedNova: devices that take more local steps do not pull the shared tensors towards themselves (Wang et al. 2020)."""

import numpy as np

from fl.aggregation.mean import average
from fl.aggregation.pairs import shares
from fl.aggregation.updates import DeviceUpdate
from fl.algorithms.base import About, Algorithm, Capabilities, Round


class FedNova(Algorithm):
    """tau sum_k p_k d_k / tau_k for the updates d_k, with p_k the share of examples and tau = sum_k p_k tau_k.

    tau_k are the steps that device k says it took, at most those that it was asked for (the paper's vanilla case; with another
    local optimizer than SGD an approximation). With equal steps it is FedAvg.
    """

    name = "fednova"
    about = About("Wang et al. 2020", "2007.07481")
    can = Capabilities(sums=False)

    def fault(self, update: DeviceUpdate) -> str:
        """A device that took no step has no direction per step, and one of a small part of a step would have a huge one."""
        steps = update.numbers.get("steps", 0.0)
        return "" if steps >= 1 else f"says that it took {steps:g} local steps"

    def aggregate(self, found: Round) -> dict[str, np.ndarray]:
        """The mean of the devices' directions per step, as long as the mean number of steps."""
        steps = np.array([min(update.numbers["steps"], found.steps) for update in found.updates])
        p = shares(found.examples)
        factors = p * float(p @ steps) / steps  # of the updates; their sum need not be 1
        total = float(factors.sum())
        return {name: total * values for name, values in average(found.updates, list(factors)).items()}
