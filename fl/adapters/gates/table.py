"""The gates of the package's docstring, and the table of all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fl.adapters.gates.base import COORDINATES, D_IN, D_OUT, FROZEN, INPUT, RANK, Gate, Linear
from fl.core.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


def _logistic(logits: Tensor) -> Tensor:
    """2 sigma(logits), in (0, 2)."""
    return 2 * logits.sigmoid()


def _affine(source: Tensor, parameters: Mapping[str, Tensor], linear: Linear) -> Tensor:
    return _logistic(linear(source, parameters["gate_weight"], parameters["gate_bias"]))


def _elementwise(source: Tensor, parameters: Mapping[str, Tensor], linear: Linear) -> Tensor:
    return _logistic(source * parameters["gate_weight"] + parameters["gate_bias"])


def _constant(source: Tensor, parameters: Mapping[str, Tensor], linear: Linear) -> Tensor:
    return _logistic(parameters["gate_bias"])


def _of_rank(width: str) -> dict[str, tuple[str | int, ...]]:
    """The parameters of a gate of the coordinates that sees a place of size ``width``."""
    return {"gate_weight": (RANK, width), "gate_bias": (RANK,)}


NONE = Gate("none")
HIDDEN = Gate("hidden", {"gate_weight": (D_IN,), "gate_bias": (D_IN,)}, INPUT, INPUT, _elementwise)
LOW_RANK = Gate("low-rank", _of_rank(RANK), COORDINATES, COORDINATES, _affine)
SELF = Gate("self", _of_rank(D_IN), COORDINATES, INPUT, _affine, beside_a="gate_weight")
CROSS = Gate("cross", _of_rank(D_OUT), COORDINATES, FROZEN, _affine)
SCALAR = Gate("scalar", {"gate_bias": (1,)}, COORDINATES, "", _constant)

_ALL = (
    NONE,
    HIDDEN,
    LOW_RANK,
    SELF,
    CROSS,
    SCALAR,
)
GATES: Registry[Gate] = Registry("gate", {gate.name: gate for gate in _ALL})
