"""SCAFFOLD: control variates take the pull of each device's own data out of its local steps (arXiv 1910.06378, option II).

The aggregator keeps c, the mean of the devices' control variates c_k, beside the shared tensors x. Devices get both, the one under
``control:<name>``, and send both back, x_k after training and c moved by their own difference (:mod:`clients.training.control`). Then

    x <- sum_{k in S} p_k x_k / sum_{k in S} p_k          c <- c + sum_{k in S} p_k (c_k+ - c_k)

with p_k device k's share of all devices' examples. In the paper all p_k are 1 / N; with shares c is the gradient of the
weighted objective that FedAvg's mean minimizes too. Both sums are sums over devices, so nodes may send them (edge sums).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from fl.adapters.split import CONTROL
from fl.protocol.wire import FEDERATE
from fl.settings.names import EDGE
from strategies.averaging import average, product_gaps
from strategies.base import SharedFedAvg
from strategies.replies import DeviceReply


@dataclass
class Scaffold(SharedFedAvg):
    """FedAvg of x and c. ``control`` is c in float64 by the names of the shared tensors, zero where it has none yet."""

    control: dict[str, np.ndarray] = field(default_factory=dict)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The shared tensors with their control variates, in rounds in which they are trained."""
        rests = bool(self.rests_from) and server_round >= self.rests_from
        if self.job.phase == FEDERATE and not rests:
            sent = dict(arrays.items())
            for name, array in arrays.items():
                value = self.control.get(name, np.zeros(array.shape))
                sent[CONTROL + name] = Array(value.astype(np.float32))
            arrays = ArrayRecord(sent)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate(self, replies: tuple[DeviceReply, ...]) -> ArrayRecord:
        """The mean of the shared tensors; c moves by the mean of the differences, less the fewer devices took part."""
        weights = {reply.device_id: reply.examples for reply in replies}
        taking = sum(weights.values()) / sum(self.roster.examples[device_id] for device_id in self.job.devices)
        mean = average(replies, weights)
        names = [name for name in mean if not name.startswith(CONTROL)]
        for name in names:
            sent = self._incoming[CONTROL + name].numpy().astype(np.float64)
            before = self.control.get(name, np.zeros_like(sent))
            self.control[name] = before + taking * (mean[CONTROL + name].numpy() - sent)
        return ArrayRecord({name: mean[name] for name in names})

    def diagnostics(self) -> dict[str, float]:
        """As for FedAvg: control variates have no products."""
        return {} if self.aggregation == EDGE else product_gaps([_without_control(reply) for reply in self.last.parts])

    def server_state(self) -> dict[str, np.ndarray]:
        """c beside the optimizer's moments."""
        return {**super().server_state(), **{CONTROL + name: values for name, values in self.control.items()}}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from :meth:`server_state`."""
        self.control = {n.removeprefix(CONTROL): np.array(v) for n, v in state.items() if n.startswith(CONTROL)}
        super().restore({name: values for name, values in state.items() if not name.startswith(CONTROL)})


def _without_control(reply: DeviceReply) -> DeviceReply:
    shared = {name: values for name, values in (reply.shared or {}).items() if not name.startswith(CONTROL)}
    return replace(reply, shared=shared)
