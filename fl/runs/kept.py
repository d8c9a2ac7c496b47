"""The progress of a run in its folder, for other processes: ``idiolect status`` reads it."""

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import psutil

from fl.core.errors import IdiolectError
from fl.core.files import write_atomically
from fl.runs.progress import RunProgress
from fl.runs.schema import CONFIG_NAME, PROGRESS_NAME

WRITE_SECONDS = 1.0  # between two writings: rounds of a run without training take milliseconds


def machine_mark() -> str:
    """A name of this machine that tells nobody what it is called."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:16]


def started_at(process: int) -> float | None:
    """When a process of this machine was started, in seconds since 1970; None if it does not run."""
    with suppress(psutil.Error):
        found = psutil.Process(process)
        return None if found.status() == psutil.STATUS_ZOMBIE else round(found.create_time(), 2)
    return None


class ProgressFile(RunProgress):
    """A :class:`RunProgress` that is kept in a run folder, for ``idiolect status``."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._path, self._written, self._error = folder / PROGRESS_NAME, 0.0, ""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Keep a step, in the file too unless it was written a moment ago."""
        super().__call__(what, done, total)
        if self.clock() - self._written >= WRITE_SECONDS or done == total:
            self.write()

    def failed(self, error: BaseException) -> None:
        """Say why the run ended."""
        self._error = str(error) if isinstance(error, IdiolectError) else f"{type(error).__name__}: {error}"
        if (self._path.parent / CONFIG_NAME).exists():  # a run that was refused leaves nothing
            self.write()

    def write(self) -> None:
        """Replace the file. It is not worth a run, so a full disk is no error here."""
        self._written = self.clock()
        parts = {name: asdict(part) for name, part in self.parts.items()}
        values = {
            "schema": 1,
            "process": os.getpid(),
            "started": started_at(os.getpid()),
            "machine": machine_mark(),
            "current": self.current,
            "parts": parts,
            "seconds_left": self.seconds_left(),
            "at": round(time.time(), 2),
            "error": self._error,
        }
        with suppress(OSError):
            write_atomically(self._path, json.dumps(values, ensure_ascii=False).encode())


@contextmanager
def kept_progress(folder: Path) -> Iterator[ProgressFile]:
    """The progress of a run, kept in its folder, with what it ends with if that is an error."""
    kept = ProgressFile(folder)
    kept.write()
    try:
        yield kept
    except BaseException as error:
        kept.failed(error)
        raise
