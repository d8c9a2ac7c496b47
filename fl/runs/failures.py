"""Why devices of a simulation failed, in its run folder: a reply has no room for words, and a worker's log is not on the terminal.

A deployed device says it to its own log alone.
"""

import hashlib
from contextlib import suppress
from pathlib import Path

from fl.core.files import write_atomically

FAILURES = "failures"


def note_failure(folder: Path, device_id: str, error: Exception) -> None:
    """Keep why a device failed, in place of why it did before."""
    with suppress(OSError):  # a reason is not worth a run
        write_atomically(_place(folder, device_id), f"{type(error).__name__}: {error}".encode())


def last_failure(folder: Path, device_id: str) -> str:
    """Why a device failed the last time, "" where nothing says it."""
    with suppress(OSError):
        return _place(folder, device_id).read_text(encoding="utf-8")
    return ""


def _place(folder: Path, device_id: str) -> Path:
    return folder / FAILURES / f"{hashlib.sha256(device_id.encode()).hexdigest()[:32]}.txt"
