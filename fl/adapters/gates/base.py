"""What a gate is: the parameters that it has, the place that it multiplies, and its factor there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from fl.core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

INPUT, COORDINATES, FROZEN, OUTPUT = "input", "coordinates", "frozen", "output"
"""Places on the adapter path: x (..., d_in), z = A x (..., r), W0 x with its bias (..., d_out), B v (..., d_out)."""
RANK, D_IN, D_OUT = "r", "d_in", "d_out"
Linear = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]
"""``linear(source, weight, bias)``: ``source`` times the transpose of each row's own matrix, plus its bias."""
Formula = Callable[["Tensor", Mapping[str, "Tensor"], Linear], "Tensor"]


def _neutral(source: Tensor, parameters: Mapping[str, Tensor], linear: Linear) -> Tensor:
    return source.new_ones(())


def _no_linear(source: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    raise ConfigError("a gate that sees nothing has no matrix to multiply it with: declare what it sees")


@dataclass(frozen=True)
class Gate:
    """A gate of one kind: what it has, where it sits, and what it computes.

    ``parameters`` gives the dimensions of each parameter by name: :data:`RANK`, :data:`D_IN`, :data:`D_OUT` or a number. Names begin
    with ``gate_``. ``multiplies`` is the place whose value is multiplied by the factor (:data:`INPUT`, :data:`COORDINATES`,
    :data:`OUTPUT`), ``sees`` the place that the factor depends on (:data:`INPUT`, :data:`COORDINATES`, :data:`FROZEN`), or empty.

    ``factor(source, parameters, linear)`` is the formula: the factor (..., size of ``multiplies``) or of a size that broadcasts. The
    same code runs for one adapter and for a batch in which each row has its own: vectors come ready to broadcast against
    ``source``, matrices only go through ``linear``. Where all parameters are zero it must be exactly 1: a fresh gate is neutral,
    and in a table of adapters the rows of other gates have zeros.

    ``beside_a`` names a matrix (r, d_in) that sees the input, if there is one: in a batch it is multiplied in one product with A.
    """

    name: str
    parameters: Mapping[str, tuple[str | int, ...]] = field(default_factory=dict)
    multiplies: str = ""
    sees: str = ""
    factor: Formula = _neutral
    beside_a: str = ""

    def __post_init__(self) -> None:
        wrong = [name for name in self.parameters if not name.startswith("gate_")]
        if wrong:
            raise ConfigError(f"gate {self.name!r} has a parameter {wrong[0]!r}: names begin with 'gate_'")
        if self.beside_a and (self.parameters[self.beside_a], self.sees) != ((RANK, D_IN), INPUT):
            raise ConfigError(f"gate {self.name!r}: beside A only a matrix (r, d_in) that sees the input can lie")

    @property
    def mergeable(self) -> bool:
        """Whether the adapter's update is linear, so that it can be merged into the frozen weight."""
        return not self.sees

    @property
    def ranked(self) -> bool:
        """Whether a parameter has entries for each coordinate of the rank: devices of different ranks cannot average it."""
        return any(RANK in dimensions for dimensions in self.parameters.values())

    @cached_property
    def dimensions(self) -> dict[str, tuple[str | int, ...]]:
        """Dimensions of all tensors of an adapted map: A, B and the gate's parameters."""
        return {"A": (RANK, D_IN), "B": (D_OUT, RANK), **self.parameters}

    def shapes(self, d_in: int, d_out: int, r: int) -> dict[str, tuple[int, ...]]:
        """Shapes of A, B and the gate's parameters for a map of ``d_out x d_in`` and rank ``r``."""
        sizes = {D_IN: d_in, D_OUT: d_out, RANK: r}
        return {
            name: tuple(d if isinstance(d, int) else sizes[d] for d in dimensions)
            for name, dimensions in self.dimensions.items()
        }

    def merged(self, a: Tensor, b: Tensor, parameters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """A and B of one adapter with the factor of a :attr:`mergeable` gate multiplied in."""
        if not self.multiplies:
            return a, b
        factor = self.factor(a, parameters, _no_linear)
        if self.multiplies == INPUT:
            return a * factor, b
        return a, b * (factor if self.multiplies == COORDINATES else factor[..., None])


class AdapterPath(ABC):
    """One pass of ``x`` (..., d_in) along the adapter path with the gates of its rows; ``frozen`` (..., d_out) is W0 x."""

    def __init__(self, gates: Sequence[Gate], x: Tensor, frozen: Tensor) -> None:
        self.gates = gates
        self.seen = {INPUT: x, FROZEN: frozen}  # values by place, as they become known

    @abstractmethod
    def down(self, u: Tensor) -> Tensor:
        """A u (..., r)."""

    @abstractmethod
    def times(self, gate: Gate, source: Tensor, value: Tensor) -> Tensor:
        """``value`` times the gate's factor in the rows that have the gate; ``source`` is what the gate sees."""

    def touches(self, place: str) -> bool:
        """Whether a gate multiplies the value at a place."""
        return any(gate.multiplies == place for gate in self.gates)

    def sees(self, place: str) -> bool:
        """Whether a gate's factor depends on the value at a place."""
        return any(gate.sees == place for gate in self.gates)

    def gated(self, place: str, value: Tensor) -> Tensor:
        """The value at a place after the gates that multiply it."""
        for gate in self.gates:
            if gate.multiplies == place:
                value = self.times(gate, self.seen[gate.sees] if gate.sees else value, value)
        return value

    def coordinates(self) -> Tensor:
        """v (..., r): z = A u with the gated input u, gated."""
        self.seen[COORDINATES] = self.down(self.gated(INPUT, self.seen[INPUT]))
        return self.gated(COORDINATES, self.seen[COORDINATES])
