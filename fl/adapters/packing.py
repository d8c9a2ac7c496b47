"""Adapter folders as packed blobs and back, on a machine with torch: with all checks that :func:`load_adapter` makes."""

from __future__ import annotations

from pathlib import Path

import torch

from fl.adapters.config import GatedLoraConfig
from fl.adapters.files import AdapterInfo, load_adapter, require_split, save_adapter
from fl.adapters.state import State
from fl.core.errors import AdapterError, ConfigError
from fl.packed import folder as packed_folder
from fl.packed.blob import unpack
from fl.packed.header import Dtype


def pack_folder(folder: Path, dtype: Dtype = "float16", *, tokenizer: str = "") -> bytes:
    """The adapter in ``folder`` as one blob; ``tokenizer`` is :attr:`fl.bases.whisper.tokenizer.Tokenizer.digest` of its base.

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
    require_split(packed.split, tensors, "the packed adapter")
    try:
        config = GatedLoraConfig.from_values({"peft_type": packed_folder.PEFT_TYPE, **packed.config})
    except (ConfigError, TypeError, ValueError) as error:
        raise AdapterError(f"the packed adapter's configuration is not one: {error}; get it again") from error
    info = AdapterInfo(
        base_name=packed.base_name,
        base_fingerprint=packed.base_fingerprint,
        split=packed.split,
        config=config,
        window=packed.window,
        language=packed.language,
    )
    return tensors, info
