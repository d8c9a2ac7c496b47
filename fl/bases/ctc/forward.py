"""Wav2Vec2's encoder over the modules of a transformers model, so that no row of a batch depends on the others.

transformers' own forward pads the waveform, and the first convolution of the base models has a norm over time: its mean and
variance then include the padding, so a row's result depends on how long its neighbours are. Here they are taken over the row's
own frames. The other convolutions have no padding of their own, hence see nothing behind a row's last frame; what is behind is
zeroed before the convolution of positions, and masked in attention.

The convolutions over time are matrix products (:func:`strided_convolution`): frames stay in the order in which the norms want
them, where transformers turns them around twice a layer. A row alone has transformers' result up to rounding.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Wav2Vec2ForCTC

from fl.bases.batch import PaddedBatch, inside


def unwrap_ctc(model: nn.Module) -> Wav2Vec2ForCTC:
    """The Wav2Vec2 inside ``model``, which may be wrapped (by PEFT, by a stack of adapters). Its modules are shared."""
    for module in model.modules():
        if isinstance(module, Wav2Vec2ForCTC):
            return module
    raise TypeError(f"{type(model).__name__} holds no Wav2Vec2ForCTC")


def state_count(config: Any, samples: int) -> int:
    """Encoder states of a waveform of ``samples``: what the convolutions leave."""
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1
    return max(samples, 0)


def encode_ctc(model: nn.Module, batch: PaddedBatch, stop: int | None = None) -> tuple[Tensor, Tensor]:
    """Encoder states (batch, states, d_model), and their number in each row (batch,).

    Features are waveforms (batch, 1, samples). With a prefix the convolutions and the lowest layers are skipped and the
    waveforms not looked at; with ``stop`` the result is what enters that layer.
    """
    inner = unwrap_ctc(model).wav2vec2
    encoder = inner.encoder
    counts = [state_count(inner.config, size) for size in batch.lengths]
    lengths = torch.tensor(counts, device=batch.features.device)
    if batch.prefix is None:
        states, first = _stem(inner, batch.features[:, 0], batch.lengths, lengths), 0
    else:
        states, first = batch.prefix.states, batch.prefix.layers
    attention = None if len(set(counts)) == 1 else inside(lengths, states.shape[1])[:, None, None, :]
    for layer in encoder.layers[first:stop]:
        states = layer(states, attention_mask=attention)
    if inner.config.do_stable_layer_norm and stop is None:
        states = encoder.layer_norm(states)
    return states, lengths


def _stem(inner: Any, waveforms: Tensor, samples: Sequence[int], lengths: Tensor) -> Tensor:
    """Convolutions, projection and positions: (batch, samples) to (batch, states, d_model), zero behind each row's end."""
    hidden = waveforms[:, :, None].to(inner.dtype)
    for layer in inner.feature_extractor.conv_layers:
        conv, norm = layer.conv, getattr(layer, "layer_norm", None)
        hidden = strided_convolution(hidden, conv.weight, conv.bias, conv.stride[0])
        if isinstance(norm, nn.GroupNorm):
            hidden = _norm_over_time(norm, hidden.transpose(1, 2), inner.config, samples).transpose(1, 2)
        elif norm is not None:
            hidden = norm(hidden)
        hidden = layer.activation(hidden)
    states, _ = inner.feature_projection(hidden)
    encoder = inner.encoder
    if int(lengths.min()) < states.shape[1]:
        states = states * inside(lengths, states.shape[1])[:, :, None]
    states = states + encoder.pos_conv_embed(states)
    if not inner.config.do_stable_layer_norm:
        states = encoder.layer_norm(states)
    dropped: Tensor = encoder.dropout(states)
    return dropped


def strided_convolution(values: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """``conv1d`` without padding of (batch, frames, channels) by (out, channels, kernel): (batch, fewer frames, out).

    ``stride`` frames are one row of a matrix, so that each stretch of ``stride`` taps of the kernel is one product: on a CPU
    faster than torch's convolution and the turns of memory around it, backward most of all (docs/decisions.md).
    """
    out, channels, kernel = weight.shape
    if channels * kernel < out:  # a window is smaller than what it becomes: the first layer, which sees the waveform
        return functional.linear(values.unfold(1, kernel, stride).flatten(2), weight.flatten(1), bias)
    count = (values.shape[1] - kernel) // stride + 1
    products: list[Tensor] = []
    for first in range(0, kernel, stride):
        taps = min(stride, kernel - first)
        rows = values[:, first : first + count * stride]
        if rows.shape[1] < count * stride:  # the last stretch is shorter than the stride, and so is the last row
            rows = functional.pad(rows, (0, 0, 0, count * stride - rows.shape[1]))
        rows = rows.reshape(len(values), count, stride, channels)[:, :, :taps].flatten(2)
        part = weight[:, :, first : first + taps].transpose(1, 2).flatten(1)
        products.append(functional.linear(rows, part, None if products else bias))
    return sum(products[1:], start=products[0])


def _norm_over_time(norm: nn.GroupNorm, hidden: Tensor, config: Any, samples: Sequence[int]) -> Tensor:
    """The norm of each channel over the row's own frames, of ``hidden`` (batch, channels, frames)."""
    kernel, stride = config.conv_kernel[0], config.conv_stride[0]
    frames = [(size - kernel) // stride + 1 for size in samples]
    if len(set(frames)) == 1 and frames[0] == hidden.shape[2]:
        whole: Tensor = norm(hidden)
        return whole
    # Row by row: the statistics are those of the row alone, to the bit. What is behind a row is dropped later.
    rows = [
        functional.pad(norm(row[None, :, :n]), (0, hidden.shape[2] - n)) for row, n in zip(hidden, frames, strict=True)
    ]
    return torch.cat(rows)
