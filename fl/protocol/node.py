"""A node's configuration, as its owner starts the SuperNode with it: parsed once, and what the owner demands of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fl.core.errors import ConfigError
from fl.settings.names import NONE, PAIRWISE


@dataclass(frozen=True)
class NodeConfig:
    """What ``--node-config`` says. A deployed node names its device; a simulated one is part ``partition`` of ``partitions``.

    ``share_gates``, ``secure_sum`` and ``local_noise`` are demands: what the owner allows or asks for, whatever the run wants.
    """

    device_id: str = ""
    partition: int = 0
    partitions: int = 0
    store: str = ""
    manifest: str = ""
    share_gates: bool = False
    secure_sum: str = NONE
    local_noise: float = 0.0

    @property
    def deployed(self) -> bool:
        """Whether this is a real device with an owner, as opposed to a part of a simulation."""
        return bool(self.device_id)

    @property
    def masked_only(self) -> bool:
        """Whether the owner lets updates out in secure sums alone."""
        return self.secure_sum == PAIRWISE

    @classmethod
    def parse(cls, values: Mapping[str, object]) -> NodeConfig:
        """The configuration of a Flower context; :class:`ConfigError` names the key and the remedy."""
        try:
            node = cls(
                device_id=str(values.get("device-id", "")),
                partition=int(str(values.get("partition-id", 0))),
                partitions=int(str(values.get("num-partitions", 0))),
                store=str(values.get("store", "")),
                manifest=str(values.get("manifest", "")),
                share_gates=values.get("share-gates") is True,
                secure_sum=str(values.get("secure-sum", NONE)),
                local_noise=float(str(values.get("local-noise", 0.0))),
            )
        except ValueError as error:
            raise ConfigError(
                f"node-config: {error}; local-noise, partition-id and num-partitions are numbers"
            ) from error
        if node.secure_sum not in (NONE, PAIRWISE) or not 0 <= node.local_noise < math.inf:
            raise ConfigError(
                f"node-config: secure-sum = {node.secure_sum!r} and local-noise = {node.local_noise:g}: a demand that is not understood "
                f"would not be held; secure-sum is {NONE} or {PAIRWISE}, and local-noise a finite number of at least 0"
            )
        return node
