"""What others' private parts or updates tell of the next person's: a Gaussian around them, or the directions in which they differ."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from fl.adapters.state import State
from fl.aggregation.directions import main_directions


@dataclass(frozen=True)
class Prior:
    """What private parts of others tell: the mean of their distance from the start, and each number's precision, 1 on average.

    Without these it is centred at the start, and all numbers are alike. ``directions``, (directions, numbers) by tensor, are
    orthonormal ways in which people differ, eigenvoices (Kuhn et al. 2000): along them nothing pulls.
    """

    mean: State = field(default_factory=dict)
    precision: State = field(default_factory=dict)
    directions: State = field(default_factory=dict)


def learned_prior(start: State, others: Sequence[State]) -> Prior:
    """The Gaussian of the private tensors of ``others``: mean and diagonal variance of their distance from ``start``."""
    mean, precision = {}, {}
    for name in others[0]:
        away = torch.stack([one[name] - start[name] for one in others])
        mean[name], precision[name] = away.mean(0), away.var(0, correction=0)
    typical = sum(float(v.sum()) for v in precision.values()) / sum(v.numel() for v in precision.values())
    # A number that nobody moved has no variance: its precision is bounded by ten times that of a typical one.
    inverse = {name: 1 / (variance + 0.1 * typical + 1e-30) for name, variance in precision.items()}
    average = sum(float(v.sum()) for v in inverse.values()) / sum(v.numel() for v in inverse.values())
    return Prior(mean, {name: tensor / average for name, tensor in inverse.items()})


def eigenvoices(start: State, others: Sequence[State], names: Sequence[str], count: int) -> Prior:
    """The ``count`` directions with the most of the distance from ``start`` to the tensors ``names`` of ``others``."""
    away = [{name: (one[name] - start[name]).numpy() for name in names} for one in others]
    found = main_directions(away, names, count)
    return Prior(directions={name: torch.from_numpy(values) for name, values in found.items()})
