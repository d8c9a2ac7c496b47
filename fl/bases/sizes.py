"""How large the architectures are that can be had with random weights, counted on models without memory."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Wav2Vec2ForCTC, WhisperForConditionalGeneration

from fl.bases.ctc.loading import CTC_ARCHITECTURES, RANDOM_TOKENS, ctc_config
from fl.bases.ctc.vocabulary import make_vocabulary
from fl.bases.whisper.loading import ARCHITECTURES, HEAD, whisper_config

HEADER = (
    "| architecture | d_model | layers | heads | outputs | parameters | MiB in float32 |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
)


def architecture_sizes() -> dict[str, tuple[Any, int]]:
    """Configuration and number of parameters, a tied head once, of every architecture; Whispers first."""
    outputs = len(make_vocabulary(RANDOM_TOKENS))
    with torch.device("meta"):
        models = {name: WhisperForConditionalGeneration(whisper_config(shape)) for name, shape in ARCHITECTURES.items()}
        models |= {name: Wav2Vec2ForCTC(ctc_config(shape, outputs)) for name, shape in CTC_ARCHITECTURES.items()}
    return {
        name: (model.config, sum(p.numel() for key, p in model.named_parameters() if key != HEAD))
        for name, model in models.items()
    }


def sizes_table() -> str:
    """The sizes as a Markdown table; outputs are tokens or symbols."""
    rows = []
    for name, (config, size) in architecture_sizes().items():
        stacks = (
            (config.encoder_layers, config.decoder_layers) if config.is_encoder_decoder else (config.num_hidden_layers,)
        )
        facts = f"{config.hidden_size} | {' + '.join(map(str, stacks))} | {config.num_attention_heads} | {config.vocab_size:,}"
        rows.append(f"| `{name}` | {facts} | {size:,} | {size * 4 / 2**20:,.0f} |\n")
    return HEADER + "".join(rows)
