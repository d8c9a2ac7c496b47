"""The directions in which participants' updates differed, beside the shared adapter that they were made with.

An enrolment draws a private part to them. They are kept and sent in int8, with a scale for each direction of each tensor.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from fl.adapters.split import tensor_kind
from fl.adapters.state import State
from fl.core.errors import AdapterError
from fl.core.files import write_atomically
from fl.core.tensorfile import tensor_bytes
from fl.packed.blob import quantized, restored
from fl.packed.folder import read_tensors

NAME = "directions.safetensors"  # in the folder of the shared adapter
MAX_BYTES = 2 * 2**30
KIND, SCHEMA = "idiolect_directions", "1"


def stored_directions(directions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``directions`` (directions, numbers) by tensor as they are kept and sent; nothing of nothing."""
    return quantized(directions) if directions else {}


def read_directions(stored: Mapping[str, np.ndarray]) -> State:
    """The inverse of :func:`stored_directions`. Raises :class:`AdapterError` for what it cannot have given."""
    if not stored:
        return {}
    return {name: torch.from_numpy(values) for name, values in restored(stored).items()}


def save_directions(folder: Path, stored: Mapping[str, np.ndarray]) -> None:
    """Write directions as they are kept beside the adapter in ``folder``; of none, remove those of another that lie there."""
    if not stored:
        (folder / NAME).unlink(missing_ok=True)
        return
    tensors = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in stored.items()}
    try:
        write_atomically(folder / NAME, tensor_bytes(tensors, {"format": "pt", KIND: SCHEMA}))
    except OSError as error:
        raise AdapterError(
            f"{folder / NAME} could not be written: {error}; free some space or choose another folder"
        ) from error


def grown_from(tensors: State, shared: State) -> bool:
    """Whether an adapter's A are those of ``shared``, but for what int8 rounds: an enrolment from it moves B, and directions are of B
    beside these A."""
    named = [name for name in shared if tensor_kind(name) == "A"]
    if any(name not in tensors or tensors[name].shape != shared[name].shape for name in named):
        return False
    steps = {name: shared[name].abs().amax(1, keepdim=True) / 127 for name in named}
    return all(bool(((tensors[name] - shared[name]).abs() <= step).all()) for name, step in steps.items())


def load_directions(folder: Path) -> State:
    """The directions beside the adapter in ``folder``, (directions, numbers) by tensor; empty where there are none.

    Raises :class:`AdapterError` for a file that does not hold any.
    """
    path = folder / NAME
    if not path.exists():
        return {}
    remedy = "get it again, or remove it to enrol without"
    if path.stat().st_size > MAX_BYTES:
        raise AdapterError(f"{path} has {path.stat().st_size:,} bytes, more than the {MAX_BYTES:,} allowed: {remedy}")
    stored, metadata = read_tensors(path, "np")
    if metadata.get(KIND) != SCHEMA:
        raise AdapterError(f"{path} is not of directions of schema {SCHEMA}: {remedy}")
    try:
        return read_directions(stored)
    except (AdapterError, ValueError, TypeError, IndexError) as error:
        raise AdapterError(f"{path} does not hold directions ({error}): {remedy}") from error
