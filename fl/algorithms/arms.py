"""The arms of a comparison: who trains what, by which algorithms and schedule, and whose tensors decode.

A *trained* arm owns a federation (or its absence); a *derived* arm only evaluates what a trained one left.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

from fl.adapters.gates.table import GATES
from fl.algorithms.base import Algorithm
from fl.algorithms.personal.enrolment import EnrolledPart
from fl.algorithms.personal.finetune import Finetune
from fl.algorithms.personal.gates import Gates
from fl.algorithms.schedule import Schedule
from fl.algorithms.shared.fedavg import FedAvg
from fl.algorithms.table import Chosen, chosen, with_options
from fl.methods.table import METHODS
from fl.settings.config import RunConfig
from fl.settings.names import EDGE, NO_OP, NONE, PERSONALIZED

EVERYONE = "everyone"  # the virtual device of the arm "centralized": the training data of all devices in one place
HELD_OUT = ("zero-shot", "global", "neutral", "centralized")  # the arms that mean something for people who never train
NEUTRAL = "neutral"
REPORTED = (PERSONALIZED, "global", "local", "centralized")  # whose sizes a report is about, the first that there is


@dataclass(frozen=True)
class Arm:
    """How one arm is trained. ``shared`` is None where its devices do not federate.

    ``devices`` is ``each``, or ``everyone`` for all data as one device; ``starts_from`` the arm whose final shared tensors are the
    starting point.
    """

    name: str
    gate: str
    split: str
    schedule: Schedule
    personal: Algorithm
    shared: Algorithm | None = None
    local: tuple[Algorithm, ...] = ()
    devices: str = "each"
    starts_from: str = ""
    directions: int = 0  # that the aggregator makes of the last round's updates, for enrolments

    @property
    def federates(self) -> bool:
        """Whether devices of this arm send updates, so that there is something to aggregate."""
        return self.shared is not None

    @property
    def aggregation(self) -> Algorithm:
        """What aggregates its updates; FedAvg, which has nothing to do, where its devices do not federate."""
        if self.shared is None:
            return FedAvg()
        return self.personal if self.personal.aggregates else self.shared

    @property
    def algorithms(self) -> tuple[Algorithm, ...]:
        """Those that have a word in its local plans, in the order in which they change it."""
        if self.devices == EVERYONE:  # all data in one place has no others to stay close to, nor to alternate with
            return ()
        return (self.personal, *self.local, *([self.shared] if self.shared is not None else []))


KINDS = {  # of the arms beside the personalized one: split, devices, and the arm that it starts from
    "local": ("all-private", "each", ""),
    "global": ("all-shared", "each", ""),
    "global+finetune": ("all-private", "each", "global"),
    "centralized": ("all-shared", EVERYONE, ""),
}


@lru_cache(maxsize=256)
def trained_arm(name: str, config: RunConfig) -> Arm | None:
    """The training that arm ``name`` needs; None for arms that only evaluate (``zero-shot``, ``neutral``)."""
    found, gates = chosen(config), with_options(config, Gates)
    if name == PERSONALIZED:
        gate, split = found.personal.trained(config)
        devices, starts_from = "each", ""
    elif name in KINDS:
        gate = config.gate if config.gated_everywhere else "none"
        split, devices, starts_from = KINDS[name]
        shared = found.shared if not found.shared.split else with_options(config, FedAvg)
        found = Chosen(shared, gates, found.local)
    else:
        return None
    # Only there gates train in steps of their own: elsewhere, if there are any, they train with the rest in every step.
    gated = name == PERSONALIZED and bool(GATES.find(gate).parameters)
    federates = devices != EVERYONE and not starts_from and split != "all-private"
    second = found.personal.second
    afterwards = second is not None and second.afterwards
    missed = config.federation.sample != 1 and (second is not None or split != "all-shared")  # whoever is never drawn
    learns = config.task != NO_OP
    train = config.train
    if name == "local":
        train = train.model_copy(update={"learning_rate": train.learning_rate * train.local_rate})
    schedule = Schedule(
        train,
        gates,
        config.federation.rounds,
        gated=gated,
        exchanges=federates,
        closes=name == PERSONALIZED and federates and learns and (afterwards or missed),
        finetune=with_options(config, Finetune) if starts_from else None,
    )
    shared_by = found.shared if federates else None
    arm = Arm(name, gate, split, schedule, found.personal, shared_by, found.local, devices, starts_from)
    return replace(arm, directions=with_options(config, EnrolledPart).directions if _tells_updates(arm, config) else 0)


def _tells_updates(arm: Arm, config: RunConfig) -> bool:
    """Whether the aggregator may look at single devices' updates, and tell all what it sees: of a whole adapter of A and B alone, one
    for everybody, which is the updates' mean."""
    privacy = config.privacy
    unprotected = privacy.dp.mode == NONE == privacy.secure_sum.mode and config.federation.aggregation != EDGE
    whole = (
        METHODS[config.adapter.method].low_rank and arm.split == "all-shared" and not GATES.find(arm.gate).parameters
    )
    return arm.federates and arm.aggregation.can.mean and not arm.personal.aggregates and unprotected and whole


def untrained_arm(name: str, config: RunConfig) -> Arm:
    """What stands for an arm that evaluates the frozen base: nothing is trained or shared."""
    arm = trained_arm("centralized", config)
    assert arm is not None
    return replace(arm, name=name, gate="none", devices="each")


def evaluated_as(name: str, config: RunConfig) -> tuple[Arm | None, bool]:
    """Whose tensors decode in arm ``name``: the trained arm (None is the frozen base), and whether its gates are neutral."""
    if name == NEUTRAL:
        return trained_arm(PERSONALIZED, config), True
    return trained_arm(name, config), False


def adapter_name(gate: str) -> str:
    """PEFT's name of the adapter slot for a gate; hyphenated, since names like ``decoder`` collide with modules."""
    return f"gated-{gate}"
