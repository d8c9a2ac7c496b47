"""Wav2Vec2's encoder over the modules of a transformers model, so that no row of a batch depends on the others.

transformers' own forward pads the waveform, and the first convolution of the base models has a norm over time: its mean and
variance then include the padding, so a row's result depends on how long its neighbours are. Here they are taken over the row's
own frames. The other convolutions have no padding of their own, hence see nothing behind a row's last frame; what is behind is
zeroed before the convolution of positions, and masked in attention. A row alone has the bits of transformers' forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Wav2Vec2ForCTC

from fl.bases.batch import Prefix


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


def encode_ctc(
    model: nn.Module,
    waveforms: Tensor | None,
    samples: Sequence[int],
    *,
    prefix: Prefix | None = None,
    stop: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Encoder states (batch, states, d_model), and their number in each row (batch,).

    ``waveforms`` is (batch, samples), of which row i has ``samples[i]`` real ones. With a ``prefix`` the convolutions and the
    lowest layers are skipped and the waveforms not looked at; with ``stop`` the result is what enters that layer.
    """
    inner = unwrap_ctc(model).wav2vec2
    encoder = inner.encoder
    stable = bool(inner.config.do_stable_layer_norm)
    counts = [state_count(inner.config, size) for size in samples]
    last = len(encoder.layers) if stop is None else stop
    if prefix is None:
        assert waveforms is not None
        lengths = torch.tensor(counts, device=waveforms.device)
        states = _stem(inner, waveforms, samples, lengths)
        first = 0
    else:
        lengths = torch.tensor(counts, device=prefix.states.device)
        states, first = prefix.states, prefix.layers
    mask = _inside(lengths, states.shape[1])
    attention = None if len(set(counts)) == 1 else mask[:, None, None, :]
    for layer in encoder.layers[first:last]:
        states = layer(states, attention_mask=attention)
    if stable and stop is None:
        states = encoder.layer_norm(states)
    return states, lengths


def _inside(lengths: Tensor, size: int) -> Tensor:
    """(batch, size) True at positions under each length."""
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]


def _stem(inner: Any, waveforms: Tensor, samples: Sequence[int], lengths: Tensor) -> Tensor:
    """Convolutions, projection and positions: (batch, samples) to (batch, states, d_model), zero behind each row's end."""
    first, *rest = inner.feature_extractor.conv_layers
    hidden = waveforms[:, None]
    if isinstance(first.layer_norm, nn.GroupNorm) if hasattr(first, "layer_norm") else False:
        hidden = first.activation(_norm_over_time(first.layer_norm, first.conv(hidden), inner.config, samples))
    else:
        hidden = first(hidden)
    for layer in rest:
        hidden = layer(hidden)
    states, _ = inner.feature_projection(hidden.transpose(1, 2))
    encoder = inner.encoder
    if int(lengths.min()) < states.shape[1]:
        states = states * _inside(lengths, states.shape[1])[:, :, None]
    states = states + encoder.pos_conv_embed(states)
    if not inner.config.do_stable_layer_norm:
        states = encoder.layer_norm(states)
    dropped: Tensor = encoder.dropout(states)
    return dropped


def _norm_over_time(norm: nn.GroupNorm, hidden: Tensor, config: Any, samples: Sequence[int]) -> Tensor:
    """The norm of each channel over the row's own frames, of ``hidden`` (batch, channels, frames)."""
    kernel, stride = config.conv_kernel[0], config.conv_stride[0]
    frames = [(size - kernel) // stride + 1 for size in samples]
    if len(set(frames)) == 1 and frames[0] == hidden.shape[2]:
        whole: Tensor = norm(hidden)
        return whole
    # Row by row: the statistics are those of the row alone, to the bit. What is behind a row is dropped later.
    rows = [
        torch.nn.functional.pad(norm(row[None, :, :n]), (0, hidden.shape[2] - n))
        for row, n in zip(hidden, frames, strict=True)
    ]
    return torch.cat(rows)
