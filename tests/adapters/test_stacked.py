import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from fl.adapters.config import target_pattern
from fl.adapters.gates.table import GATES
from fl.adapters.model import gated_layers, neutral_gates
from fl.adapters.stacked import BASE, Slot, StackedAdapters, StackedModel
from fl.adapters.state import State, adapter_parameters, adapter_state, module_of, tensor_name
from fl.core.errors import AdapterError, AdapterMismatchError
from fl.settings.names import SITES

GATED = [gate for gate in GATES if gate != "none"]


@dataclass
class People:
    """Adapters of several people as PEFT models of one each, and the same adapters as a stack on one model."""

    alone: list[PeftModel]
    slots: list[Slot]
    host: StackedModel
    stack: StackedAdapters

    def states(self) -> list[State]:
        return [adapter_state(model) for model in self.alone]


@pytest.fixture
def people(whisper, gated) -> Callable[..., People]:
    def make(gates: Sequence[str], sites: Sequence[str] = SITES) -> People:
        alone = [gated(gate, sites=tuple(sites), seed=10 + i).double() for i, gate in enumerate(gates)]
        slots = [Slot(3, 2.0, gate) for gate in gates]
        host = StackedModel(whisper().double(), target_pattern(tuple(sites)))
        return People(alone, slots, host, StackedAdapters.from_states(slots, [adapter_state(m) for m in alone]))

    return make


@pytest.fixture
def row() -> Callable[[int], tuple[Tensor, Tensor]]:
    """Utterance number i: features and tokens, with a leading dimension of one."""

    def make(i: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(100 + i)
        mel = torch.randn(1, 8, 20, generator=generator, dtype=torch.float64)
        return mel, torch.randint(3, 40, (1, 6), generator=generator)

    return make


def compute(model: nn.Module, rows: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    mel, tokens = (torch.cat(parts) for parts in zip(*rows, strict=True))
    logits: Tensor = model(input_features=mel, decoder_input_ids=tokens).logits
    return logits


def trainable(stack: StackedAdapters) -> list[Tensor]:
    tensors = [*stack.factors.values(), *(t for kind in stack.gates.values() for t in kind.values())]
    for tensor in tensors:
        tensor.requires_grad_(True)
    return tensors


def close(a: Tensor, b: Tensor) -> bool:
    return bool(torch.allclose(a, b, rtol=1e-9, atol=1e-12))


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("gate", GATES)
def test_each_row_equals_its_own_adapter_alone_forward_and_gradient(people, row, gate, site):
    who = people([gate] * 3, [site])
    index = [2, 0, 1, 2]
    tensors = trainable(who.stack)
    rows = [row(i) for i in range(4)]
    with who.host.rows(who.stack, index) as model:
        together = compute(model, rows)
    expected = [compute(who.alone[k], [rows[i]]) for i, k in enumerate(index)]
    assert close(together, torch.cat(expected))
    assert not close(together[:1], compute(who.alone[0], [rows[0]]))  # the adapters do differ

    together.square().sum().backward()
    for out in expected:
        out.square().sum().backward()
    assert all(t.grad is not None for t in tensors)
    for k, model in enumerate(who.alone):
        grads = {n: p.grad for n, p in adapter_parameters(model).items()}
        for name, grad in grads.items():
            stacked = who.stack.factors.get(name)
            stacked = who.stack.gates[gate][name] if stacked is None else stacked
            assert close(stacked.grad[k], grad), name


@pytest.mark.parametrize("gate", GATES)
def test_no_gradient_crosses_from_one_device_to_another(people, row, gate):
    who = people([gate] * 3)
    tensors = trainable(who.stack)
    with who.host.rows(who.stack, [0, 1, 2]) as model:
        compute(model, [row(0), row(1), row(2)])[1].square().sum().backward()
    for tensor in tensors:
        assert tensor.grad is not None
        assert tensor.grad[1].abs().sum() > 0
        assert torch.count_nonzero(tensor.grad[[0, 2]]) == 0


def test_gates_of_all_kinds_and_rows_without_adapter_share_a_batch(people, row, whisper):
    who = people(GATES)
    order = [3, BASE, 1, 4, 5, 0, 2, BASE]
    rows = [row(i) for i in range(len(order))]
    with who.host.rows(who.stack, order) as model:
        together = compute(model, rows)
    plain = whisper().double()
    for i, k in enumerate(order):
        assert close(together[i : i + 1], compute(plain if k == BASE else who.alone[k], [rows[i]])), (i, k)


def test_a_row_without_adapter_is_the_base_to_the_bit(people, row, whisper):
    who = people(["self"])
    with who.host.rows(who.stack, [BASE]) as model:
        adapted = compute(model, [row(0)])
    assert torch.equal(adapted, compute(whisper().double(), [row(0)]))


def test_ranks_may_differ_and_the_padding_stays_zero_in_training(whisper, row):
    torch.manual_seed(0)
    slots = [Slot(2, 4.0, "low-rank"), Slot(4, 2.0, "low-rank")]
    shapes = {
        "A": lambda r: (r, 16),
        "B": lambda r: (16, r),
        "gate_weight": lambda r: (r, r),
        "gate_bias": lambda r: (r,),
    }
    module = "model.decoder.layers.0.self_attn.q_proj"
    states = [
        {tensor_name(module, what): torch.randn(shape(s.rank), dtype=torch.float64) for what, shape in shapes.items()}
        for s in slots
    ]
    host = StackedModel(whisper().double(), target_pattern(["decoder.self"]))
    stack = StackedAdapters.from_states(slots, states)
    trainable(stack)
    with host.rows(stack, [0, 1]) as model:
        both = compute(model, [row(0), row(1)])
    for k in (0, 1):
        single = StackedAdapters.from_states([slots[k]], [states[k]])
        with host.rows(single, [0]) as model:
            assert close(both[k : k + 1], compute(model, [row(k)]))
    both.square().sum().backward()
    a, gate = stack.factors[tensor_name(module, "A")], stack.gates["low-rank"][tensor_name(module, "gate_weight")]
    assert a.grad is not None
    assert gate.grad is not None
    assert torch.count_nonzero(a.grad[0, 2:]) == 0
    assert torch.count_nonzero(a.grad[0, :2]) > 0
    assert torch.count_nonzero(gate.grad[0, 2:]) == 0
    assert torch.count_nonzero(gate.grad[0, :, 2:]) == 0
    back = stack.state(0)
    assert all(torch.equal(back[n], t) for n, t in states[0].items())


def test_a_module_that_only_one_adapter_has_stays_frozen_in_the_rows_of_the_others(people, row, gated, whisper):
    narrow = gated("self", sites=("decoder.cross",), seed=1).double()
    wide = gated("cross", sites=("decoder.self", "decoder.cross"), seed=2).double()
    host = StackedModel(whisper().double(), target_pattern(SITES))
    slots = [Slot(3, 2.0, "self"), Slot(3, 2.0, "cross")]
    stack = StackedAdapters.from_states(slots, [adapter_state(narrow), adapter_state(wide)])
    with host.rows(stack, [0, 1]) as model:
        together = compute(model, [row(0), row(1)])
    assert close(together, torch.cat([compute(narrow, [row(0)]), compute(wide, [row(1)])]))


def test_shared_factors_are_used_without_a_copy(people, row):
    who = people(["self", "self"])
    first, second = who.states()
    shared = {n: t for n, t in first.items() if "gate_" not in n}
    gates = [{n: t for n, t in state.items() if "gate_" in n} for state in (first, second)]
    stack = StackedAdapters.from_states(who.slots, gates, shared)
    assert all(stack.factors[n].data_ptr() == t.data_ptr() for n, t in shared.items())
    copied = StackedAdapters.from_states(who.slots, [first, {**second, **shared}])
    outputs = []
    for each in (stack, copied):
        with who.host.rows(each, [1, 0]) as model:
            outputs.append(compute(model, [row(0), row(1)]))
    assert close(*outputs)
    assert all(torch.equal(stack.state(1)[n], copied.state(1)[n]) for n in first)


@pytest.mark.parametrize("gate", GATED)
def test_a_neutral_row_equals_neutral_gates_and_gives_them_no_gradient(people, row, gate):
    who = people([gate, gate])
    trainable(who.stack)
    with who.host.rows(who.stack, [0, 1], neutral=[True, False]) as model:
        together = compute(model, [row(0), row(1)])
    with neutral_gates(who.alone[0]):
        assert close(together[:1], compute(who.alone[0], [row(0)]))
    assert close(together[1:], compute(who.alone[1], [row(1)]))
    together.square().sum().backward()
    for tensor in who.stack.gates[gate].values():
        assert tensor.grad is not None
        assert torch.count_nonzero(tensor.grad[0]) == 0
        assert torch.count_nonzero(tensor.grad[1]) > 0


def test_the_beams_of_an_utterance_use_its_adapter(people, row):
    who = people(["self", "none"])
    rows = [row(0), row(1), row(2), row(3)]
    with who.host.rows(who.stack, [1, 0]) as model:
        wide = compute(model, rows)
    with who.host.rows(who.stack, [1, 1, 0, 0]) as model:
        assert close(wide, compute(model, rows))


def test_a_batch_that_is_no_multiple_of_the_index_is_refused(people, row):
    who = people(["self", "self"])
    with who.host.rows(who.stack, [0, 1]) as model, pytest.raises(AdapterError, match="3 rows under an index of 2"):
        compute(model, [row(0), row(1), row(2)])


def test_nothing_survives_an_exception(people, row, whisper):
    who = people(["self"])

    def fail_after_a_computation() -> None:
        with who.host.rows(who.stack, [0]) as model:
            compute(model, [row(0)])
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail_after_a_computation()
    assert torch.equal(compute(who.host.model, [row(0)]), compute(whisper().double(), [row(0)]))


def test_two_threads_never_see_each_others_rows(people, row, whisper):
    who = people(["self", "self"])
    outputs: dict[str, Tensor] = {}
    inside = threading.Barrier(3, timeout=30)

    def work(name: str, index: list[int] | None) -> None:
        if index is None:
            inside.wait()
            outputs[name] = compute(who.host.model, [row(0)])
            inside.wait()
            return
        with who.host.rows(who.stack, index) as model:
            inside.wait()  # all three compute while both blocks are open
            outputs[name] = compute(model, [row(0)])
            inside.wait()

    threads = [threading.Thread(target=work, args=a) for a in (("a", [0]), ("b", [1]), ("base", None))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert close(outputs["a"], compute(who.alone[0], [row(0)]))
    assert close(outputs["b"], compute(who.alone[1], [row(0)]))
    assert torch.equal(outputs["base"], compute(whisper().double(), [row(0)]))


def test_rows_of_one_model_do_not_reach_another(people, row, whisper):
    who = people(["self"])
    other = StackedModel(whisper().double(), target_pattern(SITES))
    with who.host.rows(who.stack, [0]):
        assert torch.equal(compute(other.model, [row(0)]), compute(whisper().double(), [row(0)]))


def test_a_slot_gives_its_tensors_back_as_they_came(people):
    who = people(GATES)
    for k, state in enumerate(who.states()):
        back = who.stack.state(k)
        assert back.keys() == state.keys()
        assert all(torch.equal(back[n], t) for n, t in state.items())


def test_wrong_indices_and_stacks_are_refused_with_the_reason(people, whisper, gated):
    who = people(["self"], ["decoder.self"])
    for index in ([], [1], [-2]):
        with pytest.raises(AdapterError, match="does not name slots"), who.host.rows(who.stack, index):
            pass
    with pytest.raises(AdapterError, match="neutral has 2"), who.host.rows(who.stack, [0], neutral=[True, False]):
        pass
    elsewhere = adapter_state(gated("self", sites=("ffn",)).double())
    foreign = StackedAdapters.from_states([Slot(3, 2.0, "self")], [elsewhere])
    with pytest.raises(AdapterMismatchError, match="not targeted here"), who.host.rows(foreign, [0]):
        pass
    with pytest.raises(AdapterError, match="match no linear map"):
        StackedModel(whisper(), ["nothing"])
    with pytest.raises(AdapterError, match="plain model"):
        StackedModel(gated("self").base_model.model, target_pattern(SITES))


def test_adapters_of_another_base_or_rank_are_refused_when_stacked(gated):
    state = adapter_state(gated("self"))
    narrow = {n: t[..., :-1] if n.endswith("_A") else t for n, t in state.items()}
    slots = [Slot(3, 2.0, "self")] * 2
    with pytest.raises(AdapterMismatchError, match="same base"):
        StackedAdapters.from_states(slots, [state, narrow])
    with pytest.raises(AdapterMismatchError, match="different ranks"):
        StackedAdapters.from_states([Slot(3, 2.0, "self"), Slot(2, 2.0, "self")], [{}, {}], state)
    with pytest.raises(AdapterError, match="one state for each"):
        StackedAdapters.from_states(slots, [state])


def test_names_lead_back_to_their_module(gated):
    layers = {layer.module_name for layer in gated_layers(gated("self"))}
    assert {module_of(name) for name in adapter_state(gated("self"))} == layers
