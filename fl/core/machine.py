"""What this process runs on: stands beside every figure, says how many things to do at once, and takes memory back."""

import ctypes
import gc
import os
import platform
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

SPINS = "10000"  # GNU OpenMP's own: 300,000


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def wait_briefly() -> None:
    """Let OpenMP's threads sleep soon when they wait for one another; for a process that has not loaded torch yet.

    By default GNU OpenMP, torch's on Linux, spins for milliseconds: where another program has one of the cores, that takes most of
    the time (``benchmarks/shared_cores.py``). What the environment says already stands.
    """
    if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        os.environ["GOMP_SPINCOUNT"] = SPINS


def processor() -> str:
    """The processor's name."""
    return _of_processor("model name") or platform.processor() or platform.machine()


def has_matrix_tiles() -> bool:
    """Whether the processor multiplies matrices of bf16 in tiles (AMX), and the system lets it."""
    return "amx_bf16" in _of_processor("flags").split()


def _of_processor(key: str) -> str:
    """What Linux says of the first processor; empty where it does not."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def machine() -> dict[str, str | int]:
    """Processor, cores that this process may use, and system, without the machine's name; the GPU if this process computes on one."""
    torch = sys.modules.get("torch")  # whoever has not loaded it has not used a GPU either
    on_gpu = torch is not None and torch.cuda.is_initialized()
    return {
        **({"gpu": torch.cuda.get_device_name()} if torch is not None and on_gpu else {}),
        "processor": processor(),
        "cores": available_cores(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def installed_versions(*packages: str) -> dict[str, str]:
    """The version of each of ``packages`` that is installed: a run in one process does not need all of them."""
    found = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def return_free_memory() -> bool:
    """Return free heap pages to the system (glibc's ``malloc_trim``); False where the C library cannot.

    What a training step freed is still the process's own until the C library is asked to return it.
    Freed activations are several hundred MiB after a training step, and each worker process of a machine keeps its own.
    Worth calling when a message is done, not between steps: the next step takes the pages again, one fault each.
    """
    gc.collect(0)
    try:
        return ctypes.CDLL("libc.so.6").malloc_trim(0) in (0, 1)
    except (OSError, AttributeError):  # not glibc
        return False
