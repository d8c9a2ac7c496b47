"""One frozen linear map with Gated LoRA adapters on it; :mod:`fl.adapters.gates` has the formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from torch.nn import functional

from fl.adapters.config import PREFIX, GatedLoraConfig
from fl.adapters.gates.base import OUTPUT, AdapterPath, Gate
from fl.adapters.gates.table import GATES, NONE
from fl.adapters.state import State, tensor_name
from fl.core.errors import AdapterError, ConfigError
from fl.core.rng import derive_seed


def initial_a(r: int, d_in: int, seed: int | None, module_name: str) -> Tensor:
    """A (r x d_in), kaiming-uniform with a = sqrt(5) as in LoRA, that is U(-1/sqrt(d_in), 1/sqrt(d_in)).

    A function of ``seed`` and ``module_name``; without a seed it comes from torch's global generator.
    """
    weight = torch.empty(r, d_in)
    if weight.is_meta or seed is None:
        return weight.uniform_(-1.0, 1.0) / math.sqrt(d_in)
    generator = torch.Generator().manual_seed(derive_seed(seed, "gated-lora-A", module_name))
    return weight.uniform_(-1.0, 1.0, generator=generator) / math.sqrt(d_in)


def fresh_tensors(gate: Gate, linear: nn.Linear, r: int, seed: int | None, module_name: str) -> dict[str, Tensor]:
    """The tensors of a fresh adapter of rank ``r`` on one map: A as :func:`initial_a` draws it, B and the gate zero.

    Raises :class:`ConfigError` if the pair would not be low-rank for the map.
    """
    d_in, d_out = linear.in_features, linear.out_features
    if r > min(d_in, d_out):
        raise ConfigError(
            f"rank {r} is larger than {module_name} ({d_out} x {d_in}): give a rank of at most {min(d_in, d_out)}"
        )
    zeros = {what: torch.zeros(shape) for what, shape in gate.shapes(d_in, d_out, r).items() if what != "A"}
    return {"A": initial_a(r, d_in, seed, module_name), **zeros}


def fresh_adapter(model: nn.Module, config: GatedLoraConfig) -> State:
    """The tensors that injecting ``config`` into ``model`` would create, by the names of ``peft.get_peft_model_state_dict``.

    A is decided by ``config.init_seed`` and the module's name, so every node and the aggregator start from the same values.
    Raises :class:`ConfigError` if nothing is targeted or the rank is too large for a target.
    """
    state: State = {}
    for name, linear in config.targeted(model):
        tensors = fresh_tensors(GATES[config.gate], linear, config.r, config.init_seed, name)
        state.update({tensor_name(name, what): tensor for what, tensor in tensors.items()})
    return dict(sorted(state.items()))


class GatedLoraLinear(nn.Module, BaseTunerLayer):
    """A frozen ``nn.Linear`` and any number of named Gated LoRA adapters, of which one (or several, summed) is active.

    Adapters are float32, and take part in the type of the activations.
    """

    adapter_layer_names: tuple[str, ...] = ("gated_lora_A", "gated_lora_B")  # and parameters of the gates that it gets
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
        self.gate: dict[str, Gate] = {}
        self.gated_lora_A = nn.ParameterDict()
        self.gated_lora_B = nn.ParameterDict()
        self.gates_neutral = False
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: GatedLoraConfig, **_: Any) -> None:
        """Add the adapter ``adapter_name``, freshly initialised: B = 0 and the gate neutral."""
        gate = GATES[config.gate]
        fresh = fresh_tensors(gate, self.get_base_layer(), config.r, config.init_seed, self.module_name)
        self.r[adapter_name], self.scaling[adapter_name], self.gate[adapter_name] = config.r, config.scaling, gate
        for what, tensor in fresh.items():
            name = PREFIX + what
            if name not in self.adapter_layer_names:
                self.adapter_layer_names = (*self.adapter_layer_names, name)
                setattr(self, name, nn.ParameterDict())
            getattr(self, name)[adapter_name] = nn.Parameter(tensor)
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
                result = result + self._update(name, x, frozen)
        return result

    def _update(self, name: str, x: Tensor, frozen: Tensor) -> Tensor:
        """The scaled low-rank update s B v of one adapter, (..., d_out)."""
        path = _LayerPath(self, name, x, frozen)
        # Scaled where it is small: the same product (exactly, for a power of two) with one pass less over (..., d_out).
        v = path.coordinates() * self.scaling[name]
        return path.gated(OUTPUT, functional.linear(v, self.gated_lora_B[name].to(v.dtype)))

    def gate_parameters(self, name: str) -> dict[str, Tensor]:
        """The parameters of an adapter's gate."""
        return {what: getattr(self, PREFIX + what)[name] for what in self.gate[name].parameters}

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """s B A (d_out x d_in) with the gate multiplied in. Raises :class:`AdapterError` where the update depends on the input."""
        a, b = self.merged_pair(adapter_name)
        return b @ a * self.scaling[adapter_name]

    def merged_pair(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """A (r x d_in) and B (d_out x r) of an adapter whose update is linear, with its gate multiplied in."""
        self.require_mergeable(adapter_name)
        gate, a, b = self.gate[adapter_name], self.gated_lora_A[adapter_name], self.gated_lora_B[adapter_name]
        return gate.merged(a, b, self.gate_parameters(adapter_name))

    def require_mergeable(self, adapter_name: str) -> None:
        """Raise :class:`AdapterError` if the adapter's gates depend on the input."""
        gate = self.gate.get(adapter_name, NONE)
        if not gate.mergeable:
            raise AdapterError(
                f"adapter {adapter_name!r} has {gate.name!r} gates, which depend on the input and cannot be merged into a weight: "
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
        return self.gate.get(adapter_name, NONE).mergeable


class _LayerPath(AdapterPath):
    """The path of one adapter of one layer."""

    def __init__(self, layer: GatedLoraLinear, name: str, x: Tensor, frozen: Tensor) -> None:
        super().__init__(() if layer.gates_neutral else (layer.gate[name],), x, frozen)
        self.layer, self.name = layer, name

    def down(self, u: Tensor) -> Tensor:
        return functional.linear(u, self.layer.gated_lora_A[self.name].to(u.dtype))

    def times(self, gate: Gate, source: Tensor, value: Tensor) -> Tensor:
        parameters = {what: p.to(value.dtype) for what, p in self.layer.gate_parameters(self.name).items()}
        return value * gate.factor(source, parameters, functional.linear)
