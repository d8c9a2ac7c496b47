"""A Whisper of a few thousand weights, three utterances of different length, and every method on it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fl.adapters.config import target_pattern
from fl.bases.resolve import random_base
from fl.bases.whisper.base import WhisperBase
from fl.methods.base import Attached, Recipe
from fl.methods.recipes import attach
from fl.settings.names import SITES


@pytest.fixture(scope="session", autouse=True)
def cache(own_home: Path) -> Path:
    """A cache folder of the tests' own."""
    return own_home


@pytest.fixture(scope="session")
def base() -> WhisperBase:
    return random_base("random:whisper-nano")


@pytest.fixture(scope="session")
def batch(base: WhisperBase):
    """Rows of three lengths with their texts: there is padding to be masked."""
    rng = np.random.default_rng(0)
    rows = [rng.normal(0.0, 0.5, (base.mels, frames)).astype(np.float16) for frames in (60, 44, 52)]
    return base.collate(rows, ["meeting 있어", "어", "ab"], "trimmed", "ko")


def recipe_of(method: str, **changes) -> Recipe:
    gate = {"gated-lora": "self", "scalar-gate": "scalar"}.get(method, "none")
    values = {"size": 3, "alpha": 6.0, "gate": gate, "targets": target_pattern(SITES), "seed": 7, **changes}
    return Recipe(method, **values)


@pytest.fixture(scope="session")
def make(base: WhisperBase) -> Callable[..., Attached]:
    """``make(method)`` puts a fresh method on a model of its own."""

    def build(method: str, **changes) -> Attached:
        return attach(base.new_model(), recipe_of(method, **changes))

    return build


@pytest.fixture(scope="session")
def logits(base: WhisperBase, batch) -> Callable[[nn.Module], Tensor]:
    """What a model says of the batch: the loss of every labelled token."""

    def compute(model: nn.Module) -> Tensor:
        return base.token_losses(model, batch)[0]

    return compute


@pytest.fixture(scope="session")
def randomize() -> Callable[[Attached], Attached]:
    """Values as after training."""

    def fill(attached: Attached) -> Attached:
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in attached.parameters.values():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        return attached

    return fill
