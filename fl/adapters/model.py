"""Gated LoRA as a PEFT tuner: inject, neutralize, merge and export."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from peft import LoraConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from fl.adapters.config import ATTENTION_TARGETS, PREFIX, GatedLoraConfig, GatedLoraType
from fl.adapters.layer import GatedLoraLinear
from fl.core.errors import AdapterError


class GatedLoraModel(BaseTuner):
    """Replaces the targeted linear maps of a model by :class:`GatedLoraLinear`; PEFT does the rest."""

    prefix = PREFIX
    tuner_layer_cls = GatedLoraLinear
    target_module_mapping: ClassVar[dict[str, list[str]]] = {
        "whisper": list(ATTENTION_TARGETS),
        "wav2vec2": list(ATTENTION_TARGETS),
        "bert": ["query", "key", "value", "dense"],
        "vit": ["query", "key", "value"],
    }

    def _create_and_replace(
        self,
        config: GatedLoraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        if isinstance(target, GatedLoraLinear):
            target.update_layer(adapter_name, config)
            return
        layer = GatedLoraLinear(target, adapter_name, config, current_key)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # a second adapter is inert until it is set active
        self._replace_module(parent, target_name, layer, target)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = True,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        if merge:
            self._require_mergeable(adapter_names)
        model: nn.Module = super()._unload_and_optionally_merge(
            merge=merge, progressbar=progressbar, safe_merge=safe_merge, adapter_names=adapter_names
        )
        return model

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge in place; a gated adapter is refused before any layer changes."""
        self._require_mergeable(adapter_names)
        super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)

    def _require_mergeable(self, adapter_names: list[str] | None) -> None:
        """Ask every layer before any layer is touched, so that a refusal leaves the model as it was."""
        for layer in gated_layers(self.model):
            for name in adapter_names or layer.active_adapters:
                layer.require_mergeable(name)


PEFT_TYPE_TO_TUNER_MAPPING[GatedLoraType.GATED_LORA] = GatedLoraModel


def gated_layers(model: nn.Module) -> list[GatedLoraLinear]:
    """All Gated LoRA layers of a model, in module order."""
    return [module for module in model.modules() if isinstance(module, GatedLoraLinear)]


@contextmanager
def neutral_gates(model: nn.Module) -> Iterator[None]:
    """Run with every gate at its neutral value: the adapter is then its shared part alone, as a new person has it.

    Equal, bit for bit, to gate parameters of zero. Gate parameters get no gradient inside. Restored on exceptions too.
    """
    layers = gated_layers(model)
    before = [layer.gates_neutral for layer in layers]
    try:
        for layer in layers:
            layer.gates_neutral = True
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.gates_neutral = value


def export_lora(model: PeftModel, adapter_name: str = "default") -> tuple[LoraConfig, dict[str, Any]]:
    """An adapter whose gates see no input as an ordinary PEFT LoRA: its configuration and its tensors, named as PEFT names them.

    Returns ``(config, state)``: ``get_peft_model(base, config)`` then ``set_peft_model_state_dict(model, state)`` computes
    the same function; the gate is multiplied in. Raises :class:`AdapterError` for gates that depend on the input, and for an
    adapter that sits nowhere.
    """
    config = model.peft_config[adapter_name]
    layers = [
        (name, module)
        for name, module in model.base_model.model.named_modules()
        if isinstance(module, GatedLoraLinear) and adapter_name in module.gated_lora_A
    ]
    if not layers:
        raise AdapterError(f"adapter {adapter_name!r} has no layers in this model: check its name")
    state: dict[str, Any] = {}
    for name, layer in layers:
        for factor, tensor in zip("AB", layer.merged_pair(adapter_name), strict=True):
            state[f"base_model.model.{name}.lora_{factor}.weight"] = tensor.detach().clone()
    lora = LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        target_modules=[name for name, _ in layers],
        lora_dropout=0.0,
        bias="none",
        base_model_name_or_path=config.base_model_name_or_path,
    )
    return lora, state
