"""What cannot work with a method is refused before anything is loaded."""

import pytest

from fl.algorithms.arms import trained_arm
from fl.core.errors import ConfigError
from fl.methods.table import METHODS
from fl.settings.config import make_config

ARMS = "zero-shot,local,global,centralized"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "bottleneck", "arms": ARMS, "cohort": 2}, "set cohort = 1"),
        ({"method": "full", "arms": ARMS, "parameter-budget": 1000}, "no size to choose"),
        ({"method": "lora", "algorithm": "gates"}, "method = 'lora' with split = 'gates' leaves nothing private"),
        ({"method": "prefix", "split": "fedsa"}, "A and B, which method = 'prefix' has not"),
        ({"method": "dora", "algorithm": "ditto"}, "algorithm = 'ditto' is about A and B"),
        ({"method": "adapterdrop"}, "one of gated-lora, lora"),
    ],
)
def test_conflicts_are_refused_with_a_remedy(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_config(settings)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_the_arms_that_compare_methods(method):
    assert make_config({"method": method, "arms": ARMS}).adapter.method == method
    assert make_config({"method": method, "split": "layers:decoder"}).adapter.method == method


def test_methods_of_low_rank_are_gated_lora_with_a_gate_of_their_own():
    gates = {m: make_config({"method": m, "gate": "cross", "split": "all-shared"}).gate for m in METHODS}
    assert {m: gate for m, gate in gates.items() if gate != "none"} == {"gated-lora": "cross", "scalar-gate": "scalar"}
    assert {name for name, method in METHODS.items() if method.low_rank} == {"gated-lora", "lora", "scalar-gate"}


def test_gates_are_in_the_personalized_arm_unless_all_are_to_have_them():
    def gates(**settings):
        config = make_config({"gate": "self", **settings})
        return {name: arm.gate for name in config.arms if (arm := trained_arm(name, config))}

    trained = {"local", "global", "global+finetune", "personalized", "centralized"}
    assert gates() == {name: "self" if name == "personalized" else "none" for name in trained}
    assert gates(gated_arms="all") == dict.fromkeys(trained, "self")
    everywhere = make_config({"gate": "self", "gated-arms": "all"})
    alone = {name for name in trained if trained_arm(name, everywhere).schedule.alternating}
    assert alone == {"personalized"}, "elsewhere gates train together with the rest, in every step"
