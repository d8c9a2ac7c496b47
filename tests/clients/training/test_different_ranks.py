"""Devices of smaller rank train as if nothing were beyond it: alone, in cohorts, with every gate, and over rounds."""

from dataclasses import replace

import pytest
import torch

from clients.training.cohort import Member, train_cohort
from clients.training.phase import one_by_one, train_device
from clients.training.single import train_locally
from clients.training.together import train_together
from clients.worker import Worker
from fl.adapters.config import GatedLoraConfig
from fl.adapters.gates.table import GATES
from fl.adapters.ranks import device_rank, reduced
from fl.adapters.split import make_split, tensor_kind
from fl.adapters.stacked import Slot, StackedModel, cut
from fl.adapters.state import State, adapter_parameters, adapter_state, load_state
from fl.algorithms.arms import EVERYONE, trained_arm
from fl.algorithms.plan import LocalPlan
from fl.protocol.wire import Job
from fl.settings.config import make_config

PLAN = LocalPlan(steps=6, batch_size=3, learning_rate=1e-2, private_learning_rate=1e-1,
                 private_steps=3, weight_decay=0.1, proximal=0.7)  # fmt: skip
RANK = 2  # of the task's adapter
NARROW = 1


def within(state: State, slot: Slot) -> State:
    """The part of each tensor that an adapter of a smaller rank has."""
    return {name: tensor[cut(name, slot)] for name, tensor in state.items()}


def beyond(state: State, slot: Slot) -> list[torch.Tensor]:
    """The tensors without that part, which is set to zero in them: what lies in coordinates that the device has not."""
    rest = {name: tensor.clone() for name, tensor in state.items()}
    for name, tensor in rest.items():
        tensor[cut(name, slot)] = 0.0
    return list(rest.values())


@pytest.mark.parametrize("best", [False, True])
@pytest.mark.parametrize("gate", GATES)
def test_a_device_of_smaller_rank_is_an_adapter_of_that_rank_filled_up_with_zeros(regression, gate, best):
    """With weight decay, a proximal term and steps of every kind; the proximal term pulls to the reduced tensors."""
    task = regression(gate=gate)
    examples, slot = task.examples(7), Slot(NARROW, 2.0, gate)
    start = reduced(task.start, NARROW, best=best)
    assert any(not torch.equal(start[n], task.start[n]) for n in start)
    task.model.add_adapter(
        "narrow", GatedLoraConfig(r=NARROW, lora_alpha=2.0, gate=gate, target_modules=task.targets, init_seed=1)
    )
    load_state(task.model, within(start, slot), "narrow")
    task.model.set_adapter("narrow")
    split = make_split("gates", task.start)
    train_locally(task.model, adapter_parameters(task.model, "narrow"), split, task, examples, PLAN, seed=5)
    expected = adapter_state(task.model, "narrow")

    task.model.set_adapter("default")
    load_state(task.model, start)
    train_locally(task.model, task.parameters, split, task, examples, PLAN, seed=5)
    alone = task.state()
    host = StackedModel(task.new_model(), task.targets)
    member = Member("ann", Slot(RANK, 2.0, gate), start, examples, PLAN, 5)
    other = replace(member, device_id="bob", state=dict(task.start), seed=6)
    together = train_cohort(host, task, split, [other, member], budget=2**30)[1].state
    for found in (alone, together):
        assert all(not bool(values.any()) for values in beyond(found, slot))
        for name, values in within(found, slot).items():
            torch.testing.assert_close(values, expected[name], rtol=1e-4, atol=1e-5)
    gates = [n for n in expected if tensor_kind(n) == "gate"]
    assert all(bool(alone[n].any()) for n in gates if n.endswith("bias"))  # or the gates would not have been trained


@pytest.fixture
def workers(config, tmp_path):
    """Two workers of a federation of ranks 1, 2 and 4 with stores of their own."""
    settings = {"device-ranks": "1,2,4", "rank": 4, "algorithm": "flexlora,fedprox", "cohort": 2, "rounds": 4, "private-share": 0.0,
                "local-steps": 2, "learning-rate": 1e-3, "private-learning-rate": 1e-2,
                "proximal": 0.1, "seed": 3}  # fmt: skip
    chosen = make_config(settings, config)
    return Worker(chosen, tmp_path / "together"), Worker(chosen, tmp_path / "alone")


@pytest.mark.parametrize("arm", ["personalized", "local"])
def test_two_rounds_of_different_ranks_in_cohorts_equal_two_rounds_one_by_one(workers, arm):
    """As with one rank: no entry is off by more than 2e-4. All that is a device's is zero beyond its rank, in every round."""
    fast, slow = workers
    ids = tuple(d for d in fast.task.device_ids() if not fast.task.is_new(d))
    ranks = {d: device_rank(fast.config, d) for d in ids}
    assert len(set(ranks.values())) > 1
    trained = trained_arm(arm, fast.config)
    generator = torch.Generator().manual_seed(1)
    # What arrives is of full rank, as after a round at the aggregator.
    incoming = {n: 0.05 * torch.randn(fast.initial(trained.gate)[n].shape, generator=generator)
                for n in fast.split(trained).shared}  # fmt: skip
    for round_index in (1, 2):
        job = Job(arm, round_index, ids)
        quick = {r.device_id: r for r in train_together(fast, job, ids, incoming)}
        for result in one_by_one(train_device)(slow, job, ids, incoming):
            found = quick[result.device_id]
            assert found.numbers["bytes-up"] == result.numbers["bytes-up"]  # padding travels
            for worker, one in ((fast, found), (slow, result)):
                rank = ranks[one.device_id]
                state = worker.assembled(trained, one.device_id, dict(one.shared), before=9)
                assert all(not bool(values.any()) for values in beyond(state, Slot(rank, 1.0, trained.gate)))
                kept = [t[:rank] for n, t in state.items() if tensor_kind(n) == "A"]
                assert all(bool(row.any()) for values in kept for row in values)
            for name in found.shared:
                assert float((found.shared[name] - result.shared[name]).abs().max()) < 2e-4


def test_who_only_decodes_has_no_more_rank_than_the_device_and_all_data_in_one_place_has_all(workers):
    _, worker = workers
    worker.config = make_config({"device-ranks": "1"}, worker.config)
    arm = trained_arm("personalized", worker.config)
    shared = {n: torch.ones_like(worker.initial(arm.gate)[n]) for n in worker.split(arm).shared}
    (new,) = [d for d in worker.task.device_ids() if worker.task.is_new(d)]
    for neutral in (False, True):
        worker.place(arm, new, shared, before=9, neutral=neutral)
        state = worker.active(arm.gate).state()
        assert all(not bool(values.any()) for values in beyond(state, Slot(1, 1.0, arm.gate)))
        product = {n: state[n] @ state[n.removesuffix("B") + "A"] for n in state if tensor_kind(n) == "B"}
        assert all(torch.allclose(p, torch.full_like(p, 4.0), rtol=1e-5) for p in product.values())  # of rank 1 anyway
    everyone = trained_arm("centralized", worker.config)
    for device_id in (EVERYONE, new):  # who trains it, and who decodes with it
        worker.place(everyone, device_id, shared, before=9)
        assert all(bool(values.all()) for values in worker.active("none").state().values())
