"""One audio file, one adapter, one transcript: what a person does with what was trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import get_peft_model

from fl.adapters.config import GatedLoraConfig
from fl.adapters.files import load_adapter
from fl.adapters.state import adapter_shapes, check_tensors, load_state
from fl.bases.speech import load_speech_base
from fl.core.errors import AudioError
from fl.speech.audio import MAX_SECONDS, SAMPLE_RATE, check_speech, load_audio, split_at_silence
from fl.speech.features import Window, heard_frames

SILENCE_PEAK = 1e-3  # -60 dB of full scale: a piece under it has no words
SLOT = "gated-transcribe"


@dataclass(frozen=True)
class Piece:
    """A stretch of audio between silences, with its words."""

    start: float  # seconds
    end: float
    text: str


def transcribe_file(
    path: Path, base_name: str, adapter: Path | None, *, beams: int = 1, language: str = ""
) -> list[Piece]:
    """Transcribe ``path`` with a person's adapter, or with the frozen base alone.

    Audio longer than the window is split at silence. Raises :class:`fl.core.errors.AudioError` for unusable audio and
    :class:`fl.core.errors.AdapterError` for an adapter that is damaged or belongs to another base.
    """
    audio = load_audio(path)
    if len(audio) / SAMPLE_RATE <= MAX_SECONDS:
        check_speech(audio, str(path))
    tensors, info = load_adapter(adapter) if adapter is not None else (None, None)
    base = load_speech_base(info.base_name if info is not None and not base_name else base_name or "whisper-base")
    model = base.new_model()
    window: Window = base.alone_window or "trimmed"
    if info is not None and tensors is not None:
        info.require_base(base.fingerprint)
        config = GatedLoraConfig(
            r=info.config.r,
            lora_alpha=info.config.lora_alpha,
            gate=info.config.gate,
            target_modules=info.config.target_modules,
        )
        model = get_peft_model(model, config, adapter_name=SLOT).eval()
        check_tensors(tensors, adapter_shapes(model, SLOT))
        load_state(model, tensors, SLOT)
        window = "full" if info.window == "full" else "trimmed"
        language = language or info.language
    pieces = []
    for start, end in split_at_silence(audio):
        part = audio[start:end]
        if len(part) < SAMPLE_RATE * 0.1 or float(np.abs(part).max(initial=0.0)) < SILENCE_PEAK:
            continue
        with torch.inference_mode():
            batch = base.collate([base.features(part, window)], None, window, language or None)
            text = base.generate(model, batch, beams=beams, heard=[heard_frames(len(part))])[0]
        pieces.append(Piece(start / SAMPLE_RATE, end / SAMPLE_RATE, text))
    if not pieces:
        raise AudioError(f"{path}: silent throughout; check the recording")
    return pieces
