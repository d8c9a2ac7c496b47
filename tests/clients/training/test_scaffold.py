"""SCAFFOLD at a device: the correction by hand, option II, and a cohort against its devices one by one."""

from dataclasses import replace

import pytest
import torch

from clients.training.cohort import Member, train_cohort
from clients.training.phase import adapter_part
from clients.training.single import train_locally
from fl.adapters.split import CONTROL
from fl.adapters.stacked import Slot, StackedModel
from fl.adapters.state import load_state
from fl.algorithms.plan import LocalPlan
from fl.algorithms.shared.scaffold import ControlVariate


def randoms(task, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        n: torch.randn(task.start[n].shape, generator=generator, dtype=torch.float64) * 0.1 for n in task.split.shared
    }


def plan_of(steps, **changes):
    return LocalPlan(steps=steps, batch_size=3, learning_rate=1e-2, private_learning_rate=3e-2, **changes)


def test_each_step_uses_g_minus_own_plus_everyones_and_the_new_variate_is_option_ii(regression, monkeypatch):
    """With plain SGD in the place of AdamW: y by hand, and c_i+ = c_i - c + (x - y) / (K eta) to rounding."""
    eta, steps = 0.05, 3

    class Sgd(torch.optim.SGD):
        def __init__(self, groups):
            super().__init__([{"params": group["params"], "lr": eta} for group in groups])

    monkeypatch.setattr(torch.optim, "AdamW", Sgd)
    task = regression(gate="none", split_name="all-shared")
    task.model.double()
    start = {n: t.double() for n, t in task.start.items()}
    load_state(task.model, start)
    example = [replace(e, inputs=tuple(t.double() for t in e.inputs)) for e in task.examples(1)]
    control = ControlVariate(own=randoms(task, 1), everyone=randoms(task, 2))
    plan = plan_of(steps, clipping_norm=1e9)
    train_locally(task.model, task.parameters, task.split, task, example, plan, seed=1, control=control)
    after = {n: p.detach().clone() for n, p in task.parameters.items()}

    load_state(task.model, start)
    y = dict(task.parameters)
    for _ in range(steps):
        gradients = torch.autograd.grad(task.loss(task.model, example), list(y.values()))
        with torch.no_grad():
            for (n, p), g in zip(y.items(), gradients, strict=True):
                p.sub_(eta * (g - control.own[n] + control.everyone[n]))
    assert all(torch.allclose(after[n], y[n], atol=1e-12) for n in y)
    option_ii = {n: control.own[n] - control.everyone[n] + (start[n] - after[n]) / (steps * eta) for n in y}
    assert all(torch.allclose(control.after()[n], option_ii[n], atol=1e-10) for n in y)
    message = control.sent()
    assert set(message) == {CONTROL + n for n in task.split.shared}
    for n in y:
        difference = option_ii[n] - control.own[n]
        assert torch.allclose(message[CONTROL + n], control.everyone[n] + difference, atol=1e-10)


@pytest.mark.parametrize("preset", ["gates", "all-shared", "fedsa"])
@pytest.mark.parametrize("gate", ["none", "self"])
def test_a_cohort_equals_its_devices_one_by_one(regression, gate, preset):
    task = regression(gate=gate, split_name=preset)
    start = {n: t.double() for n, t in task.start.items()}
    plans = [
        plan_of(4, neutral=True),
        plan_of(2, private_steps=2, proximal=0.3),
        plan_of(5),
        plan_of(3, first_private=2),
    ]
    members = [
        Member(
            f"device-{i}",
            Slot(2, 2.0, gate),
            start,
            [replace(e, inputs=tuple(t.double() for t in e.inputs)) for e in task.examples(2 + i, seed=i)],
            plan,
            seed=70 + i,
            control=ControlVariate(randoms(task, i), randoms(task, 9)) if i != 2 else None,  # one goes without
        )
        for i, plan in enumerate(plans)
    ]
    alone = [replace(m, control=m.control and ControlVariate(m.control.own, m.control.everyone)) for m in members]
    host = StackedModel(task.new_model().double(), task.targets)
    together = train_cohort(host, task, task.split, members, budget=2**30)
    task.model.double()
    for one, member, single in zip(together, members, alone, strict=True):
        load_state(task.model, start)
        train_locally(
            task.model,
            task.parameters,
            task.split,
            task,
            single.examples,
            single.plan,
            seed=single.seed,
            control=single.control,
        )
        assert one.state is not None
        assert all(torch.allclose(one.state[n], p.detach(), atol=1e-9) for n, p in task.parameters.items())
        if single.control is None:
            continue
        assert member.control.counts == {n: single.control.counts.get(n, 0) for n in task.split.shared}
        expected = single.control.after()
        assert all(torch.allclose(t, expected[n], atol=1e-9) for n, t in member.control.after().items())
        assert any(not torch.allclose(t, single.control.own[n], atol=1e-3) for n, t in expected.items())


def test_tensors_without_a_step_keep_their_variate(regression):
    task = regression(gate="self", split_name="all-shared")
    control = ControlVariate(
        {n: t.float() for n, t in randoms(task, 1).items()}, {n: t.float() for n, t in randoms(task, 2).items()}
    )
    plan = plan_of(2, neutral=True)
    train_locally(task.model, task.parameters, task.split, task, task.examples(3), plan, seed=1, control=control)
    kept = {n for n, t in control.after().items() if torch.equal(t, control.own[n])}
    assert kept == {n for n in task.split.shared if "gate_" in n}
    assert set(adapter_part({**control.own, **control.sent()})) == set(task.split.shared)
