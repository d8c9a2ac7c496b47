"""An adapter's tensors by name, in and out of a model."""

import pytest
import torch

from fl.adapters.gates.table import GATES
from fl.adapters.state import adapter_parameters, adapter_state, check_tensors, load_state, size_of
from fl.core.errors import AdapterError, AdapterMismatchError


def shapes_of(model):
    return {name: tuple(tensor.shape) for name, tensor in adapter_state(model).items()}


def test_a_state_written_into_another_model_makes_it_the_same_model(gated, logits):
    model, other = gated("cross"), gated("cross", seed=8)
    assert not torch.equal(logits(model), logits(other))
    load_state(other, adapter_state(model))
    assert torch.equal(logits(model), logits(other))


def test_a_state_is_a_copy(gated, logits):
    model = gated("self")
    output = logits(model)
    for tensor in adapter_state(model).values():
        tensor.zero_()
    assert torch.equal(logits(model), output)


def test_parameters_are_live(gated, logits):
    model = gated("self")
    output = logits(model)
    with torch.no_grad():
        for parameter in adapter_parameters(model).values():
            parameter.zero_()
    assert not torch.equal(logits(model), output)


def test_names_are_sorted_and_shapes_fit(gated):
    model = gated("self")
    state, shapes = adapter_state(model), shapes_of(model)
    assert list(state) == sorted(state) == list(shapes)
    assert all(tuple(state[name].shape) == shapes[name] for name in state)


def test_an_adapter_that_is_not_there_is_refused(gated):
    with pytest.raises(AdapterError, match="'device-1' has no tensors"):
        adapter_state(gated("self"), "device-1")


def test_names_that_are_not_given_keep_their_values(gated):
    model = gated("self")
    before = adapter_state(model)
    name = next(iter(before))
    load_state(model, {name: before[name] + 1})
    after = adapter_state(model)
    assert torch.equal(after.pop(name), before.pop(name) + 1)
    assert all(torch.equal(after[n], before[n]) for n in before)


def damaged(state):
    """Ways in which a set of tensors is not this adapter: the change, the error and what it names."""
    first, last = min(state), max(state)
    return {
        "unknown": ({**state, "stranger": torch.zeros(1)}, AdapterMismatchError, "stranger"),
        "shape": ({**state, last: torch.zeros(7, 7)}, AdapterMismatchError, last),
        "transposed": ({**state, first: state[first].T.contiguous()}, AdapterMismatchError, first),
        "integers": ({**state, last: torch.zeros_like(state[last], dtype=torch.int32)}, AdapterError, last),
        "NaN": ({**state, last: torch.full_like(state[last], float("nan"))}, AdapterError, last),
        "infinity": ({**state, last: torch.full_like(state[last], float("-inf"))}, AdapterError, last),
    }


@pytest.mark.parametrize("damage", ["unknown", "shape", "transposed", "integers", "NaN", "infinity"])
def test_damaged_tensors_are_refused_by_name_before_one_is_copied(damage, gated):
    model = gated("self")
    before = adapter_state(model)
    changed, error, named = damaged({name: t + 1 for name, t in before.items()})[damage]
    with pytest.raises(error) as caught:
        load_state(model, changed)
    assert named in str(caught.value)
    after = adapter_state(model)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_missing_tensor_is_refused_where_an_adapter_must_be_complete(gated):
    model = gated("self")
    state, shapes = adapter_state(model), shapes_of(model)
    check_tensors(state, shapes)
    name = sorted(state)[5]
    del state[name]
    with pytest.raises(AdapterMismatchError, match="lacks 1 tensors") as caught:
        check_tensors(state, shapes)
    assert name in str(caught.value)
    check_tensors(state, shapes, complete=False)


@pytest.mark.parametrize("gate", GATES)
def test_a_size_counts_parameters_and_bytes(gate, gated):
    state = adapter_state(gated(gate))
    total = sum(t.numel() for t in state.values())
    assert size_of(state).parameters == total
    assert size_of(state).bytes == 4 * total
    halves = {name: t.half() for name, t in state.items()}
    assert size_of(halves).bytes == 2 * total
    name = next(iter(state))
    assert size_of(state, [name]).parameters == state[name].numel()
