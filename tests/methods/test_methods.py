"""What each method trains, what it computes, and that it leaves the base alone."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import WhisperForConditionalGeneration

from fl.adapters.config import target_pattern
from fl.bases.whisper import forward
from fl.bases.whisper.decoder import RowDecoder
from fl.core.errors import AdapterError, AdapterMismatchError, ConfigError
from fl.methods.bottleneck import BottleneckLinear
from fl.methods.prefix import prefixed_attention
from fl.methods.recipes import attach
from fl.methods.table import METHODS
from fl.settings.names import SITES

from .conftest import recipe_of

NEUTRAL = [m for m in METHODS if m != "scratch"]


def test_the_table_has_a_row_for_every_name_of_the_setting():
    assert {name for name, method in METHODS.items() if not method.sized} == {"bitfit", "full", "scratch"}
    assert {name for name, method in METHODS.items() if method.low_rank} == {"gated-lora", "lora", "scalar-gate"}


@pytest.mark.parametrize("method", [m for m in METHODS if METHODS[m].sized])
def test_the_shapes_are_known_before_anything_is_attached(method, base, make):
    attached = make(method)
    shapes = METHODS[method].adaptation.shapes(base.model, recipe_of(method))
    assert shapes == attached.shapes()
    assert list(attached.parameters) == sorted(shapes)
    assert METHODS[method].count(base.model, recipe_of(method)) == sum(p.numel() for p in attached.parameters.values())


@pytest.mark.parametrize("method", NEUTRAL)
def test_a_fresh_method_computes_what_the_base_computes(method, base, batch, make, logits):
    model = make(method).model
    with torch.inference_mode():
        if method == "dora":  # PEFT divides by a norm and multiplies by the same one
            torch.testing.assert_close(logits(model), logits(base.model), rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(logits(model), logits(base.model))
            assert base.generate(model, batch, max_new_tokens=4) == base.generate(base.model, batch, max_new_tokens=4)


@pytest.mark.parametrize(("method", "changes"), [("scratch", {}), ("prefix", {"prefix_gate": False})])
def test_what_cannot_be_neutral_is_not(method, changes, base, make, logits):
    with torch.inference_mode():
        assert not torch.allclose(logits(make(method, **changes).model), logits(base.model), rtol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_a_fresh_method_is_a_function_of_the_seed(method, make):
    torch.manual_seed(1)
    first = make(method).state()
    torch.manual_seed(2)
    again, other = make(method).state(), make(method, seed=8).state()
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = any(not torch.equal(first[name], other[name]) for name in first)
    assert drawn == (method not in ("bitfit", "full"))


@pytest.mark.parametrize("method", METHODS)
def test_training_moves_every_trained_tensor_and_nothing_of_the_base(method, base, make, logits):
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    attached = make(method)
    start = attached.state()
    learning = {n for n, p in attached.model.named_parameters() if p.requires_grad}
    assert len(learning) == len(attached.parameters)
    optimizer = torch.optim.SGD(attached.parameters.values(), lr=0.1)
    first = float(logits(attached.model).mean().detach())
    for _ in range(3):  # what is behind a zero gets its gradient in the second step, a gate behind that in the third
        optimizer.zero_grad()
        logits(attached.model).mean().backward()
        optimizer.step()
    moved = {name for name, tensor in attached.state().items() if not torch.equal(tensor, start[name])}
    assert moved == set(attached.parameters)
    assert float(logits(attached.model).mean().detach()) < first
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.model.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
def test_a_row_does_not_depend_on_its_neighbours(method, base, make, randomize):
    model = randomize(make(method)).model
    generator = torch.Generator().manual_seed(3)
    rows = [0.5 * torch.randn(base.mels, n, generator=generator).numpy() for n in (60, 44)]
    together = base.collate(rows, ["ab", "c"], "trimmed", "ko")
    alone = [base.collate([row], [text], "trimmed", "ko") for row, text in zip(rows, ["ab", "c"], strict=True)]
    with torch.inference_mode():
        found, _ = base.row_losses(model, together)
        expected = torch.cat([base.row_losses(model, one)[0] for one in alone])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("method", "prefix_gate"), [("prefix", False), *((method, True) for method in METHODS)])
def test_decoding_token_by_token_equals_decoding_at_once(method, prefix_gate, base, batch, make, randomize):
    model = randomize(make(method, prefix_gate=prefix_gate)).model
    with torch.inference_mode():
        states, mask = base.encode(model, batch)
        ids = batch.decoder_input_ids[:, :6]
        logits = forward.unwrap(model).proj_out(forward.decode(model, ids, states, mask))
        decoder = RowDecoder(model, replace(base.rules, suppress=(), begin_suppress=()), len(ids))
        prompted = decoder.read(ids[:, :3].tolist(), states, mask)
        counts = [states.shape[1]] * len(ids) if mask is None else mask.sum(dim=1).tolist()
        decoder.cache.fill(prompted.own, prompted.speech, counts)
        parts = [prompted.log_probs, *(decoder.next(ids[:, i].tolist()) for i in range(3, 6))]
    whole = torch.log_softmax(logits[:, 2:], dim=-1)
    torch.testing.assert_close(torch.stack(parts, dim=1), whole, rtol=1e-4, atol=1e-4)


def test_tensors_come_out_as_they_went_in_and_unsound_ones_do_not(make, randomize):
    trained, fresh = randomize(make("bottleneck")), make("bottleneck")
    fresh.load(trained.state())
    assert all(torch.equal(fresh.state()[n], t) for n, t in trained.state().items())
    name, tensor = next(iter(trained.state().items()))
    with pytest.raises(AdapterMismatchError, match="expected"):
        fresh.load({name: tensor[:1]})
    with pytest.raises(AdapterMismatchError, match="tensors that this configuration does not"):
        fresh.load({"stranger": tensor})
    with pytest.raises(AdapterError, match="NaN"):
        fresh.load({name: torch.full_like(tensor, float("nan"))})


# What each computes.


def test_a_bottleneck_computes_its_formula():
    torch.manual_seed(0)
    linear = nn.Linear(5, 4)
    layer = BottleneckLinear(linear, 2, 1, "x").requires_grad_(False)
    for parameter in (layer.bottleneck_up, layer.bottleneck_down_bias, layer.bottleneck_up_bias):
        nn.init.normal_(parameter)
    x = torch.randn(3, 5)
    y = x @ linear.weight.T + linear.bias
    t = y @ layer.bottleneck_down.T + layer.bottleneck_down_bias
    gelu = 0.5 * t * (1 + torch.erf(t / math.sqrt(2)))
    torch.testing.assert_close(layer(x), y + gelu @ layer.bottleneck_up.T + layer.bottleneck_up_bias)


def test_bottlenecks_sit_behind_the_sublayers_of_the_sites(base, make):
    def behind(*sites):
        names = make("bottleneck", targets=target_pattern(sites)).parameters
        return {name.rpartition(".")[0] for name in names}

    assert behind("ffn") == {f"model.{s}.layers.{i}.fc2" for s in ("encoder", "decoder") for i in (0, 1)}
    assert behind("decoder.cross") == {f"model.decoder.layers.{i}.encoder_attn.out_proj" for i in (0, 1)}
    assert len(behind(*SITES)) == 2 * 2 + 2 * 3


class _Attention(nn.Module):
    def __init__(self, causal: bool, gate: bool) -> None:
        super().__init__()
        self.is_causal = causal
        self.prefix_key, self.prefix_value = (nn.Parameter(torch.randn(3, 8)) for _ in range(2))
        if gate:
            self.prefix_gate = nn.Parameter(torch.randn(2))


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("seen", ["everything", "the past", "a mask", "an added mask"])
def test_a_prefix_computes_its_formula(gate, seen):
    torch.manual_seed(0)
    module = _Attention(seen == "the past", gate)
    query, key, value = (torch.randn(2, 2, n, 4) for n in (5, 5, 5))
    allowed = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    mask = None
    if seen == "the past":
        allowed = allowed.tril()
    elif seen != "everything":
        allowed[1, :, :, 3:] = False
        mask = allowed if seen == "a mask" else torch.zeros(allowed.shape).masked_fill(~allowed, -1e9)
    found, _ = prefixed_attention(module, query, key, value, mask, scaling=0.5)

    heads = [module.prefix_key, module.prefix_value]
    pk, pv = (p.view(3, 2, 4).transpose(0, 1)[None].expand(2, -1, -1, -1) for p in heads)
    scores = (0.5 * query @ key.transpose(2, 3)).masked_fill(~allowed, -torch.inf)
    extra = 0.5 * query @ pk.transpose(2, 3)
    if gate:
        added = torch.tanh(module.prefix_gate)[None, :, None, None] * (extra.softmax(-1) @ pv)
        expected = scores.softmax(-1) @ value + added
    else:
        expected = torch.cat((extra, scores), -1).softmax(-1) @ torch.cat((pv, value), 2)
    torch.testing.assert_close(found, expected.transpose(1, 2))


def test_a_prefix_leaves_the_configuration_of_other_models_alone(base, make, logits):
    before = logits(base.model).detach()
    prefixed = make("prefix").model
    assert base.model.config._attn_implementation == "sdpa"
    assert prefixed.config is base.model.config
    assert torch.equal(logits(base.model), before)


def test_prefixes_sit_in_the_attentions_of_the_sites(make):
    names = make("prefix").parameters
    places = {name.rpartition(".")[0] for name in names}
    assert places == {
        *(f"model.encoder.layers.{i}.self_attn" for i in (0, 1)),
        *(f"model.decoder.layers.{i}.{a}" for i in (0, 1) for a in ("self_attn", "encoder_attn")),
    }
    assert len(names) == 3 * len(places)
    assert len(make("prefix", prefix_gate=False).parameters) == 2 * len(places)


def test_bitfit_trains_every_bias_and_nothing_else(base, make):
    biases = {name for name, _ in base.model.named_parameters() if name.endswith(".bias")}
    assert set(make("bitfit").parameters) == biases
    assert {n.rpartition(".")[0].rpartition(".")[2] for n in biases} >= {"q_proj", "layer_norm", "conv1", "fc1"}


def test_full_fine_tuning_is_that_of_a_plain_transformers_model(base, batch, make, logits):
    plain = WhisperForConditionalGeneration(base.model.config).eval()
    plain.load_state_dict(base.model.state_dict())
    attached = make("full")
    names = {n for n, p in plain.named_parameters() if p.requires_grad}
    assert set(attached.parameters) == names  # all but the sinusoids of the encoder, the tied head once
    for model, parameters in (
        (plain, [p for p in plain.parameters() if p.requires_grad]),
        (attached.model, attached.parameters.values()),
    ):
        optimizer = torch.optim.SGD(parameters, lr=0.05)
        for _ in range(2):
            optimizer.zero_grad()
            logits(model).mean().backward()
            optimizer.step()
    for name, parameter in attached.parameters.items():
        torch.testing.assert_close(parameter, plain.get_parameter(name))
    assert attached.model.proj_out.weight is attached.model.model.decoder.embed_tokens.weight


def test_scratch_has_the_architecture_without_what_the_base_learnt(base, make):
    scratch, full = make("scratch"), make("full")
    assert scratch.shapes() == full.shapes()
    state, pretrained = scratch.state(), full.state()
    assert not [n for n, t in state.items() if t.dim() > 1 and torch.equal(t, pretrained[n])]
    weight = state["model.encoder.layers.0.fc1.weight"]
    assert float(weight.std()) == pytest.approx(base.model.config.init_std, rel=0.1)
    own, kept = (m.model.encoder.embed_positions.weight for m in (scratch.model, base.model))
    assert torch.equal(own, kept)
    assert scratch.model.proj_out.weight is scratch.model.model.decoder.embed_tokens.weight


def test_scratch_needs_a_model_that_knows_how_its_weights_are_drawn():
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ConfigError, match="Sequential"):
        attach(model, recipe_of("scratch", targets=["0"]))


def test_dora_has_the_magnitudes_of_the_base(base, make):
    state = make("dora").state()
    name = "model.decoder.layers.1.fc1"
    weight = base.model.get_submodule(name).weight
    magnitude = state[f"base_model.model.{name}.lora_magnitude_vector.weight"]
    torch.testing.assert_close(magnitude, weight.detach().norm(dim=1))
    a = make("lora").state()[f"base_model.model.{name}.gated_lora_A"]
    assert torch.equal(state[f"base_model.model.{name}.lora_A.weight"], a)  # the same start for both


@pytest.mark.parametrize("method", [m for m in METHODS if METHODS[m].sized])
def test_a_size_larger_than_a_layer_is_refused_with_its_name(method, base):
    largest = 64  # the width of the nano base; 3 x it in no layer
    METHODS[method].require_fit(base.model, recipe_of(method, size=largest))
    with pytest.raises(ConfigError, match=rf"rank = 65 is larger than model\..* allows.*'{method}': at most 64"):
        METHODS[method].require_fit(base.model, recipe_of(method, size=largest + 1))


def test_methods_of_low_rank_are_the_adapters(make):
    for method in METHODS:
        adapters = all(".gated_lora_" in name for name in make(method).parameters)
        assert adapters == METHODS[method].low_rank
