"""The bases with new tokens: a Whisper and a Wav2Vec2-CTC that write Korean in a form that they were not trained for.

The base stays frozen. What is added are linear maps beside its own: in the head one from states to the new tokens' logits, in a
Whisper's embedding one from the new tokens to states. They start at a sensible value that every node derives alike, and an
adapter sits on them as on any other linear map, so what is learnt about the new rows is an update B A of them: shared tensors,
averaged, guarded and stored like all others. Row i is then ``initial[i] + s (B A)[i]``: of low rank, and as small on the wire.

A byte-level Whisper can spell Korean without new tokens (three bytes a syllable, each a token in the worst case); a CTC head
cannot write what it has no output for.
"""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Wav2Vec2ForCTC, WhisperForConditionalGeneration

from fl.bases.base import SpeechBase
from fl.bases.ctc.base import CtcBase
from fl.bases.ctc.forward import unwrap_ctc
from fl.bases.whisper.base import WhisperBase
from fl.bases.whisper.tokenizer import Tokenizer, digest_of
from fl.core.errors import ConfigError
from fl.core.rng import derive_seed
from fl.settings.names import LATIN
from fl.speech import hangul

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


class ExtendedTokenizer(Tokenizer):
    """A Whisper's tokenizer with one token for each symbol of a form of Korean, behind its own (:mod:`fl.speech.hangul`)."""

    def __init__(self, known: Tokenizer, form: str, first: int) -> None:
        self.known, self.form, self.first = known, form, first
        self.special, self.previous = known.special, known.previous
        self.symbols = hangul.inventory(form)
        self._ids = {symbol: first + index for index, symbol in enumerate(self.symbols)}

    @property
    def digest(self) -> str:
        """Of the known tokenizer and what was added."""
        return digest_of([self.known.digest, self.form, self.first, self.symbols])

    def spell(self, text: str) -> list[int]:
        """See :class:`Tokenizer`: runs of other characters are spelled as the known tokenizer does."""
        ids: list[int] = []
        for new, run in groupby(hangul.split(text, self.form), lambda symbol: symbol in self._ids):
            part = list(run)
            ids.extend([self._ids[symbol] for symbol in part] if new else self.known.spell("".join(part)))
        return ids

    def plain(self, ids: Sequence[int]) -> str:
        """See :class:`Tokenizer`."""
        symbols: list[str] = []
        for new, run in groupby(ids, lambda index: index >= self.first):
            part = list(run)
            symbols.extend([self.symbols[i - self.first] for i in part] if new else self.known.plain(part))
        return hangul.join(symbols, self.form)


class ExtendedWhisper(WhisperBase):
    """A frozen Whisper with new tokens; its weights are those of ``plain``."""

    def __init__(self, plain: WhisperBase, tokens: str) -> None:
        embedding = plain.model.model.decoder.embed_tokens.weight
        tokenizer = ExtendedTokenizer(plain.tokenizer, tokens, int(embedding.shape[0]))
        # The mean of the rows of the tokens that spelled each; a break, which nothing spelled, starts at the mean of all.
        spelled = [[] if s == hangul.BREAK else plain.tokenizer.spell(s) for s in tokenizer.symbols]
        means = torch.stack([(embedding[ids] if ids else embedding).mean(dim=0) for ids in spelled])
        self.rows = noisy(means, embedding, derive_seed("new rows", tokens, len(spelled)))
        super().__init__(f"{plain.name}+{tokens}", f"{plain.fingerprint}+{tokens}", plain.model, tokenizer, plain.rules)
        self.targets, self.alignment_heads = ADDED, plain.alignment_heads
        self.model = self.new_model()

    def new_model(self) -> WhisperForConditionalGeneration:
        """See :meth:`SpeechBase.new_model`; embedding and head share the initial rows, as they share the known ones."""
        model = super().new_model()
        decoder = model.model.decoder
        rows = self.rows.to(model.device, model.dtype)
        decoder.embed_tokens = ExtendedEmbedding(decoder.embed_tokens, rows)
        model.proj_out = ExtendedHead(model.proj_out, rows)
        return model

    def _labelled_logits(self, head: nn.Module, hidden: Tensor, mask: Tensor) -> Tensor:
        """Every position is projected: adapters in the head must know which row of the batch a position is of."""
        logits: Tensor = head(hidden)
        return logits[mask]


class ExtendedCtc(CtcBase):
    """A frozen Wav2Vec2-CTC with outputs for new symbols; its weights are those of ``plain``."""

    def __init__(self, plain: CtcBase, tokens: str) -> None:
        vocabulary = plain.vocabulary.extended(tokens)
        new = len(vocabulary) - len(plain.vocabulary)
        if not new:
            raise ConfigError(f"base {plain.name!r} has all symbols of tokens = {tokens!r}: set tokens = 'own'")
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


def noisy(means: Tensor, known: Tensor, seed: int) -> Tensor:
    """``means`` (new, d) with noise of a tenth of the spread of the ``known`` rows (old, d); the same on every node."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(means.shape, generator=generator) * NOISE * known.float().std().cpu()
    return means + noise.to(means.device, means.dtype)


def extended(base: SpeechBase, tokens: str) -> SpeechBase:
    """``base`` with ``tokens``. Raises :class:`ConfigError` where there is nothing to add."""
    if isinstance(base, CtcBase):
        return ExtendedCtc(base, tokens)
    if tokens == LATIN:
        raise ConfigError(f"base {base.name!r} spells any text in bytes: tokens = 'latin' would add nothing to it")
    assert isinstance(base, WhisperBase)
    return ExtendedWhisper(base, tokens)
