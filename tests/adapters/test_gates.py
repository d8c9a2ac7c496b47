"""A gate is one object: another package's works alone, in a stack, in a running batch, and on disk."""

import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from fl.adapters.config import target_pattern
from fl.adapters.files import AdapterInfo, load_adapter, save_adapter
from fl.adapters.gates.base import INPUT, RANK, Gate
from fl.adapters.gates.table import GATES
from fl.adapters.model import gated_layers, neutral_gates
from fl.adapters.stacked import Slot, StackedAdapters, StackedModel
from fl.adapters.state import adapter_state
from fl.adapters.table import ServingTable
from fl.core.errors import AdapterError, ConfigError
from fl.packed.blob import unpack
from fl.packed.folder import pack_folder
from fl.settings.names import SITES

OTHERS = """
from torch.nn.functional import softplus
from fl.adapters.gates.base import COORDINATES, D_IN, D_OUT, INPUT, OUTPUT, RANK, Gate


def rectified(source, parameters, linear):
    logits = linear(source, parameters["gate_slope"], parameters["gate_bias"])
    return softplus(logits) / softplus(logits.new_zeros(()))


SOFTPLUS = Gate("softplus", {"gate_slope": (RANK, D_IN), "gate_bias": (RANK,)}, COORDINATES, INPUT, rectified, "gate_slope")
GAINS = Gate("gains", {"gate_gain": (D_OUT,)}, OUTPUT, "", lambda source, parameters, linear: 1 + parameters["gate_gain"])
"""
ALL = target_pattern(tuple(SITES))


@pytest.fixture(autouse=True)
def others(other_package):
    other_package(GATES, OTHERS, softplus="SOFTPLUS", gains="GAINS")


def compute(model, rows) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_features=rows[0], decoder_input_ids=rows[1]).logits
    return logits


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(1)
    mel = torch.randn(6, 8, 20, generator=generator, dtype=torch.float64)
    return mel, torch.randint(3, 40, (6, 4), generator=generator)


def test_softplus_computes_its_formula(gated):
    layer = gated_layers(gated("softplus").double())[0]
    a, b, slope, bias = (
        getattr(layer, f"gated_lora_{what}")["default"] for what in ("A", "B", "gate_slope", "gate_bias")
    )
    x = torch.randn(4, layer.in_features, dtype=torch.float64)
    factor = torch.log1p(torch.exp(x @ slope.T + bias)) / torch.log(torch.tensor(2.0))
    expected = layer.base_layer(x) + 2.0 * (x @ a.T * factor) @ b.T
    torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gate", ["softplus", "gains", "self", "cross"])
def test_a_gate_is_neutral_where_its_parameters_are_zero(gated, randomize, logits, gate):
    model = gated(gate, fresh=True)
    randomize(model, zero_gates=True)
    with neutral_gates(model):
        expected = logits(model)
    assert torch.equal(logits(model), expected)
    randomize(model)
    assert not torch.allclose(logits(model), expected)


def test_adapters_with_new_gates_share_a_batch_with_all_others(gated, whisper, rows):
    kinds = ["softplus", "self", "gains", "softplus", "hidden", "gains"]
    models = [gated(kind, seed=i).double() for i, kind in enumerate(kinds)]
    slots, states = [Slot(3, 2.0, kind) for kind in kinds], [adapter_state(model) for model in models]
    expected = torch.cat([compute(model, (rows[0][i : i + 1], rows[1][i : i + 1])) for i, model in enumerate(models)])
    host = StackedModel(whisper().double(), ALL)
    with host.rows(StackedAdapters.from_states(slots, states), range(6)) as model:
        torch.testing.assert_close(compute(model, rows), expected, rtol=1e-9, atol=1e-9)
    table = ServingTable(host, 6)
    for row, (slot, state) in enumerate(zip(slots, states, strict=True)):
        table.put(row, slot, state)
    with table.rows(0, 6) as model:
        torch.testing.assert_close(compute(model, rows), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("gate", ["softplus", "gains"])
def test_a_new_gate_comes_back_from_a_folder_a_packed_file_and_peft(gated, whisper, logits, tmp_path, gate):
    model = gated(gate)
    state, config = adapter_state(model), model.peft_config["default"]
    save_adapter(tmp_path, state, AdapterInfo("nano", "whisper:x", "gates", config))
    read, info = load_adapter(tmp_path)
    unpacked, packed = unpack(pack_folder(tmp_path, "float32"))
    assert info.config.gate == packed.config["gate"] == gate
    for tensors in (read, {name: torch.from_numpy(array) for name, array in unpacked.items()}):
        assert all(torch.equal(tensors[name], tensor) for name, tensor in state.items())
    assert torch.equal(logits(PeftModel.from_pretrained(whisper(), tmp_path).eval()), logits(model))


def test_a_gate_that_sees_no_input_merges_wherever_it_sits(gated, logits):
    model = gated("gains")
    expected = logits(model)
    torch.testing.assert_close(logits(model.merge_and_unload()), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(AdapterError, match="'softplus' gates, which depend on the input"):
        gated("softplus").merge_and_unload()


def test_a_wrong_declaration_is_refused_with_the_reason():
    with pytest.raises(ConfigError, match="names begin with 'gate_'"):
        Gate("mine", {"slope": (RANK,)})
    with pytest.raises(ConfigError, match="beside A"):
        Gate("mine", {"gate_bias": (RANK,)}, sees=INPUT, beside_a="gate_bias")


def test_gates_and_methods_can_be_listed_without_torch():
    code = (
        "import sys; sys.modules.update(torch=None, peft=None, numpy=None)\n"
        "from fl.adapters.gates.table import GATES\nfrom fl.methods.table import METHODS\n"
        "print(*GATES, *METHODS)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"none", "self", "gated-lora", "scratch"} <= set(done.stdout.split())
