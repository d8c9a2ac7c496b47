"""LoRA, its gated relatives (:mod:`fl.adapters`), which differ by the gate, and DoRA: what PEFT puts on a model.

DoRA is PEFT's own, for comparison: LoRA on the direction of each weight row, and a trained magnitude.

    y = m * (W0 + s B A) x / ||W0 + s B A||      row by row; m starts at ||W0||, B at zero

Source: Liu et al. 2024, arXiv 2402.09353, equation 5 (PEFT treats the norm as a constant in the gradient, section 4.3).
"""

import re

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from fl.adapters.config import GatedLoraConfig
from fl.adapters.gates.table import GATES
from fl.adapters.layer import fresh_adapter, initial_a
from fl.adapters.state import PEFT_PREFIX, Shapes, State, adapter_parameters, tensor_name
from fl.methods.base import Adaptation, Attached, Recipe
from fl.methods.targets import smallest_side, targeted

SLOT = "adapted-method"  # hyphenated, since names like "decoder" collide with modules
_PARTS = re.compile(rf"\.{SLOT}(?=\.|$)")


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
    return shapes


def _fresh(model: nn.Module, recipe: Recipe) -> State:
    return fresh_adapter(model, peft_config(recipe))


def _attach_dora(model: nn.Module, recipe: Recipe) -> Attached:
    config = LoraConfig(
        r=recipe.size, lora_alpha=recipe.alpha, target_modules=recipe.targets, lora_dropout=0.0, use_dora=True
    )
    adapted = get_peft_model(model, config, adapter_name=SLOT).eval()
    parameters = {
        _PARTS.sub("", name): p for name, p in adapted.named_parameters() if _PARTS.search(name) and ".lora_" in name
    }
    with torch.no_grad():  # PEFT draws A from the global generator
        for name, parameter in parameters.items():
            if name.endswith(".lora_A.weight"):
                module = name.removeprefix(PEFT_PREFIX).removesuffix(".lora_A.weight")
                parameter.copy_(initial_a(recipe.size, parameter.shape[1], recipe.seed, module))
    return Attached.of(adapted, parameters)


def _shapes_dora(model: nn.Module, recipe: Recipe) -> Shapes:
    shapes: Shapes = {}
    for name, linear in targeted(model, recipe.targets):
        shapes[f"{PEFT_PREFIX}{name}.lora_A.weight"] = (recipe.size, linear.in_features)
        shapes[f"{PEFT_PREFIX}{name}.lora_B.weight"] = (linear.out_features, recipe.size)
        shapes[f"{PEFT_PREFIX}{name}.lora_magnitude_vector.weight"] = (linear.out_features,)
    return shapes


LORA = Adaptation(_attach, _shapes, smallest_side, _fresh)
DORA = Adaptation(_attach_dora, _shapes_dora, smallest_side)
