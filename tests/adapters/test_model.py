"""Neutral gates, merging and export."""

import pytest
import torch
from peft import get_peft_model, set_peft_model_state_dict

from fl.adapters.config import GatedLoraConfig, target_pattern
from fl.adapters.gates.table import GATES
from fl.adapters.model import export_lora, gated_layers, neutral_gates
from fl.adapters.state import adapter_state, load_state
from fl.core.errors import AdapterError

GATED = [gate for gate in GATES if gate != "none"]
WITH_INPUT = [gate for gate in GATED if gate != "scalar"]  # gates that look at the input


def with_zero_gates(model):
    state = adapter_state(model)
    load_state(model, {name: torch.zeros_like(t) for name, t in state.items() if "gate_" in name})
    return model


@pytest.mark.parametrize("gate", GATES)
def test_neutral_gates_equal_gates_of_zero_bit_for_bit(gate, gated, logits):
    model = gated(gate)
    trained = logits(model)
    with neutral_gates(model):
        neutral = logits(model)
    assert torch.equal(logits(model), trained), "the gates are back afterwards"
    assert torch.equal(neutral, trained) == (gate == "none")
    assert torch.equal(neutral, logits(with_zero_gates(model)))


@pytest.mark.parametrize("gate", GATED)
def test_gates_get_no_gradient_while_neutral_and_the_shared_part_does(gate, gated, logits):
    model = gated(gate)
    with neutral_gates(model):
        logits(model).square().sum().backward()
    for layer in gated_layers(model):
        assert layer.gated_lora_gate_bias["default"].grad is None
        weights = getattr(layer, "gated_lora_gate_weight", {})  # a gate of biases alone has none
        assert all(weight.grad is None for weight in weights.values())
        assert layer.gated_lora_A["default"].grad is not None


def test_neutral_gates_are_restored_after_an_exception_and_can_be_nested(gated, logits):
    model = gated("self")
    trained = logits(model)

    def interrupted():
        with neutral_gates(model):
            with neutral_gates(model):
                pass
            assert not torch.equal(logits(model), trained), "the inner block must not end the outer one"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert torch.equal(logits(model), trained)


def whole_state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("gate", WITH_INPUT)
@pytest.mark.parametrize(
    "merge",
    [
        lambda model: model.merge_and_unload(),
        lambda model: model.merge_and_unload(safe_merge=True, adapter_names=["default"]),
        lambda model: model.merge_adapter(),
        lambda model: gated_layers(model)[0].merge(),
        lambda model: gated_layers(model)[0].get_delta_weight("default"),
    ],
    ids=["merge_and_unload", "safe merge by name", "merge_adapter", "one layer", "delta weight"],
)
def test_merging_a_gated_adapter_is_refused_before_anything_changes(gate, merge, gated, logits):
    model = gated(gate)
    before, output = whole_state(model), logits(model)
    with pytest.raises(AdapterError, match=rf"'{gate}' gates.*cannot be merged"):
        merge(model)
    after = model.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(logits(model), output)


@pytest.mark.parametrize("method", ["merge_adapter", "merge_and_unload"])
def test_a_gated_adapter_in_the_last_layers_stops_the_merge_of_an_ungated_one_in_the_first(method, gated, randomize):
    model = gated("none")
    config = GatedLoraConfig(r=2, gate="self", target_modules=target_pattern(["decoder.cross"]))
    model.add_adapter("gated-self", config)
    randomize(model, "gated-self")
    before = whole_state(model)
    with pytest.raises(AdapterError, match="'gated-self' has 'self' gates"):
        getattr(model, method)(adapter_names=["default", "gated-self"])
    after = model.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("gate", ["none", "scalar"])
def test_an_adapter_whose_gates_see_no_input_merges_into_the_same_function(gate, gated, whisper, logits):
    model = gated(gate)
    expected = logits(model)
    plain = model.merge_and_unload()
    assert not gated_layers(plain)
    assert set(plain.state_dict()) == set(whisper().state_dict())
    torch.testing.assert_close(logits(plain), expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(logits(plain), logits(whisper()))


def test_merging_in_place_is_undone_by_unmerging_and_by_disabling(gated, whisper, logits):
    model = gated("none")
    expected = logits(model)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    model.merge_adapter()
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), logits(whisper()), rtol=1e-4, atol=1e-5)


def test_a_safe_merge_refuses_infinite_updates_and_leaves_the_layer_alone(gated):
    layer = gated_layers(gated("none"))[0]
    weight = layer.get_base_layer().weight.clone()
    with torch.no_grad():
        layer.gated_lora_B["default"][0, 0] = float("inf")
    with pytest.raises(AdapterError, match="non-finite"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.get_base_layer().weight, weight)
    assert not layer.merged


def test_an_exported_adapter_is_an_ordinary_lora_that_computes_the_same(gated, whisper, logits):
    model = gated("none")
    config, state = export_lora(model)
    lora = get_peft_model(whisper(), config).eval()
    outcome = set_peft_model_state_dict(lora, state)
    assert not outcome.unexpected_keys
    assert lora.peft_config["default"].peft_type == "LORA"
    assert torch.equal(logits(lora), logits(model))


def test_an_export_has_its_scalar_gates_in_b(gated, whisper, logits):
    model = gated("scalar")
    config, state = export_lora(model)
    lora = get_peft_model(whisper(), config).eval()
    set_peft_model_state_dict(lora, state)
    torch.testing.assert_close(logits(lora), logits(model), rtol=1e-4, atol=1e-5)
    with neutral_gates(model):
        assert not torch.allclose(logits(lora), logits(model), rtol=1e-3, atol=1e-4)


def test_an_export_owns_its_tensors(gated):
    model = gated("none")
    _, state = export_lora(model)
    copies = {name: tensor.clone() for name, tensor in state.items()}
    load_state(model, {name: torch.zeros_like(t) for name, t in adapter_state(model).items()})
    assert all(torch.equal(state[name], copies[name]) for name in state)


def test_a_gated_adapter_is_not_exported(gated):
    with pytest.raises(AdapterError, match="cannot be merged"):
        export_lora(gated("low-rank"))


def test_exporting_an_adapter_that_is_nowhere_is_refused(gated):
    model = gated("none")
    model.peft_config["ghost"] = model.peft_config["default"]
    with pytest.raises(AdapterError, match="'ghost' has no layers"):
        export_lora(model, "ghost")
