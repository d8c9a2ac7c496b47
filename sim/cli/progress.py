"""What a command shows while it works: bars with the time left on a terminal, and lines without one."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.progress import Task as RichTask
from rich.text import Text

from fl.runs.progress import Progress, RunProgress
from sim.cli.options import HarmlessConsole

LINE_SECONDS = 1.0  # between two lines
TENTHS_ABOVE = 100  # of more steps every tenth has a line
MOST_BARS = 12  # that are finished and still shown
IN_ALL, STARTING = "in all", "loading the base"


def duration(seconds: float) -> str:
    """``42 s``, ``7 min``, ``1 h 20 min``: as exact as an estimate is."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{round(whole / 60)} min"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


class StagedProgress(RunProgress):
    """A :class:`RunProgress` that begins anew where all is done and something else comes: making speech is no pace for rounds."""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Keep a step."""
        if what not in self.parts and self.done == self.total:
            self.parts.clear()
        super().__call__(what, done, total)

    @property
    def left(self) -> str:
        """The time left in words; empty where it is not known or nothing is left."""
        seconds = self.seconds_left()
        return "" if seconds is None or self.done == self.total else f"about {duration(max(seconds, 1.0))} left"


class Lines:
    """A line for each step that is done, at most one a second."""

    def __init__(self, print_line: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._print, self._clock, self._stages = print_line, clock, StagedProgress(clock)
        self._began, self._last, self._tenth = clock(), -LINE_SECONDS, 0

    def __call__(self, what: str, done: int, total: int) -> None:
        """A step."""
        before = self._stages.parts.get(what)
        advanced = before is not None and done > before.done
        self._stages(what, done, total)
        if not advanced:
            return
        now, tenth = self._clock(), 10 * done // total
        due = now - self._last >= LINE_SECONDS and (total <= TENTHS_ABOVE or tenth != self._tenth)
        if done == total or due:
            self._last, self._tenth = now, tenth
            parts = (
                f"{what}: {f'{done} of {total}' if total > 1 else 'done'}",
                duration(now - self._began),
                self._stages.left,
            )
            self._print(", ".join(filter(None, parts)))


class _LeftColumn(TextColumn):
    """The time left of what is under way, and of all of it; computed whenever the bars are drawn."""

    def __init__(self, stages: StagedProgress) -> None:
        super().__init__("")
        self._stages = stages

    def render(self, task: RichTask) -> Text:
        """The text beside the bar of a task."""
        last = task.fields["name"] == (IN_ALL if len(self._stages.parts) > 1 else self._stages.current)
        return Text(self._stages.left if last and not task.finished else "")


class Bars:
    """A bar for each part, and one for all of them where there are several."""

    def __init__(self, bars: RichProgress, stages: StagedProgress) -> None:
        self._bars, self._stages = bars, stages
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        """A step."""
        told = what in self._stages.parts
        self._stages(what, done, total)
        self._show(what, done, total, begun=told or len(self._stages.parts) == 1)
        if len(self._stages.parts) > 1:
            self._show(IN_ALL, self._stages.done, self._stages.total, begun=True)
        finished = [task for task in self._bars.tasks if task.finished and task.visible]
        for task in finished[:-MOST_BARS]:
            self._bars.update(task.id, visible=False)

    def _show(self, what: str, done: int, total: int, *, begun: bool) -> None:
        if what not in self._tasks:
            if IN_ALL in self._tasks and what != IN_ALL:  # which stays the last
                self._bars.remove_task(self._tasks.pop(IN_ALL))
            self._tasks[what] = self._bars.add_task(what, start=False, visible=False, total=total, name=what)
        task = self._tasks[what]
        if begun:
            self._bars.start_task(task)
        self._bars.update(task, completed=done, total=total, visible=begun or None)


def started(progress: Progress) -> Progress:
    """``progress`` for what takes a while to start: it shows that from now on, until it is told of the first step."""
    progress(STARTING, 0, 1)
    waiting = True

    def tell(what: str, done: int, total: int) -> None:
        nonlocal waiting
        if waiting:
            waiting = False
            progress(STARTING, 1, 1)
        progress(what, done, total)

    return tell


@contextmanager
def progress_on(console: HarmlessConsole, quiet: bool = False) -> Iterator[Progress]:
    """A callback ``(what, done, total)`` that shows on ``console`` how far each ``what`` is, and nothing if ``quiet``."""
    if quiet:
        yield lambda what, done, total: None
    elif not console.is_terminal:
        yield Lines(lambda line: console.print(line, soft_wrap=True, highlight=False))
    else:
        stages = StagedProgress()
        columns = (
            TextColumn("{task.description:<22}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            _LeftColumn(stages),
        )
        with RichProgress(*columns, console=console) as bars:
            yield Bars(bars, stages)
