"""A batch of utterances for a sequence-to-sequence base, padded so that no row depends on its neighbours."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True)
class Prefix:
    """Activations (batch, states, d_model) that enter encoder layer ``layers``; the encoder's output if that is all of them."""

    states: Tensor
    layers: int


@dataclass(frozen=True)
class Batch:
    """Features with their true lengths, and targets where there are any.

    ``features``: (batch, mels, frames) float32, padded behind each row's ``frames`` (masked: the model never sees it).
    ``decoder_input_ids``: (batch, tokens) prefix + text, padded behind the end. ``labels``: (batch, tokens) what each
    position predicts; it counts only where ``label_mask`` is True (by position: the padding id is also the end's id).
    ``language``: of the prefix; None or "auto" lets :meth:`WhisperBase.generate` find it for each row.
    ``prefix``: what the lowest encoder layers make of the features, where that is known; they are then not computed.
    """

    features: Tensor
    frames: tuple[int, ...]
    language: str | None = None
    decoder_input_ids: Tensor | None = None
    labels: Tensor | None = None
    label_mask: Tensor | None = None
    prefix: Prefix | None = None

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.frames)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Batch":
        """The same batch on ``device``, features in ``dtype`` if given."""
        return replace(
            self,
            features=self.features.to(device, dtype),
            decoder_input_ids=_moved(self.decoder_input_ids, device),
            labels=_moved(self.labels, device),
            label_mask=_moved(self.label_mask, device),
            prefix=self.prefix and Prefix(self.prefix.states.to(device, dtype), self.prefix.layers),
        )


def _moved(value: Tensor | None, device: torch.device | str) -> Tensor | None:
    return None if value is None else value.to(device)


def pad_features(features: Sequence[npt.NDArray[Any]]) -> Tensor:
    """Rows (mels, frames_i) as one (batch, mels, max frames) float32 tensor with zeros behind each row."""
    longest = max(row.shape[1] for row in features)
    out = np.zeros((len(features), features[0].shape[0], longest), np.float32)
    for index, row in enumerate(features):
        out[index, :, : row.shape[1]] = row
    return torch.from_numpy(out)


def pad_states(rows: Sequence[npt.NDArray[Any]]) -> Tensor:
    """Rows (states_i, d_model) as one (batch, longest, d_model) float32 tensor with zeros behind each row."""
    out = np.zeros((len(rows), max(len(row) for row in rows), rows[0].shape[1]), np.float32)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return torch.from_numpy(out)


def pad_tokens(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Rows of ids as one (batch, longest) tensor, padded behind with ``fill``."""
    out = torch.full((len(rows), max(map(len, rows))), fill, dtype=torch.long)
    for index, row in enumerate(rows):
        out[index, : len(row)] = torch.tensor(row, dtype=torch.long)
    return out


def target_tensors(prefix: Sequence[int], targets: Sequence[Sequence[int]], end: int) -> tuple[Tensor, Tensor, Tensor]:
    """Teacher forcing: decoder inputs, labels and label mask, each (batch, len(prefix) + longest target - 1).

    ``targets`` are text tokens with the end token. The last token of the prefix predicts the first of the text.
    """
    inputs = pad_tokens([[*prefix, *target[:-1]] for target in targets], end)
    labels = pad_tokens([[end] * (len(prefix) - 1) + list(target) for target in targets], end)
    first = len(prefix) - 1
    lengths = torch.tensor([len(target) for target in targets])[:, None]
    position = torch.arange(inputs.shape[1])[None, :]
    return inputs, labels, (position >= first) & (position < first + lengths)
