"""What a run is doing, read from its folder: by a process that has nothing to do with it."""

import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from fl.core.errors import RunError
from fl.runs.files import is_finished
from fl.runs.kept import machine_mark, started_at
from fl.runs.progress import RunPart
from fl.runs.schema import CHECKPOINTS, CONFIG_NAME, PROGRESS_NAME


class RunState(StrEnum):
    """What a run is doing."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"  # it said why
    STOPPED = "stopped"  # its process is gone
    ELSEWHERE = "elsewhere"  # another machine wrote the folder last, so whether it runs is not known here


@dataclass(frozen=True)
class RunStatus:
    """What a run folder tells: times are in seconds since 1970."""

    folder: Path
    state: RunState
    current: str = ""
    parts: dict[str, RunPart] = field(default_factory=dict)
    seconds_left: float | None = None
    last_sign: float | None = None
    process: int | None = None
    error: str = ""

    @property
    def done(self) -> int:
        """Steps that are done, of all parts."""
        return sum(part.done for part in self.parts.values())

    @property
    def total(self) -> int:
        """Steps of all parts."""
        return sum(part.total for part in self.parts.values())


def read_status(folder: Path) -> RunStatus:
    """What the run in ``folder`` is doing. Raises :class:`RunError` where there is none."""
    require_run(folder)
    sign = _last_sign(folder)
    try:
        values = json.loads((folder / PROGRESS_NAME).read_text(encoding="utf-8"))
        parts = {str(name): RunPart(**part) for name, part in values["parts"].items()}
        process, current, reason = int(values["process"]), str(values["current"]), str(values["error"])
        left, at, started, machine = values["seconds_left"], float(values["at"]), values["started"], values["machine"]
    except FileNotFoundError:  # a run of an earlier version
        return RunStatus(folder, RunState.FINISHED if is_finished(folder) else RunState.STOPPED, last_sign=sign)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{folder / PROGRESS_NAME} cannot be read ({error}): remove it, the run itself does not need it"
        ) from error
    if is_finished(folder):
        state = RunState.FINISHED
    elif reason:
        state = RunState.FAILED
    elif machine != machine_mark():
        state = RunState.ELSEWHERE
    else:
        state = RunState.RUNNING if started is not None and started_at(process) == started else RunState.STOPPED
    running = state in (RunState.RUNNING, RunState.ELSEWHERE)
    if running and left is not None:
        left = max(0.0, left - (time.time() - at))
    return RunStatus(folder, state, current, parts, left if running else None, sign, process, reason)


def require_run(folder: Path) -> None:
    """Raise :class:`RunError` unless ``folder`` is that of a run."""
    if not folder.is_dir():
        raise RunError(f"{folder}: no such run folder; make one with `idiolect run` or `idiolect demo`")
    if not (folder / CONFIG_NAME).is_file():
        below = sorted(path.parent for path in folder.glob(f"*/{CONFIG_NAME}"))
        hint = f"did you mean {below[0]}?" if below else "give what --output named, such as runs/demo"
        raise RunError(f"{folder} is no run folder (it has no {CONFIG_NAME}): {hint}")


def _last_sign(folder: Path) -> float | None:
    """When a file of the run was last written."""
    times = []
    for path in (*folder.iterdir(), *(folder / CHECKPOINTS).glob("*")):
        with suppress(OSError):
            if path.is_file():
                times.append(path.stat().st_mtime)
    return max(times, default=None)
