"""The aggregator's state after each round, on disk: the shared tensors of an arm, replaced whole or not at all.

The one of the round before is kept in the folder ``before``: a run whose newest is damaged loses one round, which it repeats to
the same numbers.
"""

import glob
import json
import os
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
from fl.core.tensorfile import read_tensors, tensor_bytes
from fl.protocol.wire import from_arrays, to_arrays

SCHEMA = 1
STORED = "stored-"  # before the name of a count, in the metadata
SECONDS_NAME = "seconds.json"
BEFORE = "before"  # a folder below that of the checkpoints


@dataclass(frozen=True)
class Checkpoint:
    """Shared tensors of an arm after ``round`` rounds, and what its strategy keeps beside them (moments, corrections, directions).

    ``stored`` counts what was on the disk by then in files that only grow (rows, charges): with less, something was lost.
    """

    round: int
    arrays: ArrayRecord
    state: Mapping[str, np.ndarray] = field(default_factory=dict)
    stored: Mapping[str, int] = field(default_factory=dict)


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
    metadata |= {STORED + name: str(count) for name, count in checkpoint.stored.items()}
    state, before = state_path(folder, arm, checkpoint.round), folder / BEFORE
    states = f"{glob.escape(arm)}.state-*.safetensors"
    try:
        if checkpoint.state:
            kept = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in checkpoint.state.items()}
            write_atomically(state, tensor_bytes(kept, metadata))
            metadata["state"] = state.name
        data = tensor_bytes(from_arrays(checkpoint.arrays), metadata)
        write_atomically(checkpoint_path(folder, arm), data, before=before)
        for old in folder.glob(states):
            if old != state:
                os.replace(old, before / old.name)
        for old in sorted(before.glob(states), key=lambda path: (len(path.name), path.name))[:-1]:
            old.unlink()
    except OSError as error:
        raise RunError(f"checkpoint could not be written to {folder}: {error}; the one before it is intact") from error


def load_checkpoint(folder: Path, arm: str, fingerprint: str) -> Checkpoint | None:
    """The arm's newest checkpoint, None if there is none. :class:`RunError` for a damaged one or one of another base."""
    for place in (folder, folder / BEFORE):
        path = checkpoint_path(place, arm)
        try:
            found = _read(path, fingerprint, "go on from the round before it")
            break
        except FileNotFoundError:  # never written, killed while it was replaced, or removed as somebody was told to
            continue
    else:
        return None
    metadata, tensors = found
    try:
        server_round = int(metadata["round"])
        stored = {n.removeprefix(STORED): int(count) for n, count in metadata.items() if n.startswith(STORED)}
    except (KeyError, ValueError) as error:
        raise _damaged(path, error, "go on from the round before it") from error
    state: dict[str, np.ndarray] = {}
    if "state" in metadata:
        places = (folder, folder / BEFORE)
        kept = next((p for place in places if (p := state_path(place, arm, server_round)).exists()), None)
        if kept is None:
            raise RunError(
                f"{state_path(folder, arm, server_round)} is missing: put it back, or remove {path} to go on from the round before it"
            )
        state = {
            n: t.numpy() for n, t in _read(kept, fingerprint, f"go on, with {path}, from the round before")[1].items()
        }
    return Checkpoint(server_round, to_arrays(tensors) if tensors else ArrayRecord(), state, stored)


def checkpointed_rounds(folder: Path, arm: str) -> int:
    """How many rounds of an arm are checkpointed, as its newest readable checkpoint says; 0 without one."""
    for place in (folder, folder / BEFORE):
        errors = suppress(OSError, SafetensorError, KeyError, ValueError, TypeError)
        with errors, safe_open(checkpoint_path(place, arm), framework="numpy") as file:
            return int(file.metadata()["round"])
    return 0


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


def _read(path: Path, fingerprint: str, remedy: str) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata and tensors of a file of this base. FileNotFoundError where there is none."""
    try:
        tensors, metadata = read_tensors(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RunError(
            f"{path} cannot be read ({error}): give it back to the user that runs this, or mount its disk"
        ) from error
    except ValueError as error:
        raise _damaged(path, error, remedy) from error
    if metadata.get("base") != fingerprint or metadata.get("schema") != str(SCHEMA):
        raise RunError(
            f"{path} belongs to base {metadata.get('base')!r}, not {fingerprint!r}: use another output folder"
        )
    return metadata, tensors


def _damaged(path: Path, error: Exception, remedy: str) -> RunError:
    return RunError(
        f"{path} is damaged ({error}): remove it to {remedy}, or to start the arm again where there is none"
    )
