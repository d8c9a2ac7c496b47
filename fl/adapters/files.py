"""Adapters on disk: a folder that PEFT reads, with what PEFT does not check.

``adapter_config.json`` and ``adapter_model.safetensors`` are PEFT's own names, so ``PeftModel.from_pretrained`` works once
:mod:`fl.adapters.model` is imported. The safetensors metadata adds the schema version, the base fingerprint and the split.
Nothing is ever unpickled, and sizes are bounded before anything is read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fl.adapters.config import GatedLoraConfig
from fl.adapters.split import make_split
from fl.adapters.state import State, size_of
from fl.core.errors import AdapterError, AdapterMismatchError, ConfigError, IdiolectError, SplitError
from fl.core.files import write_together
from fl.core.tensorfile import tensor_bytes

SCHEMA = 1
CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
MAX_ADAPTER_BYTES = 512 * 2**20
MAX_CONFIG_BYTES = 2**20
MAX_TENSORS = 20_000


@dataclass(frozen=True)
class AdapterInfo:
    """What an adapter folder says of itself."""

    base_name: str
    base_fingerprint: str
    split: str
    config: GatedLoraConfig
    window: str = "trimmed"
    language: str = ""

    def require_base(self, fingerprint: str) -> None:
        """Raise :class:`AdapterMismatchError` unless the adapter was made for the base with this fingerprint."""
        if self.base_fingerprint != fingerprint:
            raise AdapterMismatchError(
                f"adapter was made for base {self.base_name!r} ({self.base_fingerprint}), not for {fingerprint}: load that base instead"
            )


def save_adapter(folder: Path, tensors: State, info: AdapterInfo) -> None:
    """Write an adapter folder. A failed write, on a full disk for example, leaves the old adapter intact."""
    metadata = {
        "format": "pt",
        "schema": str(SCHEMA),
        "base": info.base_name,
        "base_fingerprint": info.base_fingerprint,
        "split": info.split,
        "window": info.window,
        "language": info.language,
        "tensors": str(len(tensors)),
    }
    weights = tensor_bytes(tensors, metadata)
    config = json.dumps(_config_json(info), indent=2, sort_keys=True).encode()
    try:
        write_together(folder, {WEIGHTS_NAME: weights, CONFIG_NAME: config})
    except OSError as error:
        raise AdapterError(
            f"adapter could not be written to {folder}: {error}; free some space or choose another folder"
        ) from error


def _config_json(info: AdapterInfo) -> dict[str, Any]:
    config = {key: value for key, value in info.config.to_dict().items() if not isinstance(value, set)}
    return {**config, "peft_type": "GATED_LORA", "base_model_name_or_path": info.base_name, "inference_mode": True}


def load_adapter(folder: Path) -> tuple[State, AdapterInfo]:
    """Read an adapter folder back. Raises :class:`AdapterError` with the reason for anything but a sound one."""
    weights, config_path = folder / WEIGHTS_NAME, folder / CONFIG_NAME
    for path, limit in ((weights, MAX_ADAPTER_BYTES), (config_path, MAX_CONFIG_BYTES)):
        if not path.is_file():
            raise AdapterError(
                f"no adapter at {folder}: {path.name} is missing; give the folder that 'idiolect run' wrote for a device"
            )
        if path.stat().st_size > limit:
            raise AdapterError(
                f"{path} has {path.stat().st_size:,} bytes, more than the {limit:,} that an adapter may have"
            )
    config = _read_config(config_path)
    tensors, metadata = read_tensors(weights)
    if metadata.get("schema") != str(SCHEMA):
        raise AdapterError(
            f"{weights} has schema {metadata.get('schema')!r}, this version reads {SCHEMA}: save it again with a matching version"
        )
    if metadata.get("tensors") != str(len(tensors)):
        raise AdapterError(
            f"{weights} holds {len(tensors)} tensors but says {metadata.get('tensors')}: the file was altered"
        )
    try:
        make_split(metadata.get("split", ""), tensors)
    except (ConfigError, SplitError) as error:
        raise AdapterError(f"{weights} does not say what of it is private: {error}; get it again") from error
    info = AdapterInfo(
        base_name=metadata.get("base", ""),
        base_fingerprint=metadata.get("base_fingerprint", ""),
        split=metadata["split"],
        config=config,
        window=metadata.get("window", "trimmed"),
        language=metadata.get("language", ""),
    )
    return tensors, info


def _read_config(path: Path) -> GatedLoraConfig:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.get("peft_type") != "GATED_LORA":
            kind = values.get("peft_type", values.get("method")) if isinstance(values, dict) else type(values).__name__
            raise AdapterError(f"{path} describes {kind!r}, not a GATED_LORA adapter: load it with PEFT itself")
        known = GatedLoraConfig.__dataclass_fields__
        return GatedLoraConfig(**{key: value for key, value in values.items() if key in known and key != "peft_type"})
    except (OSError, ValueError, TypeError, RecursionError, ConfigError) as error:
        raise AdapterError(f"{path} is not an adapter configuration: {error}") from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file, whose size the caller has bounded; :class:`AdapterError` if it is none."""
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if len(names) > MAX_TENSORS:
                raise AdapterError(f"{path} holds {len(names):,} tensors, more than the {MAX_TENSORS:,} allowed")
            return {name: file.get_tensor(name) for name in sorted(names)}, dict(file.metadata() or {})
    except IdiolectError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterError(f"{path} is not a readable safetensors file: {error}; get it again") from error


def describe(tensors: State, info: AdapterInfo) -> dict[str, Any]:
    """What ``idiolect info`` prints: configuration, base, and sizes of the whole, the shared and the private part."""
    split = make_split(info.split, tensors)
    whole, shared, private = size_of(tensors), size_of(tensors, split.shared), size_of(tensors, split.private)
    return {
        "base": info.base_name,
        "base_fingerprint": info.base_fingerprint,
        "rank": info.config.r,
        "alpha": info.config.lora_alpha,
        "gate": info.config.gate,
        "target_modules": info.config.target_modules,
        "split": info.split,
        "window": info.window,
        "language": info.language,
        "tensors": len(tensors),
        "parameters": whole.parameters,
        "bytes": whole.bytes,
        "shared": {"tensors": len(split.shared), "parameters": shared.parameters, "bytes": shared.bytes},
        "private": {"tensors": len(split.private), "parameters": private.parameters, "bytes": private.bytes},
    }
