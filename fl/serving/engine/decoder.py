"""One step of Whisper's decoder for rows that are at different places of different utterances.

The same modules as :func:`fl.bases.whisper.forward.decode` uses, so whatever adapters are put into them work; what differs is only
where keys and values are kept (:class:`fl.serving.engine.cache.RowCache`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from fl.bases.whisper import forward
from fl.serving.engine.cache import RowCache, Shape


def shape_of(model: nn.Module) -> Shape:
    """The sizes that a cache for ``model`` needs."""
    config = forward.unwrap(model).config
    return Shape(
        layers=config.decoder_layers,
        heads=config.decoder_attention_heads,
        width=config.d_model // config.decoder_attention_heads,
        states=config.max_source_positions,
        tokens=config.max_target_positions,
    )


def read_prompts(
    model: nn.Module, prompts: Tensor, states: Tensor, mask: Tensor | None
) -> tuple[Tensor, list[list[tuple[Tensor, Tensor]]], list[list[tuple[Tensor, Tensor]]]]:
    """Decoder states (rows, d_model) behind the ``prompts`` (rows, tokens); for each row its own keys and values and those
    of its speech, by layer, each (heads, length, d)."""
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    hidden = forward.decode(model, prompts, states, mask, cache)[:, -1]
    parts = (cache.self_attention_cache.layers, cache.cross_attention_cache.layers)
    own, speech = (
        [[(layer.keys[row], layer.values[row]) for layer in layers] for row in range(len(prompts))] for layers in parts
    )
    return hidden, own, speech


def next_states(model: nn.Module, tokens: Tensor, cache: RowCache) -> Tensor:
    """Decoder states (rows, d_model) behind one more token (rows,) in each row of the cache."""
    decoder = forward.unwrap(model).model.decoder
    cache.begin_step()
    hidden = decoder.embed_tokens(tokens) + decoder.embed_positions.weight[cache.positions]
    for index, layer in enumerate(decoder.layers):
        own, speech = layer.self_attn, layer.encoder_attn
        x = layer.self_attn_layer_norm(hidden)
        attended = cache.attend_own(index, own.q_proj(x) * own.scaling, own.k_proj(x), own.v_proj(x))
        hidden = hidden + own.out_proj(attended)
        x = layer.encoder_attn_layer_norm(hidden)
        hidden = hidden + speech.out_proj(cache.attend_speech(index, speech.q_proj(x) * speech.scaling))
        x = layer.final_layer_norm(hidden)
        hidden = hidden + layer.fc2(layer.activation_fn(layer.fc1(x)))
    cache.end_step()
    normed: Tensor = decoder.layer_norm(hidden)
    return normed


def log_probs(model: nn.Module, hidden: Tensor, suppress: Tensor) -> Tensor:
    """Log-probabilities (rows, vocabulary) of the next token; those of ``suppress`` are minus infinity."""
    logits = forward.unwrap(model).proj_out(hidden).float()
    return torch.log_softmax(logits, dim=-1).index_fill(1, suppress, -torch.inf)
