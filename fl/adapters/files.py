"""Adapters on disk: a folder that PEFT reads, with what PEFT does not check.

``adapter_config.json`` and ``adapter_model.safetensors`` are PEFT's own names, so ``PeftModel.from_pretrained`` works once
:mod:`fl.adapters.model` is imported. The safetensors metadata adds the schema version, the base fingerprint and the split.
Nothing is ever unpickled, and sizes are bounded before anything is read.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fl.adapters.config import GatedLoraConfig
from fl.adapters.split import make_split
from fl.adapters.state import State, size_of
from fl.core.errors import AdapterError, AdapterMismatchError, ConfigError, SplitError
from fl.core.files import write_together
from fl.core.tensorfile import tensor_bytes
from fl.packed.folder import (
    CONFIG_NAME,
    FACTS,
    PEFT_TYPE,
    SCHEMA,
    WEIGHTS_NAME,
    read_config,
    read_weights,
    require_low_rank,
)

MAX_ADAPTER_BYTES = 512 * 2**20


@dataclass(frozen=True)
class TrainedInfo:
    """What a folder of trained tensors says of itself; the last three are of a speech task: its features, and the digest of its
    tokenizer, empty where that is not known."""

    base_name: str
    base_fingerprint: str
    split: str
    window: str = field(default="trimmed", kw_only=True)
    language: str = field(default="", kw_only=True)
    tokenizer: str = field(default="", kw_only=True)

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
    ours = {"peft_type": PEFT_TYPE, "base_model_name_or_path": info.base_name, "inference_mode": True}
    write_folder(folder, tensors, info, {**config, **ours})


def load_adapter(folder: Path) -> tuple[State, AdapterInfo]:
    """Read an adapter folder back. Raises :class:`AdapterError` with the reason for anything but a sound one."""

    def parse(values: Any) -> GatedLoraConfig:  # keys of other versions of PEFT are left out
        known = GatedLoraConfig.__dataclass_fields__.keys() - {"peft_type"}
        found = require_low_rank(values, str(folder / CONFIG_NAME))
        return GatedLoraConfig(**{key: value for key, value in found.items() if key in known})

    config = read_config(folder, parse)
    tensors, trained = read_folder(folder, MAX_ADAPTER_BYTES)
    return tensors, AdapterInfo(**vars(trained), config=config)


def write_folder(folder: Path, tensors: State, info: TrainedInfo, config: Mapping[str, Any]) -> None:
    """Write trained tensors and their configuration."""
    metadata = {
        "format": "pt",
        "schema": str(SCHEMA),
        "tensors": str(len(tensors)),
        **{key: getattr(info, field) for key, field in FACTS.items()},
    }
    text = json.dumps(config, indent=2, sort_keys=True).encode()
    try:
        write_together(folder, {WEIGHTS_NAME: tensor_bytes(tensors, metadata), CONFIG_NAME: text})
    except OSError as error:
        raise AdapterError(
            f"{folder} could not be written: {error}; free some space or choose another folder"
        ) from error


def read_folder(folder: Path, limit: int) -> tuple[State, TrainedInfo]:
    """The tensors of a folder, of at most ``limit`` bytes, and what it says of them, all of it checked."""
    tensors, facts = read_weights(folder, limit, "pt")
    try:
        make_split(facts["split"], tensors)
    except (ConfigError, SplitError) as error:
        raise AdapterError(f"{folder} does not say what of it is private: {error}; get it again") from error
    return tensors, TrainedInfo(**facts)


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
