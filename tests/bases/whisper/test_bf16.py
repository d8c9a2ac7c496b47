"""A base in bf16 against the same in float32: the loss, what adapters learn from it, and transcripts."""

from collections.abc import Sequence

import numpy as np
import pytest
import soxr
import torch
from peft import get_peft_model
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from fl.adapters.config import GatedLoraConfig
from fl.adapters.layer import fresh_adapter
from fl.adapters.stacked import Slot, StackedAdapters, StackedModel
from fl.adapters.state import adapter_parameters, load_state
from fl.bases.attention import plain_attention
from fl.bases.resolve import load_base
from fl.bases.whisper.base import WhisperBase
from fl.data.synthetic.espeak import Espeak, Voice

TEXTS = ["please send the report", "the meeting is tomorrow", "we fixed the bug", "see you this evening"]


def trained(base: WhisperBase, count: int) -> tuple[GatedLoraConfig, list[dict[str, Tensor]]]:
    """The configuration and the tensors of ``count`` adapters that have learnt something."""
    maps = ["q_proj", "k_proj", "v_proj", "out_proj"]
    config = GatedLoraConfig(r=4, lora_alpha=8.0, gate="self", target_modules=maps, init_seed=1)
    state, generator = fresh_adapter(base.model, config), torch.Generator().manual_seed(0)
    return config, [
        {n: t + 0.002 * torch.randn(t.shape, generator=generator) for n, t in state.items()} for _ in range(count)
    ]


def one_by_one(base: WhisperBase, features: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Loss and gradient of each device, (K,) and (K, P)."""
    config, states = trained(base, len(features) // 2)
    model = get_peft_model(base.new_model(), config).eval()
    losses, gradients = [], []
    for device, state in enumerate(states):
        load_state(model, state)
        chosen = slice(2 * device, 2 * device + 2)
        loss = base.loss(model, base.collate(features[chosen], TEXTS[chosen], language="en"))
        parameters = adapter_parameters(model)
        found = torch.autograd.grad(loss, [parameters[name] for name in sorted(parameters)])
        losses.append(loss.detach())
        gradients.append(torch.cat([gradient.flatten() for gradient in found]))
    return torch.stack(losses), torch.stack(gradients)


def in_a_cohort(base: WhisperBase, features: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """The same in one computation."""
    config, states = trained(base, len(features) // 2)
    stack = StackedAdapters.from_states([Slot.of(config)] * len(states), states)
    leaves = {**stack.factors, **stack.gates["self"]}
    for leaf in leaves.values():
        leaf.requires_grad_(True)
    host = StackedModel(base.new_model(), config.target_modules)
    with host.rows(stack, [row // 2 for row in range(len(features))]) as model:
        summed, counts = base.row_losses(model, base.collate(features, TEXTS[: len(features)], language="en"))
    losses = summed.view(-1, 2).sum(1) / counts.view(-1, 2).sum(1)
    found = torch.autograd.grad(losses.sum(), [leaves[name] for name in sorted(leaves)])
    return losses.detach(), torch.cat([gradient.flatten(1) for gradient in found], dim=1)


def compare(base: WhisperBase, narrow: WhisperBase, features: Sequence[np.ndarray], cosine: float) -> None:
    """Loss within 1 %, and gradients float32 and of the same direction, alone and together."""
    assert narrow.dtype is torch.bfloat16
    for way in (one_by_one, in_a_cohort):
        losses, gradients = way(base, features)
        found, narrowed = way(narrow, features)
        assert gradients.dtype is narrowed.dtype is torch.float32
        torch.testing.assert_close(found, losses, rtol=0.01, atol=0.0)
        similar = torch.cosine_similarity(gradients.flatten(), narrowed.flatten(), dim=0)
        assert float(similar) >= cosine, way.__name__


def test_a_random_base_in_bf16_teaches_adapters_what_it_teaches_them_in_float32(nano, speech):
    rows = [nano.features(speech(seconds, seed)) for seed, seconds in enumerate((1.0, 0.7, 1.3, 0.9))]
    compare(nano, load_base("random:whisper-nano", dtype=torch.bfloat16), rows, cosine=0.999)


@pytest.mark.slow
def test_whisper_base_in_bf16_teaches_and_writes_what_it_does_in_float32():
    """Rounding what enters products costs the gradients of one step 0.5 to 1.5 % of their direction, as under torch's autocast."""
    base, narrow = load_base("whisper-base"), load_base("whisper-base", dtype=torch.bfloat16)
    assert narrow.fingerprint == base.fingerprint
    spoken = [soxr.resample(Espeak().render(text, "en-us", Voice("m3", 150)), 22_050, 16_000) / 2 for text in TEXTS]
    compare(base, narrow, [base.features(audio) for audio in spoken], cosine=0.98)
    batch = base.collate([base.features(audio, "full") for audio in spoken], None, "full", "en")
    assert narrow.generate(narrow.model, batch) == base.generate(base.model, batch)


@pytest.mark.parametrize("mask", ["none", "causal", "bool", "added"])
def test_plain_attention_is_the_fused_one(mask):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 5, 4, generator=generator) for _ in range(3))
    seen = torch.tensor([[True] * 5, [True, True, True, False, False]])[:, None, None, :]
    given = {"bool": seen, "added": torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)}.get(mask)
    module = torch.nn.Module()
    module.is_causal = mask == "causal"  # type: ignore[assignment]
    expected, _ = sdpa_attention_forward(module, query, key, value, given, scaling=0.5)
    found, _ = plain_attention(module, query, key, value, given, scaling=0.5)
    torch.testing.assert_close(found, expected)
    if given is not None:
        key[1, :, 3:], value[1, :, 3:] = 7.0, -7.0
        assert torch.equal(plain_attention(module, query, key, value, given, scaling=0.5)[0], found)
