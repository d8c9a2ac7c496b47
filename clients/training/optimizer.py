"""The optimizer of local training: AdamW with a rate for factors and one for gates, and gradient clipping by part.

Single-device training and second adapters step through it; a cohort's :class:`clients.training.slots.SlotAdamW` is the same arithmetic
on the matrix of many devices, and is tested against this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fl.core.errors import AdapterError
from fl.tasks.task import Example


def diverged(what: str) -> AdapterError:
    """The error of a training whose ``what`` stopped being finite."""
    return AdapterError(f"training diverged: {what} is not finite; lower learning-rate or private-learning-rate")


def require_finite(value: Tensor, what: str) -> None:
    """Raise :class:`AdapterError` unless a scalar is finite."""
    if not bool(torch.isfinite(value)):
        raise diverged(what)


def no_examples() -> AdapterError:
    """The error of a device that has nothing to train on."""
    return AdapterError("device has no training examples: leave it out of training or give it data")


def require_examples(examples: Sequence[Example]) -> None:
    """Raise :class:`AdapterError` for a device without training examples."""
    if not examples:
        raise no_examples()


@dataclass(frozen=True)
class Rates:
    """Learning rates, the decoupled weight decay of factors, and the largest gradient norm of a part."""

    factors: float
    gates: float
    weight_decay: float
    clipping_norm: float


class AdapterOptimizer:
    """AdamW (Loshchilov & Hutter 2019) over factors and gates; ``parts`` are clipped each by the norm of its gradients."""

    def __init__(
        self,
        factors: Sequence[nn.Parameter],
        gates: Sequence[nn.Parameter],
        parts: Sequence[Sequence[nn.Parameter]],
        rates: Rates,
    ) -> None:
        self._parts, self._norm = parts, rates.clipping_norm
        groups = [
            {"params": list(factors), "lr": rates.factors, "weight_decay": rates.weight_decay},
            {"params": list(gates), "lr": rates.gates, "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW([group for group in groups if group["params"]])

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self._adamw.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Clip and step; a parameter without gradient keeps its value and its moments. :class:`AdapterError` if one is not finite."""
        for part in self._parts:
            with_gradient = [p for p in part if p.grad is not None]
            if with_gradient:
                require_finite(nn.utils.clip_grad_norm_(with_gradient, self._norm), "a gradient")
        self._adamw.step()
