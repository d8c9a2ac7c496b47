"""What a speech task needs of a base, whichever kind it is, and from a name to one: Whisper or Wav2Vec2-CTC."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fl.bases.ctc.base import CtcBase
from fl.bases.ctc.catalog import CTC_ARCHITECTURES
from fl.bases.ctc.loading import MODEL_TYPE, assemble_ctc, load_ctc_folder, random_ctc
from fl.bases.ctc.vocabulary import SETTINGS_NAME, VOCABULARY_NAME
from fl.bases.extended import extended
from fl.bases.fingerprint import FingerprintMemo, ctc_fingerprint
from fl.bases.resolve import RANDOM, find_folder, load_base
from fl.bases.sources.mapped import in_dtype
from fl.bases.whisper.base import WhisperBase
from fl.bases.whisper.tokenizer import read_json
from fl.core.paths import cache_root
from fl.settings.names import OWN, TOKENS
from fl.speech.features import Audio, Window

WITH_TOKENS = "+"  # whisper-tiny.en+jamo: the base with new tokens, in adapters and wherever one name says all


class SpeechBase(Protocol):
    """A frozen recognizer. What computes takes the model, which may be a wrapped one: adapters live in the modules inside.

    ``features`` are arrays whose second axis is time; ``collate`` makes of them what the other methods call a batch.
    """

    name: str
    fingerprint: str
    targets: str  # a pattern of modules of its own that adapters train, beside the sites; empty for none

    @property
    def model(self) -> nn.Module:
        """The plain frozen model."""
        ...

    @property
    def mels(self) -> int:
        """Mel bands of the features, worth keeping on disk; 0 for a base that hears the waveform."""
        ...

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages it has tokens for."""
        ...

    @property
    def alone_window(self) -> Window | None:
        """The window in which the frozen base alone must decode; None for the window of its adapters."""
        ...

    @property
    def caches_stem(self) -> bool:
        """Whether it is worth keeping what enters the first layer."""
        ...

    def to(self, device: torch.device) -> SpeechBase:
        """This base with its weights on ``device``."""
        ...

    def new_model(self) -> nn.Module:
        """A model of its own modules on the same frozen tensors."""
        ...

    def features(self, audio: Audio, window: Window = "trimmed") -> npt.NDArray[np.float16]:
        """Features of ``audio`` (samples,) at 16 kHz."""
        ...

    def frames(self, features: npt.NDArray[Any]) -> int:
        """Length of an utterance in frames of 10 ms."""
        ...

    def state_count(self, features: npt.NDArray[Any]) -> int:
        """Encoder states of an utterance."""
        ...

    def target_ids(self, text: str) -> list[int]:
        """What the base should write for ``text``."""
        ...

    def require_texts(self, texts: Sequence[str], source: str) -> None:
        """Raise :class:`fl.core.errors.VocabularyError` unless all ``texts`` can be written."""
        ...

    def collate(
        self,
        features: Sequence[npt.NDArray[Any]],
        texts: Sequence[str] | None = None,
        window: Window = "trimmed",
        language: str | None = None,
    ) -> Any:
        """A batch, with targets if ``texts`` are given."""
        ...

    def prefix_states(self, features: npt.NDArray[Any], layers: int) -> npt.NDArray[np.float32]:
        """What enters layer ``layers`` of the frozen encoder (states, d_model), of one utterance alone."""
        ...

    def with_prefix(self, batch: Any, rows: Sequence[npt.NDArray[Any]], layers: int) -> Any:
        """``batch`` with what enters encoder layer ``layers``, so that nothing below is computed."""
        ...

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean loss over all labels of the batch."""
        ...

    def row_losses(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Summed loss of each row (batch,), and the number of its labels (batch,)."""
        ...

    def generate(
        self,
        model: nn.Module,
        batch: Any,
        *,
        beams: int = 1,
        languages: Sequence[str] | None = None,
        heard: Sequence[int] | None = None,
    ) -> list[str]:
        """The transcript of each row in NFC."""
        ...

    def training_bytes(self, frames: int, text: str) -> int:
        """Bytes of activations of an utterance in a training step."""
        ...


def name_with_tokens(name: str, tokens: str) -> str:
    """The one name of a base with a setting ``tokens``."""
    return name if tokens == OWN else f"{name}{WITH_TOKENS}{tokens}"


def split_tokens(name: str) -> tuple[str, str]:
    """The base and the tokens of :func:`name_with_tokens`."""
    plain, mark, tokens = name.rpartition(WITH_TOKENS)
    return (plain, tokens) if mark and tokens in TOKENS and tokens != OWN else (name, OWN)


def load_speech_base(name: str, *, cache: Path | None = None, dtype: torch.dtype = torch.float32) -> SpeechBase:
    """The base called ``name``, of any kind, frozen; the same object for the same arguments in one process.

    Names are those of :func:`fl.bases.resolve.load_base`, and ``random:wav2vec2-...`` (:data:`CTC_ARCHITECTURES`). A folder or
    repository whose ``config.json`` is of a ``wav2vec2`` is a CTC base. ``NAME+TOKENS`` is the base with new tokens
    (:mod:`fl.bases.extended`). Raises :class:`BaseModelError`.
    """
    return _load(name, (cache or cache_root()).absolute(), dtype)


@lru_cache(maxsize=4)
def _load(name: str, cache: Path, dtype: torch.dtype) -> SpeechBase:
    plain, tokens = split_tokens(name)
    if plain.removeprefix(RANDOM) in CTC_ARCHITECTURES and plain.startswith(RANDOM):
        model, vocabulary = random_ctc(plain.removeprefix(RANDOM), tokens)
        mark = ctc_fingerprint(model, vocabulary.digest)
        if dtype != torch.float32:
            drawn = {key: tensor.to(dtype) for key, tensor in model.state_dict().items()}
            model = assemble_ctc(model.config, drawn, name)
        return CtcBase(name, mark, model, vocabulary)
    base = _plain(plain, cache, dtype)
    return base if tokens == OWN else extended(base, tokens)


def _plain(name: str, cache: Path, dtype: torch.dtype) -> WhisperBase | CtcBase:
    if name.startswith(RANDOM):
        return load_base(name, cache=cache, dtype=dtype)
    folder, converted = find_folder(name, cache)
    config = folder / "config.json"
    if converted or not config.is_file() or read_json(config).get("model_type") != MODEL_TYPE:
        return load_base(name, cache=cache, dtype=dtype)
    found = load_ctc_folder(folder)
    named = [path for path in (folder / VOCABULARY_NAME, folder / SETTINGS_NAME) if path.is_file()]
    mark = FingerprintMemo(cache / "fingerprints").remembered(
        [*found.weight_files, *named], lambda: ctc_fingerprint(found.model, found.vocabulary.digest)
    )
    weights = in_dtype(found.weights, found.weight_files, dtype, cache / "mapped")
    model = found.model if weights is found.weights else assemble_ctc(found.model.config, weights, name)
    return CtcBase(name, mark, model, found.vocabulary)
