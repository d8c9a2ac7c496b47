"""LoRA and its gated relatives (:mod:`fl.adapters`): one method, whose rows in the table differ by the gate."""

from __future__ import annotations

from peft import get_peft_model
from torch import nn

from fl.adapters.config import GatedLoraConfig
from fl.adapters.gates.table import GATES
from fl.adapters.layer import fresh_adapter
from fl.adapters.state import Shapes, State, adapter_parameters, tensor_name
from fl.methods.base import Adaptation, Attached, Recipe
from fl.methods.targets import smallest_side, targeted

SLOT = "gated-method"


def peft_config(recipe: Recipe) -> GatedLoraConfig:
    """The recipe as PEFT's configuration."""
    return GatedLoraConfig(
        r=recipe.size,
        lora_alpha=recipe.alpha,
        gate=recipe.gate,
        target_modules=recipe.targets,
        init_seed=recipe.seed,
    )


def _attach(model: nn.Module, recipe: Recipe) -> Attached:
    adapted = get_peft_model(model, peft_config(recipe), adapter_name=SLOT).eval()
    return Attached(adapted, adapter_parameters(adapted, SLOT))


def _shapes(model: nn.Module, recipe: Recipe) -> Shapes:
    shapes: Shapes = {}
    for name, linear in targeted(model, recipe.targets):
        own = GATES[recipe.gate].shapes(linear.in_features, linear.out_features, recipe.size)
        shapes.update({tensor_name(name, what): shape for what, shape in own.items()})
    return dict(sorted(shapes.items()))


def _fresh(model: nn.Module, recipe: Recipe) -> State:
    return fresh_adapter(model, peft_config(recipe))


LOW_RANK = Adaptation(_attach, _shapes, smallest_side, _fresh)
