"""New tokens for a base that was not made for Korean: rows for them in the embedding and in the head, trained with the adapter.

The base stays frozen. What is added are linear maps beside its own: in the head one from states to the new tokens' logits, in a
Whisper's embedding one from the new tokens to states. They start at a sensible value that every node derives alike, and an
adapter sits on them as on any other linear map, so what is learnt about the new rows is an update B A of them: shared tensors,
averaged, guarded and stored like all others. Row i is then ``initial[i] + s (B A)[i]``: of low rank, and as small on the wire.

A byte-level Whisper can spell Korean without new tokens (three bytes a syllable, each a token in the worst case); a CTC head
cannot write what it has no output for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

NOISE = 0.1  # of the standard deviation of the known rows: new tokens that are spelled alike do not start alike
ADDED = r"(?:.*\.)?(?:embed_tokens|proj_out|lm_head)\.added"  # the linear maps here, for PEFT's target_modules


class ExtendedHead(nn.Module):
    """A head with outputs for new tokens behind its own: (..., d_model) to (..., known + added)."""

    def __init__(self, known: nn.Linear, rows: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.known = known
        self.added = frozen_linear(rows, bias)

    def forward(self, states: Tensor) -> Tensor:
        """Logits of the known and of the new tokens."""
        return torch.cat((self.known(states), self.added(states)), dim=-1)


class ExtendedEmbedding(nn.Module):
    """An embedding with new tokens behind its own: ids (batch, tokens) to (batch, tokens, d_model)."""

    def __init__(self, known: nn.Embedding, rows: Tensor) -> None:
        super().__init__()
        self.known = known
        self.count = len(rows)
        self.added = frozen_linear(rows.T.contiguous(), None)

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings; a new token is looked up by a product with its indicator, so that adapters see a linear map."""
        first = self.known.num_embeddings
        new = ids >= first
        old: Tensor = self.known(ids.clamp(max=first - 1))
        chosen = functional.one_hot((ids - first).clamp(min=0), self.count).to(old.dtype)
        return torch.where(new[..., None], self.added(chosen), old)


def frozen_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear map of ``weight`` (out, in) that uses the tensors themselves."""
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


def noisy(means: Tensor, known: Tensor, seed: int) -> Tensor:
    """``means`` (new, d) with noise of a tenth of the spread of the ``known`` rows (old, d); the same on every node."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(means.shape, generator=generator) * NOISE * known.float().std().cpu()
    return means + noise.to(means.device, means.dtype)


def head_logits(head: Any, hidden: Tensor, mask: Tensor) -> Tensor:
    """Logits of the positions in ``mask`` (batch, tokens) of ``hidden`` (batch, tokens, d_model).

    Only those are projected, except in an extended head, whose adapters must know which row of the batch a position is of.
    """
    if isinstance(head, ExtendedHead):
        return head(hidden)[mask]  # type: ignore[no-any-return]
    return head(hidden[mask])  # type: ignore[no-any-return]
