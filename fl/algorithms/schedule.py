"""The phases of an arm, made once: which rounds exchange updates, who takes part, and at what rates each round trains.

The private part (gates) needs another learning rate than A and B, and a shared part that trains only under trained gates comes to
lean on them and is bad without. So the last rounds train the gates alone, on a frozen shared part. Before them gates are neutral:
the shared tensors are as good an adapter for a held-out speaker as those of plain federated LoRA, to the bit.

What trains in the rounds and is a device's own must not depend on whether the device was sampled: an arm *closes* with a private phase
for the devices that have nothing of their own yet, or, where what is personal is enrolled, for all.

The private rounds are one message with as many steps: nothing is exchanged in between, and an optimizer that starts anew in every
round cost a point of the error rate. Every device takes part in it, sampled or not.
"""

import math
from dataclasses import dataclass, replace

from fl.algorithms.personal.finetune import Finetune
from fl.algorithms.personal.gates import Gates
from fl.algorithms.plan import LocalPlan, Phase
from fl.settings.tables import TrainTable


def rate_factor(name: str, round_index: int, rounds: int) -> float:
    """Factor of the learning rates in round ``round_index`` (from 1) of ``rounds``: 1 at the start, towards 0.1 at the end."""
    progress = (round_index - 1) / max(1, rounds)
    if name == "linear":
        return 1.0 - 0.9 * progress
    if name == "cosine":
        return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0


@dataclass(frozen=True)
class Schedule:
    """One arm's rounds. ``gated``: its gates train in steps of their own. ``exchanges``: its devices send updates.

    ``total`` are the rounds of the run, by whose number every arm takes as many local steps. ``closes`` with a private phase after
    the last round, unless gates train in one anyway. ``finetune`` is how an arm goes on after the last round, None for those that do not.
    """

    train: TrainTable
    gates: Gates
    total: int
    gated: bool
    exchanges: bool
    closes: bool = False
    finetune: Finetune | None = None

    @property
    def private_rounds(self) -> int:
        """As how many rounds of steps the gates are trained alone; the first round never is one of them."""
        share = self.gates.private_share
        return min(max(1, round(share * self.total)), self.total - 1) if share else 0

    @property
    def alternating(self) -> bool:
        """Whether there is a phase for the private part alone."""
        return self.gated and self.private_rounds > 0

    @property
    def closing(self) -> bool:
        """Whether a private phase follows the last round, for the devices that have nothing of their own yet."""
        return self.closes and not self.alternating

    @property
    def rounds(self) -> int:
        """Messages to a device that trains in each: the private phase and fine-tuning are one."""
        if self.finetune:
            return 1
        return self.total + 1 - self.private_rounds if self.alternating else self.total + self.closing

    @property
    def federated_rounds(self) -> int:
        """Rounds in which updates are sent: what privacy is paid for, and what an attacker sees."""
        if self.finetune or not self.exchanges:
            return 0
        return self.total - self.private_rounds if self.alternating else self.total

    @property
    def neutral_rounds(self) -> int:
        """The first rounds in which all gates are neutral: an arm with gates does in them what one without does."""
        if not self.gated:
            return self.total
        return self.total - self.private_rounds if self.alternating else 0

    def phase(self, server_round: int) -> Phase:
        """The phase of a round, counted from 1."""
        if self.finetune:
            return Phase.FINETUNE
        private = server_round > (self.total - self.private_rounds if self.alternating else self.total)
        return Phase.PERSONALIZE if private else Phase.FEDERATE

    def plan(self, server_round: int) -> LocalPlan:
        """What a device does in a round. In every arm the rates decay over the rounds before the private ones and stay there.

        Gates learn in their own phase at their full rate, since what they learn is new. Fine-tuning goes on where the schedule
        ended: at the first round's rate it would unlearn what was learned together.
        """
        train, gates = self.train, self.gates
        phase = self.phase(server_round)
        decaying = self.total - self.private_rounds
        place = self.total if self.finetune else server_round
        alone = phase is Phase.PERSONALIZE
        factor = rate_factor(train.schedule, min(place, decaying + 1), decaying)
        own_steps = train.local_steps * (1 if self.closing else self.private_rounds)
        plan = LocalPlan(
            steps=0 if alone else train.local_steps,
            batch_size=train.batch_size,
            learning_rate=train.learning_rate * factor,
            private_learning_rate=gates.private_learning_rate * (1.0 if alone else factor),
            neutral=self.alternating,
            private_steps=own_steps if alone else 0,
            clipping_norm=train.clipping_norm,
            weight_decay=train.weight_decay,
        )
        if not self.finetune:
            return plan
        tuned = self.finetune
        rate = tuned.finetune_learning_rate
        return replace(
            plan,
            steps=tuned.finetune_steps or own_steps or train.local_steps,
            learning_rate=rate or plan.learning_rate,
            private_learning_rate=rate or plan.private_learning_rate,
        )
