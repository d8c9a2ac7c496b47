"""A cohort trained in one computation against the same devices trained one by one."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from clients.training.cohort import Member, MemberResult, train_cohort
from clients.training.single import step_batches, train_locally
from clients.worker import Worker
from fl.adapters.config import GatedLoraConfig
from fl.adapters.gates.table import GATES
from fl.adapters.split import make_split
from fl.adapters.stacked import Slot, StackedModel
from fl.adapters.state import State, adapter_state, load_state
from fl.algorithms.plan import LocalPlan
from fl.core.errors import AdapterError
from fl.core.rng import derive_seed
from fl.settings.names import SPLITS
from fl.tasks.task import Example

BUDGET = 2**30
PLANS = [
    LocalPlan(steps=4, batch_size=3, learning_rate=1e-2, private_learning_rate=1e-1),
    LocalPlan(steps=6, batch_size=2, learning_rate=3e-3, private_learning_rate=3e-2, private_steps=2),
    LocalPlan(steps=1, batch_size=8, learning_rate=2e-2, private_learning_rate=1e-2, weight_decay=0.1),
    LocalPlan(steps=5, batch_size=1, learning_rate=1e-2, private_learning_rate=1e-1, neutral=True),
]
SIZES = (7, 3, 1, 5)


def double(examples: Sequence[Example]) -> list[Example]:
    return [replace(e, inputs=tuple(t.double() for t in e.inputs)) for e in examples]


def members_of(task) -> list[Member]:
    """Four devices with data, steps, rates and batch sizes of their own."""
    start = {n: t.double() for n, t in task.start.items()}
    return [
        Member(
            f"device-{i}", Slot(2, 2.0, task.gate), start, double(task.examples(SIZES[i], seed=i)), plan, seed=50 + i
        )
        for i, plan in enumerate(PLANS)
    ]


def host_of(task) -> StackedModel:
    return StackedModel(task.new_model().double(), task.targets)


def one_by_one(task, members: Sequence[Member]) -> list[tuple[State, float]]:
    task.model.double()
    results = []
    for member in members:
        load_state(task.model, member.state)
        split, parameters = task.split, task.parameters
        result = train_locally(task.model, parameters, split, task, member.examples, member.plan, seed=member.seed)
        results.append((adapter_state(task.model), result.loss))
    return results


def close(first: State, second: State, tolerance: float = 1e-9) -> bool:
    return first.keys() == second.keys() and all(
        torch.allclose(first[n], second[n], rtol=tolerance, atol=tolerance) for n in first
    )


@pytest.mark.parametrize("preset", SPLITS)
@pytest.mark.parametrize("gate", GATES)
def test_a_cohort_equals_its_devices_trained_one_by_one(regression, gate, preset):
    task = regression(gate=gate, split_name=preset)
    members = members_of(task)
    together = train_cohort(host_of(task), task, task.split, members, budget=BUDGET)
    for one, (state, loss), member in zip(together, one_by_one(task, members), members, strict=True):
        assert close(one.state, state)
        assert not close(one.state, member.state, 1e-4)
        assert one.result.loss == pytest.approx(loss, rel=1e-9)
        assert one.result.steps == member.plan.steps + member.plan.private_steps


NEW_GATE = """
from torch.nn.functional import softplus
from fl.adapters.gates.base import COORDINATES, D_IN, INPUT, RANK, Gate


def factor(source, parameters, linear):
    logits = linear(source, parameters["gate_slope"], parameters["gate_bias"])
    return softplus(logits) / softplus(logits.new_zeros(()))


GATE = Gate("softplus", {"gate_slope": (RANK, D_IN), "gate_bias": (RANK,)}, COORDINATES, INPUT, factor)
"""


def test_a_cohort_with_the_gate_of_another_package_equals_its_devices_one_by_one(regression, other_package):
    other_package(GATES, NEW_GATE, softplus="GATE")
    task = regression(gate="softplus")
    members = members_of(task)
    together = train_cohort(host_of(task), task, task.split, members, budget=BUDGET)
    for one, (state, _), member in zip(together, one_by_one(task, members), members, strict=True):
        assert close(one.state, state)
        moved = [n for n in state if "gate_slope" in n and not close({n: state[n]}, {n: member.state[n]}, 1e-4)]
        assert len(moved) == (0 if member.plan.neutral else 2)


@pytest.mark.parametrize("preset", [s for s in SPLITS if s != "ffa"])  # where nothing would be left to train
@pytest.mark.parametrize("gate", ["none", "self"])
@pytest.mark.parametrize("changes", [{"proximal": 7.0}, {"frozen": "A"}, {"proximal": 7.0, "frozen": "B"}], ids=str)
def test_a_cohort_with_a_proximal_term_or_a_resting_factor_equals_its_devices_one_by_one(
    regression, gate, preset, changes
):
    task = regression(gate=gate, split_name=preset)
    members = [replace(m, plan=replace(m.plan, **changes)) for m in members_of(task)]
    together = train_cohort(host_of(task), task, task.split, members, budget=BUDGET)
    for one, (state, _), member in zip(together, one_by_one(task, members), members, strict=True):
        assert close(one.state, state)
        shared = [n for n in task.split.shared if n.endswith(f"_{member.plan.frozen}")]
        assert all(torch.equal(one.state[n], member.state[n]) for n in shared)


def test_the_devices_of_a_cohort_rest_the_same_factor(regression):
    task = regression()
    first, *others = members_of(task)
    with pytest.raises(AdapterError, match="train the same tensors"):
        train_cohort(
            host_of(task), task, task.split, [replace(first, plan=replace(first.plan, frozen="A")), *others], budget=1
        )


ALONE = {"steps": 0, "private_steps": 6, "neutral": False, "weight_decay": 0.1}


@pytest.mark.parametrize(
    ("preset", "moving"),
    [
        ("gates", ("gate_weight", "gate_bias")),
        ("layers:gate_bias", ("gate_bias",)),
        ("layers:_B$", ("B",)),
        ("layers:_(A$|gate)", ("A", "gate_weight", "gate_bias")),
        ("layers:second.*_B$", ("second.B",)),
    ],
)
def test_a_private_part_alone_trains_in_a_cohort_as_one_by_one(regression, preset, moving):
    """What does not train stays each device's own, bit for bit: here every device begins at an adapter of its own."""
    task = regression(split_name=preset)
    members = [
        replace(m, state={n: (1 + 0.1 * i) * t for n, t in m.state.items()}, plan=replace(m.plan, **ALONE))
        for i, m in enumerate(members_of(task))
    ]
    together = train_cohort(host_of(task), task, task.split, members, budget=BUDGET)
    for one, (state, _), member in zip(together, one_by_one(task, members), members, strict=True):
        assert close(one.state, state)
        moved = {n for n in state if not torch.equal(one.state[n], member.state[n])}
        assert moved == {n for n in state if n.replace("gated_lora_", "").endswith(moving)}


def test_neither_order_nor_company_nor_memory_changes_a_device(regression):
    task = regression()
    members = members_of(task)
    reference = train_cohort(host_of(task), task, task.split, members, budget=BUDGET)
    turned = train_cohort(host_of(task), task, task.split, members[::-1], budget=BUDGET)[::-1]
    alone = [train_cohort(host_of(task), task, task.split, [m], budget=BUDGET)[0] for m in members]
    tight = train_cohort(host_of(task), task, task.split, members, budget=1)  # one row at a time
    for others in (turned, alone, tight):
        assert all(close(a.state, b.state) for a, b in zip(reference, others, strict=True))


def test_groups_of_rows_stay_within_the_budget(regression, monkeypatch):
    task = regression()
    rows: list[int] = []
    losses = task.losses
    monkeypatch.setattr(task, "losses", lambda model, batch: rows.append(len(batch)) or losses(model, batch))
    train_cohort(host_of(task), task, task.split, members_of(task), budget=3 * task.training_bytes(None))
    assert max(rows) == 3


def test_adapters_of_different_rank_train_in_one_cohort(regression):
    task = regression()
    members = members_of(task)
    config = GatedLoraConfig(r=3, lora_alpha=3.0, gate="self", target_modules=task.targets, init_seed=9)
    task.model.add_adapter("wide", config)
    wide = {n: t.double() + 0.1 for n, t in adapter_state(task.model, "wide").items()}
    mixed = [members[0], replace(members[1], slot=Slot(3, 1.0, "self"), state=wide), members[3]]
    together = train_cohort(host_of(task), task, task.split, mixed, budget=BUDGET)
    expected = one_by_one(task, [members[0], members[3]])
    assert close(together[0].state, expected[0][0])
    assert close(together[2].state, expected[1][0])
    alone = train_cohort(host_of(task), task, task.split, [mixed[1]], budget=BUDGET)[0]
    assert {n: t.shape for n, t in alone.state.items()} == {n: t.shape for n, t in wide.items()}
    assert close(together[1].state, alone.state)


def failed(results: Sequence[MemberResult | Exception]) -> list[int]:
    return [place for place, one in enumerate(results) if isinstance(one, Exception)]


def test_a_device_that_diverges_fails_alone(regression):
    task = regression()
    members = members_of(task)
    broken = [replace(e, inputs=(e.inputs[0], e.inputs[1] * torch.inf)) for e in members[1].examples]
    together = train_cohort(
        host_of(task), task, task.split, [members[0], replace(members[1], examples=broken), *members[2:]], budget=BUDGET
    )
    assert failed(together) == [1]
    assert "not finite" in str(together[1])
    expected = one_by_one(task, members)
    assert all(close(together[i].state, expected[i][0]) for i in (0, 2, 3))


def test_a_device_without_examples_fails_alone(regression):
    task = regression()
    members = [replace(members_of(task)[0], examples=()), members_of(task)[1]]
    together = train_cohort(host_of(task), task, task.split, members, budget=BUDGET)
    assert failed(together) == [0]
    assert failed(train_cohort(host_of(task), task, task.split, members[:1], budget=BUDGET)) == [0]


def test_a_failing_computation_leaves_members_and_model_as_they_were(regression, monkeypatch):
    task = regression()
    members, host = members_of(task), host_of(task)
    before = {n: t.clone() for n, t in members[0].state.items()}
    output = host.model(torch.ones(1, 6, dtype=torch.float64))
    monkeypatch.setattr(task, "losses", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        train_cohort(host, task, task.split, members, budget=BUDGET)
    assert close(members[0].state, before, 0.0)
    assert torch.equal(host.model(torch.ones(1, 6, dtype=torch.float64)), output)


JOINT = LocalPlan(steps=3, batch_size=2, learning_rate=1e-3, private_learning_rate=1e-2)
PART = replace(JOINT, steps=0, private_steps=6)


@pytest.mark.parametrize(
    ("preset", "plan", "once"),
    [
        ("gates", JOINT, False),
        ("gates", PART, False),
        ("layers:decoder.*_gate", PART, True),
        ("layers:decoder.*_B$", replace(PART, weight_decay=0.1), True),
        ("layers:_B$", PART, False),
    ],
    ids=["all", "gates", "gates of the decoder", "B of the decoder", "B"],
)
def test_speakers_trained_together_equal_those_trained_alone(config, tmp_path: Path, preset, plan, once):
    """Whisper, utterances of different length: single precision, relative tolerance 1e-3.

    The speakers begin with adapters of their own, in the encoder too. Where only the decoder trains, each utterance of a speaker
    goes through the encoder once, under that speaker's adapter.
    """
    worker = Worker(config, tmp_path / "devices")
    initial = worker.initial("self")
    split = make_split(preset, initial)
    slot = Slot(config.adapter.rank, config.adapter.alpha / config.adapter.rank, "self")
    members = []
    for i, device_id in enumerate(d for d in worker.task.device_ids() if not worker.task.is_new(d)):
        generator = torch.Generator().manual_seed(i)
        start = {n: t + 0.02 * torch.randn(t.shape, generator=generator) for n, t in initial.items()}
        examples = worker.task.device(device_id).train
        members.append(Member(device_id, slot, start, examples, plan, derive_seed(1, device_id)))
    host = StackedModel(worker.task.new_model(), worker.task.targets)
    encoded: list[int] = []
    host.model.model.encoder.layers[0].register_forward_hook(lambda *call: encoded.append(len(call[1][0])))
    together = train_cohort(host, worker.task, split, members, budget=BUDGET)
    steps = plan.steps + plan.private_steps
    drawn = [step_batches(plan, len(m.examples), m.seed) for m in members]
    assert sum(encoded) == sum(len({j for b in batches for j in b}) if once else 2 * steps for batches in drawn)
    for one, member in zip(together, members, strict=True):
        name = worker.slot("self")
        load_state(worker.adapted, member.state, name)
        parameters = worker.active("self").parameters
        result = train_locally(worker.adapted, parameters, split, worker.task, member.examples, plan, seed=member.seed)
        alone = adapter_state(worker.adapted, name)
        moved = nn.utils.parameters_to_vector([alone[n] - member.state[n] for n in alone])
        difference = nn.utils.parameters_to_vector([alone[n] - one.state[n] for n in alone])
        assert difference.norm() < 1e-3 * moved.norm()
        assert one.result.loss == pytest.approx(result.loss, rel=1e-5)
