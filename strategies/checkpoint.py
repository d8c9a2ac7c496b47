"""The aggregator's state after each round, on disk: the shared tensors of an arm, replaced whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flwr.app import ArrayRecord
from safetensors import SafetensorError, safe_open

from fl.errors import RunError
from fl.files import write_atomically
from fl.tensorfile import tensor_bytes
from fl.wire import from_arrays, to_arrays

SCHEMA = 1


@dataclass(frozen=True)
class Checkpoint:
    """Shared tensors of an arm after ``round`` rounds."""

    round: int
    arrays: ArrayRecord


def checkpoint_path(folder: Path, arm: str) -> Path:
    """The file of an arm's newest checkpoint."""
    return folder / f"{arm}.safetensors"


def save_checkpoint(folder: Path, arm: str, checkpoint: Checkpoint, fingerprint: str) -> None:
    """Replace the arm's checkpoint; a full disk raises :class:`RunError` and leaves the one before."""
    metadata = {"schema": str(SCHEMA), "arm": arm, "round": str(checkpoint.round), "base": fingerprint}
    try:
        write_atomically(checkpoint_path(folder, arm), tensor_bytes(from_arrays(checkpoint.arrays), metadata))
    except OSError as error:
        raise RunError(f"checkpoint could not be written to {folder}: {error}; the one before it is intact") from error


def load_checkpoint(folder: Path, arm: str, fingerprint: str) -> Checkpoint | None:
    """The arm's newest checkpoint, None if there is none. :class:`RunError` for a damaged one or one of another base."""
    path = checkpoint_path(folder, arm)
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        if metadata.get("base") != fingerprint or metadata.get("schema") != str(SCHEMA):
            raise RunError(
                f"{path} belongs to base {metadata.get('base')!r}, not {fingerprint!r}: use another output folder"
            )
        return Checkpoint(int(metadata["round"]), to_arrays(tensors) if tensors else ArrayRecord())
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise RunError(f"{path} is damaged ({error}): remove it to start the arm again") from error
