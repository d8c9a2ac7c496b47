r"""One frozen linear map with Gated LoRA adapters on it.

For a frozen map W0 (d_out x d_in), input x, rank r, scale s = alpha / r and sigma the logistic function::

    z = A u            A: r x d_in      (kaiming-uniform at the start)
    y = W0 x + s B v   B: d_out x r     (zero at the start)

    gate       u                         v                              gate parameters
    none       x                         z                              0
    hidden     x * 2 sigma(g * x + c)    z                              2 d_in
    low-rank   x                         z * 2 sigma(G z + c)           r^2 + r
    self       x                         z * 2 sigma(G x + c)           r d_in + r
    cross      x                         z * 2 sigma(G (W0 x) + c)      r d_out + r
    scalar     x                         z * 2 sigma(c)                 1

Gate parameters start at zero, and 2 sigma(0) is exactly 1, so a fresh gate is *neutral*: the layer equals LoRA (Hu et al.
2021, arXiv 2106.09685) bit for bit. Gating a LoRA of a speech recognizer is the idea of arXiv 2406.02562, whose equations
are not public text: the four gates with a G or g are our own readings of the four places that the paper names. ``scalar`` is a
known relative that looks at no input, one learned factor for each adapted map; it can be merged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from torch.nn import functional

from fl.adapters.config import GatedLoraConfig
from fl.core.errors import AdapterError, ConfigError
from fl.core.rng import derive_seed

INPUT_FREE = ("none", "scalar")  # gates that do not look at the input: the update is linear and can be merged


def gate_shapes(gate: str, d_in: int, d_out: int, r: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a gate's ``gate_weight`` and ``gate_bias``, as far as it has them, for a map of ``d_out x d_in`` and rank ``r``."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "none": {},
        "hidden": {"gate_weight": (d_in,), "gate_bias": (d_in,)},
        "low-rank": {"gate_weight": (r, r), "gate_bias": (r,)},
        "self": {"gate_weight": (r, d_in), "gate_bias": (r,)},
        "cross": {"gate_weight": (r, d_out), "gate_bias": (r,)},
        "scalar": {"gate_bias": (1,)},
    }
    return shapes[gate]


def check_rank(r: int, d_in: int, d_out: int, module_name: str) -> None:
    """Raise :class:`ConfigError` if a low-rank pair of rank ``r`` would not be low-rank for a map of ``d_out x d_in``."""
    if r > min(d_in, d_out):
        raise ConfigError(
            f"rank {r} is larger than {module_name} ({d_out} x {d_in}): give a rank of at most {min(d_in, d_out)}"
        )


def initial_a(r: int, d_in: int, seed: int | None, module_name: str) -> Tensor:
    """A (r x d_in), kaiming-uniform with a = sqrt(5) as in LoRA, that is U(-1/sqrt(d_in), 1/sqrt(d_in)).

    A function of ``seed`` and ``module_name``; without a seed it comes from torch's global generator.
    """
    weight = torch.empty(r, d_in)
    if weight.is_meta or seed is None:
        return weight.uniform_(-1.0, 1.0) / math.sqrt(d_in)
    generator = torch.Generator().manual_seed(derive_seed(seed, "gated-lora-A", module_name))
    return weight.uniform_(-1.0, 1.0, generator=generator) / math.sqrt(d_in)


class GatedLoraLinear(nn.Module, BaseTunerLayer):
    """A frozen ``nn.Linear`` and any number of named Gated LoRA adapters, of which one (or several, summed) is active."""

    adapter_layer_names = ("gated_lora_A", "gated_lora_B", "gated_lora_gate_weight", "gated_lora_gate_bias")
    other_param_names = ("r", "scaling", "gate")

    if TYPE_CHECKING:  # PEFT is untyped, and nn.Module types whatever it does not know as "Tensor | Module"
        active_adapters: list[str]
        merged: bool
        disable_adapters: bool
        get_base_layer: Callable[[], nn.Linear]
        set_adapter: Callable[..., None]
        _move_adapter_to_device_of_base_layer: Callable[[str], None]

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: GatedLoraConfig, module_name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        linear = self.get_base_layer()
        if not isinstance(linear, nn.Linear):
            raise AdapterError(
                f"Gated LoRA adapts nn.Linear, but {module_name} is {type(linear).__name__}: leave it out of target_modules"
            )
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.module_name = module_name
        self.r: dict[str, int] = {}
        self.scaling: dict[str, float] = {}
        self.gate: dict[str, str] = {}
        self.gated_lora_A = nn.ParameterDict()
        self.gated_lora_B = nn.ParameterDict()
        self.gated_lora_gate_weight = nn.ParameterDict()
        self.gated_lora_gate_bias = nn.ParameterDict()
        self.gates_neutral = False
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: GatedLoraConfig, **_: Any) -> None:
        """Add the adapter ``adapter_name``, freshly initialised: B = 0 and the gate neutral."""
        r = config.r
        check_rank(r, self.in_features, self.out_features, self.module_name)
        self.r[adapter_name] = r
        self.scaling[adapter_name] = config.scaling
        self.gate[adapter_name] = config.gate
        self.gated_lora_A[adapter_name] = nn.Parameter(
            initial_a(r, self.in_features, config.init_seed, self.module_name)
        )
        self.gated_lora_B[adapter_name] = nn.Parameter(torch.zeros(self.out_features, r))
        for what, shape in gate_shapes(config.gate, self.in_features, self.out_features, r).items():
            of_all = self.gated_lora_gate_weight if what == "gate_weight" else self.gated_lora_gate_bias
            of_all[adapter_name] = nn.Parameter(torch.zeros(shape))
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map ``x`` (..., d_in) to (..., d_out): the frozen path plus the active adapters."""
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            result: Tensor = self.base_layer(x, *args, **kwargs)
            return result
        result = self.base_layer(x, *args, **kwargs)
        if self.merged:
            return result
        frozen = result
        for name in self.active_adapters:
            if name in self.gated_lora_A:
                result = result + self._update(name, x.to(self.gated_lora_A[name].dtype), frozen)
        return result.to(frozen.dtype)

    def _update(self, name: str, x: Tensor, frozen: Tensor) -> Tensor:
        """The scaled low-rank update s B v of one adapter, (..., d_out)."""
        gate = "none" if self.gates_neutral else self.gate[name]
        u = x * self._factor(name, x) if gate == "hidden" else x
        z = functional.linear(u, self.gated_lora_A[name])
        if gate in ("low-rank", "scalar"):
            z = z * self._factor(name, z)
        elif gate == "self":
            z = z * self._factor(name, x)
        elif gate == "cross":
            z = z * self._factor(name, frozen.to(x.dtype))
        # Scaled where it is small: the same product (exactly, for a power of two) with one pass less over (..., d_out).
        return functional.linear(z * self.scaling[name], self.gated_lora_B[name])

    def _factor(self, name: str, source: Tensor) -> Tensor:
        """2 sigma(G source + c), in (0, 2); elementwise g * source + c where the gate's weight is a vector, c where it has none."""
        bias = self.gated_lora_gate_bias[name]
        if name not in self.gated_lora_gate_weight:
            return 2 * torch.sigmoid(bias)
        weight = self.gated_lora_gate_weight[name]
        logits = source * weight + bias if weight.dim() == 1 else functional.linear(source, weight, bias)
        return 2 * torch.sigmoid(logits)

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """s B A (d_out x d_in), times a scalar gate. Raises :class:`AdapterError` where the update depends on the input."""
        product: Tensor = self.gated_up(adapter_name) @ self.gated_lora_A[adapter_name]
        return product * self.scaling[adapter_name]

    def gated_up(self, adapter_name: str) -> Tensor:
        """B (d_out x r) of an adapter whose update is linear, with its scalar gate multiplied in."""
        self.require_mergeable(adapter_name)
        up: Tensor = self.gated_lora_B[adapter_name]
        return up * self._factor(adapter_name, up) if self.gate[adapter_name] == "scalar" else up

    def require_mergeable(self, adapter_name: str) -> None:
        """Raise :class:`AdapterError` if the adapter's gates depend on the input."""
        gate = self.gate.get(adapter_name, "none")
        if gate not in INPUT_FREE:
            raise AdapterError(
                f"adapter {adapter_name!r} has {gate!r} gates, which depend on the input and cannot be merged into a weight: "
                "keep it as an adapter, or set gate='none' to drop what the gates learned"
            )

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the ungated adapters' updates to the frozen weight, in place; refuses before anything is touched."""
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.gated_lora_A]
        deltas = [self.get_delta_weight(name) for name in names]
        weight = self.get_base_layer().weight
        for name, delta in zip(names, deltas, strict=True):
            if safe_merge and not torch.isfinite(delta).all():
                raise AdapterError(f"adapter {name!r} has non-finite values at {self.module_name}: it was not merged")
        for name, delta in zip(names, deltas, strict=True):
            weight.data += delta.to(weight.dtype)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Take merged updates back out of the frozen weight (up to rounding)."""
        weight = self.get_base_layer().weight
        while self.merged_adapters:
            weight.data -= self.get_delta_weight(self.merged_adapters.pop()).to(weight.dtype)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether PEFT may convert this adapter to ordinary LoRA: its update must be linear."""
        return self.gate.get(adapter_name, "none") in INPUT_FREE
