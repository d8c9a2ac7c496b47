"""The arms of a comparison: who trains what, by which algorithms and schedule, and whose tensors decode.

A *trained* arm owns a federation (or its absence); a *derived* arm only evaluates what a trained one left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from fl.adapters.gates.table import GATES
from fl.algorithms.base import Algorithm
from fl.algorithms.personal.finetune import Finetune
from fl.algorithms.personal.gates import Gates
from fl.algorithms.schedule import Schedule
from fl.algorithms.shared.fedavg import FedAvg
from fl.algorithms.table import Chosen, chosen, make_algorithm
from fl.settings.config import RunConfig

EVERYONE = "everyone"  # the virtual device of the arm "centralized": the training data of all devices in one place
HELD_OUT = ("zero-shot", "global", "neutral", "centralized")  # the arms that mean something for people who never train
PERSONALIZED, NEUTRAL = "personalized", "neutral"
REPORTED = (PERSONALIZED, "global", "local", "centralized")  # whose sizes a report is about, the first that there is


@dataclass(frozen=True)
class Arm:
    """How one arm is trained. ``shared`` is None where its devices do not federate.

    ``devices`` is ``each``, or ``everyone`` for all data as one device; ``starts_from`` the arm whose final shared tensors are the
    starting point; ``joint`` says that its gates, if it has any, train with the rest in every step.
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

    @property
    def federates(self) -> bool:
        """Whether devices of this arm send updates, so that there is something to aggregate."""
        return self.shared is not None

    @property
    def algorithms(self) -> tuple[Algorithm, ...]:
        """Those that have a word in its local plans, in the order in which they change it."""
        if self.devices == EVERYONE:  # all data in one place has no others to stay close to, nor to alternate with
            return ()
        return (self.personal, *self.local, *([self.shared] if self.shared is not None else []))


@lru_cache(maxsize=256)
def trained_arm(name: str, config: RunConfig) -> Arm | None:
    """The training that arm ``name`` needs; None for arms that only evaluate (``zero-shot``, ``neutral``)."""
    gate = config.gate if config.adapter.gated_arms == "all" else "none"
    found = chosen(config)
    plain = make_algorithm(config, Gates.name)
    if name == PERSONALIZED:
        gate, split = found.personal.trained(config)
        return _arm(config, name, gate, split, found, joint=False)
    kinds = {
        "local": ("all-private", "each", ""),
        "global": ("all-shared", "each", ""),
        "global+finetune": ("all-private", "each", "global"),
        "centralized": ("all-shared", EVERYONE, ""),
    }
    if name not in kinds:
        return None
    split, devices, starts_from = kinds[name]
    shared = found.shared if not found.shared.split else make_algorithm(config, FedAvg.name)
    return _arm(config, name, gate, split, Chosen(shared, plain, found.local), devices, starts_from)


def untrained_arm(name: str, config: RunConfig) -> Arm:
    """What stands for an arm that evaluates the frozen base: nothing is trained or shared."""
    arm = trained_arm("centralized", config)
    assert arm is not None
    return replace(arm, name=name, gate="none", devices="each")


def _arm(
    config: RunConfig,
    name: str,
    gate: str,
    split: str,
    found: Chosen,
    devices: str = "each",
    starts_from: str = "",
    *,
    joint: bool = True,
) -> Arm:
    federates = devices != EVERYONE and not starts_from and split != "all-private"
    gates, finetune = make_algorithm(config, Gates.name), make_algorithm(config, Finetune.name)
    schedule = Schedule(
        config.train,
        gates.options,  # type: ignore[arg-type]
        config.federation.rounds,
        finetune.options.finetune_steps,  # type: ignore[attr-defined]
        gated=bool(GATES.find(gate).parameters) and not joint,
        exchanges=federates,
        finetunes=bool(starts_from),
    )
    shared = found.shared if federates else None
    return Arm(name, gate, split, schedule, found.personal, shared, found.local, devices, starts_from)


def evaluated_as(name: str, config: RunConfig) -> tuple[Arm | None, bool]:
    """Whose tensors decode in arm ``name``: the trained arm (None is the frozen base), and whether its gates are neutral."""
    if name == NEUTRAL:
        return trained_arm(PERSONALIZED, config), True
    return trained_arm(name, config), False


def adapter_name(gate: str) -> str:
    """PEFT's name of the adapter slot for a gate; hyphenated, since names like ``decoder`` collide with modules."""
    return f"gated-{gate}"
