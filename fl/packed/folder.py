"""An adapter folder (``adapter_config.json``, ``adapter_model.safetensors``): how it is read, and as one blob. Loads without torch.

:mod:`fl.adapters.files` writes such folders and checks more, with torch; a device that has none reads them with this.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fl.core import tensorfile
from fl.core.errors import AdapterError, ConfigError
from fl.packed.blob import PackedInfo, pack
from fl.packed.header import MAX_PACKED_BYTES, Dtype

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PEFT_TYPE = "GATED_LORA"
SCHEMA = 1
# What the metadata of the weights say, and under which names :class:`PackedInfo` and an adapter's info say it
_SAME = ("base_fingerprint", "split", "window", "language", "tokenizer")
FACTS = {"base": "base_name", **dict(zip(_SAME, _SAME, strict=True))}
_DEFAULTS = {"window": "trimmed", "language": "", "tokenizer": ""}
MAX_CONFIG_BYTES = 2**20

Parsed = TypeVar("Parsed")


def pack_folder(folder: Path, dtype: Dtype = "float16") -> bytes:
    """The adapter in ``folder`` as one blob.

    Raises :class:`AdapterError` for a folder that holds no sound Gated LoRA adapter.
    """
    config = read_config(folder, lambda values: require_low_rank(values, str(folder / CONFIG_NAME)))
    tensors, facts = read_weights(folder, MAX_PACKED_BYTES, "np")
    return pack(tensors, PackedInfo(**facts, config=config, dtype=dtype, tensors=len(tensors)))


def require_low_rank(values: object, source: str) -> dict[str, Any]:
    """``values`` if they configure an adapter of low rank; :class:`AdapterError`, which says why and what to do, if not."""
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
    return values


def read_config(folder: Path, parse: Callable[[Any], Parsed]) -> Parsed:
    """What ``parse`` makes of the JSON in the configuration of ``folder``; :class:`AdapterError` if it is none."""
    path = _bounded(folder / CONFIG_NAME, MAX_CONFIG_BYTES)
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError, ConfigError) as error:
        raise AdapterError(f"{path} is not such a configuration: {error}; get it again") from error


def read_weights(folder: Path, limit: int, framework: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors of a folder, of at most ``limit`` bytes, as :func:`read_tensors` gives them, and what it says of them."""
    path = _bounded(folder / WEIGHTS_NAME, limit)
    tensors, metadata = read_tensors(path, framework)
    if metadata.get("schema") != str(SCHEMA):
        raise AdapterError(
            f"{path} has schema {metadata.get('schema')!r}, this version reads {SCHEMA}: save it again with a matching version"
        )
    if metadata.get("tensors") != str(len(tensors)):
        raise AdapterError(f"{path} holds {len(tensors)} tensors but says {metadata.get('tensors')}: it was altered")
    said = {**_DEFAULTS, **metadata}
    missing = [key for key in FACTS if key not in said]
    if missing:
        raise AdapterError(f"{path} does not say its {', '.join(missing)}: get it again")
    return tensors, {field: said[key] for key, field in FACTS.items()}


def _bounded(path: Path, limit: int) -> Path:
    if not path.is_file():
        raise AdapterError(
            f"no adapter at {path.parent}: {path.name} is missing; give RUN/shared of 'idiolect run', or what it wrote for a device"
        )
    if path.stat().st_size > limit:
        raise AdapterError(
            f"{path} has {path.stat().st_size:,} bytes, more than the {limit:,} that an adapter may have"
        )
    return path


def read_tensors(path: Path, framework: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors, sorted, and the metadata of a safetensors file, whose size the caller has bounded.

    Arrays for the ``framework`` "np", torch tensors for "pt". Raises :class:`AdapterError` if it is no such file.
    """
    try:
        return tensorfile.read_tensors(path, framework)
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} is not a readable safetensors file: {error}; get it again") from error
