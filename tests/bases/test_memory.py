"""The estimate of a step's memory against the tensors that autograd really saves."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fl.adapters.config import GatedLoraConfig, target_pattern
from fl.adapters.layer import fresh_adapter
from fl.adapters.stacked import Slot, StackedAdapters, StackedModel
from fl.bases.resolve import load_base
from fl.settings.names import SITES


def saved_bytes(base, frames: int, text: str) -> int:
    """Bytes of distinct storages that a training step on one utterance keeps for its backward pass, weights left out."""
    host = StackedModel(base.new_model(), target_pattern(SITES))
    config = GatedLoraConfig(r=4, lora_alpha=8.0, gate="self", target_modules=target_pattern(SITES), init_seed=1)
    stack = StackedAdapters.from_states([Slot.of(config)], [fresh_adapter(base.model, config)])
    for tensor in (*stack.factors.values(), *stack.gates["self"].values()):
        tensor.requires_grad_(True)
    weights = {p.untyped_storage().data_ptr() for p in host.model.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    features = np.random.default_rng(0).standard_normal((base.mels, frames)).astype(np.float32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), host.rows(stack, [0]) as model:
        base.loss(model, base.collate([features], [text], "trimmed", "ko"))
    return sum(seen.values())


@pytest.mark.parametrize(("frames", "words"), [(60, 2), (300, 3), (500, 10)])
def test_the_estimate_covers_what_autograd_saves_and_is_not_far_above_it(frames, words):
    base = load_base("random:whisper-nano")
    text = " ".join(["나는 coffee를"] * words)
    needed, estimated = saved_bytes(base, frames, text), base.training_bytes(frames, text)
    assert needed <= estimated <= 3 * needed


def test_it_grows_with_length_and_size_of_the_base():
    estimate = load_base("random:whisper-nano").training_bytes
    assert estimate(600, "a" * 15) > 2 * estimate(300, "a" * 15) - estimate(10, "a" * 15)
    assert estimate(300, "a" * 35) > estimate(300, "a" * 15)
