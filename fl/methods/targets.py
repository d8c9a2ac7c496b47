"""Where a method sits: the maps that a recipe targets, a task's classifiers, and parameters in the places of a model's own."""

from collections.abc import Iterator

from torch import Tensor, nn

from fl.adapters.config import GatedLoraConfig
from fl.adapters.state import Shapes
from fl.methods.base import Recipe, Targets


def targeted(model: nn.Module, targets: Targets) -> list[tuple[str, nn.Linear]]:
    """The linear maps that ``targets`` select, by name. Raises :class:`fl.core.errors.ConfigError` if there is none."""
    return GatedLoraConfig(target_modules=targets).targeted(model)


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
