"""How far a run is: its parts, what each took, and the time left.

A part is an arm with its rounds, or a test of an arm. All are told before the first begins, so that the time left is of all.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

Progress = Callable[[str, int, int], None]  # what is being done, done, total


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
