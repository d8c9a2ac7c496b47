"""Whisper's encoder and decoder over the modules of a transformers model, without its insistence on 30 s.

transformers' ``WhisperEncoder`` takes 3,000 mel frames and no mask, and its ``WhisperDecoder`` passes no mask to the
cross-attention; their layers do both. So the loops over the layers are here. At 30 s they compute the same bits.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import WhisperForConditionalGeneration
from transformers.cache_utils import EncoderDecoderCache
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from fl.bases.batch import PaddedBatch, inside


def unwrap(model: nn.Module) -> WhisperForConditionalGeneration:
    """The Whisper inside ``model``, which may be wrapped (by PEFT, by a stack of adapters). Its modules are shared."""
    for module in model.modules():
        if isinstance(module, WhisperForConditionalGeneration):
            return module
    raise TypeError(f"{type(model).__name__} holds no WhisperForConditionalGeneration")


def encode(model: nn.Module, batch: PaddedBatch, stop: int | None = None) -> tuple[Tensor, Tensor | None]:
    """Encoder states (batch, states, d_model), and which of them are real (batch, states), None where all are.

    Features are (batch, mels, frames). Rows shorter than the batch get the result that they get alone: their
    padding is zeroed wherever a convolution could see it and masked in attention. With a prefix the lowest layers
    are skipped and the features not looked at; with ``stop`` the result is what enters that layer.
    """
    encoder = unwrap(model).model.encoder
    longest = max(batch.lengths)
    mask = None
    if any(count != longest for count in batch.lengths):
        lengths = torch.tensor(batch.lengths, device=batch.features.device)
        mask = inside((lengths + 1) // 2, (longest + 1) // 2)
    attention_mask = None if mask is None else mask[:, None, None, :]
    first, last = 0, len(encoder.layers) if stop is None else stop
    if batch.prefix is None:
        states = _stem(encoder, batch.features, None if mask is None else inside(lengths, longest)[:, None, :])
    else:
        states, first = batch.prefix.states, batch.prefix.layers
        if first == len(encoder.layers):
            return states, mask
    for layer in encoder.layers[first:last]:
        states = layer(states, attention_mask)
    return (states if last < len(encoder.layers) else encoder.layer_norm(states)), mask


def _stem(encoder: WhisperEncoder, features: Tensor, real: Tensor | None) -> Tensor:
    """Both convolutions and the positions: (batch, mels, frames) to (batch, states, d_model)."""
    features = features.to(encoder.conv1.weight.dtype)
    states = functional.gelu(encoder.conv1(features if real is None else features * real))
    if real is not None:
        states = states * real
    states = functional.gelu(encoder.conv2(states)).permute(0, 2, 1)
    positions = torch.arange(states.shape[1], device=states.device)
    embedded: Tensor = states + encoder.embed_positions(positions)
    return embedded


def decode(
    model: nn.Module, ids: Tensor, states: Tensor, mask: Tensor | None, cache: EncoderDecoderCache | None = None
) -> Tensor:
    """Decoder states (batch, tokens, d_model) for token ``ids`` (batch, tokens) from the first position on.

    Padding behind the end of a row needs no mask, because attention is causal. An empty ``cache`` takes keys and values.
    """
    decoder = unwrap(model).model.decoder
    hidden = decoder.embed_tokens(ids) + decoder.embed_positions.weight[: ids.shape[1]]
    attention_mask = None if mask is None else mask[:, None, None, :]
    for layer in decoder.layers:
        hidden = layer(
            hidden,
            attention_mask=None,
            encoder_hidden_states=states,
            encoder_attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=cache is not None,
        )
    normed: Tensor = decoder.layer_norm(hidden)
    return normed
