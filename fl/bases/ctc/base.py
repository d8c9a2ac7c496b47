"""A frozen Wav2Vec2 with a CTC head: waveforms, batches, loss and transcripts, for any adapter put into its modules.

Feature encoder (seven convolutions over the waveform), transformer, and a linear head over symbols and the blank (Baevski et al.
2020, arXiv 2006.11477; CTC: Graves et al. 2006). It has an encoder only, so the sites ``encoder.self`` and ``ffn`` apply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Wav2Vec2ForCTC

from fl.bases.ctc.decoding import CANDIDATES, Labelling, beam_ctc, greedy_ctc
from fl.bases.ctc.forward import encode_ctc, state_count, unwrap_ctc
from fl.bases.ctc.loading import assemble_ctc
from fl.bases.ctc.vocabulary import CtcVocabulary
from fl.bases.memory import ctc_training_bytes
from fl.bases.whisper.batch import Prefix, pad_states, pad_tokens
from fl.core.errors import BaseModelError, TextError
from fl.speech.features import FULL_SAMPLES, HOP_SAMPLES, Audio, Features, Window, pad_window


@dataclass(frozen=True)
class CtcBatch:
    """Waveforms (batch, samples) with their true lengths, and targets where there are any.

    ``labels`` (batch, symbols) are padded behind each row's ``label_counts``. ``prefix``: what the convolutions and the lowest
    layers make of the waveforms, where that is known; they are then not computed.
    """

    waveforms: Tensor
    samples: tuple[int, ...]
    labels: Tensor | None = None
    label_counts: Tensor | None = None
    prefix: Prefix | None = None

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.samples)

    def to(self, device: torch.device | str) -> CtcBatch:
        """The same batch on ``device``."""
        return replace(
            self,
            waveforms=self.waveforms.to(device),
            labels=None if self.labels is None else self.labels.to(device),
            label_counts=None if self.label_counts is None else self.label_counts.to(device),
            prefix=self.prefix and Prefix(self.prefix.states.to(device), self.prefix.layers),
        )


class CtcBase:
    """A Wav2Vec2-CTC that stays as it is while adapters are trained in its modules (see :class:`fl.bases.speech.SpeechBase`)."""

    mels = 0  # it hears the waveform
    languages: tuple[str, ...] = ()  # and knows no language token
    alone_window: Window | None = None  # the frozen base decodes at any length
    caches_stem = True  # the convolutions are half of the work, and no adapter sits in them

    def __init__(self, name: str, fingerprint: str, model: Wav2Vec2ForCTC, vocabulary: CtcVocabulary) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.model: nn.Module = model
        self.vocabulary = vocabulary
        self.config = model.config
        self.targets = ""  # modules of its own that adapters train, beside the sites
        self._weights = dict(model.state_dict())

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def bytes(self) -> int:
        """Size of the weights in memory."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())

    def to(self, device: torch.device) -> CtcBase:
        """This base with its weights on ``device``: itself if they are there, otherwise one with a copy of them."""
        if next(self.model.parameters()).device == device:
            return self
        moved = assemble_ctc(self.config, {name: t.to(device) for name, t in self._weights.items()}, self.name)
        return CtcBase(self.name, self.fingerprint, moved, self.vocabulary)

    def new_model(self) -> nn.Module:
        """A model of its own modules on the same frozen tensors: adapters put into it do not touch other models."""
        model: nn.Module = assemble_ctc(self.config, self._weights, self.name)
        return model

    def features(self, audio: Audio, window: Window = "trimmed") -> Features:
        """The waveform (1, samples) with zero mean and unit variance, then silence (:func:`fl.speech.features.pad_window`).

        In half precision always, so that a result does not depend on what was cached: 66 dB under the speech.
        """
        samples = np.asarray(audio, np.float32)
        normed = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
        return pad_window(normed, window)[None, :].astype(np.float16)

    def frames(self, features: npt.NDArray[Any]) -> int:
        """Length of an utterance in frames of 10 ms."""
        return int(features.shape[1]) // HOP_SAMPLES

    def state_count(self, features: npt.NDArray[Any]) -> int:
        """Encoder states of an utterance, 20 ms each."""
        return state_count(self.config, int(features.shape[1]))

    def target_ids(self, text: str) -> list[int]:
        """The symbols of ``text``. Raises :class:`fl.core.errors.VocabularyError` for characters that the vocabulary lacks."""
        return self.vocabulary.encode(text)

    def require_texts(self, texts: Sequence[str], source: str) -> None:
        """Raise :class:`fl.core.errors.VocabularyError`, which lists characters with counts, unless all ``texts`` can be written."""
        self.vocabulary.require(texts, source)

    def collate(
        self,
        features: Sequence[npt.NDArray[Any]],
        texts: Sequence[str] | None = None,
        window: Window = "trimmed",
        language: str | None = None,
    ) -> CtcBatch:
        """A batch of rows (1, samples_i), with targets if ``texts`` are given; ``language`` says nothing to CTC.

        Raises :class:`TextError` for a text with more symbols than the speech has states (a repeated symbol needs a blank
        between), :class:`BaseModelError` for features that are not of this base.
        """
        samples = tuple(self._samples(row, window) for row in features)
        if not samples or (texts is not None and len(texts) != len(samples)):
            raise BaseModelError(f"{len(samples)} rows of features with {len(texts or ())} texts.")
        rows = np.zeros((len(samples), max(samples)), np.float32)
        for row, values in zip(rows, features, strict=True):
            row[: values.shape[1]] = values[0]
        waveforms = torch.from_numpy(rows)
        if texts is None:
            return CtcBatch(waveforms, samples)
        targets = [self.target_ids(text) for text in texts]
        for text, target, values in zip(texts, targets, features, strict=True):
            need, room = path_length(target), self.state_count(values)
            if need > room:
                raise TextError(
                    f"a text of {len(target)} symbols needs {need} states and the speech has {room} of 20 ms: {text[:40]!r}...; "
                    "check that the recording is of this text"
                )
        counts = torch.tensor([len(target) for target in targets])
        return CtcBatch(waveforms, samples, pad_tokens(targets, self.vocabulary.blank), counts)

    def _samples(self, row: npt.NDArray[Any], window: Window) -> int:
        if row.ndim != 2 or row.shape[0] != 1 or not self.state_count(row) > 0 or row.shape[1] > FULL_SAMPLES:
            raise BaseModelError(
                f"features of shape {row.shape}; base {self.name!r} takes (1, samples) of at most 30 s at 16 kHz."
            )
        if window == "full" and row.shape[1] != FULL_SAMPLES:
            raise BaseModelError(f"features of {row.shape[1]} samples in a full window of {FULL_SAMPLES}.")
        return int(row.shape[1])

    def prefix_states(self, features: npt.NDArray[Any], layers: int) -> npt.NDArray[np.float32]:
        """What enters layer ``layers`` of the frozen encoder (states, d_model). Of one utterance (1, samples), alone."""
        device = next(self.model.parameters()).device
        with torch.inference_mode():
            waveform = torch.from_numpy(np.asarray(features, np.float32)).to(device)
            states, _ = encode_ctc(self.model, waveform, (features.shape[1],), stop=layers)
        found: npt.NDArray[np.float32] = states[0].float().cpu().numpy()
        return found

    def with_prefix(self, batch: CtcBatch, rows: Sequence[npt.NDArray[Any]], layers: int) -> CtcBatch:
        """``batch`` with the activations (states_i, d_model) of its rows that enter encoder layer ``layers``."""
        wanted = [state_count(self.config, count) for count in batch.samples]
        if [len(row) for row in rows] != wanted:
            raise BaseModelError(f"{[len(row) for row in rows]} states for rows that have {wanted}.")
        return replace(batch, prefix=Prefix(pad_states(rows), layers))

    def log_probs(self, model: nn.Module, batch: CtcBatch) -> tuple[Tensor, Tensor]:
        """Log-probabilities (batch, states, symbols), and the number of real states of each row (batch,)."""
        states, lengths = encode_ctc(model, batch.waveforms, batch.samples, prefix=batch.prefix)
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

    def transcribe(self, model: nn.Module, batch: CtcBatch, *, beams: int = 1) -> list[Labelling]:
        """The best path of each row with one beam, the best of a prefix beam search with more."""
        if beams < 1:
            raise BaseModelError(f"beams={beams}: at least 1.")
        with torch.no_grad():
            log_probs, lengths = self.log_probs(model, batch)
        blank, found = self.vocabulary.blank, []
        for row, count in zip(log_probs.float().cpu().numpy(), lengths.tolist(), strict=True):
            if beams == 1:
                found.append(greedy_ctc(row[:count], blank))
            else:
                found.append(beam_ctc(row[:count], blank, beams=beams, candidates=CANDIDATES)[0])
        return found

    def generate(
        self,
        model: nn.Module,
        batch: CtcBatch,
        *,
        beams: int = 1,
        languages: Sequence[str] | None = None,
        heard: Sequence[int] | None = None,
    ) -> list[str]:
        """The transcript of each row in NFC; ``languages`` and ``heard`` say nothing to CTC."""
        return [self.vocabulary.decode(found.tokens) for found in self.transcribe(model, batch, beams=beams)]

    def training_bytes(self, frames: int, text: str) -> int:
        """Bytes of activations of an utterance of ``frames`` (10 ms) in a training step, estimated from above."""
        return ctc_training_bytes(self.config, state_count(self.config, frames * HOP_SAMPLES))


def path_length(target: Sequence[int]) -> int:
    """States that the shortest path of ``target`` takes: one for each symbol, and a blank between equal neighbours."""
    return len(target) + sum(one == other for one, other in zip(target[1:], target[:-1], strict=True))
