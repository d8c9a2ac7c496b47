"""What the arms of one comparison have in common, and what is paid for: rounds that count for two arms are paid once."""

from typing import Any

import pytest

from fl.settings.config import make_config
from fl.tasks.table import load_task
from strategies.comparison import Comparison

BOTH = "global,personalized"


def paid_rounds(**settings: Any) -> int:
    config = make_config({"task": "no-op", "arms": BOTH, "gate": "self", **settings})
    unused: Any = None
    return Comparison(config, unused, unused, load_task(config), unused).paid_rounds()


@pytest.mark.parametrize(
    ("settings", "paid"),
    [
        # 12 rounds of global; ten of personalized, in which all gates are neutral, are the same to the bit
        ({}, 12),
        ({"arms": "personalized"}, 10),
        ({"arms": "local,centralized"}, 0),
        ({"arms": "zero-shot,local,global,global+finetune,personalized,neutral,centralized"}, 12),
        ({"algorithm": "median"}, 12),
        ({"private-share": 0.5}, 12),
        ({"private-share": 0.0}, 12 + 12),  # gates train with the rest in every step
        # not the same tensors are shared
        ({"split": "fedsa"}, 12 + 10),
        ({"method": "lora", "split": "fedsa"}, 12 + 12),
        # not the same algorithm aggregates
        ({"algorithm": "ffa", "split": "ffa"}, 12 + 10),
        # a device keeps something of one arm beside its adapter
        ({"algorithm": "scaffold"}, 12 + 10),
        ({"algorithm": "ditto"}, 12 + 12),
        ({"codec": "int8", "error-feedback": True}, 12 + 10),
        ({"codec": "int8"}, 12),
        # whoever enrols after the last round trains nothing else
        ({"gate": "none"}, 12),
        ({"gate": "none", "arms": "personalized"}, 12),
        ({"gate": "none", "algorithm": "scaffold"}, 12),
        ({"gate": "none", "codec": "int8", "error-feedback": True}, 12),
    ],
)
def test_rounds_that_send_updates_are_paid_and_those_of_two_arms_once(settings: dict[str, Any], paid: int) -> None:
    assert paid_rounds(**settings) == paid
