"""Bottleneck adapters in series (Houlsby et al. 2019, arXiv 1902.00751, figure 2): two thin linear maps behind a sublayer.

    y' = y + U gelu(D y + d) + u      D: m x d (kaiming-uniform), U: d x m (zero), for a width m and a sublayer's output y

They sit behind the output map of the attention or feed-forward block at each of the ``sites``, before the residual connection. U
starts at zero where the paper has a small normal initialisation, so that a fresh adapter changes nothing at all. Layer norms
stay frozen here; in the paper they are trained too.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fl.adapters.layer import initial_a
from fl.adapters.state import Shapes
from fl.core.errors import ConfigError
from fl.methods.base import Adaptation, Attached, Recipe
from fl.methods.targets import head_shapes, own_heads, targeted

OUTPUTS = ("out_proj", "fc2", "output_dense", "output.dense", "o_proj")  # last linear maps of their sublayers


class BottleneckLinear(nn.Module):
    """The frozen last linear map of a sublayer, with a bottleneck behind it."""

    def __init__(self, base_layer: nn.Linear, width: int, seed: int, module_name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        device, size = base_layer.weight.device, base_layer.out_features
        self.bottleneck_down = nn.Parameter(initial_a(width, size, seed, module_name).to(device))
        self.bottleneck_down_bias = nn.Parameter(torch.zeros(width, device=device))
        self.bottleneck_up = nn.Parameter(torch.zeros(size, width, device=device))
        self.bottleneck_up_bias = nn.Parameter(torch.zeros(size, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (..., d_in) to (..., d_out)."""
        frozen: Tensor = self.base_layer(x)
        narrow = functional.gelu(functional.linear(frozen.float(), self.bottleneck_down, self.bottleneck_down_bias))
        return frozen + functional.linear(narrow, self.bottleneck_up, self.bottleneck_up_bias).to(frozen.dtype)


def _outputs(model: nn.Module, recipe: Recipe) -> list[tuple[str, nn.Linear]]:
    endings = tuple(f".{name}" for name in OUTPUTS)
    found = [(name, linear) for name, linear in targeted(model, recipe.targets) if f".{name}".endswith(endings)]
    if not found:
        raise ConfigError(
            f"method = {recipe.method!r} finds no output map of a sublayer among target_modules {recipe.targets!r} "
            f"(known: {', '.join(OUTPUTS)}): check sites, or choose method = 'lora'"
        )
    return found


def _attach(model: nn.Module, recipe: Recipe) -> Attached:
    for name, linear in _outputs(model, recipe):
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, BottleneckLinear(linear, recipe.size, recipe.seed, name))
    parameters = own_heads(model, recipe)
    parameters |= {n: p for n, p in model.named_parameters() if n.rpartition(".")[2].startswith("bottleneck_")}
    return Attached.of(model, parameters)


def _shapes(model: nn.Module, recipe: Recipe) -> Shapes:
    shapes = head_shapes(model, recipe)
    for name, linear in _outputs(model, recipe):
        size, width = linear.out_features, recipe.size
        shapes[f"{name}.bottleneck_down"] = (width, size)
        shapes[f"{name}.bottleneck_down_bias"] = (width,)
        shapes[f"{name}.bottleneck_up"] = (size, width)
        shapes[f"{name}.bottleneck_up_bias"] = (size,)
    return shapes


def _largest(model: nn.Module, recipe: Recipe) -> tuple[int, str]:
    return min((linear.out_features, name) for name, linear in _outputs(model, recipe))


BOTTLENECK = Adaptation(_attach, _shapes, _largest)
