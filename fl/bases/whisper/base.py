"""A frozen Whisper: features, batches, loss and transcripts, for any adapter that is put into its modules."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import WhisperForConditionalGeneration

from fl.bases.extension import head_logits
from fl.bases.memory import training_bytes
from fl.bases.whisper import decoding, forward
from fl.bases.whisper.batch import Batch, Prefix, pad_features, pad_states, target_tensors
from fl.bases.whisper.decoding import Hypothesis, Rules
from fl.bases.whisper.loading import assemble
from fl.bases.whisper.tokenizer import Tokenizer
from fl.core.errors import BaseModelError, TextError
from fl.speech.features import Audio, Features, Window, extract

AUTO = "auto"
PROMPT_TOKENS = 5  # start, language, transcribe, no timestamps; end


class WhisperBase:
    """A pretrained (or randomly initialised) Whisper that stays as it is while adapters are trained in front of it.

    Every method that computes takes the model, because that may be a wrapped one: adapters live in the modules of the
    Whisper inside. ``model`` itself should stay plain; :meth:`new_model` gives further ones that share its weights.
    """

    def __init__(
        self, name: str, fingerprint: str, model: WhisperForConditionalGeneration, tokenizer: Tokenizer, rules: Rules
    ) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.model = model
        self.tokenizer = tokenizer
        self.rules = rules
        self.targets = ""  # modules of its own that adapters train, beside the sites
        self._weights = dict(model.state_dict())

    @property
    def mels(self) -> int:
        """Number of mel bands of the features."""
        return int(self.model.config.num_mel_bins)

    alone_window: Window | None = "full"  # unadapted it does not stop on a trimmed one
    caches_stem = False  # two small convolutions

    @property
    def parameters(self) -> int:
        """Number of parameters (the tied output head counted once)."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def bytes(self) -> int:
        """Size of the weights in memory."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages it knows; empty in an English-only base."""
        return tuple(self.tokenizer.special.languages)

    def to(self, device: torch.device) -> "WhisperBase":
        """This base with its weights on ``device``: itself if they are there, otherwise one with a copy of them."""
        if next(self.model.parameters()).device == device:
            return self
        moved = self.new_model().to(device)  # type: ignore[arg-type]
        return WhisperBase(self.name, self.fingerprint, moved, self.tokenizer, self.rules)

    def new_model(self) -> WhisperForConditionalGeneration:
        """A model of its own modules on the same frozen tensors: adapters put into it do not touch other models."""
        return assemble(self.model.config, self._weights, self.name)

    def features(self, audio: Audio, window: Window = "trimmed") -> Features:
        """Log-mel features (mels, frames), float16, of ``audio`` (samples,) at 16 kHz (:mod:`fl.speech.features`)."""
        return extract(audio, self.mels, window)

    def frames(self, features: npt.NDArray[Any]) -> int:
        """Length of an utterance (mels, frames) in frames of 10 ms."""
        return int(features.shape[1])

    def state_count(self, features: npt.NDArray[Any]) -> int:
        """Encoder states of an utterance, 20 ms each."""
        return (int(features.shape[1]) + 1) // 2

    def require_texts(self, texts: Sequence[str], source: str) -> None:
        """A byte-level vocabulary can write any text."""

    def training_bytes(self, frames: int, text: str) -> int:
        """Bytes of activations in a training step (:mod:`fl.bases.memory`); a token is at least a byte of text."""
        tokens = min(len(text.encode()) + PROMPT_TOKENS, int(self.model.config.max_target_positions))
        return training_bytes(self.model.config, frames, tokens)

    def prefix_ids(self, language: str | None) -> list[int]:
        """The tokens before a transcript. Raises :class:`BaseModelError` for a language that the base does not know."""
        return self.tokenizer.special.prefix(language)

    def target_ids(self, text: str) -> list[int]:
        """The tokens of ``text`` (NFC, behind a space, as Whisper writes) and the end token."""
        return [*self.tokenizer.encode(text), self.tokenizer.special.end]

    def collate(
        self,
        features: Sequence[npt.NDArray[Any]],
        texts: Sequence[str] | None = None,
        window: Window = "trimmed",
        language: str | None = None,
    ) -> Batch:
        """A batch of rows (mels, frames_i), with targets if ``texts`` are given (training needs a ``language``).

        Raises :class:`TextError` for a text that is longer than the decoder's positions, :class:`BaseModelError` for
        features that do not fit the base or the window.
        """
        self._check(features, window)
        rows = pad_features(features)
        frames = tuple(row.shape[1] for row in features)
        if texts is None:
            return Batch(rows, frames, language)
        if len(texts) != len(features):
            raise BaseModelError(f"{len(features)} rows of features with {len(texts)} texts.")
        if language == AUTO:
            raise BaseModelError("training needs a language for its prefix: 'auto' works only for transcribing.")
        prefix = self.prefix_ids(language)
        targets = [self.target_ids(text) for text in texts]
        limit = int(self.model.config.max_target_positions) - len(prefix) + 1
        for text, target in zip(texts, targets, strict=True):
            if len(target) > limit:
                raise TextError(f"a text of {len(target)} tokens is over the {limit} of the decoder: {text[:40]!r}...")
        inputs, labels, mask = target_tensors(prefix, targets, self.tokenizer.special.end)
        return Batch(rows, frames, language, inputs, labels, mask)

    def _check(self, features: Sequence[npt.NDArray[Any]], window: Window) -> None:
        if not features:
            raise BaseModelError("a batch needs at least one utterance.")
        full = 2 * int(self.model.config.max_source_positions)
        for row in features:
            if row.ndim != 2 or row.shape[0] != self.mels or not 0 < row.shape[1] <= full:
                raise BaseModelError(
                    f"features of shape {row.shape}; base {self.name!r} takes ({self.mels}, at most {full})."
                )
            if window == "full" and row.shape[1] != full:
                raise BaseModelError(
                    f"features of {row.shape[1]} frames in a full window of {full}: extracted trimmed?"
                )

    def encode(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Encoder states (batch, states, d_model) and the mask (batch, states) of the real ones, None if all are."""
        return forward.encode(model, batch.features, batch.frames, prefix=batch.prefix)

    def prefix_states(self, features: npt.NDArray[Any], layers: int) -> npt.NDArray[np.float32]:
        """What enters layer ``layers`` of the frozen encoder (states, d_model), the encoder's output if that is their number.

        Of one utterance (mels, frames), alone: the same bits whatever else is in a batch.
        """
        device = next(self.model.parameters()).device
        with torch.inference_mode():
            rows = pad_features([features]).to(device)
            states, _ = forward.encode(self.model, rows, (features.shape[1],), stop=layers)
        found: npt.NDArray[np.float32] = states[0].float().cpu().numpy()
        return found

    def with_prefix(self, batch: Batch, rows: Sequence[npt.NDArray[Any]], layers: int) -> Batch:
        """``batch`` with the activations (states_i, d_model) of its rows that enter encoder layer ``layers``."""
        wanted = [(count + 1) // 2 for count in batch.frames]
        if [len(row) for row in rows] != wanted:
            raise BaseModelError(f"{[len(row) for row in rows]} states for rows that have {wanted}.")
        return replace(batch, prefix=Prefix(pad_states(rows), layers))

    def token_losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross-entropy in nats of each labelled token (labelled,), and the row that it belongs to (labelled,).

        Only labelled positions are projected to the vocabulary, which is most of the decoder's work.
        """
        if batch.decoder_input_ids is None or batch.labels is None or batch.label_mask is None:
            raise BaseModelError("a batch without texts has no loss: collate it with texts.")
        states, mask = self.encode(model, batch)
        hidden = forward.decode(model, batch.decoder_input_ids, states, mask)
        logits = head_logits(forward.unwrap(model).proj_out, hidden, batch.label_mask).float()
        losses = functional.cross_entropy(logits, batch.labels[batch.label_mask], reduction="none")
        return losses, batch.label_mask.nonzero()[:, 0]

    def row_losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy in nats of each row (batch,), and the number of its labelled tokens (batch,)."""
        losses, _ = self.token_losses(model, batch)
        assert batch.label_mask is not None  # token_losses would have refused
        # Through the grid of positions: adding up by row index would depend on the order of threads on a GPU.
        grid = losses.new_zeros(batch.label_mask.shape).masked_scatter(batch.label_mask, losses)
        return grid.sum(dim=1), batch.label_mask.sum(dim=1)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy in nats over all labelled tokens of the batch, a scalar."""
        return self.token_losses(model, batch)[0].mean()

    def transcribe(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        beams: int = 1,
        max_new_tokens: int | None = None,
        languages: Sequence[str] | None = None,
        length_penalty: float = 1.0,
        heard: Sequence[int] | None = None,
    ) -> list[Hypothesis]:
        """The best hypothesis for each row: greedy with one beam, beam search with more.

        Where the batch has no language (None or "auto"), each row gets the most probable of ``languages`` (default:
        all that the base knows), from the encoder states that are there anyway. ``heard`` are the frames of each row
        that can be speech (:func:`fl.speech.features.heard_frames`), where they are not all of the window: a transcript is
        no longer than what they can hold.
        """
        if beams < 1:
            raise BaseModelError(f"beams={beams}: at least 1.")
        with torch.no_grad():
            states, mask = self.encode(model, batch)
            prefix = self._prefixes(model, states, mask, batch, languages)
            positions = int(self.model.config.max_target_positions)
            limits = decoding.token_limits(heard or batch.frames, prefix.shape[1], positions, max_new_tokens)
            if beams == 1:
                return decoding.greedy(model, states, mask, prefix, limits, self.rules)
            return decoding.beam(
                model, states, mask, prefix, limits, self.rules, beams=beams, length_penalty=length_penalty
            )

    def _prefixes(
        self, model: nn.Module, states: Tensor, mask: Tensor | None, batch: Batch, languages: Sequence[str] | None
    ) -> Tensor:
        special = self.tokenizer.special
        if batch.language not in (None, AUTO) or not special.languages:
            language = None if batch.language == AUTO else batch.language
            rows = [self.prefix_ids(language)] * batch.size
        else:
            prefixes = {prefix[1]: prefix for prefix in map(special.prefix, languages or self.languages)}
            found = decoding.detect_languages(model, states, mask, special.start, list(prefixes))
            rows = [prefixes[token] for token in found]
        return torch.tensor(rows, dtype=torch.long, device=states.device)

    def generate(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        beams: int = 1,
        max_new_tokens: int | None = None,
        languages: Sequence[str] | None = None,
        heard: Sequence[int] | None = None,
    ) -> list[str]:
        """The transcript of each row in NFC (:meth:`transcribe` gives ids, scores and why each stopped)."""
        found = self.transcribe(
            model, batch, beams=beams, max_new_tokens=max_new_tokens, languages=languages, heard=heard
        )
        return [self.tokenizer.decode(hypothesis.tokens) for hypothesis in found]
