"""What enrolments of others tell of the next person's: a Gaussian around where they went, or the directions in which they differ."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clients.training.private_part import Start
from fl.adapters.state import State


@dataclass(frozen=True)
class Prior:
    """What private parts of others tell: the mean of their distance from the start, and each number's precision, 1 on average.

    ``directions`` are orthonormal ways in which people differ, eigenvoices (Kuhn et al. 2000): along them nothing pulls.
    """

    mean: State
    precision: State
    directions: Sequence[State] = ()


def learned_prior(start: Start, others: Sequence[State]) -> Prior:
    """The Gaussian of the private tensors of ``others``: mean and diagonal variance of their distance from the start."""
    mean, precision = {}, {}
    for name in start.split.private:
        away = torch.stack([one[name] - start.state[name] for one in others])
        mean[name], precision[name] = away.mean(0), away.var(0, correction=0)
    typical = sum(float(v.sum()) for v in precision.values()) / sum(v.numel() for v in precision.values())
    # A number that nobody moved has no variance: its precision is bounded by ten times that of a typical one.
    inverse = {name: 1 / (variance + 0.1 * typical + 1e-30) for name, variance in precision.items()}
    average = sum(float(v.sum()) for v in inverse.values()) / sum(v.numel() for v in inverse.values())
    return Prior(mean, {name: tensor / average for name, tensor in inverse.items()})


def eigenvoices(start: Start, others: Sequence[State], count: int) -> Prior:
    """The ``count`` directions with the most of the distance from the start to the private tensors of ``others``."""
    names = start.split.private
    away = torch.stack([torch.cat([(one[n] - start.state[n]).flatten() for n in names]) for one in others])
    _, sizes, rows = torch.linalg.svd(away.double(), full_matrices=False)
    shapes = [start.state[name].shape for name in names]

    def parts(row: Tensor) -> State:
        cut = torch.split(row.float(), [shape.numel() for shape in shapes])
        return {name: part.reshape(shape) for name, part, shape in zip(names, cut, shapes, strict=True)}

    found = [parts(row) for row, size in zip(rows[:count], sizes, strict=False) if size > 0]
    none = {name: torch.zeros(shape) for name, shape in zip(names, shapes, strict=True)}
    return Prior(none, {name: torch.ones(shape) for name, shape in zip(names, shapes, strict=True)}, found)
