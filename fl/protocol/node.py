"""A node's configuration, as its owner starts the SuperNode with it: parsed once, and what the owner demands of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from fl.core.errors import ConfigError
from fl.settings.fields import one_of
from fl.settings.names import NONE, PAIRWISE


@dataclass(frozen=True, config=ConfigDict(coerce_numbers_to_str=True))
class NodeConfig:
    """What ``--node-config`` says. A deployed node names its device; a simulated one is part ``partition`` of ``partitions``.

    ``share_gates`` and all from ``secure_sum`` to ``max_epsilon`` are demands: what the owner allows or asks for, whatever the
    run wants.
    """

    device_id: str = ""
    partition: int = 0
    partitions: int = 0
    store: str = ""
    manifest: str = ""
    share_gates: bool = False
    secure_sum: Annotated[str, one_of(NONE, PAIRWISE)] = NONE
    local_noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    min_participants: Annotated[int, Field(ge=2)] = 3  # of a secure sum
    max_rounds: Annotated[int | None, Field(ge=0)] = None  # in which an update leaves, of all runs together
    max_epsilon: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None  # of those rounds
    key: str = ""  # of the SuperNode, to sign with
    peers: str = ""  # file of the public keys of the other devices

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
        own = {"partition": "partition-id", "partitions": "num-partitions"}
        keys = {field.name: own.get(field.name, field.name.replace("_", "-")) for field in fields(cls)}
        given: dict[str, Any] = {name: values[key] for name, key in keys.items() if key in values}
        try:
            return cls(**{**given, "share_gates": values.get("share-gates") is True})
        except ValidationError as error:
            fault = error.errors()[0]
            raise ConfigError(
                f"node-config: {keys[str(fault['loc'][0])]} = {fault['input']!r}: a demand that is not understood would not be held; "
                f"secure-sum is {NONE} or {PAIRWISE}, local-noise a finite number of at least 0, and local-noise, partition-id and "
                "num-partitions are numbers; min-participants is a whole one of at least 2, max-rounds and max-epsilon of at least 0"
            ) from error
