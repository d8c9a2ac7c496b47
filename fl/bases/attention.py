"""Attention by plain matrix products, for bf16 on a CPU: backward there is twice as fast as that of torch's fused attention.

With AMX tiles the fused backward takes 30 % of a training step. In float32 the fused attention is the faster one, and on a GPU always.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

FUSED, PLAIN = "sdpa", "idiolect-plain"  # transformers' names of attention functions


def plain_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of ``query`` (batch, heads, q, width) over ``key`` and ``value`` (batch, heads, k, width): (batch, q, heads, width).

    A mask is what torch's function takes: of bool, True where a key is seen, or of numbers that are added. Without one, and with
    several queries, a causal module's query sees no key behind its own.
    """
    asked, there = query.shape[2], key.shape[2]
    if attention_mask is None and asked > 1 and getattr(module, "is_causal", False):
        attention_mask = torch.ones(asked, there, dtype=torch.bool, device=query.device).tril()
    scores = torch.matmul(query if scaling is None else query * scaling, key.transpose(2, 3))
    if attention_mask is not None:
        scores += added_mask(attention_mask, scores.dtype)
    return torch.matmul(scores.softmax(dim=-1), value).transpose(1, 2).contiguous(), None


def added_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """``mask`` as numbers to add to scores: a bool one would be added as 0 and 1, which hides nothing."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


def attention_for(like: Tensor) -> str:
    """The name of the attention function for a base with such weights."""
    if like.dtype == torch.bfloat16 and like.device.type == "cpu":
        AttentionInterface.register(PLAIN, plain_attention)
        return PLAIN
    return FUSED
