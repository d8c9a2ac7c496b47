"""Fine-tuning: after the last round each device goes on with the shared adapter alone (Yu et al. 2020). The arm global+finetune."""

from fl.algorithms.base import About, Algorithm, Role
from fl.settings.fields import setting


class Finetune(Algorithm):
    """What the arm global+finetune does; the personalized arm has another algorithm."""

    name = "finetune"
    role = Role.ARM
    about = About(
        "Yu et al. 2020", "2002.04758", "A and B", "nothing; a device keeps what it made of them after the last round"
    )
    finetune_steps: int = setting(
        0, "local steps after the last round; 0 takes as many as private gates would", low=0, high=100_000
    )
    finetune_learning_rate: float = setting(
        0.0, "learning rate; 0 takes that of the last round (and of private gates for gates)", low=0.0, high=10.0
    )
