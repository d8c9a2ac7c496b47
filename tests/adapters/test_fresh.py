"""What the aggregator starts from is what every device starts from."""

import pytest
import torch
from peft import get_peft_model

from fl.adapters.config import GatedLoraConfig, target_pattern
from fl.adapters.gates.table import GATES
from fl.adapters.layer import fresh_adapter
from fl.adapters.state import adapter_state
from fl.core.errors import ConfigError
from fl.settings.names import SITES

TARGETS = {
    "all sites": {"target_modules": target_pattern(SITES)},
    "module names": {"target_modules": ["q_proj", "fc1"]},
    "endings of names": {"target_modules": ["self_attn.q_proj", "model.decoder.layers.1.fc2"]},
    "without some": {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["encoder_attn.q_proj"]},
    "one layer": {"target_modules": ["q_proj"], "layers_to_transform": [1]},
}


@pytest.mark.parametrize("gate", GATES)
def test_a_fresh_adapter_has_exactly_the_tensors_of_an_injected_one(gate, whisper):
    config = GatedLoraConfig(r=3, gate=gate, target_modules=target_pattern(SITES), init_seed=4)
    fresh = fresh_adapter(whisper(), config)
    injected = adapter_state(get_peft_model(whisper(), config))
    assert list(fresh) == list(injected)
    assert all(torch.equal(fresh[name], injected[name]) for name in injected)


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
def test_a_fresh_adapter_sits_where_peft_would_put_it(targets, whisper):
    config = GatedLoraConfig(r=3, init_seed=4, **targets)
    fresh = fresh_adapter(whisper(), config)
    assert list(fresh) == list(adapter_state(get_peft_model(whisper(), config)))


def test_nothing_to_adapt_is_refused(whisper):
    with pytest.raises(ConfigError, match=r"'query'.*no linear map"):
        fresh_adapter(whisper(), GatedLoraConfig(target_modules=["query"]))
    with pytest.raises(ConfigError, match="no linear map"):
        fresh_adapter(whisper(), GatedLoraConfig())


def test_a_rank_too_large_is_refused_at_the_aggregator_too(whisper):
    with pytest.raises(ConfigError, match="at most 16"):
        fresh_adapter(whisper(), GatedLoraConfig(r=17, target_modules=["q_proj"]))
