"""An adapter folder (``adapter_config.json``, ``adapter_model.safetensors``) as one blob. Loads without torch.

:mod:`fl.adapters.files` writes such folders and checks more, with torch; a device that has none reads them with this.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from fl.core.errors import AdapterError
from fl.packed.blob import PackedInfo, pack
from fl.packed.header import MAX_HEADER_BYTES, MAX_PACKED_BYTES, MAX_TENSORS, Dtype

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PEFT_TYPE = "GATED_LORA"
_SCHEMA = "1"
_NEEDED = ("base", "base_fingerprint", "split")


def pack_folder(folder: Path, dtype: Dtype = "float16", *, tokenizer: str = "") -> bytes:
    """The adapter in ``folder`` as one blob. ``tokenizer`` is the digest of its base's tokenizer, where that is known.

    Raises :class:`AdapterError` for a folder that holds no sound Gated LoRA adapter.
    """
    weights, config = folder / WEIGHTS_NAME, folder / CONFIG_NAME
    for path, limit in ((weights, MAX_PACKED_BYTES), (config, MAX_HEADER_BYTES)):
        if not path.is_file():
            raise AdapterError(
                f"no adapter at {folder}: {path.name} is missing; give an adapter folder or a packed file"
            )
        if path.stat().st_size > limit:
            raise AdapterError(f"{path} has {path.stat().st_size:,} bytes, more than the {limit:,} that are packed")
    tensors, metadata = _read_tensors(weights)
    return pack(tensors, make_info(metadata, _read_config(config), dtype, tokenizer))


def make_info(metadata: Mapping[str, str], config: dict[str, Any], dtype: Dtype, tokenizer: str) -> PackedInfo:
    """What a folder's metadata and configuration say, as a blob says it."""
    if metadata.get("schema") != _SCHEMA:
        raise AdapterError(
            f"the adapter has schema {metadata.get('schema')!r}, this version reads {_SCHEMA}: save it again with a matching version"
        )
    missing = [key for key in _NEEDED if key not in metadata]
    if missing:
        raise AdapterError(f"the adapter does not say its {', '.join(missing)}: get it again")
    return PackedInfo(
        base_name=metadata["base"],
        base_fingerprint=metadata["base_fingerprint"],
        split=metadata["split"],
        tokenizer=tokenizer,
        window=metadata.get("window", "trimmed"),
        language=metadata.get("language", ""),
        config=config,
        dtype=dtype,
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path} is not an adapter configuration: {error}; get it again") from error
    require_low_rank(values, str(path))
    return dict(values)


def require_low_rank(values: object, source: str) -> None:
    """Raise :class:`AdapterError`, which says why and what to do, unless ``values`` configure an adapter of low rank."""
    if not isinstance(values, dict):
        raise AdapterError(f"{source} holds {type(values).__name__}, not the configuration of an adapter: get it again")
    if "method" in values:
        raise AdapterError(
            f"{source} is of method {str(values['method'])[:40]!r}: only low-rank adapters are rows of a batch, so only those are packed "
            "and served; decode it with 'idiolect transcribe --adapter FOLDER', or train with method = 'gated-lora' or 'lora'"
        )
    if values.get("peft_type") != PEFT_TYPE:
        raise AdapterError(
            f"{source} describes {str(values.get('peft_type'))[:40]!r}, not a {PEFT_TYPE} adapter: load it with PEFT itself"
        )


def _read_tensors(path: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    try:
        with safe_open(path, framework="np") as file:
            names = sorted(file.keys())
            if len(names) > MAX_TENSORS:
                raise AdapterError(f"{path} holds {len(names):,} tensors, more than the {MAX_TENSORS:,} allowed")
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except (
        SafetensorError,
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
    ) as error:  # a dtype without numpy too
        raise AdapterError(f"{path} is not a readable safetensors file: {error}; get it again") from error
