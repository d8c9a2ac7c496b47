"""Local training: which steps run, on what, and which tensors each of them may touch."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from clients.training.single import draw_batches, step_batches, step_kinds, train_locally
from fl.adapters.model import gated_layers
from fl.adapters.state import State
from fl.algorithms.personal.gates import Gates
from fl.algorithms.plan import LocalPlan
from fl.algorithms.schedule import Schedule, rate_factor
from fl.core.errors import AdapterError
from fl.core.rng import derive_seed
from fl.settings.tables import TrainTable

PLAN = LocalPlan(steps=4, batch_size=3, learning_rate=1e-2, private_learning_rate=1e-1)


def train(task, plan: LocalPlan = PLAN, *, count: int = 7, seed: int = 5):
    return train_locally(task.model, task.parameters, task.split, task, task.examples(count), plan, seed=seed)


def schedule(rounds: int = 10, steps: int = 12, *, gated: bool = True, rate: float = 4e-3, **gates) -> Schedule:
    train = TrainTable(local_steps=steps, learning_rate=rate)
    return Schedule(train, Gates(**gates), rounds, gated=gated, exchanges=True)


def equal(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# Which steps


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({}, ["joint"] * 4),
        ({"neutral": True}, ["neutral"] * 4),
        ({"neutral": True, "private_steps": 2}, ["neutral"] * 4 + ["private"] * 2),
        ({"steps": 0, "private_steps": 2}, ["private"] * 2),
        ({"first_private": 1}, ["private"] + ["shared"] * 4),
    ],
)
def test_what_the_steps_of_a_plan_train(changes: dict, kinds: list[str]) -> None:
    plan = replace(PLAN, **changes)
    assert step_kinds(plan) == kinds
    assert len(step_batches(plan, 7, seed=1)) == len(kinds)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_a_schedule_starts_at_the_full_rate_and_never_rises(name: str) -> None:
    factors = [rate_factor(name, r, 8) for r in range(1, 9)]
    assert factors[0] == 1.0
    assert all(a >= b > 0.1 for a, b in pairwise(factors))
    assert (factors[-1] < 0.3) == (name != "constant")


# On what


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 40), st.integers(0, 2**32))
def test_batches_use_each_example_equally_and_never_twice_in_one(
    count: int, size: int, batches: int, seed: int
) -> None:
    drawn = draw_batches(count, size, batches, np.random.default_rng(seed))
    assert [len(batch) for batch in drawn] == [min(size, count)] * batches
    assert all(len(set(batch)) == len(batch) for batch in drawn)
    uses = Counter(i for batch in drawn for i in batch)
    assert set(uses) <= set(range(count))
    assert max(uses.values()) - min(uses[i] for i in range(count)) <= 1


def test_a_device_with_one_example_trains_on_it(regression) -> None:
    task = regression()
    result = train(task, replace(PLAN, batch_size=4), count=1)
    assert (result.steps, result.examples) == (4, 4)
    assert task.seen == [("e0",)] * 4
    assert all(change > 0 for change in task.moved().values())


def test_a_device_without_examples_is_refused_before_anything_changes(regression) -> None:
    task = regression()
    with pytest.raises(AdapterError, match="no training examples"):
        train(task, count=0)
    assert equal(task.state(), task.start)


# Which tensors


def kinds_that_moved(task) -> set[str]:
    return {
        "gate" if "gate_" in name.rsplit(".", 1)[-1] else name[-1] for name, change in task.moved().items() if change
    }


def test_a_joint_step_trains_shared_and_private_parts(regression) -> None:
    task = regression()
    train(task)
    assert all(change > 0 for change in task.moved().values())


def test_neutral_steps_leave_the_gates_untouched(regression) -> None:
    task = regression()
    train(task, replace(PLAN, neutral=True, weight_decay=0.1))
    assert kinds_that_moved(task) == {"A", "B"}


def test_private_steps_leave_the_shared_tensors_untouched(regression) -> None:
    task = regression()
    train(task, replace(PLAN, steps=0, private_steps=4, weight_decay=0.1))
    assert kinds_that_moved(task) == {"gate"}


def test_private_steps_after_joint_ones_leave_the_shared_tensors_as_the_joint_ones_left_them(regression) -> None:
    # Adam's momentum must not go on pushing the shared part.
    task = regression()
    train(task, replace(PLAN, batch_size=7))
    joint = task.state()
    task.restart()
    train(task, replace(PLAN, batch_size=7, private_steps=3))
    after = task.state()
    same = {name for name in joint if torch.allclose(joint[name], after[name], rtol=0, atol=1e-5)}
    assert same == set(task.split.shared)


def test_neutral_steps_train_the_shared_part_as_if_there_were_no_gates(regression) -> None:
    gated, plain = regression(), regression(gate="none", split_name="all-shared")
    opened = {name: torch.full_like(value, 0.7) for name, value in gated.start.items() if "gate_" in name}
    gated.start = {**gated.start, **opened}
    gated.restart()
    train(gated, replace(PLAN, neutral=True))
    train(plain, PLAN)
    trained = gated.state()
    assert all(torch.equal(trained[name], value) for name, value in plain.state().items())


def test_gates_are_back_after_training_and_after_a_failure(regression) -> None:
    task = regression()
    train(task, replace(PLAN, neutral=True))
    assert not any(layer.gates_neutral for layer in gated_layers(task.model))
    task.loss_of = diverging
    with pytest.raises(AdapterError):
        train(task, replace(PLAN, neutral=True))
    assert not any(layer.gates_neutral for layer in gated_layers(task.model))


@pytest.mark.parametrize(
    ("split", "still"), [("ffa", {"A"}), ("gates", set()), ("fedsa", set()), ("all-private", set())]
)
def test_fixed_tensors_do_not_move(regression, split: str, still: set[str]) -> None:
    task = regression(split_name=split)
    train(task, replace(PLAN, private_steps=1))
    assert {"A", "B", "gate"} - kinds_that_moved(task) == still


def test_a_tensor_that_one_split_fixes_learns_again_under_the_next(regression) -> None:
    task = regression(split_name="ffa")
    train(task)
    task.split_name = "gates"
    task.restart()
    train(task)
    assert kinds_that_moved(task) == {"A", "B", "gate"}


@pytest.mark.parametrize("split", ["gates", "fedsa", "ffa", "all-private"])
def test_the_private_learning_rate_is_for_gates_only(regression, split: str) -> None:
    # The first step of Adam moves every parameter with a gradient by its learning rate, whatever the gradient.
    task = regression(split_name=split)
    train(task, replace(PLAN, steps=1))
    for name, change in task.moved().items():
        if name in task.split.fixed:
            continue
        rate = PLAN.private_learning_rate if "gated_lora_gate" in name else PLAN.learning_rate
        assert change == pytest.approx(rate, rel=1e-3), name


def test_training_lowers_the_loss(regression) -> None:
    task = regression()
    first = train(task, replace(PLAN, steps=1, batch_size=7)).loss
    train(task, replace(PLAN, steps=60, batch_size=7))
    assert train(task, replace(PLAN, steps=1, batch_size=7)).loss < 0.7 * first


# Reproducible


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(regression) -> None:
    plan = replace(PLAN, private_steps=1)
    states = []
    for seed in (5, 5, 6):
        task = regression()
        train(task, plan, seed=seed)
        states.append(task.state())
    assert equal(states[0], states[1])
    assert not equal(states[0], states[2])


def test_the_order_of_devices_changes_nothing(regression) -> None:
    task = regression()

    def run(order: list[str]) -> dict[str, State]:
        after = {}
        for device in order:
            task.restart()
            examples = task.examples(5, seed=ord(device))
            seed = derive_seed(1, 1, device, "train")
            train_locally(task.model, task.parameters, task.split, task, examples, PLAN, seed=seed)
            after[device] = task.state()
        return after

    forth, back = run(["a", "b", "c"]), run(["c", "b", "a"])
    assert all(equal(forth[device], back[device]) for device in forth)
    assert not equal(forth["a"], forth["b"])


# Divergence


def diverging(predicted: Tensor, wanted: Tensor) -> Tensor:
    return (predicted * float("inf")).sum()


def steep(predicted: Tensor, wanted: Tensor) -> Tensor:
    """A finite loss whose gradient is not: the slope of a root at zero."""
    return (predicted - predicted.detach()).pow(2).sum().sqrt()


@pytest.mark.parametrize(("loss", "word"), [(diverging, "loss"), (steep, "gradient")])
def test_a_diverging_device_raises_and_names_the_rates(
    regression, loss: Callable[[Tensor, Tensor], Tensor], word: str
) -> None:
    task = regression(loss_of=loss)
    with pytest.raises(AdapterError, match=rf"{word} is not finite; lower learning-rate"):
        train(task)
    assert all(bool(torch.isfinite(value).all()) for value in task.state().values())


# Rounds that train the private part alone


def test_the_last_steps_train_the_private_part_alone_in_one_round_at_its_full_rate() -> None:
    made = schedule(10, 12, rate=1e-2, private_share=0.2, private_learning_rate=3e-3)
    plans = [made.plan(r) for r in range(1, 1 + made.rounds)]
    assert [p.steps for p in plans] == [12] * 8 + [0]
    assert [p.private_steps for p in plans] == [0] * 8 + [24]
    assert sum(p.steps + p.private_steps for p in plans) == 10 * 12  # as many as an arm without gates takes
    assert plans[8].private_learning_rate == 3e-3
    assert {kind for p in plans[:8] for kind in step_kinds(p)} == {"neutral"}
    assert set(step_kinds(plans[8])) == {"private"}
    # The rate of the shared part ends its decay before they begin.
    assert plans[7].learning_rate < 0.2 * 1e-2


def test_an_arm_without_gates_trains_in_every_round_and_ends_at_the_rate_where_the_decay_ends() -> None:
    made = schedule(10, 12, gated=False, private_share=0.2)
    plans = [made.plan(r) for r in range(1, 1 + made.rounds)]
    assert [p.steps for p in plans] == [12] * 10
    factors = [p.learning_rate / 4e-3 for p in plans]
    assert factors[:8] == pytest.approx([rate_factor("cosine", r, 8) for r in range(1, 9)])
    assert factors[8:] == pytest.approx([0.1, 0.1])


def test_before_the_private_phase_an_arm_with_gates_does_what_one_without_does() -> None:
    gated, plain = (schedule(10, 12, gated=g, private_share=0.2) for g in (True, False))
    for r in range(1, 9):
        assert replace(gated.plan(r), neutral=False) == plain.plan(r)
    assert gated.neutral_rounds == 8


@pytest.mark.parametrize(
    ("rounds", "share", "wanted"), [(10, 0.2, 2), (3, 0.2, 1), (1, 0.2, 0), (10, 0.0, 0), (10, 1.0, 9), (2, 0.01, 1)]
)
def test_the_share_of_private_rounds_leaves_one_for_the_shared_part(rounds: int, share: float, wanted: int) -> None:
    assert schedule(rounds, private_share=share).private_rounds == wanted


def test_a_private_round_leaves_the_shared_part_bit_for_bit(regression) -> None:
    task = regression()
    train(task, replace(PLAN, steps=0, private_steps=4))
    moved = task.moved()
    assert all(moved[name] == 0 for name in task.split.shared)
    assert all(moved[name] > 0 for name in task.split.private)


# FedProx and a frozen factor


def test_a_proximal_term_holds_shared_tensors_at_the_start_and_lets_gates_go(regression) -> None:
    moved = {}
    for strength in (0.0, 1e3):
        task = regression()
        train(task, replace(PLAN, steps=30, proximal=strength, clipping_norm=1e9))
        moved[strength] = task.moved()
    for name, change in moved[1e3].items():
        if "gate_" in name:
            assert change > 1e-2
        else:
            assert change < 0.5 * moved[0.0][name]


def test_one_step_with_a_proximal_term_is_one_without_it(regression) -> None:
    """At the start of a round nothing has moved away yet."""
    states = []
    for strength in (0.0, 5.0):
        task = regression()
        train(task, replace(PLAN, steps=1, proximal=strength))
        states.append(task.state())
    assert equal(*states)


@pytest.mark.parametrize("norm", [1e9, 1e-3])
def test_a_step_has_rate_times_mu_of_the_way_from_the_start(regression, norm: float) -> None:
    """w <- w - rate (direction + mu (w - w0)) (Li et al. 2020): neither clipping nor AdamW changes the second term."""
    plan = replace(PLAN, steps=3, proximal=8.0, clipping_norm=norm, batch_size=7)
    task = regression(gate="none", split_name="all-shared")
    train(task, plan)
    reference = regression(gate="none", split_name="all-shared")
    parameters = reference.parameters
    start = {n: p.detach().clone() for n, p in parameters.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=plan.learning_rate, weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        reference.loss(reference.model, reference.examples(7)).backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), norm)
        with torch.no_grad():
            for name, p in parameters.items():
                p -= plan.learning_rate * 8.0 * (p - start[name])
        optimizer.step()
    for name, value in task.state().items():
        torch.testing.assert_close(value, reference.state()[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["A", "B"])
def test_a_frozen_factor_does_not_move_and_the_other_does(regression, kind: str) -> None:
    task = regression()
    train(task, replace(PLAN, frozen=kind, proximal=0.1, weight_decay=0.1))
    for name, change in task.moved().items():
        assert (change == 0) == name.endswith(f"_{kind}"), name


def test_a_private_factor_is_never_frozen(regression) -> None:
    task = regression(split_name="all-private")
    train(task, replace(PLAN, frozen="A"))
    assert all(task.moved().values())
