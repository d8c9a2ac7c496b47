"""The bases with new tokens: a Whisper and a Wav2Vec2-CTC that write Korean in a form that they were not trained for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor
from transformers import Wav2Vec2ForCTC, WhisperForConditionalGeneration

from fl.bases.base import SpeechBase
from fl.bases.ctc.base import CtcBase
from fl.bases.ctc.forward import unwrap_ctc
from fl.bases.extension import ADDED, ExtendedEmbedding, ExtendedHead, noisy
from fl.bases.whisper.base import WhisperBase
from fl.bases.whisper.tokenizer import SpellingTokenizer, Tokenizer
from fl.core.errors import ConfigError
from fl.core.rng import derive_seed
from fl.settings.names import LATIN
from fl.speech import hangul


class ExtendedTokenizer(Tokenizer):
    """A Whisper's tokenizer with one token for each symbol of a form of Korean, behind its own (:mod:`fl.speech.hangul`)."""

    def __init__(self, known: SpellingTokenizer, form: str, first: int) -> None:
        self.known, self.form, self.first = known, form, first
        self.special = known.special
        self.symbols = hangul.inventory(form)
        self._ids = {symbol: first + index for index, symbol in enumerate(self.symbols)}

    @property
    def digest(self) -> str:
        """Of the known tokenizer and what was added."""
        facts = json.dumps([self.known.digest, self.form, self.first, self.symbols])
        return hashlib.sha256(facts.encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """See :class:`fl.bases.whisper.tokenizer.Tokenizer`: runs of other characters are spelled as the known tokenizer does."""
        ids: list[int] = []
        for new, run in groupby(hangul.split(" " + text, self.form), lambda symbol: symbol in self._ids):
            part = list(run)
            ids.extend([self._ids[symbol] for symbol in part] if new else self.known.spell("".join(part)))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """See :class:`fl.bases.whisper.tokenizer.Tokenizer`."""
        symbols: list[str] = []
        for new, run in groupby(ids, lambda index: index >= self.first):
            part = list(run)
            symbols.extend([self.symbols[i - self.first] for i in part] if new else self.known.plain(part))
        return hangul.join(symbols, self.form).strip()


class ExtendedWhisper(WhisperBase):
    """A frozen Whisper with new tokens; its weights are those of ``plain``."""

    def __init__(self, plain: WhisperBase, tokens: str) -> None:
        assert isinstance(plain.tokenizer, SpellingTokenizer)
        self.plain, self.tokens = plain, tokens
        embedding = plain.model.model.decoder.embed_tokens.weight
        tokenizer = ExtendedTokenizer(plain.tokenizer, tokens, int(embedding.shape[0]))
        self.rows = spelled_rows(embedding, plain.tokenizer, tokenizer.symbols, tokens)
        super().__init__(f"{plain.name}+{tokens}", f"{plain.fingerprint}+{tokens}", plain.model, tokenizer, plain.rules)
        self.targets = ADDED
        self.model = self.new_model()

    def new_model(self) -> WhisperForConditionalGeneration:
        """See :meth:`SpeechBase.new_model`; embedding and head share the initial rows, as they share the known ones."""
        model = super().new_model()
        decoder = model.model.decoder
        rows = self.rows.to(model.device, model.dtype)
        decoder.embed_tokens = ExtendedEmbedding(decoder.embed_tokens, rows)
        model.proj_out = ExtendedHead(model.proj_out, rows)
        return model


class ExtendedCtc(CtcBase):
    """A frozen Wav2Vec2-CTC with outputs for new symbols; its weights are those of ``plain``."""

    def __init__(self, plain: CtcBase, tokens: str) -> None:
        vocabulary = plain.vocabulary.extended(tokens)
        new = len(vocabulary) - len(plain.vocabulary)
        if not new:
            raise ConfigError(f"base {plain.name!r} has all symbols of tokens = {tokens!r}: set tokens = 'own'")
        self.plain, self.tokens = plain, tokens
        head = unwrap_ctc(plain.model).lm_head
        texts = [i for i, symbol in enumerate(plain.vocabulary.symbols) if symbol not in plain.vocabulary.special]
        mean = head.weight[texts].mean(dim=0, keepdim=True).expand(new, -1)
        self.rows = noisy(mean, head.weight[texts], derive_seed("new rows", tokens, new))
        self.row_bias = head.bias[texts].mean().expand(new).clone()
        super().__init__(f"{plain.name}+{tokens}", f"{plain.fingerprint}+{tokens}", unwrap_ctc(plain.model), vocabulary)
        self.targets = ADDED
        self.model = self.new_model()

    def new_model(self) -> Wav2Vec2ForCTC:
        """See :meth:`SpeechBase.new_model`."""
        model = super().new_model()
        rows, bias = (tensor.to(model.device, model.dtype) for tensor in (self.rows, self.row_bias))
        model.lm_head = ExtendedHead(model.lm_head, rows, bias)
        return model


def spelled_rows(embedding: Tensor, tokenizer: SpellingTokenizer, symbols: Sequence[str], tokens: str) -> Tensor:
    """First rows of new tokens (new, d_model): the mean of the rows of the tokens that spelled each, and noise.

    A break, which nothing spelled, starts at the mean of all rows.
    """
    means = [
        embedding.mean(dim=0) if symbol == hangul.BREAK else embedding[tokenizer.spell(symbol)].mean(dim=0)
        for symbol in symbols
    ]
    return noisy(torch.stack(means), embedding, derive_seed("new rows", tokens, len(symbols)))


def extended(base: SpeechBase, tokens: str) -> SpeechBase:
    """``base`` with ``tokens``. Raises :class:`ConfigError` where there is nothing to add."""
    if isinstance(base, CtcBase):
        return ExtendedCtc(base, tokens)
    if tokens == LATIN:
        raise ConfigError(f"base {base.name!r} spells any text in bytes: tokens = 'latin' would add nothing to it")
    assert isinstance(base, WhisperBase)
    return ExtendedWhisper(base, tokens)
