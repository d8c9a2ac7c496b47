"""Enrolment: after the last round every device trains a part of the finished shared adapter as its own, on its own sentences.

Its options are the default of everything that enrols: ``idiolect enrol``, ``POST /v1/adapt``, and the arm ``personalized`` with
``algorithm = enrolment``. How many steps a device takes it decides by sentences left out (:mod:`clients.training.enrol`), and it
stays with the shared adapter where none help.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl.adapters.split import OWN, in_part
from fl.algorithms.base import About, Capabilities
from fl.algorithms.personal.own_adapter import OwnAdapter
from fl.core.errors import ConfigError
from fl.settings.fields import setting

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fl.adapters.state import State
    from fl.settings.config import RunConfig


DECODER_PART = "B@decoder"


def fitting_part(part: str, names: Iterable[str]) -> str:
    """``part`` of an adapter with these tensors: B of all modules for the default where no decoder is adapted, as in a classifier."""
    return part if part != DECODER_PART or any(map(in_part(part), names)) else "B"


class EnrolledPart(OwnAdapter):
    """The default personalization: B of the decoder, unless the options say otherwise, so that the encoder stays everybody's."""

    name = "enrolment"
    about = About("after Yu et al. 2020", "2002.04758", "A and B", "nothing; a device keeps the part that it enrolled")
    afterwards = True
    can = Capabilities(mean=True, low_rank=True, ranks="first")
    enrolment_part: str = setting(
        DECODER_PART,
        "what trains: A, B or both (A,B); in some modules alone: B@decoder, which is B where no decoder is adapted",
    )
    enrolment_rate: float = setting(8e-4, "learning rate of the part", low=0.0, high=10.0)
    steps: int = setting(
        24, "most steps of a device; left-out sentences choose among 0 and fractions", low=1, high=100_000
    )
    directions: int = setting(
        16,
        "directions that have the most of the last round's updates, to which a part is drawn; all get them. 0 for none, and none are "
        "made where the aggregator is not to see single updates",
        low=0,
        high=256,
    )

    @property
    def grid(self) -> tuple[int, ...]:
        """The numbers of steps that left-out sentences choose among, ascending from 0."""
        return tuple(sorted({0, *(self.steps // part for part in (8, 4, 2, 1))}))

    def start(self, shared: State, seed: int) -> State:
        """The part as the shared adapter has it."""
        from fl.adapters.blend import copied

        chosen = in_part(fitting_part(self.enrolment_part, shared))
        return copied({name: tensor for name, tensor in shared.items() if chosen(name)})

    def build(self, shared: State, own: State) -> State:
        """The shared adapter with the own part in it."""
        return {**shared, **{name.removeprefix(OWN): tensor for name, tensor in own.items()}}

    def kept_bytes(self, own: State) -> int:
        """In int8 with a scale for each row."""
        from fl.packed.blob import quantized

        return sum(array.nbytes for array in quantized({name: t.numpy() for name, t in own.items()}).values())

    def refused(self, config: RunConfig) -> str:
        """Only a part of A and B can be enrolled on an adapter without gates."""
        try:
            in_part(self.enrolment_part)
        except ConfigError as error:
            return f"algorithm.enrolment.enrolment-part: {error}"
        return (
            f"algorithm.enrolment.enrolment-part = {self.enrolment_part!r}: the arm's adapter has no gates; give A, B or A,B"
            if "gate" in self.enrolment_part.partition("@")[0]
            else ""
        )
