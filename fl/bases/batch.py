"""Utterances side by side: rows of different lengths, padded so that none depends on its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class PrefixStates:
    """Activations (batch, states, d_model) that enter encoder layer ``layers``; the encoder's output if that is all of them."""

    states: Tensor
    layers: int

    def to(self, device: torch.device | str) -> PrefixStates:
        """The same on ``device``."""
        return replace(self, states=self.states.to(device))


@dataclass(frozen=True)
class PaddedBatch:
    """``features`` (batch, ..., time) have ``lengths`` real entries. ``labels`` (batch, tokens) are there for training.

    ``prefix``: what the lowest encoder layers make of the features, where that is known; they are then not computed.
    """

    features: Tensor
    lengths: tuple[int, ...]
    labels: Tensor | None = None
    prefix: PrefixStates | None = None

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.lengths)

    def to(self, device: torch.device | str) -> Self:
        """The same batch on ``device``."""
        moved: dict[str, Any] = {
            name: v.to(device) for name, v in vars(self).items() if isinstance(v, Tensor | PrefixStates)
        }
        return replace(self, **moved)


def pad_rows(rows: Sequence[npt.NDArray[Any]]) -> Tensor:
    """Arrays (length_i, ...) as one (batch, longest, ...) of float32, with zeros behind each row."""
    return pad_sequence([torch.from_numpy(row.astype(np.float32)) for row in rows], batch_first=True)


def pad_tokens(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Rows of ids as one (batch, longest) tensor, padded behind with ``fill``."""
    return pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True, padding_value=fill)


def inside(lengths: Tensor, size: int) -> Tensor:
    """(batch, size) True at positions under each length."""
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]
