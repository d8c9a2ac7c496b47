"""Recordings that wait for the server: kept in order, sent once as far as a device can know, lost never.

An entry is one file (a line of JSON, then the audio; sealed as a whole where the device's files are), named by its number and
its idempotency key:

    waiting/00000012-<key>      written whole or not at all
    done/00000012-<key>         the answer; written before the entry is removed
    failed/00000012-<key>       the entry, moved here with <name>.reason beside it, when the server refused it for good

A crash between answer and ``done`` sends the entry again with the same key, which a server that keeps keys answers from
memory; after ``done`` it is not sent again. Entries that wait are sent in order, one process at a time.
"""

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from clients.device.audio import CODECS, Upload
from clients.device.seal import LockedError, Seal, SealedFolder
from fl.core.errors import StoreError
from fl.core.files import make_folder, sync_path

WAITING, DONE, FAILED = "waiting", "done", "failed"
_NAME = re.compile(r"(\d{8})-([0-9a-f]{32})")
_MAX_ENTRY_BYTES = 256 * 2**20


class DamagedEntryError(StoreError):
    """A recording of the queue that was altered or cannot be read. The others are not touched."""


@dataclass(frozen=True)
class QueuedRecording:
    """One recording. ``language`` empty means the adapter's own; ``format`` is that of the answer."""

    key: str
    upload: Upload
    language: str = ""
    format: str = "json"


class RecordingQueue:
    """The queue below ``folder``; ``max_bytes`` bounds what waits."""

    def __init__(self, folder: Path, max_bytes: int, seal: Seal | None = None) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._files = SealedFolder(folder, seal or Seal())

    def names(self, state: str = WAITING) -> list[str]:
        """Names of the entries in a state, in their order."""
        try:
            return sorted(name for name in os.listdir(self.folder / state) if _NAME.fullmatch(name))
        except FileNotFoundError:
            return []

    def add(self, upload: Upload, language: str = "", response_format: str = "json") -> str:
        """Keep a recording, durably; the name of its entry. Raises :class:`StoreError` where there is no room."""
        entry = QueuedRecording(os.urandom(16).hex(), upload, language, response_format)
        with self._locked("order"):
            every = [name for state in (WAITING, DONE, FAILED) for name in self.names(state)]
            name = f"{max((int(name[:8]) for name in every), default=0) + 1:08d}-{entry.key}"
            head = {**asdict(entry), "upload": {"codec": upload.codec, "seconds": upload.seconds}}
            data = json.dumps(head, sort_keys=True).encode() + b"\n" + upload.content
            used = sum((self.folder / WAITING / waiting).stat().st_size for waiting in self.names())
            if used + len(data) + self._files.seal.overhead > self.max_bytes:
                raise StoreError(
                    f"the queue holds {used:,} bytes and may hold {self.max_bytes:,}: send it with 'idiolect device flush', "
                    "or raise --queue-mib; the recording was not added"
                )
            self._files.write(f"{WAITING}/{name}", name, data, "free some space; the recording was not queued")
        return name

    def load(self, name: str, state: str = WAITING) -> QueuedRecording:
        """An entry. Raises :class:`DamagedEntryError` for one that was altered or cannot be read."""
        try:
            head, _, content = self._files.read(f"{state}/{name}", name, _MAX_ENTRY_BYTES).partition(b"\n")
            values = json.loads(head)
            codec, seconds = values["upload"]["codec"], float(values["upload"]["seconds"])
            if codec not in CODECS or values["key"] != name[9:]:
                raise ValueError("codec or key is another")
            texts = str(values["language"]), str(values["format"])
            return QueuedRecording(values["key"], Upload(content, codec, seconds), *texts)
        except LockedError:
            raise
        except (StoreError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedEntryError(f"queue entry {name} is damaged and can only be removed: {error}") from error

    def finish(self, name: str, answer: str) -> None:
        """Keep the answer, durably, then drop the recording. A crash in between leaves both, and nothing is sent again."""
        self._files.write(f"{DONE}/{name}", f"{DONE} {name}", answer.encode(), "free some space and flush again")
        (self.folder / WAITING / name).unlink(missing_ok=True)

    def fail(self, name: str, reason: str) -> None:
        """Put a recording that the server will never take aside, with the reason."""
        file = f"{name}.reason"
        self._files.write(f"{FAILED}/{file}", f"{FAILED} {file}", reason.encode(), "free some space and flush again")
        os.replace(self.folder / WAITING / name, self.folder / FAILED / name)
        sync_path(self.folder / FAILED)

    def answer(self, name: str, state: str = DONE) -> str:
        """The transcript of an entry that is done; with ``failed`` the reason why there is none."""
        file = name if state == DONE else f"{name}.reason"
        return self._files.read(f"{state}/{file}", f"{state} {file}", _MAX_ENTRY_BYTES).decode()

    def forget(self) -> int:
        """Remove what is done and what failed; how many."""
        paths = [self.folder / state / name for state in (DONE, FAILED) for name in self.names(state)]
        for path in paths:
            path.unlink(missing_ok=True)
            path.with_name(f"{path.name}.reason").unlink(missing_ok=True)
        return len(paths)

    @contextmanager
    def sending(self) -> Iterator[list[str]]:
        """The names that are to be sent, while no other process sends. What was done before a crash is dropped, not sent."""
        with self._locked("sending"):
            for name in {*self.names()} & {*self.names(DONE)}:
                (self.folder / WAITING / name).unlink(missing_ok=True)
            yield self.names()

    @contextmanager
    def _locked(self, what: str) -> Iterator[None]:
        """One process at a time; the system gives the lock back when a process dies."""
        make_folder(self.folder)
        with (self.folder / f".{what}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if what == "sending" else 0))
            except BlockingIOError as error:
                raise StoreError("another process is sending the queue: wait for it") from error
            yield
