"""LoRA and its gated relatives (:mod:`fl.adapters`).

``lora`` is ``gated-lora`` with the gate none, ``scalar-gate`` is ``gated-lora`` with the gate scalar.
"""

from __future__ import annotations

from peft import get_peft_model
from torch import nn

from fl.adapters.config import GatedLoraConfig
from fl.adapters.layer import gate_shapes
from fl.adapters.stacked import tensor_name
from fl.adapters.state import Shapes, adapter_parameters
from fl.methods.base import Attached, Method, Recipe, smallest_side, targeted

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
        d_in, d_out, rank = linear.in_features, linear.out_features, recipe.size
        own = {"A": (rank, d_in), "B": (d_out, rank), **gate_shapes(recipe.gate, d_in, d_out, rank)}
        shapes.update({tensor_name(name, what): shape for what, shape in own.items()})
    return dict(sorted(shapes.items()))


LOW_RANK = Method(_attach, _shapes, smallest_side)
