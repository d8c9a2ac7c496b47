"""The formulas of the gates, against loops over single numbers and against PEFT's own LoRA."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from fl.adapters.config import GatedLoraConfig
from fl.adapters.gates.table import GATES
from fl.adapters.layer import GatedLoraLinear, initial_a
from fl.adapters.state import adapter_state
from fl.core.errors import AdapterError, ConfigError

D_IN, D_OUT, R = 4, 5, 3
GATED = [gate for gate in GATES if gate != "none"]


def make_layer(gate: str, *, alpha: float = 2.0) -> GatedLoraLinear:
    torch.manual_seed(0)
    linear = nn.Linear(D_IN, D_OUT, dtype=torch.float64).requires_grad_(False)
    config = GatedLoraConfig(r=R, lora_alpha=alpha, gate=gate, target_modules=["x"])
    layer = GatedLoraLinear(linear, "default", config, "x")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "gated_lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return layer


def written_out(layer: GatedLoraLinear, gate: str, x: list[float]) -> list[float]:
    """The table of the design page for one input vector, a number at a time."""

    own = {what: tensor.tolist() for what, tensor in layer.gate_parameters("default").items()}

    def product(matrix: list[list[float]], vector: list[float]) -> list[float]:
        return [sum(m * v for m, v in zip(row, vector, strict=True)) for row in matrix]

    def factor(logit: float) -> float:
        return 2 / (1 + math.exp(-logit))

    def factors(source: list[float]) -> list[float]:
        return [factor(logit + c) for logit, c in zip(product(weight, source), bias, strict=True)]

    a, b = layer.gated_lora_A["default"].tolist(), layer.gated_lora_B["default"].tolist()
    weight, bias = own.get("gate_weight", []), own.get("gate_bias", [])
    if gate == "scalar":
        weight, bias = [[0.0]] * R, bias * R  # no input is looked at
    linear = layer.get_base_layer()
    frozen = [y + o for y, o in zip(product(linear.weight.tolist(), x), linear.bias.tolist(), strict=True)]
    u = [xi * factor(g * xi + c) for xi, g, c in zip(x, weight, bias, strict=True)] if gate == "hidden" else x
    z = product(a, u)
    source = {"low-rank": z, "self": x, "cross": frozen, "scalar": [0.0]}.get(gate)
    v = z if source is None else [zi * f for zi, f in zip(z, factors(source), strict=True)]
    scale = 2.0 / R
    return [y + scale * d for y, d in zip(frozen, product(b, v), strict=True)]


@pytest.mark.parametrize("gate", GATES)
def test_each_gate_computes_its_formula(gate):
    layer = make_layer(gate)
    x = torch.randn(2, 3, D_IN, dtype=torch.float64)
    expected = [[written_out(layer, gate, row) for row in rows] for rows in x.tolist()]
    torch.testing.assert_close(layer(x), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gate", GATES)
def test_each_gate_has_the_gradient_of_its_formula(gate):
    layer = make_layer(gate)
    names = [name for name, _ in layer.named_parameters() if "gated_lora_" in name]
    inputs = [layer.get_parameter(name) for name in names]

    def compute(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(
        compute, (torch.randn(2, D_IN, dtype=torch.float64, requires_grad=True), *inputs), atol=1e-7
    )


def test_the_formulas_differ_from_each_other():
    x = torch.randn(1, D_IN, dtype=torch.float64)
    outputs = []
    for gate in GATES:
        layer = make_layer(gate)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(9)
            for parameter in (layer.gated_lora_A["default"], layer.gated_lora_B["default"]):
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        outputs.append(layer(x))
    assert all(not torch.allclose(a, b) for i, a in enumerate(outputs) for b in outputs[:i])


@pytest.mark.parametrize(
    ("gate", "count"),
    [
        ("none", 0),
        ("hidden", 2 * D_IN),
        ("low-rank", R**2 + R),
        ("self", R * D_IN + R),
        ("cross", R * D_OUT + R),
        ("scalar", 1),
    ],
)
def test_a_gate_has_as_many_parameters_as_the_table_says(gate, count):
    layer = make_layer(gate)
    sizes = {name: p.numel() for name, p in layer.named_parameters() if "gated_lora_" in name}
    assert sum(size for name, size in sizes.items() if "gate_" in name) == count
    assert sum(sizes.values()) - count == R * (D_IN + D_OUT)
    assert sum(map(math.prod, GATES[gate].shapes(D_IN, D_OUT, R).values())) == sum(sizes.values())


@pytest.mark.parametrize("gate", GATES)
def test_a_fresh_gate_equals_peft_lora_bit_for_bit(gate, gated, whisper, randomize, logits):
    model = gated(gate, fresh=True)
    randomize(model, zero_gates=True)  # A and B as after training, gates as at the start
    lora = get_peft_model(
        whisper(),
        LoraConfig(r=3, lora_alpha=6.0, target_modules=model.peft_config["default"].target_modules, lora_dropout=0.0),
    ).eval()
    names = {
        name.replace("gated_lora_A", "lora_A.weight").replace("gated_lora_B", "lora_B.weight"): tensor
        for name, tensor in adapter_state(model).items()
        if "gate_" not in name
    }
    assert set(names) == set(get_peft_model_state_dict(lora))
    set_peft_model_state_dict(lora, names)
    ours, theirs = logits(model), logits(lora)
    assert torch.equal(ours, theirs)
    with model.disable_adapter():
        assert not torch.equal(ours, logits(model)), "B is not zero: the adapter must have changed something"

    ours.square().sum().backward()
    theirs.square().sum().backward()
    for (_, mine), (_, other) in zip(_pairs(model), _pairs(lora), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6)


def _pairs(model):
    """The parameters A and B of every adapted map, in module order."""
    return [(n, p) for n, p in model.named_parameters() if "lora_A" in n or "lora_B" in n]


@pytest.mark.parametrize("gate", GATES)
def test_a_new_adapter_changes_nothing_until_it_is_trained(gate, gated, whisper, logits):
    assert torch.equal(logits(gated(gate, fresh=True)), logits(whisper()))


@pytest.mark.parametrize("gate", GATED)
def test_a_fresh_gate_can_leave_its_neutral_value(gate, gated, randomize, logits):
    model = gated(gate, fresh=True)
    randomize(model, zero_gates=True)
    logits(model).square().sum().backward()
    gates = [
        p.grad for name, p in model.named_parameters() if name.endswith(("gate_weight.default", "gate_bias.default"))
    ]
    assert any(bool((g != 0).any()) for g in gates)


def test_the_frozen_map_gets_no_gradient(gated, logits):
    model = gated("self")
    logits(model).sum().backward()
    assert all(("gated_lora_" in name) == p.requires_grad for name, p in model.named_parameters())
    assert all(p.grad is None for name, p in model.named_parameters() if "gated_lora_" not in name)


def test_two_active_adapters_add_up():
    layer = make_layer("self")
    config = GatedLoraConfig(r=2, lora_alpha=1.0, gate="cross", target_modules=["x"])
    layer.update_layer("other", config)
    nn.init.normal_(layer.gated_lora_B["other"])
    nn.init.normal_(layer.gated_lora_gate_weight["other"])
    x = torch.randn(3, D_IN, dtype=torch.float64)
    frozen = layer.get_base_layer()(x)
    layer.set_adapter(["default"])
    first = layer(x) - frozen
    layer.set_adapter(["other"])
    second = layer(x) - frozen
    layer.set_adapter(["default", "other"])
    torch.testing.assert_close(layer(x), frozen + first + second)


def test_a_half_precision_base_answers_in_half_precision():
    linear = nn.Linear(D_IN, D_OUT).to(torch.bfloat16)
    layer = GatedLoraLinear(linear, "default", GatedLoraConfig(r=2, target_modules=["x"]), "x")
    nn.init.ones_(layer.gated_lora_B["default"])
    layer.gated_lora_A["default"].data = layer.gated_lora_A["default"].data.float()  # as PEFT's autocast keeps them
    layer.gated_lora_B["default"].data = layer.gated_lora_B["default"].data.float()
    layer.gated_lora_gate_weight["default"].data = layer.gated_lora_gate_weight["default"].data.float()
    layer.gated_lora_gate_bias["default"].data = layer.gated_lora_gate_bias["default"].data.float()
    assert layer(torch.randn(2, D_IN, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_only_linear_maps_can_be_adapted():
    with pytest.raises(AdapterError, match=r"conv1 is Conv1d.*leave it out"):
        GatedLoraLinear(nn.Conv1d(4, 4, 1), "default", GatedLoraConfig(target_modules=["x"]), "conv1")


def test_a_rank_larger_than_the_map_is_refused_with_the_largest_that_fits():
    with pytest.raises(ConfigError, match="at most 4"):
        GatedLoraLinear(nn.Linear(D_IN, D_OUT), "default", GatedLoraConfig(r=5, target_modules=["x"]), "x")


def test_the_start_of_a_is_decided_by_seed_and_module_name_alone():
    torch.manual_seed(1)
    first = initial_a(R, 64, 5, "encoder.q_proj")
    torch.manual_seed(2)
    assert torch.equal(first, initial_a(R, 64, 5, "encoder.q_proj"))
    assert not torch.equal(first, initial_a(R, 64, 5, "encoder.k_proj"))
    assert not torch.equal(first, initial_a(R, 64, 6, "encoder.q_proj"))


def test_the_start_of_a_is_kaiming_uniform_as_in_lora():
    a = initial_a(64, 400, 0, "q_proj")
    bound = 1 / math.sqrt(400)
    assert float(a.abs().max()) <= bound
    assert float(a.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
