"""A run that trains nothing: what the framework itself costs at any number of devices."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fl.runs.files import read_costs
from fl.runs.schema import RESULTS_NAME
from fl.settings.config import RunConfig
from fl.settings.names import ARMS, NO_OP
from sim.backends.memory import peak_memory
from sim.backends.run import run_simulation
from strategies.loop import Progress


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


def run_no_op(
    config: RunConfig,
    *,
    workers: int | None = None,
    serial: bool = False,
    ray_address: str = "",
    progress: Progress | None = None,
) -> NoOpSummary:
    """Run :func:`no_op_config` of ``config`` and measure it. Without ``output`` the run folder is gone afterwards."""
    config = no_op_config(config)
    started = time.perf_counter()
    with _folder(config.output) as output, peak_memory() as peak:
        folder = run_simulation(
            config.changed({"output": output}),
            workers=workers,
            serial=serial,
            ray_address=ray_address,
            progress=progress,
        )
        costs = read_costs(folder)
        with (folder / RESULTS_NAME).open(encoding="utf-8") as file:
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


@contextmanager
def _folder(output: str) -> Iterator[str]:
    if output:
        yield output
        return
    with tempfile.TemporaryDirectory(prefix="idiolect-no-op-") as folder:
        yield str(Path(folder) / "run")
