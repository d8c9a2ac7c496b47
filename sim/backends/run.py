"""A run on this machine: the project's ServerApp and ClientApp in this process, or on Flower's simulation runtime."""

import os
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from fl.core.errors import PackageError
from fl.core.machine import available_cores
from fl.settings.config import RunConfig
from idiolect import shadow

if TYPE_CHECKING:
    from fl.runs.progress import Progress


def run_simulation(
    config: RunConfig,
    *,
    workers: int | None = None,
    progress: "Progress | None" = None,
    serial: bool = False,
    processes: bool = False,
    ray_address: str = "",
) -> Path:
    """Run a comparison and return its folder, with results, transcripts and costs in it.

    ``workers`` train side by side, by default one for each core. They are threads of this process, which share imports and base; with
    ``processes``, and on a GPU, they are processes of Flower's simulation runtime on Ray. ``serial`` does one thing after the other in
    this process, for as many nodes as there are ``workers``, two by default. ``ray_address`` (``host:port`` or ``auto``) uses a Ray
    cluster that runs already, and all its cores.
    Raises what the ServerApp raised, :class:`fl.core.errors.RunError` if the simulation ended without a result, or
    :class:`PackageError` where another project's packages stand first.
    """
    if found := shadow(sys.path):
        raise PackageError(found)
    config = config.changed({"output": str(Path(config.output or "runs/last").expanduser().resolve())})
    on_ray = not serial and (processes or bool(ray_address) or _on_gpu(config))
    if on_ray and (found := shadow([os.getcwd(), *sys.path])):
        raise PackageError(
            f"Ray's workers look in the current folder first, and {found}; leave --processes out, or give --serial"
        )
    if on_ray:
        from sim.backends.on_ray import run_on_ray

        return run_on_ray(config, workers, progress, ray_address)
    from clients.app import app as client_app
    from sim.backends.serial import SerialGrid, ThreadGrid
    from strategies.app import run_server

    if serial:
        return run_server(SerialGrid(client_app, workers or 2), config, 1, progress)
    with closing(ThreadGrid(client_app, workers or available_cores())) as grid:
        return run_server(grid, config, 1, progress)


def _on_gpu(config: RunConfig) -> bool:
    """Whether steps wait for Python, which starts each operation, more than for what is computed: threads would take turns."""
    from fl.core.compute import CUDA, choose_device

    return choose_device(config.base.compute).type == CUDA
