"""A Whisper of a few thousand weights, and Gated LoRA on it."""

from collections.abc import Callable

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperForConditionalGeneration

from fl.adapters.config import GatedLoraConfig, target_pattern
from fl.adapters.state import adapter_parameters
from fl.settings.names import SITES

D_MODEL, D_FFN, LAYERS = 16, 24, 2


def make_whisper() -> WhisperForConditionalGeneration:
    config = WhisperConfig(
        vocab_size=40,
        num_mel_bins=8,
        d_model=D_MODEL,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=D_FFN,
        decoder_ffn_dim=D_FFN,
        max_source_positions=10,
        max_target_positions=12,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    torch.manual_seed(11)
    return WhisperForConditionalGeneration(config).eval()


@pytest.fixture
def whisper() -> Callable[[], WhisperForConditionalGeneration]:
    """A maker of equal models: PEFT changes the one that it is given."""
    return make_whisper


@pytest.fixture
def logits() -> Callable[[nn.Module], Tensor]:
    """What a model computes for two fixed utterances."""
    generator = torch.Generator().manual_seed(5)
    mel = torch.randn(2, 8, 20, generator=generator)
    tokens = torch.randint(3, 40, (2, 6), generator=generator)

    def compute(model: nn.Module) -> Tensor:
        out: Tensor = model(input_features=mel, decoder_input_ids=tokens).logits
        return out

    return compute


@pytest.fixture
def randomize() -> Callable[..., None]:
    """Give every tensor of an adapter values that it could have after training; ``zero_gates`` leaves the gates fresh."""

    def fill(model: nn.Module, adapter: str = "default", *, seed: int = 3, zero_gates: bool = False) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in adapter_parameters(model, adapter).items():
                if not (zero_gates and "gate_" in name):
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))

    return fill


@pytest.fixture
def gated(randomize) -> Callable[..., PeftModel]:
    """A tiny Whisper with Gated LoRA at all sites and, unless ``fresh``, values as after training."""

    def make(gate: str, *, sites: tuple[str, ...] = SITES, fresh: bool = False, seed: int = 3) -> PeftModel:
        config = GatedLoraConfig(r=3, lora_alpha=6.0, gate=gate, target_modules=target_pattern(sites), init_seed=7)
        model = get_peft_model(make_whisper(), config).eval()
        if not fresh:
            randomize(model, seed=seed)
        return model

    return make
