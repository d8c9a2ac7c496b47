"""A run on this machine: the project's ServerApp and ClientApp on Flower's simulation runtime, or in this process."""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import replace
from pathlib import Path

from fl.config import RunConfig
from fl.errors import IdiolectError, RunError
from strategies.loop import Progress

log = logging.getLogger("idiolect.sim")
WORKER_BYTES = 1_500 * 2**20  # resident memory of a worker with whisper-base, measured by the demo


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_simulation(
    config: RunConfig, *, workers: int | None = None, progress: Progress | None = None, serial: bool = False
) -> Path:
    """Run a comparison and return its folder, with results, transcripts and costs in it.

    ``workers`` are the processes that train side by side, by default one for each core; ``serial`` stays in this process.
    Raises what the ServerApp raised, or :class:`RunError` if the simulation ended without a result.
    """
    from clients.app import app as client_app
    from strategies.app import make_server_app, run_server

    config = replace(config, output=str(Path(config.output or "runs/last").expanduser().resolve()))
    if serial:
        from sim.serial import SerialGrid

        return run_server(SerialGrid(client_app), config, 1, progress)
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 lets anything else on the machine go first
    from flwr.simulation import run_simulation as flower_simulation

    workers = workers or available_cores()
    done: list[Path] = []
    backend = {
        "init_args": {
            "num_cpus": workers,
            "logging_level": logging.ERROR,
            "log_to_driver": False,
            "include_dashboard": False,
        },
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }
    logging.getLogger("flwr").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            flower_simulation(
                server_app=make_server_app(config, done.append, progress),
                client_app=client_app,
                num_supernodes=workers,
                backend_config=backend,  # type: ignore[arg-type]
            )
    except IdiolectError:
        raise
    except Exception as error:
        raise RunError(f"the simulation failed: {type(error).__name__}: {error}") from error
    if not done:
        raise RunError(
            f"the simulation ended without a result; its log is above, what was finished is in {config.output}"
        )
    return done[0]
