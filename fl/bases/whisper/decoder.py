"""Whisper's decoder for rows that may be at different places of different utterances: tokens in, log-probabilities out.

The modules of the model are called one by one, so that whatever adapters were put into them work; only keys and values are
kept elsewhere (:class:`fl.bases.whisper.cache.RowCache`). Batches, files and the server's engine all decode with this.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fl.bases.batch import pad_tokens
from fl.bases.whisper import forward
from fl.bases.whisper.cache import Attention, KeysAndValues, RowCache


@dataclass(frozen=True)
class DecodingRules:
    """Which token ends a transcript, which never occur in it, and which do not begin it."""

    end: int
    suppress: tuple[int, ...]
    begin_suppress: tuple[int, ...]


@dataclass(frozen=True)
class Prompted:
    """What is known behind the prompts of a batch: the first log-probabilities (rows, vocabulary), and keys and values by
    layer, (rows, heads, n, d), of the prompts (``own``), of which each row has ``lengths``, and of the speech."""

    log_probs: Tensor
    lengths: Sequence[int]
    own: KeysAndValues
    speech: KeysAndValues

    def row(self, row: int) -> tuple[KeysAndValues, KeysAndValues]:
        """``own`` and ``speech`` of one row, (heads, n, d)."""
        tokens = self.lengths[row]
        own = [(keys[row, :, :tokens], values[row, :, :tokens]) for keys, values in self.own]
        return own, [(keys[row], values[row]) for keys, values in self.speech]


class RowDecoder:
    """The decoder inside ``model`` under ``rules``, with the cache of up to ``capacity`` rows."""

    def __init__(self, model: nn.Module, rules: DecodingRules, capacity: int) -> None:
        self.inner = forward.unwrap(model)
        weight = next(self.inner.parameters())
        self.device = weight.device
        self.cache = RowCache(self.inner.config, capacity, weight)
        self._never = torch.tensor(rules.suppress, dtype=torch.long, device=self.device)
        self._not_first = torch.tensor(rules.begin_suppress, dtype=torch.long, device=self.device)

    def read(
        self,
        prompts: Sequence[Sequence[int]],
        states: Tensor,
        mask: Tensor | None,
        heard: DynamicCache | None = None,
    ) -> Prompted:
        """Read ``prompts`` (rows of any lengths) with encoder ``states`` (rows, states, d_model); the cache is not touched.

        ``heard`` has keys and values of the speech where they are known already, or is empty and takes them.
        """
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache() if heard is None else heard)
        lengths = [len(prompt) for prompt in prompts]
        last = torch.tensor(lengths, device=self.device) - 1  # attention is causal: what is behind it changes nothing
        hidden = forward.decode(self.inner, pad_tokens(prompts, 0).to(self.device), states, mask, cache)
        hidden = hidden[torch.arange(len(prompts), device=self.device), last]
        parts = (cache.self_attention_cache.layers, cache.cross_attention_cache.layers)
        own, speech = ([(layer.keys, layer.values) for layer in layers] for layers in parts)
        return Prompted(self._log_probs(hidden).index_fill_(1, self._not_first, -torch.inf), lengths, own, speech)

    def next(self, tokens: Sequence[int]) -> Tensor:
        """Log-probabilities (rows, vocabulary) behind one more token in each row of the cache."""
        decoder, cache = self.inner.model.decoder, self.cache
        cache.begin_step()
        ids = torch.tensor(tokens, dtype=torch.long, device=self.device)
        hidden = decoder.embed_tokens(ids) + decoder.embed_positions.weight[cache.positions]
        for index, layer in enumerate(decoder.layers):
            own, speech = layer.self_attn, layer.encoder_attn
            x = layer.self_attn_layer_norm(hidden)
            query, key, value = own.q_proj(x) * own.scaling, own.k_proj(x), own.v_proj(x)
            hidden = hidden + own.out_proj(cache.attend_own(index, query, key, value, _attention(own)))
            query = speech.q_proj(layer.encoder_attn_layer_norm(hidden)) * speech.scaling
            hidden = hidden + speech.out_proj(cache.attend_speech(index, query, _attention(speech)))
            x = layer.final_layer_norm(hidden)
            hidden = hidden + layer.fc2(layer.activation_fn(layer.fc1(x)))
        cache.end_step()
        return self._log_probs(decoder.layer_norm(hidden))

    def _log_probs(self, hidden: Tensor) -> Tensor:
        """(rows, vocabulary) from decoder states (rows, d_model); those of suppressed tokens are minus infinity."""
        logits = self.inner.proj_out(hidden).float()
        return torch.log_softmax(logits, dim=-1).index_fill_(1, self._never, -torch.inf)


def _attention(module: Any) -> Attention:
    """The attention function that the module is set to, which a method of adaptation may have changed."""
    function = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, sdpa_attention_forward)

    def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        out: Tensor = function(module, query, keys, values, mask, dropout=0.0, scaling=1.0)[0]
        return out

    return attend
