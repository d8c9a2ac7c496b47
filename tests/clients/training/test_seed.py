"""The seed of a device's random choices: a function of the run's seed, the round, the device and the phase."""

from types import SimpleNamespace
from typing import Any

import pytest

from clients.training.phase import local_seed
from fl.algorithms.plan import Phase
from fl.protocol.wire import Job
from fl.settings.config import make_config


def seed_of(
    arm: str = "global", number: int = 1, phase: Phase = Phase.FEDERATE, device: str = "ann", seed: int = 1
) -> int:
    worker: Any = SimpleNamespace(config=make_config({"seed": seed}))
    return local_seed(worker, Job(arm, number, (device,), phase), device)


def test_arms_train_on_the_same_batches_in_a_round() -> None:
    assert seed_of("global") == seed_of("personalized") == seed_of("local")


@pytest.mark.parametrize("changes", [{"number": 2}, {"device": "bob"}, {"seed": 2}])
def test_another_round_device_or_run_draws_others(changes: dict[str, Any]) -> None:
    assert seed_of(**changes) != seed_of()


def test_fine_tuning_does_not_begin_again_with_the_sentences_of_round_1() -> None:
    assert seed_of("global+finetune", 1, Phase.FINETUNE) not in {seed_of(number=n) for n in range(1, 13)}
