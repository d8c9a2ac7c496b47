"""Why devices of a simulation failed, in its run folder: a reply has no room for words, and a worker's log is not on the terminal.

A deployed device says it to its own log alone.
"""

import json
import os
from contextlib import suppress
from pathlib import Path

from fl.core.files import PRIVATE

FAILURES_NAME = "failures.jsonl"


def note_failure(folder: Path, device_id: str, error: Exception) -> None:
    """Add a line, whole whichever processes write at once."""
    line = json.dumps([device_id, f"{type(error).__name__}: {error}"], ensure_ascii=False) + "\n"
    with suppress(OSError):  # a reason is not worth a run
        descriptor = os.open(folder / FAILURES_NAME, os.O_WRONLY | os.O_APPEND | os.O_CREAT, PRIVATE)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            file.write(line.encode())


def last_failure(folder: Path, device_id: str) -> str:
    """Why a device failed the last time, "" where nothing says it."""
    reason = ""
    with suppress(OSError, ValueError):
        for line in (folder / FAILURES_NAME).read_text(encoding="utf-8").split("\n"):
            if line and (entry := json.loads(line))[0] == device_id:
                reason = str(entry[1])
    return reason
