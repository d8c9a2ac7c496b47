"""Gated LoRA: the gates, the PEFT tuner, the shared/private split, and adapters in memory, in batches and on disk.

Knows linear maps, tensors and their names; not speech, rounds or messages. The package itself loads neither torch nor PEFT: a name
below is taken out of its module when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fl.adapters.config import GatedLoraConfig, target_pattern
    from fl.adapters.files import AdapterInfo, load_adapter, save_adapter
    from fl.adapters.gates import GATES, Gate
    from fl.adapters.model import export_lora, gated_layers, neutral_gates
    from fl.adapters.split import PRESETS, Split, make_split
    from fl.adapters.state import adapter_shapes, adapter_state, load_state

_MODULES = {
    "config": ("GatedLoraConfig", "target_pattern"),
    "files": ("AdapterInfo", "load_adapter", "save_adapter"),
    "gates": ("GATES", "Gate"),
    "model": ("export_lora", "gated_layers", "neutral_gates"),
    "split": ("PRESETS", "Split", "make_split"),
    "state": ("adapter_shapes", "adapter_state", "load_state"),
}

__all__ = [
    "GATES",
    "PRESETS",
    "AdapterInfo",
    "Gate",
    "GatedLoraConfig",
    "Split",
    "adapter_shapes",
    "adapter_state",
    "export_lora",
    "gated_layers",
    "load_adapter",
    "load_state",
    "make_split",
    "neutral_gates",
    "save_adapter",
    "target_pattern",
]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
