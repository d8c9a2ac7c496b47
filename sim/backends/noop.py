"""A run that trains nothing: what the framework itself costs at any number of devices, in time and memory.

Memory is of this process and everything that it started, Ray's processes among them, sampled while it runs.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from fl.runs.files import read_costs
from fl.runs.schema import RESULTS_NAME
from fl.settings.config import RunConfig
from fl.settings.names import ARMS, NO_OP


@dataclass
class PeakMemory:
    """The largest proportional sum that was seen, in bytes; 0 where the system does not tell."""

    bytes: int = 0


def tree_bytes(root: psutil.Process) -> tuple[int, int]:
    """Proportional and resident bytes of a process and its descendants.

    In the proportional set size a page that N processes share counts 1/N in each; it is 0 where the system does not tell.
    """
    proportional = resident = 0
    for process in (root, *root.children(recursive=True)):
        try:
            memory = process.memory_full_info()
        except psutil.Error:  # it ended while we looked
            continue
        proportional += getattr(memory, "pss", 0)
        resident += memory.rss
    return proportional, resident


@contextmanager
def peak_memory(every: float = 1.0) -> Iterator[PeakMemory]:
    """Sample the proportional :func:`tree_bytes` of this process every so many seconds, and once at the start and the end."""
    peak, stop, root = PeakMemory(), threading.Event(), psutil.Process()

    def sample() -> None:
        peak.bytes = max(peak.bytes, tree_bytes(root)[0])

    def watch() -> None:
        while not stop.wait(every):
            sample()

    sample()
    thread = threading.Thread(target=watch, name="idiolect-memory", daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()
        sample()


@dataclass(frozen=True)
class NoOpSummary:
    """What a run without training cost. ``framework_ms`` is the time of its rounds for each device that took part in one."""

    devices: int
    rounds: int
    trained: int  # devices that took part, summed over rounds
    seconds: float  # from the first to the last line of the run, start of the workers included
    seconds_rounds: float
    framework_ms: float
    peak_bytes: int  # of all processes together; 0 where the system does not tell


def no_op_config(config: RunConfig) -> RunConfig:
    """``config`` for the no-op task: one arm unless others were chosen, no evaluation, nobody new, updates in every round."""
    arms = "personalized" if config.federation.arms == ",".join(ARMS) else config.federation.arms
    return config.changed({"task": NO_OP, "new-people": 0, "private-share": 0.0, "arms": arms, "evaluate-every": 0})


def run_no_op(config: RunConfig, simulate: Callable[[RunConfig], Path]) -> NoOpSummary:
    """Run :func:`no_op_config` of ``config`` and measure it; without ``output`` the run folder is gone afterwards.

    ``simulate`` is :func:`sim.backends.run.run_simulation` with where it is to happen.
    """
    config = no_op_config(config)
    started = time.perf_counter()
    with TemporaryDirectory(prefix="idiolect-no-op-") as folder, peak_memory() as peak:
        output = simulate(config.changed({"output": config.output or str(Path(folder) / "run")}))
        costs = read_costs(output)
        with (output / RESULTS_NAME).open(encoding="utf-8") as file:
            trained = sum(1 for _ in file)
    seconds_rounds = sum(costs.seconds.values())
    return NoOpSummary(
        devices=costs.devices,
        rounds=config.federation.rounds,
        trained=trained,
        seconds=round(time.perf_counter() - started, 2),
        seconds_rounds=round(seconds_rounds, 2),
        framework_ms=round(1e3 * seconds_rounds / max(1, trained), 3),
        peak_bytes=peak.bytes,
    )
