"""Peak memory of a command and all its children, in proportional set size: a page shared by N processes counts 1/N in each.

    python -m benchmarks.peak_memory [--every SECONDS] -- COMMAND [ARGUMENT ...]
    python -m benchmarks.peak_memory --pid PID          until that process ends

Ray's workers are children of the command, so the whole of a simulation is in the sum. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time

import psutil

from sim.backends.noop import tree_bytes


def watch(root: psutil.Process, every: float) -> dict[str, float]:
    """Sample until ``root`` ends; peaks in bytes."""
    peak_proportional = peak_resident = samples = 0
    while root.is_running() and root.status() != psutil.STATUS_ZOMBIE:
        try:
            proportional, resident = tree_bytes(root)
        except psutil.Error:
            break
        peak_proportional, peak_resident = max(peak_proportional, proportional), max(peak_resident, resident)
        samples += 1
        time.sleep(every)
    return {
        "name": "peak-memory",
        "proportional_gib": round(peak_proportional / 2**30, 2),
        "sum_of_resident_gib": round(peak_resident / 2**30, 2),
        "target_gib": 6,
        "samples": samples,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pid", type=int)
    parser.add_argument("--every", type=float, default=2.0)
    parser.add_argument("command", nargs="*")
    arguments = parser.parse_args()
    if arguments.pid is not None:
        print(json.dumps(watch(psutil.Process(arguments.pid), arguments.every)))
        return
    with subprocess.Popen(arguments.command) as process:
        result = watch(psutil.Process(process.pid), arguments.every)
        code = process.wait()
    print(json.dumps({**result, "exit_code": code}))
    raise SystemExit(code)


if __name__ == "__main__":
    main()
