"""Rows of different lengths as one tensor, padded behind each row's end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def pad_rows(rows: Sequence[npt.NDArray[Any]], axis: int = 0) -> Tensor:
    """Arrays whose ``axis`` differs in length, (batch, ...) float32, with zeros behind each row."""
    shape = list(rows[0].shape)
    shape[axis] = max(row.shape[axis] for row in rows)
    out = np.zeros((len(rows), *shape), np.float32)
    for target, row in zip(out, rows, strict=True):
        target[(slice(None),) * axis + (slice(row.shape[axis]),)] = row
    return torch.from_numpy(out)


def pad_tokens(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Rows of ids as one (batch, longest) tensor, padded behind with ``fill``."""
    out = torch.full((len(rows), max(map(len, rows))), fill, dtype=torch.long)
    for index, row in enumerate(rows):
        out[index, : len(row)] = torch.tensor(row, dtype=torch.long)
    return out


def inside(lengths: Tensor, size: int) -> Tensor:
    """(batch, size) True at positions under each length."""
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]
