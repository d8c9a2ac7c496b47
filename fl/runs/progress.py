"""How far a run is: its parts, what each took, the time left, and the file in its folder that tells other processes.

A part is an arm with its rounds, or a test of an arm. All are told before the first begins, so that the time left is of all.
"""

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from fl.core.errors import IdiolectError
from fl.core.files import write_atomically
from fl.runs.schema import CONFIG_NAME, PROGRESS_NAME

Progress = Callable[[str, int, int], None]  # what is being done, done, total
WRITE_SECONDS = 1.0  # between two writings: rounds of a run without training take milliseconds


def as_one(title: str, progress: Progress) -> Progress:
    """A progress that tells ``progress`` of all parts of a run as of one, called ``title``."""
    run = RunProgress()

    def tell(what: str, done: int, total: int) -> None:
        run(what, done, total)
        progress(title, run.done, run.total)

    return tell


def both(one: Progress, other: Progress | None) -> Progress:
    """A progress that tells two."""

    def tell(what: str, done: int, total: int) -> None:
        one(what, done, total)
        if other is not None:
            other(what, done, total)

    return tell


@dataclass
class RunPart:
    """``done`` of ``total`` steps, of which ``measured`` took ``seconds`` in this process."""

    done: int
    total: int
    measured: int = 0
    seconds: float = 0.0


@dataclass
class RunProgress:
    """A :data:`Progress` that keeps what it is told and estimates the time left. ``clock`` returns seconds."""

    clock: Callable[[], float] = time.monotonic
    parts: dict[str, RunPart] = field(default_factory=dict)
    current: str = ""
    _since: float = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """``done`` of ``total`` steps of a part are done, and the next one begins."""
        now, part = self.clock(), self.parts.setdefault(what, RunPart(done, total))
        if what == self.current and done > part.done and total == part.total:
            part.measured += done - part.done
            part.seconds += now - self._since
        if what != self.current or done != part.done:
            self._since = now
        self.current, part.done, part.total = what, done, total

    @property
    def done(self) -> int:
        """Steps that are done, of all parts."""
        return sum(part.done for part in self.parts.values())

    @property
    def total(self) -> int:
        """Steps of all parts."""
        return sum(part.total for part in self.parts.values())

    def seconds_left(self) -> float | None:
        """What the steps that are left will take at the pace so far; None before the first one was measured.

        A part that has not begun is taken to go at the mean pace of all.
        """
        measured = sum(part.measured for part in self.parts.values())
        if not measured:
            return None
        mean = sum(part.seconds for part in self.parts.values()) / measured
        left = 0.0
        for name, part in self.parts.items():
            pace = part.seconds / part.measured if part.measured else mean
            begun = min(pace, self.clock() - self._since) if name == self.current and part.done < part.total else 0.0
            left += pace * (part.total - part.done) - begun
        return left


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
