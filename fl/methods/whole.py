"""Methods that train the base's own tensors: all of them, from the pretrained or from random values, or the biases alone.

A trained tensor is a copy in the model's own memory; the base's, which all processes of a machine share, is untouched. BitFit is
Ben Zaken et al. 2022, arXiv 2106.10199: every bias, those of layer norms included.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fl.core.errors import ConfigError
from fl.core.rng import derive_seed
from fl.methods.base import Adaptation, Attached, Recipe
from fl.methods.targets import head_shapes, own_parameter, places

FIXED = ("encoder.embed_positions.weight",)  # Whisper's sinusoids are no weights: they are never trained, nor drawn


def _trained(model: nn.Module, chosen: Callable[[str], bool]) -> Attached:
    """Puts trained copies of the chosen parameters in their places; one that is tied stays tied and has its first name."""
    model.requires_grad_(False)
    made: dict[int, nn.Parameter] = {}
    parameters: dict[str, nn.Parameter] = {}
    for name, module, own_name, parameter in list(places(model)):
        if id(parameter) in made:
            module._parameters[own_name] = made[id(parameter)]
        elif chosen(name):
            parameters[name] = made[id(parameter)] = own_parameter(module, own_name, parameter.data)
    return Attached.of(model, parameters)


def _attach_full(model: nn.Module, recipe: Recipe) -> Attached:
    return _trained(model, lambda name: not name.endswith(FIXED))


def _attach_biases(model: nn.Module, recipe: Recipe) -> Attached:
    classifiers = head_shapes(model, recipe)
    return _trained(model, lambda name: name.endswith(".bias") or name in classifiers)


def _attach_scratch(model: nn.Module, recipe: Recipe) -> Attached:
    drawn = _drawn(model, recipe)
    attached = _attach_full(model, recipe)
    attached.load({name: values for name, values in drawn.items() if name in attached.parameters})
    return attached


def _drawn(model: nn.Module, recipe: Recipe) -> dict[str, Tensor]:
    """Weights as the architecture draws them before pretraining, a function of the seed alone.

    A task's own classifier on the base is random already and stays as it is. Raises :class:`ConfigError` for what is no
    transformers model.
    """
    found = [(path, module) for path, module in model.named_modules() if isinstance(module, PreTrainedModel)]
    if not found:
        raise ConfigError(
            f"method = {recipe.method!r} draws the weights of a transformers model, and this base is {type(model).__name__}: "
            "choose another method"
        )
    path, outermost = found[0]  # parents come before what they hold
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(recipe.seed, "scratch"))
        twin = type(outermost)(copy.deepcopy(outermost.config))
    return {f"{path}.{name}" if path else name: p.data for name, p in twin.named_parameters()}


FULL = Adaptation(_attach_full)
BITFIT = Adaptation(_attach_biases)
SCRATCH = Adaptation(_attach_scratch)
