"""What enters the lowest adapted layer of the encoder: it never changes for an utterance, so it is computed once.

With adapters in the decoder only that is all of the encoder. The values are kept in half precision on disk, and the
rounded ones are used always, cached or not, so that a result does not depend on whether the cache was warm.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fl.bases.base import SpeechBase
from fl.core.errors import BaseModelError
from fl.speech.arrays import GIB, ArrayCache

BUDGET = 8 * GIB  # about 12,000 minutes of speech at d_model 512
LARGEST = 1 << 25  # bytes; 1,500 states of 4,096 values in float32 are under it
_VERSION = b"IDP1"


def frozen_layers(base: SpeechBase, targets: str | Sequence[str]) -> int:
    """How many of the lowest encoder layers hold no module that ``targets`` (as PEFT takes them) selects."""
    layers = _recognizer(base, base.model).get_submodule(f"{base.encoder}.layers")
    for index, layer in enumerate(layers):
        names = [f"{base.encoder}.layers.{index}.{name}" for name, _ in layer.named_modules() if name]
        if any(_selected(name, targets) for name in names):
            return index
    return len(layers)


def _recognizer(base: SpeechBase, model: nn.Module) -> Any:
    """The recognizer inside ``model``."""
    return next(module for module in model.modules() if isinstance(module, type(base.model)))


def _below(base: SpeechBase, model: nn.Module, layers: int) -> dict[str, nn.Parameter]:
    """All parameters in front of encoder layer ``layers``; those of the whole encoder, its last norm included, if that is all."""
    recognizer = _recognizer(base, model)
    parts = [*base.stem, *(f"{base.encoder}.layers.{index}" for index in range(layers))]
    if layers == len(recognizer.get_submodule(f"{base.encoder}.layers")):
        parts.append(f"{base.encoder}.layer_norm")
    return {f"{part}.{n}": p for part in parts for n, p in recognizer.get_submodule(part).named_parameters()}


def untouched(base: SpeechBase, model: nn.Module, layers: int) -> bool:
    """Whether what is in front of encoder layer ``layers`` of ``model`` are the frozen tensors of ``base`` themselves.

    Not so where all weights are trained: each model then has its own, and nothing that was computed with the base's is right.
    """
    frozen, own = _below(base, base.model, layers), _below(base, model, layers)
    return own.keys() == frozen.keys() and all(
        p.data_ptr() == frozen[name].data_ptr() and not p.requires_grad for name, p in own.items()
    )


def _selected(name: str, targets: str | Sequence[str]) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def check_frozen(base: SpeechBase, model: nn.Module, layers: int) -> None:
    """Raise :class:`BaseModelError` if an adapter sits in one of the lowest ``layers``: its effect would be skipped."""
    for layer in _recognizer(base, model).get_submodule(f"{base.encoder}.layers")[:layers]:
        if any(name.endswith("base_layer") for name, _ in layer.named_modules()):
            raise BaseModelError(
                f"an adapter sits in the lowest {layers} encoder layers, which the configured sites leave free: "
                "its effect would be lost. Use the sites that the task was made with."
            )


class PrefixCache(ArrayCache):
    """States on disk, by the hash of the features, the base's fingerprint and the layer that they enter."""

    def __init__(self, root: Path) -> None:
        # Activations beyond half precision's range are kept in full: some models have a few large ones.
        super().__init__(root, ".states", {b"IDPh": "<f2", b"IDPf": "<f4"}, budget=BUDGET, largest=LARGEST)

    @staticmethod
    def key(base: SpeechBase, features: npt.NDArray[Any], layers: int) -> str:
        """The key of the states of ``features``."""
        precision = "" if base.dtype == torch.float32 else f" {base.dtype}"
        facts = f"{base.fingerprint}{precision} {layers} {features.dtype.str} {features.shape}\n".encode()
        return hashlib.sha256(_VERSION + facts + np.ascontiguousarray(features).tobytes()).hexdigest()

    def states(self, base: SpeechBase, features: npt.NDArray[Any], layers: int) -> npt.NDArray[Any]:
        """What enters layer ``layers`` (states, d_model) for ``features`` (mels, frames); the encoder's output for all.

        float16, or float32 where a value would overflow. Computed alone, so that it is a function of the features.
        """

        def make() -> npt.NDArray[Any]:
            exact = base.prefix_states(features, layers)
            with np.errstate(over="ignore"):
                half = exact.astype(np.float16)
            return half if np.isfinite(half).all() or not np.isfinite(exact).all() else exact

        return self.get(self.key(base, features, layers), base.states_of(features.shape[1]), make)
