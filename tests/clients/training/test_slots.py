"""The optimizer of a cohort against torch's own on each adapter alone."""

import pytest
import torch
from torch import Tensor, nn

from clients.training.slots import SlotAdamW, SlotParameters
from fl.adapters.split import make_split
from fl.adapters.stacked import Slot
from fl.adapters.state import tensor_name
from fl.algorithms.plan import LocalPlan
from fl.core.errors import AdapterError
from fl.settings.names import SPLITS

MODULE = "map"
PLANS = [
    LocalPlan(steps=9, batch_size=1, learning_rate=1e-2, private_learning_rate=3e-2, clipping_norm=0.7),
    LocalPlan(
        steps=9, batch_size=1, learning_rate=3e-3, private_learning_rate=1e-2, clipping_norm=5.0, weight_decay=0.1
    ),
    LocalPlan(
        steps=9, batch_size=1, learning_rate=5e-2, private_learning_rate=2e-3, clipping_norm=1e-3, weight_decay=0.01
    ),
]
SLOTS = [Slot(2, 2.0, "self"), Slot(4, 1.0, "self"), Slot(3, 1.0, "self")]


def states() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [
        {
            tensor_name(MODULE, "A"): draw(s.rank, 6),
            tensor_name(MODULE, "B"): draw(5, s.rank),
            tensor_name(MODULE, "gate_weight"): draw(s.rank, 6),
            tensor_name(MODULE, "gate_bias"): draw(s.rank),
        }
        for s in SLOTS
    ]


@pytest.mark.parametrize("preset", [s for s in SPLITS if s != "ffa"])
def test_clipping_and_adamw_equal_those_of_each_adapter_alone(preset):
    """Over steps in which some slots rest, some leave out the gates and some the shared part."""
    split = make_split(preset, states()[0])
    together = SlotParameters(SLOTS, states(), split)
    optimizer = SlotAdamW(together, PLANS)
    alone = [{n: nn.Parameter(t) for n, t in state.items()} for state in states()]
    reference = []
    for parameters, plan in zip(alone, PLANS, strict=True):
        gates = [n for n in split.private if "gate_" in n]
        factors = [n for n in (*split.shared, *split.private) if n not in gates]
        groups = [
            {"params": [parameters[n] for n in factors], "lr": plan.learning_rate, "weight_decay": plan.weight_decay},
            {"params": [parameters[n] for n in gates], "lr": plan.private_learning_rate, "weight_decay": 0.0},
        ]
        reference.append(torch.optim.AdamW([g for g in groups if g["params"]]))
    generator = torch.Generator().manual_seed(2)
    schedule = [
        {0: "joint", 1: "neutral", 2: "joint"},
        {0: "neutral", 1: "joint", 2: "neutral"},
        {0: "joint", 2: "joint"},
        {1: "private"},
        {0: "private", 1: "joint", 2: "private"},
        {0: "joint", 1: "joint", 2: "joint"},
    ]
    for kinds in schedule:
        together.gradients.zero_()
        for slot, kind in kinds.items():
            gradients = {n: torch.randn(t.shape, generator=generator, dtype=t.dtype) for n, t in alone[slot].items()}
            for name, parameter in alone[slot].items():
                without_gates = kind == "neutral" and "gate_" in name
                frozen = without_gates or (kind == "private" and name in split.shared)
                parameter.grad = None if frozen else gradients[name].clone()
                if without_gates:
                    continue
                stacked = together.stack.factors.get(name)
                stacked = together.stack.gates["self"][name] if stacked is None else stacked
                own = stacked[slot][tuple(slice(0, n) for n in gradients[name].shape)]
                together.backward((own * gradients[name]).sum())
            for names in (split.shared, split.private):
                having = [alone[slot][n] for n in names if alone[slot][n].grad is not None]
                if having:
                    nn.utils.clip_grad_norm_(having, PLANS[slot].clipping_norm)
            reference[slot].step()
        optimizer.clip()
        optimizer.step(kinds)
    for slot, parameters in enumerate(alone):
        state = together.stack.state(slot)
        for name, parameter in parameters.items():
            assert torch.allclose(state[name], parameter, rtol=1e-10, atol=1e-12), (slot, name)


def test_a_fixed_tensor_is_held_once_and_gets_no_gradient():
    split = make_split("ffa", states()[0])
    seeded = tensor_name(MODULE, "A")
    slots, same = [SLOTS[0]] * 2, [states()[0], {**states()[0]}]
    together = SlotParameters(slots, same, split)
    assert together.stack.factors[seeded].shape == (1, 2, 6)
    assert not together.stack.factors[seeded].requires_grad
    assert torch.equal(together.stack.state(1)[seeded], states()[0][seeded])


def test_the_norm_of_a_slot_that_is_not_finite_is_reported_and_spoils_no_other():
    split = make_split("gates", states()[0])
    together = SlotParameters(SLOTS, states(), split)
    together.gradients.fill_(1.0)
    together.gradients[1, 0] = torch.nan
    norms = SlotAdamW(together, PLANS).clip().tolist()
    assert norms[1] != norms[1]
    assert norms[0] > 0
    assert bool(torch.isfinite(together.gradients[[0, 2]]).all())


def test_losses_add_up_in_the_matrix_of_gradients():
    split = make_split("gates", states()[0])
    together = SlotParameters(SLOTS, states(), split)
    for _ in range(2):
        together.backward(together.stack.factors[tensor_name(MODULE, "A")].sum())
    assert together.gradients.sum() == 2 * len(SLOTS) * 4 * 6  # padded to rank 4


def test_devices_with_different_gates_are_no_cohort():
    slots = [Slot(2, 2.0, "self"), Slot(2, 2.0, "none")]
    with pytest.raises(AdapterError, match="one kind of gate"):
        SlotParameters(slots, states()[:2], make_split("gates", states()[0]))
