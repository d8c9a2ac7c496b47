"""DoRA as PEFT ships it, for comparison: LoRA on the direction of each weight row, and a trained magnitude.

    y = m * (W0 + s B A) x / ||W0 + s B A||      row by row; m starts at ||W0||, B at zero

Source: Liu et al. 2024, arXiv 2402.09353, equation 5 (PEFT treats the norm as a constant in the gradient, section 4.3).
"""

from __future__ import annotations

import re

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from fl.adapters.layer import initial_a
from fl.adapters.state import PEFT_PREFIX, Shapes
from fl.methods.base import Adaptation, Attached, Recipe
from fl.methods.targets import smallest_side, targeted

SLOT = "dora-method"  # hyphenated, since names like "decoder" collide with modules
_PARTS = re.compile(rf"\.{SLOT}(?=\.|$)")


def _attach(model: nn.Module, recipe: Recipe) -> Attached:
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
    return Attached(adapted, dict(sorted(parameters.items())))


def _shapes(model: nn.Module, recipe: Recipe) -> Shapes:
    shapes: Shapes = {}
    for name, linear in targeted(model, recipe.targets):
        shapes[f"{PEFT_PREFIX}{name}.lora_A.weight"] = (recipe.size, linear.in_features)
        shapes[f"{PEFT_PREFIX}{name}.lora_B.weight"] = (linear.out_features, recipe.size)
        shapes[f"{PEFT_PREFIX}{name}.lora_magnitude_vector.weight"] = (linear.out_features,)
    return dict(sorted(shapes.items()))


DORA = Adaptation(_attach, _shapes, smallest_side)
