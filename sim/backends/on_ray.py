"""A run on Flower's simulation runtime: a process for each worker, on Ray."""

import io
import logging
import os
import sys
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, TextIO

from fl.core.errors import IdiolectError, RunError
from fl.core.machine import available_cores
from fl.settings.config import RunConfig

if TYPE_CHECKING:
    from fl.runs.progress import Progress


def cluster_cores(address: str) -> int:
    """Cores of a Ray cluster that runs already. Raises :class:`RunError` if none is there."""
    import ray

    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise RunError(
            f"no Ray cluster at {address!r} ({error}): start one with 'ray start --head', or leave ray-address out"
        ) from error
    try:
        return max(1, int(ray.cluster_resources().get("CPU", 0)))
    finally:
        ray.shutdown()


def run_on_ray(config: RunConfig, workers: int | None, progress: "Progress | None", ray_address: str) -> Path:
    """The run's folder. Raises what the ServerApp raised, or :class:`RunError` if the simulation ended without a result."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 lets anything else on the machine go first
    workers = workers or (cluster_cores(ray_address) if ray_address else available_cores())
    done: list[Path | IdiolectError] = []
    ended = Event()
    backend = _backend(workers, ray_address)
    try:
        with warnings.catch_warnings(), redirect_stdout(_Notices(sys.stderr)):  # type: ignore[type-var]
            warnings.simplefilter("ignore")
            Thread(target=load_modules, daemon=True).start()
            if not ray_address:
                _start_ray(backend["init_args"])
            from flwr.simulation import run_simulation as flower_simulation

            from clients.app import app as client_app  # waits for the thread that loads them
            from strategies.app import make_server_app

            logging.getLogger("flwr").setLevel(logging.ERROR)
            flower_simulation(
                server_app=make_server_app(config, done.append, progress, ended),
                client_app=client_app,
                num_supernodes=workers,
                backend_config=backend,  # type: ignore[arg-type]
            )
    except Exception as error:
        if done and isinstance(done[0], IdiolectError):  # Flower may see the end of the simulation before its cause
            raise done[0] from None
        if isinstance(error, IdiolectError):
            raise
        raise RunError(f"the simulation failed: {type(error).__name__}: {error}") from error
    finally:
        ended.set()  # else the ServerApp's thread waits for ever, and this process with it
        _stop_ray()
    if not done:
        raise RunError(
            f"the simulation ended without a result; its log is above, what was finished is in {config.output}"
        )
    if isinstance(done[0], IdiolectError):
        raise done[0]
    return done[0]


def load_modules() -> None:
    """Import what a run needs, which takes seconds: as long as Ray takes to start."""
    for name in ("clients.app", "strategies.app"):
        import_module(name)


def _start_ray(arguments: Mapping[str, object]) -> None:
    """Start Ray on this machine, which Flower then uses, with processes that find modules as this one does.

    Flower would say so in a runtime environment, and then Ray could not use the processes that it starts ahead.
    """
    import ray

    os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path, *filter(None, [os.environ.get("PYTHONPATH")])])
    ray.init(**arguments)


def _stop_ray() -> None:
    import ray

    ray.shutdown()


class _Notices(io.TextIOBase):
    """Where Ray's notices go while it runs: not among a command's results, and without those about workers that end as they
    should (one that may do its message again is said to have failed at its end)."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._line = stream, ""

    def write(self, text: str) -> int:
        """Pass whole lines on unless they are about the end of a worker."""
        *whole, self._line = (self._line + text).split("\n")
        for line in whole:
            if "ClientAppActor.terminate failed" not in line:
                self._stream.write(line + "\n")
        return len(text)

    def flush(self) -> None:
        """Flush the stream behind."""
        self._stream.flush()


def _backend(workers: int, ray_address: str) -> dict[str, dict[str, object]]:
    """What Flower's simulation passes on to Ray: to start it, or to join the cluster at ``ray_address``."""
    # "local": without it Ray joins any cluster that somebody started on this machine, and refuses our number of cores there.
    own = {"address": "local", "num_cpus": workers, "include_dashboard": False}
    start = {"address": ray_address} if ray_address else own
    # A worker that dies is started anew and does its message once more, to the same numbers; if it dies again, the devices of
    # that message are left out of the round. A later message waits for the new worker.
    survival = {"max_restarts": -1, "max_task_retries": 1}
    resources: dict[str, object] = {"num_cpus": 1, "num_gpus": 0.0, **survival}
    return {
        "init_args": {"logging_level": logging.ERROR, "log_to_driver": False, **start},
        "client_resources": resources,
    }
