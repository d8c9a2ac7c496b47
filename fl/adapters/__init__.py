"""Gated LoRA: the tuner, the shared/private split, and adapters in memory and on disk."""

from fl.adapters.config import SITES, GatedLoraConfig, target_pattern
from fl.adapters.files import AdapterInfo, load_adapter, save_adapter
from fl.adapters.model import GatedLoraModel, export_lora, gated_layers, neutral_gates
from fl.adapters.split import PRESETS, Split, make_split
from fl.adapters.state import adapter_shapes, adapter_state, load_state
from fl.settings.names import GATES

__all__ = [
    "GATES",
    "PRESETS",
    "SITES",
    "AdapterInfo",
    "GatedLoraConfig",
    "GatedLoraModel",
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
