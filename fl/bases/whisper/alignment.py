"""When each word of a transcript was said: dynamic time warping over the decoder's cross-attention, as in openai/whisper's ``timing.py``.

Knows ids, states and modules; not who asks for the times or where a recording was cut.
"""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import WhisperConfig
from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter

from fl.bases.whisper import forward
from fl.bases.whisper.tokenizer import Tokenizer

SECONDS_PER_STATE = 0.02
Heads = Sequence[tuple[int, int]]
"""Layer and head of each cross-attention that follows the speech."""


@dataclass(frozen=True)
class TimedWord:
    """A word with its times in seconds. A pause belongs to the word behind it."""

    text: str
    start: float
    end: float


def alignment_heads(generation: Mapping[str, Any], config: WhisperConfig) -> Heads:
    """The ``alignment_heads`` of a generation_config.json where this decoder has them, else all heads of the upper half of its layers.

    A distilled model often comes with those of its teacher, which has more layers.
    """
    layers, heads = config.decoder_layers, config.decoder_attention_heads
    named = [(int(layer), int(head)) for layer, head in generation.get("alignment_heads") or ()]
    if named and all(layer < layers and head < heads for layer, head in named):
        return named
    return [(layer, head) for layer in range(layers // 2, layers) for head in range(heads)]


def token_times(
    model: nn.Module, heads: Heads, prefix: Sequence[int], tokens: Sequence[int], states: Tensor, heard: int
) -> list[float]:
    """Where each of ``tokens`` begins and, one more, where the last ends, in seconds, by what the decoder attends to as it writes it.

    ``states`` (1, states, d_model) are what it listens to, of which the first ``heard`` can be speech. One pass of the decoder.
    """
    decoder = forward.unwrap(model).model.decoder
    chosen = {layer: [head for at, head in heads if at == layer] for layer, _ in heads}
    seen: dict[tuple[int, str], Tensor] = {}
    with ExitStack() as hooks:
        for layer in chosen:
            for name in ("q_proj", "k_proj"):

                def keep(_: nn.Module, inputs: object, out: Tensor, key: tuple[int, str] = (layer, name)) -> None:
                    seen[key] = out[0].float()

                attention = decoder.layers[layer].encoder_attn
                hooks.enter_context(getattr(attention, name).register_forward_hook(keep))
        ids = torch.tensor([[*prefix, *tokens]], device=states.device)
        forward.decode(model, ids, states, None)
    total, width = torch.zeros(len(tokens) + 1, heard), decoder.layers[0].encoder_attn.head_dim
    for layer, which in chosen.items():
        split = (-1, decoder.config.decoder_attention_heads, width)
        queries, keys = (seen[layer, name].view(split)[:, which] for name in ("q_proj", "k_proj"))
        scores = torch.einsum("qhd,khd->hqk", queries[len(prefix) - 1 :], keys) * width**-0.5
        weights = scores.softmax(dim=-1)[..., :heard]
        spread, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
        normed = ((weights - mean) / spread).nan_to_num()  # where no token looks, spread is zero
        total += _median_filter(normed, decoder.config.median_filter_width).sum(dim=0).cpu()
    rows, columns = _dynamic_time_warping(-total.double().numpy() / len(heads))
    begins: list[float] = (SECONDS_PER_STATE * columns[np.diff(rows, prepend=-1) > 0]).tolist()
    return begins


def timed_words(tokenizer: Tokenizer, tokens: Sequence[int], times: Sequence[float]) -> list[TimedWord]:
    """The words of ``tokens`` from the times of :func:`token_times`: each lasts until the next begins.

    A character may take several tokens, and a token may end one word and begin the next.
    """
    begun = [len(tokenizer.plain(tokens[:count])) for count in range(len(tokens) + 1)]  # half characters count too
    words = list(re.finditer(r"\S+", tokenizer.plain(tokens)))
    starts = [times[bisect_right(begun, word.start()) - 1] for word in words]
    texts = [unicodedata.normalize("NFC", word[0]) for word in words]
    return [TimedWord(text, *span) for text, span in zip(texts, pairwise([*starts, times[-1]]), strict=True)]
