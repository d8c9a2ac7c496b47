"""Adapters on disk: a folder that PEFT reads, with what PEFT does not check.

``adapter_config.json`` and ``adapter_model.safetensors`` are PEFT's own names, so ``PeftModel.from_pretrained`` works once
:mod:`fl.adapters.model` is imported. The safetensors metadata adds the schema version, the base fingerprint and the split.
Nothing is ever unpickled, and sizes are bounded before anything is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fl.adapters.config import GatedLoraConfig
from fl.adapters.split import make_split
from fl.adapters.state import State, size_of
from fl.core.errors import AdapterError, AdapterMismatchError, ConfigError, IdiolectError, SplitError
from fl.core.files import write_together
from fl.core.tensorfile import tensor_bytes
from fl.packed.folder import require_low_rank

SCHEMA = 1
CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
MAX_ADAPTER_BYTES = 512 * 2**20
MAX_CONFIG_BYTES = 2**20
MAX_TENSORS = 20_000

Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class TrainedInfo:
    """What a folder of trained tensors says of itself; the last two are of the features of a speech task."""

    base_name: str
    base_fingerprint: str
    split: str
    window: str = field(default="trimmed", kw_only=True)
    language: str = field(default="", kw_only=True)

    def require_base(self, fingerprint: str) -> None:
        """Raise :class:`AdapterMismatchError` unless the tensors were made for the base with this fingerprint."""
        if self.base_fingerprint != fingerprint:
            raise AdapterMismatchError(
                f"the adapter was made for base {self.base_name!r} ({self.base_fingerprint}), not for {fingerprint}: "
                "load that base instead"
            )


@dataclass(frozen=True)
class AdapterInfo(TrainedInfo):
    """What an adapter folder says of itself."""

    config: GatedLoraConfig


def save_adapter(folder: Path, tensors: State, info: AdapterInfo) -> None:
    """Write an adapter folder. A failed write, on a full disk for example, leaves the old adapter intact."""
    config = {key: value for key, value in info.config.to_dict().items() if not isinstance(value, set)}
    ours = {"peft_type": "GATED_LORA", "base_model_name_or_path": info.base_name, "inference_mode": True}
    write_folder(folder, tensors, info, {**config, **ours})


def load_adapter(folder: Path) -> tuple[State, AdapterInfo]:
    """Read an adapter folder back. Raises :class:`AdapterError` with the reason for anything but a sound one."""

    def parse(values: Any) -> GatedLoraConfig:
        require_low_rank(values, str(folder / CONFIG_NAME))
        return GatedLoraConfig.from_values(values)

    config = read_config(folder, parse)
    tensors, trained = read_folder(folder, MAX_ADAPTER_BYTES)
    return tensors, AdapterInfo(**vars(trained), config=config)


def write_folder(folder: Path, tensors: State, info: TrainedInfo, config: Mapping[str, Any]) -> None:
    """Write trained tensors and their configuration."""
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
    text = json.dumps(config, indent=2, sort_keys=True).encode()
    try:
        write_together(folder, {WEIGHTS_NAME: tensor_bytes(tensors, metadata), CONFIG_NAME: text})
    except OSError as error:
        raise AdapterError(
            f"{folder} could not be written: {error}; free some space or choose another folder"
        ) from error


def read_config(folder: Path, parse: Callable[[Any], Parsed]) -> Parsed:
    """What ``parse`` makes of the JSON in the configuration of ``folder``; :class:`AdapterError` if it is none."""
    path = _bounded(folder / CONFIG_NAME, MAX_CONFIG_BYTES)
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError, ConfigError) as error:
        raise AdapterError(f"{path} is not such a configuration: {error}") from error


def read_folder(folder: Path, limit: int) -> tuple[State, TrainedInfo]:
    """The tensors of a folder, of at most ``limit`` bytes, and what it says of them, all of it checked."""
    weights = _bounded(folder / WEIGHTS_NAME, limit)
    tensors, metadata = read_tensors(weights)
    if metadata.get("schema") != str(SCHEMA):
        raise AdapterError(
            f"{weights} has schema {metadata.get('schema')!r}, this version reads {SCHEMA}: save it again with a matching version"
        )
    if metadata.get("tensors") != str(len(tensors)):
        raise AdapterError(
            f"{weights} holds {len(tensors)} tensors but says {metadata.get('tensors')}: the file was altered"
        )
    require_split(metadata.get("split", ""), tensors, str(weights))
    facts = {key: metadata[key] for key in ("window", "language") if key in metadata}
    return tensors, TrainedInfo(
        metadata.get("base", ""), metadata.get("base_fingerprint", ""), metadata["split"], **facts
    )


def require_split(split: str, tensors: State, where: str) -> None:
    """Raise :class:`AdapterError` unless ``split`` says of each tensor whether it is private."""
    try:
        make_split(split, tensors)
    except (ConfigError, SplitError) as error:
        raise AdapterError(f"{where} does not say what of it is private: {error}; get it again") from error


def _bounded(path: Path, limit: int) -> Path:
    if not path.is_file():
        raise AdapterError(
            f"no adapter at {path.parent}: {path.name} is missing; give the folder that 'idiolect run' wrote for a device"
        )
    if path.stat().st_size > limit:
        raise AdapterError(
            f"{path} has {path.stat().st_size:,} bytes, more than the {limit:,} that an adapter may have"
        )
    return path


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
