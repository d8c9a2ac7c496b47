"""What PEFT and transformers promise for any adapter holds for this one."""

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

from fl.adapters.config import GatedLoraConfig
from fl.adapters.gates.table import GATES
from fl.adapters.model import gated_layers
from fl.adapters.state import adapter_state
from fl.core.errors import ConfigError


@pytest.fixture(params=GATES)
def gate(request):
    return request.param


def difference(a, b):
    return float((a - b).detach().abs().max())


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_saved_adapter_loads_onto_a_plain_model_with_a_difference_of_zero(
    gate, low_cpu_mem_usage, gated, whisper, logits, tmp_path
):
    model = gated(gate)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(whisper(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage).eval()
    assert difference(logits(loaded), logits(model)) == 0.0
    assert not any(p.is_meta for p in loaded.parameters())


def test_transformers_loads_a_saved_adapter_itself(gate, gated, whisper, logits, tmp_path):
    model = gated(gate)
    model.save_pretrained(tmp_path)
    plain = whisper()
    plain.load_adapter(str(tmp_path))
    plain.eval()
    assert len(gated_layers(plain)) == len(gated_layers(model))
    assert difference(logits(plain), logits(model)) == 0.0


def test_names_are_those_of_pefts_own_state_dict(gate, gated):
    model = gated(gate)
    theirs, ours = get_peft_model_state_dict(model), adapter_state(model)
    assert set(theirs) == set(ours)
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_loading_the_shared_part_leaves_only_gates_missing(gated):
    model, other = gated("self"), gated("self", seed=8)
    shared = {name: t for name, t in adapter_state(other).items() if "gate_" not in name}
    gates = {name: t for name, t in adapter_state(model).items() if "gate_" in name}
    outcome = set_peft_model_state_dict(model, shared)
    assert not outcome.unexpected_keys
    after = adapter_state(model)
    assert all(torch.equal(after[name], t) for name, t in {**shared, **gates}.items())


def test_a_second_adapter_is_inert_until_it_is_set_active(gated, logits, randomize):
    model = gated("self")
    first = logits(model)
    config = GatedLoraConfig(r=2, gate="cross", target_modules=model.peft_config["default"].target_modules)
    model.add_adapter("device-2a", config)
    randomize(model, "device-2a", seed=21)
    assert difference(logits(model), first) == 0.0
    assert not any(p.requires_grad for n, p in model.named_parameters() if n.endswith("device-2a"))

    model.set_adapter("device-2a")
    second = logits(model)
    assert difference(second, first) > 0
    trained = {n.rsplit(".", 1)[-1] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {"device-2a"}
    model.set_adapter("default")
    assert difference(logits(model), first) == 0.0


def test_adapters_of_different_gates_live_side_by_side(gated, logits, tmp_path):
    models = {gate: gated(gate, seed=i) for i, gate in enumerate(GATES)}
    host = gated("none", seed=99)
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        host.load_adapter(str(tmp_path / name), adapter_name=f"gated-{name}")
    host.eval()
    for name in reversed(list(GATES)):
        host.set_adapter(f"gated-{name}")
        assert difference(logits(host), logits(models[name])) == 0.0


def test_a_disabled_adapter_leaves_the_base_alone(gated, whisper, logits):
    model = gated("hidden")
    adapted = logits(model)
    with model.disable_adapter():
        assert difference(logits(model), logits(whisper())) == 0.0
    assert difference(logits(model), adapted) == 0.0


def test_unloading_gives_the_base_back_weight_for_weight(gate, gated, whisper, logits):
    plain = gated(gate).unload()
    assert set(plain.state_dict()) == set(whisper().state_dict())
    assert difference(logits(plain), logits(whisper())) == 0.0


def test_deleting_an_adapter_removes_all_its_tensors_and_no_others(gated, logits, randomize):
    model = gated("self")
    before, output = adapter_state(model), logits(model)
    config = GatedLoraConfig(r=2, gate="hidden", target_modules=model.peft_config["default"].target_modules)
    model.add_adapter("device-2a", config)
    randomize(model, "device-2a")
    model.delete_adapter("device-2a")
    assert not [name for name, _ in model.named_parameters() if "device-2a" in name]
    assert all(
        "device-2a" not in table for layer in gated_layers(model) for table in (layer.r, layer.gate, layer.scaling)
    )
    after = adapter_state(model)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert difference(logits(model), output) == 0.0


def test_a_second_adapter_that_is_refused_leaves_the_first_working(gated, logits):
    model = gated("self")
    output = logits(model)
    config = GatedLoraConfig(r=17, target_modules=model.peft_config["default"].target_modules)
    with pytest.raises(ConfigError, match="rank 17"):
        model.add_adapter("device-2a", config)
    assert list(model.peft_config) == ["default"]
    assert difference(logits(model), output) == 0.0
