"""A frozen Whisper: features, batches, loss and transcripts, for any adapter that is put into its modules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.cache_utils import DynamicCache

from fl.bases.base import FLOAT_BYTES, DecodingOptions, Hypothesis, SpeechBase, Texts, beams_of
from fl.bases.batch import PaddedBatch, pad_tokens
from fl.bases.files import fingerprint_of, read_config
from fl.bases.whisper import decoding, forward
from fl.bases.whisper.alignment import alignment_heads
from fl.bases.whisper.decoder import DecodingRules
from fl.bases.whisper.loading import EMBEDDING, HEAD, assemble, read_generation, read_text_side
from fl.bases.whisper.tokenizer import Tokenizer
from fl.core.errors import BaseModelError, TextError
from fl.speech.audio import Waveform
from fl.speech.features import Features, Window, extract
from fl.speech.languages import AUTO

PROMPT_TOKENS = 5  # start, language, transcribe, no timestamps; end


@dataclass(frozen=True)
class WhisperBatch(PaddedBatch):
    """Log-mel ``features`` (batch, mels, frames) float32, and targets where there are any.

    ``decoder_input_ids``: (batch, tokens) prefix + text, padded behind the end. ``labels``: (batch, tokens) what each
    position predicts; it counts only where ``label_mask`` is True (by position: the padding id is also the end's id).
    ``language``: of the prefix; None or "auto" lets :meth:`WhisperBase.transcribe` find it for each row.
    """

    language: str | None = None
    decoder_input_ids: Tensor | None = None
    label_mask: Tensor | None = None


class WhisperBase(SpeechBase):
    """A Whisper (see :class:`SpeechBase`)."""

    alone_window: Window | None = "full"  # unadapted it does not stop on a trimmed one
    encoder = "model.encoder"
    stem = ("model.encoder.conv1", "model.encoder.conv2", "model.encoder.embed_positions")
    model: WhisperForConditionalGeneration

    def __init__(
        self,
        name: str,
        fingerprint: str,
        model: WhisperForConditionalGeneration,
        tokenizer: Tokenizer,
        rules: DecodingRules,
    ) -> None:
        super().__init__(name, fingerprint, model)
        self.weights = {name: tensor for name, tensor in self.weights.items() if name != HEAD}
        self.tokenizer = tokenizer
        self.rules = rules
        self.mels, self.longest = int(self.config.num_mel_bins), 2 * int(self.config.max_source_positions)
        self.languages = tuple(tokenizer.special.languages)  # empty in an English-only base
        self.alignment_heads = alignment_heads({}, self.config)

    @classmethod
    def from_folder(cls, folder: Path, name: str, weights: Mapping[str, Tensor]) -> Self:
        """See :meth:`SpeechBase.from_folder`."""
        config = read_config(folder, WhisperConfig)
        if HEAD in weights:  # one matrix with the embedding: files have either or both
            weights = {EMBEDDING: weights[HEAD], **weights}
            if not torch.equal(weights[HEAD], weights[EMBEDDING]):
                raise BaseModelError(
                    f"{folder}: its head ({HEAD}) is another matrix than its embedding, which are one in a Whisper. Train it "
                    "again with `tie_word_embeddings=True`."
                )
        base = cls(name, "", assemble(config, weights, str(folder)), *read_text_side(folder, config))
        base.alignment_heads = alignment_heads(read_generation(folder), config)
        return base

    def compute_fingerprint(self) -> str:
        """``whisper:<d_model>x<encoder layers>+<decoder layers>:<hash>`` (:func:`fl.bases.files.fingerprint_of`)."""
        shape = f"{self.config.d_model}x{self.config.encoder_layers}+{self.config.decoder_layers}"
        return fingerprint_of("whisper", shape, self.weights)

    def new_model(self) -> WhisperForConditionalGeneration:
        """See :meth:`SpeechBase.new_model`."""
        return assemble(self.config, self.weights, self.name)

    def features(self, audio: Waveform, window: Window = "trimmed") -> Features:
        """Log-mel features (mels, frames), float16, of ``audio`` (samples,) at 16 kHz (:mod:`fl.speech.features`)."""
        return extract(audio, self.mels, window)

    def states_of(self, length: int) -> int:
        """Encoder states of so many mel frames."""
        return (length + 1) // 2

    def check_text(self, text: str, seconds: float) -> None:
        """See :meth:`SpeechBase.check_text`. A byte-level vocabulary can write any text, and a token is at least a byte of it."""
        if len(text.encode()) + PROMPT_TOKENS > int(self.config.max_target_positions):
            self._require_room(text, self.target_ids(text), self.prefix_ids(next(iter(self.languages), None)))

    def _require_room(self, text: str, target: Sequence[int], prefix: Sequence[int]) -> None:
        limit = int(self.config.max_target_positions) - len(prefix) + 1
        if len(target) > limit:
            raise TextError(
                f"a text of {len(target)} tokens is over the {limit} of the decoder: {text[:40]!r}...; cut the recording and its "
                "text into parts, files of their own or in a manifest lines with 'start' and 'end'"
            )

    def training_bytes(self, frames: int, text: str) -> int:
        """See :meth:`SpeechBase.training_bytes`; a token is at least a byte of text.

        Counted in units of d_model for each position and layer. Encoder: about 16 (inputs of both layer norms, normed states, q, k,
        v, attention output, their low-rank updates) and the feed-forward width twice, with the attention weights. Decoder: about
        28, with keys and values of the encoder's states, and three copies of the logits.
        """
        config, states = self.config, self.states_of(frames)
        tokens = min(len(text.encode()) + PROMPT_TOKENS, int(config.max_target_positions))
        d, heads = config.d_model, config.decoder_attention_heads
        stem = 2 * frames * d + 4 * states * d
        encoder_layer = states * (16 * d + 2 * config.encoder_ffn_dim) + config.encoder_attention_heads * states**2
        cross_attention = heads * tokens * states + 4 * d * states
        decoder_layer = tokens * (28 * d + 2 * config.decoder_ffn_dim) + heads * tokens**2 + cross_attention
        layers = config.encoder_layers * encoder_layer + config.decoder_layers * decoder_layer
        return int(FLOAT_BYTES * (stem + layers + 3 * tokens * config.vocab_size))

    def text_of(self, ids: Sequence[int]) -> str:
        """See :meth:`SpeechBase.text_of`."""
        return self.tokenizer.decode(ids)

    def prefix_ids(self, language: str | None) -> list[int]:
        """The tokens before a transcript. Raises :class:`BaseModelError` for a language that the base does not know."""
        return self.tokenizer.special.prefix(language)

    def prompt_ids(self, text: str) -> list[int]:
        """The tokens of a prompt in front of those of :meth:`prefix_ids`: of its end as many as Whisper takes; none for no text.

        Raises :class:`BaseModelError` for a base whose tokenizer has no token for it.
        """
        if not (text := text.strip()):
            return []
        if self.tokenizer.previous is None:
            raise BaseModelError(
                f"base {self.name!r} takes no prompt: its tokenizer has no <|startofprev|>. Leave it out."
            )
        most = int(self.config.max_target_positions) // 2 - 1  # the other half is the transcript's
        return [self.tokenizer.previous, *self.tokenizer.encode(text)[-most:]]

    def target_ids(self, text: str) -> list[int]:
        """The tokens of ``text`` (NFC, behind a space, as Whisper writes) and the end token."""
        return [*self.tokenizer.encode(text), self.tokenizer.special.end]

    def _batch(
        self, features: Tensor, lengths: tuple[int, ...], texts: Texts, language: str | None, prompts: Sequence[str]
    ) -> WhisperBatch:
        """See :meth:`fl.bases.base.SpeechBase.collate`; training needs a ``language``."""
        if texts is None:
            return WhisperBatch(features, lengths, language=language)
        if language == AUTO:
            raise BaseModelError("training needs a language for its prefix: 'auto' works only for transcribing.")
        start = self.prefix_ids(language)
        prefixes = [[*self.prompt_ids(prompt), *start] for prompt in prompts or [""] * len(texts)]
        targets = [self.target_ids(text) for text in texts]
        for text, target, prefix in zip(texts, targets, prefixes, strict=True):
            self._require_room(text, target, prefix)
        # Teacher forcing: the last token of the prefix predicts the first of the text.
        end, firsts = self.tokenizer.special.end, [len(prefix) - 1 for prefix in prefixes]
        rows = list(zip(prefixes, targets, strict=True))
        inputs = pad_tokens([[*prefix, *target[:-1]] for prefix, target in rows], end)
        labels = pad_tokens([[end] * (len(prefix) - 1) + target for prefix, target in rows], end)
        position = torch.arange(inputs.shape[1])[None, :] - torch.tensor(firsts)[:, None]
        mask = (position >= 0) & (position < torch.tensor([len(target) for target in targets])[:, None])
        return WhisperBatch(features, lengths, labels, None, language, inputs, mask)

    def encode(self, model: nn.Module, batch: WhisperBatch, stop: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Encoder states, and the mask (batch, states) of the real ones, None if all are (:meth:`SpeechBase.encode`)."""
        return forward.encode(model, batch, stop)

    def token_losses(self, model: nn.Module, batch: WhisperBatch) -> tuple[Tensor, Tensor]:
        """Cross-entropy in nats of each labelled token (labelled,), and the row that it belongs to (labelled,).

        Only labelled positions are projected to the vocabulary, which is most of the decoder's work.
        """
        if batch.decoder_input_ids is None or batch.labels is None or batch.label_mask is None:
            raise BaseModelError("a batch without texts has no loss: collate it with texts.")
        states, mask = self.encode(model, batch)
        hidden = forward.decode(model, batch.decoder_input_ids, states, mask)
        logits = self._labelled_logits(forward.unwrap(model).proj_out, hidden, batch.label_mask).float()
        losses = functional.cross_entropy(logits, batch.labels[batch.label_mask], reduction="none")
        return losses, batch.label_mask.nonzero()[:, 0]

    def _labelled_logits(self, head: nn.Module, hidden: Tensor, mask: Tensor) -> Tensor:
        """Logits (labelled, vocabulary) of the positions in ``mask`` (batch, tokens) of ``hidden`` (batch, tokens, d_model)."""
        logits: Tensor = head(hidden[mask])
        return logits

    def row_losses(self, model: nn.Module, batch: WhisperBatch) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy in nats of each row (batch,), and the number of its labelled tokens (batch,)."""
        losses, _ = self.token_losses(model, batch)
        assert batch.label_mask is not None  # token_losses would have refused
        # Through the grid of positions: adding up by row index would depend on the order of threads on a GPU.
        grid = losses.new_zeros(batch.label_mask.shape).masked_scatter(batch.label_mask, losses)
        return grid.sum(dim=1), batch.label_mask.sum(dim=1)

    def loss(self, model: nn.Module, batch: WhisperBatch) -> Tensor:
        """Mean cross-entropy in nats over all labelled tokens of the batch, a scalar."""
        return self.token_losses(model, batch)[0].mean()

    def transcribe(self, model: nn.Module, batch: WhisperBatch, **options: Unpack[DecodingOptions]) -> list[Hypothesis]:
        """See :meth:`SpeechBase.transcribe`."""
        beams = beams_of(options)
        with torch.no_grad():
            states, mask = self.encode(model, batch)
            heard = DynamicCache()
            language = None if batch.language == AUTO else batch.language
            if language is not None or not self.languages:
                prompts = [self.prefix_ids(language)] * batch.size
            else:
                known = options.get("languages") or self.languages
                prefixes = {prefix[1]: prefix for prefix in map(self.prefix_ids, known)}
                start = self.tokenizer.special.start
                found = decoding.detect_languages(model, states, mask, start, list(prefixes), heard)
                prompts = [prefixes[token] for token in found]
            previous = self.prompt_ids(options.get("prompt", ""))
            prompts = [[*previous, *prefix] for prefix in prompts]
            positions, most = int(self.config.max_target_positions), options.get("max_new_tokens")
            limits = [
                decoding.token_limit(frames, len(prompts[0]), positions, most)
                for frames in options.get("heard") or batch.lengths
            ]
            penalty = options.get("length_penalty", 1.0)
            return decoding.search(
                model, states, mask, prompts, limits, self.rules, beams=beams, length_penalty=penalty, heard=heard
            )
