"""Private state on a device's own disk: the tensors that never leave it.

One folder per run, arm and device, one file per round: ``state-000008.safetensors`` (tensors, and in its metadata the round, the
base fingerprint and the schema version), so that tensors and their description can never disagree. The last three rounds are
kept: a run that was killed between a device's write and the aggregator's checkpoint resumes from the state before, and one
whose checkpoint was damaged, too, from the one before that.

A disk takes milliseconds to confirm a write but confirms several at once, so a node with many devices lets them wait together:
see :meth:`DeviceStore.writing_behind`.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from fl.adapters.state import State, check_tensors
from fl.core.errors import AdapterError, AdapterMismatchError, StoreError
from fl.core.files import write_atomically
from fl.core.tensorfile import read_tensors, tensor_bytes
from fl.packed.blob import quantized, restored

log = logging.getLogger("idiolect.client")
SCHEMA = 1
KEPT_ROUNDS = 3
DTYPE, INT8 = "dtype", "int8"  # in the metadata of a state that is not float32
STATE_NAME = re.compile(r"state-(\d{6,})\.safetensors")
MAX_STATE_BYTES = 512 * 2**20
WRITERS = 8  # threads that wait for the disk; one has its journal confirm all of their writes together


def folder_name(device_id: str) -> str:
    """A folder name for any device id: readable where it is safe, percent-coded where it is not."""
    safe = re.sub(r"[^A-Za-z0-9_-]", lambda m: "".join(f"%{byte:02x}" for byte in m.group().encode()), device_id)
    if not safe or len(safe) > 200:
        raise StoreError(f"device id {device_id!r} cannot name a folder: use 1 to about 60 characters")
    return safe


def count_evaluation(root: Path) -> int:
    """The evaluations that a device has answered with counts, this one included, of all runs together; on disk before it returns.

    Raises :class:`StoreError` where the count cannot be read or written: nothing is answered uncounted.
    """
    path = root / "evaluations"
    try:
        count = 1 + (int(path.read_text(encoding="utf-8")) if path.exists() else 0)
        write_atomically(path, str(count).encode())
    except (OSError, ValueError) as error:
        raise StoreError(f"evaluations cannot be counted in {path}: {error}; write their number there") from error
    return count


class DeviceStore:
    """Private state of the devices that a node hosts, below ``root/<run>/<arm>/<device>``; a simulation has one run at its root.

    A run neither reads nor replaces what another one keeps.
    """

    def __init__(self, root: Path, fingerprint: str, run: str = "") -> None:
        self.root, self.run = root, run
        self.fingerprint = fingerprint
        self._pool: ThreadPoolExecutor | None = None
        self._writes: dict[str, list[Future[None]]] = {}

    @contextmanager
    def writing_behind(self) -> Iterator[None]:
        """Within this context :meth:`save` returns at once, and a state is durable after :meth:`settle` of its device.

        All is written when the context ends.
        """
        with ThreadPoolExecutor(WRITERS, "idiolect-store") as pool:
            self._pool = pool
            try:
                yield
            finally:
                self._pool = None
                self._writes = {}

    def settle(self, device_id: str) -> None:
        """Wait until what was saved of this device is on the disk. Raises :class:`StoreError` if it could not be written."""
        for write in self._writes.pop(device_id, ()):
            write.result()

    def folder(self, arm: str, device_id: str) -> Path:
        """Folder of one device in one arm."""
        return self.root / self.run / folder_name(arm) / folder_name(device_id)

    def rounds(self, arm: str, device_id: str) -> list[int]:
        """Rounds whose state is stored, ascending."""
        try:
            names = os.listdir(self.folder(arm, device_id))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _unreadable(self.folder(arm, device_id), error) from error
        return sorted(int(match.group(1)) for match in map(STATE_NAME.fullmatch, names) if match)

    def _path(self, arm: str, device_id: str, round_index: int) -> Path:
        return self.folder(arm, device_id) / f"state-{round_index:06d}.safetensors"

    def load(self, arm: str, device_id: str, shapes: Mapping[str, tuple[int, ...]], *, before: int) -> State | None:
        """The newest state from a round earlier than ``before``, checked against ``shapes``; None if there is none.

        Raises :class:`StoreError` for a file that is damaged, of another base, or of another configuration.
        """
        rounds = [r for r in self.rounds(arm, device_id) if r < before]
        if not rounds:
            if before > 2:  # it may be new to the run, or its disk be gone
                log.info(
                    "device %s has no state of arm %s from before round %d: it begins afresh", device_id, arm, before
                )
            return None
        path = self._path(arm, device_id, rounds[-1])
        try:
            if path.stat().st_size > MAX_STATE_BYTES:
                raise StoreError(f"{path} has more than {MAX_STATE_BYTES:,} bytes: it is not private state")
            tensors, metadata = read_tensors(path)
            if metadata.get(DTYPE) == INT8:
                values = restored({name: tensor.numpy() for name, tensor in tensors.items()})
                tensors = {name: torch.from_numpy(array) for name, array in values.items()}
            self._check(path, metadata, tensors, shapes)
            return tensors
        except OSError as error:
            raise _unreadable(path, error) from error
        except (ValueError, AdapterError) as error:
            raise StoreError(
                f"private state {path} is damaged ({error}): remove the file to go on from the state before it"
            ) from error

    def _check(
        self, path: Path, metadata: dict[str, str], tensors: State, shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        if metadata.get("schema") != str(SCHEMA):
            raise StoreError(f"{path} has schema {metadata.get('schema')!r}, this version reads {SCHEMA}")
        if metadata.get("base") != self.fingerprint:
            raise StoreError(
                f"{path} belongs to base {metadata.get('base')!r}, not to {self.fingerprint!r}: use that base or another store"
            )
        try:
            check_tensors(tensors, shapes)
        except (AdapterError, AdapterMismatchError) as error:
            raise StoreError(f"private state {path} does not fit this run: {error}") from error

    def save(self, arm: str, device_id: str, round_index: int, tensors: State, *, int8: bool = False) -> None:
        """Store a round's private tensors, durably, and drop those older than the round before; a quarter of the bytes with ``int8``.

        On a full disk :class:`StoreError` is raised (by :meth:`settle`, while writing behind) and the states before are intact.
        """
        metadata = {"schema": str(SCHEMA), "base": self.fingerprint, "round": str(round_index)}
        if int8:
            stored = quantized({name: tensor.numpy() for name, tensor in tensors.items()})
            tensors = {name: torch.from_numpy(array) for name, array in stored.items()}
            metadata[DTYPE] = INT8
        data = tensor_bytes(tensors, metadata)
        if self._pool is None:
            self._write(arm, device_id, round_index, data)
        else:
            write = self._pool.submit(self._write, arm, device_id, round_index, data)
            self._writes.setdefault(device_id, []).append(write)

    def _write(self, arm: str, device_id: str, round_index: int, data: bytes) -> None:
        path = self._path(arm, device_id, round_index)
        try:
            write_atomically(path, data)
            for old in [r for r in self.rounds(arm, device_id) if r <= round_index][:-KEPT_ROUNDS]:
                self._path(arm, device_id, old).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(
                f"private state could not be written to {path}: {error}; the state before it is intact, free some space or "
                "let this user write there"
            ) from error


def _unreadable(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"private state {path} cannot be read ({error}): nothing is wrong with it yet; mount its disk, or give the folder back to "
        "the user that runs this node"
    )
