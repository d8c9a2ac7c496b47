"""Where adapters sit, and settings that are refused."""

import json

import pytest
from peft import get_peft_model
from torch import nn

from fl.adapters.config import ATTENTION_TARGETS, GatedLoraConfig, target_pattern
from fl.adapters.config import SITES as PATTERNS
from fl.adapters.gates.table import GATES
from fl.adapters.model import gated_layers
from fl.core.errors import ConfigError
from fl.settings.names import MAX_RANK, SITES

LAYERS = 2


def expected(site: str, targets: tuple[str, ...]) -> set[str]:
    """Module names of a site, written out for a Whisper of two layers."""
    if site == "ffn":
        return {
            f"model.{half}.layers.{i}.fc{k}" for half in ("encoder", "decoder") for i in range(LAYERS) for k in (1, 2)
        }
    half, kind = site.split(".")
    attention = {"self": "self_attn", "cross": "encoder_attn"}[kind]
    return {f"model.{half}.layers.{i}.{attention}.{target}" for i in range(LAYERS) for target in targets}


def adapted(model: nn.Module) -> set[str]:
    return {layer.module_name for layer in gated_layers(model)}


@pytest.mark.parametrize("site", SITES)
def test_a_site_selects_exactly_its_modules(site, gated):
    assert adapted(gated("none", sites=(site,))) == expected(site, ATTENTION_TARGETS)


def test_sites_add_up_and_order_and_repetition_do_not_matter(gated):
    everything = set().union(*(expected(site, ATTENTION_TARGETS) for site in SITES))
    assert adapted(gated("none", sites=SITES)) == everything
    assert adapted(gated("none", sites=("ffn", *reversed(SITES)))) == everything


def test_targets_narrow_a_site(whisper):
    config = GatedLoraConfig(r=2, target_modules=target_pattern(["decoder.cross"], ["q_proj", "v_proj"]))
    assert adapted(get_peft_model(whisper(), config)) == expected("decoder.cross", ("q_proj", "v_proj"))


def test_every_site_of_the_run_config_has_a_pattern():
    assert tuple(PATTERNS) == SITES


@pytest.mark.parametrize(
    ("sites", "targets", "named"),
    [
        (["encoder.cross"], ATTENTION_TARGETS, SITES),
        ([], ATTENTION_TARGETS, SITES),
        (["ffn", "decoder"], ATTENTION_TARGETS, SITES),
        (["encoder.self"], ["query"], ATTENTION_TARGETS),
        (["encoder.self"], [], ATTENTION_TARGETS),
    ],
)
def test_an_unknown_site_or_target_is_refused_by_naming_the_known_ones(sites, targets, named):
    with pytest.raises(ConfigError) as error:
        target_pattern(sites, targets)
    assert all(name in str(error.value) for name in named)


def test_an_unknown_gate_is_refused_by_naming_the_known_ones():
    with pytest.raises(ConfigError, match="unknown gate 'input'") as error:
        GatedLoraConfig(gate="input")
    assert all(gate in str(error.value) for gate in GATES)


@pytest.mark.parametrize("rank", [0, -1, MAX_RANK + 1, 2.0, True, "8"])
def test_a_rank_that_is_no_rank_is_refused_with_the_range(rank):
    with pytest.raises(ConfigError, match=f"from 1 to {MAX_RANK}"):
        GatedLoraConfig(r=rank)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_alpha_is_a_positive_number(alpha):
    with pytest.raises(ConfigError, match="positive"):
        GatedLoraConfig(lora_alpha=alpha)


def test_a_refused_rank_leaves_the_model_untouched(whisper):
    model = whisper()
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(ConfigError, match="at most 16"):
        get_peft_model(model, GatedLoraConfig(r=17, target_modules=target_pattern(["ffn"])))
    assert {name: type(module) for name, module in model.named_modules()} == before


def test_the_type_on_disk_is_ours_and_not_pefts_generalized_lora(tmp_path):
    GatedLoraConfig(r=2, target_modules=["q_proj"]).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "GATED_LORA"
    assert GatedLoraConfig.from_pretrained(tmp_path).r == 2
