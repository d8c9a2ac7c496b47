"""What enters the lowest adapted layer of the encoder: it never changes for an utterance, so it is computed once.

With adapters in the decoder only that is all of the encoder. The values are kept in half precision on disk, and the
rounded ones are used always, cached or not, so that a result does not depend on whether the cache was warm.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn
from transformers import Wav2Vec2ForCTC, WhisperForConditionalGeneration

from fl.bases.base import SpeechBase
from fl.core.errors import BaseModelError
from fl.speech.arrays import GIB, ArrayCache, ArrayKind

BUDGET = 8 * GIB  # about 12,000 minutes of speech at d_model 512
LARGEST = 1 << 25  # bytes; 1,500 states of 4,096 values in float32 are under it
_VERSION = b"IDP1"

States = npt.NDArray[Any]


def frozen_layers(model: nn.Module, targets: str | Sequence[str]) -> int:
    """How many of the lowest encoder layers hold no module that ``targets`` (as PEFT takes them) selects."""
    stack, encoder = _encoder(model)
    layers = encoder.layers
    for index, layer in enumerate(layers):
        names = [f"{stack}.layers.{index}.{name}" for name, _ in layer.named_modules() if name]
        if any(_selected(name, targets) for name in names):
            return index
    return len(layers)


def _encoder(model: nn.Module) -> tuple[str, Any]:
    """The encoder inside ``model``, and the name that it has in the recognizer there."""
    for module in model.modules():
        if isinstance(module, WhisperForConditionalGeneration):
            return "model.encoder", module.model.encoder
        if isinstance(module, Wav2Vec2ForCTC):
            return "wav2vec2.encoder", module.wav2vec2.encoder
    raise TypeError(f"{type(model).__name__} holds no recognizer")


def _below(model: nn.Module, layers: int) -> dict[str, nn.Parameter]:
    """All parameters in front of encoder layer ``layers``."""
    _, encoder = _encoder(model)
    parts: dict[str, nn.Module] = {str(index): layer for index, layer in enumerate(encoder.layers[:layers])}
    for module in model.modules():
        if isinstance(module, Wav2Vec2ForCTC):
            inner = module.wav2vec2
            parts |= {"f": inner.feature_extractor, "p": inner.feature_projection, "c": encoder.pos_conv_embed}
            if not inner.config.do_stable_layer_norm:
                parts["n"] = encoder.layer_norm
        elif isinstance(module, WhisperForConditionalGeneration):
            parts |= {"f": encoder.conv1, "c": encoder.conv2, "p": encoder.embed_positions}
    return {f"{key}.{name}": p for key, part in parts.items() for name, p in part.named_parameters()}


def untouched(model: nn.Module, base: nn.Module, layers: int) -> bool:
    """Whether what is in front of encoder layer ``layers`` of ``model`` are the frozen tensors of ``base`` themselves.

    Not so where all weights are trained: each model then has its own, and nothing that was computed with the base's is right.
    """
    frozen = _below(base, layers)
    own = _below(model, layers)
    return own.keys() == frozen.keys() and all(
        p.data_ptr() == frozen[name].data_ptr() and not p.requires_grad for name, p in own.items()
    )


def _selected(name: str, targets: str | Sequence[str]) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def check_frozen(model: nn.Module, layers: int) -> None:
    """Raise :class:`BaseModelError` if an adapter sits in one of the lowest ``layers``: its effect would be skipped."""
    for layer in _encoder(model)[1].layers[:layers]:
        if any(name.endswith("base_layer") for name, _ in layer.named_modules()):
            raise BaseModelError(
                f"an adapter sits in the lowest {layers} encoder layers, which the configured sites leave free: "
                "its effect would be lost. Use the sites that the task was made with."
            )


class PrefixCache:
    """States on disk, by the hash of the features, the base's fingerprint and the layer that they enter."""

    def __init__(self, root: Path, budget: int = BUDGET) -> None:
        # Activations beyond half precision's range are kept in full: some models have a few large ones.
        kinds = (ArrayKind(b"IDPh", "<f2"), ArrayKind(b"IDPf", "<f4"))
        self._arrays = ArrayCache(root, ".states", kinds, budget=budget, largest=LARGEST)

    def states(self, base: SpeechBase, features: npt.NDArray[Any], layers: int) -> States:
        """What enters layer ``layers`` (states, d_model) for ``features`` (mels, frames); the encoder's output for all.

        float16, or float32 where a value would overflow. Computed alone, so that it is a function of the features.
        """
        key = self._key(base.fingerprint, features, layers)
        found = self._arrays.read(key, rows=base.state_count(features))
        if found is not None:
            return found
        exact = base.prefix_states(features, layers)
        with np.errstate(over="ignore"):
            half = exact.astype(np.float16)
        made: States = half if np.isfinite(half).all() or not np.isfinite(exact).all() else exact
        self._arrays.write(key, made)
        return made

    def path(self, base: SpeechBase, features: npt.NDArray[Any], layers: int) -> Path:
        """Where the states of ``features`` are or would be."""
        return self._arrays.path(self._key(base.fingerprint, features, layers))

    @staticmethod
    def _key(fingerprint: str, features: npt.NDArray[Any], layers: int) -> str:
        facts = f"{fingerprint} {layers} {features.dtype.str} {features.shape}\n".encode()
        return hashlib.sha256(_VERSION + facts + np.ascontiguousarray(features).tobytes()).hexdigest()
