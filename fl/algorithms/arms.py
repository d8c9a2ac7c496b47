"""The arms of a comparison: who trains what, and whose tensors decode.

A *trained* arm owns a federation (or its absence); a *derived* arm only evaluates what a trained one left.
"""

from __future__ import annotations

from dataclasses import dataclass

from fl.settings.config import RunConfig
from fl.settings.names import LAST_PREFIX, PERSONALIZATIONS

BY_GATES = PERSONALIZATIONS[0]  # what gate and split say, as opposed to a method by name
SPLITTING = ("fedper", "fedrep")  # methods that keep the last layers private
EVERYONE = "everyone"  # the virtual device of the arm "centralized": the training data of all devices in one place


@dataclass(frozen=True)
class Arm:
    """How one arm is trained."""

    name: str
    gate: str
    split: str
    devices: str = "each"  # "each" device trains, or "everyone": all data as one device
    starts_from: str = ""  # arm whose final shared tensors are the starting point of one local phase
    joint: bool = False  # its gates, if it has any, train with the rest in every step, not in a phase of their own
    personal: str = BY_GATES  # how the devices come to models of their own: one of fl.settings.config.PERSONALIZATIONS


def trained_arm(name: str, config: RunConfig) -> Arm | None:
    """The training that arm ``name`` needs; None for arms that only evaluate (``zero-shot``, ``neutral``)."""
    gate = config.gate if config.adapter.gated_arms == "all" else "none"
    table = {
        "local": Arm("local", gate, split="all-private", joint=True),
        "global": Arm("global", gate, split="all-shared", joint=True),
        "global+finetune": Arm("global+finetune", gate, split="all-private", starts_from="global", joint=True),
        "personalized": _personalized(config),
        "centralized": Arm("centralized", gate, split="all-shared", devices=EVERYONE, joint=True),
    }
    return table.get(name)


def _personalized(config: RunConfig) -> Arm:
    """The arm ``personalized``: the gated adapter and its split, or a method of the literature on plain LoRA."""
    method = config.personal.personalization
    if method == BY_GATES:
        return Arm("personalized", gate=config.gate, split=config.adapter.split)
    split = f"{LAST_PREFIX}{config.personal.personal_layers}" if method in SPLITTING else "all-shared"
    return Arm("personalized", gate="none", split=split, personal=method)


def federates(arm: Arm) -> bool:
    """Whether devices of this arm put together what they learned, so that a strategy has something to do."""
    return arm.devices != EVERYONE and not arm.starts_from and arm.split != "all-private"


def evaluated_as(name: str, config: RunConfig) -> tuple[Arm | None, bool]:
    """Whose tensors decode in arm ``name``: the trained arm (None is the frozen base), and whether its gates are neutral."""
    if name == "neutral":
        return trained_arm("personalized", config), True
    return trained_arm(name, config), False


ADAPTER_OF_GATE = "gated-{}"


def adapter_name(gate: str) -> str:
    """PEFT's name of the adapter slot for a gate; hyphenated, since names like ``decoder`` collide with modules."""
    return ADAPTER_OF_GATE.format(gate)
