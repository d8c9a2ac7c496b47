"""What a device does in one message: steps, rates, and which tensors each step trains."""

import math
from dataclasses import dataclass, replace
from enum import StrEnum

EVERYONE_BATCHES = 16  # devices whose batches make one step where all data is in one place


class Phase(StrEnum):
    """The phases of an arm, a closed set: what a message asks for, and whether an update may leave the device."""

    FEDERATE = "federate"  # train and send the update of the shared tensors
    PERSONALIZE = "personalize"  # train the private part alone; A and B are frozen and nothing is sent
    FINETUNE = "finetune"  # train what the device keeps for itself after the last round; nothing is sent


@dataclass(frozen=True)
class LocalPlan:
    """The training of one adapter of a device in one round.

    ``proximal`` is mu of FedProx (arXiv 1812.06127), a pull of the shared tensors towards where the round began. ``frozen`` is a kind
    of shared tensor, ``A`` or ``B``, that is not trained in this round. With ``first_private`` steps the private part trains before,
    alone, and the shared part after it, alone (FedRep). ``neutral``: the ``steps`` run with neutral gates and train none.

    ``shrinkage`` is lambda of a pull of a second adapter towards the shared one. Every pull is w <- w - min(1, rate * lambda) (w - w0)
    at each step, beside the gradient's step as AdamW's weight decay is (arXiv 1711.05101, algorithm 2): it is not clipped, nor scaled
    by AdamW.

    The last group is of a second adapter, which takes ``repeat`` steps on each of ``steps`` batches. ``outer``: after the steps of a
    batch the shared adapter goes this share of the way to the own one (pFedMe); 0: never.
    """

    steps: int
    batch_size: int
    learning_rate: float
    private_learning_rate: float
    clipping_norm: float = 1.0
    weight_decay: float = 0.0

    neutral: bool = False
    private_steps: int = 0
    proximal: float = 0.0
    frozen: str = ""
    first_private: int = 0

    shrinkage: float = 0.0
    repeat: int = 1
    outer: float = 0.0
    mixing_learning_rate: float = 0.0


def in_one_place(plan: LocalPlan, devices: int) -> LocalPlan:
    """``plan`` for the data of all ``devices``: as many examples as they take together, in steps whose batch is that of several.

    The same examples in more and smaller steps diverged at the devices' learning rate, which averaging allows them.
    """
    together = min(devices, EVERYONE_BATCHES)
    return replace(plan, steps=math.ceil(plan.steps * devices / together), batch_size=plan.batch_size * together)
