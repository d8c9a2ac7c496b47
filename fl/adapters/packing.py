"""Adapter folders as packed blobs and back, on a machine with torch: with all checks that :func:`load_adapter` makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fl.adapters.config import GatedLoraConfig
from fl.adapters.files import AdapterInfo, load_adapter, save_adapter
from fl.adapters.split import make_split
from fl.adapters.state import State
from fl.core.errors import AdapterError, ConfigError, SplitError
from fl.packed import folder as packed_folder
from fl.packed.blob import PackedInfo, unpack
from fl.packed.header import Dtype


def pack_folder(folder: Path, dtype: Dtype = "float16", *, tokenizer: str = "") -> bytes:
    """The adapter in ``folder`` as one blob; ``tokenizer`` is :func:`fl.bases.whisper.tokenizer.tokenizer_digest` of its base.

    Raises :class:`AdapterError` for what :func:`load_adapter` or :func:`fl.packed.blob.pack` refuses.
    """
    load_adapter(folder)
    return packed_folder.pack_folder(folder, dtype, tokenizer=tokenizer)


def unpack_to_folder(data: bytes, folder: Path) -> AdapterInfo:
    """Write the adapter of a blob as a folder that PEFT reads, in float32. What was there before is replaced at the end.

    Raises :class:`AdapterError` for anything but a sound blob with a sound configuration and split.
    """
    tensors, info = unpack_state(data)
    save_adapter(folder, tensors, info)
    return info


def unpack_state(data: bytes) -> tuple[State, AdapterInfo]:
    """The tensors of a blob as torch tensors (float32, CPU), and what an adapter folder would say of them."""
    arrays, packed = unpack(data)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    try:
        make_split(packed.split, tensors)
    except (ConfigError, SplitError) as error:
        raise AdapterError(f"the packed adapter does not say what of it is private: {error}; get it again") from error
    return tensors, _info(packed)


def _info(packed: PackedInfo) -> AdapterInfo:
    return AdapterInfo(
        base_name=packed.base_name,
        base_fingerprint=packed.base_fingerprint,
        split=packed.split,
        config=_config(packed.config),
        window=packed.window,
        language=packed.language,
    )


def _config(values: dict[str, Any]) -> GatedLoraConfig:
    if values.get("peft_type", packed_folder.PEFT_TYPE) != packed_folder.PEFT_TYPE:
        raise AdapterError(f"the packed adapter is {values['peft_type']!r}, not {packed_folder.PEFT_TYPE}")
    known = GatedLoraConfig.__dataclass_fields__.keys() - {"peft_type"}
    try:
        return GatedLoraConfig(**{key: value for key, value in values.items() if key in known})
    except (ConfigError, TypeError, ValueError) as error:
        raise AdapterError(f"the packed adapter's configuration is not one: {error}; get it again") from error
