"""What a speech task needs of a base, whichever kind it is, and what the kinds have in common.

Knows no architecture: :mod:`fl.bases.whisper` and :mod:`fl.bases.ctc` fill it.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypedDict, Unpack

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fl.adapters.correction import corrected_fingerprint, corrected_weights
from fl.bases.batch import PaddedBatch, PrefixStates, pad_rows
from fl.core.errors import BaseModelError
from fl.speech.audio import Waveform
from fl.speech.features import Window

Rows = Sequence[npt.NDArray[Any]]
Texts = Sequence[str] | None
FLOAT_BYTES = 4  # of an activation; autocast to 16 bits needs less, and estimates stay on the safe side


@dataclass(frozen=True)
class Hypothesis:
    """A transcript as ids without prefix and end; ``log_prob`` is the sum over all of them, the end included.

    ``reason``: "end" (the end token, or of the speech), "loop" (the guard: one copy of what was repeated is kept) or "length".
    """

    tokens: tuple[int, ...]
    log_prob: float
    reason: Literal["end", "loop", "length"] = "end"

    def score(self, length_penalty: float) -> float:
        """``log_prob / length ** length_penalty``: 1 is the mean over tokens, 0 the plain sum."""
        length = len(self.tokens) + (self.reason == "end")
        return self.log_prob / float(max(length, 1) ** length_penalty)


class DecodingOptions(TypedDict, total=False):
    """How :meth:`SpeechBase.transcribe` decodes. CTC looks at ``beams`` alone.

    Where a batch has no language, each row gets the most probable of ``languages`` (default: all that the base knows).
    ``heard`` are the frames of each row that can be speech (:func:`fl.speech.features.heard_frames`), where they are not all
    of the window: a transcript is no longer than what they can hold. ``length_penalty`` see :meth:`Hypothesis.score`.
    ``prompt`` is what was said or written before: the decoder goes on from it and does not repeat it.
    """

    beams: int
    max_new_tokens: int | None
    languages: Sequence[str] | None
    length_penalty: float
    heard: Sequence[int] | None
    prompt: str


def beams_of(options: DecodingOptions) -> int:
    """The number of beams, 1 if it is not given. Raises :class:`BaseModelError` for less."""
    beams = options.get("beams", 1)
    if beams < 1:
        raise BaseModelError(f"beams={beams}: at least 1.")
    return beams


class SpeechBase(ABC):
    """A pretrained (or randomly initialised) recognizer that stays as it is while adapters are trained in its modules.

    What computes takes the model, which may be a wrapped one: adapters live in the modules inside. ``model`` itself should stay
    plain; :meth:`new_model` gives further ones that share its weights. ``features`` are arrays whose second axis is time;
    :meth:`collate` makes of them what the other methods call a batch.
    """

    languages: tuple[str, ...] = ()  # codes of the languages that it has tokens for
    mels: int = 0  # mel bands of the features, worth keeping on disk; 0 for a base whose features are the waveform
    alone_window: Window | None = None  # in which the frozen base alone must decode; None: in that of its adapters
    caches_stem: bool = False  # whether it is worth keeping what enters the first layer
    encoder: str  # the name of the encoder in a model
    stem: tuple[str, ...]  # the names of what is in front of the encoder's first layer
    longest: int  # entries in time of a full window of features
    hop: int = 1  # entries in 10 ms
    deciding_files: ClassVar[tuple[str, ...]] = ()  # in its folder, beside the weights, that its fingerprint depends on

    def __init__(self, name: str, fingerprint: str, model: PreTrainedModel) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.model: nn.Module = model
        self.config: Any = model.config
        self.targets = ""  # a pattern of modules of its own that adapters train, beside the sites
        self.weights: Mapping[str, Tensor] = dict(model.state_dict())  # the frozen tensors by name

    @classmethod
    @abstractmethod
    def from_folder(cls, folder: Path, name: str, weights: Mapping[str, Tensor]) -> Self:
        """The base in a folder of transformers' layout on its mapped ``weights``, which are not copied; without a fingerprint.

        Raises :class:`BaseModelError` that names the file at fault. Only safetensors are read: pickled weights could run code.
        """

    @abstractmethod
    def compute_fingerprint(self) -> str:
        """What tells this base from all others, over every bit of its weights."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights and activations."""
        return next(iter(self.weights.values())).dtype

    def to(self, target: torch.device | torch.dtype) -> Self:
        """This base with its weights on a device or in a type: itself if they are, otherwise one with a copy of them."""
        return self.on_weights({name: tensor.to(target) for name, tensor in self.weights.items()})

    def on_weights(self, weights: Mapping[str, Tensor]) -> Self:
        """This base on other tensors of the same names, which are not copied; itself if they are its own."""
        own = self.weights
        if all(
            name in own and own[name].data_ptr() == t.data_ptr() and own[name].dtype == t.dtype
            for name, t in weights.items()
        ):
            return self
        other = copy.copy(self)
        other.weights = weights
        other.model = other.new_model()
        return other

    def with_correction(self, corrections: Mapping[str, Tensor]) -> Self:
        """This base with ``corrections`` (:mod:`fl.adapters.correction`) in its weights, for adapters made for it.

        All other weights are shared. Its fingerprint names the correction. Raises :class:`fl.core.errors.AdapterMismatchError` for a
        correction that does not fit.
        """
        other = self.on_weights(corrected_weights(self.weights, corrections))
        other.fingerprint = corrected_fingerprint(self.fingerprint, corrections)
        return other

    @abstractmethod
    def new_model(self) -> nn.Module:
        """A model of its own modules on the same frozen tensors: adapters put into it do not touch other models."""

    @abstractmethod
    def features(self, audio: Waveform, window: Window = "trimmed") -> npt.NDArray[np.float16]:
        """Features of ``audio`` (samples,) at 16 kHz."""

    def frames(self, features: npt.NDArray[Any]) -> int:
        """Length of an utterance in frames of 10 ms."""
        return int(features.shape[1]) // self.hop

    @abstractmethod
    def states_of(self, length: int) -> int:
        """Encoder states, 20 ms each, of an utterance whose features have ``length`` entries in time."""

    @abstractmethod
    def target_ids(self, text: str) -> list[int]:
        """What the base should write for ``text``."""

    @abstractmethod
    def text_of(self, ids: Sequence[int]) -> str:
        """The NFC text that ``ids`` stand for."""

    @abstractmethod
    def check_text(self, text: str, seconds: float) -> None:
        """Raise :class:`fl.core.errors.TextError` unless the base can be taught to write ``text`` for so many seconds of speech:
        more than the decoder or the speech can hold, and as ``VocabularyError``, which lists them, characters that are missing."""

    def collate(
        self,
        features: Rows,
        texts: Texts = None,
        window: Window = "trimmed",
        language: str | None = None,
        prompts: Sequence[str] = (),
    ) -> Any:
        """A batch of rows (bands, length_i), with targets if ``texts`` are given, each behind its one of ``prompts``.

        Raises :class:`fl.core.errors.TextError` for a text that the decoder or the speech cannot hold, :class:`BaseModelError`
        for features that do not fit the base or the window.
        """
        if not features:
            raise BaseModelError("a batch needs at least one utterance.")
        if texts is not None and len(texts) != len(features):
            raise BaseModelError(f"{len(features)} rows of features with {len(texts)} texts.")
        bands, longest = max(self.mels, 1), self.longest
        for row in features:
            if row.ndim != 2 or row.shape[0] != bands or not self.states_of(row.shape[1]) > 0 or row.shape[1] > longest:
                raise BaseModelError(
                    f"features of shape {row.shape}; base {self.name!r} takes ({bands}, at most {longest})."
                )
            if window == "full" and row.shape[1] != longest:
                raise BaseModelError(f"features of {row.shape[1]} in a full window of {longest}: extracted trimmed?")
        lengths = tuple(int(row.shape[1]) for row in features)
        padded = pad_rows([row.T for row in features]).transpose(1, 2).contiguous()
        return self._batch(padded, lengths, texts, language, prompts)

    @abstractmethod
    def _batch(
        self, features: Tensor, lengths: tuple[int, ...], texts: Texts, language: str | None, prompts: Sequence[str]
    ) -> PaddedBatch:
        """The batch of checked and padded features."""

    @abstractmethod
    def encode(self, model: nn.Module, batch: Any, stop: int | None = None) -> tuple[Tensor, Any]:
        """Encoder states (batch, states, d_model), those that enter layer ``stop`` if given, and which of them are real."""

    def prefix_states(self, features: npt.NDArray[Any], layers: int) -> npt.NDArray[np.float32]:
        """What enters layer ``layers`` of the frozen encoder (states, d_model), the encoder's output if that is their number.

        Of one utterance, alone: the same bits whatever else is in a batch.
        """
        device = next(self.model.parameters()).device
        with torch.inference_mode():
            states, _ = self.encode(self.model, self.collate([features]).to(device), stop=layers)
        found: npt.NDArray[np.float32] = states[0].float().cpu().numpy()
        return found

    def with_prefix(self, batch: Any, rows: Rows, layers: int) -> Any:
        """``batch`` with the activations (states_i, d_model) of its rows that enter encoder layer ``layers``."""
        wanted = [self.states_of(count) for count in batch.lengths]
        if [len(row) for row in rows] != wanted:
            raise BaseModelError(f"{[len(row) for row in rows]} states for rows that have {wanted}.")
        return replace(batch, prefix=PrefixStates(pad_rows(rows).to(self.dtype), layers))

    @abstractmethod
    def row_losses(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Summed loss in nats of each row (batch,), and the number of its labels (batch,)."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean loss over all labels of the batch, a scalar."""

    @abstractmethod
    def transcribe(self, model: nn.Module, batch: Any, **options: Unpack[DecodingOptions]) -> list[Hypothesis]:
        """The best hypothesis for each row: greedy with one beam, beam search with more; :class:`BaseModelError` for none."""

    def generate(self, model: nn.Module, batch: Any, **options: Unpack[DecodingOptions]) -> list[str]:
        """The transcript of each row in NFC (:meth:`transcribe` gives ids, scores and why each stopped)."""
        return [self.text_of(found.tokens) for found in self.transcribe(model, batch, **options)]

    @abstractmethod
    def training_bytes(self, frames: int, text: str) -> int:
        """Bytes of activations of an utterance of ``frames`` (10 ms) in a training step, estimated from above.

        A test compares it with what autograd saves.
        """
