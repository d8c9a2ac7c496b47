"""The phases of each arm against values computed by hand: which rounds exchange, at what rates, in how many steps."""

import math
from dataclasses import replace
from typing import Any

import pytest

from fl.algorithms.arms import trained_arm
from fl.algorithms.plan import Phase
from fl.algorithms.schedule import Schedule, rate_factor
from fl.settings.config import make_config
from fl.settings.names import ARMS


def schedule_of(arm: str = "personalized", **values: Any) -> Schedule:
    found = trained_arm(arm, make_config({"gate": "self", **values}))
    assert found is not None
    return found.schedule


LORA = {"method": "lora", "split": "fedsa"}


@pytest.mark.parametrize(
    ("arm", "values", "rounds", "federated"),
    [
        # 12 rounds, of which the last 15 % (2) are one message for the gates alone
        ("personalized", {}, 11, 10),
        ("personalized", {"split": "fedsa"}, 11, 10),
        ("personalized", {"private-share": 0.5}, 7, 6),
        ("personalized", {"private-share": 0.01}, 12, 11),  # one round at least
        ("personalized", {"private-share": 1.0}, 2, 1),  # the first round is never one of them
        ("personalized", {"private-share": 0.0}, 12, 12),
        ("personalized", {"federation.rounds": 1}, 1, 1),
        ("personalized", {"federation.rounds": 2}, 2, 1),
        ("personalized", {"split": "all-private"}, 11, 0),
        # without gates there is nothing to train alone, whatever the split keeps private
        ("personalized", LORA, 12, 12),
        ("personalized", {"gate": "none", "split": "all-shared"}, 12, 12),
        ("personalized", {"algorithm": "ffa", "split": "ffa", "gate": "none"}, 12, 12),
        ("personalized", {"algorithm": "ditto"}, 12, 12),
        ("personalized", {"algorithm": "fedrep"}, 12, 12),
        ("personalized", {"algorithm": "clusters"}, 12, 12),
        # a closing phase for whoever was never drawn, and for all where what is personal comes after the rounds
        ("personalized", {"algorithm": "ditto", "sample": 0.5}, 13, 12),
        ("personalized", {"algorithm": "fedrep", "sample": 0.5}, 13, 12),
        ("personalized", {**LORA, "sample": 0.5}, 13, 12),
        ("personalized", {"sample": 0.5}, 11, 10),
        ("personalized", {"algorithm": "enrolment"}, 13, 12),
        ("personalized", {"gate": "none"}, 13, 12),  # which is the default
        ("global", {"sample": 0.5}, 12, 12),
        ("global", {}, 12, 12),
        ("global", {"gated-arms": "all"}, 12, 12),  # its gates train with the rest in every step
        ("local", {}, 12, 0),
        ("centralized", {}, 12, 0),
        ("global+finetune", {}, 1, 0),
    ],
)
def test_messages_and_rounds_that_send_updates(arm: str, values: dict[str, Any], rounds: int, federated: int) -> None:
    schedule = schedule_of(arm, **values)
    assert (schedule.rounds, schedule.federated_rounds) == (rounds, federated)
    exchanging = [n for n in range(1, rounds + 1) if schedule.phase(n) is Phase.FEDERATE]
    assert len(exchanging) == (federated if schedule.exchanges else len(exchanging))
    if federated < rounds and arm == "personalized":
        assert schedule.phase(rounds) is Phase.PERSONALIZE


def test_the_phases_of_the_arms() -> None:
    personalized = schedule_of()
    assert [personalized.phase(n) for n in (1, 10, 11)] == [Phase.FEDERATE, Phase.FEDERATE, Phase.PERSONALIZE]
    assert schedule_of("global+finetune").phase(1) is Phase.FINETUNE
    for arm in ("global", "local", "centralized"):
        assert {schedule_of(arm).phase(n) for n in range(1, 13)} == {Phase.FEDERATE}


def test_every_arm_takes_as_many_local_steps() -> None:
    values = {"train.local-steps": 5, "federation.rounds": 7, "private-share": 0.3}
    for arm in ("personalized", "global", "local", "centralized"):
        schedule = schedule_of(arm, **values)
        plans = [schedule.plan(n) for n in range(1, schedule.rounds + 1)]
        assert sum(plan.steps + plan.private_steps for plan in plans) == 7 * 5, arm


@pytest.mark.parametrize(
    ("values", "neutral"),
    [
        ({}, 10),  # all steps run with neutral gates until the gates train alone
        ({"private-share": 0.5}, 6),
        ({"private-share": 0.0}, 0),  # gates train with the rest in every step
        ({"federation.rounds": 1}, 0),  # which leaves none for the gates alone
    ],
)
def test_rounds_in_which_gates_are_neutral(values: dict[str, Any], neutral: int) -> None:
    assert schedule_of(**values).neutral_rounds == neutral


def test_rates_decay_over_the_rounds_before_the_gates_train_alone_and_stay_there() -> None:
    assert rate_factor("constant", 9, 10) == 1.0
    assert rate_factor("linear", 6, 10) == pytest.approx(1 - 0.9 * 0.5)
    assert rate_factor("cosine", 3, 12) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi / 6)))
    values = {"train.learning-rate": 0.5, "train.schedule": "linear"}
    for arm in ("personalized", "global", "local", "centralized"):
        schedule = schedule_of(arm, **values)
        rates = [schedule.plan(n).learning_rate for n in range(1, 13)]
        first = 0.5 * (0.125 if arm == "local" else 1)  # which has a rate of its own
        assert rates == pytest.approx([first * (1 - 0.09 * min(n, 10)) for n in range(12)])
    assert schedule_of("local", **values, **{"train.local-rate": 0.2}).plan(1).learning_rate == pytest.approx(0.1)


def test_the_last_message_trains_the_gates_alone_at_their_full_rate() -> None:
    schedule = schedule_of(**{"train.local-steps": 5, "private-learning-rate": 0.25, "train.schedule": "linear"})
    before, last = schedule.plan(10), schedule.plan(11)
    assert (before.steps, before.private_steps, before.neutral) == (5, 0, True)
    assert before.private_learning_rate == pytest.approx(0.25 * (1 - 0.9 * 0.9))
    assert (last.steps, last.private_steps, last.private_learning_rate) == (0, 2 * 5, 0.25)


def test_gates_that_have_no_phase_of_their_own_train_in_every_step() -> None:
    schedule = schedule_of(**{"private-share": 0.0})
    assert {(p.neutral, p.steps, p.private_steps) for p in map(schedule.plan, range(1, 13))} == {(False, 12, 0)}


def test_an_arm_without_gates_of_its_own_has_no_neutral_steps() -> None:
    for arm, values in (("global", {}), ("local", {}), ("personalized", LORA)):
        plan = schedule_of(arm, **values).plan(1)
        assert (plan.neutral, plan.private_steps) == (False, 0)


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ({}, 2 * 12),  # as many as the gates take
        ({"private-share": 0.5, "train.local-steps": 7}, 6 * 7),
        ({"private-share": 0.0, "train.local-steps": 7}, 7),  # one round, where no gates train alone
        ({"finetune-steps": 5}, 5),
        ({"finetune-steps": 5, "private-share": 0.0}, 5),
    ],
)
def test_fine_tuning_takes_as_many_steps_as_private_gates_unless_it_is_set(values: dict[str, Any], steps: int) -> None:
    plan = schedule_of("global+finetune", **values).plan(1)
    assert (plan.steps, plan.private_steps, plan.neutral) == (steps, 0, False)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_fine_tuning_goes_on_at_the_rate_at_which_training_ended(name: str) -> None:
    values = {"train.schedule": name, "train.learning-rate": 0.5}
    plan = schedule_of("global+finetune", **values).plan(1)
    assert plan.learning_rate == pytest.approx(0.5 if name == "constant" else 0.5 * 0.1)


def test_fine_tuning_has_a_rate_of_its_own() -> None:
    tuned = {"finetune-learning-rate": 4e-4}
    plan = schedule_of("global+finetune", **tuned).plan(1)
    assert (plan.learning_rate, plan.private_learning_rate) == (4e-4, 4e-4)
    assert schedule_of("global", **tuned) == schedule_of("global")


def test_what_is_set_for_training_reaches_every_plan() -> None:
    values = {"batch-size": 3, "train.clipping-norm": 0.5, "train.weight-decay": 0.125}
    for arm in ARMS:
        found = trained_arm(arm, make_config(values))
        for n in range(1, found.schedule.rounds + 1) if found else ():
            plan = found.schedule.plan(n)  # type: ignore[union-attr]
            assert (plan.batch_size, plan.clipping_norm, plan.weight_decay) == (3, 0.5, 0.125)


def test_a_schedule_is_of_its_own_settings_alone() -> None:
    """The same for every algorithm that shares the same: what differs is said by the algorithm's own local plan."""
    plain = schedule_of("global")
    for algorithm in ("median", "flexlora", "rolora", "fedprox", "scaffold"):
        assert schedule_of("global", algorithm=algorithm) == plain
    assert replace(plain, total=3) == schedule_of("global", **{"federation.rounds": 3})
