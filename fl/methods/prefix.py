"""Prefix tuning (Li & Liang 2021, arXiv 2101.00190): trained keys and values that every query of an attention can also look at.

    o = softmax(q [P_k; K]^T) [P_v; V]                             without a gate, as in the paper
    o = softmax(q K^T) V + tanh(g) softmax(q P_k^T) P_v            with one, g a number for each head, zero at the start

P_k and P_v are n x d for a prefix of length n. The second line is the zero-initialised attention of LLaMA-Adapter (Zhang et al. 2023,
arXiv 2303.16199, equation 7): it changes nothing at first, whereas an ungated prefix takes attention away from the speech before it
knows what for. Prefixes sit in the attentions of the setting ``sites`` (encoder self, decoder self, decoder cross).

PEFT's prefix tuning fails on Whisper, because it hands the prefix over as a cache of past keys, which the encoder does not have and
the decoder fills itself. Here the prefix enters behind the cache, in the attention function that transformers lets a model choose.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from fl.adapters.state import Shapes
from fl.core.errors import ConfigError
from fl.core.rng import derive_seed
from fl.methods.base import Adaptation, Attached, Recipe
from fl.methods.targets import head_shapes, own_heads, targeted

ATTENTION = "idiolect-prefix"  # transformers' name of the attention function below
START_STD = 0.02  # of keys and values, as that of a transformer's embeddings
KEY, VALUE, GATE = "prefix_key", "prefix_value", "prefix_gate"


def prefixed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of ``query`` (batch, heads, q, width) over ``key`` and ``value`` (batch, heads, k, width) and the module's prefix.

    Returns (batch, q, heads, width). A mask, (batch or 1, heads or 1, q or 1, k), is about ``key`` alone: a prefix is seen by all.
    """
    prefix_key, prefix_value = (_by_head(getattr(module, name), query) for name in (KEY, VALUE))
    gate: Tensor | None = getattr(module, GATE, None)
    if gate is not None:
        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
        added = functional.scaled_dot_product_attention(query, prefix_key, prefix_value, scale=scaling)
        return out + (torch.tanh(gate).to(out.dtype)[:, None] * added.transpose(1, 2)), None
    mask = _mask(module, query, key, attention_mask, prefix_key.shape[2])
    keys, values = torch.cat((prefix_key, key), dim=2), torch.cat((prefix_value, value), dim=2)
    whole = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling)
    return whole.transpose(1, 2).contiguous(), None


def _by_head(prefix: Tensor, query: Tensor) -> Tensor:
    """A prefix (n, heads * width) as (batch, heads, n, width)."""
    batch, heads, _, width = query.shape
    return prefix.to(query.dtype).view(-1, heads, width).transpose(0, 1).expand(batch, -1, -1, -1)


def _mask(module: Any, query: Tensor, key: Tensor, mask: Tensor | None, length: int) -> Tensor | None:
    """The mask over prefix and keys, None if everything is seen."""
    asked, there = query.shape[2], key.shape[2]
    if mask is None:
        if asked == 1 or not getattr(module, "is_causal", False):
            return None
        mask = torch.ones(asked, there, dtype=torch.bool, device=query.device).tril(there - asked)[None, None]
    seen = torch.ones if mask.dtype == torch.bool else torch.zeros  # a float mask is added to the logits
    return torch.cat((seen((*mask.shape[:3], length), dtype=mask.dtype, device=mask.device), mask), dim=3)


def _attentions(model: nn.Module, recipe: Recipe) -> dict[str, tuple[nn.Module, int, int]]:
    """The attention modules that hold targeted maps: name to module, heads and width of a head."""
    found: dict[str, tuple[nn.Module, int, int]] = {}
    for name, _ in targeted(model, recipe.targets):
        path = name.rpartition(".")[0]
        module = model.get_submodule(path)
        heads = getattr(module, "num_heads", None) or getattr(module, "num_attention_heads", None)
        width = getattr(module, "head_dim", None) or getattr(module, "attention_head_size", None)
        if heads and width and getattr(module, "config", None) is not None:
            found[path] = (module, int(heads), int(width))
    if not found:
        raise ConfigError(
            f"method = {recipe.method!r} finds no attention among target_modules {recipe.targets!r}: choose sites such as "
            "encoder.self, or another method"
        )
    return found


def _attach(model: nn.Module, recipe: Recipe) -> Attached:
    AttentionInterface.register(ATTENTION, prefixed_attention)
    parameters = own_heads(model, recipe)
    configs: dict[int, Any] = {}
    for path, (module, heads, width) in _attentions(model, recipe).items():
        plain: Any = module.config
        if id(plain) not in configs:  # a copy: the model's own configuration is shared with other models of the base
            configs[id(plain)] = copy.copy(plain)
            configs[id(plain)]._attn_implementation_internal = ATTENTION
        module.config = configs[id(plain)]
        device = next(module.parameters()).device
        for name in (KEY, VALUE):
            generator = torch.Generator().manual_seed(derive_seed(recipe.seed, name, path))
            drawn = START_STD * torch.randn(recipe.size, heads * width, generator=generator)
            parameters[f"{path}.{name}"] = nn.Parameter(drawn.to(device))
            module.register_parameter(name, parameters[f"{path}.{name}"])
        if recipe.prefix_gate:
            parameters[f"{path}.{GATE}"] = nn.Parameter(torch.zeros(heads, device=device))
            module.register_parameter(GATE, parameters[f"{path}.{GATE}"])
    return Attached.of(model, parameters)


def _shapes(model: nn.Module, recipe: Recipe) -> Shapes:
    shapes = head_shapes(model, recipe)
    for path, (_, heads, width) in _attentions(model, recipe).items():
        shapes[f"{path}.{KEY}"] = shapes[f"{path}.{VALUE}"] = (recipe.size, heads * width)
        if recipe.prefix_gate:
            shapes[f"{path}.{GATE}"] = (heads,)
    return shapes


def _largest(model: nn.Module, recipe: Recipe) -> tuple[int, str]:
    """More keys than a head's queries have dimensions times heads, d, are linearly dependent: no longer than d."""
    return min((heads * width, path) for path, (_, heads, width) in _attentions(model, recipe).items())


PREFIX = Adaptation(_attach, _shapes, _largest)
