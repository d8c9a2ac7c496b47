"""How large the architectures are that can be had with random weights, counted on models without memory."""

from __future__ import annotations

import torch
from transformers import Wav2Vec2ForCTC, WhisperForConditionalGeneration

from fl.bases.ctc.loading import CTC_ARCHITECTURES, RANDOM_TOKENS, ctc_config
from fl.bases.ctc.vocabulary import make_vocabulary
from fl.bases.whisper.loading import ARCHITECTURES, HEAD, whisper_config

HEADER = (
    "| architecture | d_model | layers | heads | outputs | parameters | MiB in float32 |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
)


def architecture_sizes() -> dict[str, int]:
    """Parameters of every architecture, a tied head once; Whispers first."""
    outputs = len(make_vocabulary(RANDOM_TOKENS))
    with torch.device("meta"):
        models = {name: WhisperForConditionalGeneration(whisper_config(shape)) for name, shape in ARCHITECTURES.items()}
        models |= {name: Wav2Vec2ForCTC(ctc_config(shape, outputs)) for name, shape in CTC_ARCHITECTURES.items()}
    return {
        name: sum(p.numel() for key, p in model.named_parameters() if key != HEAD) for name, model in models.items()
    }


def sizes_table() -> str:
    """The sizes as a Markdown table; outputs are tokens or symbols."""
    sizes, outputs = architecture_sizes(), len(make_vocabulary(RANDOM_TOKENS))
    facts = {
        n: (s.d_model, f"{s.encoder_layers} + {s.decoder_layers}", s.heads, s.vocabulary)
        for n, s in ARCHITECTURES.items()
    }
    facts |= {n: (s.d_model, str(s.layers), s.heads, outputs) for n, s in CTC_ARCHITECTURES.items()}
    return HEADER + "".join(
        f"| `{name}` | {width} | {layers} | {heads} | {count:,} | {sizes[name]:,} | {sizes[name] * 4 / 2**20:,.0f} |\n"
        for name, (width, layers, heads, count) in facts.items()
    )
