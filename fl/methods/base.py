"""What a method of adaptation is: which tensors of a frozen model are trained, and how they change what it computes.

Loads without torch: what a method can do is asked where settings are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pkgutil import resolve_name
from typing import TYPE_CHECKING, NoReturn

from fl.adapters.gates.table import NONE
from fl.core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fl.adapters.state import Shapes, State

Targets = str | list[str]


@dataclass(frozen=True)
class Recipe:
    """What decides a method's tensors, beside the base.

    ``size`` is the rank, the width of a bottleneck or the length of a prefix; ``targets`` are linear maps as PEFT's
    ``target_modules`` name them; everything random is a function of ``seed`` and a tensor's name.
    """

    method: str
    size: int
    alpha: float
    gate: str
    targets: Targets
    seed: int
    prefix_gate: bool = True


@dataclass(frozen=True)
class Attached:
    """A model with a method on it. ``parameters`` are the live trained tensors by name, sorted; nothing else is trained."""

    model: nn.Module
    parameters: dict[str, nn.Parameter]

    @classmethod
    def of(cls, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Attached:
        """``model``, which dropout leaves alone, with ``parameters`` in any order."""
        return cls(model.eval(), dict(sorted(parameters.items())))

    def state(self) -> State:
        """A copy of the trained tensors on the CPU."""
        return {name: p.detach().to("cpu", copy=True) for name, p in self.parameters.items()}

    def shapes(self) -> Shapes:
        """Shape of each trained tensor."""
        return {name: tuple(p.shape) for name, p in self.parameters.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy ``tensors`` in; names that are not given keep their values. Checked as :func:`fl.adapters.state.load_state` does."""
        from fl.adapters.state import copy_state  # torch

        copy_state(tensors, self.parameters)


def _no_size(model: nn.Module, recipe: Recipe) -> NoReturn:
    raise ConfigError(f"method = {recipe.method!r} has no size to choose: its tensors are those of the base")


@dataclass(frozen=True)
class Adaptation:
    """The code of a method, which needs torch.

    ``attach(model, recipe)`` changes ``model``, whose tensors stay frozen. For a method with a size, ``shapes(model, recipe)`` says
    what it would train without touching ``model``, and ``largest(model, recipe)`` the largest size that fits and the
    name of the module that bounds it. ``fresh(model, recipe)`` gives the fresh tensors without touching the model, where that can be done.
    """

    attach: Callable[[nn.Module, Recipe], Attached]
    shapes: Callable[[nn.Module, Recipe], Shapes] = _no_size
    largest: Callable[[nn.Module, Recipe], tuple[int, str]] = _no_size
    fresh: Callable[[nn.Module, Recipe], State] | None = None


@dataclass(frozen=True)
class Method:
    """A method of adaptation: what it can do, and where its code is (``module:NAME`` of an :class:`Adaptation`).

    ``low_rank``: what it trains are pairs A, B with a gate (:mod:`fl.adapters`), so it can be split by factor, trained in cohorts,
    packed, served and given to devices of different ranks. ``sized``: it has a rank, width or length to choose; what others train
    are tensors of the base itself. ``whole``: it trains all of the base. ``own_gate`` is the gate of its adapters; None takes
    the one that is set.
    """

    name: str
    code: str
    low_rank: bool = False
    sized: bool = True
    whole: bool = False
    own_gate: str | None = NONE.name

    def gate(self, chosen: str) -> str:
        """The gate of the method's adapters in an arm with gates, where ``chosen`` is set."""
        return chosen if self.own_gate is None else self.own_gate

    @cached_property
    def adaptation(self) -> Adaptation:
        """The code, loaded when it is first needed."""
        found: Adaptation = resolve_name(self.code)
        return found

    def count(self, model: nn.Module, recipe: Recipe) -> int:
        """Trained parameters, of a method with a size."""
        return sum(math.prod(shape) for shape in self.adaptation.shapes(model, recipe).values())

    def require_fit(self, model: nn.Module, recipe: Recipe) -> None:
        """Raise :class:`ConfigError` for a size that is larger than a layer, with the layer's name."""
        if not self.sized:
            return
        limit, module = self.adaptation.largest(model, recipe)
        if recipe.size > limit:
            raise ConfigError(
                f"rank = {recipe.size} is larger than {module} allows for method = {recipe.method!r}: at most {limit}"
            )
