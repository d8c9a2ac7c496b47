"""Weights as pages of a file: read when they are touched, and the same physical memory in every process that maps them.

A mapping is private to its process (copy on write), so weights that are changed in place, as merging an adapter does,
never reach the file or another process. The mapping holds the file itself, not its name: one that is removed or renamed
over stays readable until the last process lets go. A file that is *truncated in place* would kill its readers (SIGBUS);
nothing here does that.
"""

import hashlib
import json
import logging
import os
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fl.core.errors import BaseModelError
from fl.core.files import sync_path

ALIGNMENT = 64  # bytes: a cache line, and the widest vector register
_SIZE = struct.Struct("<Q")  # safetensors begins with the size of its header in bytes
_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}

log = logging.getLogger("idiolect.bases")


def read_mapped(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, memory-mapped; :class:`BaseModelError` for one that is damaged or missing."""
    try:
        return dict(load_file(file, backend="mmap"))
    except (OSError, SafetensorError) as error:
        raise BaseModelError(f"{file} cannot be read ({error}). It may be truncated: get it again.") from error


def write_aligned(weights: Mapping[str, Tensor], path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write ``weights`` in ``dtype`` as safetensors whose values begin at a multiple of 64 bytes; flushed to the disk.

    The format has no gaps between tensors, so those whose size is a multiple of 64 bytes come first and are all
    aligned. One tensor is converted at a time: the peak is the largest tensor, not a second copy of all.
    """
    size = {name: tensor.numel() * dtype.itemsize for name, tensor in weights.items()}
    order = sorted(weights, key=lambda name: (size[name] % ALIGNMENT != 0, name))
    facts: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in order:
        shape = list(weights[name].shape)
        facts[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [offset, offset + size[name]]}
        offset += size[name]
    header = json.dumps(facts, separators=(",", ":")).encode()
    header += b" " * (-(_SIZE.size + len(header)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(_SIZE.pack(len(header)) + header)
        for name in order:
            values = weights[name].detach().to("cpu", dtype).contiguous().reshape(-1)
            file.write(values.view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def in_dtype(
    weights: Mapping[str, Tensor], files: Sequence[Path], dtype: torch.dtype, store: Path
) -> Mapping[str, Tensor]:
    """``weights``, which were mapped from ``files``, as ``dtype``, mapped as well.

    Where they have that type already they are returned as they are. Otherwise they are converted once into ``store``,
    which costs the disk their size in ``dtype`` (four bytes a parameter in float32); an older conversion of the same
    files is removed. A disk that cannot take it is no error: this process then holds a copy of its own.
    """
    if all(tensor.dtype == dtype for tensor in weights.values()):
        return weights
    try:
        return _converted(weights, files, dtype, store)
    except OSError as error:
        log.warning("weights of %s are not shared between processes: %s cannot be written: %s", files[0], store, error)
        return {name: tensor.to(dtype) for name, tensor in weights.items()}


def _converted(
    weights: Mapping[str, Tensor], files: Sequence[Path], dtype: torch.dtype, store: Path
) -> Mapping[str, Tensor]:
    where = _digest([str(file.resolve()) for file in sorted(files)], str(dtype))
    what = _digest([(file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files)], sorted(weights))
    path = store / f"{where}-{what}.safetensors"
    if (found := _usable(path, weights, dtype)) is not None:
        return found
    store.mkdir(parents=True, exist_ok=True)
    with FileLock(store / f".{where}.lock"):
        if (found := _usable(path, weights, dtype)) is not None:  # another process was quicker
            return found
        temporary = path.with_suffix(".tmp")  # one writer at a time, by the lock
        try:
            write_aligned(weights, temporary, dtype)
            for older in store.glob(f"{where}-*.safetensors"):
                older.unlink()  # who maps it keeps it
            temporary.rename(path)
            sync_path(store)
        finally:
            temporary.unlink(missing_ok=True)
    return read_mapped(path)


def _usable(path: Path, weights: Mapping[str, Tensor], dtype: torch.dtype) -> Mapping[str, Tensor] | None:
    """What ``path`` holds, if that is ``weights`` in ``dtype`` by names and shapes."""
    with suppress(BaseModelError):
        found = read_mapped(path)
        same = found.keys() == weights.keys() and all(
            found[name].shape == weights[name].shape and found[name].dtype == dtype for name in weights
        )
        return found if same else None
    return None


def _digest(*facts: object) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
