"""Fine-tuning: after the last round each device goes on with the shared adapter alone (Yu et al. 2020). The arm global+finetune."""

from __future__ import annotations

from typing import ClassVar

from fl.algorithms.base import About, Algorithm, Role
from fl.settings.fields import Table, setting


class FinetuneOptions(Table):
    """Options of fine-tuning."""

    finetune_steps: int = setting(
        0, "local steps after the last round; 0 takes as many as private gates would", low=0, high=100_000
    )


class Finetune(Algorithm):
    """What the arm global+finetune does; the personalized arm has another algorithm."""

    name: ClassVar[str] = "finetune"
    role: ClassVar[Role] = Role.ARM
    about: ClassVar[About] = About(
        "Yu et al. 2020", "2002.04758", "A and B", "nothing; a device keeps what it made of them after the last round"
    )
    Options: ClassVar[type[Table]] = FinetuneOptions
