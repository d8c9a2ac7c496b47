"""A frozen Wav2Vec2 with a CTC head: waveforms, batches, loss and transcripts, for any adapter put into its modules.

Feature encoder (seven convolutions over the waveform), transformer, and a linear head over symbols and the blank (Baevski et al.
2020, arXiv 2006.11477; CTC: Graves et al. 2006). It has an encoder only, so the sites ``encoder.self`` and ``ffn`` apply.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self, Unpack

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Wav2Vec2ForCTC

from fl.bases.base import FLOAT_BYTES, DecodingOptions, Hypothesis, SpeechBase, Texts, beams_of
from fl.bases.batch import PaddedBatch, pad_tokens
from fl.bases.ctc.decoding import CANDIDATES, beam_ctc, greedy_ctc
from fl.bases.ctc.forward import encode_ctc, state_count, unwrap_ctc
from fl.bases.ctc.loading import assemble_ctc, read_ctc_config
from fl.bases.ctc.vocabulary import SETTINGS_NAME, VOCABULARY_NAME, CtcVocabulary, load_vocabulary
from fl.bases.files import fingerprint_of
from fl.core.errors import BaseModelError, TextError
from fl.speech.audio import SAMPLE_RATE, Waveform
from fl.speech.features import FULL_SAMPLES, HOP_SAMPLES, Features, Window, heard_frames, pad_window


@dataclass(frozen=True)
class CtcBatch(PaddedBatch):
    """Waveforms (batch, 1, samples) as ``features``. ``labels`` (batch, symbols) are padded behind each row's ``label_counts``."""

    label_counts: Tensor | None = None


class CtcBase(SpeechBase):
    """A Wav2Vec2-CTC (see :class:`SpeechBase`). It knows no language token, and decodes at any length."""

    deciding_files: ClassVar[tuple[str, ...]] = (VOCABULARY_NAME, SETTINGS_NAME)
    caches_stem = True  # the convolutions are half of the work, and no adapter sits in them
    longest, hop = FULL_SAMPLES, HOP_SAMPLES
    encoder = "wav2vec2.encoder"

    def __init__(self, name: str, fingerprint: str, model: Wav2Vec2ForCTC, vocabulary: CtcVocabulary) -> None:
        super().__init__(name, fingerprint, model)
        self.vocabulary = vocabulary
        first = ("feature_extractor", "feature_projection", "encoder.pos_conv_embed")
        norm = () if self.config.do_stable_layer_norm else ("encoder.layer_norm",)
        self.stem = tuple(f"wav2vec2.{name}" for name in (*first, *norm))

    @classmethod
    def from_folder(cls, folder: Path, name: str, weights: Mapping[str, Tensor]) -> Self:
        """See :meth:`SpeechBase.from_folder`."""
        config = read_ctc_config(folder)
        vocabulary = load_vocabulary(folder, size=int(config.vocab_size), blank=int(config.pad_token_id or 0))
        return cls(name, "", assemble_ctc(config, weights, str(folder)), vocabulary)

    def compute_fingerprint(self) -> str:
        """``wav2vec2:<d_model>x<layers>:<hash>``, of the vocabulary too (:func:`fl.bases.files.fingerprint_of`)."""
        shape = f"{self.config.hidden_size}x{self.config.num_hidden_layers}"
        return fingerprint_of("wav2vec2", shape, self.weights, self.vocabulary.digest)

    def new_model(self) -> Wav2Vec2ForCTC:
        """See :meth:`SpeechBase.new_model`."""
        return assemble_ctc(self.config, self.weights, self.name)

    def features(self, audio: Waveform, window: Window = "trimmed") -> Features:
        """The waveform (1, samples) with zero mean and unit variance, then silence (:func:`fl.speech.features.pad_window`).

        In half precision always, so that a result does not depend on what was cached: 66 dB under the speech.
        """
        samples = np.asarray(audio, np.float32)
        normed = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
        return pad_window(normed, window)[None, :].astype(np.float16)

    def states_of(self, length: int) -> int:
        """Encoder states of so many samples."""
        return state_count(self.config, length)

    def target_ids(self, text: str) -> list[int]:
        """The symbols of ``text``. Raises :class:`fl.core.errors.VocabularyError` for characters that the vocabulary lacks."""
        return self.vocabulary.encode(text)

    def text_of(self, ids: Sequence[int]) -> str:
        """See :meth:`SpeechBase.text_of`."""
        return self.vocabulary.decode(ids)

    def check_text(self, text: str, seconds: float) -> None:
        """See :meth:`SpeechBase.check_text`; a text needs a state for each symbol, and one more between equal neighbours."""
        samples = HOP_SAMPLES * heard_frames(round(seconds * SAMPLE_RATE))
        self._require_room(text, self.target_ids(text), self.states_of(samples))

    def _require_room(self, text: str, target: Sequence[int], room: int) -> None:
        if (need := path_length(target)) > room:
            raise TextError(
                f"a text of {len(target)} symbols needs {need} states and the speech has {room} of 20 ms: {text[:40]!r}...; "
                "check that the recording is of this text"
            )

    def _batch(
        self, features: Tensor, lengths: tuple[int, ...], texts: Texts, language: str | None, prompts: Sequence[str]
    ) -> CtcBatch:
        """See :meth:`fl.bases.base.SpeechBase.collate`."""
        self._require_no_prompt(prompts)
        if texts is None:
            return CtcBatch(features, lengths)
        targets = [self.target_ids(text) for text in texts]
        for text, target, length in zip(texts, targets, lengths, strict=True):
            self._require_room(text, target, self.states_of(length))
        counts = torch.tensor([len(target) for target in targets])
        return CtcBatch(features, lengths, pad_tokens(targets, self.vocabulary.blank), None, counts)

    def _require_no_prompt(self, prompts: Sequence[str]) -> None:
        if any(prompts):
            raise BaseModelError(f"base {self.name!r} takes no prompt: CTC has no decoder that could go on from it.")

    def encode(self, model: nn.Module, batch: CtcBatch, stop: int | None = None) -> tuple[Tensor, Tensor]:
        """Encoder states, and the number of real ones in each row (batch,) (:meth:`SpeechBase.encode`)."""
        return encode_ctc(model, batch, stop)

    def log_probs(self, model: nn.Module, batch: CtcBatch) -> tuple[Tensor, Tensor]:
        """Log-probabilities (batch, states, symbols), and the number of real states of each row (batch,)."""
        states, lengths = self.encode(model, batch)
        inner = unwrap_ctc(model)
        logits = inner.lm_head(inner.dropout(states))
        wide = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
        return functional.log_softmax(wide, dim=-1), lengths

    def row_losses(self, model: nn.Module, batch: CtcBatch) -> tuple[Tensor, Tensor]:
        """Negative log-probability in nats of each row's text, over all its paths (batch,), and its number of symbols (batch,)."""
        if batch.labels is None or batch.label_counts is None:
            raise BaseModelError("a batch without texts has no loss: collate it with texts.")
        log_probs, lengths = self.log_probs(model, batch)
        losses = functional.ctc_loss(
            log_probs.transpose(0, 1),
            batch.labels,
            lengths,
            batch.label_counts,
            blank=self.vocabulary.blank,
            reduction="none",
        )
        return losses, batch.label_counts

    def loss(self, model: nn.Module, batch: CtcBatch) -> Tensor:
        """Mean of the loss over all symbols of the batch, a scalar."""
        losses, counts = self.row_losses(model, batch)
        return losses.sum() / counts.sum()

    def transcribe(self, model: nn.Module, batch: CtcBatch, **options: Unpack[DecodingOptions]) -> list[Hypothesis]:
        """The best path of each row with one beam, the best of a prefix beam search with more."""
        beams = beams_of(options)
        self._require_no_prompt([options.get("prompt", "")])
        with torch.no_grad():
            log_probs, lengths = self.log_probs(model, batch)
        blank, found = self.vocabulary.blank, []
        for row, count in zip(log_probs.float().cpu().numpy(), lengths.tolist(), strict=True):
            if beams == 1:
                found.append(greedy_ctc(row[:count], blank))
            else:
                found.append(beam_ctc(row[:count], blank, beams=beams, candidates=CANDIDATES)[0])
        return found

    def training_bytes(self, frames: int, text: str) -> int:
        """See :meth:`SpeechBase.training_bytes`: counted as in a Whisper's encoder, behind the frozen convolutions.

        For the head: logits, log-probabilities and their gradient.
        """
        config, states, d = self.config, self.states_of(frames * HOP_SAMPLES), self.config.hidden_size
        layer = states * (16 * d + 2 * config.intermediate_size) + config.num_attention_heads * states**2
        return int(FLOAT_BYTES * (4 * states * d + config.num_hidden_layers * layer + 3 * states * config.vocab_size))


def path_length(target: Sequence[int]) -> int:
    """States that the shortest path of ``target`` takes: one for each symbol, and a blank between equal neighbours."""
    return len(target) + sum(one == other for one, other in zip(target[1:], target[:-1], strict=True))
