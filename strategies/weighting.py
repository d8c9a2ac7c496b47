"""FedNova: devices that take more local steps do not pull the shared tensors towards themselves (arXiv 2007.07481)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from flwr.app import Array, ArrayRecord

from fl.aggregation.pairs import shares
from strategies.averaging import average
from strategies.base import SharedFedAvg
from strategies.replies import DeviceReply


@dataclass
class FedNova(SharedFedAvg):
    """Normalized averaging: x + tau sum_k p_k (x_k - x) / tau_k, with p_k the share of examples and tau = sum_k p_k tau_k.

    tau_k are the steps that device k says it took (the paper's vanilla case; with another local optimizer than SGD an
    approximation). With equal steps it is FedAvg.
    """

    single_devices: ClassVar[bool] = True

    def fault(self, reply: DeviceReply) -> str:
        """A device that took no step has no direction per step."""
        steps = reply.numbers.get("steps", 0.0)
        return "" if steps > 0 else f"says that it took {steps:g} local steps"

    def aggregate(self, replies: tuple[DeviceReply, ...]) -> ArrayRecord:
        """The mean of the devices' directions per step, as long as the mean number of steps."""
        steps = np.array([reply.numbers["steps"] for reply in replies])
        p = shares([reply.examples for reply in replies])
        factors = p * float(p @ steps) / steps  # of the updates; their sum is not 1
        total = float(factors.sum())
        mean = average(replies, {reply.device_id: f for reply, f in zip(replies, factors, strict=True)})
        if np.isclose(total, 1.0, rtol=1e-12, atol=0):
            return mean
        start = {name: self._incoming[name].numpy().astype(np.float64) for name in mean}
        return ArrayRecord({n: Array((x + total * (mean[n].numpy() - x)).astype(np.float32)) for n, x in start.items()})
