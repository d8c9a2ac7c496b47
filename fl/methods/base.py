"""What a method of adaptation is: which tensors of a frozen model are trained, and how they change what it computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn

from fl.adapters.config import GatedLoraConfig
from fl.adapters.state import Shapes, State, copy_state
from fl.core.errors import ConfigError

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

    def state(self) -> State:
        """A copy of the trained tensors on the CPU."""
        return {name: p.detach().to("cpu", copy=True) for name, p in self.parameters.items()}

    def shapes(self) -> Shapes:
        """Shape of each trained tensor."""
        return {name: tuple(p.shape) for name, p in self.parameters.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy ``tensors`` in; names that are not given keep their values. Checked as :func:`fl.adapters.load_state` does."""
        copy_state(tensors, self.parameters)


@dataclass(frozen=True)
class Method:
    """One row of the table of methods.

    ``attach(model, recipe)`` changes ``model``, whose tensors stay frozen, and ``shapes(model, recipe)`` says what it would train
    without touching it. ``largest(model, recipe)`` is the largest size that fits and the name of the module that bounds it, None
    for a method without a size.
    """

    attach: Callable[[nn.Module, Recipe], Attached]
    shapes: Callable[[nn.Module, Recipe], Shapes]
    largest: Callable[[nn.Module, Recipe], tuple[int, str]] | None = None

    def count(self, model: nn.Module, recipe: Recipe) -> int:
        """Trained parameters."""
        return sum(math.prod(shape) for shape in self.shapes(model, recipe).values())

    def require_fit(self, model: nn.Module, recipe: Recipe) -> None:
        """Raise :class:`ConfigError` for a size that is larger than a layer, with the layer's name."""
        if self.largest is None:
            return
        limit, module = self.largest(model, recipe)
        if recipe.size > limit:
            raise ConfigError(
                f"rank = {recipe.size} is larger than {module} allows for method = {recipe.method!r}: at most {limit}"
            )


WRAPPED = ".base_layer"  # what PEFT adds to the name of a map that it wraps


def targeted(model: nn.Module, targets: Targets) -> list[tuple[str, nn.Linear]]:
    """The linear maps that ``targets`` select, by name. Raises :class:`ConfigError` if there is none.

    A map that carries an adapter of PEFT already, which wraps it, is found by the name that it had without.
    """
    config = GatedLoraConfig(target_modules=targets)
    linear = [
        (name.removesuffix(WRAPPED), module) for name, module in model.named_modules() if isinstance(module, nn.Linear)
    ]
    found = [(name, module) for name, module in linear if name and check_target_module_exists(config, name)]
    if not found:
        raise ConfigError(f"target_modules {targets!r} matches no linear map of this base: check sites")
    return found


def smallest_side(model: nn.Module, recipe: Recipe) -> tuple[int, str]:
    """The rank that no targeted map exceeds, and the name of the map that bounds it."""
    return min((min(linear.in_features, linear.out_features), name) for name, linear in targeted(model, recipe.targets))


HEAD = "head"  # a task's own classifier on the base


def heads(model: nn.Module, recipe: Recipe) -> list[tuple[str, nn.Linear]]:
    """The targeted classifiers: a task puts a random one on the base, so a method that has nothing there trains it as it is."""
    return [(name, linear) for name, linear in targeted(model, recipe.targets) if name.rpartition(".")[2] == HEAD]


def head_shapes(model: nn.Module, recipe: Recipe) -> Shapes:
    """Shapes of the parameters of :func:`heads`."""
    return {
        f"{name}.{n}": tuple(p.shape) for name, linear in heads(model, recipe) for n, p in linear.named_parameters()
    }


def own_heads(model: nn.Module, recipe: Recipe) -> dict[str, nn.Parameter]:
    """Trained copies of the parameters of :func:`heads`, in their places."""
    return {
        f"{name}.{n}": own_parameter(linear, n, p.data)
        for name, linear in heads(model, recipe)
        for n, p in list(linear.named_parameters())
    }


def own_parameter(module: nn.Module, name: str, values: Tensor) -> nn.Parameter:
    """A trained copy of ``values`` in the place of a module's parameter ``name``: the frozen tensor is untouched."""
    parameter = nn.Parameter(values.detach().clone())
    module._parameters[name] = parameter  # a parametrized module refuses setattr
    return parameter


def places(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """``(full name, module, name in it, parameter)`` of every parameter, one that is tied at each of its places."""
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield (f"{path}.{name}" if path else name), module, name, parameter
