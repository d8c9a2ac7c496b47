"""The arms of a comparison: who trains what, and whose tensors decode.

A *trained* arm owns a federation (or its absence); a *derived* arm only evaluates what a trained one left.
"""

from __future__ import annotations

from dataclasses import dataclass

from fl.config import RunConfig

EVERYONE = "everyone"  # the virtual device of the arm "centralized": the training data of all devices in one place


@dataclass(frozen=True)
class Arm:
    """How one arm is trained."""

    name: str
    gate: str
    split: str
    devices: str = "each"  # "each" device trains, or "everyone": all data as one device
    starts_from: str = ""  # arm whose final shared tensors are the starting point of one local phase


def trained_arm(name: str, config: RunConfig) -> Arm | None:
    """The training that arm ``name`` needs; None for arms that only evaluate (``zero-shot``, ``neutral``)."""
    table = {
        "local": Arm("local", gate="none", split="all-private"),
        "global": Arm("global", gate="none", split="all-shared"),
        "global+finetune": Arm("global+finetune", gate="none", split="all-private", starts_from="global"),
        "personalized": Arm("personalized", gate=config.adapter.gate, split=config.adapter.split),
        "centralized": Arm("centralized", gate="none", split="all-shared", devices=EVERYONE),
    }
    return table.get(name)


def evaluated_as(name: str, config: RunConfig) -> tuple[Arm | None, bool]:
    """Whose tensors decode in arm ``name``: the trained arm (None is the frozen base), and whether its gates are neutral."""
    if name == "neutral":
        return trained_arm("personalized", config), True
    return trained_arm(name, config), False


ADAPTER_OF_GATE = "gated-{}"


def adapter_name(gate: str) -> str:
    """PEFT's name of the adapter slot for a gate; hyphenated, since names like ``decoder`` collide with modules."""
    return ADAPTER_OF_GATE.format(gate)
