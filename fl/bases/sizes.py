"""How large the architectures are that can be had with random weights, counted on models without memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import Wav2Vec2ForCTC, WhisperForConditionalGeneration

from fl.bases.ctc.catalog import CTC_ARCHITECTURES, ctc_config
from fl.bases.ctc.loading import RANDOM_TOKENS
from fl.bases.ctc.vocabulary import make_vocabulary
from fl.bases.sources.catalog import ARCHITECTURES
from fl.bases.whisper.loading import whisper_config


@dataclass(frozen=True)
class ArchitectureSize:
    """One architecture. ``outputs`` are tokens or symbols; a tied head counts once; ``mebibytes`` in float32."""

    name: str
    d_model: int
    layers: str
    heads: int
    outputs: int
    parameters: int

    @property
    def mebibytes(self) -> float:
        """Size of the weights in float32."""
        return self.parameters * 4 / 2**20


def architecture_sizes() -> list[ArchitectureSize]:
    """All of them, Whispers first."""
    rows = []
    with torch.device("meta"):
        for name, shape in ARCHITECTURES.items():
            layers = f"{shape.encoder_layers} + {shape.decoder_layers}"
            count = _count(WhisperForConditionalGeneration._from_config(whisper_config(shape)))
            rows.append(ArchitectureSize(name, shape.d_model, layers, shape.heads, shape.vocabulary, count))
        outputs = len(make_vocabulary(RANDOM_TOKENS))
        for name, ctc in CTC_ARCHITECTURES.items():
            count = _count(Wav2Vec2ForCTC._from_config(ctc_config(ctc, outputs)))
            rows.append(ArchitectureSize(name, ctc.d_model, str(ctc.layers), ctc.heads, outputs, count))
    return rows


def sizes_table() -> str:
    """The sizes as a Markdown table."""
    lines = [
        "| architecture | d_model | layers | heads | outputs | parameters | MiB in float32 |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in architecture_sizes():
        lines.append(
            f"| `{row.name}` | {row.d_model} | {row.layers} | {row.heads} | {row.outputs:,} | {row.parameters:,} | {row.mebibytes:,.0f} |"
        )
    return "\n".join(lines) + "\n"


def _count(model: nn.Module) -> int:
    """Parameters, a tied head once."""
    return sum(p.numel() for name, p in model.named_parameters() if name != "proj_out.weight")
