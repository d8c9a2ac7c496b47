"""One audio file, one adapter, one transcript: what a person does with what was trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fl.adapters.correction import (
    corrected,
    corrected_fingerprint,
    find_correction,
    load_correction,
    require_fingerprint,
    split_fingerprint,
)
from fl.adapters.files import AdapterInfo, load_adapter
from fl.adapters.state import State, check_tensors
from fl.bases.base import SpeechBase
from fl.bases.resolve import load_speech_base
from fl.core.compute import AUTO, CPU, FLOAT32, autocast, choose_precision, dtype_of
from fl.core.errors import AdapterError, AudioError
from fl.core.paths import find
from fl.methods.base import Recipe
from fl.methods.files import MethodInfo, is_method, load_method
from fl.methods.recipes import attach
from fl.methods.table import METHODS
from fl.speech.audio import MAX_SECONDS, SAMPLE_RATE, Waveform, check_speech, load_audio, speech_parts
from fl.speech.features import Window, heard_frames
from fl.speech.languages import language_code
from fl.speech.spelling import SpellingTable


@dataclass(frozen=True)
class Piece:
    """A stretch of audio between silences, with its words."""

    start: float  # seconds
    end: float
    text: str


@dataclass(frozen=True)
class Trained:
    """What a run wrote for a device, by any method: tensors, how to attach them, and what they are for."""

    tensors: State
    recipe: Recipe
    info: AdapterInfo | MethodInfo

    @classmethod
    def read(cls, folder: Path) -> Trained:
        """Read a folder. Raises :class:`fl.core.errors.AdapterError` for one that is damaged."""
        if is_method(folder):
            tensors, method = load_method(folder)
            return cls(tensors, method.recipe, method)
        tensors, info = load_adapter(folder)
        config, named = info.config, info.config.target_modules
        targets = named if isinstance(named, str) else sorted(named or ())
        return cls(tensors, Recipe("gated-lora", config.r, config.lora_alpha, config.gate, targets, 0), info)

    def corrections(self, folder: Path, given: Path | None, base: SpeechBase) -> dict[str, Tensor]:
        """What is to be added to the weights of ``base``: of the file ``given``, else of the run's file that the fingerprint names.

        Raises :class:`fl.core.errors.AdapterError` if tensors, base and correction do not go together.
        """
        digest = split_fingerprint(self.info.base_fingerprint)[1]
        path = given or (find_correction(folder, digest) if digest else None)
        corrections = {} if path is None else load_correction(path, base.fingerprint)
        fingerprint = corrected_fingerprint(base.fingerprint, corrections) if digest else base.fingerprint
        require_fingerprint(self.info.base_fingerprint, fingerprint)
        self.info.require_base(fingerprint)
        return corrections

    def on(self, base: SpeechBase) -> nn.Module:
        """A model of ``base`` with all tensors in their places."""
        attached = attach(base.new_model(), self.recipe)
        check_tensors(self.tensors, attached.shapes())
        attached.load(self.tensors)
        return attached.model


def transcribe_file(
    path: Path,
    base_name: str,
    adapter: Path | None,
    *,
    beams: int = 1,
    language: str = "",
    prompt: str = "",
    correction: Path | None = None,
    precision: str = AUTO,
    remark: Callable[[str], None] | None = None,
) -> list[Piece]:
    """Transcribe ``path`` with what a person's device trained, by any method, or with the frozen base alone.

    ``correction`` is a file of :mod:`fl.adapters.correction`; an adapter that was made for one finds it in its run's folder.
    ``precision`` is the setting ``base.precision`` of a run (:mod:`fl.core.compute`).
    A spelling table beside the adapter (:mod:`fl.speech.spelling`) respells what was heard.
    Audio longer than the window is split at silence, and each piece goes on from ``prompt``. ``remark`` is told what is odd about the
    recording. Raises :class:`fl.core.errors.AudioError` for unusable audio, :class:`fl.core.errors.AdapterError` for an adapter that
    is damaged or belongs to another base, :class:`fl.core.errors.BaseModelError` for a base that takes no prompt, and
    :class:`fl.core.errors.ConfigError` for an unknown precision.
    """
    language, device = language_code(language), torch.device(CPU)
    dtype = dtype_of(precision, device)
    audio = load_audio(find(path), remark=remark)
    if len(audio) / SAMPLE_RATE <= MAX_SECONDS:
        check_speech(audio, str(path))
    if adapter is None:
        if correction is not None:
            raise AdapterError(
                f"{correction} corrects the mean of adapters: give the adapter too, with --adapter FOLDER"
            )
        base = load_speech_base(base_name or "whisper-base", dtype=dtype)
        pieces = _transcribed(audio, base, base.new_model(), base.alone_window or "trimmed", beams, language, prompt)
    else:
        trained, products = Trained.read(adapter), FLOAT32
        if not METHODS[trained.recipe.method].sized:  # the base's own weights were trained, which are float32
            dtype, products = torch.float32, choose_precision(precision, device)
        base = load_speech_base(base_name or trained.info.base_name, dtype=dtype)
        corrections, info = trained.corrections(adapter, correction, base), trained.info
        window: Window = "full" if info.window == "full" else "trimmed"
        with corrected(trained.on(base), corrections) as model:
            pieces = _transcribed(audio, base, model, window, beams, language or info.language, prompt, products)
        if (table := SpellingTable.read(adapter)) is not None:
            pieces = [replace(piece, text=table.respell(piece.text)) for piece in pieces]
    if not pieces:
        raise AudioError(f"{path}: silent throughout; check the recording")
    return pieces


def _transcribed(
    audio: Waveform,
    base: SpeechBase,
    model: nn.Module,
    window: Window,
    beams: int,
    language: str,
    prompt: str,
    products: str = FLOAT32,
) -> list[Piece]:
    pieces = []
    for start, end in speech_parts(audio):
        part = audio[start:end]
        batch = base.collate([base.features(part, window)], None, window, language or None)
        with torch.inference_mode(), autocast(torch.device(CPU), products):
            text = base.generate(model, batch, beams=beams, heard=[heard_frames(len(part))], prompt=prompt)[0]
        pieces.append(Piece(start / SAMPLE_RATE, end / SAMPLE_RATE, text))
    return pieces
