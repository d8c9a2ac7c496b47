"""A node's configuration, as its owner starts the SuperNode with it: parsed once, and what the owner demands of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from fl.core.errors import ConfigError
from fl.core.paths import readable
from fl.settings.config import RunConfig
from fl.settings.fields import one_of
from fl.settings.names import NONE, PAIRWISE

OFF, COARSE, FULL = "off", "coarse", "full"  # of what a device says of its errors


@dataclass(frozen=True, config=ConfigDict(coerce_numbers_to_str=True))
class NodeConfig:
    """What ``--node-config`` says. A deployed node names its device; a simulated one is part ``partition`` of ``partitions``.

    The rest are demands: what the owner allows or asks for, whatever the run wants. ``bases`` are names with commas between, empty
    the project's own; ``max_examples`` are those that one message may train on, each as often as it is in a step;
    ``max_evaluations`` are those with counts in the answer, of all runs together, 0 without a limit.
    """

    device_id: Annotated[str, AfterValidator(readable)] = ""
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
    bases: str = ""
    max_examples: Annotated[int, Field(ge=1)] = 100_000
    evaluation: Annotated[str, one_of("", OFF, COARSE, FULL)] = ""
    max_evaluations: Annotated[int, Field(ge=0)] = 0

    @property
    def deployed(self) -> bool:
        """Whether this is a real device with an owner, as opposed to a part of a simulation."""
        return bool(self.device_id)

    @property
    def own(self) -> tuple[str, ...]:
        """The device of a deployed node; nothing of a simulated one, whose devices the population says."""
        return (self.device_id,) if self.deployed else ()

    def detail(self, config: RunConfig) -> str:
        """How much of its counts and losses a device says in a run: all, a coarse rate, or nothing.

        A deployed one what its owner says; without that nothing where updates are protected, since counts would bypass it.
        """
        privacy = config.privacy
        protects = self.masked_only or self.local_noise or privacy.dp.mode != NONE or privacy.secure_sum.mode != NONE
        return FULL if not self.deployed else self.evaluation or (OFF if protects else FULL)

    @property
    def masked_only(self) -> bool:
        """Whether the owner lets updates out in secure sums alone."""
        return self.secure_sum == PAIRWISE

    @classmethod
    def parse(cls, values: Mapping[str, object]) -> NodeConfig:
        """The configuration of a Flower context; :class:`ConfigError` names the key and the remedy."""
        own = {"partition": "partition-id", "partitions": "num-partitions"}
        keys = {field.name: own.get(field.name, field.name.replace("_", "-")) for field in fields(cls)}
        if "device-id" in values and (unknown := sorted(values.keys() - set(keys.values()))):
            raise ConfigError(
                f"node-config: {unknown[0]!r} is no key, and a demand that is not understood would not be held; known are "
                f"{', '.join(keys.values())}"
            )
        given: dict[str, Any] = {name: values[key] for name, key in keys.items() if key in values}
        try:
            return cls(**{**given, "share_gates": values.get("share-gates") is True})
        except ValidationError as error:
            fault = error.errors()[0]
            raise ConfigError(
                f"node-config: {keys[str(fault['loc'][0])]} = {fault['input']!r}: a demand that is not understood would not be held; "
                f"secure-sum is {NONE} or {PAIRWISE}, local-noise a finite number of at least 0, and local-noise, partition-id and "
                f"num-partitions are numbers; evaluation is {OFF}, {COARSE} or {FULL}, max-examples and max-evaluations are whole numbers, "
                "min-participants a whole one of at least 2, max-rounds and max-epsilon of at least 0"
            ) from error
