"""The aggregator's state after each round, on disk: the shared tensors of an arm, replaced whole or not at all."""

import glob
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord
from safetensors import SafetensorError, safe_open

from fl.core.errors import RunError
from fl.core.files import write_atomically
from fl.core.tensorfile import tensor_bytes
from fl.protocol.wire import from_arrays, to_arrays

SCHEMA = 1
SECONDS_NAME = "seconds.json"


@dataclass(frozen=True)
class Checkpoint:
    """Shared tensors of an arm after ``round`` rounds, and what its strategy keeps beside them (moments, corrections)."""

    round: int
    arrays: ArrayRecord
    state: Mapping[str, np.ndarray] = field(default_factory=dict)


def checkpoint_path(folder: Path, arm: str) -> Path:
    """The file of an arm's newest checkpoint."""
    return folder / f"{arm}.safetensors"


def state_path(folder: Path, arm: str, server_round: int) -> Path:
    """The file of what the arm's strategy keeps beside the shared tensors, after a round."""
    return folder / f"{arm}.state-{server_round}.safetensors"


def save_checkpoint(folder: Path, arm: str, checkpoint: Checkpoint, fingerprint: str) -> None:
    """Replace the arm's checkpoint; a full disk raises :class:`RunError` and leaves the one before.

    The state is written first, under the name of its round: the checkpoint that is found always has its own state beside it.
    """
    metadata = {"schema": str(SCHEMA), "arm": arm, "round": str(checkpoint.round), "base": fingerprint}
    state = state_path(folder, arm, checkpoint.round)
    try:
        if checkpoint.state:
            kept = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in checkpoint.state.items()}
            write_atomically(state, tensor_bytes(kept, metadata))
            metadata["state"] = state.name
        write_atomically(checkpoint_path(folder, arm), tensor_bytes(from_arrays(checkpoint.arrays), metadata))
        for old in folder.glob(f"{glob.escape(arm)}.state-*.safetensors"):
            if old != state:
                old.unlink()
    except OSError as error:
        raise RunError(f"checkpoint could not be written to {folder}: {error}; the one before it is intact") from error


def load_checkpoint(folder: Path, arm: str, fingerprint: str) -> Checkpoint | None:
    """The arm's newest checkpoint, None if there is none. :class:`RunError` for a damaged one or one of another base."""
    path = checkpoint_path(folder, arm)
    if not path.exists():
        return None
    metadata, tensors = _read(path, fingerprint)
    try:
        server_round = int(metadata["round"])
    except (KeyError, ValueError) as error:
        raise _damaged(path, error) from error
    state: dict[str, np.ndarray] = {}
    if "state" in metadata:
        kept = state_path(folder, arm, server_round)
        if not kept.exists():
            raise RunError(f"{kept} is missing: put it back, or remove {path} to start the arm again")
        state = {name: tensor.numpy() for name, tensor in _read(kept, fingerprint)[1].items()}
    return Checkpoint(server_round, to_arrays(tensors) if tensors else ArrayRecord(), state)


def save_seconds(folder: Path, seconds: Mapping[str, float]) -> None:
    """Keep how long the checkpointed rounds took, by arm. Beside the checkpoints and not in them: those come again to the byte."""
    with suppress(OSError):  # a time is not worth a run
        write_atomically(folder / SECONDS_NAME, json.dumps(dict(seconds)).encode())


def load_seconds(folder: Path) -> dict[str, float]:
    """The inverse of :func:`save_seconds`; empty if there is nothing that can be read."""
    try:
        found = json.loads((folder / SECONDS_NAME).read_text(encoding="utf-8"))
        return {str(arm): float(value) for arm, value in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _read(path: Path, fingerprint: str) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata and tensors of a file of this base."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if metadata.get("base") != fingerprint or metadata.get("schema") != str(SCHEMA):
        raise RunError(
            f"{path} belongs to base {metadata.get('base')!r}, not {fingerprint!r}: use another output folder"
        )
    return metadata, tensors


def _damaged(path: Path, error: Exception) -> RunError:
    return RunError(f"{path} is damaged ({error}): remove it to start the arm again")
